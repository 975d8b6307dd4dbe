//! What a half-typed word may become.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

use super::statements::{self, Next};
use super::{COMMANDS, FORMATS};
use crate::models;

const KEYWORDS: [&str; 50] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "ORDER",
    "BY",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "JOIN",
    "LEFT",
    "RIGHT",
    "FULL",
    "INNER",
    "CROSS",
    "ON",
    "USING",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS",
    "NULL",
    "LIKE",
    "BETWEEN",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "CAST",
    "DISTINCT",
    "UNION",
    "ALL",
    "WITH",
    "OVER",
    "PARTITION",
    "ROWS",
    "FILTER",
    "WITHIN",
    "ASC",
    "DESC",
    "NULLS",
    "FIRST",
    "LAST",
    "EXPLAIN",
    "ANALYZE",
    "DESCRIBE",
    "SHOW",
];

/// The words that the shell knows.
#[derive(Debug)]
pub struct Words {
    /// Tables and views.
    relations: Vec<String>,
    /// Relations, columns, functions and keywords.
    all: Vec<String>,
}

impl Words {
    /// All words of the definitions, and `functions` of the engine.
    #[must_use]
    pub fn new(functions: impl IntoIterator<Item = String>) -> Self {
        let known = || models::views().iter().chain(models::tables());
        let mut relations: Vec<String> = known().map(|m| m.name.to_owned()).collect();
        relations.sort();
        let columns = known().flat_map(|m| m.columns.iter().map(|c| c.name.clone()));
        let keywords = KEYWORDS.iter().map(|&word| word.to_owned());
        let mut all: Vec<String> = relations.iter().cloned().chain(columns).collect();
        all.extend(functions);
        all.extend(keywords);
        all.sort();
        all.dedup();
        Self { relations, all }
    }

    /// Where the word at `cursor` begins, and what it may become.
    #[must_use]
    pub fn complete(&self, line: &str, cursor: usize) -> (usize, Vec<String>) {
        let typed = &line[..cursor];
        let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let start = typed.trim_end_matches(is_word).len();
        let (before, word) = typed.split_at(start);
        let starting = |words: &[String]| -> Vec<String> {
            let matching = words.iter().filter(|w| {
                let head = w.get(..word.len());
                head.is_some_and(|head| head.eq_ignore_ascii_case(word))
            });
            matching.map(|w| in_case_of(word, w)).collect()
        };
        let list = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let found = match before.trim_start().trim_end() {
            "\\" => starting(&list(&COMMANDS.map(|(name, _, _)| name))),
            "\\d" | "\\sql" => starting(&self.relations),
            "\\format" => starting(&list(&FORMATS.map(|(name, _)| name))),
            command if command.starts_with('\\') => Vec::new(),
            _ if word.is_empty() => Vec::new(),
            _ => starting(&self.all),
        };
        (start, found)
    }
}

/// Keywords come in the case that was begun; names are as they are.
fn in_case_of(word: &str, found: &str) -> String {
    if KEYWORDS.contains(&found) && word.starts_with(char::is_lowercase) {
        found.to_ascii_lowercase()
    } else {
        found.to_owned()
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        cursor: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(Self::complete(self, line, cursor))
    }
}

impl Validator for Words {
    /// A line is taken when its statement has ended, so that all of it can be edited.
    fn validate(&self, line: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match statements::next(line.input()) {
            Next::Open => ValidationResult::Incomplete,
            Next::Statement(..) | Next::Command(..) | Next::Blank => ValidationResult::Valid(None),
        })
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}

impl Helper for Words {}
