//! SQL functions of ours: `output_text`, `input_text`, `text_is`, `token_count`,
//! `json_extract_string`, and the aggregates `distribution` and `stream`.
//!
//! Views that call one say `requires: tapedeck` in their header; all others are
//! plain SQL.

mod distribution;
mod stream;
mod text;

use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::utils::take_function_args;
use datafusion::common::{exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TypeSignature, Volatility,
};
use serde::de::{DeserializeOwned, IgnoredAny};
use tapedeck_tokens::{Tokenizer, TokenizerError};

pub(crate) use text::Dialects;

use crate::distribution::Spill;

/// What each function is for, as `\d` and the completion of the shell have it.
pub(crate) const FUNCTIONS: [(&str, &str); 7] = [
    (
        "output_text(data[, api])",
        "what the model wrote in a chunk or in an answer's body; api is requests.api",
    ),
    (
        "input_text(body[, api])",
        "the text of a request's messages or prompt",
    ),
    (
        "text_is(api)",
        "whether payloads have what is new (incremental) or all so far (cumulative)",
    ),
    (
        "token_count(text[, tokenizer])",
        "tokens of a text; tokenizer is a path, else --tokenizer-path",
    ),
    (
        "json_extract_string(data, pointer)",
        "the value at a JSON pointer, as text; NULL where there is none",
    ),
    (
        "distribution(values, percentiles[, rule[, weight]])",
        "aggregate: n, mean, std, min, max and the neighbours of each percentile, exactly",
    ),
    (
        "stream(t_ns, choice_index, chunk_index, read_index)",
        "aggregate: the gaps between an attempt's chunks, and its number of reads",
    ),
];

/// Tokenizers kept in memory; a large one takes some hundred MB.
const MAX_TOKENIZERS: usize = 4;

/// Tokenizers by path, each loaded once; beyond [`MAX_TOKENIZERS`] the one loaded
/// first goes.
#[derive(Debug, Default)]
pub(crate) struct Tokenizers {
    loaded: Mutex<Vec<(PathBuf, Arc<Tokenizer>)>>,
}

impl Tokenizers {
    /// The tokenizer at `path`. Who asks while another loads it waits, so that no
    /// file is read twice.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn get(&self, path: &Path) -> Result<Arc<Tokenizer>, TokenizerError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = loaded.iter().find(|(known, _)| known == path) {
            return Ok(Arc::clone(found));
        }
        let tokenizer = Arc::new(Tokenizer::open(path)?);
        if loaded.len() == MAX_TOKENIZERS {
            loaded.remove(0);
        }
        loaded.push((path.to_owned(), Arc::clone(&tokenizer)));
        Ok(tokenizer)
    }
}

/// Functions over many rows; samples of `distribution` may hold `most_bytes` in all.
pub(crate) fn aggregates(most_bytes: usize) -> [AggregateUDF; 2] {
    let spill = Arc::new(Spill::new(most_bytes));
    [distribution::function(spill), stream::function()]
}

/// All functions of one row; `tokenizer` is that of `token_count` with one argument.
pub(crate) fn all(
    dialects: &Dialects,
    tokenizers: Arc<Tokenizers>,
    tokenizer: Option<PathBuf>,
) -> Vec<ScalarUDF> {
    let mut all = text::functions(dialects);
    all.extend([
        json_extract_string(),
        ScalarUDF::new_from_impl(TokenCount {
            signature: Signature::one_of(
                vec![TypeSignature::Any(1), TypeSignature::Any(2)],
                // A file may change between two queries.
                Volatility::Stable,
            ),
            tokenizers,
            tokenizer,
        }),
    ]);
    all
}

fn is_text(data_type: &DataType) -> bool {
    use DataType::{Dictionary, LargeUtf8, Null, Utf8, Utf8View};
    match data_type {
        Utf8 | LargeUtf8 | Utf8View | Null => true,
        Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

pub(crate) fn is_binary(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, LargeBinary};
    matches!(data_type, Binary | LargeBinary | BinaryView)
}

fn is_payload(data_type: &DataType) -> bool {
    is_text(data_type) || is_binary(data_type)
}

/// `arg` as `rows` values of `data_type`.
fn values(arg: &ColumnarValue, rows: usize, data_type: &DataType) -> Result<ArrayRef> {
    Ok(cast(&arg.to_array(rows)?, data_type)?)
}

/// `token_count(text[, tokenizer])`: NULL where either is.
#[derive(Debug)]
struct TokenCount {
    signature: Signature,
    tokenizers: Arc<Tokenizers>,
    tokenizer: Option<PathBuf>,
}

impl PartialEq for TokenCount {
    fn eq(&self, other: &Self) -> bool {
        self.tokenizer == other.tokenizer && Arc::ptr_eq(&self.tokenizers, &other.tokenizers)
    }
}

impl Eq for TokenCount {}

impl Hash for TokenCount {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.tokenizer.hash(state);
    }
}

impl TokenCount {
    fn count(&self, text: &str, path: &Path) -> Result<i64> {
        let external = |error: TokenizerError| DataFusionError::External(error.into());
        let tokenizer = self.tokenizers.get(path).map_err(external)?;
        let tokens = tokenizer.count(text).map_err(external)?;
        Ok(i64::try_from(tokens).unwrap_or(i64::MAX))
    }
}

impl ScalarUDFImpl for TokenCount {
    fn name(&self) -> &str {
        "token_count"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if !arguments.iter().all(is_text) {
            return plan_err!(
                "token_count counts text\nhint: output_text(data) is the text of a payload"
            );
        }
        if arguments.len() == 1 && self.tokenizer.is_none() {
            return plan_err!(
                "token_count(text) has no tokenizer\n\
                 hint: --tokenizer-path FILE, or token_count(text, 'FILE')"
            );
        }
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = values(&args.args[0], args.number_rows, &DataType::Utf8)?;
        let paths = args
            .args
            .get(1)
            .map(|paths| values(paths, args.number_rows, &DataType::Utf8));
        let paths = paths.transpose()?;
        let path = |row: usize| match &paths {
            None => self.tokenizer.as_deref(),
            Some(paths) if paths.is_null(row) => None,
            Some(paths) => Some(Path::new(paths.as_string::<i32>().value(row))),
        };
        let texts = texts.as_string::<i32>().iter().enumerate();
        let counts = texts.map(|(row, text)| match (text, path(row)) {
            (Some(text), Some(path)) => self.count(text, path).map(Some),
            _ => Ok(None),
        });
        let counts = counts.collect::<Result<Int64Array>>()?;
        Ok(ColumnarValue::Array(Arc::new(counts)))
    }
}

/// `json_extract_string(payload, pointer)`: the value at a JSON pointer, strings
/// without their quotes, anything else as it is written. NULL where the payload is no
/// JSON, has nothing there, or has `null` there. Name and meaning are `DuckDB`'s.
fn json_extract_string() -> ScalarUDF {
    ScalarUDF::from(JsonExtractString {
        signature: Signature::any(2, Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonExtractString {
    signature: Signature,
}

impl ScalarUDFImpl for JsonExtractString {
    fn name(&self) -> &'static str {
        "json_extract_string"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        for kind in arguments {
            let is_dictionary = matches!(kind, DataType::Dictionary(..));
            if !is_payload(kind) || is_dictionary {
                return plan_err!(
                    "json_extract_string(payload, pointer) takes text or bytes, not {kind}"
                );
            }
        }
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [payloads, pointers] = take_function_args(self.name(), args.args)?;
        let payloads = values(&payloads, rows, &DataType::Binary)?;
        let pointers = values(&pointers, rows, &DataType::Utf8)?;
        let pointers = pointers.as_string::<i32>();
        let mut found = Vec::with_capacity(payloads.len());
        for (index, payload) in payloads.as_binary::<i32>().iter().enumerate() {
            let (Some(payload), true) = (payload, pointers.is_valid(index)) else {
                found.push(None);
                continue;
            };
            let pointer = pointers.value(index);
            if !pointer.is_empty() && !pointer.starts_with('/') {
                return exec_err!(
                    "{pointer:?} is not a JSON pointer: it starts with /, as in '/usage/total_tokens'"
                );
            }
            found.push(at_pointer(payload, pointer));
        }
        Ok(ColumnarValue::Array(Arc::new(StringArray::from(found))))
    }
}

fn at_pointer(payload: &[u8], pointer: &str) -> Option<String> {
    // As a whole, so that what is no JSON has nothing anywhere.
    serde_json::from_slice::<IgnoredAny>(payload).ok()?;
    let mut names = pointer.split('/').skip(1);
    let found = names.try_fold(payload, |value, name| {
        let name = name.replace("~1", "/").replace("~0", "~");
        member(value.trim_ascii_start(), &name)
    })?;
    let found = found.trim_ascii();
    match found.first()? {
        b'"' => serde_json::from_slice(found).ok(),
        b'n' => None,
        // As it is written: a number keeps every digit.
        _ => String::from_utf8(found.to_vec()).ok(),
    }
}

/// The JSON value that `text` begins with, and its length in bytes.
fn leading<T: DeserializeOwned>(text: &[u8]) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

/// The text of the member `name` of an object or an array; of several with one
/// name the last. `text` is valid JSON.
fn member<'t>(text: &'t [u8], name: &str) -> Option<&'t [u8]> {
    let is_object = match text.first()? {
        b'{' => true,
        b'[' => false,
        _ => return None,
    };
    let is_index = name == "0" || !name.starts_with(['0', '+']);
    let wanted = name.parse::<usize>().ok().filter(|_| is_index);
    let mut found = None;
    let mut rest = &text[1..];
    for index in 0.. {
        rest = rest.trim_ascii_start();
        rest = rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start();
        if matches!(rest.first()?, b'}' | b']') {
            return found;
        }
        let is_it = if is_object {
            let (key, length) = leading::<String>(rest)?;
            rest = rest[length..].trim_ascii_start().strip_prefix(b":")?;
            key == name
        } else {
            wanted == Some(index)
        };
        let (IgnoredAny, length) = leading(rest)?;
        if is_it {
            found = Some(&rest[..length]);
        }
        rest = &rest[length..];
    }
    None
}
