//! The text format of Prometheus and OpenMetrics: what a server's `/metrics`
//! answers, as samples.
//!
//! ```text
//! name{label="value",…} 1.5 [timestamp] [# exemplar]
//! {"quoted name",label="value"} 1.5
//! ```
//!
//! `# HELP`, `# TYPE` and other comments say nothing that a sample needs, `# EOF`
//! ends the text. Timestamps are left out: a reader has its own instant of the
//! answer. A line that is none of these is counted, and the rest goes on.

/// Longest line that is looked at, in bytes.
const LINE_BYTES: usize = 64 * 1024;
/// Labels of one sample.
const LABELS: usize = 64;

/// One sample as the text has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    /// In the order of the text, escapes resolved.
    pub labels: Vec<(String, String)>,
    /// `NaN` and infinities are values.
    pub value: f64,
}

/// All samples of a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    pub samples: Vec<Sample>,
    /// Lines that are neither samples nor comments.
    pub malformed_lines: u64,
    /// Samples beyond the limit.
    pub left_out: u64,
}

/// Reads a text, keeping the first `limit` samples.
#[must_use]
pub fn parse(text: &[u8], limit: usize) -> Exposition {
    let mut found = Exposition::default();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix(b"#") {
            if comment.trim_ascii() == b"EOF" {
                break;
            }
            continue;
        }
        let short = (line.len() <= LINE_BYTES).then_some(line);
        let text = short.and_then(|line| std::str::from_utf8(line).ok());
        match text.and_then(sample) {
            None => found.malformed_lines += 1,
            Some(_) if found.samples.len() >= limit => found.left_out += 1,
            Some(sample) => found.samples.push(sample),
        }
    }
    found
}

fn sample(line: &str) -> Option<Sample> {
    let end = line
        .find(|c: char| c == '{' || c.is_ascii_whitespace())
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let mut name = name.to_owned();
    let mut labels = Vec::new();
    let mut rest = rest.trim_ascii_start();
    if let Some(inner) = rest.strip_prefix('{') {
        let quoted;
        (quoted, labels, rest) = braces(inner)?;
        if let Some(quoted) = quoted {
            // A name stands before the braces or in them.
            if !name.is_empty() {
                return None;
            }
            name = quoted;
        }
    }
    // Rust reads `NaN` and `+Inf` as they are written.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Sample {
        name,
        labels,
        value,
    })
}

type Labels = Vec<(String, String)>;

/// What stands between braces: a quoted name, if there is one, and labels; then
/// the text behind.
fn braces(text: &str) -> Option<(Option<String>, Labels, &str)> {
    let mut name = None;
    let mut labels = Vec::new();
    let mut rest = text.trim_ascii_start();
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((name, labels, behind));
        }
        let key;
        (key, rest) = match rest.strip_prefix('"') {
            Some(inner) => quoted(inner)?,
            None => {
                let end = rest.find(['=', ',', '}', '"'])?;
                (rest[..end].trim_ascii().to_owned(), &rest[end..])
            }
        };
        rest = rest.trim_ascii_start();
        if let Some(behind) = rest.strip_prefix('=') {
            let behind = behind.trim_ascii_start().strip_prefix('"')?;
            let value;
            (value, rest) = quoted(behind)?;
            if key.is_empty() || labels.len() >= LABELS {
                return None;
            }
            labels.push((key, value));
        } else if name.replace(key).is_some() {
            return None;
        }
        rest = rest.trim_ascii_start();
        rest = match rest.strip_prefix(',') {
            Some(behind) => behind.trim_ascii_start(),
            None if rest.starts_with('}') => rest,
            None => return None,
        };
    }
}

/// The text up to the closing quote, with `\\`, `\"` and `\n` resolved; then what
/// stands behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                // Kept as it is, as Prometheus does.
                other => value.extend(['\\', other]),
            },
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Option<Sample> {
        let found = parse(line.as_bytes(), 10);
        assert_eq!(found.samples.len() as u64 + found.malformed_lines, 1);
        found.samples.into_iter().next()
    }

    #[test]
    fn servers_say_it_in_these_ways() {
        let text = "# HELP vllm:num_requests_waiting Waiting.\n\
            # TYPE vllm:num_requests_waiting gauge\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"a\\\\b \\\"c\\\" \\nd, }e\"} 3.0\r\n\
            \n\
            llamacpp:requests_deferred 2\n\
            up 1 1395066363000\n\
            ttft_bucket { le = \"+Inf\" , } 8 # {trace_id=\"x\"} 0.5 1.1\n\
            {\"utf8.name\",\"a b\"=\"c\"} -1.5e3\n\
            quantile{quantile=\"0.5\"} NaN\n\
            limit +Inf\n\
            # EOF\n\
            behind 1\n";
        let found = parse(text.as_bytes(), 100);
        let shown: Vec<String> = found
            .samples
            .iter()
            .map(|s| format!("{} {:?} {}", s.name, s.labels, s.value))
            .collect();
        assert_eq!(
            shown,
            [
                r#"vllm:num_requests_waiting [("engine", "0"), ("model_name", "a\\b \"c\" \nd, }e")] 3"#,
                "llamacpp:requests_deferred [] 2",
                "up [] 1",
                r#"ttft_bucket [("le", "+Inf")] 8"#,
                r#"utf8.name [("a b", "c")] -1500"#,
                r#"quantile [("quantile", "0.5")] NaN"#,
                "limit [] inf",
            ]
        );
        assert_eq!(found.malformed_lines, 0);
        assert_eq!(parse(text.as_bytes(), 2).left_out, 5);
    }

    #[test]
    fn what_is_no_sample_is_counted() {
        for line in [
            "name",
            "name{",
            "name{a} 1",
            "name{a=1} 1",
            "name{a=\"1\" b=\"2\"} 1",
            "name{a=\"1} 1",
            "name{=\"1\"} 1",
            "{\"a\",\"b\"} 1",
            "name one",
            "<html>",
        ] {
            assert_eq!(one(line), None, "{line}");
        }
        assert_eq!(parse(b"a\xff 1\nb 1\n", 10).malformed_lines, 1);
        let long = format!("{} 1", "x".repeat(LINE_BYTES));
        assert_eq!(one(&long), None);
    }

    proptest! {
        #[test]
        fn any_labels_come_back(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,20}",
            labels in prop::collection::vec(("[a-z_][a-z0-9_]{0,9}", any::<String>()), 0..5),
            value in any::<f64>(),
        ) {
            let escape = |text: &str| {
                text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
            };
            // White space at the ends of lines is none of a value's, which is quoted.
            let pairs: Vec<String> = labels
                .iter()
                .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
                .collect();
            let line = format!("{name}{{{}}} {value}", pairs.join(","));
            let found = one(&line).unwrap();
            prop_assert_eq!(found.name, name);
            prop_assert_eq!(found.labels, labels);
            prop_assert!(found.value == value || (found.value.is_nan() && value.is_nan()));
        }

        #[test]
        fn nothing_panics_and_every_line_is_accounted_for(text in any::<Vec<u8>>(), limit in 0..4_usize) {
            let found = parse(&text, limit);
            prop_assert!(found.samples.len() <= limit);
            let lines = text.split(|b| *b == b'\n').count() as u64;
            prop_assert!(found.samples.len() as u64 + found.left_out + found.malformed_lines <= lines);
        }
    }
}
