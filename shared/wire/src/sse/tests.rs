use proptest::prelude::*;

use super::*;

/// A frame that owns what it holds.
#[derive(Debug, Clone, PartialEq)]
struct Owned {
    class: FrameClass,
    payload: Vec<u8>,
    event: Option<String>,
    id: Option<String>,
    tag: usize,
}

fn owned(frame: Frame<'_, usize>) -> Owned {
    assert_eq!(frame.bytes, frame.payload.len() as u64);
    assert!(!frame.truncated);
    Owned {
        class: frame.class,
        payload: frame.payload.to_vec(),
        event: frame.event.map(str::to_owned),
        id: frame.id.map(str::to_owned),
        tag: frame.tag,
    }
}

/// Frames of `reads`, tagged with the index of the read.
fn frames(reads: &[&[u8]]) -> Vec<Owned> {
    let mut framer = Framer::new();
    let mut found = Vec::new();
    for (index, read) in reads.iter().enumerate() {
        framer.feed(index, read, &mut |frame| found.push(owned(frame)));
    }
    framer.finish(&mut |frame| found.push(owned(frame)));
    found
}

/// `(class, payload, tag)`, for tests that care about nothing else.
fn plain(reads: &[&str]) -> Vec<(FrameClass, String, usize)> {
    let reads: Vec<&[u8]> = reads.iter().map(|read| read.as_bytes()).collect();
    let text = |bytes| String::from_utf8(bytes).expect("tests use UTF-8");
    frames(&reads)
        .into_iter()
        .map(|f| (f.class, text(f.payload), f.tag))
        .collect()
}

fn event(payload: &str, tag: usize) -> (FrameClass, String, usize) {
    (FrameClass::Event, payload.to_owned(), tag)
}

/// The lines of a whole stream as `(start, end)` offsets, line ends excluded.
fn reference_lines(stream: &[u8]) -> Vec<(usize, usize)> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < stream.len() {
        if matches!(stream[at], b'\n' | b'\r') {
            lines.push((start, at));
            at += if stream[at..].starts_with(b"\r\n") {
                2
            } else {
                1
            };
            start = at;
        } else {
            at += 1;
        }
    }
    if start < stream.len() {
        lines.push((start, stream.len()));
    }
    lines
}

/// The rules again, over the whole stream at once and without care for speed; the
/// tag is the offset of the payload's last byte.
fn reference_frames(stream: &[u8]) -> Vec<Owned> {
    let mut found = Vec::new();
    let (mut data, mut names): (Option<(Vec<u8>, usize)>, Option<usize>) = (None, None);
    let (mut event, mut id) = (None, None);
    let mut lines = reference_lines(stream);
    lines.push((stream.len(), stream.len()));
    for (number, (mut start, end)) in lines.into_iter().enumerate() {
        if number == 0 && stream[start..end].starts_with(b"\xEF\xBB\xBF") {
            start += 3;
        }
        let line = &stream[start..end];
        let (name, value) = match line.iter().position(|b| *b == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let spaced = value.strip_prefix(b" ").unwrap_or(value);
        let word = || {
            Some(spaced.utf8_chunks().fold(String::new(), |mut text, piece| {
                text.push_str(piece.valid());
                text.push_str(if piece.invalid().is_empty() {
                    ""
                } else {
                    "\u{FFFD}"
                });
                text
            }))
        };
        let last = end.saturating_sub(1);
        let line_frame = |class, payload: &[u8]| Owned {
            class,
            payload: payload.to_vec(),
            event: None,
            id: None,
            tag: last,
        };
        match name {
            b"" if line.is_empty() => {
                let (event, id) = (event.take(), id.take());
                let tag = data.as_ref().map(|(_, at)| *at).or(names.take());
                let payload = data.take().map(|(payload, _)| payload).unwrap_or_default();
                if let Some(tag) = tag {
                    found.push(Owned {
                        class: FrameClass::Event,
                        payload,
                        event,
                        id,
                        tag,
                    });
                }
                names = None;
            }
            b"" => found.push(line_frame(FrameClass::Comment, value)),
            b"data" => {
                let joined = match data.take() {
                    Some((before, _)) => [before, spaced.to_vec()].join(&b'\n'),
                    None => spaced.to_vec(),
                };
                data = Some((joined, last));
            }
            b"event" => (event, names) = (word(), Some(last)),
            b"id" => (id, names) = (word(), Some(last)),
            _ => found.push(line_frame(FrameClass::Field, line)),
        }
    }
    found
}

fn stream_piece() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
        b"data:",
        b"data: ",
        b"data",
        b"event: ",
        b"event",
        b"id:",
        b"id: 7",
        b"retry: 5",
        b":",
        b": ping",
        b"error: {}",
        b"\n",
        b"\n",
        b"\n\n",
        b"\r",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\xEF\xBB\xBF",
        "é😀".as_bytes(),
        b"{\"a\":1}",
        b"[DONE]",
        b"x",
    ];
    prop_oneof![
        8 => proptest::sample::select(words).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ]
}

/// A stream and the sizes of its reads, empty ones included.
fn stream_and_cuts() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let stream = proptest::collection::vec(stream_piece(), 0..40).prop_map(|p| p.concat());
    (stream, proptest::collection::vec(0..9_usize, 1..200))
}

fn cut<'a>(stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = stream;
    let mut reads = Vec::new();
    for size in sizes {
        let (read, after) = rest.split_at((*size).min(rest.len()));
        reads.push(read);
        rest = after;
    }
    reads.push(rest);
    reads
}

/// The read that holds the byte at `offset`.
fn read_of(reads: &[&[u8]], offset: usize) -> usize {
    let mut end = 0;
    for (index, read) in reads.iter().enumerate() {
        end += read.len();
        if offset < end {
            return index;
        }
    }
    unreachable!("every offset lies in a read");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// For every partition of a stream's bytes into reads the frames are those of
    /// the whole stream, each tagged with the read of its payload's last byte.
    #[test]
    fn any_partition_gives_the_frames_of_the_whole((stream, sizes) in stream_and_cuts()) {
        let reads = cut(&stream, &sizes);
        let mut expected = reference_frames(&stream);
        for frame in &mut expected {
            frame.tag = read_of(&reads, frame.tag);
        }
        prop_assert_eq!(frames(&reads), expected);
    }
}

#[test]
fn line_ends_are_lf_crlf_and_cr() {
    let expected = vec![event("a", 0), event("b", 0), event("c", 0)];
    assert_eq!(plain(&["data: a\n\ndata: b\r\n\r\ndata: c\r\r"]), expected);
}

#[test]
fn a_cr_at_the_end_of_a_read_ends_the_line_at_once() {
    let mut framer = Framer::new();
    let mut count = 0;
    framer.feed(0, b"data: a\r\r", &mut |_| count += 1);
    assert_eq!(count, 1);
    // Its LF half is not another blank line, nor part of the next event.
    assert_eq!(
        plain(&["data: a\r", "\n", "\r", "\ndata: b\r\n\r\n"]),
        [event("a", 0), event("b", 3)]
    );
    assert_eq!(
        plain(&["data: a\r", "", "\ndata: b\n\n"]),
        [event("a\nb", 2)]
    );
}

#[test]
fn the_space_after_the_colon_is_optional_and_only_one_goes() {
    assert_eq!(
        plain(&["data:a\n\ndata: a\n\ndata:  a\n\n"]),
        [event("a", 0), event("a", 0), event(" a", 0)]
    );
}

#[test]
fn data_lines_join_with_lf() {
    assert_eq!(
        plain(&["data: {\ndata:\ndata: }\n\n"]),
        [event("{\n\n}", 0)]
    );
    assert_eq!(plain(&["data: {\n", "data: }\n", "\n"]), [event("{\n}", 1)]);
}

#[test]
fn the_tag_is_of_the_payload_not_of_the_blank_line() {
    assert_eq!(plain(&["data: a", "\n", "\n"]), [event("a", 0)]);
    assert_eq!(plain(&["data: a\n", "id: 1\n\n"]), [event("a", 0)]);
    assert_eq!(plain(&["dat", "a: a", "b\n\n"]), [event("ab", 2)]);
}

#[test]
fn a_byte_order_mark_is_skipped_at_the_start_only() {
    assert_eq!(plain(&["\u{FEFF}data: a\n\n"]), [event("a", 0)]);
    assert_eq!(frames(&[b"\xEF", b"\xBB", b"\xBFdata: a\n\n"]).len(), 1);
    let late = plain(&["data: a\n\n\u{FEFF}data: b\n\n"]);
    assert_eq!(late[1].0, FrameClass::Field);
}

#[test]
fn comments_and_unknown_fields_are_frames() {
    assert_eq!(
        plain(&[": ping\nretry: 5\nerror: {}\ndata: a\n\n"]),
        [
            (FrameClass::Comment, " ping".to_owned(), 0),
            (FrameClass::Field, "retry: 5".to_owned(), 0),
            (FrameClass::Field, "error: {}".to_owned(), 0),
            event("a", 0),
        ]
    );
}

#[test]
fn an_event_without_data_is_kept() {
    let found = frames(&[b"event: ping\n\n", b"id: 4\n\n\n"]);
    let names: Vec<_> = found
        .iter()
        .map(|f| (f.event.as_deref(), f.id.as_deref()))
        .collect();
    assert_eq!(names, [(Some("ping"), None), (None, Some("4"))]);
    assert!(
        found
            .iter()
            .all(|f| f.payload.is_empty() && f.class == FrameClass::Event)
    );
}

#[test]
fn names_belong_to_their_own_event() {
    let found = frames(&[b"event: a\nid: 1\ndata: x\n\ndata: y\n\n"]);
    assert_eq!(
        (found[0].event.as_deref(), found[0].id.as_deref()),
        (Some("a"), Some("1"))
    );
    assert_eq!(
        (found[1].event.as_deref(), found[1].id.as_deref()),
        (None, None)
    );
}

#[test]
fn what_the_end_cuts_off_is_handed_out() {
    assert_eq!(plain(&["data: a\n"]), [event("a", 0)]);
    assert_eq!(
        plain(&["data: a\nda"]),
        [(FrameClass::Field, "da".to_owned(), 0), event("a", 0)]
    );
    assert_eq!(plain(&["data: {\"c", "ho"]), [event("{\"cho", 1)]);
}

#[test]
fn utf8_split_between_reads_stays_whole() {
    let stream = "data: é😀\n\n".as_bytes();
    for at in 0..stream.len() {
        let (head, tail) = stream.split_at(at);
        assert_eq!(frames(&[head, tail])[0].payload, "é😀".as_bytes());
    }
}

#[test]
fn a_huge_line_is_kept_up_to_the_cap_and_counted_on() {
    let mut framer = Framer::new();
    let mut found = Vec::new();
    let block = vec![b'x'; 1 << 20];
    framer.feed(0, b"\xEF\xBB\xBFdata: ", &mut |_| ());
    for _ in 0..40 {
        framer.feed(1, &block, &mut |_| ());
    }
    assert!(framer.line.bytes.capacity() <= 2 * MAX_LINE_BYTES);
    framer.feed(2, b"\ndata: y\n\ndata: small\n\n", &mut |f| {
        found.push((f.payload.len(), f.bytes, f.truncated, f.tag));
    });
    let cut_event = (MAX_PAYLOAD_BYTES, (40 << 20) + 2, true, 2);
    assert_eq!(found, [cut_event, (5, 5, false, 2)]);
    assert!(framer.line.bytes.capacity() + framer.event.joined.capacity() <= 2 * MAX_IDLE_BYTES);
}

#[test]
fn a_payload_of_exactly_the_cap_is_whole() {
    for (extra, truncated) in [(0, false), (1, true)] {
        let line = [
            b"data: ".to_vec(),
            vec![b'x'; MAX_PAYLOAD_BYTES + extra],
            b"\n\n".to_vec(),
        ];
        let stream = line.concat();
        for reads in [
            vec![&stream[..]],
            stream.chunks(1 << 20).collect::<Vec<_>>(),
        ] {
            let mut framer = Framer::new();
            let mut found = Vec::new();
            for read in reads {
                framer.feed((), read, &mut |f| {
                    found.push((f.payload.len(), f.truncated));
                });
            }
            assert_eq!(found, [(MAX_PAYLOAD_BYTES, truncated)]);
        }
    }
}

#[test]
fn many_tiny_lines_do_not_grow_the_event_beyond_the_cap() {
    let mut framer = Framer::new();
    let block = b"data: 0123456789012345678901234567890123456789\n".repeat(10_000);
    for _ in 0..40 {
        framer.feed((), &block, &mut |_| ());
    }
    let mut found = None;
    framer.finish(&mut |f| found = Some((f.payload.len(), f.bytes, f.truncated)));
    assert_eq!(found, Some((MAX_PAYLOAD_BYTES, 400_000 * 41 - 1, true)));
}
