//! What the settings of a manifest say about the data set.

use serde_json::{Map, Value, json};
use tapedeck_run::hub::Fetched;
use tapedeck_workload::dataset::{self, CountedBy, RandomLengths};
use tapedeck_workload::dialogue::Replies;

use super::Source;
use crate::workload::WorkloadArgs;

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
