//! Recorders that die: what the server sent a second before is there, nothing is
//! there twice, and no sealed file is damaged.
//!
//! `TAPEDECK_KILL_ROUNDS=50 cargo test --workspace --test e2e kill_9 -- --nocapture`
//! prints the table of a longer loop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tapedeck_clock::monotonic_ns;
use tapedeck_recording::reader::read_file;
use tapedeck_recording::{ChunkKind, Recording, Table};

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script, Served};
use crate::support::programs::{program, run};
use crate::support::recording::events;

/// What DESIGN promises: older than this is on the disk.
const PROMISED_NS: i64 = 1_000_000_000;
const TOKENS: usize = 60;

/// A server, and a load on it whose bodies say which request they are.
struct Load {
    mock: MockLlm,
    stream: Stream,
    dir: tempfile::TempDir,
}

impl Load {
    fn new(bodies: usize) -> Self {
        let stream = Stream::chat(TOKENS, 2, 4);
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..bodies)
            .map(|n| format!("{{\"model\":\"m\",\"messages\":[],\"user\":\"{n}\"}}\n"))
            .collect();
        std::fs::write(dir.path().join("bodies.jsonl"), lines).unwrap();
        Self {
            mock: MockLlm::start(Script::always(stream.reply())),
            stream,
            dir,
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    fn start(&self, flags: &str, failpoints: &str) -> Child {
        let mut command = program("record");
        command.args(["load", "--url", &self.mock.url(), "--dataset-path"]);
        command.arg(self.dir.path().join("bodies.jsonl"));
        command.args(["--no-probe", "--json", "--no-progress", "--out"]);
        command.arg(self.out()).args(flags.split_whitespace());
        command.env("FAILPOINTS", failpoints);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}

fn number_of(body: &[u8]) -> usize {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["user"].as_str().unwrap().parse().unwrap()
}

/// Rows of a recording by the number in the request's body: how many content
/// chunks, and whether there is a response.
fn recorded(recording: &Recording) -> BTreeMap<usize, (usize, bool)> {
    let events = events(recording);
    let mut keys = BTreeSet::new();
    for chunk in &events.chunks.rows {
        let is_new = keys.insert((chunk.request_id, chunk.attempt, chunk.chunk_index));
        assert!(is_new, "a chunk twice");
    }
    let mut found = BTreeMap::new();
    for request in &events.requests {
        let content = events.chunks.rows.iter();
        let content =
            content.filter(|c| c.request_id == request.request_id && c.kind == ChunkKind::Content);
        let responses = events.responses.iter();
        let responses = responses.filter(|r| r.request_id == request.request_id);
        let row = (content.count(), responses.count() == 1);
        let number = number_of(request.body.as_ref().unwrap());
        assert!(found.insert(number, row).is_none(), "a request twice");
    }
    found
}

/// Events of the ledger that must be there, and those that are not.
fn due_and_lost(load: &Load, served: &[Served], until_ns: i64) -> (usize, usize) {
    let recording = Recording::open(&load.out()).unwrap();
    let found = recorded(&recording);
    let (mut due, mut lost) = (0, 0);
    for served in served {
        let sent_content = (0..TOKENS).filter(|index| {
            let write = served.write_of(load.stream.step_of(*index));
            write.is_some_and(|write| write.t_after_ns < until_ns)
        });
        let sent_content = sent_content.count();
        let row = found.get(&number_of(&served.request.body));
        if served.request.t_read_ns < until_ns {
            due += 1 + sent_content;
            lost += usize::from(row.is_none());
            lost += sent_content.saturating_sub(row.map_or(0, |(content, _)| *content));
        }
    }
    (due, lost)
}

fn unreadable(dir: &Path) -> usize {
    let recording = Recording::open(dir).unwrap();
    let files = Table::ALL.into_iter().flat_map(|t| recording.files(t));
    files.filter(|file| read_file(file).is_err()).count()
}

/// Numbers from a seed, for the instants of the kills.
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 27)
}

#[test]
fn kill_9_at_any_instant_costs_less_than_a_second() {
    let rounds: u64 = std::env::var("TAPEDECK_KILL_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(5);
    let (mut due, mut lost, mut broken, mut sealed, mut from_log, mut torn) = (0, 0, 0, 0, 0, 0);
    for round in 0..rounds {
        let load = Load::new(20_000);
        let mut child = load.start(
            "--parallel 40 --duration 60s --seal-every 200ms --workers 1",
            "",
        );
        while load.mock.ledger().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let wait_us = 1_100_000 + scatter(round) % 700_000;
        std::thread::sleep(Duration::from_micros(wait_us));
        let killed_ns = monotonic_ns();
        child.kill().unwrap();
        child.wait().unwrap();
        let recording = Recording::open(&load.out()).unwrap();
        let counts = recording.recovered().counts;
        let here = due_and_lost(&load, &load.mock.ledger(), killed_ns - PROMISED_NS);
        assert!(here.0 > 0, "something was sent in time");
        due += here.0;
        lost += here.1;
        broken += unreadable(&load.out());
        sealed += recording.files(Table::Chunks).len();
        from_log += counts.rows;
        torn += counts.torn_bytes;
    }
    eprintln!(
        "rounds {rounds}, events due {due}, found {}, lost {lost}, sealed chunk files {sealed}, \
         unreadable sealed files {broken}, rows only in the log {from_log}, torn bytes {torn}",
        due - lost
    );
    assert_eq!((lost, broken), (0, 0));
}

#[test]
fn dying_inside_a_seal_loses_and_doubles_nothing() {
    for point in [
        "seal::mid_file=return(chunks/)",
        "seal::before_rename=return(chunks/)",
        "seal::after_rename=return(requests/)",
        "seal::after_rename=return(responses/)",
        "seal::before_manifest=return",
        "seal::before_wal_removal=return",
    ] {
        let load = Load::new(20);
        let mut child = load.start("--parallel 20", point);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "{point}: died, and did not end");
        let served = load.mock.ledger();
        let (due, lost) = due_and_lost(&load, &served, i64::MAX);
        assert_eq!((due, lost), (20 * (1 + TOKENS), 0), "{point}");
        assert_eq!(unreadable(&load.out()), 0);
        let out = load.out();
        let manifest_is_stored = point.contains("wal_removal");
        let check = run("analyze", ["check".as_ref(), out.as_os_str()]);
        if !manifest_is_stored {
            let check = check.expect(1);
            assert!(check.stdout.contains("not finished"), "{}", check.stdout);
            assert_eq!(check.stdout.matches("0 rows are lost").count(), 1);
        }
        // A repair that dies, too, is taken up by the next.
        let mut repair = program("record");
        repair.arg("repair").arg(&out);
        repair.env("FAILPOINTS", "repair::before_manifest=return");
        repair.output().unwrap();
        run("record", ["repair".as_ref(), out.as_os_str()]).expect(0);
        run("analyze", ["check".as_ref(), out.as_os_str()]).expect(0);
        assert_eq!(due_and_lost(&load, &served, i64::MAX), (due, 0), "{point}");
        assert_eq!(std::fs::read_dir(out.join("wal")).unwrap().count(), 0);
        let again = run("record", ["repair".as_ref(), out.as_os_str()]).expect(0);
        assert!(again.stderr.contains("nothing to repair"));
    }
}
