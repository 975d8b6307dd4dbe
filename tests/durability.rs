//! Recordings that are being written, were moved, or met a disk that refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapedeck_recording::{Recording, Table};

use crate::support::disk::SmallDisk;
use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script};
use crate::support::programs::{Ran, program, run, run_line};

const SIM: &str = "sim:?ttft_ms=5&itl_ms=2&tokens=200";

fn load(out: &Path, flags: &str) -> Command {
    let mut command = program("record");
    command.args(["load", "--url", SIM, "--prompt", "x", "--no-probe"]);
    command.args(["--no-progress", "--json", "--out"]).arg(out);
    command.args(flags.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ask(recording: &Path, sql: &str) -> String {
    let arguments = ["query".as_ref(), recording.as_os_str(), sql.as_ref()];
    let csv = ["--format".as_ref(), "csv".as_ref()];
    let answer = run("analyze", arguments.into_iter().chain(csv)).expect(0);
    let row = answer.stdout.lines().nth(1).unwrap_or_default();
    row.trim_matches('"').to_owned()
}

fn chunks(recording: &Path) -> u64 {
    ask(recording, "SELECT count(*) FROM chunks")
        .parse()
        .unwrap()
}

fn health(recording: &Path) -> String {
    ask(
        recording,
        "SELECT detail FROM recording_health WHERE finding_index = 0",
    )
}

/// A load that runs until it is told to stop.
fn start(out: &Path, flags: &str) -> Child {
    let flags = format!("--parallel 8 --duration 60s {flags}");
    let mut child = load(out, &flags).spawn().unwrap();
    let has_chunks = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Recording::open(out).is_ok_and(|r| r.rows(Table::Chunks).unwrap().len() > 100)
    });
    if !has_chunks {
        drop(child.kill());
        drop(child.wait());
        panic!("no chunk is recorded within half a minute");
    }
    child
}

/// Names, lengths and times of everything in `dir`.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(state_of(&path));
        }
        found.insert(path, (metadata.len(), metadata.modified().unwrap()));
    }
    found
}

#[test]
fn a_recording_is_analyzed_while_it_is_written_and_by_one_program_only() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let child = start(&out, "--seal-every 300ms");
    let first = chunks(&out);
    assert!(health(&out).starts_with("still being written"));
    let repair = run("record", ["repair".as_ref(), out.as_os_str()]).expect(2);
    assert!(
        repair.stderr.contains("is being written"),
        "{}",
        repair.stderr
    );
    let second: Ran = load(&out, "--number 1").output().unwrap().into();
    assert!(second.expect(2).stderr.contains("not an empty folder"));
    run("analyze", ["check".as_ref(), out.as_os_str()]).expect(0);
    let second = chunks(&out);
    assert!(second > first, "{second} after {first}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let ran: Ran = child.wait_with_output().unwrap().into();
    ran.expect(0);
    assert_eq!(health(&out), "sealed by its recorder");
    assert!(chunks(&out) >= second);
    assert_eq!(std::fs::read_dir(out.join("wal")).unwrap().count(), 0);
}

#[test]
fn what_a_killed_recorder_left_is_read_where_it_is_moved_to_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mut child = start(&out, "");
    child.kill().unwrap();
    child.wait().unwrap();
    let moved = dir.path().join("moved");
    std::fs::rename(&out, &moved).unwrap();
    let read_only = |mode| {
        use std::os::unix::fs::PermissionsExt;
        for dir in [&moved, &moved.join("wal")] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    read_only(0o500);
    let before = state_of(&moved);
    assert!(chunks(&moved) > 100);
    assert!(health(&moved).starts_with("unfinished, its recorder died: "));
    let check = run("analyze", ["check".as_ref(), moved.as_os_str()]).expect(1);
    assert!(check.stdout.contains("was in flight"), "{}", check.stdout);
    run("analyze", ["report".as_ref(), moved.as_os_str()]).expect(0);
    assert_eq!(state_of(&moved), before);
    read_only(0o700);
    let rows = chunks(&moved);
    // One in the same folder that cannot be repaired does not keep it from that.
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("recording.json"), "{").unwrap();
    let ran = run("record", ["repair".as_ref(), dir.path().as_os_str()]).expect(2);
    assert!(ran.stderr.contains("1 of 2 recordings"), "{}", ran.stderr);
    assert_eq!(chunks(&moved), rows);
    assert!(health(&moved).starts_with("recovered after its recorder died: "));
}

#[test]
fn without_a_log_a_killed_recorder_leaves_an_invalid_recording() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mut load = load(&out, "--durability none --parallel 8 --seal-every 300ms");
    let mut child = load.spawn().unwrap();
    while !std::fs::read_dir(out.join("chunks")).is_ok_and(|mut files| files.next().is_some()) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for _ in 0..2 {
        let check = run("analyze", ["check".as_ref(), out.as_os_str()]).expect(1);
        assert!(
            check.stdout.contains("its number is not known"),
            "{}",
            check.stdout
        );
        assert_eq!(ask(&out, "SELECT verdict FROM verdict"), "invalid");
        run("record", ["repair".as_ref(), out.as_os_str()]).expect(0);
    }
}

#[test]
fn a_flipped_byte_in_a_sealed_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let ran: Ran = load(&out, "--number 3").output().unwrap().into();
    ran.expect(0);
    run("analyze", ["check".as_ref(), out.as_os_str()]).expect(0);
    let file = Recording::open(&out).unwrap().files(Table::Chunks)[0].clone();
    let bytes = std::fs::read(&file).unwrap();
    for at in [4, bytes.len() / 3, bytes.len() / 2, bytes.len() - 9] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        std::fs::write(&file, flipped).unwrap();
        let check = run("analyze", ["check".as_ref(), out.as_os_str()]).expect(1);
        assert!(check.stdout.contains("chunks/"), "{}", check.stdout);
    }
}

#[test]
fn a_full_disk_ends_a_load_with_everything_readable() {
    let Some(disk) = SmallDisk::mount("size=1m") else {
        eprintln!("no tmpfs may be mounted here: the writer's own tests stand alone");
        return;
    };
    for durability in ["interval", "batch"] {
        let out = disk.path().join("r");
        let flags =
            format!("--parallel 64 --duration 60s --seal-every 500ms --durability {durability}");
        let ran: Ran = load(&out, &flags).output().unwrap().into();
        let ran = ran.expect(2);
        assert!(ran.stderr.contains("is not complete"), "{}", ran.stderr);
        assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
        assert!(chunks(&out) > 1000, "{durability}");
        let check = run("analyze", ["check".as_ref(), out.as_os_str()]).expect(1);
        assert!(check.stdout.contains("not finished"), "{}", check.stdout);
        assert!(!check.stdout.contains("does not"), "{}", check.stdout);
        std::fs::remove_dir_all(&out).unwrap();
    }
    // What cannot be recorded is not sent: not the later turns of a session either.
    let (sessions, turns) = (8, 100);
    let mock = MockLlm::start(Script::always(Stream::chat(300, 0, 1).reply()));
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, "x\n".repeat(turns)).unwrap();
    let line = format!(
        "load --url {} --model m --dataset-path {} --parallel {sessions} --number {sessions} \
         --num-turns {turns} --no-probe --no-report --out {}",
        mock.url(),
        prompts.display(),
        disk.path().join("r").display()
    );
    let ran = run_line("record", &line).expect(2);
    assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
    assert!(mock.ledger().len() < sessions * turns);
}
