//! Every fault once without and once with the proxy in between: what the client
//! saw, and what the recording says.
//!
//! `cargo test --workspace --test e2e fault_table -- --nocapture` prints the table.
//! A full disk has tests of its own in `proxy_faults.rs`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::socket::{setsockopt, sockopt};
use tapedeck_recording::{EventBatch, Outcome};

use crate::support::mock_llm::replies::{
    LAST_CHUNK, SSE_HEAD, chat_delta, http_chunk, sse, usage_chunk, whole,
};
use crate::support::mock_llm::{MockLlm, Script, Step};
use crate::support::nobody::Nobody;
use crate::support::proxy::{Finish, Last, ProxyProcess, Seen, post, receive_to_end};

/// With an answer that ends in silence.
const PATIENCE: Duration = Duration::from_millis(700);
/// With one that ends.
const LONG: Duration = Duration::from_secs(10);

/// How the client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Ordinary,
    /// Sends its request a few bytes at a time.
    Trickles,
    /// Ends its sending side behind the request.
    HalfCloses,
    /// Promises more of a body than it sends, and leaves.
    BreaksOffItsBody,
    /// Leaves with a reset once the first bytes of the answer are there.
    LeavesInTheAnswer,
    /// Sends no HTTP.
    SendsGarbage,
    /// Sends a first request, and this one on the same connection a little later.
    AsksAgain,
}

/// What a client saw: the status, the bytes of the body, and the last of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Saw {
    status: &'static str,
    body: usize,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Fin,
    Rst,
    Silence,
    Left,
    Refused,
}

impl End {
    fn words(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Fin => "broken off (FIN)",
            Self::Rst => "broken off (RST)",
            Self::Silence => "silence",
            Self::Left => "the client left",
            Self::Refused => "connection refused",
        }
    }
}

/// What the recording must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recorded {
    outcome: Outcome,
    status: Option<i32>,
    chunks: i32,
    /// Part of `error`; empty where there is none.
    error: &'static str,
}

struct Fault {
    name: &'static str,
    client: Client,
    path: &'static str,
    reply: Vec<Step>,
    direct: Saw,
    proxied: Saw,
    /// `None` where no request came that could be recorded.
    recorded: Option<Recorded>,
}

const PATH: &str = "/v1/chat/completions";

fn token_event(index: usize) -> Vec<u8> {
    sse(&chat_delta(
        &format!(r#"{{"content":" word{index}"}}"#),
        None,
    ))
}

fn token(index: usize) -> Step {
    Step::send(http_chunk(&token_event(index)))
}

/// Body bytes of `count` tokens.
fn tokens(count: usize) -> usize {
    (0..count).map(|index| token_event(index).len()).sum()
}

/// The events behind the last token, and what ends the body.
fn finish_event() -> Vec<u8> {
    sse(&chat_delta("{}", Some("stop")))
}

fn tail_events() -> Vec<u8> {
    [finish_event(), sse(&usage_chunk(2)), sse("[DONE]")].concat()
}

fn head() -> Step {
    Step::send(SSE_HEAD)
}

/// A head and two tokens, a little apart.
fn begun() -> Vec<Step> {
    vec![
        head(),
        token(0),
        Step::pause_ms(10),
        token(1),
        Step::pause_ms(10),
    ]
}

fn then(mut steps: Vec<Step>, further: impl IntoIterator<Item = Step>) -> Vec<Step> {
    steps.extend(further);
    steps
}

fn ordinary() -> Vec<Step> {
    let tail = http_chunk(&tail_events());
    then(begun(), [Step::send(tail), Step::send(LAST_CHUNK)])
}

fn whole_stream() -> usize {
    tokens(2) + tail_events().len()
}

const fn saw(status: &'static str, body: usize, end: End) -> Saw {
    Saw { status, body, end }
}

const NOTHING: Saw = saw("", 0, End::Fin);

/// The proxy's own answer where upstream gave none.
fn bad_gateway() -> Saw {
    let text = "tapedeck proxy: no answer from the upstream server";
    saw("502", text.len(), End::Whole)
}

const fn recorded(
    outcome: Outcome,
    status: Option<i32>,
    chunks: i32,
    error: &'static str,
) -> Option<Recorded> {
    Some(Recorded {
        outcome,
        status,
        chunks,
        error,
    })
}

/// An ordinary client that sees the same on both ways.
fn alike(name: &'static str, reply: Vec<Step>, saw: Saw, recorded: Option<Recorded>) -> Fault {
    Fault {
        name,
        client: Client::Ordinary,
        path: PATH,
        reply,
        direct: saw,
        proxied: saw,
        recorded,
    }
}

fn of_client(client: Client, fault: Fault) -> Fault {
    Fault { client, ..fault }
}

fn proxied(saw: Saw, fault: Fault) -> Fault {
    Fault {
        proxied: saw,
        ..fault
    }
}

const WHOLE_STREAM: Option<Recorded> = recorded(Outcome::Ok, Some(200), 5, "");

fn all() -> Vec<Fault> {
    let mut faults = before_the_body();
    faults.extend(in_a_stream());
    faults.extend(in_other_bodies());
    faults.extend(of_content());
    faults.extend(of_pace());
    faults.extend(of_clients());
    faults.extend(of_connections());
    faults
}

const RESET: &str = "reset by peer";
const CLOSED: &str = "closed before message completed";

fn before_the_body() -> Vec<Fault> {
    let lost = |error| recorded(Outcome::ConnectionError, None, 0, error);
    let some_head = || vec![Step::send(&SSE_HEAD.as_bytes()[..30]), Step::pause_ms(20)];
    let only_head = || vec![head(), Step::pause_ms(20)];
    let no_body = |error| recorded(Outcome::ConnectionError, Some(200), 0, error);
    let none = |name, reply, end, error| {
        let direct = saw("", 0, end);
        proxied(bad_gateway(), alike(name, reply, direct, lost(error)))
    };
    vec![
        none("RST before any byte", vec![Step::Reset], End::Rst, RESET),
        none("FIN before any byte", vec![Step::Close], End::Fin, CLOSED),
        none(
            "RST in the head",
            then(some_head(), [Step::Reset]),
            End::Rst,
            RESET,
        ),
        none(
            "FIN in the head",
            then(some_head(), [Step::Close]),
            End::Fin,
            CLOSED,
        ),
        none(
            "no HTTP",
            vec![Step::send("SSH-2.0-OpenSSH_9.6\r\n"), Step::Close],
            End::Fin,
            "invalid HTTP version",
        ),
        proxied(
            saw("200", 0, End::Fin),
            alike(
                "RST behind the head",
                then(only_head(), [Step::Reset]),
                saw("200", 0, End::Rst),
                no_body(RESET),
            ),
        ),
        alike(
            "FIN behind the head",
            then(only_head(), [Step::Close]),
            saw("200", 0, End::Fin),
            no_body("unexpected EOF"),
        ),
    ]
}

/// The connection breaks under an answer of 200.
fn cut(chunks: i32, error: &'static str) -> Option<Recorded> {
    recorded(Outcome::ConnectionError, Some(200), chunks, error)
}

/// The client sees where the answer breaks off, not how.
fn rst(name: &'static str, reply: Vec<Step>, body: usize, chunks: i32) -> Fault {
    let direct = saw("200", body, End::Rst);
    let through = saw("200", body, End::Fin);
    proxied(through, alike(name, reply, direct, cut(chunks, RESET)))
}

fn fin(name: &'static str, reply: Vec<Step>, body: usize, recorded: Option<Recorded>) -> Fault {
    alike(name, reply, saw("200", body, End::Fin), recorded)
}

fn in_a_stream() -> Vec<Fault> {
    let half_chunk = || {
        let chunk = http_chunk(&token_event(2));
        let half = chunk[..chunk.len() / 2].to_vec();
        then(begun(), [Step::send(half), Step::pause_ms(20)])
    };
    // Without the line that tells its size.
    let half_bytes = http_chunk(&token_event(2)).len() / 2 - 4;
    vec![
        rst(
            "RST between events",
            then(begun(), [Step::Reset]),
            tokens(2),
            2,
        ),
        fin(
            "FIN between events",
            then(begun(), [Step::Close]),
            tokens(2),
            cut(2, "unexpected EOF"),
        ),
        rst(
            "RST in an event",
            then(half_chunk(), [Step::Reset]),
            tokens(2) + half_bytes,
            3,
        ),
        fin(
            "FIN in an event",
            then(half_chunk(), [Step::Close]),
            tokens(2) + half_bytes,
            cut(3, "end of file before message length"),
        ),
        fin(
            "no last HTTP chunk behind `[DONE]`",
            then(
                begun(),
                [Step::send(http_chunk(&tail_events())), Step::Close],
            ),
            whole_stream(),
            WHOLE_STREAM,
        ),
        fin(
            "no HTTP chunk where one is due",
            then(begun(), [Step::send("zz\r\nnot a chunk\r\n"), Step::Close]),
            tokens(2),
            cut(2, "Invalid chunk size line"),
        ),
    ]
}

fn in_other_bodies() -> Vec<Fault> {
    let counted = || {
        let json = whole(200, "application/json", "", &"x".repeat(200));
        let half = json[..json.len() - 100].to_vec();
        vec![Step::send(half), Step::pause_ms(20)]
    };
    let closing = || {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        vec![
            Step::send(head),
            Step::send(token_event(0)),
            Step::pause_ms(20),
        ]
    };
    vec![
        rst(
            "RST in a body of known length",
            then(counted(), [Step::Reset]),
            100,
            1,
        ),
        fin(
            "FIN in a body of known length",
            then(counted(), [Step::Close]),
            100,
            cut(1, "end of file before message length"),
        ),
        rst(
            "RST in a body that ends with the connection",
            then(closing(), [Step::Reset]),
            tokens(1),
            1,
        ),
        alike(
            "FIN in a body that ends with the connection",
            then(closing(), [Step::Close]),
            saw("200", tokens(1), End::Whole),
            recorded(Outcome::Truncated, Some(200), 1, ""),
        ),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A stream of one HTTP chunk.
fn stream(headers: &str, body: &[u8]) -> Vec<Step> {
    let head = SSE_HEAD.replace("\r\n\r\n", &format!("\r\n{headers}\r\n"));
    vec![
        Step::send(head),
        Step::send(http_chunk(body)),
        Step::send(LAST_CHUNK),
    ]
}

fn of_content() -> Vec<Fault> {
    let whole_body = |bytes| saw("200", bytes, End::Whole);
    let as_stream = |name, body: &[u8], recorded| {
        alike(name, stream("", body), whole_body(body.len()), recorded)
    };
    let two = [token_event(0), token_event(1)].concat();
    let all_events = [two.clone(), tail_events()].concat();
    let zipped = gzip(&all_events);
    let cut = &zipped[..zipped.len() / 2];
    let encoded = "content-encoding: gzip\r\n";
    let error = r#"{"error":{"message":"engine died","code":500}}"#;
    let in_band = [two.clone(), sse(error)].concat();
    vec![
        as_stream(
            "no `[DONE]`",
            &[two.clone(), finish_event()].concat(),
            recorded(Outcome::Ok, Some(200), 3, ""),
        ),
        as_stream(
            "neither `[DONE]` nor finish",
            &two,
            recorded(Outcome::Truncated, Some(200), 2, ""),
        ),
        as_stream(
            "an event that is no JSON, and no end",
            &[two.clone(), sse(r#"{"choices":[{"#)].concat(),
            recorded(Outcome::Malformed, Some(200), 3, ""),
        ),
        as_stream(
            "an error in the stream",
            &in_band,
            recorded(Outcome::StreamError, Some(200), 3, "engine died"),
        ),
        alike(
            "500",
            vec![Step::send(whole(500, "application/json", "", error))],
            saw("500", error.len(), End::Whole),
            recorded(Outcome::HttpError, Some(500), 0, "engine died"),
        ),
        alike(
            "gzip that nobody asked for",
            stream(encoded, &zipped),
            whole_body(zipped.len()),
            WHOLE_STREAM,
        ),
        alike(
            "gzip that breaks off",
            stream(encoded, cut),
            whole_body(cut.len()),
            recorded(Outcome::Truncated, Some(200), 1, "gzip body ended early"),
        ),
        alike(
            "a character in two writes",
            split_character(),
            whole_body(split_bytes()),
            recorded(Outcome::Ok, Some(200), 4, ""),
        ),
    ]
}

fn wide_event() -> Vec<u8> {
    sse(&chat_delta(r#"{"content":"日本語"}"#, None))
}

fn split_character() -> Vec<Step> {
    let event = wide_event();
    let within = event.iter().position(|byte| *byte >= 0x80).unwrap() + 1;
    let (first, second) = event.split_at(within);
    vec![
        head(),
        Step::send(http_chunk(first)),
        Step::pause_ms(20),
        Step::send(http_chunk(second)),
        Step::send(http_chunk(&tail_events())),
        Step::send(LAST_CHUNK),
    ]
}

fn split_bytes() -> usize {
    wide_event().len() + tail_events().len()
}

fn of_pace() -> Vec<Fault> {
    let left = |status, chunks| recorded(Outcome::Cancelled, status, chunks, "the client left");
    let some_head = Step::send(&SSE_HEAD.as_bytes()[..30]);
    let trickled = {
        let stream = [SSE_HEAD.as_bytes(), &http_chunk(&all_at_once()), LAST_CHUNK].concat();
        let pieces = stream.chunks(3);
        pieces
            .flat_map(|piece| [Step::send(piece), Step::pause_ms(1)])
            .collect()
    };
    vec![
        alike(
            "stall before any byte",
            vec![Step::Stall],
            saw("", 0, End::Silence),
            left(None, 0),
        ),
        alike(
            "stall in the head",
            vec![some_head, Step::Stall],
            saw("", 0, End::Silence),
            left(None, 0),
        ),
        alike(
            "stall behind the head",
            vec![head(), Step::Stall],
            saw("200", 0, End::Silence),
            left(Some(200), 0),
        ),
        alike(
            "stall in the body",
            then(begun(), [Step::Stall]),
            saw("200", tokens(2), End::Silence),
            left(Some(200), 2),
        ),
        alike(
            "stall behind a whole answer",
            then(
                begun(),
                [Step::send(http_chunk(&tail_events())), Step::Stall],
            ),
            saw("200", whole_stream(), End::Silence),
            WHOLE_STREAM,
        ),
        alike(
            "slow-loris server: 3 bytes a ms",
            trickled,
            saw("200", whole_stream(), End::Whole),
            WHOLE_STREAM,
        ),
    ]
}

fn all_at_once() -> Vec<u8> {
    [token_event(0), token_event(1), tail_events()].concat()
}

fn of_clients() -> Vec<Fault> {
    let left = |status, chunks, error| recorded(Outcome::Cancelled, status, chunks, error);
    let good = || saw("200", whole_stream(), End::Whole);
    let mut slow = begun();
    // Nobody waits for it.
    slow.insert(0, Step::pause_ms(20_000));
    vec![
        of_client(
            Client::Trickles,
            alike(
                "slow-loris client: 10 bytes a ms",
                ordinary(),
                good(),
                WHOLE_STREAM,
            ),
        ),
        of_client(
            Client::HalfCloses,
            alike(
                "half-closed client, slow server",
                slow,
                NOTHING,
                left(None, 0, "the client left"),
            ),
        ),
        of_client(
            Client::BreaksOffItsBody,
            alike(
                "client leaves in its request",
                ordinary(),
                saw("", 0, End::Left),
                left(None, 0, "the client left"),
            ),
        ),
        of_client(
            Client::LeavesInTheAnswer,
            alike(
                "client resets in the answer",
                then(begun(), [Step::Stall]),
                saw("200", tokens(2), End::Left),
                left(Some(200), 2, "the client left"),
            ),
        ),
        of_client(
            Client::SendsGarbage,
            proxied(
                saw("400", 0, End::Whole),
                alike("client sends no HTTP", ordinary(), NOTHING, None),
            ),
        ),
    ]
}

/// Servers of their own, each behind the path of its name.
fn of_connections() -> Vec<Fault> {
    let good = saw("200", whole_stream(), End::Whole);
    let at = |path, name, direct, proxied, recorded| Fault {
        name,
        client: Client::Ordinary,
        path,
        reply: Vec::new(),
        direct,
        proxied,
        recorded,
    };
    let refused = recorded(Outcome::ConnectionError, None, 0, "connect: ");
    vec![
        at(
            REFUSED,
            "connection refused",
            saw("", 0, End::Refused),
            bad_gateway(),
            refused,
        ),
        Fault {
            client: Client::AsksAgain,
            ..at(
                IDLE,
                "server closes an idle connection",
                NOTHING,
                good,
                WHOLE_STREAM,
            )
        },
        Fault {
            client: Client::AsksAgain,
            ..at(
                RESTART,
                "server restarts between two requests",
                NOTHING,
                good,
                WHOLE_STREAM,
            )
        },
    ]
}

const REFUSED: &str = "/refused/v1/chat/completions";
const IDLE: &str = "/idle/v1/chat/completions";
const RESTART: &str = "/restart/v1/chat/completions";

/// Connections that [`closing_server`]s have closed.
static IDLE_CLOSED: AtomicUsize = AtomicUsize::new(0);
static RESTART_CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Answers one request a connection and closes it a little later, whatever
/// `connection` said; with `rebind` it closes its address, too, and comes back.
/// Then it counts in `closed`.
fn closing_server(rebind: bool, closed: &'static AtomicUsize) -> SocketAddr {
    let mut listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answer: Vec<u8> = [SSE_HEAD.as_bytes(), &http_chunk(&all_at_once()), LAST_CHUNK].concat();
    let thread = std::thread::Builder::new().name("closing-server".into());
    let serve = move || {
        loop {
            let (mut socket, _) = listener.accept().unwrap();
            read_request(&mut socket);
            socket.write_all(&answer).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            drop(socket);
            if rebind {
                drop(listener);
                listener = TcpListener::bind(addr).unwrap();
            }
            closed.fetch_add(1, Ordering::SeqCst);
        }
    };
    thread.spawn(serve).unwrap();
    addr
}

fn read_request(socket: &mut TcpStream) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.ends_with(b"}") {
        let n = socket.read(&mut buffer).unwrap();
        if n == 0 {
            return;
        }
        request.extend_from_slice(&buffer[..n]);
    }
}

fn request(fault: &Fault) -> Vec<u8> {
    let name = fault.name;
    let body = format!(
        r#"{{"model":"{name}","stream":true,"messages":[{{"role":"user","content":"x"}}]}}"#
    );
    post(fault.path, &format!("x-session-id: {name}\r\n"), &body)
}

/// Sends the request of `fault` as its client does, and tells what came of it.
fn live_through(fault: &Fault, addr: SocketAddr) -> (Seen, End) {
    let request = request(fault);
    let Ok(mut stream) = TcpStream::connect(addr) else {
        return (Seen::nothing(), End::Refused);
    };
    stream.set_nodelay(true).unwrap();
    match fault.client {
        Client::Ordinary | Client::LeavesInTheAnswer => stream.write_all(&request).unwrap(),
        Client::Trickles => {
            for piece in request.chunks(10) {
                stream.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Client::HalfCloses => {
            stream.write_all(&request).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        Client::BreaksOffItsBody => {
            stream.write_all(&request[..request.len() - 5]).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            return (Seen::nothing(), End::Left);
        }
        Client::SendsGarbage => stream.write_all(b"\x16\x03\x01\x02\x00\r\n\r\n").unwrap(),
        Client::AsksAgain => {
            let closed = match fault.path {
                RESTART => &RESTART_CLOSED,
                _ => &IDLE_CLOSED,
            };
            let before = closed.load(Ordering::SeqCst);
            stream.write_all(&request).unwrap();
            let (first, _) = receive_to_end(&mut stream, false, LONG);
            assert_eq!(first.finish, Finish::Whole, "{}", fault.name);
            while closed.load(Ordering::SeqCst) == before {
                std::thread::sleep(Duration::from_millis(5));
            }
            // The proxy has a moment to see it.
            std::thread::sleep(Duration::from_millis(50));
            // The server may have reset the connection by now.
            stream.write_all(&request).ok();
        }
    }
    if fault.client == Client::LeavesInTheAnswer {
        let (seen, _) = receive_to_end(&mut stream, false, PATIENCE);
        // Dropping a socket with unread bytes, or with this, resets it.
        let at_once = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
        return (seen, End::Left);
    }
    let is_silent = fault.direct.end == End::Silence;
    let patience = if is_silent { PATIENCE } else { LONG };
    let (seen, last) = receive_to_end(&mut stream, false, patience);
    let end = match (seen.finish, last) {
        (_, Last::Rst) => End::Rst,
        (Finish::Whole, _) => End::Whole,
        (Finish::Silent, _) => End::Silence,
        (Finish::Broken, _) => End::Fin,
    };
    (seen, end)
}

/// As a row of the table has it.
fn shown(seen: &Seen, end: End) -> (String, usize, End) {
    let status = seen.status.split(' ').next().unwrap_or_default();
    (status.to_owned(), seen.body.len(), end)
}

fn cell((status, body, end): &(String, usize, End)) -> String {
    let status = if status.is_empty() {
        "no answer"
    } else {
        status
    };
    match (*end, *body) {
        (End::Refused, _) => "connection refused".to_owned(),
        (end, 0) => format!("{status}, {}", end.words()),
        (end, body) => format!("{status}, {body} B, {}", end.words()),
    }
}

/// The last attempt of the last request of `fault`.
fn found(rows: &EventBatch, fault: &Fault) -> Option<(Outcome, Option<i32>, i32, String)> {
    // By its session: a body that broke off names no model.
    let named = rows.requests.iter();
    let named = named.filter(|r| r.session_id.as_deref() == Some(fault.name));
    let request = named.max_by_key(|r| (r.request_id, r.attempt))?;
    let key = (request.request_id, request.attempt);
    let mut responses = rows.responses.iter();
    let response = responses.find(|r| (r.request_id, r.attempt) == key)?;
    let error = response.error.as_deref().unwrap_or_default().to_owned();
    Some((
        response.outcome,
        response.status,
        response.chunk_count,
        error,
    ))
}

fn recorded_cell(found: Option<&(Outcome, Option<i32>, i32, String)>) -> String {
    let Some((outcome, status, chunks, error)) = found else {
        return "nothing: no request came".to_owned();
    };
    let status = status.map_or("no status".to_owned(), |status| status.to_string());
    let mut cell = format!("`{}`, {status}, {chunks} chunks", outcome.as_str());
    if !error.is_empty() {
        write!(cell, ", {error:?}").unwrap();
    }
    cell
}

fn start() -> (MockLlm, Nobody, Vec<String>) {
    let scripted = all().into_iter().filter(|fault| !fault.reply.is_empty());
    let replies = scripted.map(|fault| (fault.name.to_owned(), fault.reply.into()));
    let mock = MockLlm::start(Script::by_case(replies.collect()));
    let nobody = Nobody::take();
    let servers = vec![
        mock.url(),
        format!("/refused={}/", nobody.url()),
        format!("/idle=http://{}/", closing_server(false, &IDLE_CLOSED)),
        format!("/restart=http://{}/", closing_server(true, &RESTART_CLOSED)),
    ];
    (mock, nobody, servers)
}

/// Where a client without a proxy goes.
fn direct_addr(fault: &Fault, servers: &[String]) -> SocketAddr {
    let prefix = ["/refused", "/idle", "/restart"];
    let own = prefix.iter().position(|p| fault.path.starts_with(p));
    let url = &servers[own.map_or(0, |at| at + 1)];
    let (_, rest) = url.split_once("://").unwrap();
    rest.trim_end_matches('/').parse().unwrap()
}

/// What a client saw directly and through the proxy.
type Pair = ((Seen, End), (Seen, End));

/// Both ways at once; one after the other for those with a server of their own,
/// which answers one at a time.
fn live_through_both(fault: &Fault, direct: SocketAddr, proxy: SocketAddr) -> Pair {
    if fault.reply.is_empty() {
        return (live_through(fault, direct), live_through(fault, proxy));
    }
    std::thread::scope(|scope| {
        let first = scope.spawn(|| live_through(fault, direct));
        let second = live_through(fault, proxy);
        (first.join().unwrap(), second)
    })
}

/// The row of a fault, and whether it is as it should be.
fn judge(
    fault: &Fault,
    ((direct, direct_end), (through, through_end)): &Pair,
    rows: &EventBatch,
) -> (String, bool) {
    let direct_saw = shown(direct, *direct_end);
    let through_saw = shown(through, *through_end);
    let in_rows = found(rows, fault);
    let row = format!(
        "| {} | {} | {} | {} |",
        fault.name,
        cell(&direct_saw),
        cell(&through_saw),
        recorded_cell(in_rows.as_ref())
    );
    let as_shown = |saw: Saw| (saw.status.to_owned(), saw.body, saw.end);
    let is_recorded = match (&fault.recorded, &in_rows) {
        (Some(wanted), Some((outcome, status, chunks, error))) => {
            // An empty part is in every text: those without an error have none.
            let error_right = match wanted.error {
                "" => wanted.outcome != Outcome::Ok || error.is_empty(),
                part => error.contains(part),
            };
            (wanted.outcome, wanted.status, wanted.chunks) == (*outcome, *status, *chunks)
                && error_right
        }
        (wanted, found) => wanted.is_none() && found.is_none(),
    };
    let bytes_alike = fault.direct.body != fault.proxied.body || direct.body == through.body;
    let right = direct_saw == as_shown(fault.direct)
        && through_saw == as_shown(fault.proxied)
        && is_recorded
        && bytes_alike;
    (row, right)
}

#[test]
fn the_fault_table_is_as_it_is_written() {
    let faults = all();
    let (_mock, _nobody, servers) = start();
    let dir = tempfile::tempdir().unwrap();
    let further = servers[1..].iter();
    let further: Vec<&str> = further
        .flat_map(|server| ["--upstream", server.as_str()])
        .collect();
    let proxy = ProxyProcess::start(&servers[0], dir.path(), &further);
    let addr = proxy.addr;
    let pairs: Vec<Pair> = std::thread::scope(|scope| {
        let pair = |fault| {
            let direct = direct_addr(fault, &servers);
            scope.spawn(move || live_through_both(fault, direct, addr))
        };
        let threads: Vec<_> = faults.iter().map(pair).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let rows = proxy.finish();
    let head = "| fault | client, direct | client, through the proxy | recorded |";
    let mut table = format!("{head}\n|---|---|---|---|\n");
    let mut wrong = String::new();
    for (fault, pair) in faults.iter().zip(&pairs) {
        let (row, right) = judge(fault, pair, &rows);
        writeln!(table, "{row}").unwrap();
        if !right {
            let (direct, proxied) = (fault.direct, fault.proxied);
            let recorded = fault.recorded;
            writeln!(
                wrong,
                "{row}\n  expected direct {direct:?}, through {proxied:?}, recorded {recorded:?}"
            )
            .unwrap();
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{wrong}");
}
