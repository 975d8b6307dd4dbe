use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream as Socket;

use serde_json::Value;

use super::*;

const ANY: &str = "127.0.0.1:0";
const CHAT: &str = "/v1/chat/completions";
/// No pauses, so that a test takes no longer than its bytes.
const FAST: &str = "ttft_ms=0&itl_ms=0&tokens=12";
/// Polls of a condition that another thread brings about.
const PATIENCE: usize = 10_000;

fn start(query: &str) -> Running {
    let config = SimConfig::from_query(query).unwrap();
    Simulator::start(config, ANY.parse().unwrap()).unwrap()
}

/// A keep-alive client that shows HTTP chunks as they were framed.
struct Client(BufReader<Socket>);

struct Got {
    status: u16,
    head: String,
    /// The HTTP chunks, or the one body that had a length.
    pieces: Vec<String>,
}

impl Got {
    fn text(&self) -> String {
        self.pieces.concat()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// The payloads of a stream, each of which must be one HTTP chunk.
    fn events(&self) -> Vec<Value> {
        let (done, events) = self.pieces.split_last().unwrap();
        assert_eq!(done, "data: [DONE]\n\n");
        let payload = |piece: &String| {
            let payload = piece
                .strip_prefix("data: ")
                .unwrap()
                .strip_suffix("\n\n")
                .unwrap();
            serde_json::from_str(payload).unwrap()
        };
        events.iter().map(payload).collect()
    }
}

impl Client {
    fn connect(server: &Running) -> Self {
        Self(BufReader::new(Socket::connect(server.addr()).unwrap()))
    }

    fn send(&mut self, method: &str, path: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    fn head(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(
                self.0.read_line(&mut head).unwrap(),
                0,
                "closed after {head:?}"
            );
        }
        (head[9..12].parse().unwrap(), head.to_lowercase())
    }

    fn take(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn body(&mut self, head: &str) -> Vec<String> {
        if let Some((_, rest)) = head.split_once("content-length: ") {
            let length = rest.lines().next().unwrap().parse().unwrap();
            return vec![self.take(length)];
        }
        let mut pieces = Vec::new();
        loop {
            let mut size = String::new();
            self.0.read_line(&mut size).unwrap();
            let piece = self.take(usize::from_str_radix(size.trim(), 16).unwrap());
            assert_eq!(self.take(2), "\r\n");
            if piece.is_empty() {
                return pieces;
            }
            pieces.push(piece);
        }
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Got {
        self.send(method, path, body);
        let (status, head) = self.head();
        let pieces = self.body(&head);
        Got {
            status,
            head,
            pieces,
        }
    }

    fn post(&mut self, path: &str, body: &str) -> Got {
        self.ask("POST", path, body)
    }
}

fn contents(events: &[Value], choice: usize) -> Vec<&str> {
    events
        .iter()
        .map(|event| &event["choices"][0])
        .filter(|c| c["index"] == choice && c["finish_reason"].is_null())
        .filter_map(|c| c["delta"]["content"].as_str().or(c["text"].as_str()))
        .collect()
}

#[test]
fn a_streamed_chat_answer_has_the_shape_of_vllm() {
    let server = start(FAST);
    let mut client = Client::connect(&server);
    let got = client.post(
        CHAT,
        r#"{"model":"m\"1","stream":true,"stream_options":{"include_usage":true},
            "messages":[{"role":"user","content":"12345678"}]}"#,
    );
    assert_eq!(got.status, 200);
    assert!(got.head.contains("content-type: text/event-stream"));
    let events = got.events();
    assert_eq!(events.len(), 1 + 12 + 1 + 1);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let contents = contents(&events, 0);
    assert_eq!(contents[0], "", "the role chunk has no text");
    assert!(contents[1..].iter().all(|text| !text.is_empty()));
    assert_eq!(events[13]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[14]["choices"], serde_json::json!([]));
    assert_eq!(events[14]["usage"]["prompt_tokens"], 6);
    assert_eq!(events[14]["usage"]["completion_tokens"], 12);
    assert_eq!(events[14]["usage"]["total_tokens"], 18);
    assert!(
        events
            .iter()
            .all(|e| e["id"] == events[0]["id"] && e["model"] == "m\"1")
    );
    assert!(
        events
            .iter()
            .all(|e| e["object"] == "chat.completion.chunk")
    );
}

#[test]
fn a_whole_answer_says_what_the_stream_would_have_said() {
    let body =
        |stream| format!(r#"{{"stream":{stream},"max_tokens":5,"messages":[{{"content":"x"}}]}}"#);
    let streamed = Client::connect(&start(FAST)).post(CHAT, &body(true));
    let whole = Client::connect(&start(FAST))
        .post(CHAT, &body(false))
        .json();
    let choice = &whole["choices"][0];
    assert_eq!(
        choice["message"]["content"],
        contents(&streamed.events(), 0).concat()
    );
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 5);
    assert_eq!(whole["object"], "chat.completion");
}

#[test]
fn completions_stream_text_and_every_choice_ends() {
    let server = start(FAST);
    let mut client = Client::connect(&server);
    let got = client.post(
        "/v1/completions",
        r#"{"prompt":"x","stream":true,"n":3,"max_tokens":4}"#,
    );
    let events = got.events();
    assert_eq!(events.len(), 3 * 4 + 3, "no role and, unasked, no usage");
    for choice in 0..3 {
        assert_eq!(contents(&events, choice).len(), 4);
    }
    assert_ne!(contents(&events, 0), contents(&events, 1));
    assert!(
        events[12..]
            .iter()
            .all(|e| e["choices"][0]["finish_reason"] == "length")
    );
    let whole = client
        .post("/v1/completions", r#"{"prompt":["x","y"],"n":2}"#)
        .json();
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
}

#[test]
fn what_is_not_served_is_an_error_in_the_api_s_own_form() {
    let server = start(FAST);
    let mut client = Client::connect(&server);
    for (method, path, body, status) in [
        ("POST", CHAT, "{", 400),
        ("POST", CHAT, "{}", 400),
        ("POST", "/v1/completions", "{}", 400),
        ("GET", CHAT, "", 405),
        ("POST", "/v1/other", "{}", 404),
    ] {
        let got = client.ask(method, path, body);
        assert_eq!(got.status, status);
        assert_eq!(got.json()["error"]["code"], status);
        assert!(got.json()["error"]["message"].as_str().unwrap().len() > 5);
    }
}

#[test]
fn a_client_finds_the_model_and_the_health_of_the_server() {
    let server = start("model=my-model");
    let mut client = Client::connect(&server);
    let models = client.ask("GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["id"], "my-model");
    assert_eq!(client.ask("GET", "/health", "").status, 200);
    let metrics = client.ask("GET", "/metrics", "").text();
    assert!(metrics.contains("\nvllm:num_requests_running 0\n"));
}

#[test]
fn failures_are_http_errors_before_the_stream_and_events_inside_it() {
    let refused = Client::connect(&start("error_rate=1")).post(CHAT, r#"{"messages":[{}]}"#);
    assert_eq!(refused.status, 500);
    let server = start(&format!("{FAST}&stream_error_rate=1"));
    let mut client = Client::connect(&server);
    let events = client
        .post(CHAT, r#"{"stream":true,"messages":[{}]}"#)
        .events();
    let (error, before) = events.split_last().unwrap();
    assert_eq!(error["error"]["code"], 500);
    assert!((2..=13).contains(&before.len()));
    assert_eq!(client.post(CHAT, r#"{"messages":[{}]}"#).status, 500);
}

#[test]
fn a_request_beyond_slots_and_queue_is_told_to_come_back() {
    let server = start("ttft_ms=3600000&slots=1&queue=0");
    let body = r#"{"stream":true,"messages":[{}]}"#;
    let mut first = Client::connect(&server);
    first.send("POST", CHAT, body);
    assert_eq!(first.head().0, 200, "headers go out before the first token");
    let mut second = Client::connect(&server);
    let got = second.post(CHAT, body);
    assert_eq!(got.status, 429);
    assert!(got.head.contains("retry-after: 1"));

    drop(first);
    let freed = (0..PATIENCE).any(|_| {
        second
            .ask("GET", "/metrics", "")
            .text()
            .contains("vllm:num_requests_running 0\n")
    });
    assert!(freed, "a client that left still holds its slot");
    second.send("POST", CHAT, body);
    assert_eq!(second.head().0, 200);
}

#[test]
fn a_waiting_client_that_leaves_gives_up_its_place() {
    let server = start("ttft_ms=3600000&slots=1&queue=1");
    let body = r#"{"messages":[{}]}"#;
    let mut running = Client::connect(&server);
    running.send("POST", CHAT, body);
    let mut waiting = Client::connect(&server);
    waiting.send("POST", CHAT, body);
    let mut watcher = Client::connect(&server);
    let mut sees = |line: &str| {
        (0..PATIENCE).any(|_| watcher.ask("GET", "/metrics", "").text().contains(line))
    };
    assert!(sees("vllm:num_requests_waiting 1\n"));
    drop(waiting);
    assert!(sees("vllm:num_requests_waiting 0\n"));
}

#[test]
fn stopping_cuts_open_streams_and_frees_the_port() {
    let server = start("ttft_ms=3600000");
    let addr = server.addr();
    let mut client = Client::connect(&server);
    client.send("POST", CHAT, r#"{"stream":true,"messages":[{}]}"#);
    assert_eq!(client.head().0, 200);
    server.stop();
    let mut rest = Vec::new();
    // An end or a reset: both mean that the server let go.
    drop(client.0.read_to_end(&mut rest));
    assert!(rest.is_empty());
    assert!(Socket::connect(addr).is_err());
}

#[test]
fn a_taken_port_and_a_bad_setting_are_errors() {
    let server = start("");
    let taken = Simulator::start(SimConfig::standard(), server.addr()).unwrap_err();
    assert!(taken.to_string().contains("hint: port 0"));
    let mut config = SimConfig::standard();
    config.slots = 0;
    let refused = Simulator::start(config, ANY.parse().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("`slots`"));
}

#[test]
fn many_streams_at_once_all_get_their_tokens() {
    let server = start("ttft_ms=5&itl_ms=1&tokens=10&slots=500");
    let mut clients: Vec<_> = (0..300).map(|_| Client::connect(&server)).collect();
    for client in &mut clients {
        client.send("POST", CHAT, r#"{"stream":true,"messages":[{}]}"#);
    }
    for client in &mut clients {
        let (status, head) = client.head();
        assert_eq!(status, 200);
        assert_eq!(client.body(&head).len(), 1 + 10 + 1 + 1);
    }
}
