//! What payloads say without a stream around them.

use serde_json::Value;

use super::place::{Pointer, count};
use super::{Api, Dialect, Framing, InterpreterName, Placeholder};
use crate::lenient;
use crate::openai::{self, RequestFacts};

/// Reads the body of a request to `path` that a client wrote; nothing is known of
/// one that is no JSON object.
#[must_use]
pub fn request_facts(api: Api, path: &str, body: &[u8]) -> RequestFacts {
    let dialect = api.dialect();
    if dialect.response.interpreter == InterpreterName::OpenAi {
        return openai::request_facts(body);
    }
    let document = lenient::document(body).unwrap_or_default();
    let stream = place(dialect, Placeholder::Stream)
        .and_then(|at| at.first(&document)?.as_bool())
        .unwrap_or_else(|| asks_by_path(dialect, path));
    RequestFacts {
        model: place(dialect, Placeholder::Model)
            .and_then(|at| at.first(&document)?.as_str().map(str::to_owned)),
        stream: stream && dialect.response.framing != Framing::None,
        max_output_tokens: dialect.limit_of(&document),
    }
}

/// Where the body has no field for it: two paths tell streams from whole answers.
fn asks_by_path(dialect: &Dialect, path: &str) -> bool {
    match &dialect.request.whole_path {
        Some(whole) => !path.ends_with(whole.as_str()),
        None => dialect.request.streams_unasked,
    }
}

fn place(dialect: &Dialect, placeholder: Placeholder) -> Option<Pointer> {
    let keys = dialect.request.body.place_of(placeholder)?;
    Some(Pointer::of_keys(&keys))
}

impl Dialect {
    /// The output limit that `body` asks for.
    #[must_use]
    pub fn limit_of(&self, body: &Value) -> Option<i32> {
        let own = place(self, Placeholder::MaxTokens);
        let mut places = own.iter().chain(&self.request.other_limits);
        places.find_map(|at| count(at.first(body)?))
    }
}
