//! Every data set by its name: equal seeds send equal bytes, sessions carry what
//! was said, hubs are asked once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tapedeck_recording::{MarkRow, Outcome, Phase, Recording, RequestRow, Table};

use crate::support::mock_llm::replies::{self, Stream};
use crate::support::mock_llm::{MockLlm, Received, Reply, Script, Step};
use crate::support::programs::{Ran, program, run_line};

const SIM: &str = "load --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --no-probe --no-report --json";

fn fixture(name: &str) -> String {
    format!("{}/fixtures/data_sets/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn load(rest: &str, out: &Path) -> Ran {
    run_line("record", &format!("{SIM} --out {} {rest}", out.display()))
}

fn requests(out: &Path) -> Vec<RequestRow> {
    let recording = Recording::open(out).unwrap();
    let mut rows = recording.rows(Table::Requests).unwrap().requests;
    rows.retain(|row| row.phase == Phase::Measure);
    rows.sort_by_key(|row| row.request_id);
    rows
}

fn manifest(out: &Path) -> tapedeck_recording::Manifest {
    Recording::open(out).unwrap().manifest
}

fn marks(out: &Path, name: &str) -> Vec<MarkRow> {
    let mut marks = Recording::open(out)
        .unwrap()
        .rows(Table::Marks)
        .unwrap()
        .marks;
    marks.retain(|mark| &*mark.name == name);
    marks
}

fn body(row: &RequestRow) -> Value {
    serde_json::from_slice(row.body.as_ref().unwrap()).unwrap()
}

fn hashes(rows: &[RequestRow]) -> Vec<String> {
    let hash = |row: &RequestRow| row.body_hash.as_deref().unwrap().to_owned();
    rows.iter().map(hash).collect()
}

/// Flags of every data set with its fixture, and whether the seed changes it.
fn all_data_sets() -> Vec<(&'static str, String, bool)> {
    let tokenizer = fixture("tokenizer.json");
    vec![
        (
            "openqa",
            format!("--dataset-path {}", fixture("openqa.jsonl")),
            false,
        ),
        (
            "longalpaca",
            format!("--dataset-path {}", fixture("longalpaca.json")),
            false,
        ),
        (
            "line_by_line",
            format!("--dataset-path {}", fixture("line_by_line.txt")),
            false,
        ),
        (
            "sharegpt",
            format!("--dataset-path {}", fixture("sharegpt.json")),
            true,
        ),
        (
            "sonnet",
            format!(
                "--dataset-path {} --sonnet-input-len 100 --sonnet-prefix-len 40 --number 6",
                fixture("sonnet.txt")
            ),
            true,
        ),
        (
            "random",
            format!(
                "--tokenizer {tokenizer} --random-input-len 20 --random-range-ratio 0.5 --number 6"
            ),
            true,
        ),
        (
            "prefix",
            format!(
                "--tokenizer {tokenizer} --prefix-length 8 --input-tokens 6 --prefix-groups 2 --group-prompts 3"
            ),
            true,
        ),
        (
            "table",
            format!(
                "--dataset-path {} --prompt-column ask --output-length-column tokens",
                fixture("table.csv")
            ),
            false,
        ),
        (
            "prompts",
            format!("--dataset-path {}", fixture("prompts")),
            false,
        ),
        (
            "speed_benchmark",
            "--api openai-completions".to_owned(),
            false,
        ),
    ]
}

#[test]
fn every_data_set_sends_equal_bytes_for_an_equal_seed_and_salt() {
    let dir = tempfile::tempdir().unwrap();
    for (name, flags, is_seeded) in all_data_sets() {
        let sent = |run: &str, more: &str| {
            let out = dir.path().join(format!("{name}-{run}"));
            load(
                &format!("--dataset {name} {flags} --parallel 2 {more}"),
                &out,
            )
            .expect(0);
            let workload = manifest(&out).workload.unwrap();
            assert_eq!(workload.kind, name);
            (hashes(&requests(&out)), workload.content_hash.unwrap())
        };
        let first = sent("a", "--seed 1");
        assert_eq!(first, sent("b", "--seed 1"), "{name}");
        let other = sent("c", "--seed 2");
        assert_eq!(first.0 != other.0, is_seeded, "{name}");
        assert_eq!(first.1 != other.1, is_seeded, "{name}");
        let salted = sent("d", "--seed 1 --salt s");
        assert_ne!(first.1, salted.1, "{name}");
        let out = dir.path().join(format!("{name}-d"));
        assert_eq!(manifest(&out).settings["dataset"]["salt"], "s");
    }
}

#[test]
fn data_sets_send_what_their_tools_send() {
    let dir = tempfile::tempdir().unwrap();
    let texts = |name: &str, flags: &str| -> Vec<String> {
        let out = dir.path().join(format!("{name}-texts"));
        load(&format!("--dataset {name} {flags}"), &out).expect(0);
        let text = |row: &RequestRow| {
            let body = body(row);
            let content = body["messages"][0]["content"].as_str();
            content.or(body["prompt"].as_str()).unwrap().to_owned()
        };
        requests(&out).iter().map(text).collect()
    };
    let flags: BTreeMap<_, _> = all_data_sets()
        .into_iter()
        .map(|(n, f, _)| (n, f))
        .collect();
    assert_eq!(texts("openqa", &flags["openqa"])[0], "什么是熵？");
    assert!(texts("longalpaca", &flags["longalpaca"])[0].starts_with("Below is a paper."));
    assert_eq!(
        texts("prompts", &flags["prompts"]),
        [
            "What is a sonnet?",
            "From fairest creatures we desire increase,",
            "That thereby beauty's rose might never die,"
        ]
    );
    let speed = texts("speed_benchmark", &flags["speed_benchmark"]);
    let lengths: Vec<usize> = speed.iter().map(|text| text.chars().count()).collect();
    assert_eq!(lengths, [1, 1, 6144, 6144, 14336, 14336, 30720, 30720]);
    let rows = requests(&dir.path().join("speed_benchmark-texts"));
    assert!(rows.iter().all(|row| row.max_output_tokens == Some(2048)));
    let sonnets = texts("sonnet", &flags["sonnet"]);
    let question = "Pick as many lines as you can from these poem lines:\nShall I compare";
    assert!(sonnets.iter().all(|text| text.starts_with(question)));
    texts("table", &flags["table"]);
    let rows = requests(&dir.path().join("table-texts"));
    let limits: Vec<_> = rows.iter().map(|row| row.max_output_tokens).collect();
    assert_eq!(limits, [Some(7), Some(8), Some(9)]);
}

#[test]
fn a_programs_output_is_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, flags: &[&str]| {
        let out = dir.path().join(name);
        let mut command = program("record");
        command
            .args(SIM.split(' '))
            .arg("--out")
            .arg(&out)
            .args(flags);
        (Ran::from(command.output().unwrap()), out)
    };
    let print = r#"echo '{"q": "one", "n": 3}'; echo '{"q": "two"}'; echo heard >&2"#;
    let table = [
        "--dataset-command",
        print,
        "--prompt-column",
        "q",
        "--output-length-column",
        "n",
    ];
    let (ran, out) = run("table", &table);
    let ran = ran.expect(0);
    assert!(ran.stderr.contains("heard"), "{}", ran.stderr);
    let rows = requests(&out);
    assert_eq!(body(&rows[0])["messages"][0]["content"], "one");
    assert_eq!(rows[0].max_output_tokens, Some(3));
    assert_eq!(rows.len(), 2);
    assert_eq!(
        manifest(&out).workload.unwrap().path.as_deref(),
        Some(print)
    );
    let keyed = "API_KEY=pw77 sh -c 'echo one'";
    let (ran, out) = run("keyed", &["--dataset-command", keyed]);
    ran.expect(0);
    let text = fs::read_to_string(out.join("recording.json")).unwrap();
    assert!(
        text.contains("API_KEY=***") && !text.contains("pw77"),
        "{text}"
    );
    let failing = "API_KEY=pw77; echo one; exit 4";
    let (ran, out) = run("failed", &["--dataset-command", failing]);
    let ran = ran.expect(2);
    assert!(ran.stderr.contains("exit status: 4"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("pw77"), "{}", ran.stderr);
    assert!(!out.exists());
}

#[test]
fn system_prompts_templates_and_images_stand_where_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let system = dir.path().join("system.txt");
    fs::write(&system, "Be kind.").unwrap();
    let first = |name: &str, flags: String| {
        let out = dir.path().join(name);
        load(&format!("--prompt hi --number 1 {flags}"), &out).expect(0);
        body(&requests(&out)[0])
    };
    let image = fixture("dot.png");
    let sent = first(
        "chat",
        format!(
            "--system-prompt @{} --image {image} https://host/x.jpg",
            system.display()
        ),
    );
    assert_eq!(
        sent["messages"][0],
        json!({"role": "system", "content": "Be kind."})
    );
    let parts = &sent["messages"][1]["content"];
    assert_eq!(parts[0], json!({"type": "text", "text": "hi"}));
    let url = parts[1]["image_url"]["url"].as_str().unwrap();
    assert!(
        url.starts_with("data:image/png;base64,iVBORw0KGgo"),
        "{url}"
    );
    assert_eq!(parts[2]["image_url"]["url"], "https://host/x.jpg");
    let sent = first(
        "template",
        format!(
            "--api openai-completions --template qwen --system-prompt-path {}",
            system.display()
        ),
    );
    assert_eq!(
        sent["prompt"],
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}

/// Rows of each session, by turn.
fn sessions(out: &Path) -> BTreeMap<String, Vec<RequestRow>> {
    let mut sessions: BTreeMap<String, Vec<RequestRow>> = BTreeMap::new();
    for row in requests(out) {
        let id = row.session_id.as_deref().unwrap().to_owned();
        sessions.entry(id).or_default().push(row);
    }
    sessions
}

/// What the first choice of a streamed answer says.
fn said(out: &Path, request_id: i64) -> String {
    let rows = Recording::open(out)
        .unwrap()
        .rows(Table::Chunks)
        .unwrap()
        .chunks;
    let mut text = String::new();
    for row in rows.rows.iter().filter(|row| row.request_id == request_id) {
        let payload = rows.payload(row).unwrap_or_default();
        let chunk: Option<Value> = serde_json::from_slice(payload).ok();
        let content =
            chunk.and_then(|c| Some(c["choices"][0]["delta"]["content"].as_str()?.to_owned()));
        text.push_str(&content.unwrap_or_default());
    }
    text
}

#[test]
fn turns_follow_one_another_and_carry_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let sharegpt = format!(
        "--dataset sharegpt --dataset-path {} --parallel 2",
        fixture("sharegpt.json")
    );
    for replies in ["live", "recorded"] {
        let out = dir.path().join(replies);
        let line =
            format!("{sharegpt} --num-turns 3 --multi-turn-replies {replies} --think-time 30ms");
        load(&line, &out).expect(0);
        let ends: BTreeMap<i64, i64> = Recording::open(&out)
            .unwrap()
            .rows(Table::Responses)
            .unwrap()
            .responses
            .iter()
            .map(|row| (row.request_id, row.t_end_ns.unwrap()))
            .collect();
        let sessions = sessions(&out);
        let mut lengths: Vec<usize> = sessions.values().map(Vec::len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [1, 1, 1, 2, 3]);
        for turns in sessions.values() {
            for (turn, row) in (0..).zip(turns) {
                assert_eq!(row.turn, Some(turn));
            }
            for pair in turns.windows(2) {
                let [before, after] = pair else {
                    unreachable!()
                };
                assert_eq!(after.parent_request_id, Some(before.request_id));
                assert!(after.request_id > before.request_id);
                // Due after the think time, which starts when the turn before ends.
                let due_ns = ends[&before.request_id] + 30_000_000;
                assert_eq!(after.t_scheduled_ns, Some(due_ns));
                assert!(after.t_sent_ns.unwrap() >= due_ns);
                let (old, new) = (before.body.as_ref().unwrap(), after.body.as_ref().unwrap());
                let front = old.windows(2).rposition(|two| two == b"}]").unwrap() + 1;
                assert_eq!(
                    new[..front],
                    old[..front],
                    "the front is byte for byte the same"
                );
                let messages = body(after)["messages"].clone();
                let reply = messages[messages.as_array().unwrap().len() - 2].clone();
                assert_eq!(reply["role"], "assistant");
                let text = reply["content"].as_str().unwrap();
                if replies == "live" {
                    assert_eq!(text, said(&out, before.request_id));
                } else {
                    let recorded = fs::read_to_string(fixture("sharegpt.json")).unwrap();
                    assert!(recorded.contains(text), "{text}");
                }
                assert!(!text.is_empty());
            }
        }
        let settings = &manifest(&out).settings["dataset"]["sessions"];
        assert_eq!(settings["replies"], replies);
        assert_eq!(settings["turns"], 8);
    }
    // Recorded replies make every turn known beforehand: equal seeds, equal bytes.
    let by_turn = |out: &Path| -> Vec<Vec<String>> {
        sessions(out).values().map(|turns| hashes(turns)).collect()
    };
    let again = dir.path().join("again");
    load(
        &format!("{sharegpt} --num-turns 3 --multi-turn-replies recorded"),
        &again,
    )
    .expect(0);
    assert_eq!(by_turn(&again), by_turn(&dir.path().join("recorded")));
}

#[test]
fn lines_of_messages_and_tables_hold_sessions_too() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = |name: &str, flags: &str| -> BTreeMap<String, usize> {
        let out = dir.path().join(name);
        load(flags, &out).expect(0);
        sessions(&out)
            .into_iter()
            .map(|(id, turns)| (id, turns.len()))
            .collect()
    };
    let flags = format!(
        "--dataset table --dataset-path {} --prompt-column ask --session-column talk --reply-column answer --num-turns 5 --multi-turn-replies recorded --number 3",
        fixture("table.csv")
    );
    let expected = [("a", 2), ("a#1", 2), ("b", 1)];
    let expected: BTreeMap<String, usize> = expected.map(|(id, n)| (id.to_owned(), n)).into();
    assert_eq!(lengths("table", &flags), expected);
    let flags = format!(
        "--dataset-path {} --num-turns 5",
        fixture("line_by_line.txt")
    );
    let found: Vec<usize> = lengths("lines", &flags).into_values().collect();
    assert_eq!(found, [1, 2, 1]);
    // Prompts without sessions of their own: consecutive ones, by live replies.
    let flags = format!(
        "--dataset openqa --dataset-path {} --num-turns 2",
        fixture("openqa.jsonl")
    );
    let found: Vec<usize> = lengths("grouped", &flags).into_values().collect();
    assert_eq!(found, [2, 1]);
    let refused = load(
        &format!("{flags} --multi-turn-replies recorded"),
        &dir.path().join("none"),
    );
    let refused = refused.expect(2);
    assert!(
        refused.stderr.contains("--reply-column"),
        "{}",
        refused.stderr
    );
}

/// The second request of every three fails.
fn fails_at_times(request: &Received) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let turns = body["messages"].as_array().unwrap().len();
    if turns == 3 {
        return replies::json(500, r#"{"error":{"message":"no"}}"#);
    }
    Stream::chat(2, 1, 1).reply()
}

#[test]
fn a_turn_that_fails_ends_its_session_and_frees_its_slot() {
    let mock = MockLlm::start(Script::new(fails_at_times));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.txt");
    fs::write(&path, "a\nb\nc\nd\ne\nf\n").unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "load --url {} --model m --dataset-path {} --num-turns 3 --parallel 1 --no-probe --no-report --json --out {}",
        mock.url(),
        path.display(),
        out.display()
    );
    run_line("record", &line).expect(0);
    // Two sessions of three turns: the second turn of each fails.
    let lengths: Vec<usize> = sessions(&out).values().map(Vec::len).collect();
    assert_eq!(lengths, [2, 2]);
    let ended = marks(&out, "session_ended");
    assert_eq!(ended.len(), 2);
    for mark in &ended {
        let detail: Value = serde_json::from_str(&mark.detail).unwrap();
        assert_eq!(detail["turns_not_sent"], 1);
        assert_eq!(detail["reason"], "the turn failed");
    }
    let responses = Recording::open(&out)
        .unwrap()
        .rows(Table::Responses)
        .unwrap()
        .responses;
    let failed = responses
        .iter()
        .filter(|row| row.outcome == Outcome::HttpError);
    assert_eq!(failed.count(), 2);
}

/// A hub with one data set of two files and one model, which cuts off the first
/// answer to `cut.jsonl` in the middle and resumes it.
fn hub(request: &Received) -> Reply {
    let path = request.path.split('?').next().unwrap();
    let header = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone())
    };
    let file = |extra: &str, body: &str| {
        Reply::from(vec![Step::send(replies::whole(
            200,
            "application/octet-stream",
            extra,
            body,
        ))])
    };
    match path {
        "/api/datasets/o/one/revision/main" => {
            let list = json!({"siblings": [{"rfilename": "README.md"}, {"rfilename": "dataset_infos.json"}, {"rfilename": "qa.jsonl"}]});
            replies::json(200, &list.to_string())
        }
        "/api/datasets/o/two/revision/main" => {
            let list = json!({"siblings": [{"rfilename": "a.jsonl"}, {"rfilename": "b.csv"}]});
            replies::json(200, &list.to_string())
        }
        // As the hub does: to its store, with the digest of the content.
        "/datasets/o/one/resolve/main/qa.jsonl" => Reply::from(vec![Step::send(replies::whole(
            302,
            "text/plain",
            &format!(
                "location: /store/qa\r\nx-repo-commit: c0ffee\r\nx-linked-etag: \"{RECORDS_SHA256}\"\r\n"
            ),
            "",
        ))]),
        "/datasets/o/bad/resolve/main/qa.jsonl" => {
            file(&format!("etag: \"{}\"\r\n", "0".repeat(64)), RECORDS)
        }
        "/store/qa" => file("etag: \"store\"\r\n", RECORDS),
        "/datasets/o/cut/resolve/v1/cut.jsonl" => {
            cut_off(header("range").as_deref(), header("if-range").as_deref())
        }
        "/o/model/resolve/main/tokenizer.json" => file(
            "etag: \"t\"\r\n",
            &fs::read_to_string(fixture("tokenizer.json")).unwrap(),
        ),
        "/api/v1/datasets/o/ms/repo" => file("", RECORDS),
        "/datasets/o/private/resolve/main/x.jsonl"
            if header("authorization").as_deref() != Some("Bearer s3cret") =>
        {
            replies::json(401, "{}")
        }
        "/datasets/o/private/resolve/main/x.jsonl" => file("", RECORDS),
        _ => replies::json(404, "{}"),
    }
}

/// The first answer breaks off in the middle, the next goes on there.
fn cut_off(range: Option<&str>, if_range: Option<&str>) -> Reply {
    let Some(range) = range else {
        let whole = replies::whole(200, "text/plain", "etag: \"e1\"\r\n", RECORDS);
        return Reply::from(vec![Step::send(&whole[..whole.len() - 25]), Step::Close]);
    };
    assert_eq!(if_range, Some("\"e1\""));
    let from = range.trim_start_matches("bytes=").trim_end_matches('-');
    let from: usize = from.parse().unwrap();
    let (last, length) = (RECORDS.len() - 1, RECORDS.len());
    let extra = format!("etag: \"e1\"\r\ncontent-range: bytes {from}-{last}/{length}\r\n");
    let rest = replies::whole(206, "text/plain", &extra, &RECORDS[from..]);
    Reply::from(vec![Step::send(rest)])
}

/// What [`hub`] serves, and its digest.
const RECORDS: &str = "{\"question\":\"from the hub\"}\n{\"question\":\"again\"}\n";
const RECORDS_SHA256: &str = "9ffa706186f68ea785ead09a9a1d3bf7461ead51b6734bfaf2717b7f28548c19";

struct HubTrial {
    dir: tempfile::TempDir,
    mirror: MockLlm,
}

impl HubTrial {
    fn run(&self, name: &str, flags: &str, variables: &[(&str, &str)]) -> (Ran, PathBuf) {
        let out = self.dir.path().join(name);
        let mut command = program("record");
        for variable in [
            "HF_ENDPOINT",
            "HF_TOKEN",
            "MODELSCOPE_ENDPOINT",
            "MODELSCOPE_DOMAIN",
            "HF_HUB_OFFLINE",
        ] {
            command.env_remove(variable);
        }
        command.env("NO_PROXY", "127.0.0.1");
        command.args(SIM.split(' ')).arg("--out").arg(&out);
        command
            .arg("--hub-cache")
            .arg(self.dir.path().join("cache"));
        command
            .args(flags.split(' '))
            .envs(variables.iter().copied());
        (command.output().unwrap().into(), out)
    }

    fn asked(&self) -> usize {
        self.mirror.ledger().len()
    }
}

fn hub_trial() -> HubTrial {
    HubTrial {
        dir: tempfile::tempdir().unwrap(),
        mirror: MockLlm::start(Script::new(hub)),
    }
}

#[test]
fn a_hub_is_asked_once_and_offline_never() {
    let trial = hub_trial();
    let url = trial.mirror.url();
    let flags = "--dataset openqa --dataset-path hf:o/one";
    let (ran, out) = trial.run("nobody", flags, &[]);
    assert!(ran.expect(2).stderr.contains("HF_ENDPOINT"));
    assert!(!out.exists());
    let (ran, _) = trial.run(
        "offline",
        &format!("{flags} --hub-url {url} --offline"),
        &[],
    );
    let ran = ran.expect(2);
    assert!(
        ran.stderr.contains("nothing is downloaded offline"),
        "{}",
        ran.stderr
    );
    assert_eq!(trial.asked(), 0);

    let (ran, out) = trial.run("first", flags, &[("HF_ENDPOINT", &url)]);
    ran.expect(0);
    let first = requests(&out);
    assert_eq!(body(&first[0])["messages"][0]["content"], "from the hub");
    let manifest = manifest(&out);
    let name = "hf:o/one/qa.jsonl@main";
    assert_eq!(
        manifest.workload.as_ref().unwrap().path.as_deref(),
        Some(name)
    );
    let told = &manifest.settings["dataset"]["hub"];
    assert_eq!(told["name"], name);
    assert_eq!(told["commit"], "c0ffee");
    assert_eq!(told["etag"], format!("\"{RECORDS_SHA256}\""));
    let asked = trial.asked();
    assert_eq!(asked, 3, "the list, the file, the store");

    let (ran, out) = trial.run("again", flags, &[("HF_HUB_OFFLINE", "1")]);
    ran.expect(0);
    assert_eq!(hashes(&requests(&out)), hashes(&first));
    assert_eq!(trial.asked(), asked);
}

#[test]
fn a_download_that_breaks_off_goes_on_and_a_wrong_one_is_refused() {
    let trial = hub_trial();
    let hub = format!("--dataset openqa --hub-url {}", trial.mirror.url());
    let cut = format!("{hub} --dataset-path hf:o/cut/cut.jsonl@v1");
    let (ran, _) = trial.run("cut", &cut, &[]);
    let ran = ran.expect(2);
    assert!(
        ran.stderr.contains("goes on where it broke off"),
        "{}",
        ran.stderr
    );
    let (ran, out) = trial.run("resumed", &cut, &[]);
    ran.expect(0);
    assert_eq!(requests(&out).len(), 2);

    for (name, words) in [
        ("hf:o/bad/qa.jsonl", "SHA-256"),
        ("hf:o/two", "a.jsonl, b.csv"),
        ("hf:o/none/x.jsonl", "404"),
        ("hf:o/../x", "no name on a hub"),
    ] {
        let (ran, out) = trial.run("refused", &format!("{hub} --dataset-path {name}"), &[]);
        let ran = ran.expect(2);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
        assert!(!out.exists());
    }
}

#[test]
fn hubs_give_tokenizers_and_keep_tokens_to_themselves() {
    let trial = hub_trial();
    let hub = format!("--hub-url {}", trial.mirror.url());
    let flags = format!("{hub} --dataset random --tokenizer o/model --input-tokens 5 --number 2");
    let (ran, out) = trial.run("tokenizer", &flags, &[]);
    ran.expect(0);
    assert!(requests(&out).iter().all(|row| row.input_tokens == Some(5)));
    let tokenizer = &manifest(&out).settings["dataset"]["tokenizer"];
    assert_eq!(tokenizer["hub"]["name"], "hf:o/model/tokenizer.json@main");

    let flags = format!("{hub} --dataset openqa --dataset-path modelscope:o/ms/qa.jsonl");
    let (ran, _) = trial.run("modelscope", &flags, &[]);
    ran.expect(0);
    let last = trial.mirror.ledger().pop().unwrap();
    let query = "Source=SDK&Revision=master&FilePath=qa.jsonl";
    assert!(last.request.path.ends_with(query), "{}", last.request.path);

    let flags = format!("{hub} --dataset openqa --dataset-path hf:o/private/x.jsonl");
    let (ran, _) = trial.run("refused", &flags, &[]);
    assert!(ran.expect(2).stderr.contains("HF_TOKEN"));
    let (ran, out) = trial.run("private", &flags, &[("HF_TOKEN", "s3cret")]);
    let ran = ran.expect(0);
    assert!(!ran.stderr.contains("s3cret"));
    let manifest = fs::read_to_string(out.join("recording.json")).unwrap();
    assert!(!manifest.contains("s3cret"));
}
