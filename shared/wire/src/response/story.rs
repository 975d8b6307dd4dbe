//! What the payloads of one response add up to.

use crate::dialect::{Api, Dialect, EndRule, InterpreterName};
use crate::openai::{self, Meaning, Usage};
use crate::places;
use crate::ppl;
use crate::sse::{Frame, FrameClass};
use crate::words::{ChunkKind, Outcome};

use super::{Chunk, End};

#[derive(Debug)]
pub(super) struct Story {
    interpreter: Interpreter,
    end_rule: EndRule,
    pub(super) chunk_count: i32,
    pub(super) malformed_chunks: i32,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<Usage>,
    /// `[DONE]` came.
    pub(super) done: bool,
    error: Option<String>,
    finished: bool,
    choices: Choices,
}

/// Who reads the payloads of a stream.
#[derive(Debug)]
enum Interpreter {
    OpenAi(openai::Interpreter),
    Places(places::Interpreter),
    Ppl(ppl::Version),
}

impl Interpreter {
    fn of(dialect: &'static Dialect) -> Self {
        match dialect.response.interpreter {
            InterpreterName::OpenAi => Self::OpenAi(openai::Interpreter::new()),
            InterpreterName::Places => Self::Places(places::Interpreter::new(dialect)),
            InterpreterName::PplV1 => Self::Ppl(ppl::Version::V1),
            InterpreterName::PplV2 => Self::Ppl(ppl::Version::V2),
        }
    }

    fn interpret(&mut self, event_name: Option<&str>, payload: &[u8]) -> Meaning {
        match self {
            Self::OpenAi(interpreter) => interpreter.interpret(event_name, payload),
            Self::Places(interpreter) => interpreter.interpret(event_name, payload),
            Self::Ppl(version) => ppl::interpret(*version, payload),
        }
    }
}

/// Which choices were seen and which have finished, one bit each. Choices beyond
/// the 64th are not waited for.
#[derive(Debug, Default)]
struct Choices {
    seen: u64,
    finished: u64,
}

impl Choices {
    fn note(&mut self, index: Option<i32>, finished: bool) {
        match index.and_then(|index| u32::try_from(index).ok()) {
            Some(index) => {
                let bit = 1_u64.checked_shl(index).unwrap_or(0);
                self.seen |= bit;
                self.finished |= if finished { bit } else { 0 };
            }
            // Nothing says whose finish it is.
            None if finished => self.finished = u64::MAX,
            None => {}
        }
    }

    fn all_finished(&self) -> bool {
        self.seen & !self.finished == 0
    }
}

impl Story {
    pub(super) fn new(api: Api) -> Self {
        Self {
            interpreter: Interpreter::of(api.dialect()),
            end_rule: api.dialect().response.end,
            chunk_count: 0,
            malformed_chunks: 0,
            finish_reason: None,
            usage: None,
            done: false,
            error: None,
            finished: false,
            choices: Choices::default(),
        }
    }

    pub(super) fn hand_out<T: Copy>(
        &mut self,
        frame: &Frame<'_, T>,
        out: &mut impl FnMut(Chunk<'_, T>),
    ) {
        out(self.chunk(frame));
    }

    /// The same, but lines before the first event are no chunks: they are kept as
    /// a body.
    pub(super) fn doubt<T: Copy>(
        &mut self,
        frame: &Frame<'_, T>,
        out: &mut impl FnMut(Chunk<'_, T>),
    ) {
        if self.chunk_count > 0 || frame.class == FrameClass::Event {
            out(self.chunk(frame));
        }
    }

    /// Hands out what the end of the stream left open. An event that does not
    /// parse there was cut off: that is what `truncated` says, not `malformed`.
    pub(super) fn hand_out_cut_off<T: Copy>(
        &mut self,
        frame: &Frame<'_, T>,
        out: &mut impl FnMut(Chunk<'_, T>),
    ) {
        let malformed_chunks = self.malformed_chunks;
        self.hand_out(frame, out);
        if frame.class == FrameClass::Event {
            self.malformed_chunks = malformed_chunks;
        }
    }

    fn chunk<'a, T: Copy>(&mut self, frame: &Frame<'a, T>) -> Chunk<'a, T> {
        let meaning = match frame.class {
            FrameClass::Event => self.interpreter.interpret(frame.event, frame.payload),
            FrameClass::Field => openai::interpret_field(frame.payload),
            FrameClass::Comment => Meaning::of(ChunkKind::Comment),
        };
        // A payload that we cut does not parse, and that is not the server's doing.
        let malformed = meaning.malformed && !frame.truncated;
        let chunk = Chunk {
            index: self.chunk_count,
            tag: frame.tag,
            kind: meaning.kind,
            choice_index: meaning.choice_index,
            event: frame.event,
            event_id: frame.id,
            tokens: meaning.tokens,
            bytes: i64::try_from(frame.bytes).unwrap_or(i64::MAX),
            data: frame.payload,
            truncated: frame.truncated,
        };
        self.chunk_count = self.chunk_count.saturating_add(1);
        self.malformed_chunks = self.malformed_chunks.saturating_add(i32::from(malformed));
        self.add(meaning);
        chunk
    }

    /// Reads a whole answer; whether it is JSON.
    pub(super) fn take_document(&mut self, body: &[u8]) -> bool {
        let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
        let meaning = self.interpreter.interpret(None, body);
        let is_json = !meaning.malformed && !body.trim_ascii().is_empty();
        self.add(meaning);
        is_json
    }

    fn add(&mut self, meaning: Meaning) {
        self.choices.note(meaning.choice_index, meaning.end_marker);
        self.finished |= meaning.end_marker;
        self.done |= meaning.kind == ChunkKind::Done;
        if meaning.finish_reason.is_some() {
            self.finish_reason = meaning.finish_reason;
        }
        if let Some(usage) = meaning.usage {
            self.usage = Some(usage.or(self.usage.unwrap_or_default()));
        }
        // The first error is the cause of later ones.
        self.error = self.error.take().or(meaning.error);
    }

    pub(super) fn end_marker_seen(&self) -> bool {
        self.done || (self.finished && self.choices.all_finished())
    }

    /// Whether a clean end is all the marker that the API has, and something whole
    /// came before it.
    fn ends_by_closing(&self) -> bool {
        self.end_rule == EndRule::Close && self.chunk_count > 0 && self.malformed_chunks == 0
    }

    /// The outcome where it does not depend on how the bytes parse; `None` for a
    /// clean end without any marker.
    pub(super) fn verdict(&mut self, end: End) -> Option<(Outcome, Option<String>)> {
        if let Some(error) = self.error.take() {
            return Some((Outcome::StreamError, Some(error)));
        }
        match end {
            End::Failed { error } => Some((Outcome::StreamError, Some(error))),
            _ if self.end_marker_seen() => Some((Outcome::Ok, None)),
            End::Clean if self.ends_by_closing() => Some((Outcome::Ok, None)),
            End::Clean => None,
            End::Broken { error } => Some((Outcome::ConnectionError, Some(error))),
            End::Timeout { error } => Some((Outcome::Timeout, Some(error))),
            End::Cancelled { error } => Some((Outcome::Cancelled, Some(error))),
        }
    }
}
