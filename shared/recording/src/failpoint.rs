//! Places where a test can have the process die, in builds with the feature
//! `failpoints` only: `FAILPOINTS='seal::before_rename=return(chunks/)'` aborts
//! before a file whose path contains `chunks/` gets its name.

/// Dies here when told to, without running a destructor.
#[cfg(feature = "failpoints")]
pub(crate) fn crash(name: &str, path: &std::path::Path) {
    static SCENARIO: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    // Reads FAILPOINTS once; dropping the scenario would clear it.
    SCENARIO.get_or_init(|| std::mem::forget(fail::FailScenario::setup()));
    fail::eval(name, |wanted: Option<String>| {
        let path = path.to_string_lossy();
        if wanted.is_none_or(|wanted| path.contains(&wanted)) {
            std::process::abort();
        }
    });
}

macro_rules! crash_point {
    ($name:literal, $path:expr) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::crash($name, $path);
    };
}
