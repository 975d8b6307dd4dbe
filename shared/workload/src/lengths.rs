//! Which prompts are sent: limits on their lengths.

use crate::dataset::{LeftOut, Reason};
use crate::error::WorkloadError;
use crate::prompts::Prompt;
use crate::tokens::{Tokenizer, count_prompts};

/// Lengths that a prompt may have, limits included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptLengths {
    /// In Unicode scalar values.
    pub min_chars: Option<u32>,
    pub max_chars: Option<u32>,
    /// As the tokenizer counts; without one these are an error.
    pub min_tokens: Option<u32>,
    pub max_tokens: Option<u32>,
}

impl PromptLengths {
    /// # Errors
    /// When tokens are limited and nothing can count them.
    pub(crate) fn check(self, tokenizer: Option<&Tokenizer>) -> Result<(), WorkloadError> {
        let limits_tokens = self.min_tokens.is_some() || self.max_tokens.is_some();
        if limits_tokens && tokenizer.is_none() {
            let flags = "a limit on the tokens of prompts";
            return Err(WorkloadError::NeedsTokenizer(flags));
        }
        Ok(())
    }

    /// Why a prompt is left out, if it is. `tokens` is `None` only where no limit
    /// is on them.
    pub(crate) fn objection(self, text: &str, tokens: Option<u32>) -> Option<Reason> {
        let chars = || u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let limits_chars = self.min_chars.is_some() || self.max_chars.is_some();
        let measured = [
            (limits_chars.then(chars), self.min_chars, self.max_chars),
            (tokens, self.min_tokens, self.max_tokens),
        ];
        for (length, min, max) in measured {
            if length.zip(min).is_some_and(|(length, min)| length < min) {
                return Some(Reason::BelowMinimum);
            }
            if length.zip(max).is_some_and(|(length, max)| length > max) {
                return Some(Reason::AboveMaximum);
            }
        }
        None
    }

    /// Counts the tokens of `prompts`, where something can, and takes those out
    /// that the limits exclude.
    pub(crate) fn apply(
        self,
        prompts: &mut Vec<Prompt>,
        tokenizer: Option<&Tokenizer>,
        left_out: &mut LeftOut,
    ) -> Result<(), WorkloadError> {
        if tokenizer.is_none() && self == Self::default() {
            return Ok(());
        }
        if let Some(tokenizer) = tokenizer {
            count_prompts(tokenizer, prompts)?;
        }
        if self == Self::default() {
            return Ok(());
        }
        prompts.retain(|prompt| {
            let objection = self.objection(&prompt.item.text(), prompt.input_tokens);
            objection.is_none_or(|reason| {
                left_out.add(reason, 1);
                false
            })
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::Item;

    #[test]
    fn limits_are_included_and_count_characters_not_bytes() {
        let limits = PromptLengths {
            min_chars: Some(2),
            max_chars: Some(3),
            ..PromptLengths::default()
        };
        let kept = |text: &str| limits.objection(text, None);
        assert_eq!(kept("é"), Some(Reason::BelowMinimum));
        assert_eq!(kept("éé"), None);
        assert_eq!(kept("熵熵熵"), None);
        assert_eq!(kept("abcd"), Some(Reason::AboveMaximum));
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let mut prompts: Vec<Prompt> = ["a", "bb", "ccc"]
            .map(|text| Item::Text(text.into()).into())
            .into();
        let mut left_out = LeftOut::default();
        let limits = PromptLengths {
            min_chars: Some(2),
            ..PromptLengths::default()
        };
        limits.apply(&mut prompts, None, &mut left_out).unwrap();
        assert_eq!(prompts.len(), 2);
        assert_eq!(left_out.total(), 1);
        let tokens = PromptLengths {
            max_tokens: Some(1),
            ..PromptLengths::default()
        };
        assert!(tokens.check(None).is_err());
    }
}
