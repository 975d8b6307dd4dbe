//! An explanation as text: a header, the time line, every read, the answer, and
//! the numbers under every definition. It says the same without colours.

mod events;
mod numbers;
mod text;

use std::collections::BTreeSet;

use self::text::{count, cut, joined, plain, wrap};
use super::{Explanation, Read};

/// How an explanation is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns; kept within [`Style::WIDTHS`].
    pub width: usize,
    /// With escape sequences: for a terminal.
    pub color: bool,
}

impl Style {
    /// Narrower breaks the table, wider is hard to read along.
    pub const WIDTHS: std::ops::RangeInclusive<usize> = 72..=140;
    /// Without a terminal.
    pub const DEFAULT_WIDTH: usize = 100;

    fn width(self) -> usize {
        self.width.clamp(*Self::WIDTHS.start(), *Self::WIDTHS.end())
    }
}

/// Lines of the answer's text, and of the reasoning before it.
const TEXT_LINES: usize = 3;

/// Columns of a phase's name and of its duration.
const NAME: usize = 11;
const DURATION: usize = 14;

/// Shades of a cell of the stream, from few reads to many.
const SHADES: [char; 4] = ['░', '▒', '▓', '█'];

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const BLUE: &str = "34";
const MAGENTA: &str = "35";
const CYAN: &str = "36";

/// Text under construction.
struct Page {
    text: String,
    style: Style,
}

impl Explanation {
    /// The explanation as text, ending in a newline.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let mut page = Page {
            text: String::new(),
            style,
        };
        page.header(self);
        page.time_line(self);
        page.events(self);
        page.answer(self);
        page.numbers(self);
        page.text
    }

    /// The explanation as JSON of version [`super::EXPLAIN_VERSION`]; all reads.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// First and last instant there is.
    fn span(&self) -> Option<(i64, i64)> {
        let events = self.events.iter().map(|e| e.t_ns);
        let instants = events.chain(self.reads.iter().map(|r| r.t_ns));
        let instants: BTreeSet<i64> = instants.collect();
        Some((*instants.first()?, *instants.last()?))
    }

    fn instant(&self, name: &str) -> Option<i64> {
        let mut events = self.events.iter();
        events.find(|e| e.event == name).map(|e| e.t_ns)
    }

    fn content_reads(&self) -> impl DoubleEndedIterator<Item = &Read> {
        self.reads.iter().filter(|r| r.is_content_bearing())
    }

    /// Where the time went: name, from, to.
    fn phases(&self) -> Vec<(&'static str, i64, i64)> {
        let sent = self.instant("sent");
        let connect = self.instant("connecting");
        let connected = self.instant("TLS done").or(self.instant("connected"));
        let issued = self.instant("dispatched").or(self.instant("received"));
        let end = self.instant("end");
        let first = self.content_reads().next().map(|r| r.t_ns);
        let last = self.content_reads().next_back().map(|r| r.t_ns);
        let phases = [
            ("scheduled", self.instant("scheduled"), issued.or(sent)),
            ("connect", connect, connected),
            ("send", connected.or(issued), sent),
            ("wait", sent, first.or(end)),
            ("answer", first, last),
            ("tail", last, end),
        ];
        let known = |(name, from, to): (_, Option<i64>, Option<i64>)| Some((name, from?, to?));
        phases.into_iter().filter_map(known).collect()
    }
}

impl Page {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.style.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    fn title(&mut self, text: &str) {
        let title = self.paint(BOLD, text);
        self.line("");
        self.line(&title);
    }

    fn header(&mut self, e: &Explanation) {
        let r = &e.request;
        let name = if e.name.is_empty() {
            &e.recording_id
        } else {
            &e.name
        };
        let title = cut(&plain(&format!("Request {} of {name}", r.request_id)), 40);
        let title = self.paint(BOLD, &title);
        let times = match e.attempts {
            1 => String::new(),
            n => format!(" · attempt {} of {n} sent", r.attempt),
        };
        let model = r
            .model
            .as_deref()
            .map(|m| format!(" · {}", cut(&plain(m), 30)));
        let model = model.unwrap_or_default();
        let phase = match r.phase.as_str() {
            "measure" => String::new(),
            phase => format!(" · phase {phase}"),
        };
        self.line(&format!("{title}{times} · {}{model}{phase}", r.api));
        let mut facts = vec![r.outcome.clone()];
        facts.extend(r.status.map(|s| format!("HTTP {s}")));
        facts.extend(
            r.finish_reason
                .as_deref()
                .map(|f| format!("finish {}", plain(f))),
        );
        let chunks: usize = e.reads.iter().map(|read| read.chunks.len()).sum();
        facts.push(match (chunks, r.answer_bytes) {
            (0, Some(bytes)) => format!("not streamed, {bytes} bytes"),
            (0, None) => "no answer".to_owned(),
            _ => format!(
                "{} in {}",
                count(chunks, "chunk"),
                count(e.reads.len(), "read")
            ),
        });
        facts.extend(r.conn_id.map(|id| match r.conn_reused {
            Some(true) => format!("connection {id}, used before"),
            _ => format!("connection {id}, new"),
        }));
        facts.extend(r.timestamp_source.as_deref().map(|s| format!("{s} stamps")));
        let color = if r.outcome == "ok" { GREEN } else { RED };
        for (number, line) in joined(&facts, self.style.width()).iter().enumerate() {
            match line.strip_prefix(r.outcome.as_str()) {
                Some(rest) if number == 0 => {
                    let line = self.paint(color, &r.outcome) + rest;
                    self.line(&line);
                }
                _ => self.line(line),
            }
        }
        if r.outcome == "unfinished" {
            self.line("It was in flight when the recorder stopped: no end was recorded.");
        }
        if let Some(error) = &r.error {
            let error = cut(&plain(error), self.style.width() - 7);
            let error = self.paint(RED, &error);
            self.line(&format!("error: {error}"));
        }
    }

    fn time_line(&mut self, e: &Explanation) {
        let Some((from, to)) = e.span().filter(|(from, to)| to > from) else {
            return;
        };
        let width = self.style.width() - NAME - DURATION;
        let cell = |t_ns: i64| {
            let share = (t_ns - from) as f64 / (to - from) as f64;
            ((share * width as f64) as usize).min(width - 1)
        };
        self.title("Time line (ms)");
        let (labels, ruler) = scale(width, (to - from) as f64 / 1e6);
        let ruler = self.paint(DIM, &ruler);
        self.line(&format!("{:NAME$}{labels}", ""));
        self.line(&format!("{:NAME$}{ruler}", ""));
        for (name, start, stop) in e.phases() {
            if stop < start {
                continue;
            }
            let (first, last) = (cell(start), cell(stop));
            let bar = match name {
                "answer" => {
                    let arrivals = e.content_reads().map(|read| cell(read.t_ns));
                    shades(arrivals, first..=last)
                }
                _ if first == last => "▏".to_owned(),
                "wait" => "━".repeat(last - first),
                _ => "▬".repeat(last - first),
            };
            let length = bar.chars().count();
            let bar = self.paint(phase_color(name), &bar);
            let space = " ".repeat(width.saturating_sub(first + length));
            let duration = format!("{:>DURATION$}", ms(stop - start));
            self.line(&format!("{name:NAME$}{:first$}{bar}{space}{duration}", ""));
        }
    }

    fn answer(&mut self, e: &Explanation) {
        for (title, kind) in [("Reasoning", "reasoning"), ("Answer", "content")] {
            let chunks = e.reads.iter().flat_map(|read| &read.chunks);
            let said: String = chunks
                .filter(|chunk| chunk.kind == kind)
                .filter_map(|chunk| chunk.text.as_deref())
                .collect();
            if said.is_empty() {
                continue;
            }
            self.title(title);
            let width = self.style.width() - 2;
            let lines = wrap(&plain(&said), width);
            for line in lines.iter().take(TEXT_LINES) {
                self.line(&format!("  {line}"));
            }
            if lines.len() > TEXT_LINES {
                let rest = said.chars().count();
                let rest = self.paint(DIM, &format!("  … {rest} characters in all"));
                self.line(&rest);
            }
        }
    }
}

fn phase_color(phase: &str) -> &'static str {
    match phase {
        "wait" => YELLOW,
        "answer" => GREEN,
        "tail" => DIM,
        _ => BLUE,
    }
}

/// Labels and ruler of the time line: the whole in four.
fn scale(width: usize, total_ms: f64) -> (String, String) {
    const PARTS: usize = 4;
    let mut labels = String::new();
    let mut ruler = String::new();
    for part in 0..=PARTS {
        let column = (width - 1) * part / PARTS;
        let text = format!("{:.1}", total_ms * part as f64 / PARTS as f64);
        // Under its mark; the last one ends with the ruler.
        let start = match part {
            0 => 0,
            PARTS => width - text.len(),
            _ => column.saturating_sub(text.len() / 2),
        };
        labels += &" ".repeat(start.saturating_sub(labels.chars().count()));
        labels += &text;
        ruler += &"─".repeat(column.saturating_sub(ruler.chars().count()));
        ruler += match part {
            0 => "├",
            PARTS => "┤",
            _ => "┼",
        };
    }
    (labels, ruler)
}

/// Cells from the first arrival to the last, darker where more arrived.
fn shades(arrivals: impl Iterator<Item = usize>, cells: std::ops::RangeInclusive<usize>) -> String {
    let mut counts = vec![0_usize; cells.end() - cells.start() + 1];
    for cell in arrivals {
        if let Some(count) = counts.get_mut(cell.saturating_sub(*cells.start())) {
            *count += 1;
        }
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let shade = |n: &usize| match n {
        0 => '·',
        n => SHADES[(n * SHADES.len()).div_ceil(most).clamp(1, SHADES.len()) - 1],
    };
    counts.iter().map(shade).collect()
}

fn ms(ns: i64) -> String {
    format!("{:.3}", ns as f64 / 1e6)
}
