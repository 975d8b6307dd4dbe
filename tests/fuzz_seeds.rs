//! What the fuzz targets demand of every input holds for the seeds they start
//! from. An input that a target found to break it becomes a seed.

use std::fs;
use std::path::Path;

#[path = "fuzz/invariants.rs"]
#[allow(dead_code, reason = "only a fuzz target counts what is allocated")]
mod invariants;

fn each_seed(target: &str, holds: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let seeds = fs::read_dir(folder.join(target)).unwrap();
    let mut count = 0;
    for seed in seeds {
        let path = seed.unwrap().path();
        println!("{}", path.display());
        holds(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{target} has seeds");
}

#[test]
fn every_seed_is_framed_alike_in_any_reads() {
    each_seed("sse", invariants::sse);
}

#[test]
fn every_seed_means_the_same_with_and_without_memory() {
    each_seed("interpreter", invariants::interpreter);
}

#[test]
fn every_seed_is_the_same_answer_in_any_reads() {
    each_seed("response", invariants::response);
}

#[test]
fn every_seed_repeated_without_end_is_survived() {
    each_seed("memory", invariants::memory);
}
