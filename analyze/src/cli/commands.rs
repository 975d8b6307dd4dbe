//! What each command does.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tapedeck_recording::Recording;

use crate::check;
use crate::compare::{self, CompareError, CompareOptions};
use crate::explain;
use crate::listing::{self, Entry};
use crate::models;
use crate::output::{Output, OutputError, TABLE_ROWS};
use crate::render::grid;
use crate::report::{self, ReportOptions, Verdict};
use crate::session::{self, Session};
use crate::shell;

use super::{
    CompareArgs, EXIT_FAILED, ExplainArgs, ExplainFormat, QueryArgs, ReportArgs, ShellArgs, message,
};

/// The program worked and found something: a broken invariant, an invalid run.
const EXIT_FINDING: u8 = 1;
/// What a command may fail with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error(transparent)]
    Session(#[from] session::Error),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Explain(#[from] explain::Error),
    #[error("no definition is called {0}\nhint: `analyze sql` lists them")]
    UnknownView(String),
    #[error("the shell cannot go on")]
    Shell(#[source] std::io::Error),
}

/// Writes `text` to the file, or to stdout.
fn write(path: Option<&Path>, text: &str) -> Result<(), OutputError> {
    let mut output = Output::open(path)?;
    output.text(text)?;
    output.finish()
}

pub(super) async fn report(args: ReportArgs) -> Result<ExitCode, Failed> {
    let mut percentiles = args.percentiles;
    if let Some(list) = &mut percentiles {
        list.sort_by(f64::total_cmp);
        list.dedup();
    }
    let options = ReportOptions {
        warmup_ms: args.warmup.unwrap_or_default(),
        percentiles,
        slos: args.slos,
        tokenizer: args.session.tokenizer_path,
        memory_limit_bytes: Some(args.session.memory_limit),
        profile: args.profile,
    };
    let report = report::report(&args.recordings, &options).await?;
    write(args.output.as_deref(), &report.render(args.format))?;
    let is_finding = args.strict && report.verdict() == Verdict::Invalid;
    Ok(if is_finding {
        ExitCode::from(EXIT_FINDING)
    } else {
        ExitCode::SUCCESS
    })
}

pub(super) async fn compare(args: CompareArgs) -> Result<ExitCode, Failed> {
    let options = CompareOptions {
        gates: args.gates,
        slos: args.slos,
        warmup_ms: args.warmup.unwrap_or_default(),
        tokenizer: args.session.tokenizer_path,
        memory_limit_bytes: Some(args.session.memory_limit),
        seed: args.seed,
    };
    let compared = compare::compare(&args.base, &args.new, &options).await?;
    write(args.output.as_deref(), &compared.render(args.format))?;
    for gate in compared.gates.iter().filter(|g| g.holds != Some(false)) {
        let level = gate.level.as_deref();
        let level = level.map(|l| format!(" ({l})")).unwrap_or_default();
        let (name, detail) = (&gate.fail_if, &gate.detail);
        drop(writeln!(
            std::io::stderr(),
            "--fail-if {name}{level}: {detail}"
        ));
    }
    Ok(if compared.fails() {
        ExitCode::from(EXIT_FINDING)
    } else {
        ExitCode::SUCCESS
    })
}

pub(super) async fn query(mut args: QueryArgs) -> Result<ExitCode, Failed> {
    // clap has seen at least two arguments.
    let sql = args.arguments.pop().unwrap_or_default();
    let paths: Vec<PathBuf> = args.arguments.iter().map(PathBuf::from).collect();
    let recordings = session::open_all(&paths)?;
    let session = Session::open_known(recordings, &args.session.parameters()).await?;
    let rows = session.query(&sql).await?.execute_stream().await;
    let rows = rows.map_err(session::Error::Query)?;
    let mut output = Output::open(args.output.as_deref())?;
    let count = output.rows(rows, args.format, TABLE_ROWS).await?;
    output.finish()?;
    if count.total > count.shown {
        let more = count.total - count.shown;
        let hint = "hint: --format csv, json or parquet writes all";
        drop(writeln!(std::io::stderr(), "{more} more rows\n{hint}"));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn shell(args: ShellArgs) -> Result<ExitCode, Failed> {
    let recordings = session::open_all(&args.recordings)?;
    let session = Session::open_known(recordings, &args.session.parameters()).await?;
    let failed = shell::run(&session).await.map_err(Failed::Shell)?;
    Ok(if failed {
        ExitCode::from(EXIT_FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

pub(super) async fn explain(args: ExplainArgs) -> Result<ExitCode, Failed> {
    let found = explain::explain(&args.recording, args.request_id, args.attempt).await?;
    let text = match args.format {
        ExplainFormat::Json => format!("{:#}\n", found.to_json()),
        ExplainFormat::Text => found.render(explain_style(args.output.is_some())),
    };
    write(args.output.as_deref(), &text)?;
    Ok(ExitCode::SUCCESS)
}

/// As wide as the terminal, with colours only there and where NO_COLOR allows.
fn explain_style(to_file: bool) -> explain::Style {
    let is_terminal = !to_file && std::io::stdout().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let width = terminal_size::terminal_size().filter(|_| is_terminal);
    explain::Style {
        width: width.map_or(explain::Style::DEFAULT_WIDTH, |(w, _)| w.0.into()),
        color: is_terminal && !no_color,
    }
}

pub(super) fn sql(name: Option<&str>) -> Result<ExitCode, Failed> {
    let text = match name {
        Some(name) => {
            let model = models::view(name);
            let model = model.ok_or_else(|| Failed::UnknownView(name.to_owned()))?;
            model.sql.to_owned()
        }
        None => models::all_views()
            .map(|m| format!("{:<20} {}\n", m.name, m.grain))
            .collect(),
    };
    Output::open(None)?.text(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn ls(root: &Path) -> Result<ExitCode, Failed> {
    let found = listing::below(root).await?;
    for entry in &found {
        if let Err(error) = &entry.summary {
            let dir = entry.dir.display();
            // The table has the row in any case.
            drop(writeln!(std::io::stderr(), "{dir}: {}", message(error)));
        }
    }
    let rows: Vec<Vec<String>> = found.iter().map(ls_row).collect();
    let header = [
        "Name",
        "Path",
        "Labels",
        "Target",
        "Requests",
        "Succeeded",
        "Failed",
        "Unfinished",
        "Verdict",
    ];
    Output::open(None)?.text(&format!("{}\n", grid(&header, &rows, false)))?;
    Ok(if found.iter().any(|entry| entry.summary.is_ok()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}

fn ls_row(entry: &Entry) -> Vec<String> {
    let none = || "-".to_owned();
    let manifest = entry.recording.as_ref().map(|r| &r.manifest);
    let labels = manifest.map(|m| m.labels.iter().map(|(k, v)| format!("{k}={v}")));
    let summary = entry.summary.as_ref().ok().and_then(Option::as_ref);
    let verdict = match &entry.summary {
        Ok(summary) => summary.as_ref().map_or("-", |s| s.verdict.as_str()),
        Err(_) => "not read",
    };
    let count =
        |get: fn(&report::Counts) -> u64| summary.map_or_else(none, |s| get(&s.counts).to_string());
    vec![
        manifest.map_or_else(none, |m| m.name.clone()),
        entry.dir.display().to_string(),
        labels.map_or_else(none, |l| l.collect::<Vec<_>>().join(" ")),
        manifest.and_then(|m| m.target.clone()).unwrap_or_else(none),
        count(|c| c.requests),
        count(|c| c.succeeded),
        count(|c| c.failed),
        count(|c| c.unfinished),
        verdict.to_owned(),
    ]
}

pub(super) async fn check(path: &Path) -> Result<ExitCode, Failed> {
    let mut output = Output::open(None)?;
    let mut code = 0;
    let found = Recording::below(path).map_err(session::Error::Read)?;
    let is_only_one = found.len() == 1;
    for (dir, opened) in found {
        let dir = dir.display();
        let broken = match opened {
            Ok(recording) => check::check(&recording).await,
            Err(error) => Err(error.into()),
        };
        let broken = match broken {
            Err(error) if is_only_one => return Err(error.into()),
            // Those after it are checked all the same.
            Err(error) => {
                code = EXIT_FAILED;
                drop(writeln!(std::io::stderr(), "{dir}: {}", message(&error)));
                continue;
            }
            Ok(broken) => broken,
        };
        if broken.is_empty() {
            output.text(&format!("{dir}: sound\n"))?;
        } else {
            code = code.max(EXIT_FINDING);
        }
        for finding in broken {
            output.text(&format!("{dir}: {finding}\n"))?;
        }
    }
    Ok(ExitCode::from(code))
}
