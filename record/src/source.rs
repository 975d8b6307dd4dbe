//! What is to be sent: which data set, whose flags, from where.

mod describe;
mod refuse;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tapedeck_run::hub::{self, Fetched, HubOptions, Kind, Reference};
use tapedeck_run::shell;
use tapedeck_workload::dataset::{
    self, DatasetSpec, Loaded, PrefixGroups, RandomLengths, TableColumns,
};
use tapedeck_workload::dialogue::Replies;
use tapedeck_workload::{Item, PromptLengths, Shaping, SonnetLengths, command, prompts};

use self::refuse::refuse_strangers;
use crate::cli::LoadArgs;
use crate::workload::{Dataset, MadeArgs, WorkloadArgs};

pub use describe::dataset_json;

/// The data set of a load.
#[derive(Debug)]
pub struct Source {
    pub kind: &'static str,
    /// As the user named it: a path, a name on a hub, a command.
    pub origin: Option<String>,
    pub spec: DatasetSpec,
    pub loaded: Loaded,
    /// Where the file of a hub came from.
    pub hub: Option<Fetched>,
    pub tokenizer_hub: Option<Fetched>,
    /// Requests, or sessions, to begin when `--number` does not say.
    pub default_number: u64,
}

/// Requests that one prompt is sent for when `--number` does not say.
const PROMPT_REQUESTS: u64 = 100;

/// Groups of prompts that begin alike, when nothing says how many: vLLM's default.
const PREFIX_GROUPS: u32 = 10;

/// Reads what is to be sent.
///
/// # Errors
/// When the data set is missing, unreadable or holds nothing that may be sent.
pub fn source(args: &LoadArgs) -> Result<Source> {
    let workload = &args.workload;
    for warning in workload.accepted.warnings() {
        eprintln!("{warning}");
    }
    let named = named(workload)?;
    refuse_strangers(workload, named)?;
    let (tokenizer_path, tokenizer_hub) = tokenizer(args)?;
    // Held until the data set is read: it removes the file when it is dropped.
    let command = workload.dataset_command.as_deref();
    let shown = command.map(shell::masked);
    let output = match (command, &shown) {
        (Some(line), Some(shown)) => Some(command::output_of(line, shown)?),
        _ => None,
    };
    let (path, hub) = match (&output, &workload.dataset_path) {
        (Some(output), _) => (Some(output.to_path_buf()), None),
        (None, Some(path)) => local(args, path)?,
        (None, None) => (None, None),
    };
    // What warms up is taken from behind what is measured, where there is more.
    let warmup = args.shape.warmup.warmup_requests.unwrap_or(0);
    let limit = args.shape.number.iter().max();
    let limit = limit.map(|n| n.saturating_add(warmup));
    let made = &workload.made;
    let spec = DatasetSpec {
        tokenizer_path,
        skip_bad: workload.skip_bad,
        seed: workload.seed,
        limit: limit.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        lengths: lengths(workload, named)?,
        max_tokens: args.body.max_tokens.or(made.output_tokens),
        num_turns: usize::from(workload.sessions.num_turns),
        shaping: shaping(workload)?,
        ..DatasetSpec::new(origin(workload, named, path)?)
    };
    let loaded = dataset::load(&spec)?;
    if workload.sessions.num_turns > 1
        && Replies::from(workload.sessions.multi_turn_replies) == Replies::Recorded
    {
        expect_replies(&loaded)?;
    }
    let dataset_path = workload
        .dataset_path
        .as_ref()
        .map(|p| p.display().to_string());
    let of_hub = hub.as_ref().map(|fetched| fetched.name.clone());
    let prompt_file = spec.source.path().filter(|_| output.is_none());
    Ok(Source {
        kind: named.map_or("prompt", Dataset::as_str),
        origin: of_hub
            .or(shown)
            .or(dataset_path)
            .or_else(|| prompt_file.map(|p| p.display().to_string())),
        default_number: match spec.source {
            dataset::Source::Prompt(_) if workload.around.salt.is_none() => PROMPT_REQUESTS,
            _ => loaded.prompts.len() as u64,
        },
        spec,
        loaded,
        hub,
        tokenizer_hub,
    })
}

/// The data set that the flags name, `None` for a prompt of the command line.
fn named(workload: &WorkloadArgs) -> Result<Option<Dataset>> {
    let has_file = workload.dataset_path.is_some() || workload.dataset_command.is_some();
    match (workload.dataset, &workload.prompt) {
        (Some(named), _) => Ok(Some(named)),
        (None, Some(_)) if has_file => bail!(
            "--prompt and --dataset-path exclude each other\nhint: a file of prompts is --dataset line_by_line --dataset-path FILE"
        ),
        (None, Some(_)) => Ok(None),
        (None, None) if workload.dataset_path.as_ref().is_some_and(|p| p.is_dir()) => {
            Ok(Some(Dataset::Prompts))
        }
        (None, None) if has_file => {
            let is_table = workload.columns.prompt_column.is_some();
            let lines = if is_table {
                Dataset::Table
            } else {
                Dataset::LineByLine
            };
            Ok(Some(lines))
        }
        (None, None) => bail!(
            "nothing to send\nhint: --prompt TEXT, or --dataset line_by_line --dataset-path FILE"
        ),
    }
}

fn hub_options(args: &LoadArgs) -> HubOptions {
    let hub = &args.workload.hub;
    HubOptions {
        url: hub.hub_url.clone(),
        cache: hub.hub_cache.clone(),
        offline: hub.offline,
        quiet: args.output.no_progress || args.output.json,
    }
}

/// `path` on this disk: what names a file of a hub is fetched first.
fn local(args: &LoadArgs, path: &std::path::Path) -> Result<(Option<PathBuf>, Option<Fetched>)> {
    let Some(reference) = Reference::parse(&path.to_string_lossy())? else {
        return Ok((Some(path.to_owned()), None));
    };
    let fetched = hub::fetch(&reference, Kind::Dataset, &hub_options(args))?;
    Ok((Some(fetched.path.clone()), Some(fetched)))
}

fn tokenizer(args: &LoadArgs) -> Result<(Option<PathBuf>, Option<Fetched>)> {
    let Some(path) = &args.workload.tokenizer_path else {
        return Ok((None, None));
    };
    let text = path.to_string_lossy();
    let named = Reference::parse(&text)?.or_else(|| Reference::of_model(&text));
    let Some(reference) = named else {
        return Ok((Some(path.clone()), None));
    };
    let fetched = hub::fetch(&reference, Kind::Model, &hub_options(args))
        .with_context(|| format!("--tokenizer-path {text} is no file here"))?;
    Ok((Some(fetched.path.clone()), Some(fetched)))
}

/// Where prompts come from.
fn origin(
    workload: &WorkloadArgs,
    named: Option<Dataset>,
    path: Option<PathBuf>,
) -> Result<dataset::Source> {
    let Some(named) = named else {
        let text = workload.prompt.clone().unwrap_or_default();
        return Ok(dataset::Source::Prompt(text));
    };
    let file = || {
        let kind = named.as_str();
        path.with_context(|| format!("--dataset {kind} needs --dataset-path FILE"))
    };
    let made = &workload.made;
    Ok(match named {
        Dataset::LineByLine => dataset::Source::LineByLine(file()?),
        Dataset::ShareGpt => dataset::Source::ShareGpt(file()?),
        Dataset::OpenQa | Dataset::LongAlpaca | Dataset::Table => dataset::Source::Table {
            path: file()?,
            columns: columns(workload, named)?,
        },
        Dataset::Random => dataset::Source::Random(random(workload, named)?),
        Dataset::Prefix => dataset::Source::Prefix(PrefixGroups {
            lengths: RandomLengths {
                prefix_tokens: made
                    .prefix_length
                    .context("--dataset prefix needs --prefix-length N")?,
                ..random(workload, named)?
            },
            groups: made.prefix_groups.unwrap_or(PREFIX_GROUPS),
            prompts_per_group: made.group_prompts,
        }),
        Dataset::Sonnet => dataset::Source::Sonnet {
            path: file()?,
            lengths: sonnet(made),
        },
        Dataset::SpeedBenchmark => dataset::Source::SpeedBenchmark { is_long: false },
        Dataset::SpeedBenchmarkLong => dataset::Source::SpeedBenchmark { is_long: true },
        Dataset::Prompts => dataset::Source::Folder(file()?),
    })
}

fn columns(workload: &WorkloadArgs, named: Dataset) -> Result<TableColumns> {
    let columns = &workload.columns;
    let default = match named {
        Dataset::OpenQa => Some("question"),
        Dataset::LongAlpaca => Some("instruction"),
        _ => None,
    };
    let prompt = columns.prompt_column.clone().or(default.map(str::to_owned));
    Ok(TableColumns {
        prompt: prompt.context("--dataset table needs --prompt-column NAME")?,
        output_length: columns.output_length_column.clone(),
        session: columns.session_column.clone(),
        reply: columns.reply_column.clone(),
        image: columns.image_column.clone(),
    })
}

fn random(workload: &WorkloadArgs, named: Dataset) -> Result<RandomLengths> {
    let (made, lengths) = (&workload.made, &workload.lengths);
    let ends = (lengths.min_prompt_length, lengths.max_prompt_length);
    let input_range = match ends {
        (None, None) => None,
        (low, high) => low.or(high).zip(high.or(low)),
    };
    if input_range.is_some_and(|(low, high)| low > high) {
        bail!("--min-prompt-length is above --max-prompt-length");
    }
    if input_range.is_some() && made.input_tokens.is_some() {
        bail!("--input-tokens and --min/max-prompt-length exclude each other");
    }
    let longest = input_range.map(|(_, high)| high);
    Ok(RandomLengths {
        input_tokens: made
            .input_tokens
            .or(longest)
            .with_context(|| format!("--dataset {} needs --input-tokens N", named.as_str()))?,
        input_range,
        output_tokens: made.output_tokens,
        range_ratio: made.random_range_ratio.unwrap_or(0.0),
        prefix_tokens: made.prefix_length.unwrap_or(0),
    })
}

fn sonnet(made: &MadeArgs) -> SonnetLengths {
    let default = SonnetLengths::default();
    SonnetLengths {
        input_tokens: made.input_tokens.unwrap_or(default.input_tokens),
        output_tokens: made.output_tokens.unwrap_or(default.output_tokens),
        prefix_tokens: made.prefix_length.unwrap_or(default.prefix_tokens),
    }
}

/// EvalScope's limits count tokens where a tokenizer is, else characters.
fn lengths(workload: &WorkloadArgs, named: Option<Dataset>) -> Result<PromptLengths> {
    let args = &workload.lengths;
    let mut limits = PromptLengths {
        min_chars: args.min_prompt_chars,
        max_chars: args.max_prompt_chars,
        min_tokens: args.min_prompt_tokens,
        max_tokens: args.max_prompt_tokens,
    };
    if named.is_some_and(is_random) {
        return Ok(limits);
    }
    let in_tokens = workload.tokenizer_path.is_some();
    let (min, max) = if in_tokens {
        (&mut limits.min_tokens, &mut limits.max_tokens)
    } else {
        (&mut limits.min_chars, &mut limits.max_chars)
    };
    for (flag, limit, value) in [
        ("--min-prompt-length", min, args.min_prompt_length),
        ("--max-prompt-length", max, args.max_prompt_length),
    ] {
        if value.is_some() && limit.is_some() {
            bail!("{flag} says again what --min/max-prompt-chars or -tokens say");
        }
        *limit = limit.or(value);
    }
    Ok(limits)
}

fn shaping(workload: &WorkloadArgs) -> Result<Shaping> {
    let around = &workload.around;
    let of_file = around
        .system_prompt_path
        .as_ref()
        .map(|p| format!("@{}", p.display()));
    let system_prompt = match around.system_prompt.clone().or(of_file) {
        None => None,
        Some(argument) => match prompts::prompt(&argument).context("--system-prompt")? {
            Item::Text(text) => Some(text),
            Item::Messages(_) | Item::Body(_) => None,
        },
    };
    Ok(Shaping {
        template: around.template.into(),
        system_prompt,
        images: around.images.clone(),
        salt: around.salt.clone(),
    })
}

fn expect_replies(loaded: &Loaded) -> Result<()> {
    let is_missing =
        |prompt: &tapedeck_workload::Prompt| prompt.turns.iter().any(|turn| turn.reply.is_empty());
    if loaded.prompts.iter().any(is_missing) {
        bail!(
            "--multi-turn-replies recorded needs a data set with replies: sharegpt, messages, or a table with --reply-column\nhint: --multi-turn-replies live carries what the server says"
        );
    }
    Ok(())
}

fn is_random(dataset: Dataset) -> bool {
    matches!(dataset, Dataset::Random | Dataset::Prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::load_args;

    fn load(line: &str) -> LoadArgs {
        load_args(["--url", "u"].into_iter().chain(line.split_whitespace()))
    }

    #[test]
    fn flags_of_another_data_set_are_refused() {
        for (line, flag) in [
            ("--prompt p --input-tokens 5", "--input-tokens"),
            ("--dataset-path f --prefix-length 5", "--prefix-length"),
            ("--dataset random --dataset-path f", "--dataset-path"),
            (
                "--dataset speed_benchmark --dataset-path f",
                "--dataset-path",
            ),
            (
                "--dataset sharegpt --dataset-path f --prompt-column q",
                "--prompt-column",
            ),
            ("--dataset sharegpt", "--dataset-path"),
            ("--dataset table --dataset-path f", "--prompt-column"),
            ("--dataset random --tokenizer-path t", "--input-tokens"),
            ("--dataset prefix --input-tokens 5", "--prefix-length"),
            (
                "--dataset openqa --dataset-path f --prefix-groups 3",
                "--prefix-groups",
            ),
            (
                "--dataset-path f --min-prompt-chars 3 --min-prompt-length 4",
                "--min-prompt-length",
            ),
            (
                "--dataset random --min-prompt-length 9 --max-prompt-length 4",
                "--min-prompt-length",
            ),
            (
                "--dataset random --min-prompt-length 9 --input-tokens 4",
                "--input-tokens",
            ),
        ] {
            let message = format!("{:#}", source(&load(line)).unwrap_err());
            assert!(message.contains(flag), "{line}: {message}");
        }
    }

    #[test]
    fn lengths_of_evalscope_are_tokens_where_something_counts_them() {
        let limits = |line: &str| {
            let args = load(line);
            lengths(&args.workload, named(&args.workload).unwrap()).unwrap()
        };
        let line = "--dataset-path f --min-prompt-length 2 --max-prompt-length 9";
        let chars = limits(line);
        assert_eq!((chars.min_chars, chars.max_chars), (Some(2), Some(9)));
        let tokens = limits(&format!("{line} --tokenizer-path t"));
        assert_eq!((tokens.min_tokens, tokens.max_tokens), (Some(2), Some(9)));
        assert_eq!(tokens.min_chars, None);
    }

    #[test]
    fn lengths_go_by_the_names_of_other_tools() {
        let args = load(
            "--dataset sonnet --sonnet-input-len 9 --sonnet-output-len 8 --sonnet-prefix-len 7",
        );
        let lengths = sonnet(&args.workload.made);
        assert_eq!(
            (
                lengths.input_tokens,
                lengths.output_tokens,
                lengths.prefix_tokens
            ),
            (9, 8, 7)
        );
        let args = load(
            "--dataset prefix --gsp-num-groups 3 --gsp-prompts-per-group 4 --gsp-system-prompt-len 5 --gsp-question-len 6 --gsp-output-len 7",
        );
        let found = origin(&args.workload, Some(Dataset::Prefix), None).unwrap();
        let dataset::Source::Prefix(groups) = found else {
            unreachable!()
        };
        assert_eq!((groups.groups, groups.prompts_per_group), (3, Some(4)));
        let lengths = groups.lengths;
        assert_eq!(
            (
                lengths.prefix_tokens,
                lengths.input_tokens,
                lengths.output_tokens
            ),
            (5, 6, Some(7))
        );
        assert_eq!(
            load("--sharegpt-output-len 5").workload.made.output_tokens,
            Some(5)
        );
    }
}
