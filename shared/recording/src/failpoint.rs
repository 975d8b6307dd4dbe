//! Places where a test can have the process die, in builds with the feature
//! `failpoints` only: `FAILPOINTS='seal::before_rename=return(chunks/)'` aborts
//! before a file whose path contains `chunks/` gets its name, and
//! `FAILPOINTS='worker::request=1*panic'` has the first request of a load panic.

/// Reads FAILPOINTS once; dropping the scenario would clear it.
#[cfg(feature = "failpoints")]
fn set_up() {
    static SCENARIO: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    SCENARIO.get_or_init(|| std::mem::forget(fail::FailScenario::setup()));
}

/// Panics here when told to.
#[cfg(feature = "failpoints")]
pub fn panic_point(name: &str) {
    set_up();
    fail::eval(name, |_| ());
}

/// Nothing, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn panic_point(_name: &str) {}

/// Dies here when told to, without running a destructor.
#[cfg(feature = "failpoints")]
pub(crate) fn crash(name: &str, path: &std::path::Path) {
    set_up();
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
