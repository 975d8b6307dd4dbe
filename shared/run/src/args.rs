//! Flags that every program which sends requests understands.

mod parse;
mod rates;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, ValueEnum};
#[cfg(feature = "report")]
use tapedeck_analyze::Slo;
use tapedeck_live::CancelAfter;
use tapedeck_recording::Durability;
use tapedeck_recording::privacy::Rule;
use tapedeck_wire::dialect::Template;

pub use self::parse::{
    parse_api, parse_durability, parse_duration, parse_object, parse_pair, parse_share,
};
use self::parse::{parse_cancel_after, parse_interval, parse_pairs, parse_template};
pub use self::rates::parse_series;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// Server to send to: an http(s) URL, or `sim:` for the embedded simulator,
    /// e.g. `sim:?ttft_ms=200&itl_ms=20&tokens=100&slots=64`. With an empty path
    /// or one ending in /v1 the API's own path is appended.
    #[arg(long, aliases = ["base-url", "server-url"], required_unless_present_any = ["host", "port"])]
    pub url: Option<String>,
    /// Host of the server, instead of --url; alone, port 8000 of it.
    #[arg(long, conflicts_with = "url", hide_short_help = true)]
    pub host: Option<String>,
    /// Port of the server, instead of --url; alone, that of this machine.
    #[arg(long, conflicts_with = "url", hide_short_help = true)]
    pub port: Option<u16>,
    /// Model to ask for; without it the server's first model is used.
    #[arg(long)]
    pub model: Option<String>,
    /// Path to send to, instead of the API's own (--api).
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,
    /// Sent as `Authorization: Bearer`; never recorded.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Further request headers, K=V or K: V.
    #[arg(long = "header", alias = "headers", value_name = "K=V", num_args = 1..)]
    pub headers: Vec<String>,
    /// Trust the certificates of this PEM file too.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Accept any certificate.
    #[arg(long)]
    pub insecure: bool,
}

/// Port of a server that only has a --host: what vLLM and Aphrodite listen on.
const DEFAULT_PORT: u16 = 8000;

impl TargetArgs {
    /// The server: `--url`, else of --host and --port.
    #[must_use]
    pub fn address(&self) -> String {
        if let Some(url) = &self.url {
            return url.clone();
        }
        let host = self.host.as_deref().unwrap_or("localhost");
        let port = self.port.unwrap_or(DEFAULT_PORT);
        // An address of IPv6 has colons of its own.
        match host.contains(':') && !host.starts_with('[') {
            true => format!("http://[{host}]:{port}"),
            false => format!("http://{host}:{port}"),
        }
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Request body")]
pub struct BodyArgs {
    /// Ask for a streamed answer (the default).
    #[arg(long, overrides_with = "no_stream")]
    pub stream: bool,
    /// Ask for a whole answer.
    #[arg(long)]
    pub no_stream: bool,
    /// Do not ask for token usage on streams.
    #[arg(long)]
    pub no_usage: bool,
    /// Longest output, tokens; default: the data set's limit, else the server's.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Remove the output limit that the data set's bodies bring.
    #[arg(long)]
    pub ignore_max_tokens: bool,
    /// Shortest output, tokens; this and what follows is the server's own where
    /// it is not given.
    #[arg(long, value_name = "N")]
    pub min_tokens: Option<u32>,
    /// Generate to the limit (vLLM, SGLang, llama.cpp).
    #[arg(long)]
    pub ignore_eos: bool,
    /// Sampling temperature; 0 always takes the likeliest token.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Sample from the likeliest tokens whose shares make up this one, from 0 to 1.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Sample from so many of the likeliest tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<i64>,
    /// Against tokens by how often they came, from -2 to 2.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// Against tokens that came at all, from -2 to 2.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Divides the odds of tokens that came, above 0; 1 changes nothing (vLLM, SGLang, TGI).
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f64>,
    /// Choices per request.
    #[arg(long, value_name = "N")]
    pub n_choices: Option<u32>,
    /// Stop sequences.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pub stop: Vec<String>,
    /// Ask for the log probabilities of output tokens; completions APIs take how
    /// many alternatives to each.
    #[arg(long, value_name = "N", num_args = 0..=1)]
    pub logprobs: Option<Option<u32>>,
    /// Alternatives to each output token that chat APIs tell, with --logprobs.
    #[arg(long, value_name = "N", requires = "logprobs")]
    pub top_logprobs: Option<u32>,
    /// Seed of the server's sampling.
    #[arg(long, value_name = "N")]
    pub sampling_seed: Option<i64>,
    /// Token ids to stop at.
    #[arg(long, value_name = "ID", num_args = 1..)]
    pub stop_token_ids: Vec<u32>,
    /// Candidates of which the best is the answer (older vLLM and its kin, TGI).
    #[arg(long, value_name = "N")]
    pub best_of: Option<u32>,
    /// Beam search (older vLLM and its kin).
    #[arg(long)]
    pub use_beam_search: bool,
    /// Body to send instead of the API's, or @FILE with it: JSON, with %m for the
    /// model and %p for the prompt. Flags change it as they change a data set's
    /// own body.
    #[arg(long, value_name = "JSON|@FILE", value_parser = parse_template)]
    pub query_template: Option<Template>,
    /// JSON object merged into every body, over everything else; objects within it
    /// are filled up, not replaced.
    #[arg(long, aliases = ["extra-args", "extra-request-body", "additional-sampling-params"], value_name = "JSON", value_parser = parse_object)]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// Until TCP and TLS stand.
    #[arg(long, value_name = "D", default_value = "30s", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// From there to the first byte of the answer; default: --read-timeout.
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub first_byte_timeout: Option<Duration>,
    /// Longest silence within an answer.
    #[arg(long, value_name = "D", default_value = "10m", value_parser = parse_duration)]
    pub read_timeout: Duration,
    /// The whole request; default: no limit.
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub total_timeout: Option<Duration>,
    /// Connections to open before the start; requests on them have no connect
    /// instants and count as reusing.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=8192))]
    pub warm_connections: u16,
    /// Worker threads; default: half the cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,
    #[command(flatten)]
    pub attempts: AttemptArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Attempts")]
pub struct AttemptArgs {
    /// Send a request up to N more times: after a failed connection or a timeout
    /// before any chunk, and after HTTP 408, 429 and 5xx, waiting 0.5 s, then twice
    /// as long each time up to 8 s, less up to a quarter drawn from --seed. Every
    /// attempt is recorded; the last one counts.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    pub retries: u32,
    /// Wait as long as the server's Retry-After says instead, up to 60 s.
    #[arg(long, requires = "retries")]
    pub obey_retry_after: bool,
    /// Share of requests, from 0 to 1, whose client gives up: the connection is
    /// closed and the outcome is `cancelled`. --seed and the request's id decide
    /// which ones.
    #[arg(long, value_name = "P", value_parser = parse_share)]
    pub cancel_rate: Option<f64>,
    /// When they give up: so long after the request is written (500ms, 2s; to
    /// within 20 ms), or with the read that brings so many content-bearing chunks
    /// (20chunks). What ends before that is not cancelled.
    #[arg(long, value_name = "D|Nchunks", default_value = "1chunks", value_parser = parse_cancel_after, requires = "cancel_rate")]
    pub cancel_after: CancelAfter,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Privacy")]
pub struct PrivacyArgs {
    /// What is kept of prompts and answers.
    #[arg(long, value_enum, default_value = "full")]
    pub content: Content,
    /// Replace texts by [redacted] before they are written: what a JSON pointer
    /// leads to in any request body, chunk or answer (/messages/*/content,
    /// /choices/*/delta/content; * is every element or member), or what a pattern
    /// matches in strings, numbers and errors (re:PATTERN). May be given again.
    /// Chunks are looked at one by one: no pattern matches across two of them. A
    /// pointer takes the whole of a text that is no JSON document.
    #[arg(long, value_name = "RULE")]
    pub redact: Vec<Rule>,
    /// Size of the prompt blocks that --content hashed keeps ids of: tokens where
    /// a tokenizer is given (default 16), else bytes of text (default 64).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub block_size: Option<u32>,
}

impl PrivacyArgs {
    /// Whether some texts are not to be kept.
    #[must_use]
    pub fn hides_text(&self) -> bool {
        self.content != Content::Full || !self.redact.is_empty()
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server metrics")]
pub struct ServerMetricsArgs {
    /// Prometheus text of the server to record beside the load; `auto` is /metrics
    /// of the server itself. May be given several times.
    #[arg(long = "server-metrics", value_name = "URL|auto")]
    pub urls: Vec<String>,
    /// How often it is asked for.
    #[arg(long = "server-metrics-interval", value_name = "D", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Recording")]
pub struct OutputArgs {
    /// Folder of the recording; for a sweep the folder of its recordings.
    /// Default: recordings/<utc>-<name>.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Folder to make that folder in, instead of `recordings`.
    #[arg(long, aliases = ["results-dir", "outputs-dir"], value_name = "DIR", conflicts_with = "out")]
    pub result_dir: Option<PathBuf>,
    /// Name of that folder, instead of <utc>-<name>; `.json` at its end is left out.
    #[arg(long, value_name = "NAME", conflicts_with = "out", value_parser = NonEmptyStringValueParser::new())]
    pub result_filename: Option<String>,
    /// Name of the recording; default: the command's.
    #[arg(long)]
    pub name: Option<String>,
    /// Labels, to tell recordings apart in SQL.
    #[arg(long = "label", value_name = "K=V", value_parser = parse_pair, num_args = 1..)]
    pub labels: Vec<(String, String)>,
    /// As --label; commas part several, too.
    #[arg(long, value_name = "K=V", value_parser = parse_pairs, num_args = 1..)]
    pub metadata: Vec<Pairs>,
    #[command(flatten)]
    pub privacy: PrivacyArgs,
    /// What outlives a crash of what is not sealed yet: `none`, nothing (no
    /// write-ahead log); `interval`, all that is older than 200 ms, than 1 s if
    /// the machine dies too; `batch`, all that was handed over, one sync each.
    #[arg(long, value_name = "HOW", default_value = "interval", value_parser = parse_durability)]
    pub durability: Durability,
    /// Turn what was recorded into Parquet at least this often; large segments are
    /// sealed earlier.
    #[arg(long, value_name = "D", default_value = "5m", value_parser = parse_duration)]
    pub seal_every: Duration,
    /// Print no report at the end.
    #[arg(long)]
    pub no_report: bool,
    /// Print one JSON object with paths and counts on stdout instead of a report.
    #[arg(long)]
    pub json: bool,
    /// No progress bar.
    #[arg(long, alias = "disable-tqdm", action = ArgAction::SetTrue)]
    pub no_progress: bool,
    /// Print a line on stderr whenever N more requests have ended. Approximate, and
    /// looked at five times a second.
    #[arg(long, value_name = "N")]
    pub log_every_n_query: Option<NonZeroU64>,
    /// Print every request, chunk and answer on stderr as it is recorded: bodies are
    /// cut short, and what the recording leaves out (credentials, what --content and
    /// --redact hide) is left out here too. For looking, not for measuring.
    #[arg(long)]
    pub debug: bool,
    #[cfg(feature = "report")]
    /// Exit 1 when the verdict on a recording is invalid: its numbers describe the
    /// client, or rows are missing.
    #[arg(long)]
    pub strict: bool,
    #[cfg(feature = "report")]
    /// Service level objectives for goodput in the report, e.g. ttft_ms=200.
    #[arg(long = "slo", alias = "goodput", value_name = "METRIC=VALUE", num_args = 1.., value_parser = tapedeck_analyze::cli::parse_slo)]
    pub slos: Vec<Slo>,
}

impl OutputArgs {
    /// The recording's name.
    #[must_use]
    pub fn name_or(&self, default: &str) -> String {
        self.name.clone().unwrap_or_else(|| default.to_owned())
    }

    /// Labels of the recording; what is said last holds, --metadata after --label.
    #[must_use]
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let metadata = self.metadata.iter().flat_map(|Pairs(pairs)| pairs);
        self.labels.iter().chain(metadata).cloned().collect()
    }
}

/// Keys and values of one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

/// What is kept of prompts and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// Everything.
    Full,
    /// No text: keyed hashes, kinds, token counts, lengths and instants.
    Hashed,
    /// Kinds, token counts, lengths and instants.
    Lengths,
}

impl From<Content> for tapedeck_recording::Content {
    fn from(content: Content) -> Self {
        match content {
            Content::Full => Self::Full,
            Content::Hashed => Self::Hashed,
            Content::Lengths => Self::Lengths,
        }
    }
}
