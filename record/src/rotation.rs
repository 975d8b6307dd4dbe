//! The recordings of one proxy, one after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use tapedeck_clock::RunClock;
use tapedeck_live::{Gauges, Telemetry};
use tapedeck_proxy::{Current, Recorder};
use tapedeck_recording::{
    DiskError, EventBatch, MarkRow, Privacy, Scrubber, SegmentLimits, Sink, Writer, WriterOptions,
};
use tapedeck_run::manifest::{Described, describe};
use tapedeck_run::output::new_folder;
use tapedeck_run::sampling::{Samplers, Sampling};
use tapedeck_run::signals;

use crate::cli::{Limit, StoreArgs};
use crate::retention::{Retention, bytes_below};

/// Recordings that are being written at a time: the current one, and those that
/// requests in flight or a disk that refuses keep open. Each may hold two segments
/// in memory, so with this many the next rotation waits.
const MAX_OPEN: usize = 4;

/// Half of what a load has: a proxy runs for months, and its memory is that of the
/// open segment and the one before, which is being sealed. More than that is kept by
/// the allocator: measured, 175 MB at 256 Ki rows of 200 B, reached after the fourth
/// seal.
const SEGMENT: SegmentLimits = SegmentLimits {
    rows: 1 << 17,
    bytes: 64 << 20,
    age: Duration::ZERO,
};

/// Between two looks at the room that a recording takes, and two tries to begin one.
const LOOK: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(10);
/// Between two looks for recordings that have grown too old.
const SWEEP: Duration = Duration::from_secs(60);

struct Open {
    path: PathBuf,
    clock: RunClock,
    sink: Sink,
    writer: Writer,
    recorder: Arc<Recorder>,
    /// `None` once another recording has followed.
    telemetry: Option<(Telemetry, Samplers)>,
}

/// What every recording begins with.
pub(crate) struct Recordings<'a> {
    pub(crate) store: &'a StoreArgs,
    /// Of all recordings but for the key.
    pub(crate) privacy: Privacy,
    pub(crate) described: Described,
    pub(crate) sampling: Sampling,
    pub(crate) gauges: Arc<Gauges>,
    /// The proxy's own.
    pub(crate) clock: RunClock,
}

/// The recordings of a running proxy.
pub(crate) struct Rotation<'a> {
    recordings: Recordings<'a>,
    retention: Retention,
    hangup: Arc<AtomicBool>,
    current: Arc<Current>,
    /// Oldest first; the last is the current one.
    open: Vec<Open>,
    paths: Vec<PathBuf>,
    error: Option<Error>,
    next_look_ns: i64,
    next_try_ns: i64,
    next_sweep_ns: i64,
}

impl Recordings<'_> {
    fn begin(&self, clock: RunClock) -> Result<Open> {
        let privacy = self.privacy.with_new_key();
        let privacy = privacy.context("cannot read a key for --content")?;
        let manifest = describe(clock, &self.described, &privacy);
        let path = new_folder(&self.store.out, &self.store.name);
        let options = WriterOptions {
            limits: SegmentLimits {
                age: self.store.seal_every,
                ..SEGMENT
            },
            durability: self.store.durability,
            on_disk_error: DiskError::DropAndRetry,
        };
        let writer = Writer::create_scrubbed(&path, manifest, options, Scrubber::new(&privacy))?;
        let sink = writer.sink();
        let telemetry = Telemetry::start(clock, Arc::clone(&self.gauges), sink.clone())
            .context("cannot start the telemetry thread")?;
        let samplers = self.sampling.start(clock, &sink)?;
        let start_ns = clock.origin_ns() - self.clock.origin_ns();
        let open = Open {
            path,
            clock,
            recorder: Recorder::new(sink.clone(), privacy, start_ns),
            sink,
            writer,
            telemetry: Some((telemetry, samplers)),
        };
        open.mark("phase_begin");
        Ok(open)
    }
}

impl Open {
    fn mark(&self, name: &str) {
        let mark = MarkRow {
            t_ns: self.clock.now_ns(),
            name: name.into(),
            detail: r#"{"phase":"measure"}"#.into(),
        };
        self.sink.offer(EventBatch {
            marks: vec![mark],
            ..EventBatch::default()
        });
    }

    fn retire(&mut self) {
        if let Some((telemetry, samplers)) = self.telemetry.take() {
            telemetry.finish();
            samplers.finish();
        }
    }

    /// Nobody writes to it any more.
    fn is_left(&self) -> bool {
        Arc::strong_count(&self.recorder) == 1
    }

    fn seal(mut self) -> Result<()> {
        self.retire();
        self.mark("phase_end");
        let sealed = self.writer.finish();
        let path = self.path.display();
        sealed.with_context(|| format!("the recording {path} is not complete"))?;
        eprintln!("recorded {path}");
        Ok(())
    }
}

impl<'a> Rotation<'a> {
    /// Begins the first recording.
    ///
    /// # Errors
    /// When it cannot be begun, or SIGHUP not be watched.
    pub(crate) fn start(recordings: Recordings<'a>) -> Result<Self> {
        let first = recordings.begin(recordings.clock)?;
        let retention = Retention {
            root: recordings.store.out.clone(),
            name: recordings.store.name.clone(),
            limits: recordings.store.retain.clone(),
        };
        Ok(Self {
            retention,
            hangup: signals::watch_hangups()?,
            current: Current::new(Arc::clone(&first.recorder)),
            paths: vec![first.path.clone()],
            open: vec![first],
            error: None,
            next_look_ns: 0,
            next_try_ns: 0,
            next_sweep_ns: 0,
            recordings,
        })
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current)
    }

    /// Does what is due; to be called often.
    pub(crate) fn look(&mut self) {
        let now_ns = self.recordings.clock.now_ns();
        self.seal_left();
        let wanted = self.hangup.load(Ordering::Relaxed) || self.is_over_a_limit(now_ns);
        if wanted && self.open.len() < MAX_OPEN && now_ns >= self.next_try_ns {
            self.rotate(now_ns);
        }
        if now_ns >= self.next_sweep_ns {
            self.next_sweep_ns = now_ns + in_ns(SWEEP);
            self.retention.sweep();
        }
    }

    fn is_over_a_limit(&mut self, now_ns: i64) -> bool {
        let Some(open) = self.open.last() else {
            return false;
        };
        let looks = now_ns >= self.next_look_ns;
        if looks {
            self.next_look_ns = now_ns + in_ns(LOOK);
        }
        let mut limits = self.recordings.store.rotate.iter();
        limits.any(|limit| match limit {
            Limit::Age(age) => open.clock.now_ns() >= in_ns(*age),
            Limit::Bytes(most) => looks && bytes_below(&open.path) >= *most,
        })
    }

    fn rotate(&mut self, now_ns: i64) {
        match self.recordings.begin(RunClock::start()) {
            Ok(open) => {
                self.hangup.store(false, Ordering::Relaxed);
                self.current.replace(Arc::clone(&open.recorder));
                self.paths.push(open.path.clone());
                self.open.iter_mut().for_each(Open::retire);
                self.open.push(open);
            }
            Err(error) => {
                self.next_try_ns = now_ns + in_ns(RETRY);
                eprintln!("warning: no new recording, the old one goes on: {error:#}");
            }
        }
    }

    /// Seals what came before the current recording, once it is left and the disk
    /// takes it.
    fn seal_left(&mut self) {
        let before = self.open.len().saturating_sub(1);
        let is_done = |open: &Open| open.is_left() && !open.sink.disk_refuses();
        let Some(at) = self.open[..before].iter().position(is_done) else {
            return;
        };
        let sealed = self.open.remove(at).seal();
        self.note(sealed);
        self.retention.sweep();
    }

    /// Whatever else happens, a recording that is not complete is told in the end.
    fn note(&mut self, sealed: Result<()>) {
        if let Err(error) = sealed {
            eprintln!("warning: {error:#}");
            self.error.get_or_insert(error);
        }
    }

    /// Seals everything; the recordings that are there.
    ///
    /// # Errors
    /// The first of those that a recording met.
    pub(crate) fn finish(mut self) -> Result<Vec<PathBuf>> {
        let mut result = self.error.take().map_or(Ok(()), Err);
        for open in std::mem::take(&mut self.open) {
            result = result.and(open.seal());
        }
        self.retention.sweep();
        result?;
        self.paths.retain(|path| path.exists());
        Ok(self.paths)
    }
}

fn in_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
