//! An explanation as text: a header, the time line, every read, the answer, and
//! the numbers under every definition. It says the same without colours.

use std::collections::BTreeSet;

use crate::render::visible;

use super::{Chunk, Event, Explanation, Metric, Number, ProfileLine, Read};

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

/// Reads of a long answer that are shown at its beginning and at its end.
const READS_SHOWN: (usize, usize) = (10, 6);

/// Lines of the answer's text, and of the reasoning before it.
const TEXT_LINES: usize = 3;

/// Columns of a phase's name, of its duration, of an instant, of a gap's bar.
const NAME: usize = 11;
const DURATION: usize = 14;
const INSTANT: usize = 11;
const GAP_BAR: usize = 8;

/// Columns of a metric's name in the comparison.
const METRIC: usize = 15;

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

    fn events(&mut self, e: &Explanation) {
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

    fn numbers(&mut self, e: &Explanation) {
        self.title("The same request under every definition");
        let names: Vec<&str> = e.profiles.iter().map(|p| p.profile).collect();
        let column = |name: &str| name.len().max(9) + 2;
        let room = self.style.width() - METRIC - column("Tapedeck");
        let mut band: Vec<usize> = Vec::new();
        let mut used = 0;
        for (index, name) in names.iter().enumerate() {
            if used + column(name) > room && !band.is_empty() {
                self.band(e, &band);
                self.line("");
                band.clear();
                used = 0;
            }
            used += column(name);
            band.push(index);
        }
        self.band(e, &band);
        let legend = "▲ above Tapedeck's number, ▼ below it, – no number";
        let legend = self.paint(DIM, legend);
        self.line("");
        self.line(&legend);
        self.title("Why");
        for profile in &e.profiles {
            self.why(e, profile);
        }
    }

    /// A part of the comparison: our own column and those of some profiles.
    fn band(&mut self, e: &Explanation, profiles: &[usize]) {
        let column = |name: &str| name.len().max(9) + 2;
        let mut head = format!("{:METRIC$}{:>9}  ", "", "Tapedeck");
        for index in profiles {
            let name = e.profiles[*index].profile;
            head += &format!("{name:>width$}  ", width = column(name) - 2);
        }
        let head = self.paint(BOLD, head.trim_end());
        self.line(&head);
        for metric in &e.metrics {
            let ours = cell(metric, metric.tapedeck);
            let mut line = format!("{:METRIC$}", label(&metric.metric));
            line += &self.paint(BOLD, &format!("{ours:>9}"));
            line += "  ";
            for index in profiles {
                let profile = &e.profiles[*index];
                let number = metric
                    .profiles
                    .iter()
                    .find(|n| n.profile == profile.profile);
                line += &self.compared(metric, &ours, number, column(profile.profile));
            }
            self.line(&line);
        }
    }

    /// One cell: the number and how it stands to ours.
    fn compared(
        &self,
        metric: &Metric,
        ours: &str,
        number: Option<&Number>,
        width: usize,
    ) -> String {
        let value = number.and_then(|n| n.value);
        let theirs = cell(metric, value);
        let mark = match (value, metric.tapedeck) {
            (Some(value), Some(tapedeck)) if theirs != ours => {
                if value > tapedeck {
                    "▲"
                } else {
                    "▼"
                }
            }
            _ => "",
        };
        let text = format!("{theirs:>width$}{mark:1} ", width = width - 2);
        match (value, mark) {
            (None, _) => self.paint(DIM, &text),
            (_, "") => text,
            _ => self.paint(YELLOW, &text),
        }
    }

    fn why(&mut self, e: &Explanation, profile: &ProfileLine) {
        let width = self.style.width();
        let indent = METRIC + 1;
        let mut texts = vec![format!("{}: {}", profile.tool, profile.differs)];
        for (metrics, reason) in absent(e, profile.profile) {
            texts.push(match metrics.len() {
                n if n == e.metrics.len() => format!("no number: {reason}"),
                _ => format!("no {}: {reason}", metrics.join(", ")),
            });
        }
        let mut name = self.paint(CYAN, &format!("{:indent$}", profile.profile));
        for (number, text) in texts.iter().enumerate() {
            for line in wrap(text, width - indent) {
                let line = if number > 0 {
                    self.paint(DIM, &line)
                } else {
                    line
                };
                self.line(&format!("{name}{line}"));
                name = " ".repeat(indent);
            }
        }
    }
}

/// Metrics without a number, by the reason.
fn absent<'a>(e: &'a Explanation, profile: &str) -> Vec<(Vec<&'static str>, &'a str)> {
    let mut reasons: Vec<(Vec<&'static str>, &str)> = Vec::new();
    for metric in &e.metrics {
        let number = metric.profiles.iter().find(|n| n.profile == profile);
        let Some(reason) = number.and_then(|n| n.reason.as_deref()) else {
            continue;
        };
        let name = name(&metric.metric);
        match reasons.iter_mut().find(|(_, known)| *known == reason) {
            Some((names, _)) => names.push(name),
            None => reasons.push((vec![name], reason)),
        }
    }
    reasons
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

fn cell(metric: &Metric, value: Option<f64>) -> String {
    let decimals = if metric.unit == "tokens" { 0 } else { 2 };
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}"))
}

fn name(metric: &str) -> &'static str {
    match metric {
        "ttft_ms" => "TTFT",
        "tpot_ms" => "TPOT",
        "itl_ms" => "ITL",
        "e2el_ms" => "E2EL",
        "input_tokens" => "input tokens",
        "output_tokens" => "output tokens",
        _ => "tok/s",
    }
}

fn label(metric: &str) -> &'static str {
    match metric {
        "ttft_ms" => "TTFT ms",
        "tpot_ms" => "TPOT ms",
        "itl_ms" => "ITL mean ms",
        "e2el_ms" => "E2EL ms",
        "input_tokens" => "Input tokens",
        "output_tokens" => "Output tokens",
        _ => "tok/s",
    }
}

fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// `text` on one line and without what could steer a terminal.
fn plain(text: &str) -> String {
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

fn columns(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

/// `parts` in lines of at most `width` columns, with dots between.
fn joined(parts: &[String], width: usize) -> Vec<String> {
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
fn cut(text: &str, room: usize) -> String {
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
fn wrap(text: &str, width: usize) -> Vec<String> {
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
