//! Servers that `record load` launches: waited for, loaded, stopped with all of
//! their children, whatever becomes of the recorder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapedeck_recording::Recording;

use crate::support::mock_llm::replies::Stream;
use crate::support::mock_llm::{MockLlm, Script};
use crate::support::programs::{Ran, program, run};

/// A server with a child in its group and one that left it; it prints a secret,
/// and notes the ids of all three. Its second word is its time to first token.
struct Family {
    dir: tempfile::TempDir,
}

impl Family {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "sleep 600 & echo $! >> {pids}\n\
             setsid sleep 600 & echo $! >> {pids}\n\
             echo $$ >> {pids}\n\
             echo \"my token is $HF_TOKEN\"\n\
             exec {record} simulate --listen 127.0.0.1:$1 --ttft-ms $2 --itl-ms 1 --tokens 3\n",
            pids = dir.path().join("pids").display(),
            record = program("record").get_program().display(),
        );
        fs::write(dir.path().join("serve.sh"), script).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> String {
        let script = self.path("serve.sh");
        format!(
            "HF_TOKEN=hunter22 sh {} {{port}} {{ttft}}",
            script.display()
        )
    }

    fn pids(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.path("pids")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        pids.map(Pid::from_raw).collect()
    }

    fn is_alive(&self) -> bool {
        self.pids().iter().any(|pid| kill(*pid, None).is_ok())
    }
}

/// Asks again and again, for ten seconds at most.
fn becomes(what: impl Fn() -> bool) -> bool {
    (0..1000).any(|_| {
        let is_so = what();
        if !is_so {
            std::thread::sleep(Duration::from_millis(10));
        }
        is_so
    })
}

fn load(more: &[&str]) -> Ran {
    let words = ["load", "--prompt", "x", "--number", "3", "--json"];
    run("record", words.iter().chain(more))
}

#[test]
fn every_cell_of_a_matrix_has_its_server_and_none_outlives_it() {
    let family = Family::new();
    let out = family.path("results");
    let out_word = out.to_str().unwrap();
    let command = family.command();
    let cells = |values: &str| {
        let matrix = ["--launch", &command, "--matrix", values, "--out", out_word];
        load(&matrix)
    };
    let ran = cells("ttft=1,broken,2").expect(1);
    assert!(
        ran.stderr.contains("cell ttft=broken failed"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("exit code 2"), "{}", ran.stderr);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["recordings"].as_array().unwrap().len(), 2);
    assert_eq!(json["succeeded"], 6);
    assert_eq!(json["failed_cells"][0]["cell"]["ttft"], "broken");
    assert_eq!(family.pids().len(), 9);
    assert!(!family.is_alive());

    let first = Recording::open(&out.join("ttft-1")).unwrap();
    assert_eq!(first.manifest.labels["ttft"], "1");
    let launch = &first.manifest.settings["launch"];
    assert!(
        launch["command"]
            .as_str()
            .unwrap()
            .starts_with("HF_TOKEN=*** sh ")
    );
    assert!(launch["ready_after_s"].as_f64().unwrap() > 0.0);
    let log = fs::read_to_string(out.join(launch["log"].as_str().unwrap())).unwrap();
    assert!(
        log.contains("my token is ***\n") && log.contains("simulator on"),
        "{log}"
    );
    let manifest = fs::read_to_string(out.join("ttft-1/recording.json")).unwrap();
    assert!(!manifest.contains("hunter22"), "{manifest}");

    // What is there stays.
    cells("ttft=1").expect(0);
    let second = Recording::open(&out.join("ttft-1.2")).unwrap();
    assert_ne!(second.manifest.recording_id, first.manifest.recording_id);
    let still = Recording::open(&out.join("ttft-1")).unwrap();
    assert_eq!(still.manifest.recording_id, first.manifest.recording_id);
}

#[test]
fn nothing_outlives_a_recorder_that_is_killed() {
    let family = Family::new();
    let out = family.path("r");
    let command = family.command().replace("{ttft}", "1");
    let mut recorder = program("record")
        .args([
            "load",
            "--prompt",
            "x",
            "--duration",
            "60s",
            "--launch",
            &command,
            "--out",
        ])
        .arg(&out)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let recording = out.join("recording.json");
    assert!(becomes(|| recording.exists()), "the load begins");
    assert_eq!(family.pids().len(), 3);
    assert!(family.is_alive());
    kill(Pid::from_raw(recorder.id().cast_signed()), Signal::SIGKILL).unwrap();
    recorder.wait().unwrap();
    assert!(becomes(|| !family.is_alive()), "all of them end");
}

#[track_caller]
fn refused(more: &[&str], out: &Path) -> String {
    let more = [more, &["--out", out.to_str().unwrap()]].concat();
    let stderr = load(&more).expect(2).stderr;
    assert!(!out.exists(), "nothing is recorded");
    stderr
}

#[test]
fn a_server_that_cannot_be_loaded_is_one_message_with_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let dying = "echo 'no such model' >&2; exit 3";
    let stderr = refused(&["--launch", dying], &out);
    assert!(stderr.contains("with exit code 3"), "{stderr}");
    assert!(stderr.contains("\n  | no such model"), "{stderr}");
    // It says the last of it; the rest is in the file.
    assert_eq!(
        fs::read_to_string(dir.path().join("r.server.log")).unwrap(),
        "no such model\n"
    );

    // On a busy machine a shell may not have had its turn by then.
    let idle = |seconds: &str| {
        let launch = ["--launch", "echo loading; exec sleep 600"];
        let timeout = ["--launch-timeout", &format!("{seconds}s")];
        let stderr = refused(&[launch, timeout].concat(), &out);
        let said = format!("not ready within {seconds} s");
        assert!(stderr.contains(&said), "{stderr}");
        assert!(stderr.contains("hint: --launch-timeout"), "{stderr}");
        stderr.contains("\n  | loading")
    };
    assert!(["0.3", "3", "30"].into_iter().any(idle));

    let mock = MockLlm::start(Script::always(Stream::chat(1, 1, 1).reply()));
    let url = mock.url().replace("http://", "http://me:hunter33@");
    let launch = ["--launch", "exec sleep 600", "--url", &url];
    let stderr = refused(&[&launch[..], &["--content", "hashed"]].concat(), &out);
    for said in [
        "something answers at 127.0.0.1:",
        "warning: --content and --redact do not reach what the server prints",
    ] {
        assert!(stderr.contains(said), "{stderr}");
    }
    assert!(!stderr.contains("hunter33"), "{stderr}");

    let stderr = refused(&["--url", "sim:", "--matrix", "tp=1,2"], &out);
    assert!(
        stderr.contains("--matrix needs a server to launch"),
        "{stderr}"
    );
    let cell = ["--launch", "exit {tp}", "--matrix", "tp=1,2"];
    for labels in [["--metadata", "tp=9"], ["--label", "tp=9"]] {
        let stderr = refused(&[&cell[..], &labels].concat(), &out);
        assert!(stderr.contains("names tp, which --matrix"), "{stderr}");
    }
}
