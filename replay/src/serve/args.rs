//! What the user typed after `replay serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tapedeck_live::TlsOptions;

use crate::cli::parse_speed;

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Recording to answer from, or a folder of recordings: the answers of all of
    /// them, one recording after the other.
    #[arg(value_name = "RECORDING")]
    pub recording: PathBuf,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Listen on addresses that other machines reach: whoever reaches it can read
    /// what was recorded.
    #[arg(long)]
    pub allow_remote: bool,
    /// Divides all waits: 2 is twice as fast.
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse_speed)]
    pub speed: f64,
    /// Only answers to requests for which this holds, in SQL over the columns of
    /// `requests`.
    #[arg(long = "where", value_name = "SQL")]
    pub filter: Option<String>,
    #[command(flatten)]
    pub matching: MatchArgs,
    #[command(flatten)]
    pub miss: MissArgs,
    /// Answers are held in memory: refuse recordings that need more than this.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub memory_mib: u32,
    /// Print one JSON object with counts on stdout at the end.
    #[arg(long)]
    pub json: bool,
}

/// Which recorded answer a request gets: that to the same body, else to one that is
/// equal in these places, else the next that nobody got yet.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Matching")]
pub struct MatchArgs {
    /// JSON pointers into request bodies, such as /messages/0/content: a body that
    /// was not recorded gets the answer to one that is equal in all these places.
    #[arg(long, value_name = "POINTER", num_args = 1.., value_parser = parse_pointer)]
    pub match_on: Vec<String>,
    /// Give no answer just because it is the next one: what neither body nor
    /// --match-on finds is a miss.
    #[arg(long)]
    pub no_order: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Misses")]
pub struct MissArgs {
    /// What a request gets that nothing was recorded for.
    #[arg(long, value_enum, value_name = "WHAT", default_value = "404")]
    pub on_miss: OnMiss,
    /// Server that --on-miss proxy passes them on to, unrecorded.
    #[arg(
        long,
        value_name = "URL",
        required_if_eq("on_miss", "proxy"),
        conflicts_with = "sim"
    )]
    pub upstream: Option<String>,
    /// Settings of --on-miss simulate, as in `sim:?…` without the question mark.
    #[arg(long, value_name = "QUERY", default_value = "")]
    pub sim: String,
    /// Trust the certificates of this PEM file too.
    #[arg(long, value_name = "FILE", requires = "upstream")]
    pub cacert: Option<PathBuf>,
    /// Accept any certificate of the upstream.
    #[arg(long, requires = "upstream")]
    pub insecure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnMiss {
    /// HTTP 404.
    #[value(name = "404")]
    NotFound,
    /// An answer of the embedded simulator.
    Simulate,
    /// The answer of --upstream.
    Proxy,
}

impl MissArgs {
    pub(crate) fn tls(&self) -> TlsOptions {
        TlsOptions {
            cacert: self.cacert.clone(),
            insecure: self.insecure,
        }
    }
}

fn parse_pointer(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err("expected a JSON pointer such as /messages/0/content".to_owned()),
    }
}
