//! What the tests share: a server that tells the truth, recordings built by hand,
//! and the real programs.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each binary that includes this uses a part of it"
)]

// Paths are spelled out so that a benchmark may include this file by `#[path]`.
#[path = "support/answers.rs"]
pub mod answers;
#[path = "support/dialects.rs"]
pub mod dialects;
#[path = "support/disk.rs"]
pub mod disk;
#[path = "support/mock_llm.rs"]
pub mod mock_llm;
#[path = "support/nobody.rs"]
pub mod nobody;
#[path = "support/programs.rs"]
pub mod programs;
#[path = "support/proxy.rs"]
pub mod proxy;
#[path = "support/recording.rs"]
pub mod recording;
