//! A proxy as its owner sees it: started, watched, waited for.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use rustls::ServerConfig;
use tapedeck_clock::RunClock;
use tapedeck_live::tap::KernelStamping;
use tapedeck_live::{Gauges, Stop};

use crate::metrics::Metrics;
use crate::recorder::Current;
use crate::rules::Rules;
use crate::upstream::{Upstream, Upstreams};
use crate::worker::{Numbers, WorkerSpec, run_worker};

/// How a proxy works.
#[derive(Debug, Clone)]
pub struct Settings {
    pub clock: RunClock,
    /// Where requests go.
    pub upstreams: Upstreams,
    /// Speaks TLS to clients where given.
    pub tls: Option<Arc<ServerConfig>>,
    /// Worker threads, at least 1.
    pub workers: usize,
    pub rules: Rules,
    /// Removes secrets from a query before it is recorded.
    pub mask_query: fn(&str) -> String,
    /// Refuse requests while events are being lost.
    pub strict: bool,
    /// Until a connection upstream stands.
    pub connect_timeout: Duration,
    /// How long requests in flight may take to end after the first stop request.
    pub drain: Duration,
}

/// A proxy that could not work.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{0} cannot be sent as a host")]
    Host(String),
    #[error("cannot listen")]
    Listen(#[source] std::io::Error),
    #[error("cannot start thread {name}")]
    Thread {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("thread {name} met a defect")]
    Worker {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("thread {0} ended early")]
    Panicked(String),
}

type Thread = (String, JoinHandle<std::io::Result<()>>);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    metrics: Arc<Metrics>,
    threads: Vec<Thread>,
    _stamping: KernelStamping,
}

impl Proxy {
    /// Serves clients of `listener` until `stop` is raised, recording into what is
    /// `current`.
    ///
    /// # Errors
    /// When the listener cannot be shared or threads cannot be started.
    pub fn start(
        listener: &TcpListener,
        settings: Settings,
        current: &Arc<Current>,
        stop: &Arc<Stop>,
        gauges: &Arc<Gauges>,
    ) -> Result<Self, ProxyError> {
        let stamping = KernelStamping::switch_on();
        let hosts = hosts(&settings.upstreams)?;
        listener.set_nonblocking(true).map_err(ProxyError::Listen)?;
        let settings = Arc::new(settings);
        let labels = settings.upstreams.all().iter().map(Upstream::label);
        let metrics = Arc::new(Metrics::new(labels));
        let numbers = Arc::new(Numbers::default());
        let mut threads = Vec::new();
        for index in 0..settings.workers.max(1) {
            // One queue of new connections for all: whoever is free takes the next.
            let spec = WorkerSpec {
                index,
                settings: Arc::clone(&settings),
                hosts: Arc::clone(&hosts),
                listener: listener.try_clone().map_err(ProxyError::Listen)?,
                metrics: Arc::clone(&metrics),
                gauges: Arc::clone(gauges),
                numbers: Arc::clone(&numbers),
                stop: Arc::clone(stop),
                current: Arc::clone(current),
            };
            threads.push(spawn(spec)?);
        }
        Ok(Self {
            addr: listener.local_addr().map_err(ProxyError::Listen)?,
            metrics,
            threads,
            _stamping: stamping,
        })
    }

    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Waits until the proxy was stopped and its clients are gone.
    ///
    /// # Errors
    /// When a worker ended with a defect.
    pub fn wait(self) -> Result<(), ProxyError> {
        let mut result = Ok(());
        for (name, thread) in self.threads {
            let ended = match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(source)) => Err(ProxyError::Worker { name, source }),
                Err(_) => Err(ProxyError::Panicked(name)),
            };
            result = result.and(ended);
        }
        result
    }
}

/// What the `host` header says to each server.
fn hosts(upstreams: &Upstreams) -> Result<Arc<[HeaderValue]>, ProxyError> {
    let host = |upstream: &Upstream| {
        let host = &upstream.target.host;
        HeaderValue::from_str(host).map_err(|_| ProxyError::Host(host.clone()))
    };
    upstreams.all().iter().map(host).collect()
}

fn spawn(spec: WorkerSpec) -> Result<Thread, ProxyError> {
    let name = format!("tapedeck-proxy-{}", spec.index);
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || run_worker(spec))
        .map_err(|source| ProxyError::Thread {
            name: name.clone(),
            source,
        })?;
    Ok((name, thread))
}
