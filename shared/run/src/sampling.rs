//! What is sampled beside the client itself while a recording is made: servers
//! and GPUs.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tapedeck_clock::RunClock;
use tapedeck_recording::{EventBatch, Sink};
use tokio::sync::oneshot;

use crate::args::ServerMetricsArgs;
use crate::gpu::{self, Gpus};
use crate::server_metrics::{Endpoint, Scraper, Target};

const GPU_PERIOD: Duration = Duration::from_secs(1);

/// What to sample, settled before a run.
#[derive(Debug)]
pub struct Sampling {
    endpoints: Vec<Endpoint>,
    interval: Duration,
    gpus: Option<Arc<dyn Gpus>>,
}

impl Sampling {
    /// The URLs of `args`, and the GPUs of this machine. `auto` is every one of
    /// `targets`.
    ///
    /// # Errors
    /// When a URL or certificates cannot be used.
    pub fn resolve(args: &ServerMetricsArgs, targets: &[Target<'_>]) -> Result<Self> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for url in &args.urls {
            for endpoint in Endpoint::resolve(url, targets, args.interval)? {
                if endpoints.iter().all(|e| e.source != endpoint.source) {
                    endpoints.push(endpoint);
                }
            }
        }
        Ok(Self {
            endpoints,
            interval: args.interval,
            gpus: gpu::find(),
        })
    }

    /// Adds what is sampled to the settings of a manifest.
    pub fn describe(&self, settings: &mut Value) {
        let Some(settings) = settings.as_object_mut() else {
            return;
        };
        let sources: Vec<&str> = self.endpoints.iter().map(|e| &*e.source).collect();
        let metrics = json!({
            "sources": sources,
            "interval_s": self.interval.as_secs_f64(),
        });
        settings.insert("server_metrics".into(), metrics);
        settings.insert("gpus".into(), gpu::describe(self.gpus.as_ref()));
    }

    /// Starts a thread for each URL, and one for the GPUs if there are any.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be started.
    pub fn start(&self, clock: RunClock, sink: &Sink) -> Result<Samplers> {
        let mut samplers = Samplers::default();
        for endpoint in &self.endpoints {
            let scraper = Scraper::new(endpoint.clone(), clock, sink.clone())?;
            let (stop, stopped) = oneshot::channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start a runtime")?;
            samplers.spawn("tapedeck-scrape", move || {
                runtime.block_on(scraper.run(stopped));
            })?;
            samplers.servers.push(stop);
        }
        if let Some(gpus) = &self.gpus {
            let (stop, stopped) = sync_channel(1);
            let (gpus, sink) = (Arc::clone(gpus), sink.clone());
            samplers.spawn("tapedeck-gpu", move || {
                loop {
                    sample(&*gpus, clock, &sink);
                    if stopped.recv_timeout(GPU_PERIOD) != Err(RecvTimeoutError::Timeout) {
                        return sample(&*gpus, clock, &sink);
                    }
                }
            })?;
            samplers.gpu = Some(stop);
        }
        Ok(samplers)
    }
}

fn sample(gpus: &dyn Gpus, clock: RunClock, sink: &Sink) {
    let readings = gpus.read();
    let t_ns = clock.now_ns();
    let batch = EventBatch {
        samples: readings.iter().flat_map(|r| gpu::rows(r, t_ns)).collect(),
        ..EventBatch::default()
    };
    // Samples give way to events.
    sink.try_push(batch).ok();
}

/// The threads of one recording. They end when this is dropped, and have ended
/// when [`Samplers::finish`] returns.
#[derive(Debug, Default)]
pub struct Samplers {
    servers: Vec<oneshot::Sender<()>>,
    gpu: Option<SyncSender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Samplers {
    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.with_context(|| format!("cannot start thread {name}"))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Takes last samples, a second for each thread at most, and ends the threads.
    pub fn finish(self) {
        // To go is the signal.
        drop(self.servers);
        drop(self.gpu);
        for thread in self.threads {
            thread.join().ok();
        }
    }
}
