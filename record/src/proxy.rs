//! `record proxy`: clients' requests pass through to a server and are recorded.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{HeaderMap, HeaderName};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tapedeck_clock::RunClock;
use tapedeck_live::{Gauges, Stop, StopLevel, TlsOptions};
use tapedeck_proxy::{Admin, Metrics, Pattern, Proxy, Rules, Settings, Watched};
use tapedeck_recording::manifest::Workload;
use tapedeck_run::ending::Ending;
use tapedeck_run::harness::raise_open_files_limit;
use tapedeck_run::listen::expect_loopback;
use tapedeck_run::manifest::Described;
use tapedeck_run::options::privacy;
use tapedeck_run::output;
use tapedeck_run::sampling::Sampling;
use tapedeck_run::secrets::{mask_query, recorded_dialect};
use tapedeck_run::server_metrics;
use tapedeck_run::signals;
use tapedeck_wire::dialect::Framing;

use crate::cli::{Limit, ProxyArgs};
use crate::memory;
use crate::rotation::{Recordings, Rotation};
use crate::upstreams;

/// How often the main thread looks for a stop request.
const WATCH: Duration = Duration::from_millis(50);

/// Carries out `record proxy`: serves until a signal, then seals.
///
/// # Errors
/// When an address, a URL or a certificate cannot be used, or when a recording
/// is not complete in the end.
pub(crate) fn run(args: &ProxyArgs) -> Result<Ending> {
    memory::give_back();
    raise_open_files_limit();
    let clock = RunClock::start();
    let listener = listen("--listen", args.listen, args.allow_remote)?;
    let admin = args
        .admin
        .map(|addr| listen("--admin", addr, args.allow_remote))
        .transpose()?;
    let settings = settings(args, clock)?;
    let sampling = sampling(args)?;
    let stop = Arc::new(Stop::default());
    signals::watch(Arc::clone(&stop))?;
    let gauges = Arc::default();
    let mut rotation = Rotation::start(Recordings {
        store: &args.store,
        privacy: privacy(&args.privacy, args.tokenizer_path.as_deref())?,
        described: described(args, &settings, &sampling),
        sampling,
        gauges: Arc::clone(&gauges),
        clock,
    })?;
    let serving = Serving { args, stop, gauges };
    let served = serving.serve(settings, &listener, admin, &mut rotation);
    drop(listener);
    let paths = rotation.finish()?;
    let outcome = serving.outcome(&paths, &*served?);
    serving.stop.finish();
    Ok(outcome)
}

struct Serving<'a> {
    args: &'a ProxyArgs,
    stop: Arc<Stop>,
    gauges: Arc<Gauges>,
}

impl Serving<'_> {
    /// Serves until stopped and drained.
    fn serve(
        &self,
        settings: Settings,
        listener: &TcpListener,
        admin: Option<TcpListener>,
        rotation: &mut Rotation<'_>,
    ) -> Result<Arc<Metrics>> {
        let shown = upstreams::shown(&self.args.upstreams);
        let current = rotation.current();
        let proxy = Proxy::start(listener, settings, &current, &self.stop, &self.gauges)?;
        let metrics = proxy.metrics();
        if let Some(listener) = admin {
            let watched = Watched {
                metrics: Arc::clone(&metrics),
                current,
                strict: self.args.what.strict,
            };
            let admin = Admin::start(listener, watched).context("cannot start the admin thread")?;
            eprintln!("metrics on http://{}/metrics", admin.addr());
        }
        let scheme = if self.args.tls_cert.is_some() {
            "https"
        } else {
            "http"
        };
        eprintln!("proxy on {scheme}://{} for {shown}", proxy.addr());
        while self.stop.level() == StopLevel::Run {
            std::thread::sleep(WATCH);
            rotation.look();
        }
        proxy.wait()?;
        Ok(metrics)
    }

    fn outcome(&self, paths: &[PathBuf], metrics: &Metrics) -> Ending {
        let dropped = metrics.dropped_events();
        if dropped > 0 {
            eprintln!("warning: {dropped} events were dropped, traffic was not");
        }
        if self.args.store.json {
            let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            let requests = self.gauges.ended_requests();
            output::print_counts(&paths, requests, metrics.failed_requests());
        }
        Ending::Fine
    }
}

/// Opens an address. One that other machines reach has to be asked for twice: a
/// proxy lends its clients the way to the server behind it.
fn listen(flag: &str, addr: SocketAddr, allow_remote: bool) -> Result<TcpListener> {
    expect_loopback(flag, addr, allow_remote)?;
    TcpListener::bind(addr).with_context(|| format!("cannot listen on {flag} {addr}"))
}

fn settings(args: &ProxyArgs, clock: RunClock) -> Result<Settings> {
    let api = args.what.api;
    if api.dialect().response.framing == Framing::Grpc {
        bail!(
            "--api {}: what the proxy passes on is HTTP/1.1, and gRPC needs HTTP/2\n\
             hint: `record load` speaks it",
            api.as_str()
        );
    }
    let options = upstream_tls(args);
    Ok(Settings {
        clock,
        upstreams: upstreams::resolve(&args.upstreams, &options)?,
        tls: tls(args)?,
        workers: workers(args),
        rules: rules(args)?,
        mask_query,
        strict: args.what.strict,
        connect_timeout: args.connect_timeout,
        drain: args.drain_timeout,
    })
}

fn upstream_tls(args: &ProxyArgs) -> TlsOptions {
    TlsOptions {
        cacert: args.cacert.clone(),
        insecure: args.insecure,
    }
}

/// The keys are the clients': a scrape has none.
fn sampling(args: &ProxyArgs) -> Result<Sampling> {
    let urls = upstreams::urls(&args.upstreams)?;
    let target = |url| server_metrics::Target {
        url,
        tls: upstream_tls(args),
        headers: HeaderMap::new(),
    };
    let targets: Vec<_> = urls.iter().map(target).collect();
    Sampling::resolve(&args.server_metrics, &targets)
}

fn workers(args: &ProxyArgs) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    args.workers.map_or(cores, usize::from)
}

fn rules(args: &ProxyArgs) -> Result<Rules> {
    let what = &args.what;
    let header = &what.session_header;
    let session_header: HeaderName = header
        .parse()
        .with_context(|| format!("--session-header {header} is no header's name"))?;
    if let Some(pointer) = &what.session_field
        && !pointer.starts_with('/')
    {
        bail!(
            "--session-field {pointer} is no JSON pointer\nhint: it begins with /, as in /metadata/session"
        );
    }
    Ok(Rules {
        patterns: match what.patterns.is_empty() {
            true => Rules::default_patterns(what.api),
            false => what.patterns.iter().map(|p| Pattern::new(p)).collect(),
        },
        default_api: what.api,
        session_header,
        session_field: what.session_field.clone(),
        sample: what.sample,
    })
}

fn tls(args: &ProxyArgs) -> Result<Option<Arc<ServerConfig>>> {
    let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    let no_cert = || {
        format!(
            "cannot read certificates from --tls-cert {}",
            cert.display()
        )
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .with_context(no_cert)?
        .collect::<Result<_, _>>()
        .with_context(no_cert)?;
    let no_key = || format!("cannot read a key from --tls-key {}", key.display());
    let private = PrivateKeyDer::from_pem_file(key).with_context(no_key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| {
            format!(
                "--tls-cert {} and --tls-key {} do not fit",
                cert.display(),
                key.display()
            )
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

fn described(args: &ProxyArgs, settings: &Settings, sampling: &Sampling) -> Described {
    let mut resolved = settings_json(args, settings);
    sampling.describe(&mut resolved);
    Described {
        name: args.store.name.clone(),
        labels: args.store.labels.iter().cloned().collect(),
        target: upstreams::shown(&args.upstreams),
        settings: resolved,
        workload: Workload {
            kind: "proxy".to_owned(),
            path: None,
            content_hash: None,
            seed: 0,
        },
    }
}

fn settings_json(args: &ProxyArgs, settings: &Settings) -> Value {
    let what = &args.what;
    let patterns = match what.patterns.is_empty() {
        true => json!(
            Rules::default_patterns(what.api)
                .iter()
                .map(Pattern::as_str)
                .collect::<Vec<_>>()
        ),
        false => json!(what.patterns),
    };
    json!({
        "listen": args.listen.to_string(),
        "admin": args.admin.map(|addr| addr.to_string()),
        "upstreams": upstreams::to_json(&settings.upstreams),
        "match": patterns,
        "api": what.api.as_str(),
        "dialect": recorded_dialect(what.api),
        "session_header": what.session_header,
        "session_field": what.session_field,
        "sample": what.sample,
        "strict": what.strict,
        "workers": settings.workers,
        "tls": settings.tls.is_some(),
        "connect_timeout_s": args.connect_timeout.as_secs_f64(),
        "drain_timeout_s": args.drain_timeout.as_secs_f64(),
        "durability": args.store.durability.as_str(),
        "seal_every_s": args.store.seal_every.as_secs_f64(),
        "rotate": limits_json(&args.store.rotate),
        "retain": limits_json(&args.store.retain),
        "insecure": args.insecure,
        "cacert": args.cacert,
    })
}

fn limits_json(limits: &[Limit]) -> Value {
    let one = |limit: &Limit| match limit {
        Limit::Age(age) => json!({"age_s": age.as_secs_f64()}),
        Limit::Bytes(bytes) => json!({"bytes": bytes}),
    };
    limits.iter().map(one).collect()
}
