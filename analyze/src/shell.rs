//! `analyze shell`: one question after the other, on a terminal or from a pipe.
//!
//! Statements end with `;`, commands of the shell are lines that begin with `\`.
//! An error ends its statement and never the shell; from a pipe the exit code
//! says in the end that there was one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use tapedeck_clock::monotonic_ns;

use crate::cli::message;
use crate::functions;
use crate::models::{self, Model, Polarity};
use crate::output::{Output, OutputError, QueryFormat, is_broken_pipe};
use crate::render::grid;
use crate::session::{self, Session};

pub mod completion;
pub mod statements;

use completion::Words;
use statements::{MAX_STATEMENT_BYTES, Next};

/// Rows of a drawn table unless `\rows` says otherwise; the rest is counted.
const ROWS_SHOWN: usize = 100;
/// Most that `\rows` may ask for: a table lies in memory before it is drawn.
const MAX_ROWS_SHOWN: usize = 100_000;
/// Statements remembered from one shell to the next.
const HISTORY_ENTRIES: usize = 1000;

/// Commands: name, arguments, meaning.
const COMMANDS: [(&str, &str, &str); 8] = [
    (
        "d",
        "[NAME]",
        "list tables and views, or describe the columns of one",
    ),
    ("sql", "NAME", "print the definition of a view"),
    ("format", "table|csv|json", "how rows are written"),
    ("rows", "N", "rows shown of a table"),
    ("timing", "", "switch the time of each statement on or off"),
    (
        "o",
        "[FILE]",
        "write rows to a file, or to the screen again",
    ),
    ("?", "", "this list"),
    ("q", "", "end, as Ctrl-D does"),
];

const FORMATS: [(&str, QueryFormat); 3] = [
    ("table", QueryFormat::Table),
    ("csv", QueryFormat::Csv),
    ("json", QueryFormat::Json),
];

/// What ends a statement early.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Session(#[from] session::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("{0}")]
    Usage(String),
    #[error("cancelled")]
    Cancelled,
}

fn usage(text: impl Into<String>) -> Failed {
    Failed::Usage(text.into())
}

/// Whether the shell goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    End,
}

/// Runs statements from the terminal, or from stdin where that is none. True when
/// one failed that nobody was there to see.
///
/// # Errors
/// When the terminal cannot be used or stdin cannot be read.
pub(crate) async fn run(session: &Session) -> io::Result<bool> {
    let mut shell = Shell {
        session,
        format: QueryFormat::Table,
        rows_shown: ROWS_SHOWN,
        timing: false,
        file: None,
        interactive: io::stdin().is_terminal(),
        failed: false,
    };
    if shell.interactive {
        shell.converse().await?;
        Ok(false)
    } else {
        shell.read_all(&mut io::stdin().lock()).await?;
        Ok(shell.failed)
    }
}

struct Shell<'s> {
    session: &'s Session,
    format: QueryFormat,
    rows_shown: usize,
    timing: bool,
    /// Where rows go instead of stdout.
    file: Option<File>,
    interactive: bool,
    failed: bool,
}

impl Shell<'_> {
    async fn converse(&mut self) -> io::Result<()> {
        let state = self.session.context().state();
        let functions = state.scalar_functions().keys();
        let functions = functions.chain(state.aggregate_functions().keys());
        let functions = functions.chain(state.window_functions().keys());
        let words = Words::new(functions.cloned());
        let config = Config::builder()
            .max_history_size(HISTORY_ENTRIES)
            .map_err(io::Error::other)?
            .completion_type(CompletionType::List)
            .build();
        let mut editor =
            Editor::<Words, FileHistory>::with_config(config).map_err(io::Error::other)?;
        editor.set_helper(Some(words));
        let history = history_file();
        if let Some(path) = &history {
            // There is none before the first time.
            editor.load_history(path).ok();
        }
        let n = self.session.recordings().len();
        let noun = if n == 1 { "recording" } else { "recordings" };
        self.say(&format!(
            "{n} {noun}. Statements end with ; and \\? lists commands.\n"
        ));
        loop {
            match editor.readline("tapedeck> ") {
                Ok(text) => {
                    editor.add_history_entry(text.as_str()).ok();
                    if let Some(path) = &history {
                        // A disk that is full is no reason to stop asking.
                        editor.append_history(path).ok();
                    }
                    if self.take(&text).await.1 == Then::End {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Statements and commands of `input` to its end; a last one needs no `;`.
    async fn read_all(&mut self, input: &mut (impl BufRead + ?Sized)) -> io::Result<()> {
        let mut text = String::new();
        loop {
            let room = MAX_STATEMENT_BYTES.saturating_sub(text.len());
            let mut line = Vec::new();
            let is_end = input.take(room as u64).read_until(b'\n', &mut line)? == 0;
            text.push_str(&readable(&line));
            if is_end && room == 0 {
                return Err(io::Error::other("a statement is longer than 1 MiB"));
            }
            if is_end {
                text.push_str("\n;");
            }
            let (rest, then) = self.take(&text).await;
            if is_end && !rest.is_empty() {
                self.fail(&usage("the input ends inside a quote or a comment"));
            }
            if is_end || then == Then::End {
                return Ok(());
            }
            text = rest;
        }
    }

    /// Runs what is whole in `text`; the rest of it, and whether to go on.
    async fn take(&mut self, text: &str) -> (String, Then) {
        let mut text = text;
        loop {
            let (done, rest) = match statements::next(text) {
                Next::Statement(sql, rest) if sql.contains(NO_TEXT) => (
                    Err(usage("a statement holds bytes that are no UTF-8")),
                    rest,
                ),
                Next::Statement(sql, rest) => {
                    (self.statement(sql).await.map(|()| Then::GoOn), rest)
                }
                // A command ends with its line.
                Next::Command(line, rest) => (self.command(line), rest),
                Next::Open => return (text.to_owned(), Then::GoOn),
                Next::Blank => return (String::new(), Then::GoOn),
            };
            match done {
                Ok(Then::GoOn) => {}
                Ok(Then::End) => return (String::new(), Then::End),
                Err(error) if is_broken_pipe(&error) => return (String::new(), Then::End),
                Err(error) => self.fail(&error),
            }
            text = rest;
        }
    }

    fn fail(&mut self, error: &Failed) {
        self.failed = true;
        // Without stderr nobody listens.
        drop(writeln!(io::stderr(), "{}", message(error)));
    }

    /// Runs one query; on a terminal Ctrl-C ends it and not the shell.
    async fn statement(&mut self, sql: &str) -> Result<(), Failed> {
        let started_ns = monotonic_ns();
        if self.interactive {
            tokio::select! {
                done = self.query(sql) => done?,
                _ = tokio::signal::ctrl_c() => return Err(Failed::Cancelled),
            }
        } else {
            self.query(sql).await?;
        }
        if self.timing {
            let ms = (monotonic_ns() - started_ns) as f64 / 1e6;
            drop(writeln!(io::stderr(), "Time: {ms:.1} ms"));
        }
        Ok(())
    }

    async fn query(&self, sql: &str) -> Result<(), Failed> {
        let rows = self.session.query(sql).await?.execute_stream().await;
        let rows = rows.map_err(session::Error::Query)?;
        let mut output = self.output()?;
        let count = output.rows(rows, self.format, self.rows_shown).await?;
        if self.format == QueryFormat::Table {
            let total = count.total;
            output.text(&match total - count.shown {
                0 if total == 1 => "1 row\n".to_owned(),
                0 => format!("{total} rows\n"),
                _ => format!("{total} rows, the first {} shown (\\rows N)\n", count.shown),
            })?;
        }
        Ok(())
    }

    fn output(&self) -> Result<Output, OutputError> {
        match &self.file {
            None => Output::open(None),
            Some(file) => Ok(Output::to(file.try_clone()?)),
        }
    }

    fn command(&mut self, line: &str) -> Result<Then, Failed> {
        let line = line.trim_end_matches(|end: char| end == ';' || end.is_whitespace());
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        match (name, argument) {
            ("q", _) => return Ok(Then::End),
            ("?", _) => self.say(&help()),
            ("d", "") => self.say(&relations()),
            ("d", name) => self.say(&describe(known(name)?)),
            ("sql", name) => self.say(known(name)?.sql),
            ("timing", _) => {
                self.timing = !self.timing;
                self.note(if self.timing {
                    "Timing is on.\n"
                } else {
                    "Timing is off.\n"
                });
            }
            ("format", wanted) => {
                let format = FORMATS.iter().find(|(format, _)| *format == wanted);
                let format = format.ok_or_else(|| {
                    usage(format!(
                        "no format is called {wanted}\nhint: \\format table, csv or json"
                    ))
                })?;
                self.format = format.1;
            }
            ("rows", n) => {
                let rows = n
                    .parse()
                    .ok()
                    .filter(|rows| (1..=MAX_ROWS_SHOWN).contains(rows));
                self.rows_shown = rows.ok_or_else(|| {
                    usage(format!("\\rows takes a number from 1 to {MAX_ROWS_SHOWN}"))
                })?;
            }
            ("o", "") => self.file = None,
            ("o", path) => {
                let path = PathBuf::from(path);
                let file = File::create(&path);
                let file = file.map_err(|source| OutputError::Create { path, source })?;
                self.file = Some(file);
            }
            (name, _) => return Err(usage(format!("no command \\{name}\nhint: \\? lists them"))),
        }
        Ok(Then::GoOn)
    }

    /// Text of the shell itself: never into a file of rows.
    fn say(&self, text: &str) {
        // A reader that went away ends the shell at its next statement.
        drop(io::stdout().write_all(text.as_bytes()));
    }

    fn note(&self, text: &str) {
        if self.interactive {
            self.say(text);
        }
    }
}

/// Stands for bytes that are no UTF-8; no text has it, it is not a character.
const NO_TEXT: char = '\u{FFFF}';

/// `bytes` as text, what is none of it replaced by [`NO_TEXT`].
fn readable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(NO_TEXT);
        }
    }
    text
}

fn known(name: &str) -> Result<&'static Model, Failed> {
    let name = name.trim_matches('"');
    models::named(name).ok_or_else(|| {
        usage(format!(
            "no table or view is called {name}\nhint: \\d lists them"
        ))
    })
}

fn help() -> String {
    let line = |(name, arguments, meaning): &(&str, &str, &str)| {
        format!("{:<24} {meaning}\n", format!("\\{name} {arguments}"))
    };
    COMMANDS.iter().map(line).collect()
}

fn relations() -> String {
    let row = |kind: &str, model: &Model| {
        vec![model.name.to_owned(), kind.to_owned(), model.grain.clone()]
    };
    let tables = models::tables().iter().map(|m| row("table", m));
    let views = models::views().iter().map(|m| row("view", m));
    let functions = functions::FUNCTIONS
        .iter()
        .map(|(name, meaning)| vec![name.to_string(), "function".to_owned(), meaning.to_string()]);
    let rows: Vec<_> = tables.chain(views).chain(functions).collect();
    format!("{}\n", grid(&["Name", "Kind", "Meaning"], &rows, false))
}

fn describe(model: &Model) -> String {
    let row = |column: &models::Column| {
        let better = match column.polarity {
            Some(Polarity::Lower) => "lower",
            Some(Polarity::Higher) => "higher",
            None => "",
        };
        vec![
            column.name.clone(),
            column.sql_type.clone(),
            column.unit.clone().unwrap_or_default(),
            better.to_owned(),
            column.meaning.clone(),
        ]
    };
    let rows: Vec<_> = model.columns.iter().map(row).collect();
    let table = grid(
        &["Column", "Type", "Unit", "Better", "Meaning"],
        &rows,
        false,
    );
    format!("{}: {}\n{table}\n", model.name, model.grain)
}

/// Where the shell remembers, by the XDG rules; its folder is the owner's only.
/// `None` where there is no home, or it cannot be written.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| {
        let path = std::env::var_os(name).map(PathBuf::from)?;
        path.is_absolute().then_some(path)
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))?
        .join("tapedeck");
    fs::metadata(&state)
        .map(drop)
        .or_else(|_| DirBuilder::new().recursive(true).mode(0o700).create(&state))
        .ok()?;
    Some(state.join("history"))
}
