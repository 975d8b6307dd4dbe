use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde_json::Value;
use tapedeck_recording::manifest::Workload;
use tapedeck_wire::dialect::Api;

use super::*;
use crate::schedule::tests::planned;
use crate::source::Origin;

/// Of the plan of `schedule::tests`, whose third request (place 2) has a next turn and
/// a sub-agent behind it.
fn courses(room: usize) -> (Arc<Courses>, mpsc::Receiver<Order>) {
    let plan = Plan {
        origin: Origin {
            name: "test".to_owned(),
            recording_id: None,
            workload: Workload {
                kind: "recording".to_owned(),
                path: None,
                content_hash: None,
                seed: 0,
            },
            trace: Value::Null,
            dialect: Value::Null,
            blocks_are_tokens: true,
        },
        schedule: planned("--mode session"),
    };
    let (orders, ordered) = mpsc::channel(room);
    (
        Courses::new(Arc::new(plan), Bodies::Made(orders), 0),
        ordered,
    )
}

fn request(body: &'static str) -> Arc<PreparedRequest> {
    Arc::new(PreparedRequest {
        api: Api::from_word("openai-chat").unwrap(),
        method: Method::POST,
        uri: Uri::from_static("/v1/chat/completions"),
        url_path: "/v1/chat/completions".into(),
        query: None,
        headers: HeaderMap::new(),
        recorded_headers: None,
        body: Bytes::from_static(body.as_bytes()),
        body_hash: None,
        model: None,
        stream: true,
        input_tokens: None,
        input_tokens_source: None,
        max_output_tokens: None,
        block_size: None,
        block_runs: None,
    })
}

fn poll<T>(future: &mut Pin<Box<dyn Future<Output = T> + Send>>) -> Option<T> {
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Whoever asks for a turn or a sub-agent has it promised at once, also where the maker
/// has made nothing and has no room for orders.
#[test]
fn nobody_waits_for_the_maker_but_who_wants_the_body() {
    for room in [1, 8] {
        let (courses, mut ordered) = courses(room);
        let arrival = courses.arrival(2, request("its own"));
        let mut conversation = arrival.conversation.unwrap();
        let mut branch = conversation.branches().remove(0).arrival;
        let mut turn = conversation.next_turn(String::new()).unwrap().request;
        let mut got = Vec::new();
        let mut wanted = (true, true);
        for body in ["", "first", "second"] {
            if !body.is_empty() {
                let (place, give) = ordered.try_recv().unwrap();
                give.send(request(body)).unwrap();
                got.push((place, body));
            }
            // Where there was no room, the order comes now.
            if wanted.0
                && let Some(request) = poll(&mut turn)
            {
                wanted.0 = false;
                assert_eq!(got.last(), Some(&(5, body)));
                assert_eq!(request.unwrap().body, body);
            }
            if wanted.1
                && let Some(arrival) = poll(&mut branch).flatten()
            {
                wanted.1 = false;
                assert_eq!(got.last(), Some(&(4, body)));
                assert_eq!(arrival.request.body, body);
                assert_eq!(arrival.replay_of, Some(4));
            }
        }
        assert_eq!(wanted, (false, false), "both came");
        assert_eq!(got.len(), 2);
    }
}

#[test]
fn what_is_due_first_is_made_first_whenever_it_was_ordered() {
    let (orders, mut ordered) = mpsc::channel(8);
    let mut waiting = BTreeMap::new();
    let order = |place| orders.try_send((place, oneshot::channel().0)).unwrap();
    [900, 7, 30].into_iter().for_each(order);
    let mut next = || most_urgent(&mut ordered, &mut waiting).map(|(place, _)| place);
    assert_eq!(next(), Some(7));
    order(8);
    assert_eq!([next(), next(), next()], [Some(8), Some(30), Some(900)]);
    drop(orders);
    assert_eq!(next(), None);
}
