//! Flags that would say nothing to the data set are an error, not a surprise.

use anyhow::{Result, bail};

use super::is_random;
use crate::workload::{Dataset, WorkloadArgs};

/// # Errors
/// When a flag is for other data sets than the `named` one.
pub(super) fn refuse_strangers(workload: &WorkloadArgs, named: Option<Dataset>) -> Result<()> {
    use Dataset::{LongAlpaca, OpenQa, Prefix, Random, ShareGpt, Sonnet, Table};
    let (made, columns) = (&workload.made, &workload.columns);
    const MADE: &[Dataset] = &[Random, Prefix, Sonnet];
    const TABLES: &[Dataset] = &[Table, OpenQa, LongAlpaca];
    for (flag, is_set, takers, hint) in [
        ("--input-tokens", made.input_tokens.is_some(), MADE, ""),
        (
            "--output-tokens",
            made.output_tokens.is_some(),
            &[Random, Prefix, Sonnet, ShareGpt][..],
            "\nhint: the output limit is --max-tokens",
        ),
        (
            "--random-range-ratio",
            made.random_range_ratio.is_some(),
            &[Random, Prefix],
            "",
        ),
        ("--prefix-length", made.prefix_length.is_some(), MADE, ""),
        (
            "--prefix-groups",
            made.prefix_groups.is_some(),
            &[Prefix],
            "",
        ),
        (
            "--group-prompts",
            made.group_prompts.is_some(),
            &[Prefix],
            "",
        ),
        (
            "--prompt-column",
            columns.prompt_column.is_some(),
            TABLES,
            "",
        ),
        (
            "--output-length-column",
            columns.output_length_column.is_some(),
            TABLES,
            "",
        ),
        (
            "--session-column",
            columns.session_column.is_some(),
            TABLES,
            "",
        ),
        ("--reply-column", columns.reply_column.is_some(), TABLES, ""),
        ("--image-column", columns.image_column.is_some(), TABLES, ""),
    ] {
        if is_set && !named.is_some_and(|named| takers.contains(&named)) {
            let names: Vec<&str> = takers.iter().map(|taker| taker.as_str()).collect();
            bail!("{flag} is for --dataset {}{hint}", names.join(", "));
        }
    }
    named.map_or(Ok(()), |named| refuse_file_flags(workload, named))
}

/// Prompts that are made have no file, and random ones their own lengths.
fn refuse_file_flags(workload: &WorkloadArgs, named: Dataset) -> Result<()> {
    let lengths = &workload.lengths;
    let needs_no_file =
        is_random(named) || matches!(named, Dataset::SpeedBenchmark | Dataset::SpeedBenchmarkLong);
    let has_file = workload.dataset_path.is_some() || workload.dataset_command.is_some();
    if needs_no_file && has_file {
        bail!("--dataset-path is not for --dataset {}", named.as_str());
    }
    for (flag, is_set) in [
        ("--min-prompt-chars", lengths.min_prompt_chars.is_some()),
        ("--max-prompt-chars", lengths.max_prompt_chars.is_some()),
        ("--min-prompt-tokens", lengths.min_prompt_tokens.is_some()),
        ("--max-prompt-tokens", lengths.max_prompt_tokens.is_some()),
    ] {
        if is_set && is_random(named) {
            bail!(
                "{flag} is not for --dataset {}\nhint: its lengths are --input-tokens and --random-range-ratio, or --min/max-prompt-length",
                named.as_str()
            );
        }
    }
    Ok(())
}
