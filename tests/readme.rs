//! The README's commands do what it says, and every program explains itself.

use std::path::Path;

use crate::support::programs::{program, run, words};

const README: &str = include_str!("../README.md");

/// Commands of the README's `console` blocks, without the prompt, continuation
/// lines joined.
fn commands() -> Vec<String> {
    let mut commands = Vec::new();
    let blocks = README.split("```console\n").skip(1);
    for block in blocks {
        let block = block.split("```").next().unwrap_or_default();
        let joined = block.replace("\\\n", " ");
        let lines = joined.lines().filter_map(|line| line.strip_prefix("$ "));
        commands.extend(lines.map(str::to_owned));
    }
    commands
}

/// The program and arguments of `cargo run … --bin NAME -- ARGUMENTS` or of
/// `NAME ARGUMENTS`.
fn invocation(command: &str) -> Option<(String, Vec<String>)> {
    let words = words(command);
    let programs = ["record", "analyze", "replay"];
    if words[0] == "cargo" {
        let bin = words.iter().position(|w| w == "--bin")?;
        let rest = words.iter().position(|w| w == "--")?;
        return Some((words[bin + 1].clone(), words[rest + 1..].to_vec()));
    }
    let name = Path::new(&words[0]).file_name()?.to_str()?.to_owned();
    programs
        .contains(&name.as_str())
        .then(|| (name, words[1..].to_vec()))
}

#[test]
fn the_readmes_commands_run_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut ran = 0;
    for command in commands() {
        let Some((name, arguments)) = invocation(&command) else {
            continue;
        };
        let output = program(&name)
            .args(&arguments)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}\n{}",
            output.stderr.escape_ascii()
        );
        ran += 1;
    }
    assert!(ran >= 3, "the README shows its programs");
}

#[test]
fn the_readme_names_the_test_command_that_ci_runs() {
    let ci = include_str!("../.ci/run");
    let test = "cargo test --workspace";
    assert!(README.contains(test) && ci.contains(test));
}

#[test]
fn every_program_and_command_explains_itself() {
    for (name, commands) in [
        (
            "record",
            &["load", "proxy", "simulate", "repair", "apis"][..],
        ),
        (
            "analyze",
            &[
                "report", "compare", "query", "shell", "sql", "explain", "ls", "check",
            ],
        ),
        ("replay", &["run", "plan", "import", "serve"]),
    ] {
        let help = run(name, ["--help"]).expect(0).stdout;
        for command in commands {
            assert!(help.contains(command), "{name} --help names {command}");
            let help = run(name, [command, "--help"]).expect(0).stdout;
            assert!(help.contains("Usage:"));
            assert_eq!(unexplained(&help), Vec::<&str>::new(), "{name} {command}");
        }
    }
}

/// Flags of a command's `--help` with nothing behind them but their default.
fn unexplained(help: &str) -> Vec<&str> {
    // What is written about them stands further in.
    let is_flag = |line: &&str| {
        let text = line.trim_start();
        text.starts_with('-') && line.len() - text.len() <= 6
    };
    let lines: Vec<&str> = help.lines().collect();
    let flags = lines.iter().enumerate().filter(|(_, line)| is_flag(line));
    let says_nothing = |&(index, line): &(usize, &&str)| {
        let flag = line.trim_start();
        // Text stands two columns behind the flag, or below it.
        let beside = flag.split_once("  ").map_or("", |(_, text)| text);
        let below = lines[index + 1..].iter().take_while(|next| !is_flag(next));
        let first = std::iter::once(beside).chain(below.copied()).map(str::trim);
        let first = first.into_iter().find(|text| !text.is_empty());
        first.is_none_or(|text| text.starts_with('['))
    };
    flags
        .filter(says_nothing)
        .map(|(_, line)| line.trim())
        .collect()
}

#[test]
fn help_of_record_load_has_the_flags_of_the_contract() {
    let help = run("record", ["load", "--help"]).expect(0).stdout;
    for flag in [
        "--url",
        "--model",
        "--api",
        "--endpoint",
        "--dataset",
        "--dataset-path",
        "--prompt",
        "--parallel",
        "--number",
        "--rate",
        "--duration",
        "--stream",
        "--no-stream",
        "--max-tokens",
        "--ignore-max-tokens",
        "--temperature",
        "--ignore-eos",
        "--extra-body",
        "--api-key",
        "--header",
        "--cacert",
        "--insecure",
        "--connect-timeout",
        "--read-timeout",
        "--total-timeout",
        "--seed",
        "--sampling-seed",
        "--no-usage",
        "--no-probe",
        "--out",
        "--name",
        "--label",
        "--content",
        "--no-report",
        "--json",
    ] {
        assert!(help.contains(flag), "{flag} is missing");
    }
}
