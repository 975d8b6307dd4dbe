//! A trace becomes a recording: requests with their offsets and lengths, and
//! responses with outcome `imported`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tapedeck_clock::RunClock;
use tapedeck_recording::manifest::Workload;
use tapedeck_recording::{
    Content, Durability, EventBatch, Manifest, MarkRow, Outcome, Privacy, RequestRow, ResponseRow,
    SegmentLimits, Writer, WriterOptions, body_hash,
};
use tapedeck_run::manifest::{Described, describe};
use tapedeck_run::output::print_counts;
use tapedeck_wire::dialect::Api;
use tapedeck_workload::trace::{self, Lint, Row, Trace, TraceSpec};

use crate::cli::{From, ImportArgs, TraceArgs};

/// Source of lengths that a trace brings.
pub(crate) const COUNTED_BY_TRACE: &str = "trace";

/// Rows handed to the writer at once.
const BATCH_ROWS: usize = 2_048;

/// A trace that was read, and what is odd about it.
#[derive(Debug)]
pub struct Imported {
    pub trace: Trace,
    pub lint: Lint,
    dequantized_ns: Option<i64>,
    api: Api,
    seed: u64,
}

/// Carries out `replay import`.
///
/// # Errors
/// When the trace cannot be read or the recording cannot be written.
pub fn import(args: &ImportArgs) -> Result<()> {
    let imported = Imported::load(&args.trace, &args.from)?;
    let name = args.name.clone().unwrap_or_else(|| imported.name());
    let labels = args.labels.iter().cloned().collect();
    let described = imported.described(name, labels);
    imported.write(&args.out, &described, imported.trace.rows.len())?;
    eprintln!("recorded {}", args.out.display());
    if args.json {
        print_counts(&[&args.out], imported.trace.rows.len() as u64, 0);
    }
    Ok(())
}

impl Imported {
    /// Reads the trace and says on stderr what it is and what is odd about it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(path: &Path, args: &TraceArgs) -> Result<Self> {
        let format = match args.from {
            Some(From::Trace(format)) => Some(format),
            Some(From::Recording) => {
                bail!(
                    "{} is to be a recording, which needs no import",
                    path.display()
                )
            }
            None => None,
        };
        let mut trace = trace::read(&TraceSpec {
            path: path.to_owned(),
            format,
            skip_bad: args.skip_bad,
            block_size: args.trace_block_size,
            seed: args.seed,
        })?;
        let lint = trace.lint();
        let guessed = if format.is_none() {
            ", by its looks"
        } else {
            ""
        };
        eprintln!("{} is {}{guessed}", path.display(), trace.format.as_str());
        eprintln!("{lint}");
        let dequantized_ns = args
            .dequantize
            .then(|| trace.dequantize(args.seed))
            .flatten();
        if let Some(step_ns) = dequantized_ns {
            let step_s = step_ns as f64 / 1e9;
            eprintln!(
                "instants are spread over steps of {step_s} s, seed {}",
                args.seed
            );
        }
        Ok(Self {
            trace,
            lint,
            dequantized_ns,
            api: args.api,
            seed: args.seed,
        })
    }

    /// The trace's file name.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.trace.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Arrival of a row from that of the first, ns.
    pub(crate) fn offset_ns(&self, t_ns: i64) -> i64 {
        t_ns.saturating_sub(self.trace.rows[0].t_ns)
    }

    /// The request of row `index`, which is its id.
    #[must_use]
    pub fn request(&self, index: usize) -> RequestRow {
        let row = &self.trace.rows[index];
        let content = row.content.as_ref();
        let api = content.map_or(self.api, |c| api_of(&c.url_path));
        let own_path = || {
            let path = api.dialect().path(row.model.as_deref(), row.stream);
            path.unwrap_or_default().into()
        };
        let body = content.map(|c| c.body.clone());
        let has_blocks = !row.blocks.is_empty();
        let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        RequestRow {
            session_id: row.session.clone(),
            turn: row.turn,
            parent_request_id: row.parent.map(|parent| parent as i64),
            api: api.as_str().into(),
            url_path: content.map_or_else(own_path, |c| Arc::clone(&c.url_path)),
            model: row.model.clone(),
            stream: row.stream,
            t_scheduled_ns: Some(self.offset_ns(row.t_ns)),
            body_bytes: body.as_ref().map_or(0, |b| b.len() as i64),
            body_hash: body.as_ref().map(|b| body_hash(b).into()),
            body,
            input_tokens: row.input_tokens.map(count),
            input_tokens_source: row.input_tokens.map(|_| COUNTED_BY_TRACE.into()),
            max_output_tokens: content.and_then(|c| c.max_output_tokens),
            block_size: self.trace.block_size.filter(|_| has_blocks).map(count),
            block_runs: has_blocks.then(|| row.blocks.to_vec().into()),
            ..RequestRow::blank(index as i64)
        }
    }

    fn response(&self, index: usize) -> ResponseRow {
        let row: &Row = &self.trace.rows[index];
        let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let counted = row.input_tokens.or(row.output_tokens).is_some();
        ResponseRow {
            t_end_ns: row.t_end_ns.map(|t| self.offset_ns(t)),
            input_tokens: row.input_tokens.map(count),
            output_tokens: row.output_tokens.map(count),
            usage_source: counted.then(|| COUNTED_BY_TRACE.into()),
            ..ResponseRow::blank(index as i64, Outcome::Imported)
        }
    }

    /// What the manifest says of where this came from.
    #[must_use]
    pub fn workload(&self) -> Workload {
        Workload {
            kind: self.trace.format.as_str().to_owned(),
            path: Some(self.trace.path.display().to_string()),
            content_hash: Some(self.trace.content_hash.clone()),
            seed: self.seed,
        }
    }

    /// The dialect of the requests' API, for whoever replays the import.
    #[must_use]
    pub fn dialect(&self) -> Value {
        match self.api {
            Api::Dialect(dialect) => dialect.recorded.clone(),
            Api::OpenAiChat | Api::OpenAiCompletions => Value::Null,
        }
    }

    #[must_use]
    pub fn settings(&self) -> Value {
        let lint = &self.lint;
        json!({
            "from": self.trace.format.as_str(),
            "block_size": self.trace.block_size,
            "dialect": self.dialect(),
            "dequantized_s": self.dequantized_ns.map(|ns| ns as f64 / 1e9),
            "seed": self.seed,
            "rows": lint.rows,
            "bad_rows": lint.bad,
            "first_bad_row": lint.first_bad,
            "other_requests": lint.other,
            "out_of_order": lint.out_of_order,
            "same_instant": lint.same_instant,
            "resolution_s": lint.resolution_ns as f64 / 1e9,
            "quantum_s": lint.quantum.map(|(ns, _)| ns as f64 / 1e9),
            "gap_cv": lint.gap_cv,
            "blocks": lint.blocks.map(|b| b.blocks),
            "ideal_block_hits": lint.blocks.map(|b| b.hits),
        })
    }

    fn described(
        &self,
        name: String,
        labels: std::collections::BTreeMap<String, String>,
    ) -> Described {
        Described {
            name,
            labels,
            target: String::new(),
            settings: self.settings(),
            workload: self.workload(),
        }
    }

    /// Writes the first `number` rows into the new recording `dir`.
    fn write(&self, dir: &Path, described: &Described, number: usize) -> Result<()> {
        let privacy = Privacy::new(Content::Full).context("cannot read a key")?;
        let manifest = Manifest {
            target: None,
            ..describe(RunClock::start(), described, &privacy)
        };
        let options = WriterOptions {
            // Nothing is lost that cannot be imported again.
            durability: Durability::None,
            ..SegmentLimits::default().into()
        };
        let writer = Writer::create(dir, manifest, options)?;
        let sink = writer.sink();
        let mark = MarkRow {
            t_ns: 0,
            name: "imported".into(),
            detail: self.settings().to_string().into(),
        };
        let mut marks = vec![mark];
        for begin in (0..number).step_by(BATCH_ROWS) {
            let indices = begin..number.min(begin + BATCH_ROWS);
            let batch = EventBatch {
                requests: indices.clone().map(|i| self.request(i)).collect(),
                responses: indices.map(|i| self.response(i)).collect(),
                marks: std::mem::take(&mut marks),
                ..EventBatch::default()
            };
            // A writer that has stopped says why below.
            if sink.push(batch).is_err() {
                break;
            }
        }
        writer
            .finish()
            .with_context(|| format!("the recording {} is not complete", dir.display()))?;
        Ok(())
    }

    /// A recording in `dir` that SQL can choose from.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_for_sql(&self, dir: &Path) -> Result<()> {
        let described = self.described(self.name(), std::collections::BTreeMap::new());
        self.write(dir, &described, self.trace.rows.len())
    }
}

fn api_of(url_path: &str) -> Api {
    if url_path.ends_with("/chat/completions") {
        Api::OpenAiChat
    } else {
        Api::OpenAiCompletions
    }
}
