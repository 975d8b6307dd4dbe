//! Nanoseconds per event for framing, interpretation and both, on a stream as
//! vLLM writes it. Run with `cargo run --release -p tapedeck-wire --example frame_speed`.

use std::hint::black_box;

use tapedeck_clock::monotonic_ns;
use tapedeck_wire::openai::{self, Api, Interpreter};
use tapedeck_wire::response::{End, ResponseReader, ResponseSpec};
use tapedeck_wire::sse::Framer;

const EVENTS: usize = 2_000;
/// Best of this many passes: the machine does other things too.
const PASSES: usize = 60;

const SPEC: ResponseSpec<'_> = ResponseSpec {
    api: Api::OpenAiChat,
    stream_requested: true,
    status: 200,
    content_type: Some("text/event-stream; charset=utf-8"),
    content_encoding: None,
};

fn payload(index: usize) -> String {
    format!(
        r#"{{"id":"chatcmpl-0f8fad5bd9cb469fa165708677289503","object":"chat.completion.chunk","created":1754000000,"model":"meta-llama/Llama-3.1-8B-Instruct","choices":[{{"index":0,"delta":{{"content":" token{index}"}},"logprobs":null,"finish_reason":null}}]}}"#
    )
}

fn report(name: &str, mut pass: impl FnMut() -> usize) {
    let mut best_ns = i64::MAX;
    let mut events = 0;
    for _ in 0..PASSES {
        let start_ns = monotonic_ns();
        events = black_box(pass());
        best_ns = best_ns.min(monotonic_ns() - start_ns);
    }
    println!("{name:<44} {:>6} ns/event", best_ns / events.max(1) as i64);
}

/// Frames the stream in reads of `read_bytes`.
fn frame(stream: &[u8], read_bytes: usize) -> usize {
    let mut framer = Framer::new();
    let mut frames = 0;
    for (index, read) in stream.chunks(read_bytes).enumerate() {
        framer.feed(index, read, &mut |frame| {
            black_box(frame.payload);
            frames += 1;
        });
    }
    frames
}

/// Follows the stream as one response.
fn follow(stream: &[u8], read_bytes: usize) -> usize {
    let mut reader = ResponseReader::new(SPEC);
    for (index, read) in stream.chunks(read_bytes).enumerate() {
        reader.feed(index, read, &mut |chunk| {
            black_box(chunk.data);
        });
    }
    reader.finish(End::Clean, &mut |_| {}).chunk_count as usize
}

fn main() {
    let payloads: Vec<String> = (0..EVENTS).map(payload).collect();
    let events: Vec<String> = payloads.iter().map(|p| format!("data: {p}\n\n")).collect();
    let stream = events.concat();
    let stream = stream.as_bytes();
    println!("{EVENTS} events, {} bytes each", stream.len() / EVENTS);

    report("framing, one event per read", || {
        let mut framer = Framer::new();
        let mut frames = 0;
        for (index, event) in events.iter().enumerate() {
            framer.feed(index, event.as_bytes(), &mut |frame| {
                black_box(frame.payload);
                frames += 1;
            });
        }
        frames
    });
    report("framing, 16 KiB reads", || frame(stream, 16 << 10));
    report("framing, 100-byte reads", || frame(stream, 100));
    report("interpreting each on its own", || {
        for payload in &payloads {
            black_box(openai::interpret(None, payload.as_bytes()));
        }
        payloads.len()
    });
    report("interpreting as a stream", || {
        let mut interpreter = Interpreter::new();
        for payload in &payloads {
            black_box(interpreter.interpret(None, payload.as_bytes()));
        }
        payloads.len()
    });
    report("response (framing + interpreting), 16 KiB", || {
        follow(stream, 16 << 10)
    });
}
