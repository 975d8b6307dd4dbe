//! Prompts that need no data: EvalScope's speed benchmark.

use crate::prompts::{Item, Prompt};

/// What EvalScope repeats to make a prompt: one token for Qwen's tokenizers.
const SYMBOL: &str = "熵";
const LENGTHS: [usize; 4] = [1, 6144, 14336, 30720];
const LONG_LENGTHS: [usize; 2] = [63488, 129_024];
/// Times each length is sent.
const REPEATS: usize = 2;
const OUTPUT_TOKENS: u32 = 2048;

/// Prompts of 1 to 30720 symbols, or with `is_long` the two lengths beyond, each
/// sent twice, with 2048 tokens of output.
pub(crate) fn speed_benchmark(is_long: bool) -> Vec<Prompt> {
    let lengths: &[usize] = if is_long { &LONG_LENGTHS } else { &LENGTHS };
    let prompt = |length: &usize| Prompt {
        max_tokens: Some(OUTPUT_TOKENS),
        ..Item::Text(SYMBOL.repeat(*length)).into()
    };
    let repeated = |length| std::iter::repeat_n(prompt(length), REPEATS);
    lengths.iter().flat_map(repeated).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_twice_in_a_row() {
        let chars: Vec<usize> = speed_benchmark(false)
            .iter()
            .map(|p| p.item.text().chars().count())
            .collect();
        assert_eq!(chars, [1, 1, 6144, 6144, 14336, 14336, 30720, 30720]);
        let long = speed_benchmark(true);
        assert_eq!(long.len(), 4);
        assert!(long.iter().all(|p| p.max_tokens == Some(2048)));
    }
}
