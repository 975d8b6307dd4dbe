//! The real programs, built once and run as a user runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Beginnings of the variables that `cargo test` sets for a test binary.
const SET_BY_CARGO: [&str; 8] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_NAME",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
    "LD_LIBRARY_PATH",
];

/// The folder that cargo put this test binary's programs into.
///
/// Cargo builds the programs of other packages for nobody's tests, so the first
/// caller has them built, with the profile and features of this very run.
fn program_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let own = std::env::current_exe().expect("the test binary has a path");
        let dir = own
            .parent()
            .and_then(Path::parent)
            .expect("target/<profile>/deps");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--workspace", "--bins", "--quiet"]);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        // What cargo tells a test about its package would make build scripts
        // that look at it (ring's does) run again, and all above them compile.
        for (name, _) in std::env::vars_os() {
            let set_for_tests = name
                .to_str()
                .is_some_and(|n| SET_BY_CARGO.iter().any(|prefix| n.starts_with(prefix)));
            if set_for_tests {
                build.env_remove(name);
            }
        }
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().expect("cargo runs");
        assert!(built.success(), "the programs build");
        dir.to_owned()
    })
}

/// A command that runs `program` of this workspace without secrets or colours
/// from the environment.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(program_dir().join(name));
    command.env_remove("OPENAI_API_KEY").env("NO_COLOR", "1");
    command
}

/// What a program left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("programs write UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// Runs `name` with `arguments` to its end.
pub fn run<I, S>(name: &str, arguments: I) -> Ran
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let output = program(name).args(arguments).output();
    output.expect("the program starts").into()
}

/// Splits as a shell does, as far as our pages go: quotes, no expansion.
pub fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ' ') => words.push(String::new()),
            (_, c) => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

/// As [`run`], with a line that is split at white space.
pub fn run_line(name: &str, line: &str) -> Ran {
    run(name, line.split_whitespace())
}

impl Ran {
    /// Panics with everything the program said unless it ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self
    }
}
