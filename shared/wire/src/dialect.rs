//! APIs as data: what is sent, and where in the answer things sit.
//!
//! A dialect is a TOML file. Those in `dialects/` beside this crate are built in;
//! a user's own is read by the same code. `dialects/README.md` describes every
//! key. Nothing here reads files: a caller hands the text over.

use std::fmt;
use std::sync::OnceLock;

use serde_json::Value;

mod error;
mod facts;
mod file;
mod place;
mod said;
mod template;

pub use error::DialectError;
pub use facts::request_facts;
pub use file::{AuthHeader, EndRule, Framing, InterpreterName, RequestPart, ResponsePart, TextIs};
pub use place::{Counts, Place, Places, Pointer};
pub use said::{input_text, output_text, reply_text};
pub use template::{Placeholder, Template};

/// The newest version of the file format that is understood.
pub const VERSION: u32 = 1;

/// One API, checked and complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Dialect {
    /// As it stands in `requests.api`.
    pub name: String,
    /// One line for people.
    pub about: String,
    pub request: RequestPart,
    pub response: ResponsePart,
    /// The whole file with what it extends filled in, to be kept in a manifest:
    /// [`Dialect::from_recorded`] reads it again.
    pub recorded: Value,
}

impl Dialect {
    /// Reads a dialect. `origin` stands in messages, and the name is `stem` unless
    /// the file has one.
    ///
    /// # Errors
    /// Naming the file, the key and what is known instead.
    pub fn parse(text: &str, origin: &str, stem: &str) -> Result<Self, DialectError> {
        file::parse(text, origin, stem)
    }

    /// Reads [`Dialect::recorded`] from a manifest.
    ///
    /// # Errors
    /// When it is no dialect, or one of a newer version.
    pub fn from_recorded(recorded: &Value) -> Result<Self, DialectError> {
        file::from_recorded(recorded)
    }

    /// The path for `model`, streamed or not; `None` where the path names a model
    /// and there is none.
    #[must_use]
    pub fn path(&self, model: Option<&str>, stream: bool) -> Option<String> {
        let whole = self.request.whole_path.as_deref().filter(|_| !stream);
        let path = whole.unwrap_or(&self.request.path);
        if !path.contains("%m") {
            return Some(path.to_owned());
        }
        let default = self.request.defaults.get("model").and_then(Value::as_str);
        Some(path.replace("%m", model.or(default)?))
    }

    /// Every path of this API with `*` for the model.
    pub fn path_patterns(&self) -> impl Iterator<Item = String> {
        let paths = [Some(&self.request.path), self.request.whole_path.as_ref()];
        paths
            .into_iter()
            .flatten()
            .map(|path| path.replace("%m", "*"))
    }

    /// Whether `path` is one of this API's, under any prefix and for any model.
    #[must_use]
    pub fn serves(&self, path: &str) -> bool {
        let paths = [Some(&self.request.path), self.request.whole_path.as_ref()];
        let mut paths = paths.into_iter().flatten();
        paths.any(|own| match own.split_once("%m") {
            None => path.ends_with(own.as_str()),
            Some((head, tail)) => path
                .strip_suffix(tail)
                .is_some_and(|rest| rest.contains(head)),
        })
    }
}

/// Which API an exchange speaks. A handle: a dialect, once read, lives as long as
/// the process, which reads a handful.
#[derive(Clone, Copy)]
pub enum Api {
    OpenAiChat,
    OpenAiCompletions,
    Dialect(&'static Dialect),
}

impl Api {
    /// `dialect` for the rest of the process.
    #[must_use]
    pub fn of(dialect: Dialect) -> Self {
        Self::Dialect(Box::leak(Box::new(dialect)))
    }

    /// The name that stands in a recording.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAiChat => "openai-chat",
            Self::OpenAiCompletions => "openai-completions",
            Self::Dialect(dialect) => &dialect.name,
        }
    }

    /// The built-in API of that name, also under a name that other tools have for
    /// it.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let row = BUILT_IN.iter().find(|row| row.answers_to(word))?;
        Some(match row.name {
            "openai-chat" => Self::OpenAiChat,
            "openai-completions" => Self::OpenAiCompletions,
            _ => Self::Dialect(row.dialect()),
        })
    }

    #[must_use]
    pub fn dialect(self) -> &'static Dialect {
        match self {
            Self::OpenAiChat => OPENAI_CHAT.dialect(),
            Self::OpenAiCompletions => OPENAI_COMPLETIONS.dialect(),
            Self::Dialect(dialect) => dialect,
        }
    }

    /// All that are built in, in the order they are shown.
    pub fn built_in() -> impl Iterator<Item = &'static BuiltIn> {
        BUILT_IN.iter().copied()
    }
}

impl PartialEq for Api {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str() && self.dialect() == other.dialect()
    }
}

impl Eq for Api {}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A dialect that this crate brings, read when it is first asked for.
#[derive(Debug)]
pub struct BuiltIn {
    pub name: &'static str,
    /// What other tools call it.
    pub aliases: &'static [&'static str],
    /// The file.
    pub text: &'static str,
    read: OnceLock<Dialect>,
}

impl BuiltIn {
    const fn new(name: &'static str, aliases: &'static [&'static str], text: &'static str) -> Self {
        Self {
            name,
            aliases,
            text,
            read: OnceLock::new(),
        }
    }

    /// Whether `word` is its name or an alias.
    #[must_use]
    pub fn answers_to(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }

    /// What the file says.
    ///
    /// # Panics
    /// When the file is none; a test reads them all.
    pub fn dialect(&self) -> &Dialect {
        self.read.get_or_init(|| {
            Dialect::parse(self.text, self.name, self.name)
                .unwrap_or_else(|error| panic!("built-in dialect {error}"))
        })
    }
}

macro_rules! built_in {
    ($($constant:ident = $name:literal $aliases:expr;)+) => {
        $(
            static $constant: BuiltIn = BuiltIn::new(
                $name,
                &$aliases,
                include_str!(concat!("../dialects/", $name, ".toml")),
            );
        )+
        static BUILT_IN: &[&BuiltIn] = &[$(&$constant),+];
    };
}

// Aliases are the names that EvalScope and SGLang's and Aphrodite's benchmarks use.
built_in! {
    OPENAI_CHAT = "openai-chat" [];
    OPENAI_COMPLETIONS = "openai-completions" ["sglang-oai"];
    OPENAI_RESPONSES = "openai-responses" ["openai_responses"];
    OPENAI_EMBEDDINGS = "openai-embeddings" ["openai_embedding", "openai-embedding"];
    RERANK = "rerank" ["openai_rerank", "vllm-rerank"];
    ANTHROPIC_MESSAGES = "anthropic-messages" ["anthropic_messages", "anthropic"];
    OLLAMA = "ollama" [];
    VLLM = "vllm" [];
    APHRODITE = "aphrodite" [];
    LMDEPLOY = "lmdeploy" [];
    SCALELLM = "scalellm" [];
    SGLANG = "sglang" ["sglang-native"];
    TGI = "tgi" ["huggingface_generate"];
    TENSORRT_LLM = "tensorrt-llm" ["trt"];
    TRITON = "triton" [];
    LIGHTLLM = "lightllm" [];
    DEEPSPEED_MII = "deepspeed-mii" [];
    AMSV2 = "amsv2" [];
    DASHSCOPE = "dashscope" [];
    DASHSCOPE_CUMULATIVE = "dashscope-cumulative" [];
    PPL_V1 = "ppl-v1" [];
    PPL_V2 = "ppl-v2" ["ppl"];
}

#[cfg(test)]
mod tests;
