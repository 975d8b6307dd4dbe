//! For every list of rows R: `from_batch(to_batch(R)) = R`, chunks sorted.

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = Arc<str>> {
    ".{0,12}".prop_map(Arc::from)
}

fn pairs() -> impl Strategy<Value = Pairs> {
    vec((".{0,6}", ".{0,6}"), 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

prop_compose! {
    fn request()(
        id in any::<i64>(), attempt in any::<i32>(),
        phase in proptest::sample::select(Phase::ALL),
        texts in vec(of(text()), 8), ints in vec(of(any::<i64>()), 9),
        stream in any::<bool>(), reused in of(any::<bool>()),
        headers in of(pairs()), body in of(bytes()), small in vec(of(any::<i32>()), 4),
        runs in of(vec((any::<i64>(), any::<i32>()), 0..4)),
    ) -> RequestRow {
        RequestRow {
            request_id: id, attempt, phase,
            session_id: texts[0].clone(), turn: small[0], parent_request_id: ints[0],
            replay_of: ints[1], worker: texts[1].clone(),
            api: texts[2].clone().unwrap_or_default(), method: "POST".into(),
            url_path: texts[3].clone().unwrap_or_default(), query: texts[4].clone(),
            model: texts[5].clone(), stream,
            t_scheduled_ns: ints[2], t_dispatched_ns: ints[3], t_received_ns: ints[4],
            t_connect_ns: ints[5], t_connected_ns: ints[6], t_tls_ns: ints[7],
            t_sent_ns: ints[8], conn_id: ints[0], conn_reused: reused,
            headers, body, body_bytes: id, body_hash: texts[6].clone(),
            input_tokens: small[1], input_tokens_source: texts[7].clone(),
            max_output_tokens: small[2], block_size: small[3],
            block_runs: runs.map(Into::into),
        }
    }
}

prop_compose! {
    fn response()(
        id in any::<i64>(), attempt in any::<i32>(),
        outcome in proptest::sample::select(Outcome::ALL),
        source in proptest::sample::select(TimestampSource::ALL),
        headers in of(pairs()), trailers in of(pairs()), body in of(bytes()),
        ints in vec(of(any::<i64>()), 3), small in vec(of(any::<i32>()), 5),
        texts in vec(of(text()), 3), counts in any::<(i32, i32)>(),
    ) -> ResponseRow {
        ResponseRow {
            request_id: id, attempt, outcome, status: small[0], headers, trailers,
            t_headers_ns: ints[0], t_end_ns: ints[1], t_client_end_ns: ints[2],
            timestamp_source: source, finish_reason: texts[0].clone(),
            input_tokens: small[1], output_tokens: small[2], reasoning_tokens: small[3],
            cached_tokens: small[4], usage_source: texts[1].clone(),
            error: texts[2].clone(), body, body_bytes: id,
            chunk_count: counts.0, malformed_chunks: counts.1,
        }
    }
}

prop_compose! {
    fn chunk()(
        ids in (0_i64..5, 0_i32..2), reads in any::<i32>(), choice in of(any::<i32>()),
        t in any::<(i64, i64)>(), forwarded in of(any::<i64>()),
        kind in proptest::sample::select(ChunkKind::ALL),
        texts in (of(text()), of(text())), tokens in of(any::<i32>()),
        length in any::<i64>(), data in of(bytes()),
    ) -> (ChunkRow, Option<Bytes>) {
        let row = ChunkRow {
            request_id: ids.0, attempt: ids.1, chunk_index: 0, read_index: reads,
            choice_index: choice, t_ns: t.0, t_seen_ns: t.1, t_forwarded_ns: forwarded,
            kind, event: texts.0, event_id: texts.1, tokens, bytes: length, payload: None,
        };
        (row, data)
    }
}

fn round_trip(table: Table, events: &EventBatch) -> EventBatch {
    let batch = to_batch(table, std::slice::from_ref(events)).unwrap();
    let mut back = EventBatch::default();
    from_batch(table, &batch, &mut back).unwrap();
    back
}

proptest! {
    #[test]
    fn requests_survive_arrow(requests in vec(request(), 0..8)) {
        let events = EventBatch { requests, ..EventBatch::default() };
        prop_assert_eq!(&round_trip(Table::Requests, &events), &events);
    }

    #[test]
    fn responses_survive_arrow(responses in vec(response(), 0..8)) {
        let events = EventBatch { responses, ..EventBatch::default() };
        prop_assert_eq!(&round_trip(Table::Responses, &events), &events);
    }

    #[test]
    fn chunks_come_back_sorted_with_their_own_payloads(rows in vec(chunk(), 0..12)) {
        let mut events = EventBatch::default();
        let mut expected = Vec::new();
        for (index, (mut row, data)) in rows.into_iter().enumerate() {
            row.chunk_index = index as i32;
            expected.push((row.clone(), data.clone()));
            events.chunks.push(row, data.as_deref());
        }
        expected.sort_by_key(|(r, _)| (r.request_id, r.attempt, r.chunk_index));
        let back = round_trip(Table::Chunks, &events).chunks;
        prop_assert_eq!(back.rows.len(), expected.len());
        for (found, (row, data)) in back.rows.iter().zip(&expected) {
            prop_assert_eq!(back.payload(found), data.as_deref());
            prop_assert_eq!(&ChunkRow { payload: None, ..found.clone() }, row);
        }
    }

    #[test]
    fn appended_batches_keep_their_payloads(parts in vec(vec(chunk(), 0..5), 0..4)) {
        let mut whole = EventBatch::default();
        let mut expected = Vec::new();
        for part in parts {
            let mut batch = EventBatch::default();
            for (row, data) in part {
                batch.chunks.push(row, data.as_deref());
                expected.push(data);
            }
            whole.append(&mut batch);
        }
        let found = whole.chunks.rows.iter().map(|r| whole.chunks.payload(r));
        prop_assert!(found.eq(expected.iter().map(Option::as_deref)));
    }
}

#[test]
fn a_word_that_is_not_of_the_format_is_named() {
    let mark = MarkRow {
        t_ns: 1,
        name: "x".into(),
        detail: "{}".into(),
    };
    let events = EventBatch {
        marks: vec![mark],
        ..EventBatch::default()
    };
    let batch = to_batch(Table::Marks, &[events]).unwrap();
    let error = from_batch(Table::Responses, &batch, &mut EventBatch::default()).unwrap_err();
    assert_eq!(error, RowError::MissingColumn("request_id".into()));
}
