//! Titles, lines and tables as plain text or Markdown.

use crate::render::{grid, visible};

/// Columns of a terminal that everything fits into, but for paths.
pub(super) const WIDTH: usize = 100;

/// Text, or a table; formats differ in how it is drawn.
pub(super) enum Block {
    Title(String),
    Line(String),
    Table {
        heading: String,
        header: Vec<&'static str>,
        rows: Vec<Vec<String>>,
        /// Leading columns that are words; those behind are numbers, aligned at the
        /// right, but for the last where that is a word.
        words: usize,
        ends_in_word: bool,
    },
}

impl Block {
    pub(super) fn draw(&self, is_markdown: bool) -> String {
        match self {
            Self::Title(text) if is_markdown => format!("## {text}\n\n"),
            Self::Title(text) => {
                format!("{text}\n{}\n", "═".repeat(text.chars().count().min(WIDTH)))
            }
            Self::Line(text) if is_markdown => format!("{}\n\n", text.trim_start()),
            Self::Line(text) => format!("{text}\n"),
            Self::Table {
                heading,
                header,
                rows,
                ..
            } if is_markdown => {
                let width = rows.iter().map(Vec::len).max().unwrap_or(header.len());
                let mut header = header.clone();
                header.resize(width, "");
                let heading = match heading.as_str() {
                    "" => String::new(),
                    text => format!("### {text}\n\n"),
                };
                format!("{heading}{}\n\n", grid(&header, rows, true))
            }
            Self::Table {
                heading,
                header,
                rows,
                words,
                ends_in_word,
            } => {
                let heading = match heading.as_str() {
                    "" => String::new(),
                    text => format!("\n{text}\n"),
                };
                let is_left = |column: usize, columns: usize| {
                    column < *words || (*ends_in_word && column + 1 == columns)
                };
                heading + &aligned(header, rows, is_left)
            }
        }
    }
}

/// Columns two apart, with a rule below the header; what is too long for the line
/// wraps under its own column.
fn aligned(
    header: &[&str],
    rows: &[Vec<String>],
    is_left: impl Fn(usize, usize) -> bool,
) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(header.len());
    let length = |text: &str| text.chars().count();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| length(cell)).max().unwrap_or(0);
        longest.max(header.get(column).map_or(0, |h| length(h)))
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::from(" ");
        for (column, cell) in cells.iter().enumerate() {
            let cell: String = cell.chars().map(visible).collect();
            let gap = " ".repeat(widths[column].saturating_sub(length(&cell)));
            text.push(' ');
            if is_left(column, columns) {
                text.push_str(&format!("{cell}{gap} "));
            } else {
                text.push_str(&format!("{gap}{cell} "));
            }
        }
        wrapped(text.trim_end(), &widths) + "\n"
    };
    let mut text = String::new();
    if !header.is_empty() {
        text.push_str(&line(header.to_vec()));
        let ruled = 2 * columns + widths.iter().sum::<usize>();
        text.push_str(&format!(
            "  {}\n",
            "─".repeat(ruled.saturating_sub(2).min(WIDTH - 2))
        ));
    }
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Breaks `line` at spaces behind [`WIDTH`]; what follows stands below the last
/// column.
fn wrapped(line: &str, widths: &[usize]) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    let (_, before) = widths.split_last().unwrap_or((&0, &[]));
    let indent = (2 + before.iter().map(|w| w + 2).sum::<usize>()).min(WIDTH / 2);
    let mut text = String::new();
    let mut rest: Vec<char> = line.chars().collect();
    while rest.len() > WIDTH {
        let spaces = (indent + 1..=WIDTH).rev();
        let cut = spaces.clone().find(|i| rest[*i] == ' ');
        // A word longer than the line stays whole.
        let Some(cut) = cut.or_else(|| (WIDTH..rest.len()).find(|i| rest[*i] == ' ')) else {
            break;
        };
        let tail = rest.split_off(cut);
        text.extend(rest);
        text.push('\n');
        rest = " ".repeat(indent).chars().collect();
        rest.extend(tail.into_iter().skip(1));
    }
    text.extend(rest);
    text
}
