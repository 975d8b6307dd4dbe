//! The words of the output, and a prompt's length in tokens.

use crate::model::mix;

/// Common words first: the draw below prefers the front, so that the text
/// repeats itself about as much as prose does and compresses like it. A few are
/// not ASCII, so that a byte is not a character here either.
const WORDS: &[&str] = &[
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "that",
    "it",
    "for",
    "as",
    "with",
    "was",
    "on",
    "be",
    "by",
    "this",
    "are",
    "or",
    "an",
    "which",
    "from",
    "at",
    "not",
    "can",
    "has",
    "but",
    "one",
    "have",
    "its",
    "their",
    "more",
    "when",
    "will",
    "if",
    "there",
    "each",
    "all",
    "other",
    "so",
    "than",
    "into",
    "then",
    "some",
    "we",
    "time",
    "you",
    "may",
    "two",
    "also",
    "such",
    "only",
    "first",
    "most",
    "how",
    "over",
    "any",
    "same",
    "these",
    "used",
    "work",
    "way",
    "where",
    "after",
    "between",
    "because",
    "through",
    "many",
    "number",
    "system",
    "model",
    "example",
    "result",
    "value",
    "small",
    "large",
    "different",
    "however",
    "must",
    "state",
    "order",
    "data",
    "process",
    "during",
    "both",
    "without",
    "change",
    "point",
    "often",
    "part",
    "form",
    "case",
    "high",
    "low",
    "while",
    "another",
    "several",
    "question",
    "answer",
    "light",
    "water",
    "energy",
    "language",
    "function",
    "simple",
    "memory",
    "single",
    "together",
    "therefore",
    "important",
    "measure",
    "follow",
    "begin",
    "continue",
    "café",
    "naïve",
    "résumé",
    "Zürich",
    "学习",
    "語",
    "server",
    "request",
    "response",
    "stream",
    "batch",
    "queue",
    "slot",
    "sequence",
    "attention",
    "layer",
    "weight",
    "gradient",
    "cache",
    "prompt",
    "sample",
    "temperature",
    "probability",
    "distribution",
    "parameter",
    "computation",
    "approximation",
    "understanding",
    "consideration",
];

/// Every how many tokens a sentence ends, on average.
const SENTENCE_TOKENS: u64 = 14;

/// The text of one token. Nothing in it needs escaping in JSON.
#[must_use]
pub(crate) fn token(seed: u64, choice: u32, index: u32) -> (&'static str, &'static str) {
    let draw = mix(seed ^ u64::from(choice).rotate_left(40), u64::from(index));
    if index > 0 && draw.is_multiple_of(SENTENCE_TOKENS) {
        return ("", if draw & 0x100 == 0 { "." } else { "," });
    }
    // The square of a uniform number prefers small ones.
    let uniform = (draw >> 11) as f64 / (1u64 << 53) as f64;
    let word = WORDS[((uniform * uniform * WORDS.len() as f64) as usize).min(WORDS.len() - 1)];
    (if index == 0 { "" } else { " " }, word)
}

/// Tokens in `bytes` of prompt text.
#[must_use]
pub(crate) fn tokens_in(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, choice: u32, tokens: u32) -> String {
        (0..tokens)
            .map(|index| token(seed, choice, index))
            .flat_map(|(space, word)| [space, word])
            .collect()
    }

    #[test]
    fn words_depend_on_seed_and_choice_alone() {
        assert_eq!(text(3, 0, 200), text(3, 0, 200));
        assert_ne!(text(3, 0, 200), text(4, 0, 200));
        assert_ne!(text(3, 0, 200), text(3, 1, 200));
    }

    #[test]
    fn text_reads_like_text_and_needs_no_escaping() {
        let text = text(1, 0, 5000);
        assert!(!text.starts_with(' ') && !text.contains("  "));
        assert!(text.matches('.').count() > 50);
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() || c == '"' || c == '\\')
        );
        assert!(text.matches("the").count() > text.matches("gradient").count());
    }

    #[test]
    fn a_started_four_bytes_are_a_token() {
        assert_eq!([0, 1, 4, 5].map(tokens_in), [0, 1, 1, 2]);
    }
}
