//! `ppl.llm.serving` over gRPC: two protocols under one package and service name.
//!
//! Fields 2 to 4 of a request have other types in the second than in the first, so
//! a client has to be told which a server speaks. The messages are those of the
//! `.proto` files in `dialects/`; `tests/grpc.rs` holds them against servers that are
//! generated from these.

use prost::Message;
use serde::Deserialize;
use serde_json::Value;

use crate::openai::Meaning;
use crate::words::ChunkKind;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// openppl's own.
    V1,
    /// llm.perf's.
    V2,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tokens {
    #[prost(uint32, repeated, tag = "1")]
    ids: Vec<u32>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stopping {
    #[prost(uint32, tag = "1")]
    max_new_tokens: u32,
    #[prost(message, optional, tag = "2")]
    stop_tokens: Option<Tokens>,
    #[prost(bool, tag = "3")]
    ignore_eos_token: bool,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequestV1 {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(float, tag = "2")]
    temperature: f32,
    #[prost(string, tag = "3")]
    prompt: String,
    #[prost(message, optional, tag = "4")]
    tokens: Option<Tokens>,
    #[prost(message, optional, tag = "5")]
    stopping_parameters: Option<Stopping>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Choosing {
    #[prost(float, tag = "1")]
    temperature: f32,
    #[prost(uint32, tag = "2")]
    top_k: u32,
    #[prost(float, tag = "3")]
    top_p: f32,
    #[prost(float, tag = "4")]
    typical_p: f32,
    #[prost(bool, tag = "5")]
    do_sample: bool,
    #[prost(uint64, tag = "6")]
    seed: u64,
    #[prost(float, tag = "7")]
    repetition_penalty: f32,
    #[prost(float, tag = "8")]
    presence_penalty: f32,
    #[prost(float, tag = "9")]
    frequency_penalty: f32,
    #[prost(bool, tag = "10")]
    watermark: bool,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequestV2 {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    prompt: String,
    #[prost(message, optional, tag = "3")]
    tokens: Option<Tokens>,
    #[prost(message, optional, tag = "4")]
    choosing_parameters: Option<Choosing>,
    #[prost(message, optional, tag = "5")]
    stopping_parameters: Option<Stopping>,
}

/// `BatchedRequest` of either.
#[derive(Clone, PartialEq, Message)]
struct Batch<R: Message + Default + std::fmt::Debug> {
    #[prost(message, repeated, tag = "1")]
    req: Vec<R>,
}

/// `detail` is the second's; the first never sends it.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(string, tag = "3")]
    generated: String,
    #[prost(message, optional, tag = "4")]
    tokens: Option<Tokens>,
    #[prost(message, optional, tag = "5")]
    detail: Option<Detail>,
}

#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(float, tag = "1")]
    logprobs: f32,
    #[prost(bool, tag = "2")]
    is_special: bool,
    #[prost(int32, tag = "3")]
    finish_reason: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Answers {
    #[prost(message, repeated, tag = "1")]
    rsp: Vec<Response>,
}

const FINISHED: i32 = 1;
const FAILED: i32 = 2;

/// The bytes of a batch of one request, whose fields `body` has by name.
///
/// # Errors
/// When a field is unknown or of another type.
pub fn encode(version: Version, body: &Value) -> Result<Vec<u8>, serde_json::Error> {
    Ok(match version {
        Version::V1 => batch(RequestV1::deserialize(body)?),
        Version::V2 => batch(RequestV2::deserialize(body)?),
    })
}

fn batch<R: Message + Default + std::fmt::Debug>(request: R) -> Vec<u8> {
    Batch { req: vec![request] }.encode_to_vec()
}

/// The prompts in a request. `None` where there are none, or token ids.
#[must_use]
pub fn input_text(version: Version, message: &[u8]) -> Option<String> {
    let prompts: Vec<String> = match version {
        Version::V1 => {
            let batch = Batch::<RequestV1>::decode(message).ok()?;
            batch.req.into_iter().map(|r| r.prompt).collect()
        }
        Version::V2 => {
            let batch = Batch::<RequestV2>::decode(message).ok()?;
            batch.req.into_iter().map(|r| r.prompt).collect()
        }
    };
    Some(prompts.join("\n")).filter(|text| !text.is_empty())
}

/// What the model wrote in one message of an answer.
#[must_use]
pub fn output_text(message: &[u8]) -> Option<String> {
    let answers = Answers::decode(message).ok()?;
    let texts = answers.rsp.into_iter().map(|r| r.generated);
    Some(texts.collect::<String>()).filter(|text| !text.is_empty())
}

/// Reads one message of an answer. Never fails.
#[must_use]
pub fn interpret(version: Version, message: &[u8]) -> Meaning {
    let Ok(answers) = Answers::decode(message) else {
        return Meaning {
            malformed: true,
            ..Meaning::default()
        };
    };
    let mut meaning = Meaning::default();
    for response in &answers.rsp {
        if response.status == FAILED {
            let error = format!("the server says FAILED of request {}", response.id);
            return Meaning::error(error);
        }
        if !response.generated.is_empty() {
            meaning.kind = ChunkKind::Content;
        }
        if let Some(tokens) = &response.tokens {
            let count = i32::try_from(tokens.ids.len()).unwrap_or(i32::MAX);
            meaning.tokens = Some(count.saturating_add(meaning.tokens.unwrap_or(0)));
        }
        if response.status == FINISHED {
            meaning.end_marker = true;
            meaning.finish_reason = finish_reason(version, response);
        }
    }
    meaning
}

/// The names of the `.proto` file; the first protocol gives no reason.
fn finish_reason(version: Version, response: &Response) -> Option<String> {
    let detail = response.detail.as_ref();
    let reason = detail.filter(|_| version == Version::V2)?.finish_reason;
    Some(match reason {
        0 => "length".to_owned(),
        1 => "eos".to_owned(),
        2 => "stop_sequence".to_owned(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_two_requests_differ_in_the_types_of_their_fields() {
        let body = json!({"prompt": "hi", "stopping_parameters": {"max_new_tokens": 3}});
        let [first, second] = [Version::V1, Version::V2].map(|v| encode(v, &body).unwrap());
        assert_eq!(first, b"\x0a\x08\x1a\x02hi\x2a\x02\x08\x03");
        assert_eq!(second, b"\x0a\x08\x12\x02hi\x2a\x02\x08\x03");
        assert_eq!(input_text(Version::V1, &first).as_deref(), Some("hi"));
        assert_eq!(input_text(Version::V2, &second).as_deref(), Some("hi"));
        assert_eq!(input_text(Version::V1, &second), None);
        let only_second = json!({"choosing_parameters": {"top_k": 1}});
        assert!(encode(Version::V1, &only_second).is_err());
        assert!(encode(Version::V2, &only_second).is_ok());
    }

    fn answer(status: i32, generated: &str, ids: &[u32], finish: Option<i32>) -> Vec<u8> {
        let response = Response {
            status,
            id: 0,
            generated: generated.to_owned(),
            tokens: (!ids.is_empty()).then(|| Tokens { ids: ids.to_vec() }),
            detail: finish.map(|finish_reason| Detail {
                finish_reason,
                ..Detail::default()
            }),
        };
        batch_of(vec![response])
    }

    fn batch_of(rsp: Vec<Response>) -> Vec<u8> {
        Answers { rsp }.encode_to_vec()
    }

    #[test]
    fn an_answer_says_text_tokens_and_end() {
        let read = |message: &[u8]| {
            let m = interpret(Version::V2, message);
            (m.kind.as_str(), m.tokens, m.end_marker, m.finish_reason)
        };
        let reason = |reason: &str| Some(reason.to_owned());
        assert_eq!(
            read(&answer(0, "to", &[5, 6], Some(0))),
            ("content", Some(2), false, None)
        );
        assert_eq!(
            read(&answer(1, "", &[], Some(1))),
            ("other", None, true, reason("eos"))
        );
        assert_eq!(
            read(&answer(1, "be", &[7], None)),
            ("content", Some(1), true, None)
        );
        assert_eq!(read(&answer(2, "x", &[], None)).0, "error");
        assert_eq!(
            output_text(&answer(0, "to", &[], None)).as_deref(),
            Some("to")
        );
        // The first protocol has no reasons, whatever stands there.
        let first = interpret(Version::V1, &answer(1, "", &[], Some(1)));
        assert_eq!((first.end_marker, first.finish_reason), (true, None));
    }

    proptest! {
        /// For every bytes: no panic.
        #[test]
        fn any_bytes_are_read(message in proptest::collection::vec(any::<u8>(), 0..60)) {
            for version in [Version::V1, Version::V2] {
                let meaning = interpret(version, &message);
                prop_assert_eq!(meaning.kind == ChunkKind::Error, meaning.error.is_some());
                prop_assert!(!meaning.malformed || output_text(&message).is_none());
                drop(input_text(version, &message));
            }
        }
    }
}
