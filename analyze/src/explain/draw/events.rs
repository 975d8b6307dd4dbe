//! What happened when: the events, and of the reads those that say the most.

use std::collections::BTreeSet;

use super::super::{Chunk, Event, Explanation, Read};
use super::text::{columns, count, cut, plain};
use super::{BLUE, BOLD, CYAN, DIM, GREEN, MAGENTA, Page, RED, YELLOW, ms};

/// Reads of a long answer that are shown at its beginning and at its end.
const READS_SHOWN: (usize, usize) = (10, 6);

/// Columns of an instant and of a gap's bar.
const INSTANT: usize = 11;
const GAP_BAR: usize = 8;

impl Page {
    pub(super) fn events(&mut self, e: &Explanation) {
        let Some((origin, _)) = e.span() else {
            return;
        };
        self.title("Events");
        let head = format!("{:>INSTANT$}  {:>INSTANT$}", "at", "after");
        let head = self.paint(DIM, &head);
        self.line(&head);
        let shown = shown_reads(&e.reads);
        let longest = longest_gap(&e.reads);
        let scale = longest.map_or(1, |(_, gap)| gap.max(1));
        let mut events = e.events.iter().peekable();
        let mut previous = origin;
        let mut index = 0;
        while let Some(read) = e.reads.get(index) {
            while let Some(event) = events.next_if(|event| event.t_ns < read.t_ns) {
                self.event(event, origin, &mut previous);
            }
            if shown.contains(&index) {
                let gap = read.t_ns - previous;
                // The wait for the first token would dwarf every gap.
                let gap = if is_first(e, read) { 0 } else { gap };
                let bar = ((gap.max(0) as f64 / scale as f64) * GAP_BAR as f64).round() as usize;
                let bar = "▪".repeat(bar.min(GAP_BAR));
                let mut notes = marks(e, read);
                if longest.is_some_and(|(longest, _)| longest == index) {
                    notes.push("longest gap");
                }
                self.read(read, origin, previous, &bar, &notes);
                previous = read.t_ns;
                index += 1;
            } else {
                let hidden = (index..e.reads.len())
                    .take_while(|i| !shown.contains(i))
                    .count();
                let hidden = &e.reads[index..index + hidden];
                self.hidden(hidden);
                previous = hidden.last().map_or(previous, |read| read.t_ns);
                index += hidden.len();
            }
        }
        for event in events {
            self.event(event, origin, &mut previous);
        }
    }

    fn instant(&self, t_ns: i64, origin: i64, previous: i64) -> String {
        let at = format!("{:>INSTANT$}", ms(t_ns - origin));
        let after = format!("{:>INSTANT$}", format!("+{}", ms(t_ns - previous)));
        format!("{at}  {}", self.paint(DIM, &after))
    }

    fn event(&mut self, event: &Event, origin: i64, previous: &mut i64) {
        let instant = self.instant(event.t_ns, origin, *previous);
        let name = self.paint(BOLD, event.event);
        self.line(&format!("{instant}  {:GAP_BAR$}  {name}", ""));
        *previous = event.t_ns;
    }

    fn read(&mut self, read: &Read, origin: i64, previous: i64, bar: &str, notes: &[&str]) {
        let instant = self.instant(read.t_ns, origin, previous);
        let bar = self.paint(YELLOW, &format!("{bar:GAP_BAR$}"));
        let together = match read.chunks.len() {
            1 => String::new(),
            _ => " (one read)".to_owned(),
        };
        let notes = match notes {
            [] => String::new(),
            notes => format!("  ◂ {}", notes.join(", ")),
        };
        let used = 2 * INSTANT + GAP_BAR + 6 + columns(&together) + columns(&notes);
        let kinds = cut(
            &kinds(&read.chunks),
            self.style.width().saturating_sub(used),
        );
        let used = used + columns(&kinds);
        let said: String = read
            .chunks
            .iter()
            .filter_map(|c| c.text.as_deref())
            .collect();
        let said = match (said.as_str(), self.style.width().saturating_sub(used + 3)) {
            ("", _) | (_, 0..4) => String::new(),
            (said, room) => format!(" \"{}\"", cut(&plain(said), room)),
        };
        let color = read.chunks.iter().find(|c| c.is_content_bearing());
        let kinds = self.paint(kind_color(color.or(read.chunks.first())), &kinds);
        let notes = self.paint(CYAN, &notes);
        self.line(&format!("{instant}  {bar}  {kinds}{said}{together}{notes}"));
    }

    fn hidden(&mut self, reads: &[Read]) {
        let chunks: usize = reads.iter().map(|read| read.chunks.len()).sum();
        let (Some(first), Some(last)) = (reads.first(), reads.last()) else {
            return;
        };
        let text = format!(
            "⋮ {}, {} left out, {} ms",
            count(reads.len(), "read"),
            count(chunks, "chunk"),
            ms(last.t_ns - first.t_ns)
        );
        let text = self.paint(DIM, &text);
        self.line(&format!("{:1$}{text}", "", 2 * INSTANT + 4));
    }
}

/// Positions of the reads that are drawn: both ends, the first and last token and
/// the longest gap.
fn shown_reads(reads: &[Read]) -> BTreeSet<usize> {
    let (head, tail) = READS_SHOWN;
    if reads.len() <= head + tail + 1 {
        return (0..reads.len()).collect();
    }
    let mut shown: BTreeSet<usize> = (0..head).collect();
    shown.extend(reads.len() - tail..reads.len());
    shown.extend(reads.iter().position(Read::is_content_bearing));
    shown.extend(reads.iter().rposition(Read::is_content_bearing));
    shown.extend(longest_gap(reads).map(|(index, _)| index));
    shown
}

/// The read that came longest after the one before, both with tokens.
fn longest_gap(reads: &[Read]) -> Option<(usize, i64)> {
    let bearing: Vec<usize> = (0..reads.len())
        .filter(|index| reads[*index].is_content_bearing())
        .collect();
    let gaps = bearing
        .windows(2)
        .map(|pair| (pair[1], reads[pair[1]].t_ns - reads[pair[0]].t_ns));
    gaps.max_by_key(|(_, gap)| *gap)
}

fn is_first(e: &Explanation, read: &Read) -> bool {
    let first = e.content_reads().next();
    first.is_none_or(|first| read.read_index <= first.read_index)
}

fn marks(e: &Explanation, read: &Read) -> Vec<&'static str> {
    let is = |other: Option<&Read>| other.is_some_and(|o| o.read_index == read.read_index);
    let mut marks = Vec::new();
    if is(e.content_reads().next()) {
        marks.push("first token");
    }
    if is(e.content_reads().next_back()) {
        marks.push("last token");
    }
    marks
}

/// `role, content ×3`.
fn kinds(chunks: &[Chunk]) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for chunk in chunks {
        match runs.last_mut() {
            Some((kind, n)) if *kind == chunk.kind => *n += 1,
            _ => runs.push((&chunk.kind, 1)),
        }
    }
    let run = |(kind, n): &(&str, usize)| match n {
        1 => (*kind).to_owned(),
        n => format!("{kind} ×{n}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

fn kind_color(chunk: Option<&Chunk>) -> &'static str {
    match chunk.map(|chunk| chunk.kind.as_str()) {
        Some("content") => GREEN,
        Some("reasoning") => MAGENTA,
        Some("tool") => BLUE,
        Some("error") => RED,
        _ => DIM,
    }
}
