//! Flags of other tools that have nothing to do here. They are taken, so that a
//! command line that was written for those tools runs, and each says what happens
//! instead.

use clap::{ArgAction, Args};

/// `--tasks_use_ray` has its underscores from byzer-perf.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Accepted from other tools, without effect")]
pub struct AcceptedArgs {
    /// Code of a model's tokenizer is never run.
    #[arg(long, hide_short_help = true)]
    pub trust_remote_code: bool,
    /// Every run is recorded.
    #[arg(long, aliases = ["save-detailed", "append-result", "output-details"], action = ArgAction::Count, hide_short_help = true)]
    pub save_result: u8,
    /// Every event is on the disk within a second.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub db_commit_interval: Option<u64>,
    /// Nothing is uploaded.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub visualizer: Option<String>,
    /// Nothing is uploaded.
    #[arg(long, value_name = "KEY", hide_short_help = true)]
    pub wandb_api_key: Option<String>,
    /// Nothing is uploaded.
    #[arg(long, value_name = "KEY", hide_short_help = true)]
    pub swanlab_api_key: Option<String>,
    /// Messages go to stderr.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub log_file: Option<String>,
    /// There are no levels; --debug shows all.
    #[arg(long, value_name = "LEVEL", hide_short_help = true)]
    pub log_level: Option<String>,
    /// One process sends all requests.
    #[arg(long, value_name = "MODE", hide_short_help = true)]
    pub execute_mode: Option<String>,
    /// Nothing runs on Ray.
    #[arg(long, value_name = "ADDR", hide_short_help = true)]
    pub ray_address: Option<String>,
    /// Nothing runs on Ray.
    #[arg(long = "tasks_use_ray", value_name = "BOOL", num_args = 0..=1, hide_short_help = true)]
    pub tasks_use_ray: Option<Option<String>>,
    /// All metrics are reported.
    #[arg(long, value_name = "LIST", hide_short_help = true)]
    pub percentile_metrics: Option<String>,
}

impl AcceptedArgs {
    /// A line for each flag that was given. Values stay out of it: some are keys.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let given = [
            (
                "--trust-remote-code",
                self.trust_remote_code,
                "tokenizers are read as files, and no code of a model is run",
            ),
            (
                "--save-result",
                self.save_result > 0,
                "every run is recorded; `analyze report --format json -o FILE` writes its numbers",
            ),
            (
                "--db-commit-interval",
                self.db_commit_interval.is_some(),
                "every event is on the disk within a second (--durability)",
            ),
            (
                "--visualizer",
                self.visualizer.is_some(),
                "nothing is uploaded; recordings are Parquet, which any program draws",
            ),
            (
                "--wandb-api-key",
                self.wandb_api_key.is_some(),
                "nothing is uploaded; recordings are Parquet, which any program draws",
            ),
            (
                "--swanlab-api-key",
                self.swanlab_api_key.is_some(),
                "nothing is uploaded; recordings are Parquet, which any program draws",
            ),
            (
                "--log-file",
                self.log_file.is_some(),
                "messages go to stderr",
            ),
            (
                "--log-level",
                self.log_level.is_some(),
                "there are no levels; --debug shows every request and answer",
            ),
            (
                "--execute-mode",
                self.execute_mode.is_some(),
                "one process sends all requests (--workers are its threads)",
            ),
            (
                "--ray-address",
                self.ray_address.is_some(),
                "one process sends all requests",
            ),
            (
                "--tasks_use_ray",
                self.tasks_use_ray.is_some(),
                "one process sends all requests",
            ),
            (
                "--percentile-metrics",
                self.percentile_metrics.is_some(),
                "all metrics are reported",
            ),
        ];
        let given = given.into_iter().filter(|(_, is_given, _)| *is_given);
        given
            .map(|(flag, _, instead)| format!("warning: {flag} has no effect: {instead}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::load_args;

    #[test]
    fn each_flag_says_that_it_does_nothing_and_no_key() {
        let line = "--url u --prompt p --trust-remote-code --save-result \
            --save-detailed --wandb-api-key secret --tasks_use_ray True --execute-mode Thread";
        let args = load_args(line.split_whitespace());
        let warnings = args.workload.accepted.warnings().join("\n");
        for flag in [
            "--trust-remote-code",
            "--save-result",
            "--wandb-api-key",
            "--tasks_use_ray",
            "--execute-mode",
        ] {
            assert_eq!(warnings.matches(flag).count(), 1, "{flag}: {warnings}");
        }
        assert!(!warnings.contains("secret"));
        assert_eq!(warnings.lines().count(), 5);
    }
}
