//! What is to be sent: which data set, whose flags, from where.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tapedeck_run::hub::{self, Fetched, HubOptions, Kind, Reference};
use tapedeck_workload::dataset::{
    self, CountedBy, DatasetSpec, Loaded, PrefixGroups, RandomLengths, TableColumns,
};
use tapedeck_workload::dialogue::Replies;
use tapedeck_workload::{Item, PromptLengths, Shaping, SonnetLengths, command, prompts};

use crate::cli::LoadArgs;
use crate::workload::{Dataset, MadeArgs, WorkloadArgs};

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
    let named = named(workload)?;
    refuse_strangers(workload, named)?;
    let (tokenizer_path, tokenizer_hub) = tokenizer(args)?;
    // Held until the data set is read: it removes the file when it is dropped.
    let output = match &workload.dataset_command {
        Some(line) => Some(command::output_of(line)?),
        None => None,
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
            .or_else(|| workload.dataset_command.clone())
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

/// Flags that would say nothing to the data set are an error, not a surprise.
fn refuse_strangers(workload: &WorkloadArgs, named: Option<Dataset>) -> Result<()> {
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

/// What the settings of a manifest say about the data set.
#[must_use]
pub fn dataset_json(source: &Source, workload: &WorkloadArgs) -> Value {
    let loaded = &source.loaded;
    let spec = &source.spec;
    let left_out = loaded.left_out.iter();
    let left_out: Map<String, Value> = left_out
        .map(|(reason, n)| (reason.as_str().to_owned(), json!(n)))
        .collect();
    let (counted_by, tokenizer) = match &loaded.counted_by {
        CountedBy::Nobody => (None, None),
        CountedBy::Estimate => (Some("estimate"), None),
        CountedBy::Tokenizer { path, content_hash } => (
            Some("tokenizer"),
            Some(json!({
                "path": path,
                "content_hash": content_hash,
                "hub": hub_json(source.tokenizer_hub.as_ref()),
            })),
        ),
    };
    let lengths = &spec.lengths;
    let columns = match &spec.source {
        dataset::Source::Table { columns, .. } => Some(columns),
        _ => None,
    };
    json!({
        "source_hash": loaded.source_hash,
        "records": loaded.records,
        "prompts": loaded.prompts.len(),
        "left_out": left_out,
        "unused": loaded.unused,
        "lost": loaded.lost,
        "tokens_counted_by": counted_by,
        "tokenizer": tokenizer,
        "hub": hub_json(source.hub.as_ref()),
        "prompt_column": columns.map(|c| &c.prompt),
        "output_length_column": columns.map(|c| &c.output_length),
        "session_column": columns.map(|c| &c.session),
        "reply_column": columns.map(|c| &c.reply),
        "image_column": columns.map(|c| &c.image),
        "min_prompt_chars": lengths.min_chars,
        "max_prompt_chars": lengths.max_chars,
        "min_prompt_tokens": lengths.min_tokens,
        "max_prompt_tokens": lengths.max_tokens,
        "made": made_json(&spec.source),
        "template": spec.shaping.template.as_str(),
        "salt": spec.shaping.salt,
        "images": spec.shaping.images.len(),
        "sessions": sessions_json(source, workload),
    })
}

fn hub_json(fetched: Option<&Fetched>) -> Option<Value> {
    let fetched = fetched?;
    Some(json!({"name": fetched.name, "etag": fetched.etag, "commit": fetched.commit}))
}

fn sessions_json(source: &Source, workload: &WorkloadArgs) -> Option<Value> {
    let sessions = &workload.sessions;
    let think = sessions.think_time;
    let prompts = &source.loaded.prompts;
    (sessions.num_turns > 1).then(|| {
        json!({
            "num_turns": sessions.num_turns,
            "replies": Replies::from(sessions.multi_turn_replies).as_str(),
            "think_time_s": [think.low.as_secs_f64(), think.high.as_secs_f64()],
            "turns": prompts.iter().map(|p| 1 + p.turns.len()).sum::<usize>(),
        })
    })
}

fn made_json(source: &dataset::Source) -> Value {
    let random = |lengths: &RandomLengths| {
        json!({
            "input_tokens": lengths.input_tokens,
            "input_range": lengths.input_range.map(|(low, high)| [low, high]),
            "output_tokens": lengths.output_tokens,
            "range_ratio": lengths.range_ratio,
            "prefix_tokens": lengths.prefix_tokens,
        })
    };
    match source {
        dataset::Source::Random(lengths) => random(lengths),
        dataset::Source::Prefix(groups) => {
            let mut made = random(&groups.lengths);
            made["groups"] = groups.groups.into();
            made["prompts_per_group"] = groups.prompts_per_group.into();
            made
        }
        dataset::Source::Sonnet { lengths, .. } => json!({
            "input_tokens": lengths.input_tokens,
            "output_tokens": lengths.output_tokens,
            "prefix_tokens": lengths.prefix_tokens,
        }),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn load(line: &str) -> LoadArgs {
        let words = ["record", "load", "--url", "u"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Load(args) => *args,
            _ => unreachable!(),
        }
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
