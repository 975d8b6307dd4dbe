//! Data sets as a user meets them: what is sent, what is said, what is recorded.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tapedeck_recording::{Phase, Recording, RequestRow, Table};

use crate::support::programs::{Ran, run_line};

const SIM: &str = "load --url sim:?ttft_ms=1&itl_ms=1&tokens=2 --no-probe";

fn load(rest: &str, out: &Path) -> Ran {
    run_line("record", &format!("{SIM} --out {} {rest}", out.display()))
}

fn opened(out: &Path) -> (Recording, Vec<RequestRow>) {
    let recording = Recording::open(out).unwrap();
    let mut rows = recording.rows(Table::Requests).unwrap().requests;
    rows.retain(|row| row.phase == Phase::Measure);
    rows.sort_by_key(|row| row.request_id);
    (recording, rows)
}

fn body(row: &RequestRow) -> Value {
    serde_json::from_slice(row.body.as_ref().unwrap()).unwrap()
}

fn prompt(row: &RequestRow) -> String {
    let body = body(row);
    body["messages"][0]["content"].as_str().unwrap().to_owned()
}

fn hashes(rows: &[RequestRow]) -> Vec<String> {
    let hash = |row: &RequestRow| row.body_hash.as_deref().unwrap().to_owned();
    rows.iter().map(hash).collect()
}

/// One token a word.
fn tokenizer(dir: &Path) -> PathBuf {
    let words = [
        "[UNK]", "to", "be", "or", "not", "that", "is", "the", "question",
    ];
    let vocab: serde_json::Map<String, Value> = words
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), json!(id)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    let path = dir.join("tokenizer.json");
    fs::write(&path, tokenizer.to_string()).unwrap();
    path
}

fn conversation(prompt: &str, completion: &str) -> Value {
    json!({"id": "a_0", "conversations": [
        {"from": "human", "value": prompt},
        {"from": "gpt", "value": completion},
        {"from": "human", "value": "and \"more\" of ] } this\n"},
    ]})
}

/// A file of ShareGPT's shape, indented as the real one is: 20 conversations that
/// may be sent, two that may not, and one that is cut off in mid-string.
fn sharegpt(dir: &Path, cut_off: bool) -> (PathBuf, usize) {
    let mut records: Vec<Value> = (0..20)
        .map(|n| {
            let completion = "to be or not ".repeat(n + 1);
            conversation(
                &format!("what is the question number {n}"),
                completion.trim(),
            )
        })
        .collect();
    records.insert(3, conversation("too short", "to be or not"));
    records.insert(
        9,
        json!({"id": "b_0", "conversations": [{"from": "system", "value": "x"}]}),
    );
    let whole = format!("{:#}", json!(records));
    let whole = whole.trim_end_matches("\n]");
    let start = whole.len() + ",\n  ".len();
    let text = if cut_off {
        format!(
            "{whole},\n  {{\n    \"id\": \"c_0\",\n    \"conversations\": [\n      {{\"value\": \"cut o"
        )
    } else {
        format!("{whole}\n]\n")
    };
    let path = dir.join("sharegpt.json");
    fs::write(&path, text).unwrap();
    (path, start)
}

#[test]
fn a_sharegpt_file_that_is_cut_off_is_an_error_and_with_skip_bad_its_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let (path, start) = sharegpt(dir.path(), true);
    let end = fs::metadata(&path).unwrap().len();
    let tokenizer = tokenizer(dir.path());
    let line = format!(
        "--dataset sharegpt --dataset-path {} --tokenizer-path {} --parallel 4 --json",
        path.display(),
        tokenizer.display()
    );
    let out = dir.path().join("r");
    let refused = load(&line, &out).expect(2);
    let expected = format!(
        "sharegpt.json: after 22 whole records the file ends at byte {end}, inside the record that begins at byte {start}\nhint: --skip-bad"
    );
    assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
    assert!(!out.exists());

    let ran = load(&(line + " --skip-bad"), &out).expect(0);
    assert!(ran.stderr.contains("the rest is lost"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("20 of 22 records are sent"),
        "{}",
        ran.stderr
    );
    let (recording, rows) = opened(&out);
    // The data set's size is the number of requests.
    assert_eq!(rows.len(), 20);
    for row in &rows {
        let text = prompt(row);
        let n: i32 = text.rsplit(' ').next().unwrap().parse().unwrap();
        // As long as the recorded answer was, as the tokenizer counts.
        assert_eq!(row.max_output_tokens, Some(4 * (n + 1)));
        assert_eq!(body(row)["max_tokens"], 4 * (n + 1));
        assert_eq!(row.input_tokens, Some(6));
        assert_eq!(row.input_tokens_source.as_deref(), Some("tokenizer"));
    }
    let manifest = &recording.manifest;
    assert_eq!(manifest.workload.as_ref().unwrap().kind, "sharegpt");
    let dataset = &manifest.settings["dataset"];
    assert_eq!(dataset["records"], 22);
    assert_eq!(dataset["prompts"], 20);
    assert_eq!(
        dataset["left_out"],
        json!({"few_turns": 1, "few_prompt_tokens": 1})
    );
    assert_eq!(dataset["tokens_counted_by"], "tokenizer");
    assert!(dataset["lost"].as_str().unwrap().contains(&end.to_string()));
    assert!(dataset["source_hash"].is_string());
}

#[test]
fn without_a_tokenizer_lengths_are_estimated_and_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = sharegpt(dir.path(), false);
    let out = dir.path().join("r");
    let line = format!(
        "--dataset sharegpt --dataset-path {} --json",
        path.display()
    );
    let ran = load(&line, &out).expect(0);
    assert!(
        ran.stderr.contains("warning: tokens are estimated"),
        "{}",
        ran.stderr
    );
    let (recording, rows) = opened(&out);
    assert!(rows.iter().all(|row| row.input_tokens.is_none()));
    assert!(rows.iter().all(|row| row.max_output_tokens.is_some()));
    assert_eq!(
        recording.manifest.settings["dataset"]["tokens_counted_by"],
        "estimate"
    );

    // The flags of record load decide over the data set's limit.
    let fixed = dir.path().join("fixed");
    load(&format!("{line} --max-tokens 7"), &fixed).expect(0);
    assert!(
        opened(&fixed)
            .1
            .iter()
            .all(|row| row.max_output_tokens == Some(7))
    );
    let none = dir.path().join("none");
    load(&format!("{line} --ignore-max-tokens"), &none).expect(0);
    assert!(
        opened(&none)
            .1
            .iter()
            .all(|row| row.max_output_tokens.is_none())
    );
}

#[test]
fn equal_seeds_send_equal_bodies_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = sharegpt(dir.path(), false);
    let tokenizer = tokenizer(dir.path());
    let tokenizer = tokenizer.display();
    let sharegpt = format!(
        "--dataset sharegpt --dataset-path {} --tokenizer-path {tokenizer} --number 25",
        path.display()
    );
    let random = format!(
        "--dataset random --tokenizer-path {tokenizer} --input-tokens 30 --output-tokens 9 --random-range-ratio 0.5 --number 12"
    );
    for (name, line) in [("sharegpt", sharegpt), ("random", random)] {
        let sequence = |run: &str, seed: u64| {
            let out = dir.path().join(format!("{name}-{run}"));
            load(&format!("{line} --seed {seed} --parallel 3 --json"), &out).expect(0);
            let (recording, rows) = opened(&out);
            let content_hash = recording.manifest.workload.unwrap().content_hash;
            (hashes(&rows), content_hash.unwrap())
        };
        let first = sequence("a", 1);
        assert_eq!(first, sequence("b", 1), "{name}");
        let other = sequence("c", 2);
        assert_ne!(first.0, other.0, "{name}");
        assert_ne!(first.1, other.1, "{name}");
    }
}

#[test]
fn random_prompts_are_as_long_as_they_say_and_begin_alike() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(dir.path());
    let out = dir.path().join("r");
    let line = format!(
        "--dataset random --tokenizer-path {} --random-input-len 40 --random-output-len 8 --random-prefix-len 10 --api openai-completions --number 15 --json",
        tokenizer.display()
    );
    load(&line, &out).expect(0);
    let (_, rows) = opened(&out);
    let mut beginnings = BTreeSet::new();
    let mut prompts = BTreeSet::new();
    for row in &rows {
        let body = body(row);
        let text = body["prompt"].as_str().unwrap();
        // A token of this tokenizer is a word: nothing of ours counts here.
        let words: Vec<&str> = text.split(' ').collect();
        assert_eq!(words.len(), 50);
        beginnings.insert(words[..10].join(" "));
        prompts.insert(text.to_owned());
        assert_eq!(row.input_tokens, Some(50));
        assert_eq!(row.max_output_tokens, Some(8));
    }
    assert_eq!(beginnings.len(), 1);
    assert_eq!(prompts.len(), 15);

    let refused = load(
        "--dataset random --input-tokens 5",
        &dir.path().join("none"),
    )
    .expect(2);
    assert!(
        refused.stderr.contains("--tokenizer-path"),
        "{}",
        refused.stderr
    );
}

#[test]
fn openqa_is_read_in_order_again_and_again_within_the_limits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qa.jsonl.gz");
    let mut gzip = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
    for question in ["熵", "to be or not", "that is the question", "tö"] {
        writeln!(
            gzip,
            "{}",
            json!({"question": question, "human_answers": ["x"]})
        )
        .unwrap();
    }
    gzip.finish().unwrap();
    let out = dir.path().join("r");
    let line = format!("--dataset openqa --dataset-path {} --json", path.display());
    let ran = load(&format!("{line} --min-prompt-chars 2 --number 7"), &out).expect(0);
    assert!(ran.stderr.contains("below the minimum"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("3 prompts are sent again"),
        "{}",
        ran.stderr
    );
    let (recording, rows) = opened(&out);
    let sent: Vec<String> = rows.iter().map(prompt).collect();
    let kept = ["to be or not", "that is the question", "tö"];
    let expected: Vec<&str> = kept.into_iter().cycle().take(7).collect();
    assert_eq!(sent, expected);
    let dataset = &recording.manifest.settings["dataset"];
    assert_eq!(dataset["left_out"], json!({"below_minimum": 1}));
    assert_eq!(dataset["min_prompt_chars"], 2);

    let tokenizer = tokenizer(dir.path());
    let counted = dir.path().join("counted");
    let limits = format!(
        "--tokenizer-path {} --min-prompt-tokens 4",
        tokenizer.display()
    );
    load(&format!("{line} {limits}"), &counted).expect(0);
    let tokens: Vec<_> = opened(&counted).1.iter().map(|r| r.input_tokens).collect();
    assert_eq!(tokens, [Some(4), Some(4)]);

    let none = dir.path().join("none");
    let refused = load(&format!("{line} --min-prompt-chars 100"), &none).expect(2);
    assert!(
        refused.stderr.contains("none of the 4 records"),
        "{}",
        refused.stderr
    );
    let refused = load(&format!("{line} --prompt-column answer"), &none).expect(2);
    assert!(refused.stderr.contains("\"answer\""), "{}", refused.stderr);
}

#[test]
fn a_csv_table_is_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.csv");
    fs::write(&path, "n,text\n1,\"a, b\"\n2,c\n").unwrap();
    let out = dir.path().join("r");
    let line = format!(
        "--dataset table --prompt-column text --dataset-path {} --json",
        path.display()
    );
    load(&line, &out).expect(0);
    let sent: Vec<String> = opened(&out).1.iter().map(prompt).collect();
    assert_eq!(sent, ["a, b", "c"]);
}

#[test]
fn repetitions_are_recordings_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let line = "--prompt x --parallel 1 2 --number 3 --repeat 2";
    let ran = load(line, &out).expect(0);
    let recordings = Recording::open_all(&out).unwrap();
    let mut seen: Vec<(i64, String, String)> = recordings
        .iter()
        .map(|recording| {
            let manifest = &recording.manifest;
            let parallel = manifest.settings["parallel"].as_i64().unwrap();
            assert_eq!(manifest.settings["repeats"], 2);
            let folder = recording.dir.file_name().unwrap();
            let folder = folder.to_str().unwrap().to_owned();
            (parallel, manifest.labels["repeat"].clone(), folder)
        })
        .collect();
    seen.sort();
    let folders = ["000-parallel-1-number-3", "001-parallel-2-number-3"];
    let mut expected = Vec::new();
    for (parallel, folder) in (1..).zip(folders) {
        for repeat in 1..=2 {
            let name = format!("{folder}-repeat-{repeat:03}");
            assert!(ran.stdout.contains(&name));
            expected.push((parallel, repeat.to_string(), name));
        }
    }
    assert_eq!(seen, expected);
    assert!(ran.stdout.contains("Per user (tok/s)"));
    let equal: BTreeSet<_> = recordings
        .iter()
        .map(|r| r.manifest.workload.as_ref().unwrap().content_hash.clone())
        .collect();
    assert_eq!(equal.len(), 1, "a repetition sends the same again");
}
