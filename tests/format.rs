//! Recordings of released formats stay readable for ever: what lies under
//! `fixtures/` is never changed, only added to.

use std::path::{Path, PathBuf};

use tapedeck_recording::manifest::State;
use tapedeck_recording::{ChunkKind, EventBatch, Recording, SegmentLimits, Writer};

use crate::support::programs::run;
use crate::support::recording::{MS, chunk, events, manifest, request, response};

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/format-1")).join(name)
}

const REQUESTS: i64 = 3;
const CHUNKS: i32 = 4;

fn exchange(id: i64) -> EventBatch {
    let mut batch = EventBatch::default();
    batch.requests.push(request(id, id * 100 * MS));
    for index in 0..CHUNKS {
        let t_ns = (id * 100 + 10 * (i64::from(index) + 1)) * MS;
        let mut row = chunk(id, index, ChunkKind::Content, t_ns);
        let text = format!(r#"{{"choices":[{{"delta":{{"content":"{index}"}}}}]}}"#);
        row.bytes = text.len() as i64;
        batch.chunks.push(row, Some(text.as_bytes()));
    }
    let t_end_ns = (id * 100 + 50) * MS;
    batch
        .responses
        .push(response(id, t_end_ns, CHUNKS, Some(4)));
    batch
}

/// Made the fixtures of format 1, once.
#[test]
#[ignore = "fixtures are frozen"]
fn make_fixtures() {
    for name in ["sealed", "log"] {
        let out = fixture(name);
        let limits = SegmentLimits {
            rows: 12,
            ..SegmentLimits::default()
        };
        let written = tempfile::tempdir().unwrap();
        let dir = written.path().join("r");
        let writer = Writer::create(&dir, manifest(name), limits).unwrap();
        for id in 0..REQUESTS {
            if id == REQUESTS - 1 && name == "log" {
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
            let mut batch = exchange(id);
            if id == REQUESTS - 1 {
                // One row short of a cut.
                batch.responses.clear();
            }
            writer.sink().push(batch).unwrap();
        }
        if name == "sealed" {
            writer.finish().unwrap();
            copy(&dir, &out);
        } else {
            std::thread::sleep(std::time::Duration::from_millis(500));
            copy(&dir, &out);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(path, target).unwrap();
        }
    }
}

/// What every version must read from a fixture.
fn assert_rows(recording: &Recording) {
    let mut expected = EventBatch::default();
    for id in 0..REQUESTS {
        expected.append(&mut exchange(id));
    }
    expected.responses.pop();
    let found = events(recording);
    assert_eq!(found.requests, expected.requests);
    assert_eq!(found.responses, expected.responses);
    assert_eq!(found.chunks, expected.chunks);
}

#[test]
fn a_sealed_recording_of_format_1_is_read() {
    let recording = Recording::open(&fixture("sealed")).unwrap();
    assert_eq!(recording.manifest.state, State::Sealed);
    assert_rows(&recording);
    // A report keeps what it derived beside the rows.
    let dir = tempfile::tempdir().unwrap();
    let copied = dir.path().join("r");
    copy(&fixture("sealed"), &copied);
    run("analyze", ["report".as_ref(), copied.as_os_str()]).expect(0);
}

#[test]
fn a_log_of_format_1_is_read_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let copied = dir.path().join("r");
    copy(&fixture("log"), &copied);
    let recording = Recording::open(&copied).unwrap();
    assert_eq!(recording.manifest.state, State::Open);
    assert_eq!(recording.recovered().counts.lost_rows, 0);
    assert_eq!(recording.recovered().counts.rows, 1 + CHUNKS as u64);
    assert_rows(&recording);
    run("record", ["repair".as_ref(), copied.as_os_str()]).expect(0);
    let repaired = Recording::open(&copied).unwrap();
    assert_eq!(repaired.manifest.state, State::Recovered);
    assert_rows(&repaired);
}
