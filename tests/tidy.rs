//! Invariants of the tree.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Our own crates that `member` depends on outside its tests.
fn own_dependencies(member: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let normal = manifest.split("[dev-dependencies]").next().unwrap();
    let lines = normal.lines().filter_map(|l| l.strip_prefix("tapedeck-"));
    lines
        .filter_map(|l| l.split(['.', ' ']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn arrows_between_the_layers_point_one_way() {
    for (member, allowed) in [
        ("shared/clock", &[][..]),
        ("shared/wire", &[]),
        ("shared/tokens", &[]),
        ("shared/recording", &["clock", "wire"]),
        ("shared/workload", &["tokens", "wire"]),
        ("shared/simulator", &["clock"]),
        ("shared/live", &["clock", "recording", "wire"]),
        ("shared/proxy", &["clock", "live", "recording", "wire"]),
        ("analyze", &["clock", "recording", "tokens", "wire"]),
    ] {
        for found in own_dependencies(member) {
            assert!(
                allowed.contains(&found.as_str()),
                "{member} must not depend on {found}"
            );
        }
    }
    for program in ["record", "replay"] {
        let other = if program == "record" {
            "replay"
        } else {
            "record"
        };
        assert!(!own_dependencies(program).contains(&other.to_owned()));
    }
}

#[test]
fn there_is_one_arrow_and_one_parquet() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for name in [
        "arrow",
        "arrow-array",
        "arrow-schema",
        "parquet",
        "datafusion",
    ] {
        let entry = format!("name = \"{name}\"\n");
        assert_eq!(
            lock.matches(&entry).count(),
            1,
            "{name} is in the tree once"
        );
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Files of our own under `members`, with their text up to their unit tests. A
/// test module in a file of its own hides nothing of the file that names it.
fn texts(members: &[&str]) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for member in members {
        sources(&root().join(member), &mut files);
    }
    assert!(files.len() > 5, "the sources are found");
    let cut = |text: String| {
        text.split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    files
        .into_iter()
        .map(|path| (path.clone(), cut(fs::read_to_string(&path).unwrap())))
        .collect()
}

#[test]
fn only_the_clock_crate_reads_a_clock() {
    let members = ["shared", "record", "replay", "analyze"];
    for (path, text) in texts(&members) {
        if path.components().any(|c| c.as_os_str() == "clock") {
            continue;
        }
        for call in [
            "Instant::now",
            "SystemTime::now",
            "clock_gettime",
            "Utc::now",
        ] {
            assert!(
                !text.contains(call),
                "{} reads a clock: {call}",
                path.display()
            );
        }
    }
}

#[test]
fn only_the_recording_layer_names_arrow_arrays_of_the_format() {
    for (path, text) in texts(&["shared", "record", "replay"]) {
        if path.components().any(|c| c.as_os_str() == "recording") {
            continue;
        }
        assert!(!text.contains("use arrow"), "{} uses arrow", path.display());
    }
}

#[test]
fn what_is_committed_names_no_machine_and_no_registry() {
    let mut files = Vec::new();
    for member in ["shared", "record", "replay", "analyze", "tests"] {
        sources(&root().join(member), &mut files);
    }
    files.push(root().join("README.md"));
    files.push(root().join(".ci/run"));
    // In pieces, or this file would find itself.
    let forbidden = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
    ];
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for word in forbidden {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}
