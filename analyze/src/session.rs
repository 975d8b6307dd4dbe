//! Recordings as one SQL database.
//!
//! Tables: the five of every recording, all recordings together (`recording_id`
//! tells them apart); `recordings`, one row each; `params`, `percentiles` and
//! `slos`, the values a user chose; then the views of [`crate::models`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapedeck_recording::reader::ReadError;
use tapedeck_recording::schema::{FORMAT_VERSION, RECORDING_ID, map_type};
use tapedeck_recording::{Recording, Table};

use crate::footer::{Footer, FooterError};
use crate::models;
use crate::rows;

/// Recordings that cannot be analyzed, or a question that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Footer(#[from] FooterError),
    #[error(
        "{} has format version {found}, this program reads up to {FORMAT_VERSION}\nhint: use a newer tapedeck",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "{} and {} are the same recording\nhint: name only one of them",
        first.display(), second.display()
    )]
    Twice { first: PathBuf, second: PathBuf },
    #[error("no request has one value of {metric}\nhint: an SLO can bound {known}")]
    UnknownMetric { metric: String, known: String },
    #[error("{} cannot be given to the query engine as a file", path.display())]
    Path { path: PathBuf },
    #[error("view {view} cannot be created")]
    View {
        view: &'static str,
        #[source]
        source: DataFusionError,
    },
    #[error("the query failed")]
    Query(#[source] DataFusionError),
}

/// An SLO: a bound on one metric that every request has one value of.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo {
    /// A numeric column of `request_latency`, for example `ttft_ms`.
    pub metric: String,
    /// Most allowed; least for metrics where higher is better.
    pub bound: f64,
}

/// What a user may choose about the metrics. It reaches SQL as rows of tables.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Requests sent in this first part of the measured phase are left out.
    pub warmup_ms: f64,
    /// In 0..=100.
    pub percentiles: Vec<f64>,
    pub slos: Vec<Slo>,
    /// p99 of dispatch or read lag beyond which the client was the bottleneck.
    pub saturated_lag_ms: f64,
    /// p99 of dispatch or read lag beyond which the numbers describe the client.
    pub invalid_lag_ms: f64,
}

/// Percentiles of a report when none are asked for.
pub const DEFAULT_PERCENTILES: [f64; 13] = [
    1.0, 5.0, 10.0, 25.0, 50.0, 66.0, 75.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.9,
];

impl Default for Parameters {
    fn default() -> Self {
        Self {
            warmup_ms: 0.0,
            percentiles: DEFAULT_PERCENTILES.to_vec(),
            slos: Vec::new(),
            // Reasons in sql/3_summary/verdict.sql.
            saturated_lag_ms: 10.0,
            invalid_lag_ms: 100.0,
        }
    }
}

/// Recordings, opened as a database.
pub struct Session {
    context: SessionContext,
    recordings: Vec<Recording>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("recordings", &self.recordings)
            .finish_non_exhaustive()
    }
}

/// Opens every recording at or below `paths`, each once.
///
/// # Errors
/// When a path holds none, or two paths hold copies of one recording, whose
/// rows would count twice.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Recording>, Error> {
    let mut recordings: Vec<Recording> = Vec::new();
    for path in paths {
        for recording in Recording::open_all(path)? {
            let id = &recording.manifest.recording_id;
            let twin = recordings.iter().find(|r| r.manifest.recording_id == *id);
            match twin {
                Some(twin) if same_dir(&twin.dir, &recording.dir) => {}
                Some(twin) => {
                    return Err(Error::Twice {
                        first: twin.dir.clone(),
                        second: recording.dir,
                    });
                }
                None => recordings.push(recording),
            }
        }
    }
    Ok(recordings)
}

fn same_dir(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

impl Session {
    /// Opens `recordings` with all views as views: nothing is computed yet.
    ///
    /// # Errors
    /// When a file is unreadable or of a newer format.
    pub async fn open(
        recordings: Vec<Recording>,
        parameters: &Parameters,
    ) -> Result<Self, Error> {
        Self::open_keeping(recordings, parameters, &[]).await
    }

    /// Opens `recordings` and computes the views named in `keep` once, so that
    /// later views and queries read their rows from memory. Only views with at
    /// most one row per request belong here: that is the bound on the memory.
    ///
    /// # Errors
    /// When a file is unreadable or of a newer format.
    pub async fn open_keeping(
        recordings: Vec<Recording>,
        parameters: &Parameters,
        keep: &[&str],
    ) -> Result<Self, Error> {
        let session = Self {
            context: SessionContext::new_with_config(SessionConfig::new()),
            recordings,
        };
        for table in Table::ALL {
            session.register_recorded(table)?;
        }
        session.register_recordings()?;
        session.register_parameters(parameters)?;
        for model in models::views() {
            session.create_view(model, keep.contains(&model.name)).await?;
        }
        Ok(session)
    }

    #[must_use]
    pub fn recordings(&self) -> &[Recording] {
        &self.recordings
    }

    /// The engine, for callers that need more than rows.
    #[must_use]
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Plans one query. Statements that would change anything are refused.
    ///
    /// # Errors
    /// When `sql` is not one valid query.
    pub async fn query(&self, sql: &str) -> Result<DataFrame, Error> {
        let read_only = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let planned = self.context.sql_with_options(sql, read_only).await;
        planned.map_err(Error::Query)
    }

    /// All rows of one query, by column name.
    ///
    /// # Errors
    /// When the query fails or its rows do not have the shape of `T`.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Error> {
        let batches = self.query(sql).await?.collect().await;
        batches
            .and_then(|batches| rows::from_batches(&batches))
            .map_err(Error::Query)
    }

    /// One table over the sealed files of all recordings, read by DataFusion's
    /// own Parquet source so that plans stay shippable.
    fn register_recorded(&self, table: Table) -> Result<(), Error> {
        let mut urls = Vec::new();
        for recording in &self.recordings {
            for path in recording.files(table)? {
                let footer = Footer::read(&path)?;
                if let Some(found) = footer.version.filter(|v| *v > FORMAT_VERSION) {
                    return Err(Error::Newer { path, found });
                }
                urls.push(file_url(&path)?);
            }
        }
        if urls.is_empty() {
            return self.register_rows::<()>(table.name(), &table.schema(), &[]);
        }
        let format = Arc::new(ParquetFormat::default());
        let config = ListingTableConfig::new_with_multi_paths(urls)
            .with_listing_options(ListingOptions::new(format))
            .with_schema(table.schema());
        let provider = ListingTable::try_new(config).map_err(Error::Query)?;
        self.register(table.name(), Arc::new(provider))
    }

    fn register_recordings(&self) -> Result<(), Error> {
        let rows: Vec<RecordingRow<'_>> = self.recordings.iter().map(RecordingRow::of).collect();
        self.register_rows("recordings", &recordings_schema(), &rows)
    }

    fn register_parameters(&self, parameters: &Parameters) -> Result<(), Error> {
        let param = |name, value| ParamRow { name, value };
        self.register_rows(
            "params",
            &schema(&[("name", DataType::Utf8), ("value", DataType::Float64)]),
            &[
                param("warmup_ms", parameters.warmup_ms),
                param("saturated_lag_ms", parameters.saturated_lag_ms),
                param("invalid_lag_ms", parameters.invalid_lag_ms),
            ],
        )?;
        let percentiles: Vec<PercentileRow> = parameters
            .percentiles
            .iter()
            .map(|p| PercentileRow {
                stat: percentile_name(*p),
                p: *p,
            })
            .collect();
        self.register_rows(
            "percentiles",
            &schema(&[("stat", DataType::Utf8), ("p", DataType::Float64)]),
            &percentiles,
        )?;
        let slos: Vec<SloRow> = parameters
            .slos
            .iter()
            .map(SloRow::of)
            .collect::<Result<_, _>>()?;
        let slo_columns = [
            ("metric", DataType::Utf8),
            ("at_most", DataType::Float64),
            ("at_least", DataType::Float64),
        ];
        self.register_rows("slos", &schema(&slo_columns), &slos)
    }

    async fn create_view(&self, model: &'static models::Model, keep: bool) -> Result<(), Error> {
        let view_error = |source| Error::View {
            view: model.name,
            source,
        };
        self.context.sql(model.sql).await.map_err(view_error)?;
        if !keep {
            return Ok(());
        }
        let name = format!("\"{}\"", model.name);
        let view = self.context.table(name.as_str()).await.map_err(view_error)?;
        let columns: SchemaRef = Arc::clone(view.schema().inner());
        let partitions = view.collect_partitioned().await.map_err(view_error)?;
        let rows = MemTable::try_new(columns, partitions).map_err(view_error)?;
        self.context
            .deregister_table(name.as_str())
            .map_err(view_error)?;
        self.context
            .register_table(name.as_str(), Arc::new(rows))
            .map_err(view_error)?;
        Ok(())
    }

    fn register_rows<T: Serialize>(
        &self,
        name: &str,
        columns: &SchemaRef,
        rows: &[T],
    ) -> Result<(), Error> {
        let batch = rows::to_batch(columns, rows).map_err(|e| Error::Query(e.into()))?;
        let table = MemTable::try_new(Arc::clone(columns), vec![vec![batch]]);
        self.register(name, Arc::new(table.map_err(Error::Query)?))
    }

    fn register(
        &self,
        name: &str,
        table: Arc<dyn datafusion::catalog::TableProvider>,
    ) -> Result<(), Error> {
        let registered = self.context.register_table(name, table);
        registered.map(drop).map_err(Error::Query)
    }
}

/// A path as a URL: a bare path would be searched for glob characters.
fn file_url(path: &Path) -> Result<ListingTableUrl, Error> {
    let path_error = || Error::Path {
        path: path.to_owned(),
    };
    let absolute = std::path::absolute(path).map_err(|_| path_error())?;
    let text = absolute.to_str().ok_or_else(path_error)?;
    let mut url = String::from("file://");
    for byte in text.bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => url.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => url.push(byte.into()),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    ListingTableUrl::parse(&url).map_err(|_| path_error())
}

/// The stat of a percentile: `p50`, `p99.9`.
#[must_use]
pub fn percentile_name(p: f64) -> String {
    format!("p{p}")
}

fn schema(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields = columns
        .iter()
        .map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn recordings_schema() -> SchemaRef {
    schema(&[
        (RECORDING_ID, DataType::Utf8),
        ("path", DataType::Utf8),
        ("name", DataType::Utf8),
        ("labels", map_type()),
        ("state", DataType::Utf8),
        ("target", DataType::Utf8),
        ("tool", DataType::Utf8),
        ("wall_clock_start", DataType::Utf8),
        ("dropped_events", DataType::Int64),
        ("timestamp_source", DataType::Utf8),
        ("settings", DataType::Utf8),
    ])
}

#[derive(Serialize)]
struct RecordingRow<'a> {
    recording_id: &'a str,
    path: String,
    name: &'a str,
    labels: &'a BTreeMap<String, String>,
    state: tapedeck_recording::manifest::State,
    target: Option<&'a str>,
    tool: &'a str,
    wall_clock_start: &'a str,
    dropped_events: u64,
    timestamp_source: Option<&'a str>,
    /// JSON.
    settings: String,
}

impl<'a> RecordingRow<'a> {
    fn of(recording: &'a Recording) -> Self {
        let manifest = &recording.manifest;
        Self {
            recording_id: &manifest.recording_id,
            path: recording.dir.display().to_string(),
            name: &manifest.name,
            labels: &manifest.labels,
            state: manifest.state,
            target: manifest.target.as_deref(),
            tool: &manifest.tool,
            wall_clock_start: &manifest.wall_clock_start,
            dropped_events: manifest.dropped_events,
            timestamp_source: manifest.timestamp_source.as_deref(),
            settings: manifest.settings.to_string(),
        }
    }
}

#[derive(Serialize)]
struct ParamRow {
    name: &'static str,
    value: f64,
}

#[derive(Serialize)]
struct PercentileRow {
    stat: String,
    p: f64,
}

#[derive(Serialize)]
struct SloRow {
    metric: String,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

/// Metrics of `request_metric`, which are those an SLO can bound.
const SLO_METRICS: [&str; 12] = [
    "ttft_ms",
    "ttft_scheduled_ms",
    "ttfo_ms",
    "tpot_ms",
    "e2el_ms",
    "e2el_scheduled_ms",
    "queue_delay_ms",
    "input_tokens",
    "output_tokens",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "chunks_per_request",
];

impl SloRow {
    /// The header of `request_latency` says which way the metric improves;
    /// what improves neither way is bounded from above.
    fn of(slo: &Slo) -> Result<Self, Error> {
        if !SLO_METRICS.contains(&slo.metric.as_str()) {
            return Err(Error::UnknownMetric {
                metric: slo.metric.clone(),
                known: SLO_METRICS.join(", "),
            });
        }
        let polarity = models::column("request_latency", &slo.metric).and_then(|c| c.polarity);
        let higher = polarity == Some(models::Polarity::Higher);
        Ok(Self {
            metric: slo.metric.clone(),
            at_most: (!higher).then_some(slo.bound),
            at_least: higher.then_some(slo.bound),
        })
    }
}
