//! Texts that set prompts apart, and block ids to match.

use std::collections::HashMap;
use std::sync::Arc;

use tapedeck_recording::body_hash;

use super::{Found, Shot, Source};
use crate::cli::Salt;

/// What prompts begin with, and the block ids that go with it.
pub(super) struct Salts<'a> {
    salt: Option<Salt>,
    seed: u64,
    fresh: &'a str,
    /// Block ids of one salt.
    stride: i64,
    first_blocks: HashMap<Arc<str>, i64>,
}

impl<'a> Salts<'a> {
    pub(super) fn new(found: &[Arc<Found>], salt: Option<Salt>, seed: u64, fresh: &'a str) -> Self {
        let runs = found.iter().filter_map(|f| f.original.block_runs.as_ref());
        let ends = runs.flat_map(|runs| runs.iter().map(|(start, len)| start + i64::from(*len)));
        Self {
            salt,
            seed,
            fresh,
            stride: ends.max().unwrap_or(0),
            first_blocks: HashMap::new(),
        }
    }

    pub(super) fn of(&mut self, shot: &Shot, source: &Source) -> (Option<Arc<str>>, i64) {
        let named = match self.salt {
            None if shot.copy == 0 => return (None, 0),
            None => format!("copy {} {}", self.seed, shot.copy),
            Some(Salt::Run) => format!("run {} {}", self.fresh, shot.copy),
            Some(Salt::Session) => {
                let root = &source.found[source.roots[shot.place]].original;
                let name = match &root.session_id {
                    Some(session) => format!("session {session}"),
                    None => format!("request {}", root.request_id),
                };
                format!("{} {} {} {name}", self.fresh, shot.copy, shot.round)
            }
        };
        let salt = salt_named(&named);
        // The unsalted first copy has the ids from 0.
        let reserved = i64::from(self.salt.is_none());
        let next = (self.first_blocks.len() as i64 + reserved).saturating_mul(self.stride);
        let first = *self.first_blocks.entry(Arc::clone(&salt)).or_insert(next);
        (Some(salt), first)
    }
}

/// 64 bits in hex digits: of a million sessions no two meet but once in 37 million runs.
fn salt_named(name: &str) -> Arc<str> {
    body_hash(name.as_bytes())[..16].into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// With half the digits some of so many met.
    #[test]
    fn many_sessions_have_as_many_salts() {
        let salts = (0..300_000).map(|n| salt_named(&format!("session {n}")));
        assert_eq!(salts.collect::<HashSet<_>>().len(), 300_000);
    }
}
