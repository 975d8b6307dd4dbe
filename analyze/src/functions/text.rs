//! `output_text`, `input_text` and `text_is`: payloads read as their APIs have them.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
    Volatility,
};
use serde_json::Value;
use tapedeck_wire::dialect::{self, Api, Dialect};

use super::{is_payload, is_text, values};

/// The APIs of a session's recordings: what their manifests bring, and what is built in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dialects {
    recorded: Arc<Vec<Api>>,
}

impl PartialEq for Dialects {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.recorded, &other.recorded)
    }
}

impl Eq for Dialects {}

impl Hash for Dialects {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.recorded.len().hash(state);
    }
}

impl Dialects {
    /// Of the settings of manifests. A dialect that this program is too old for is left
    /// out: its texts are NULL.
    pub(crate) fn of<'s>(settings: impl Iterator<Item = &'s Value>) -> Self {
        let mut seen: Vec<&Value> = Vec::new();
        let mut recorded = Vec::new();
        for dialect in settings.filter_map(|settings| settings.get("dialect")) {
            if dialect.is_null() || seen.contains(&dialect) {
                continue;
            }
            seen.push(dialect);
            if let Ok(dialect) = Dialect::from_recorded(dialect) {
                recorded.push(Api::of(dialect));
            }
        }
        Self {
            recorded: Arc::new(recorded),
        }
    }

    /// What `name` may stand for, best first: two recordings may have different files
    /// under one name.
    fn named(&self, name: &str) -> Vec<Api> {
        let mut found: Vec<Api> = self.recorded.iter().copied().collect();
        found.retain(|api| api.as_str() == name);
        if found.is_empty() {
            found.extend(Api::from_word(name));
        }
        found
    }

    /// All of them, `OpenAI`'s first.
    fn all(&self) -> Vec<Api> {
        let openai = [Api::OpenAiChat];
        openai
            .into_iter()
            .chain(self.recorded.iter().copied())
            .collect()
    }
}

pub(super) fn functions(dialects: &Dialects) -> Vec<ScalarUDF> {
    let text = |name, read| {
        ScalarUDF::new_from_impl(PayloadText {
            name,
            read,
            dialects: dialects.clone(),
            signature: Signature::one_of(
                vec![TypeSignature::Any(1), TypeSignature::Any(2)],
                Volatility::Immutable,
            ),
        })
    };
    vec![
        text("output_text", dialect::output_text),
        text("input_text", dialect::input_text),
        ScalarUDF::new_from_impl(TextIs {
            dialects: dialects.clone(),
            signature: Signature::any(1, Volatility::Immutable),
        }),
    ]
}

/// What each name of a column stands for, looked up once.
struct Named<'a> {
    dialects: &'a Dialects,
    known: HashMap<String, Vec<Api>>,
}

impl Named<'_> {
    fn get(&mut self, name: &str) -> &[Api] {
        if !self.known.contains_key(name) {
            self.known
                .insert(name.to_owned(), self.dialects.named(name));
        }
        self.known.get(name).map_or(&[], Vec::as_slice)
    }
}

/// A payload's bytes → the text in it: as `api` has it, else as any API of the session.
#[derive(Debug)]
struct PayloadText {
    name: &'static str,
    read: fn(Api, &[u8]) -> Option<String>,
    dialects: Dialects,
    signature: Signature,
}

impl PartialEq for PayloadText {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.dialects == other.dialects
    }
}

impl Eq for PayloadText {}

impl Hash for PayloadText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.dialects.hash(state);
    }
}

impl PayloadText {
    fn first(&self, apis: &[Api], payload: &[u8]) -> Option<String> {
        apis.iter().find_map(|api| (self.read)(*api, payload))
    }
}

impl ScalarUDFImpl for PayloadText {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if !arguments.first().is_some_and(is_payload) {
            return plan_err!("{} reads a payload: chunks.data, or a body", self.name);
        }
        if !arguments.iter().skip(1).all(is_text) {
            return plan_err!(
                "the second argument of {} is the name of an API: requests.api",
                self.name
            );
        }
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let payloads = values(&args.args[0], rows, &DataType::Binary)?;
        let apis = args.args.get(1);
        let apis = apis
            .map(|apis| values(apis, rows, &DataType::Utf8))
            .transpose()?;
        let mut named = Named {
            dialects: &self.dialects,
            known: HashMap::new(),
        };
        let all = self.dialects.all();
        let payloads = payloads.as_binary::<i32>().iter().enumerate();
        let texts = payloads.map(|(row, payload)| match (&apis, payload) {
            (None, Some(payload)) => self.first(&all, payload),
            (Some(apis), Some(payload)) if apis.is_valid(row) => {
                let apis = named.get(apis.as_string::<i32>().value(row));
                self.first(apis, payload)
            }
            _ => None,
        });
        Ok(ColumnarValue::Array(Arc::new(
            texts.collect::<StringArray>(),
        )))
    }
}

/// `text_is(api)`: `incremental` or `cumulative`, NULL where the API is not known.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TextIs {
    dialects: Dialects,
    signature: Signature,
}

impl ScalarUDFImpl for TextIs {
    fn name(&self) -> &'static str {
        "text_is"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if !arguments.iter().all(is_text) {
            return plan_err!("text_is takes the name of an API: requests.api");
        }
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let apis: ArrayRef = values(&args.args[0], args.number_rows, &DataType::Utf8)?;
        let mut named = Named {
            dialects: &self.dialects,
            known: HashMap::new(),
        };
        let words = apis.as_string::<i32>().iter().map(|name| {
            let api = named.get(name?).first()?;
            Some(match api.dialect().is_cumulative() {
                true => "cumulative",
                false => "incremental",
            })
        });
        Ok(ColumnarValue::Array(Arc::new(
            words.collect::<StringArray>(),
        )))
    }
}
