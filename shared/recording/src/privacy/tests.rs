use bytes::Bytes;

use super::*;
use crate::event::{ChunkKind, Outcome, TimestampSource};

const TEXT: &str = "the secret plan";

fn pairs(value: &str) -> Option<Pairs> {
    let pairs = [("x-session-id", value), ("content-type", "text/plain")];
    Some(
        pairs
            .into_iter()
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect(),
    )
}

fn batch() -> EventBatch {
    let mut batch = EventBatch::default();
    batch.requests.push(RequestRow {
        session_id: Some(TEXT.into()),
        query: Some(format!("api-version=1&q={TEXT}&{TEXT}").into()),
        model: Some("org/model-7b:latest".into()),
        t_dispatched_ns: Some(1),
        t_received_ns: Some(2),
        t_sent_ns: Some(3),
        headers: pairs(TEXT),
        body: Some(Bytes::from_static(TEXT.as_bytes())),
        body_bytes: TEXT.len() as i64,
        body_hash: Some("unkeyed".into()),
        input_tokens: Some(4),
        max_output_tokens: Some(5),
        ..RequestRow::blank(0)
    });
    let chunk = ChunkRow {
        choice_index: Some(0),
        t_seen_ns: 5,
        t_forwarded_ns: Some(6),
        event: Some(TEXT.into()),
        event_id: Some(TEXT.into()),
        tokens: Some(1),
        bytes: TEXT.len() as i64,
        ..ChunkRow::blank(0, 0, 4)
    };
    batch.chunks.push(chunk, Some(TEXT.as_bytes()));
    batch.responses.push(response());
    batch
}

fn response() -> ResponseRow {
    ResponseRow {
        status: Some(400),
        headers: pairs(TEXT),
        trailers: pairs(TEXT),
        t_headers_ns: Some(4),
        t_end_ns: Some(7),
        t_client_end_ns: Some(8),
        timestamp_source: TimestampSource::Kernel,
        finish_reason: Some(TEXT.into()),
        input_tokens: Some(4),
        output_tokens: Some(1),
        usage_source: Some("usage".into()),
        error: Some(TEXT.into()),
        body: Some(Bytes::from_static(TEXT.as_bytes())),
        body_bytes: TEXT.len() as i64,
        chunk_count: 1,
        ..ResponseRow::blank(0, Outcome::HttpError)
    }
}

fn under(content: Content) -> EventBatch {
    let mut batch = batch();
    let privacy = Privacy::new(content).unwrap();
    privacy.batch(&mut batch);
    Scrubber::new(&privacy).scrub(&mut batch, 0);
    batch
}

#[test]
fn no_text_survives_and_all_numbers_do() {
    for content in [Content::Hashed, Content::Lengths] {
        let kept = under(content);
        let all = format!("{kept:?}");
        assert!(!all.contains(TEXT), "{all}");
        assert!(!all.contains("unkeyed"), "{all}");
        assert!(kept.chunks.payloads.is_empty());
        let before = batch();
        assert_eq!(kept.requests[0].body_bytes, before.requests[0].body_bytes);
        assert_eq!(kept.requests[0].model, before.requests[0].model);
        assert_eq!(kept.responses[0].body_bytes, TEXT.len() as i64);
        assert_eq!(kept.responses[0].error.as_deref(), Some("http_error"));
        let (chunk, was) = (&kept.chunks.rows[0], &before.chunks.rows[0]);
        assert_eq!((chunk.kind, chunk.bytes), (was.kind, was.bytes));
        assert_eq!((chunk.t_ns, chunk.t_forwarded_ns), (4, Some(6)));
    }
    assert!(under(Content::Hashed).requests[0].body_hash.is_some());
    assert!(under(Content::Lengths).requests[0].body_hash.is_none());
    assert_eq!(under(Content::Full), batch());
}

#[test]
fn equal_texts_have_equal_hashes_under_one_key_only() {
    let (a, b) = (
        Privacy::new(Content::Hashed).unwrap(),
        Privacy::new(Content::Hashed).unwrap(),
    );
    assert_eq!(a.hash(b"x"), a.hash(b"x"));
    assert_ne!(a.hash(b"x"), b.hash(b"x"));
    assert_ne!(a.hash(b"x"), crate::body_hash(b"x"));
}

#[test]
fn a_request_can_only_ask_for_less() {
    let hashed = Privacy::new(Content::Hashed).unwrap();
    assert_eq!(hashed.at_least(Content::Full).content(), Content::Hashed);
    assert_eq!(
        hashed.at_least(Content::Lengths).content(),
        Content::Lengths
    );
    assert_eq!(
        hashed.at_least(Content::Lengths).hash(b"x"),
        hashed.hash(b"x")
    );
}

fn redacted(rules: &[&str]) -> EventBatch {
    let mut batch = batch();
    let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let privacy = Privacy::new(Content::Full).unwrap().redacting(rules.into());
    privacy.batch(&mut batch);
    Scrubber::new(&privacy).scrub(&mut batch, 0);
    batch
}

#[test]
fn redaction_leaves_lengths_kinds_and_everything_else() {
    let kept = redacted(&["re:secret"]);
    let all = format!("{kept:?}{}", kept.chunks.payloads.escape_ascii());
    assert!(!all.contains("secret"), "{all}");
    let before = batch();
    let (row, was) = (&kept.requests[0], &before.requests[0]);
    assert_eq!(row.body.as_deref(), Some(&b"the [redacted] plan"[..]));
    assert_eq!(
        (row.body_bytes, row.input_tokens),
        (was.body_bytes, was.input_tokens)
    );
    assert_ne!(row.body_hash, was.body_hash, "keyed");
    assert_eq!(
        kept.responses[0].error.as_deref(),
        Some("the [redacted] plan")
    );
    let chunk = &kept.chunks.rows[0];
    assert_eq!(
        kept.chunks.payload(chunk),
        Some(&b"the [redacted] plan"[..])
    );
    assert_eq!(
        (chunk.kind, chunk.bytes),
        (ChunkKind::Content, TEXT.len() as i64)
    );
}

#[test]
fn a_pointer_takes_the_text_that_it_cannot_look_into() {
    let kept = redacted(&["/messages/*/content", "/model"]);
    let all = format!("{kept:?}{}", kept.chunks.payloads.escape_ascii());
    assert!(!all.contains("org/model"), "{all}");
    assert_eq!(kept.requests[0].body.as_deref(), Some(REDACTED.as_bytes()));
    assert_eq!(kept.responses[0].body.as_deref(), Some(REDACTED.as_bytes()));
    let error = kept.responses[0].error.as_deref();
    assert_eq!(error, Some("http_error: [redacted]"));
    // Names of sessions are hashed as in `hashed`; what no pointer names stays.
    let session = kept.requests[0].session_id.as_deref();
    assert_eq!(session.map(str::len), Some(32));
    assert_eq!(kept.responses[0].finish_reason.as_deref(), Some(TEXT));
}

#[test]
fn payloads_keep_their_rows_when_some_of_them_change() {
    let mut batch = batch();
    let row = batch.chunks.rows[0].clone();
    for text in ["{\"a\":\"secret\"}", "[DONE]", "{\"a\":1}"] {
        batch.chunks.push(row.clone(), Some(text.as_bytes()));
    }
    batch.chunks.push(row, None);
    let rules: Vec<Rule> = vec!["re:secret".parse().unwrap()];
    let privacy = Privacy::new(Content::Full).unwrap().redacting(rules.into());
    Scrubber::new(&privacy).scrub(&mut batch, 0);
    let payloads = batch.chunks.rows.iter().map(|r| batch.chunks.payload(r));
    let expected: [Option<&[u8]>; 5] = [
        Some(b"the [redacted] plan"),
        Some(b"{\"a\":\"[redacted]\"}"),
        Some(b"[DONE]"),
        Some(b"{\"a\":1}"),
        None,
    ];
    assert_eq!(payloads.collect::<Vec<_>>(), expected);
}

#[test]
fn hidden_prompts_stay_with_their_rows() {
    let body = |text: &str| {
        Some(Bytes::from(format!(
            r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#
        )))
    };
    let privacy = Privacy::new(Content::Hashed).unwrap();
    let mut all = EventBatch::default();
    let shared = "x".repeat(200);
    for (id, text) in ["plain", &shared, &format!("{shared}more")]
        .iter()
        .enumerate()
    {
        let mut one = batch();
        one.requests[0].request_id = id as i64;
        one.requests[0].body = body(text);
        privacy.batch(&mut one);
        all.append(&mut one);
    }
    Scrubber::new(&privacy).scrub(&mut all, 0);
    assert!(all.prompts.is_empty());
    let runs = |at: usize| all.requests[at].block_runs.as_deref();
    assert_eq!(runs(0), Some(&[(0, 1)][..]));
    assert_eq!(runs(1), Some(&[(1, 4)][..]));
    assert_eq!(runs(2), Some(&[(1, 3), (5, 1)][..]));
    assert_eq!(all.requests[0].block_size, Some(BLOCK_BYTES as i32));
}

#[test]
fn forgotten_blocks_are_counted_in_a_mark() {
    let privacy = Privacy::new(Content::Hashed).unwrap();
    let mut scrubber = Scrubber::new(&privacy);
    scrubber.blocks = blocks::Blocks::new(BlockSpec::default(), [1; 32], 2);
    let mut marks = Vec::new();
    for text in ["a", "b", "c", "d"] {
        let mut batch = batch();
        let body = format!(r#"{{"prompt":"{text}"}}"#);
        batch.requests[0].body = Some(body.into());
        privacy.batch(&mut batch);
        scrubber.scrub(&mut batch, 7);
        marks.append(&mut batch.marks);
    }
    let told = |m: &crate::event::MarkRow| (m.t_ns, m.name.to_string(), m.detail.to_string());
    let one = || (7, "blocks_evicted".to_owned(), r#"{"blocks":1}"#.to_owned());
    assert_eq!(marks.iter().map(told).collect::<Vec<_>>(), [one(), one()]);
}
