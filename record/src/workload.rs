//! What the user typed about what is to be sent.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedI64ValueParser;
use clap::{Args, ValueEnum};
use tapedeck_run::args::parse_duration;
use tapedeck_workload::dialogue::{Replies, ThinkTime};
use tapedeck_workload::shaping::Template;

use crate::accepted::AcceptedArgs;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Workload")]
pub struct WorkloadArgs {
    /// Data set to take prompts from.
    #[arg(long, alias = "dataset-name", value_enum)]
    pub dataset: Option<Dataset>,
    /// File of the data set, plain or gzip; a folder for `prompts`. Of a hub:
    /// hf:OWNER/NAME[/FILE][@REVISION] or modelscope:….
    #[arg(long, alias = "prompts-dir", value_name = "PATH")]
    pub dataset_path: Option<PathBuf>,
    /// Shell command whose standard output is the data set, instead of a file.
    #[arg(long, value_name = "COMMAND", conflicts_with = "dataset_path")]
    pub dataset_command: Option<String>,
    /// One prompt for every request; @FILE reads it from a file.
    #[arg(long, value_name = "TEXT|@FILE", conflicts_with = "dataset")]
    pub prompt: Option<String>,
    /// The model's tokenizer.json, a folder that holds one, or a model of a hub:
    /// OWNER/NAME, hf:… or modelscope:…. Counts the input tokens of every request,
    /// without those of a chat template.
    #[arg(long, alias = "tokenizer", value_name = "PATH")]
    pub tokenizer_path: Option<PathBuf>,
    /// Leave out records of the data set that cannot be used, and count them.
    #[arg(long)]
    pub skip_bad: bool,
    /// Governs workload and schedule: equal seeds, equal requests.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub columns: ColumnArgs,
    #[command(flatten)]
    pub around: AroundArgs,
    #[command(flatten)]
    pub lengths: LengthArgs,
    #[command(flatten)]
    pub made: MadeArgs,
    #[command(flatten)]
    pub sessions: SessionArgs,
    #[command(flatten)]
    pub hub: HubArgs,
    #[command(flatten)]
    pub accepted: AcceptedArgs,
}

/// Columns of CSV and Parquet, fields of JSON.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tables")]
pub struct ColumnArgs {
    /// Column or field that holds the prompt (table, openqa, longalpaca). Default
    /// for openqa: question, for longalpaca: instruction.
    #[arg(long, value_name = "NAME")]
    pub prompt_column: Option<String>,
    /// Column that holds the output limit, tokens.
    #[arg(long, value_name = "NAME")]
    pub output_length_column: Option<String>,
    /// Column that names the session: its rows are turns, in their order
    /// (--num-turns).
    #[arg(long, value_name = "NAME")]
    pub session_column: Option<String>,
    /// Column that holds the model's answer, for --multi-turn-replies recorded.
    #[arg(long, value_name = "NAME")]
    pub reply_column: Option<String>,
    /// Column that holds the URL or the file of an image.
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,
}

/// What is put around every prompt.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Workload")]
pub struct AroundArgs {
    /// System message before every conversation that has none; @FILE reads it from
    /// a file.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub system_prompt: Option<String>,
    /// As --system-prompt @FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    pub system_prompt_path: Option<PathBuf>,
    /// Text around prompts for completion APIs, as byzer-perf writes it; auto
    /// leaves it to the server.
    #[arg(long, value_enum, default_value = "auto")]
    pub template: TemplateName,
    /// Image to send with every prompt: a URL, or a file (PNG, JPEG, GIF, WebP, at
    /// most 20 MiB) that is put into the body.
    #[arg(long = "image", value_name = "URL|FILE", num_args = 1..)]
    pub images: Vec<String>,
    /// Begin every prompt with digits made of this text and the prompt's place, so
    /// that no prefix cache knows it. Another salt, other digits.
    #[arg(long, value_name = "TEXT")]
    pub salt: Option<String>,
}

/// Limits are included.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Workload")]
pub struct LengthArgs {
    /// Leave out prompts of fewer characters.
    #[arg(long, value_name = "N")]
    pub min_prompt_chars: Option<u32>,
    /// Leave out prompts of more characters.
    #[arg(long, value_name = "N")]
    pub max_prompt_chars: Option<u32>,
    /// Leave out prompts of fewer tokens; needs --tokenizer-path.
    #[arg(long, value_name = "N", requires = "tokenizer_path")]
    pub min_prompt_tokens: Option<u32>,
    /// Leave out prompts of more tokens; needs --tokenizer-path.
    #[arg(long, value_name = "N", requires = "tokenizer_path")]
    pub max_prompt_tokens: Option<u32>,
    /// As EvalScope has it: tokens with --tokenizer-path, else characters. For
    /// random and prefix the range that lengths are drawn from, evenly.
    #[arg(long, value_name = "N")]
    pub min_prompt_length: Option<u32>,
    /// The other end of --min-prompt-length.
    #[arg(long, value_name = "N")]
    pub max_prompt_length: Option<u32>,
}

/// Longest random prompt, prefix or output, tokens.
const MAX_RANDOM_TOKENS: i64 = 10_000_000;

/// Groups of prompts, and prompts of a group, at most.
const MAX_GROUPS: i64 = 100_000;

fn tokens_from(least: i64) -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(least..=MAX_RANDOM_TOKENS)
}

/// Lengths of prompts that are made and not read.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Prompts that are made (random, prefix, sonnet)")]
pub struct MadeArgs {
    /// Tokens of a prompt: exact for random and prefix, as --tokenizer-path counts;
    /// about so many for sonnet (default 550).
    #[arg(long, aliases = ["random-input-len", "sonnet-input-len", "prefix-repetition-suffix-len", "gsp-question-len"], value_name = "N", value_parser = tokens_from(1))]
    pub input_tokens: Option<u32>,
    /// Output limit; add --ignore-eos to have it reached. For sonnet 150 by
    /// default; for sharegpt instead of the recorded answers' lengths.
    #[arg(long, aliases = ["random-output-len", "sonnet-output-len", "sharegpt-output-len", "prefix-repetition-output-len", "gsp-output-len"], value_name = "N", value_parser = tokens_from(1))]
    pub output_tokens: Option<u32>,
    /// Draw both lengths from [N*(1-R), N*(1+R)], evenly; 0 to below 1.
    #[arg(long, alias = "range-ratio", value_name = "R", value_parser = parse_range_ratio)]
    pub random_range_ratio: Option<f64>,
    /// Tokens that all prompts begin with: for random and prefix (there of a group)
    /// on top of --input-tokens, for sonnet part of them (default 200).
    #[arg(long, aliases = ["random-prefix-len", "sonnet-prefix-len", "prefix-repetition-prefix-len", "gsp-system-prompt-len"], value_name = "N", value_parser = tokens_from(0))]
    pub prefix_length: Option<u32>,
    /// Groups of prompts that begin alike (prefix); default 10.
    #[arg(long, aliases = ["prefix-repetition-num-prefixes", "gsp-num-groups"], value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_GROUPS))]
    pub prefix_groups: Option<u32>,
    /// Prompts of each group; default: --number shared out.
    #[arg(long, alias = "gsp-prompts-per-group", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_GROUPS))]
    pub group_prompts: Option<u32>,
}

/// Turns of a session at most: a bound on memory and on what is asked of a file.
const MAX_TURNS: i64 = 100;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sessions")]
pub struct SessionArgs {
    /// Requests of a session at most. Each turn is sent when the one before is
    /// done and carries all that was said; --parallel is then sessions at a time.
    /// A turn that fails ends its session. Prompts without a session of their own
    /// are put together, N consecutive ones.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_TURNS))]
    pub num_turns: u16,
    /// What a later turn carries of the answers before it: the server's own, or
    /// those of the data set.
    #[arg(long, value_enum, default_value = "live")]
    pub multi_turn_replies: RepliesName,
    /// Wait before each later turn: 2s, or 1s..5s for evenly drawn ones.
    #[arg(long, value_name = "D|D..D", default_value = "0", value_parser = parse_think)]
    pub think_time: ThinkTime,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Hubs")]
pub struct HubArgs {
    /// Address of the hub or of a mirror, instead of HF_ENDPOINT or
    /// MODELSCOPE_ENDPOINT.
    #[arg(long, value_name = "URL")]
    pub hub_url: Option<String>,
    /// Folder for downloads; default: the user's cache.
    #[arg(long, value_name = "DIR")]
    pub hub_cache: Option<PathBuf>,
    /// Download nothing: what is in the cache has to do.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Dataset {
    /// Each line a prompt: text, a JSON array of messages, or a whole JSON body.
    LineByLine,
    /// ShareGPT conversations (JSON array or lines): a seeded sample of first
    /// turns, the second turn's length as output limit, with the length filter of
    /// Aphrodite's and vLLM's benchmarks. Without --tokenizer-path a token is
    /// taken for 4 bytes of text.
    #[value(name = "sharegpt", alias = "share_gpt")]
    ShareGpt,
    /// OpenQA: JSON records with the prompt in the field `question`, in the
    /// file's order.
    #[value(name = "openqa", alias = "open_qa")]
    OpenQa,
    /// LongAlpaca: JSON records with the prompt in the field `instruction`, in the
    /// file's order.
    #[value(name = "longalpaca", alias = "long_alpaca")]
    LongAlpaca,
    /// JSON records (lines or array), CSV or Parquet with the prompt in
    /// --prompt-column, in the file's order.
    #[value(alias = "custom")]
    Table,
    /// Random tokens, exact in number: --input-tokens, --tokenizer-path.
    Random,
    /// Random tokens in --prefix-groups that begin alike for --prefix-length tokens.
    #[value(aliases = ["prefix_repetition", "generated-shared-prefix"])]
    Prefix,
    /// Lines of a poem (--dataset-path), as Aphrodite's and vLLM's benchmarks draw
    /// them: --input-tokens, --prefix-length.
    Sonnet,
    /// EvalScope's speed benchmark: prompts of 1, 6144, 14336 and 30720 symbols,
    /// each twice, 2048 tokens of output.
    SpeedBenchmark,
    /// The same for 63488 and 129024 symbols.
    SpeedBenchmarkLong,
    /// A folder of prompts, as byzer-perf has it: *.jsonl with `prompt`, else a
    /// prompt a line.
    #[value(alias = "byzer")]
    Prompts,
}

impl Dataset {
    /// As typed, and as it stands in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LineByLine => "line_by_line",
            Self::ShareGpt => "sharegpt",
            Self::OpenQa => "openqa",
            Self::LongAlpaca => "longalpaca",
            Self::Table => "table",
            Self::Random => "random",
            Self::Prefix => "prefix",
            Self::Sonnet => "sonnet",
            Self::SpeedBenchmark => "speed_benchmark",
            Self::SpeedBenchmarkLong => "speed_benchmark_long",
            Self::Prompts => "prompts",
        }
    }
}

/// See [`Template`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TemplateName {
    Auto,
    Default,
    Qwen,
    Yi,
}

impl From<TemplateName> for Template {
    fn from(name: TemplateName) -> Self {
        match name {
            TemplateName::Auto => Self::Auto,
            TemplateName::Default => Self::Default,
            TemplateName::Qwen => Self::Qwen,
            TemplateName::Yi => Self::Yi,
        }
    }
}

/// See [`Replies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RepliesName {
    Live,
    Recorded,
}

impl From<RepliesName> for Replies {
    fn from(name: RepliesName) -> Self {
        match name {
            RepliesName::Live => Self::Live,
            RepliesName::Recorded => Self::Recorded,
        }
    }
}

fn parse_range_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a number from 0 to below 1".to_owned()),
    }
}

/// `2s`, or `1s..5s`; `0` is none.
fn parse_think(text: &str) -> Result<ThinkTime, String> {
    let one = |text: &str| match text.trim().trim_end_matches(['s', 'm']) {
        "0" => Ok(Duration::ZERO),
        _ => parse_duration(text.trim()),
    };
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let think = ThinkTime {
        low: one(low)?,
        high: one(high)?,
    };
    if think.low > think.high {
        return Err("the longer one stands behind the two points".to_owned());
    }
    Ok(think)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_takes_one_duration_or_two() {
        let think = |low, high| ThinkTime {
            low: Duration::from_millis(low),
            high: Duration::from_millis(high),
        };
        assert_eq!(parse_think("0"), Ok(think(0, 0)));
        assert_eq!(parse_think("2s"), Ok(think(2_000, 2_000)));
        assert_eq!(parse_think("0..250ms"), Ok(think(0, 250)));
        for bad in ["", "5s..1s", "x", "1s..", "-1s"] {
            assert!(parse_think(bad).is_err(), "{bad}");
        }
    }
}
