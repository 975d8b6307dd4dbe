//! Text that fits into columns of a terminal.

use crate::render::visible;

pub(super) fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// `text` on one line and without what could steer a terminal.
pub(super) fn plain(text: &str) -> String {
    let safe = |c: char| match c {
        '\n' => '↵',
        '\t' => ' ',
        // Marks that turn the direction of the text around them.
        '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '·',
        c => visible(c),
    };
    text.chars().map(safe).collect()
}

/// Columns that a character takes: two for East Asian text and pictures.
fn width_of(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

pub(super) fn columns(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

/// `parts` in lines of at most `width` columns, with dots between.
pub(super) fn joined(parts: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if columns(line) + columns(part) + 3 <= width => {
                line.push_str(" · ");
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

/// `text` in at most `room` columns.
pub(super) fn cut(text: &str, room: usize) -> String {
    if columns(text) <= room {
        return text.to_owned();
    }
    let mut used = 1;
    let fits = |c: &char| {
        used += width_of(*c);
        used <= room
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// `text` in lines of at most `width` columns, broken at spaces where there are.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_inclusive(' ') {
        if columns(&line) + columns(word.trim_end()) > width && !line.is_empty() {
            lines.push(line.trim_end().to_owned());
            line.clear();
        }
        for c in word.chars() {
            if columns(&line) + width_of(c) > width && c != ' ' {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    if !line.trim_end().is_empty() {
        lines.push(line.trim_end().to_owned());
    }
    lines
}
