//! Words of the recording that the interpretation of bytes decides.

/// An enum whose variants are words of the recording.
#[macro_export]
macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that stands in the recording.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The inverse of [`Self::as_str`].
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str() == word)
            }
        }
    };
}

word_enum! {
    /// What a chunk carries, in order of precedence.
    ChunkKind {
        Error = "error",
        Content = "content",
        Tool = "tool",
        Reasoning = "reasoning",
        Usage = "usage",
        Role = "role",
        Done = "done",
        Comment = "comment",
        Other = "other",
    }
}

word_enum! {
    /// How an attempt ended.
    Outcome {
        Ok = "ok",
        Truncated = "truncated",
        Malformed = "malformed",
        HttpError = "http_error",
        StreamError = "stream_error",
        Timeout = "timeout",
        ConnectionError = "connection_error",
        Cancelled = "cancelled",
        Imported = "imported",
    }
}

impl Default for ChunkKind {
    /// What a chunk is until something better is found in it.
    fn default() -> Self {
        Self::Other
    }
}
