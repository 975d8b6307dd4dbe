use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use flate2::{GzBuilder, write};
use proptest::prelude::*;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

fn raw_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// Decodes in reads of `read_bytes`; every piece handed out stays within the buffer.
fn decode(encoding: &str, body: &[u8], read_bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(Some(encoding))?;
    let mut decoded = Vec::new();
    for read in body.chunks(read_bytes) {
        decoder.feed(read, &mut |piece: &[u8]| {
            assert!(piece.len() <= OUTPUT_BYTES);
            decoded.extend_from_slice(piece);
        })?;
    }
    decoder.finish().map(|()| decoded)
}

fn corpus() -> impl Strategy<Value = Vec<u8>> {
    let events = proptest::collection::vec("data: [a-z]{0,40}\n\n", 0..60);
    prop_oneof![
        events.prop_map(|events| events.concat().into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..5_000),
        (0..200_000_usize).prop_map(|len| vec![b'x'; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// For every body, coding and size of reads the decoded bytes are the body's.
    #[test]
    fn any_partition_decodes_to_the_body(body in corpus(), read_bytes in 1..4_000_usize) {
        let members = body.split_at(body.len() / 2);
        let two_members = [gzip(members.0), gzip(members.1)].concat();
        let padded = [gzip(&body), vec![0; 700]].concat();
        prop_assert_eq!(decode("gzip", &gzip(&body), read_bytes), Ok(body.clone()));
        prop_assert_eq!(decode("x-gzip", &two_members, read_bytes), Ok(body.clone()));
        prop_assert_eq!(decode("gzip", &padded, read_bytes), Ok(body.clone()));
        prop_assert_eq!(decode("deflate", &zlib(&body), read_bytes), Ok(body.clone()));
        prop_assert_eq!(decode("deflate", &raw_deflate(&body), read_bytes), Ok(body));
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        for encoding in ["gzip", "deflate", "identity"] {
            drop(decode(encoding, &body, 3));
            drop(decode(encoding, &[b"\x1f\x8b\x08\x1f", &body[..]].concat(), 7));
        }
    }

    /// A flipped byte is an error or leaves the same bytes, never others in silence.
    #[test]
    fn a_damaged_gzip_body_is_noticed(at in 0..400_usize, bit in 0..8_u32) {
        let body: Vec<u8> = (0..300_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut damaged = gzip(&body);
        damaged[at] ^= 1_u8 << bit;
        if let Ok(decoded) = decode("gzip", &damaged, 50) {
            prop_assert_eq!(decoded, body);
        }
    }
}

#[test]
fn each_flushed_event_comes_out_with_its_own_read() {
    type Encoder = Box<dyn FnMut(&[u8]) -> Vec<u8>>;
    let mut gz = write::GzEncoder::new(Vec::new(), Compression::default());
    let mut zl = write::ZlibEncoder::new(Vec::new(), Compression::default());
    let encoders: [(&str, Encoder); 2] = [
        (
            "gzip",
            Box::new(move |event| {
                gz.write_all(event).expect("memory takes all");
                gz.flush().expect("memory takes all");
                std::mem::take(gz.get_mut())
            }),
        ),
        (
            "deflate",
            Box::new(move |event| {
                zl.write_all(event).expect("memory takes all");
                zl.flush().expect("memory takes all");
                std::mem::take(zl.get_mut())
            }),
        ),
    ];
    for (encoding, mut encode) in encoders {
        let mut decoder = Decoder::new(Some(encoding)).expect("a known encoding");
        for number in 0..200 {
            let event = format!("data: {{\"token\":{number}}}\n\n");
            let mut decoded = Vec::new();
            let read = encode(event.as_bytes());
            decoder
                .feed(&read, &mut |piece| decoded.extend_from_slice(piece))
                .expect("memory takes all");
            assert_eq!(decoded, event.as_bytes(), "{encoding} event {number}");
        }
        assert!(decoder.finish().unwrap_err().is_incomplete());
    }
}

#[test]
fn every_optional_header_field_is_skipped() {
    let mut encoder = GzBuilder::new()
        .extra(vec![7; 300])
        .filename("name")
        .comment("comment")
        .write(Vec::new(), Compression::fast());
    encoder.write_all(b"body").expect("memory takes all");
    let mut body = encoder.finish().expect("memory takes all");
    for read_bytes in [1, 2, 5, 1_000] {
        assert_eq!(decode("gzip", &body, read_bytes), Ok(b"body".to_vec()));
    }
    // With a header checksum before the data; flate2 writes none.
    body[3] |= 2;
    let data = body.len() - 8 - raw_deflate(b"body").len();
    body.splice(data..data, [0xAB, 0xCD]);
    assert_eq!(decode("gzip", &body, 1), Ok(b"body".to_vec()));
}

#[test]
fn a_bomb_comes_out_in_bounded_pieces() {
    let bomb = gzip(&vec![0; 64 << 20]);
    let mut decoder = Decoder::new(Some("gzip")).expect("a known encoding");
    let (mut total, mut largest) = (0, 0);
    let result = decoder.feed(&bomb, &mut |piece: &[u8]| {
        total += piece.len();
        largest = largest.max(piece.len());
    });
    assert_eq!((result, total), (Ok(()), 64 << 20));
    assert!(largest <= OUTPUT_BYTES);
}

#[test]
fn unknown_and_false_encodings_are_values() {
    for encoding in ["br", "zstd", "gzip, br"] {
        let error = Decoder::new(Some(encoding)).unwrap_err();
        assert!(error.to_string().contains(encoding) && error.to_string().contains("hint:"));
    }
    let lie = decode("gzip", b"data: plain\n\n", 100).unwrap_err();
    assert_eq!(lie.to_string(), "body is not valid gzip: bad header");
    assert!(decode("gzip", &[gzip(b"a"), b"x".to_vec()].concat(), 100).is_err());
    assert!(decode("deflate", &[zlib(b"a"), b"x".to_vec()].concat(), 100).is_err());
}

#[test]
fn a_cut_body_is_incomplete_and_an_empty_one_is_not() {
    let body = gzip(b"some text");
    for len in 1..body.len() {
        assert!(decode("gzip", &body[..len], 4).unwrap_err().is_incomplete());
    }
    assert_eq!(decode("gzip", b"", 4), Ok(Vec::new()));
    assert_eq!(decode("deflate", b"", 4), Ok(Vec::new()));
    assert!(
        decode("deflate", &zlib(b"some text")[..5], 4)
            .unwrap_err()
            .is_incomplete()
    );
}

/// Found by fuzzing: what one call decoded before the damage was dropped, so that
/// it came out or not depending on the reads.
#[test]
fn what_lies_before_the_damage_comes_out_in_any_reads() {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(b"data: a\n\n").expect("memory takes all");
    encoder.flush().expect("memory takes all");
    let mut body = encoder.get_ref().clone();
    // A block type that does not exist.
    body.push(0xFF);
    for read_bytes in [1, 2, body.len()] {
        let mut decoder = Decoder::new(Some("deflate")).expect("a known encoding");
        let mut decoded = Vec::new();
        let failed = body.chunks(read_bytes).any(|read| {
            let take = &mut |piece: &[u8]| decoded.extend_from_slice(piece);
            decoder.feed(read, take).is_err()
        });
        assert!(failed);
        assert_eq!(decoded, b"data: a\n\n", "{read_bytes}-byte reads");
    }
}
