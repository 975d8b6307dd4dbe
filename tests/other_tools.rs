//! `record/OTHER_TOOLS.md`: every command on it runs, and every flag in its tables
//! is one that a command has.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tapedeck_recording::{Recording, Table};
use tapedeck_wire::dialect::Api;

use crate::grpc;
use crate::support::dialects;
use crate::support::mock_llm::replies::{self, Stream};
use crate::support::mock_llm::{MockLlm, Reply, Script};
use crate::support::programs::{Ran, program, words};

const PAGE: &str = include_str!("../record/OTHER_TOOLS.md");

/// Where the page's servers are.
const SERVER: &str = "http://localhost:8000";

/// The page's sections: their titles and what stands below.
fn sections() -> Vec<(&'static str, &'static str)> {
    let sections = PAGE.split("\n## ").skip(1);
    sections.filter_map(|s| s.split_once('\n')).collect()
}

/// Cells of the tables of `section`, headings left out.
fn rows(section: &str) -> Vec<Vec<&str>> {
    let lines = section.lines().filter(|line| line.starts_with("| "));
    let rows = lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect());
    rows.filter(|row: &Vec<&str>| row.len() == 3 && !["feature", "flag"].contains(&row[0]))
        .collect()
}

/// What stands between backticks in `text`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Commands of `section` in their order, each once: of tables in the third cell, of `sh`
/// blocks a line, continuation lines joined.
fn commands(section: &str) -> Vec<String> {
    let is_command = |text: &&str| ["record ", "analyze "].iter().any(|p| text.starts_with(p));
    let mut commands: Vec<String> = rows(section)
        .iter()
        .filter(|row| row[2].starts_with('`'))
        .filter_map(|row| quoted(row[2]).find(is_command))
        .map(str::to_owned)
        .collect();
    for block in section.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let joined = block.replace("\\\n", " ");
        let lines = joined.lines().filter(|line| !line.trim().is_empty());
        commands.extend(lines.map(str::to_owned));
    }
    let mut seen = BTreeSet::new();
    commands.retain(|command| seen.insert(command.clone()));
    commands
}

fn value<'a>(words: &'a [String], flags: &[&str]) -> Option<&'a str> {
    let at = words.iter().position(|w| flags.contains(&w.as_str()))?;
    words.get(at + 1).map(String::as_str)
}

enum Server {
    Http(MockLlm),
    Grpc(grpc::Running),
}

impl Server {
    fn addr(&self) -> SocketAddr {
        match self {
            Self::Http(mock) => mock.addr(),
            Self::Grpc(running) => running.addr,
        }
    }
}

/// A server that speaks the API which `words` ask for.
fn server(words: &[String]) -> Server {
    let name = value(words, &["--api", "--backend"]).unwrap_or("openai-chat");
    // A file of the page's own speaks as chat does.
    let name = Api::from_word(name).map_or("openai-chat", Api::as_str);
    if name.starts_with("ppl-") {
        return Server::Grpc(grpc::start(name, &[(3, grpc::End::Finished)], None));
    }
    let answer: Reply = if name == "openai-chat" {
        Stream::chat(3, 1, 1).reply()
    } else {
        let fixtures = dialects::all();
        let (_, fixture) = fixtures.iter().find(|(api, _)| api == name).unwrap();
        let mut cases = fixture.cases.iter();
        cases.find(|case| case.outcome == "ok").unwrap().reply()
    };
    Server::Http(MockLlm::start(Script::new(move |request| {
        match request.path.ends_with("/models") {
            true => replies::models(),
            false => answer.clone(),
        }
    })))
}

/// Runs `command` in `dir`, against a server of its own.
fn run(command: &str, dir: &Path) -> Ran {
    let mut words = words(command);
    let server = server(&words);
    let url = format!("http://{}", server.addr());
    let port = server.addr().port().to_string();
    for word in &mut words {
        *word = word.replace(SERVER, &url);
    }
    if let Some(at) = words.iter().position(|w| w == "--port") {
        words[at + 1] = port;
        // The mock has no other name.
        "127.0.0.1".clone_into(&mut words[at - 1]);
    }
    let mut program = program(&words[0]);
    let path = with_our_programs(Path::new(program.get_program()), dir);
    program.args(&words[1..]).current_dir(dir).env("PATH", path);
    // Reports are another test's; the page asks for some itself.
    if words[0] == "record" {
        program.arg("--no-report");
    }
    program.output().unwrap().into()
}

/// Where a launched command finds `program` and its kin, and the stand-ins in `dir`.
fn with_our_programs(program: &Path, dir: &Path) -> OsString {
    let ours = [dir.join("bin"), program.parent().unwrap().to_owned()];
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(ours.into_iter().chain(std::env::split_paths(&path))).unwrap()
}

/// Servers that are not installed here, each by the simulator: what they are told to
/// listen on has to be in their command.
fn stand_ins(bin: &Path) {
    fs::create_dir(bin).unwrap();
    let script = "#!/bin/sh\n[ \"$1\" = serve ] || exit 2\n\
        while [ $# -gt 0 ]; do\n\
        case \"$1\" in --host) host=$2;; --port) port=$2;; esac\n\
        shift\n\
        done\n\
        exec record simulate --listen \"$host:$port\" --ttft-ms 1 --itl-ms 1 --tokens 3\n";
    for name in ["vllm", "transformers"] {
        let path = bin.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// The files that the page names.
fn files(dir: &Path) {
    let fixtures = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/data_sets"));
    fs::create_dir(dir.join("model")).unwrap();
    fs::create_dir(dir.join("prompts")).unwrap();
    for (from, to) in [
        ("sharegpt.json", "ShareGPT.json"),
        ("longalpaca.json", "LongAlpaca.json"),
        ("openqa.jsonl", "open_qa.jsonl"),
        ("line_by_line.txt", "prompts.txt"),
        ("sonnet.txt", "sonnet.txt"),
        ("table.csv", "table.csv"),
        ("dot.png", "dot.png"),
        ("tokenizer.json", "model/tokenizer.json"),
        ("prompts/questions.jsonl", "prompts/questions.jsonl"),
        ("prompts/sonnet.txt", "prompts/sonnet.txt"),
    ] {
        fs::copy(fixtures.join(from), dir.join(to)).unwrap();
    }
    fs::write(dir.join("question.txt"), "Why is the sky blue?").unwrap();
    fs::write(
        dir.join("pictures.csv"),
        "ask,picture\nWhat is it?,dot.png\n",
    )
    .unwrap();
    let mine = "version = 1\nextends = \"openai-chat\"\n";
    fs::write(dir.join("mine.toml"), mine).unwrap();
    stand_ins(&dir.join("bin"));
}

/// All of a section's commands, one after the other in one folder.
fn run_all(title: &str, commands: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    for command in commands {
        let ran = run(command, dir.path());
        // A busy machine may make this client the bottleneck: a search finds that.
        let disturbed = ran.stderr.contains("this client was the bottleneck");
        let said = format!("{title}: {command}\n{}\n{}", ran.stdout, ran.stderr);
        assert!(
            ran.code == Some(0) || disturbed && ran.code == Some(1),
            "{said}"
        );
    }
}

#[test]
fn every_command_of_the_page_runs() {
    let mut ran = 0;
    std::thread::scope(|scope| {
        // What reports are asked of is made by the section before.
        let mut load = Vec::new();
        for (title, section) in sections() {
            let mut commands = commands(section);
            assert!(!commands.is_empty(), "{title} shows how");
            ran += commands.len();
            if ["Workloads", "Load"].contains(&title) {
                load.extend(commands);
                continue;
            }
            if title == "Results" {
                load.append(&mut commands);
                commands = std::mem::take(&mut load);
            }
            let builder = std::thread::Builder::new().name(title.to_owned());
            let thread = builder.spawn_scoped(scope, move || run_all(title, &commands));
            thread.unwrap();
        }
    });
    assert!(ran > 75, "{ran} commands");
}

#[test]
fn every_flag_in_the_tables_is_in_a_command_of_its_section() {
    let mut flags = 0;
    for (title, section) in sections() {
        if !title.starts_with("Flags of ") {
            continue;
        }
        let commands = commands(section);
        let used: BTreeSet<String> = commands.iter().flat_map(|c| words(c)).collect();
        for row in rows(section) {
            let here: Vec<&str> = quoted(row[1]).collect();
            assert!(!here.is_empty(), "{title}: {row:?}");
            for flag in &here {
                assert!(used.contains(*flag), "{title}: no command has {flag}");
            }
            if !quoted(row[0]).all(|theirs| here.contains(&theirs)) {
                assert!(!row[2].is_empty(), "{title}: {row:?} says why");
            }
            flags += 1;
        }
    }
    assert!(flags > 105, "{flags} flags");
}

#[test]
fn flags_of_other_tools_reach_bodies_and_manifests_and_keys_do_not() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let find = |title: &str| {
        let of_tool = |(name, _): &(&str, _)| name.ends_with(title);
        let (_, section) = sections().into_iter().find(of_tool).unwrap();
        commands(section).remove(0)
    };
    let keyed = |command: String| {
        command
            .replace("KEY", "sk-hidden-1")
            .replace("EMPTY", "sk-hidden-2")
    };

    let ran = run(&keyed(find("EvalScope perf")), dir.path());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let made = fs::read_dir(dir.path().join("outputs")).unwrap().next();
    let recording = Recording::open(&made.unwrap().unwrap().path()).unwrap();
    let rows = recording.rows(Table::Requests).unwrap().requests;
    let body = rows.last().unwrap().body.clone().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    for (field, value) in [
        ("logprobs", serde_json::json!(true)),
        ("top_k", 50.into()),
        ("ignore_eos", true.into()),
        ("stop", serde_json::json!(["END", "STOP"])),
        ("stop_token_ids", serde_json::json!([2, 3])),
        ("seed", 42.into()),
    ] {
        assert_eq!(body[field], value, "{body}");
    }
    for said in [
        "4 of 4 requests ended",
        "> measure request 1.0 POST /v1/chat/completions",
        "chunk 1 content",
        "warning: --wandb-api-key has no effect",
    ] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    let manifest = serde_json::to_string(&recording.manifest).unwrap();
    assert!(!(ran.stderr + &ran.stdout + &manifest).contains("sk-hidden"));

    run(&find("serving benchmark"), dir.path()).expect(0);
    let recording = Recording::open(&dir.path().join("results/run")).unwrap();
    assert_eq!(recording.manifest.labels["version"], "0.6.0");

    fs::remove_dir_all(dir.path().join("results")).unwrap();
    run(&find("byzer-perf"), dir.path()).expect(0);
    let made = fs::read_dir(dir.path().join("results")).unwrap().next();
    let recording = Recording::open(&made.unwrap().unwrap().path()).unwrap();
    let labels = &recording.manifest.labels;
    assert_eq!((&*labels["name"], &*labels["bar"]), ("foo", "1"));
}

#[test]
fn debug_shows_no_more_than_the_recording_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let command = format!(
        "record load --url {SERVER} --model m --prompt 'a secret question' --number 1 --debug"
    );
    for (more, is_shown) in [
        ("", true),
        (" --content hashed", false),
        (" --content lengths", false),
    ] {
        let ran = run(&format!("{command}{more}"), dir.path()).expect(0);
        assert!(
            ran.stderr.contains("request 1.0 ok HTTP 200"),
            "{}",
            ran.stderr
        );
        assert_eq!(
            ran.stderr.contains("secret question"),
            is_shown,
            "{}",
            ran.stderr
        );
    }
}
