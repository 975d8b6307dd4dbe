//! Data sets by name: what is wanted of one, and what it gave.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::WorkloadError;
use crate::lengths::PromptLengths;
use crate::prompts::{Prompt, line_by_line, prompt};
use crate::shaping::Shaping;
use crate::sonnet::{self, SonnetLengths};
use crate::tokens::{self, Tokenizer};
use crate::{files, fixed, folder, sessions};

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// One prompt, or `@FILE`.
    Prompt(String),
    LineByLine(PathBuf),
    /// Conversations; turns are pairs of prompt and completion.
    ShareGpt(PathBuf),
    /// Records of JSON, CSV or Parquet.
    Table {
        path: PathBuf,
        columns: TableColumns,
    },
    /// Made of random tokens.
    Random(RandomLengths),
    /// Random too, in groups that begin alike.
    Prefix(PrefixGroups),
    /// Lines of a poem.
    Sonnet {
        path: PathBuf,
        lengths: SonnetLengths,
    },
    /// One symbol, 1 to 30720 times; the two lengths beyond where `is_long`.
    SpeedBenchmark {
        is_long: bool,
    },
    /// A folder of prompts.
    Folder(PathBuf),
}

/// Columns or fields of a table; all but the prompt may be missing in a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableColumns {
    pub prompt: String,
    /// Output limit, a whole number of tokens.
    pub output_length: Option<String>,
    /// Rows with equal values are the turns of one conversation.
    pub session: Option<String>,
    /// What the model answered: the recorded reply of a conversation.
    pub reply: Option<String>,
    /// URL or file of an image.
    pub image: Option<String>,
}

/// Lengths of random prompts and their outputs, tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RandomLengths {
    pub input_tokens: u32,
    /// Lengths of the input, limits included, each as likely; stands for
    /// `input_tokens` and its ratio.
    pub input_range: Option<(u32, u32)>,
    /// Asked for as the output limit.
    pub output_tokens: Option<u32>,
    /// Lengths are uniform in `[n(1-r), n(1+r)]`, at least 1; below 1.
    pub range_ratio: f64,
    /// Tokens that all prompts begin with, on top of `input_tokens`.
    pub prefix_tokens: u32,
}

/// Random prompts in groups; all of a group begin with its `prefix_tokens`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefixGroups {
    pub lengths: RandomLengths,
    pub groups: u32,
    /// Where `None`, as many as make up the number of requests.
    pub prompts_per_group: Option<u32>,
}

/// What is wanted of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSpec {
    pub source: Source,
    pub tokenizer_path: Option<PathBuf>,
    pub skip_bad: bool,
    pub seed: u64,
    /// Prompts that will be sent at most. Data sets that sample stop there.
    pub limit: Option<usize>,
    pub lengths: PromptLengths,
    /// Output limit of every request, which then counts in ShareGPT's filter
    /// instead of the recorded completion.
    pub max_tokens: Option<u32>,
    /// Requests of a conversation at most; 1 makes every prompt a lone request.
    pub num_turns: usize,
    /// What is put around every prompt.
    pub shaping: Shaping,
}

impl DatasetSpec {
    /// Prompts that will be sent at most: those of all turns of all sessions.
    pub(crate) fn wanted(&self) -> Option<usize> {
        self.limit.map(|n| n.saturating_mul(self.num_turns))
    }

    /// All of `source`, as it is.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            tokenizer_path: None,
            skip_bad: false,
            seed: 0,
            limit: None,
            lengths: PromptLengths::default(),
            max_tokens: None,
            num_turns: 1,
            shaping: Shaping::default(),
        }
    }
}

/// Why a record of a data set is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Bad,
    FewTurns,
    FewPromptTokens,
    FewOutputTokens,
    ManyPromptTokens,
    ManyTokens,
    BelowMinimum,
    AboveMaximum,
}

impl Reason {
    /// As it stands in the settings of a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::FewTurns => "few_turns",
            Self::FewPromptTokens => "few_prompt_tokens",
            Self::FewOutputTokens => "few_output_tokens",
            Self::ManyPromptTokens => "many_prompt_tokens",
            Self::ManyTokens => "many_tokens",
            Self::BelowMinimum => "below_minimum",
            Self::AboveMaximum => "above_maximum",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Bad => "that cannot be used",
            Self::FewTurns => "of fewer than two turns",
            Self::FewPromptTokens => "with a prompt under 4 tokens",
            Self::FewOutputTokens => "with an answer under 4 tokens",
            Self::ManyPromptTokens => "with a prompt over 1024 tokens",
            Self::ManyTokens => "over 2048 tokens with their answer",
            Self::BelowMinimum => "with a prompt below the minimum length",
            Self::AboveMaximum => "with a prompt above the maximum length",
        }
    }
}

/// How many records are not sent, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut(BTreeMap<Reason, u64>);

impl LeftOut {
    pub(crate) fn add(&mut self, reason: Reason, n: u64) {
        if n > 0 {
            *self.0.entry(reason).or_default() += n;
        }
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.0.iter().map(|(reason, n)| (*reason, *n))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, n)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{n} {}", reason.words())?;
        }
        Ok(())
    }
}

/// Who counted tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CountedBy {
    /// Nobody: no length in tokens was needed.
    Nobody,
    /// UTF-8 bytes by 4: the lengths of ShareGPT without a tokenizer.
    Estimate,
    Tokenizer {
        path: PathBuf,
        content_hash: String,
    },
}

/// What a data set gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// In the order they are sent; never empty.
    pub prompts: Vec<Prompt>,
    /// Whole records of the file: sent, left out, or unused.
    pub records: u64,
    pub left_out: LeftOut,
    /// Records nobody looked at, because enough prompts were found before.
    pub unused: u64,
    /// What `--skip-bad` lost at the end of a broken file.
    pub lost: Option<String>,
    /// BLAKE3 of the file.
    pub source_hash: Option<String>,
    pub counted_by: CountedBy,
}

/// Prompts and what it took to get them; a data set's own part of [`Loaded`].
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) records: u64,
    pub(crate) left_out: LeftOut,
    pub(crate) unused: u64,
    pub(crate) lost: Option<String>,
    pub(crate) is_estimated: bool,
}

/// Reads, filters and samples a data set, and shapes its prompts.
///
/// # Errors
/// When it cannot be read, holds nothing that may be sent, or needs a tokenizer
/// or a feature that is not there.
pub fn load(spec: &DatasetSpec) -> Result<Loaded, WorkloadError> {
    check_path(&spec.source)?;
    let tokenizer = tokens::open(spec.tokenizer_path.as_deref())?;
    spec.lengths.check(tokenizer.as_ref())?;
    let mut gathered = gather(spec, tokenizer.as_ref())?;
    if gathered.prompts.is_empty() {
        return Err(nothing_left(spec, &gathered));
    }
    let changed = spec.shaping.apply(&mut gathered.prompts, spec.limit)?;
    if changed && let Some(tokenizer) = &tokenizer {
        tokens::count_prompts(tokenizer, &mut gathered.prompts)?;
    }
    let counted_by = match &tokenizer {
        Some(tokenizer) => CountedBy::Tokenizer {
            path: tokenizer.path().to_owned(),
            content_hash: tokenizer.content_hash().to_owned(),
        },
        None if gathered.is_estimated => CountedBy::Estimate,
        None => CountedBy::Nobody,
    };
    Ok(Loaded {
        prompts: gathered.prompts,
        records: gathered.records,
        left_out: gathered.left_out,
        unused: gathered.unused,
        lost: gathered.lost,
        source_hash: spec.source.hash()?,
        counted_by,
    })
}

/// A file is read more than once: to know its format, its rows and its hash.
fn check_path(source: &Source) -> Result<(), WorkloadError> {
    let Some(path) = source.path() else {
        return Ok(());
    };
    let Ok(found) = path.metadata() else {
        return Ok(());
    };
    match source {
        Source::Folder(_) if !found.is_dir() => Err(WorkloadError::NoFolder(path.to_owned())),
        Source::Folder(_) => Ok(()),
        _ if !found.is_file() => Err(WorkloadError::NoFile(path.to_owned())),
        _ => Ok(()),
    }
}

impl Source {
    /// The file or folder that is read.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Prompt(text) => text.strip_prefix('@').map(Path::new),
            Self::LineByLine(path)
            | Self::ShareGpt(path)
            | Self::Table { path, .. }
            | Self::Sonnet { path, .. }
            | Self::Folder(path) => Some(path),
            Self::Random(_) | Self::Prefix(_) | Self::SpeedBenchmark { .. } => None,
        }
    }

    fn hash(&self) -> Result<Option<String>, WorkloadError> {
        let hash = |path| match self {
            Self::Folder(_) => folder::hash(path),
            _ => files::hash(path),
        };
        self.path().map(hash).transpose()
    }
}

fn gather(spec: &DatasetSpec, tokenizer: Option<&Tokenizer>) -> Result<Gathered, WorkloadError> {
    let turns = spec.num_turns;
    let mut gathered = match &spec.source {
        Source::Prompt(text) => Gathered {
            // A session says it again and again.
            prompts: vec![prompt(text)?.into(); turns],
            records: 1,
            ..Gathered::default()
        },
        Source::LineByLine(path) => lines_of(path, spec.skip_bad, turns)?,
        Source::ShareGpt(path) => return share_gpt(path, spec, tokenizer),
        Source::Table { path, columns } => table(path, columns, spec)?,
        Source::Random(lengths) => random(*lengths, spec, tokenizer)?,
        Source::Prefix(groups) => prefix(groups, spec, tokenizer)?,
        Source::Sonnet { path, lengths } => sonnet::gather(path, *lengths, spec, tokenizer)?,
        Source::SpeedBenchmark { is_long } => {
            let prompts = fixed::speed_benchmark(*is_long);
            Gathered {
                records: prompts.len() as u64,
                prompts,
                ..Gathered::default()
            }
        }
        Source::Folder(path) => folder::gather(path, spec.skip_bad)?,
    };
    // Random prompts know their lengths by themselves.
    if !matches!(spec.source, Source::Random(_) | Source::Prefix(_)) {
        let left_out = &mut gathered.left_out;
        spec.lengths
            .apply(&mut gathered.prompts, tokenizer, left_out)?;
    }
    let is_lone = |prompt: &Prompt| prompt.turns.is_empty() && prompt.session_id.is_none();
    if turns > 1 && gathered.prompts.iter().all(is_lone) {
        gathered.prompts = sessions::in_groups(gathered.prompts, turns);
    }
    Ok(gathered)
}

fn lines_of(path: &Path, skip_bad: bool, turns: usize) -> Result<Gathered, WorkloadError> {
    let lines = line_by_line(path, skip_bad)?;
    let mut gathered = Gathered {
        records: lines.items.len() as u64 + lines.bad,
        prompts: lines.items.into_iter().map(Prompt::from).collect(),
        ..Gathered::default()
    };
    if turns > 1 {
        for prompt in &mut gathered.prompts {
            sessions::split(prompt, turns);
        }
    }
    gathered.left_out.add(Reason::Bad, lines.bad);
    Ok(gathered)
}

#[cfg(feature = "datasets")]
use crate::{
    random::gather as random, random::gather_groups as prefix, sharegpt::gather as share_gpt,
    table::gather as table,
};

#[cfg(not(feature = "datasets"))]
use not_built::{prefix, random, share_gpt, table};

#[cfg(not(feature = "datasets"))]
mod not_built {
    use super::{
        DatasetSpec, Gathered, Path, PrefixGroups, RandomLengths, TableColumns, Tokenizer,
        WorkloadError,
    };

    pub(super) fn share_gpt(
        _: &Path,
        _: &DatasetSpec,
        _: Option<&Tokenizer>,
    ) -> Result<Gathered, WorkloadError> {
        Err(WorkloadError::NotBuilt("--dataset sharegpt"))
    }

    pub(super) fn random(
        _: RandomLengths,
        _: &DatasetSpec,
        _: Option<&Tokenizer>,
    ) -> Result<Gathered, WorkloadError> {
        Err(WorkloadError::NotBuilt("--dataset random"))
    }

    pub(super) fn prefix(
        _: &PrefixGroups,
        _: &DatasetSpec,
        _: Option<&Tokenizer>,
    ) -> Result<Gathered, WorkloadError> {
        Err(WorkloadError::NotBuilt("--dataset prefix"))
    }

    pub(super) fn table(
        _: &Path,
        _: &TableColumns,
        _: &DatasetSpec,
    ) -> Result<Gathered, WorkloadError> {
        Err(WorkloadError::NotBuilt(
            "--dataset openqa (and longalpaca, table)",
        ))
    }
}

fn nothing_left(spec: &DatasetSpec, gathered: &Gathered) -> WorkloadError {
    match spec.source.path() {
        Some(path) if gathered.left_out.total() == 0 => WorkloadError::Empty(path.to_owned()),
        Some(path) => WorkloadError::AllLeftOut {
            path: path.to_owned(),
            records: gathered.records,
            left_out: gathered.left_out.to_string(),
        },
        None => WorkloadError::PromptLeftOut(gathered.left_out.to_string()),
    }
}
