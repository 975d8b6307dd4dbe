//! What the user typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Args, Parser, Subcommand};
use tapedeck_recording::Durability;
use tapedeck_run::args::{
    BodyArgs, ConnectionArgs, OutputArgs, PrivacyArgs, ServerMetricsArgs, TargetArgs, parse_api,
    parse_durability, parse_duration, parse_pair, parse_series, parse_share,
};
use tapedeck_wire::dialect::Api;
use tapedeck_workload::RateShape;

#[cfg(feature = "report")]
use crate::find_max::FindArgs;
use crate::local::LaunchArgs;
use crate::shape::{RampUp, parse_burstiness, parse_ramp, parse_ramp_up, parse_rate};
use crate::workload::WorkloadArgs;

/// Record LLM inference traffic: every request, every chunk with the instant it
/// arrived, every response, as Parquet.
#[derive(Debug, Parser)]
#[command(name = "record", version, max_term_width = 100)]
#[cfg_attr(not(feature = "report"), command(after_help = LEAN))]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What a build without the analyzer cannot do.
#[cfg(not(feature = "report"))]
const LEAN: &str = "This build is without the analyzer: no closing report (`analyze report` \
    makes it), no --slo, no --strict, and no --find-max, whose trials the analyzer judges.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Drive load at an endpoint and record it.
    #[cfg_attr(not(feature = "report"), command(after_help = LEAN))]
    Load(Box<LoadArgs>),
    /// Pass requests on to a server, unchanged, and record them.
    Proxy(Box<ProxyArgs>),
    /// Run the embedded simulator as a server of its own.
    Simulate(SimulateArgs),
    /// Make whole what a recorder that died left behind.
    Repair(RepairArgs),
    /// List the APIs that are built in, or print one to start your own from.
    Apis(ApisArgs),
    /// Run a server until it ends or stdin does.
    #[command(hide = true, name = tapedeck_run::launch::KEEP_COMMAND)]
    KeepServer(KeepArgs),
}

/// Of the process between a load and the server that it launched.
#[derive(Debug, Clone, Args)]
pub struct KeepArgs {
    #[arg(long)]
    pub command: String,
    #[arg(long)]
    pub patience_ms: u64,
}

/// Whoever launches a server need not say where it is.
fn known_when_launched(url: Arg) -> Arg {
    url.required_unless_present_any(["launch", "local", "host", "port"])
}

#[derive(Debug, Clone, Args)]
#[command(mut_arg("url", known_when_launched))]
pub struct LoadArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub launch: LaunchArgs,
    /// API that the server speaks: a name that `record apis` lists, or the path of
    /// your own dialect file.
    #[arg(long, alias = "backend", value_name = "NAME|FILE.toml", default_value = "openai-chat", value_parser = parse_api, help_heading = "Target")]
    pub api: Api,
    #[command(flatten)]
    pub workload: WorkloadArgs,
    #[command(flatten)]
    pub shape: ShapeArgs,
    #[cfg(feature = "report")]
    #[command(flatten)]
    pub find: FindArgs,
    #[command(flatten)]
    pub body: BodyArgs,
    #[command(flatten)]
    pub connection: ConnectionArgs,
    #[command(flatten)]
    pub server_metrics: ServerMetricsArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// More requests in flight than one machine has ports for.
pub(crate) const MAX_PARALLEL: i64 = 1_000_000;

const MAX_REPEATS: i64 = 1_000;

/// Requests of a warm-up: how long they take is worked out before the first of them.
const MAX_WARMUP: u64 = 1_000_000;

/// Flags that give arrivals a schedule of their own; one at most.
const OPEN_LOOP: &str = "open_loop";

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Load")]
pub struct ShapeArgs {
    /// Requests in flight at most; without --rate a closed loop. Several values
    /// make a sweep.
    #[arg(long, aliases = ["max-concurrency", "num-clients", "num-threads", "num-concurrent-requests", "concurrency"], value_name = "N", num_args = 1.., value_parser = clap::value_parser!(u32).range(1..=MAX_PARALLEL))]
    pub parallel: Vec<u32>,
    /// Requests to send; default: the data set's size (random: 1000), 100 for
    /// --prompt, no end with --duration. A smaller data set is sent again and
    /// again. With --num-turns, sessions to begin.
    #[arg(short = 'n', long, aliases = ["num-prompts", "max-num-completed-requests", "request-count", "max-requests"], value_name = "N", num_args = 1.., value_parser = clap::value_parser!(u64).range(1..))]
    pub number: Vec<u64>,
    /// Arrivals per second, an open loop; -1 or inf sends all at once.
    #[arg(long, alias = "request-rate", value_name = "R", num_args = 1.., value_parser = parse_rate, allow_negative_numbers = true, group = OPEN_LOOP)]
    pub rate: Vec<f64>,
    /// An open loop whose rate changes: 1..50@60s goes from 1 to 50 arrivals per
    /// second in a minute by as much each second, 1..50:exponential@60s by the same
    /// factor. The load ends with it, or with --number or --duration if those come
    /// first.
    #[arg(long, value_name = "R..R[:CURVE]@D", value_parser = parse_ramp, group = OPEN_LOOP)]
    pub rate_ramp: Option<RateShape>,
    /// The same in pieces, of which each is a rate or a ramp: 10@30s,50@10s,50..5@1m.
    #[arg(long, value_name = "R@D,…", value_parser = parse_series, group = OPEN_LOOP)]
    pub rate_series: Option<RateShape>,
    /// Shape of the gaps between arrivals: 1 Poisson, below 1 burstier, above
    /// smoother, inf evenly spaced. For a rate of any kind.
    #[arg(long, default_value = "1", value_parser = parse_burstiness, requires = OPEN_LOOP)]
    pub burstiness: f64,
    /// Stop sending after this long (10s, 5m, 1h), counted from the end of the
    /// warm-up.
    #[arg(long, aliases = ["benchmark-duration", "max-seconds"], value_name = "D", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    #[command(flatten)]
    pub clients: ClientArgs,
    #[command(flatten)]
    pub warmup: WarmUpArgs,
    /// Carry out every level this many times, all levels before any again; each
    /// time is a recording of its own with the label `repeat`.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_REPEATS))]
    pub repeat: u32,
    /// Send no probe request before the load.
    #[arg(long, alias = "no-test-connection")]
    pub no_probe: bool,
}

/// Of the clients of a closed loop, one a slot of `--parallel`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Clients of a closed loop")]
pub struct ClientArgs {
    /// Have clients begin one after the other, evenly within this time in all; each
    /// so long after the one before with 100ms/client, which it is without a value.
    #[arg(long, alias = "ramp-up-time", value_name = "D|D/client", num_args = 0..=1, default_missing_value = "100ms/client", value_parser = parse_ramp_up, conflicts_with = OPEN_LOOP)]
    pub ramp_up: Option<RampUp>,
    /// A client sends nothing more so long after it began, or after the warm-up where
    /// that ended later; sessions it has begun are carried on.
    #[arg(long, aliases = ["thread-stop-time", "stop-time"], value_name = "D", value_parser = parse_duration, conflicts_with = OPEN_LOOP)]
    pub client_duration: Option<Duration>,
    /// Each client walks the data set in an order of its own, the same in every run:
    /// from the prompt of its number on, clients of odd numbers backwards. --number
    /// is shared out among them, and requests name their client as session. Else all
    /// take the next prompt of one order.
    #[arg(long, alias = "allow-repetitive-requests", conflicts_with = OPEN_LOOP)]
    pub client_sequences: bool,
}

/// Both may be given: the warm-up ends with what comes first.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Warm-up")]
pub struct WarmUpArgs {
    /// Requests to send before the measured ones, in phase `warmup`, which reports
    /// count and leave out. They are sent as the load begins, and are what the data
    /// set ends with, backwards; of a session the first turn. The load follows at
    /// once; all at once, when they have ended.
    #[arg(long, aliases = ["num-warmups", "warmup-num"], value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_WARMUP))]
    pub warmup_requests: Option<u64>,
    /// Warm up so long.
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub warmup_duration: Option<Duration>,
}

#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Address to listen on; one that other machines reach needs --allow-remote.
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Server to pass requests on to; a path in it is put before theirs. Several
    /// servers take turns. One with a prefix gets the paths below it, the longest
    /// prefix first: a path in its URL, be it a slash, stands in place of the prefix,
    /// without one the path goes on as it came. A request whose server is down gets
    /// 502 and is recorded as such; it is not sent to another one.
    #[arg(long = "upstream", value_name = "[/PREFIX=]URL", num_args = 1.., required = true)]
    pub upstreams: Vec<String>,
    /// Listen on addresses that other machines reach. Whoever reaches the proxy
    /// reaches the server behind it.
    #[arg(long)]
    pub allow_remote: bool,
    /// Address that answers /health and /metrics.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Trust the certificates of this PEM file too.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Accept any certificate of the server.
    #[arg(long)]
    pub insecure: bool,
    /// Certificate chain to show to clients (PEM); makes the proxy speak TLS.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Until a connection to the server stands.
    #[arg(long, value_name = "D", default_value = "30s", value_parser = parse_duration)]
    pub connect_timeout: Duration,
    /// After a stop signal, how long requests in flight may take to end.
    #[arg(long, value_name = "D", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,
    /// Worker threads; default: one a core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,
    #[command(flatten)]
    pub what: WhatArgs,
    #[command(flatten)]
    pub privacy: PrivacyArgs,
    /// The model's tokenizer.json, or a folder that holds one: with --content
    /// hashed, counts input tokens and cuts prompts into blocks of them.
    #[arg(
        long,
        alias = "tokenizer",
        value_name = "PATH",
        help_heading = "Privacy"
    )]
    pub tokenizer_path: Option<PathBuf>,
    #[command(flatten)]
    pub server_metrics: ServerMetricsArgs,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Recording")]
pub struct StoreArgs {
    /// Folder in which each start and each rotation makes a recording.
    #[arg(long, value_name = "ROOT", default_value = "recordings")]
    pub out: PathBuf,
    /// Name of the recording.
    #[arg(long, default_value = "proxy")]
    pub name: String,
    /// Labels, to tell recordings apart in SQL.
    #[arg(long = "label", value_name = "K=V", value_parser = parse_pair, num_args = 1..)]
    pub labels: Vec<(String, String)>,
    /// What outlives a crash of what is not sealed yet, as for `record load`.
    #[arg(long, value_name = "HOW", default_value = "interval", value_parser = parse_durability)]
    pub durability: Durability,
    /// Turn what was recorded into Parquet at least this often; large segments are
    /// sealed earlier.
    #[arg(long, value_name = "D", default_value = "5m", value_parser = parse_duration)]
    pub seal_every: Duration,
    /// Begin a new recording when this one is so old (1h, 1d) or takes so much room
    /// (1GiB); both may be given. SIGHUP does it too. Requests in flight end in the
    /// recording they began in.
    #[arg(long, value_name = "LIMIT", value_parser = parse_limit, num_args = 1..)]
    pub rotate: Vec<Limit>,
    /// Delete recordings of this --name below ROOT that were sealed so long ago
    /// (7d), or the oldest while all of them take more room than this (100GiB);
    /// both may be given. Only whole sealed ones in the folder they were made in.
    #[arg(long, value_name = "LIMIT", value_parser = parse_limit, num_args = 1..)]
    pub retain: Vec<Limit>,
    /// Print one JSON object with paths and counts on stdout at the end.
    #[arg(long)]
    pub json: bool,
}

/// A limit by age or by room on the disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    Age(Duration),
    Bytes(u64),
}

/// Units of room, the longest names first: `B` ends them all.
const BYTE_UNITS: [(&str, f64); 9] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("B", 1.0),
];

/// A duration, or a number of bytes with its unit.
fn parse_limit(text: &str) -> Result<Limit, String> {
    let unit = BYTE_UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let Some((number, bytes)) = unit else {
        let named = text.ends_with(|c: char| c.is_ascii_alphabetic());
        return match parse_duration(text) {
            Ok(age) if named => Ok(Limit::Age(age)),
            _ => Err("expected an age such as 1h or 7d, or a size such as 1GiB".to_owned()),
        };
    };
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number * bytes >= 1.0 => {
            Ok(Limit::Bytes((number * bytes) as u64))
        }
        _ => Err("expected a size such as 500MB or 1GiB".to_owned()),
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is recorded")]
pub struct WhatArgs {
    /// Paths to record: a prefix, or with * a pattern of the whole path. Default:
    /// */chat/completions, */completions and those of --api. Other paths pass
    /// unrecorded. A request header `x-tapedeck-record: off|hashed|lengths` keeps
    /// less of that request.
    #[arg(long = "match", value_name = "PATH", num_args = 1..)]
    pub patterns: Vec<String>,
    /// API of recorded paths that do not tell it by their end: a name that `record
    /// apis` lists, or the path of your own dialect file.
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "openai-chat", value_parser = parse_api)]
    pub api: Api,
    /// Request header that names the session.
    #[arg(long, value_name = "NAME", default_value = "x-session-id")]
    pub session_header: String,
    /// JSON pointer to the session in the body, where the header is missing.
    #[arg(long, value_name = "/POINTER")]
    pub session_field: Option<String>,
    /// Share of sessions to record, from 0 to 1.
    #[arg(long, value_name = "P", default_value = "1", value_parser = parse_share)]
    pub sample: f64,
    /// Refuse requests with 503 while recording cannot keep up, instead of passing
    /// them on and counting what is lost.
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Settings as in `sim:?…`, without the question mark:
    /// ttft_ms=200&itl_ms=20&tokens=100&slots=64&seed=0.
    #[arg(long, value_name = "QUERY", default_value = "")]
    pub sim: String,
    /// Time to first token of an idle server, ms; default: 200.
    #[arg(long, value_name = "MS")]
    pub ttft_ms: Option<f64>,
    /// Gap between tokens of an idle server, ms; default: 20.
    #[arg(long, value_name = "MS")]
    pub itl_ms: Option<f64>,
    /// Tokens of an answer that no request limits; default: 100.
    #[arg(long, value_name = "N")]
    pub tokens: Option<u32>,
    /// Requests decoded together; default: 64.
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Governs every draw: jitter, errors, lengths; default: 0.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Debug, Clone, Args)]
pub struct RepairArgs {
    /// A recording, or a folder of them.
    pub recording: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct ApisArgs {
    /// Print this one as the TOML file it is.
    pub name: Option<String>,
}

/// `record load` with these words, for tests of what flags lead to.
#[cfg(test)]
pub(crate) fn load_args<'a>(words: impl IntoIterator<Item = &'a str>) -> LoadArgs {
    let line = ["record", "load"].into_iter().chain(words);
    match Cli::try_parse_from(line).unwrap().command {
        Command::Load(args) => *args,
        _ => unreachable!(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn limits_are_ages_or_sizes() {
        let hours = |n: u64| Limit::Age(Duration::from_secs(n * 3600));
        assert_eq!(parse_limit("1h"), Ok(hours(1)));
        assert_eq!(parse_limit("7d"), Ok(hours(7 * 24)));
        assert_eq!(parse_limit("1.5KiB"), Ok(Limit::Bytes(1536)));
        assert_eq!(parse_limit("2GB"), Ok(Limit::Bytes(2_000_000_000)));
        assert_eq!(parse_limit("1B"), Ok(Limit::Bytes(1)));
        for bad in ["", "1", "GiB", "-1GB", "0B", "0s", "nanB", "1 week"] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_other_tools_are_understood() {
        let line = "--base-url http://x --backend openai-completions \
            --request-rate 3 --num-prompts 7 --max-concurrency 2 --prompt p";
        let args = load_args(line.split_whitespace());
        assert_eq!(args.shape.number, [7]);
        assert_eq!(args.shape.parallel, [2]);
        assert_eq!(args.shape.rate, [3.0]);
        assert_eq!(args.api, Api::OpenAiCompletions);
        let line = "--url u --dataset-name random --tokenizer t \
            --random-input-len 3 --random-output-len 4 --random-range-ratio 0.5 --random-prefix-len 6";
        let args = load_args(line.split_whitespace());
        let random = args.workload.made;
        assert_eq!(random.input_tokens, Some(3));
        assert_eq!(random.output_tokens, Some(4));
        assert_eq!(random.random_range_ratio, Some(0.5));
        assert_eq!(random.prefix_length, Some(6));
        // llm.perf stops each client after its own time.
        let line = "--url u --prompt p --no-test-connection --ramp-up-time 2 \
            --stop-time 3 --allow-repetitive-requests --warmup-num 4";
        let args = load_args(line.split_whitespace());
        let ShapeArgs {
            clients,
            warmup,
            duration,
            no_probe,
            ..
        } = args.shape;
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!((clients.client_duration, duration), (seconds(3), None));
        assert_eq!(clients.ramp_up, seconds(2).map(RampUp::Total));
        assert!(clients.client_sequences && no_probe);
        assert_eq!(warmup.warmup_requests, Some(4));
    }
}
