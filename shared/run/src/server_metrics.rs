//! What servers say of themselves, recorded beside the load: their Prometheus
//! text, scraped over reqwest because nothing here is measured.
//!
//! Every scrape's rows have one instant, that of the answer's head. A histogram
//! bucket is written when it has changed since the scrape before; everything else
//! each time. A scrape that fails is a mark, never the end of a run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use serde_json::json;
use tapedeck_clock::RunClock;
use tapedeck_live::TlsOptions;
use tapedeck_recording::{EventBatch, MarkRow, SampleRow, Sink};
use tapedeck_wire::prometheus::{self, Exposition, Sample};
use tokio::sync::oneshot;
use url::Url;

use crate::http_client;
use crate::secrets::mask_url;

/// The longest text that is read.
const BODY_BYTES: usize = 4 << 20;
/// Series kept of one scrape. vLLM has about 600 per model.
const SERIES: usize = 10_000;
/// The longest that one scrape may take, and the last one of a run.
const PATIENCE: Duration = Duration::from_secs(5);
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// Longest error text in a mark, in characters.
const ERROR_CHARS: usize = 200;

/// The server that the load goes to: `auto` is its `/metrics`, and it alone is
/// shown the user's key.
#[derive(Debug)]
pub struct Target<'a> {
    pub url: &'a Url,
    pub tls: TlsOptions,
    /// Sent to URLs of this origin.
    pub headers: HeaderMap,
}

/// One URL to scrape.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    url: Url,
    /// `server:<url>`, without secrets.
    pub(crate) source: Arc<str>,
    tls: TlsOptions,
    headers: HeaderMap,
    period: Duration,
}

impl Endpoint {
    /// What `--server-metrics` names: one URL, or with `auto` one of each target.
    pub(crate) fn resolve(
        text: &str,
        targets: &[Target<'_>],
        period: Duration,
    ) -> Result<Vec<Self>> {
        if text == "auto" {
            let all = targets.iter().map(|target| {
                let mut url = target.url.clone();
                url.set_path("/metrics");
                url.set_query(None);
                Self::new(url, target, period)
            });
            return all.collect();
        }
        let shown = mask_url(text);
        let url = Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .with_context(|| {
                format!(
                    "--server-metrics {shown} is not a URL\nhint: http://host:port/metrics, or auto"
                )
            })?;
        let same = targets.iter().find(|t| t.url.origin() == url.origin());
        let target = same.or(targets.first());
        let target = target.context("there is no server to take certificates from")?;
        Ok(vec![Self::new(url, target, period)?])
    }

    fn new(url: Url, target: &Target<'_>, period: Duration) -> Result<Self> {
        let is_target = url.origin() == target.url.origin();
        let endpoint = Self {
            source: format!("server:{}", mask_url(url.as_str())).into(),
            tls: target.tls.clone(),
            headers: match is_target {
                true => target.headers.clone(),
                false => HeaderMap::new(),
            },
            url,
            period,
        };
        // What is wrong with certificates is said before anything is sent.
        endpoint.client()?;
        Ok(endpoint)
    }

    fn client(&self) -> Result<reqwest::Client> {
        http_client::build(&self.tls, PATIENCE, PATIENCE)
    }

    async fn get(&self, client: &reqwest::Client, clock: RunClock) -> Result<(i64, Vec<u8>)> {
        const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");
        let request = client.get(self.url.clone()).header(ACCEPT, TEXT);
        let request = request.headers(self.headers.clone());
        // A URL in an error would show its query, and so its secrets.
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        let mut answer = answer.context("no answer")?;
        let t_ns = clock.now_ns();
        if !answer.status().is_success() {
            bail!("HTTP {}", answer.status());
        }
        let mut body = Vec::new();
        loop {
            let more = answer.chunk().await.map_err(reqwest::Error::without_url);
            let Some(more) = more.context("the answer broke off")? else {
                return Ok((t_ns, body));
            };
            if body.len() + more.len() > BODY_BYTES {
                bail!("the answer is longer than {} MiB", BODY_BYTES >> 20);
            }
            body.extend_from_slice(&more);
        }
    }
}

/// What came of the scrapes of one URL.
#[derive(Debug, Default)]
struct Tally {
    scrapes: u64,
    failed: u64,
    first_error: Option<String>,
    samples: u64,
    series_left_out: u64,
    malformed_lines: u64,
    /// Rows that found no room in the writer's queue.
    rows_lost: u64,
}

/// Scrapes one URL until told to stop.
#[derive(Debug)]
pub(crate) struct Scraper {
    endpoint: Endpoint,
    client: reqwest::Client,
    clock: RunClock,
    sink: Sink,
    buckets: Buckets,
    tally: Tally,
}

impl Scraper {
    pub(crate) fn new(endpoint: Endpoint, clock: RunClock, sink: Sink) -> Result<Self> {
        Ok(Self {
            // One for each run: its connections live on the run's own runtime.
            client: endpoint.client()?,
            endpoint,
            clock,
            sink,
            buckets: Buckets::default(),
            tally: Tally::default(),
        })
    }

    /// Scrapes at once, then every period, and once more when `stop` is dropped
    /// or sent to.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let period_ns = i64::try_from(self.endpoint.period.as_nanos()).unwrap_or(i64::MAX);
        let start_ns = self.clock.now_ns();
        loop {
            tokio::select! {
                _ = &mut stop => break,
                () = self.scrape(PATIENCE) => {}
            }
            // A scrape that takes longer than a period leaves out those it missed.
            let since_ns = self.clock.now_ns() - start_ns;
            let wait_ns = (period_ns - since_ns % period_ns).unsigned_abs();
            tokio::select! {
                _ = &mut stop => break,
                () = tokio::time::sleep(Duration::from_nanos(wait_ns)) => {}
            }
        }
        self.scrape(LAST_PATIENCE).await;
        self.conclude();
    }

    async fn scrape(&mut self, patience: Duration) {
        self.tally.scrapes += 1;
        let answer = self.endpoint.get(&self.client, self.clock);
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok((t_ns, text))) => self.record(t_ns, prometheus::parse(&text, SERIES)),
            Ok(Err(error)) => self.fail(&format!("{error:#}")),
            Err(_) => self.fail(&format!("no answer within {} s", patience.as_secs())),
        }
    }

    fn record(&mut self, t_ns: i64, found: Exposition) {
        if found.samples.is_empty() {
            return self.fail("the answer has no samples");
        }
        self.tally.samples += found.samples.len() as u64;
        self.tally.series_left_out += found.left_out;
        self.tally.malformed_lines += found.malformed_lines;
        let buckets = &mut self.buckets;
        let samples = found.samples.into_iter();
        let samples: Vec<SampleRow> = samples
            .filter(|sample| buckets.is_news(sample))
            .map(|sample| SampleRow {
                t_ns,
                source: Arc::clone(&self.endpoint.source),
                name: sample.name.into(),
                labels: sample.labels.into(),
                value: sample.value,
            })
            .collect();
        let batch = EventBatch {
            samples,
            ..EventBatch::default()
        };
        // Samples give way to events.
        if let Err(batch) = self.sink.try_push(batch) {
            self.tally.rows_lost += batch.len() as u64;
        }
    }

    fn fail(&mut self, error: &str) {
        self.tally.failed += 1;
        if self.tally.first_error.is_some() {
            return;
        }
        let error: String = error.chars().take(ERROR_CHARS).collect();
        self.mark(
            "server_metrics_failed",
            &json!({"source": &*self.endpoint.source, "error": error}),
        );
        self.tally.first_error = Some(error);
    }

    fn conclude(&self) {
        let tally = &self.tally;
        self.mark(
            "server_metrics",
            &json!({
                "source": &*self.endpoint.source,
                "scrapes": tally.scrapes,
                "failed": tally.failed,
                "samples": tally.samples,
                "series_left_out": tally.series_left_out,
                "malformed_lines": tally.malformed_lines,
                "rows_lost": tally.rows_lost,
            }),
        );
        if let Some(error) = &tally.first_error {
            let (failed, scrapes) = (tally.failed, tally.scrapes);
            let source = &self.endpoint.source;
            eprintln!(
                "warning: {failed} of {scrapes} scrapes of {source} failed, the first of them: {error}"
            );
        }
    }

    fn mark(&self, name: &str, detail: &serde_json::Value) {
        let mark = MarkRow {
            t_ns: self.clock.now_ns(),
            name: name.into(),
            detail: detail.to_string().into(),
        };
        let batch = EventBatch {
            marks: vec![mark],
            ..EventBatch::default()
        };
        self.sink.try_push(batch).ok();
    }
}

/// Values of histogram buckets as they were last written: most of a server's
/// series are buckets, and most of them stand still. At most [`SERIES`].
#[derive(Debug, Default)]
struct Buckets(HashMap<String, f64>);

impl Buckets {
    /// Whether a sample says what has not been written yet.
    fn is_news(&mut self, sample: &Sample) -> bool {
        if !sample.name.ends_with("_bucket") {
            return true;
        }
        let key = format!("{} {:?}", sample.name, sample.labels);
        if self.0.len() >= SERIES && !self.0.contains_key(&key) {
            return true;
        }
        self.0.insert(key, sample.value) != Some(sample.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Endpoint> {
        let url = Url::parse("http://me:pw@host:8000/v1/chat/completions?key=pw").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer pw"));
        let target = Target {
            url: &url,
            tls: TlsOptions::default(),
            headers,
        };
        let mut all = Endpoint::resolve(text, &[target], Duration::from_secs(1))?;
        all.pop().context("one")
    }

    #[test]
    fn the_key_goes_to_the_target_alone_and_no_secret_into_the_source() {
        let auto = resolve("auto").unwrap();
        assert_eq!(&*auto.source, "server:http://host:8000/metrics");
        assert!(auto.headers.contains_key("authorization"));
        let other = resolve("http://me:pw@other:8000/metrics?token=pw").unwrap();
        assert_eq!(&*other.source, "server:http://other:8000/metrics?token=***");
        assert!(other.headers.is_empty());
        let error = format!("{:#}", resolve("me:pw@host").unwrap_err());
        assert!(error.contains("hint: ") && !error.contains("pw"), "{error}");
    }

    #[test]
    fn a_bucket_is_written_when_it_moves_and_a_gauge_always() {
        let mut buckets = Buckets::default();
        let text = |count| format!("ttft_bucket{{le=\"1\"}} {count}\nwaiting 0\n");
        let mut news = |count| {
            let found = prometheus::parse(text(count).as_bytes(), SERIES);
            let samples = found.samples.iter();
            samples.filter(|s| buckets.is_news(s)).count()
        };
        assert_eq!([news(0), news(0), news(4), news(4)], [2, 1, 2, 1]);
    }
}
