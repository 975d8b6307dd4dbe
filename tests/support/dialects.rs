//! Servers that speak the dialects: fixtures of what is sent and what comes back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::mock_llm::replies::{LAST_CHUNK, http_chunk, json, whole};
use super::mock_llm::{MockLlm, Received, Reply, Script, Step};

/// The prompt that every fixture's request has in it.
pub const PROMPT: &str = "Say hi.";

/// `tests/fixtures/dialects/<api>.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    /// Flags of `record load` beside --url, --api and --prompt.
    pub flags: String,
    pub path: String,
    /// The body, byte for byte; of gRPC in hex.
    pub request: String,
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

/// One answer, and what a recording must say of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    /// Further flags.
    #[serde(default)]
    pub flags: String,
    /// Where it differs from the fixture's.
    pub path: Option<String>,
    pub request: Option<String>,
    /// That the request must have, by lower-case name.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default = "ok_status")]
    pub status: u16,
    pub content_type: String,
    pub body: String,
    pub outcome: String,
    /// Kind and, where they are known, tokens: `content 1`.
    #[serde(default)]
    pub chunks: Vec<String>,
    pub finish: Option<String>,
    pub error: Option<String>,
    pub input_tokens: Option<i32>,
    pub output_tokens: Option<i32>,
    pub reasoning_tokens: Option<i32>,
    pub cached_tokens: Option<i32>,
}

fn ok_status() -> u16 {
    200
}

/// Gap between two writes of a stream, ns.
const GAP_NS: i64 = 3_000_000;

/// All fixtures by the name of their API.
pub fn all() -> Vec<(String, Fixture)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dialects"));
    let files = std::fs::read_dir(folder).expect("the fixtures are there");
    let mut fixtures: Vec<_> = files
        .map(|file| {
            let path = file.expect("a fixture").path();
            let text = std::fs::read_to_string(&path).expect("a fixture is text");
            let fixture =
                toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let name = path.file_stem().expect("a name").to_string_lossy();
            (name.into_owned(), fixture)
        })
        .collect();
    fixtures.sort_by(|a, b| a.0.cmp(&b.0));
    fixtures
}

impl Case {
    /// A server that gives this answer to exactly the fixture's request, and to any
    /// other a 400 that tells the difference.
    pub fn serve(&self, fixture: &Fixture) -> MockLlm {
        let expected = Expected {
            path: self.path.clone().unwrap_or_else(|| fixture.path.clone()),
            body: self
                .request
                .clone()
                .unwrap_or_else(|| fixture.request.clone()),
            headers: self.headers.clone(),
        };
        let reply = self.reply();
        MockLlm::start(Script::new(move |request| {
            match expected.differs(request) {
                None => reply.clone(),
                Some(difference) => {
                    json(400, &serde_json::json!({ "error": difference }).to_string())
                }
            }
        }))
    }

    /// What a report says of the output's tokens: the server's count, else the ids in
    /// the chunks.
    pub fn reported_tokens(&self) -> Option<i32> {
        let in_chunks = self.chunks.iter();
        let in_chunks = in_chunks.filter_map(|chunk| chunk.split_once(' ')?.1.parse().ok());
        let sum = in_chunks.reduce(|sum: i32, tokens: i32| sum + tokens);
        self.output_tokens.or(sum)
    }

    fn is_stream(&self) -> bool {
        ["event-stream", "ndjson"]
            .iter()
            .any(|kind| self.content_type.contains(kind))
    }

    /// Each event its own write.
    pub fn reply(&self) -> Reply {
        if !self.is_stream() {
            let answer = whole(self.status, &self.content_type, "", &self.body);
            return vec![Step::Pause(GAP_NS), Step::send(answer)].into();
        }
        let head = format!(
            "HTTP/1.1 {} OK\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n",
            self.status, self.content_type
        );
        let mut steps = vec![Step::send(head)];
        for write in self.writes() {
            steps.push(Step::Pause(GAP_NS));
            steps.push(Step::send(http_chunk(write.as_bytes())));
        }
        steps.push(Step::send(LAST_CHUNK));
        steps.into()
    }

    fn writes(&self) -> Vec<&str> {
        let end = if self.content_type.contains("ndjson") {
            "\n"
        } else {
            "\n\n"
        };
        self.body.split_inclusive(end).collect()
    }

    /// Step of the write with the first content-bearing event.
    pub fn first_content_step(&self) -> Option<usize> {
        let bears = |kind: &&str| {
            ["content", "tool", "reasoning"]
                .iter()
                .any(|word| kind.starts_with(word))
        };
        // A comment inside an event is a chunk, and no write of its own.
        let inside = self.body.contains("\n:");
        let kinds = self.chunks.iter().map(String::as_str);
        let mut kinds = kinds.filter(|kind| !inside || *kind != "comment");
        kinds.position(|kind| bears(&kind)).map(|at| 2 + 2 * at)
    }
}

#[derive(Debug)]
struct Expected {
    path: String,
    body: String,
    headers: BTreeMap<String, String>,
}

impl Expected {
    fn differs(&self, request: &Received) -> Option<String> {
        let body = std::str::from_utf8(&request.body).unwrap_or_default();
        if (request.method.as_str(), request.path.as_str()) != ("POST", self.path.as_str()) {
            return Some(format!(
                "{} {} is not {}",
                request.method, request.path, self.path
            ));
        }
        if body != self.body {
            return Some(format!("body {body} is not {}", self.body));
        }
        let wrong = self
            .headers
            .iter()
            .find(|(name, value)| request.header(name) != Some(value.as_str()));
        wrong.map(|(name, value)| {
            format!("header {name} is {:?}, not {value}", request.header(name))
        })
    }
}
