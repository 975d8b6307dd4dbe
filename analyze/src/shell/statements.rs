//! Where a statement ends.

/// The longest statement taken; what is longer is no question a person asks.
pub const MAX_STATEMENT_BYTES: usize = 1 << 20;

/// What a text begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'t> {
    /// SQL without the `;` that ended it, and the text after.
    Statement(&'t str, &'t str),
    /// A line that begins with a backslash, without it, and the text after.
    Command(&'t str, &'t str),
    /// SQL that goes on.
    Open,
    /// Nothing but white space and comments.
    Blank,
}

/// The first statement or command of `text`. A `;` in quotes or in a comment ends
/// nothing; empty statements are skipped.
#[must_use]
pub fn next(text: &str) -> Next<'_> {
    let mut text = text.trim_start();
    loop {
        if let Some(command) = text.strip_prefix('\\') {
            let (line, rest) = command.split_once('\n').unwrap_or((command, ""));
            return Next::Command(line.trim(), rest);
        }
        let scan = scan(text);
        match scan.end {
            Some(end) if scan.has_words => return Next::Statement(&text[..end], &text[end + 1..]),
            Some(end) => text = text[end + 1..].trim_start(),
            None if scan.has_words => return Next::Open,
            None => return Next::Blank,
        }
    }
}

struct Scan {
    /// Of the `;`.
    end: Option<usize>,
    /// There is more than white space and comments before it.
    has_words: bool,
}

fn scan(text: &str) -> Scan {
    let mut has_words = false;
    let mut at = 0;
    while let Some(letter) = text[at..].chars().next() {
        let rest = &text[at..];
        let len = if letter == ';' {
            return Scan {
                end: Some(at),
                has_words,
            };
        } else if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let end = comment.find("*/");
            // What is not closed goes on: its words are still to come.
            has_words |= end.is_none();
            end.map_or(rest.len(), |end| end + 4)
        } else if letter == '\'' || letter == '"' {
            has_words = true;
            // A doubled quote is the end of one string and the start of another.
            rest[1..].find(letter).map_or(rest.len(), |end| end + 2)
        } else {
            has_words |= !letter.is_whitespace();
            letter.len_utf8()
        };
        at += len;
    }
    Scan {
        end: None,
        has_words,
    }
}
