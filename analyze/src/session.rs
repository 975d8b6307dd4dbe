//! Recordings as one SQL database.
//!
//! Tables: the five of every recording, all recordings together (`recording_id`
//! tells them apart); `recordings`, one row each; `params`, `percentiles` and
//! `slos`, the values a user chose; then the views of [`crate::models`].

mod error;
mod files;
mod recordings;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext, col, lit};
use serde::de::DeserializeOwned;
use tapedeck_recording::footer::Footer;
use tapedeck_recording::schema::RECORDING_ID;
use tapedeck_recording::{Recording, Table};

use crate::derived::{self, Missing, Part, Range, ReadModel, Span};
use crate::engine::{self, Kept, Rows};
use crate::functions::{self, Dialects, Tokenizers};
use crate::models;
use crate::parameters::{Parameters, Slo};
use crate::peer::{self, Profile};
use crate::plans::OneKey;
use crate::rows;
use crate::sealed::damaged;

pub use self::error::Error;
pub(crate) use self::error::{arrow_error, explain};
use self::files::{file_url, parquet_files};
pub(crate) use self::recordings::ran_without_log;

/// Views worth computing once when more than one question follows: none is
/// larger than one row per request.
pub const SMALL_VIEWS: [&str; 9] = [
    "outcome",
    "tokenized",
    "window",
    "request_latency",
    "concurrency",
    "goodput",
    "schedule_lag",
    "throughput",
    "verdict",
];

/// Recordings, opened as a database.
pub struct Session {
    context: SessionContext,
    recordings: Vec<Recording>,
    kept: Kept,
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
    pub async fn open(recordings: Vec<Recording>, parameters: &Parameters) -> Result<Self, Error> {
        Self::open_keeping(recordings, parameters, &[]).await
    }

    /// Opens `recordings` and computes the views named in `keep` once, so that
    /// later views and queries read their rows from memory. Only views with at
    /// most one row per request belong here: that is the bound on the memory.
    ///
    /// # Errors
    /// When a file is unreadable or of a newer format, or an SLO names a metric
    /// that requests do not have.
    pub async fn open_keeping(
        recordings: Vec<Recording>,
        parameters: &Parameters,
        keep: &[&str],
    ) -> Result<Self, Error> {
        let session = Self::open_tables(recordings, parameters)?;
        session.create_views(parameters, keep, &[]).await?;
        Ok(session)
    }

    /// As [`Self::open_keeping`], reading under `derived/` what was computed from
    /// the chunks before and keeping there what was not. Sealed files that are not
    /// what their recorder sealed are counted in table `recordings`.
    ///
    /// # Errors
    /// As [`Self::open_keeping`]; that nothing can be kept is none.
    pub async fn open_derived(
        recordings: Vec<Recording>,
        parameters: &Parameters,
        keep: &[&str],
    ) -> Result<Self, Error> {
        let damaged: Vec<usize> = recordings.iter().map(|r| damaged(r).len()).collect();
        // Rows of a damaged file are not to be kept: it may be mended.
        let missing = match damaged.iter().all(|files| *files == 0) {
            true => Missing::Make,
            false => Missing::Compute,
        };
        let read_models =
            derived::read_models(&recordings, missing, parameters.memory_limit_bytes).await;
        let session = Self::open_with(recordings, parameters, Some(&damaged))?;
        session.create_views(parameters, keep, &read_models).await?;
        Ok(session)
    }

    /// As [`Self::open`], with what a report left under `derived/`, if it did.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_known(
        recordings: Vec<Recording>,
        parameters: &Parameters,
    ) -> Result<Self, Error> {
        let read_models =
            derived::read_models(&recordings, Missing::Compute, parameters.memory_limit_bytes)
                .await;
        let session = Self::open_tables(recordings, parameters)?;
        session.create_views(parameters, &[], &read_models).await?;
        Ok(session)
    }

    /// `read_models` have files in place of some views; those in `keep` are
    /// computed.
    async fn create_views(
        &self,
        parameters: &Parameters,
        keep: &[&str],
        read_models: &[ReadModel],
    ) -> Result<(), Error> {
        parameters.slos.iter().try_for_each(Slo::check)?;
        for model in models::views() {
            match read_models.iter().find(|read| read.view == model.name) {
                Some(read) => self.register_derived(model, &read.files).await?,
                None => self.create_view(model, keep.contains(&model.name)).await?,
            }
        }
        Ok(())
    }

    /// Opens the requests of `range`, with their chunks, in one partition: of the
    /// tables there are these two, of the views `goals` and what they need. Their
    /// `recording_id` is a number that stands for the one of `part`.
    pub(crate) async fn open_part(
        part: &Part,
        range: Range,
        goals: &[&'static str],
    ) -> Result<Self, Error> {
        let config = SessionConfig::new().with_target_partitions(1);
        let context = SessionContext::new_with_config(config);
        context.add_optimizer_rule(Arc::new(OneKey));
        let session = Self {
            kept: Kept::new(&context, 0),
            context,
            recordings: Vec::new(),
        };
        for function in functions::aggregates(usize::MAX) {
            session.context.register_udaf(function);
        }
        for (table, files) in [
            (Table::Chunks, &part.chunks),
            (Table::Requests, &part.requests),
        ] {
            let files = files.iter().filter(|file| file.overlaps(range));
            let files: Vec<&Span> = files.collect();
            let has_retries = files.iter().any(|file| file.has_retries);
            let urls = files.iter().map(|file| file_url(&file.path));
            let urls: Vec<ListingTableUrl> = urls.collect::<Result<_, _>>()?;
            let rows: Arc<dyn TableProvider> = if urls.is_empty() {
                Arc::new(MemTable::try_new(table.schema(), vec![vec![]]).map_err(Error::Query)?)
            } else {
                parquet_files(urls, table.schema(), vec![])?
            };
            let of_range = col("request_id")
                .gt_eq(lit(range.from))
                .and(col("request_id").lt(lit(range.until)));
            // Of one recording: a number in place of its id is hashed and compared
            // for every chunk, and a text would cost a fifth of it all.
            let rows = session.context.read_table(rows);
            let rows = rows
                .and_then(|rows| rows.filter(of_range)?.with_column(RECORDING_ID, lit(0_i32)))
                .and_then(|rows| match has_retries {
                    true => Ok(rows),
                    // As the files say: so the key of a chunk is one number.
                    false => rows.with_column("attempt", lit(0_i32)),
                })
                .map_err(Error::Query)?;
            session.register(table.name(), rows.into_view())?;
        }
        let needed = models::needed_for(goals);
        for model in models::views().iter().filter(|m| needed.contains(m.name)) {
            session.create_view(model, false).await?;
        }
        Ok(session)
    }

    /// Opens `recordings` without the views: for questions about the rows.
    ///
    /// # Errors
    /// When a file is unreadable or of a newer format.
    pub fn open_tables(recordings: Vec<Recording>, parameters: &Parameters) -> Result<Self, Error> {
        Self::open_with(recordings, parameters, None)
    }

    /// `damaged` has the number of damaged files of each recording, where somebody
    /// looked.
    fn open_with(
        recordings: Vec<Recording>,
        parameters: &Parameters,
        damaged: Option<&[usize]>,
    ) -> Result<Self, Error> {
        let requests = recordings.iter().map(|r| r.manifest.rows(Table::Requests));
        let memory_bytes = parameters.memory_limit_bytes;
        let context = engine::context(memory_bytes, requests.sum()).map_err(Error::Query)?;
        let session = Self {
            kept: Kept::new(&context, memory_bytes),
            context,
            recordings,
        };
        session.register_functions(parameters)?;
        for table in Table::ALL {
            session.register_recorded(table)?;
        }
        session.register_recordings(parameters, damaged)?;
        for (name, batch) in parameters.tables().map_err(arrow_error)? {
            session.register_batch(name, batch)?;
        }
        Ok(session)
    }

    /// Opens one attempt of `recording` as a recording of one measured request, so
    /// that every view speaks of this attempt alone, whatever its phase. Of the
    /// views there are `goals` and what they are built from.
    ///
    /// # Errors
    /// When a file is unreadable or of a newer format.
    pub(crate) async fn open_attempt(
        recording: Recording,
        (request_id, attempt): (i64, i32),
        goals: &[&'static str],
    ) -> Result<Self, Error> {
        let session = Self::open_tables(vec![recording], &Parameters::default())?;
        for table in [Table::Requests, Table::Chunks, Table::Responses] {
            session.narrow(table, request_id, attempt).await?;
        }
        let needed = models::needed_for(goals);
        for model in models::views() {
            if needed.contains(model.name) {
                session
                    .create_view(model, SMALL_VIEWS.contains(&model.name))
                    .await?;
            }
        }
        let profiles: Vec<Profile> = Profile::all().collect();
        session.add_peers(&profiles, goals).await?;
        Ok(session)
    }

    /// Leaves of `table` the rows of one attempt, in the measured phase.
    async fn narrow(&self, table: Table, request_id: i64, attempt: i32) -> Result<(), Error> {
        let is_attempt = col("request_id")
            .eq(lit(request_id))
            .and(col("attempt").eq(lit(attempt)));
        let rows = self.context.table(table.name()).await;
        let mut rows = rows
            .and_then(|rows| rows.filter(is_attempt))
            .map_err(Error::Query)?;
        if table == Table::Requests {
            let measured = rows.with_column("phase", lit("measure"));
            rows = measured.map_err(Error::Query)?;
        }
        let schema = Arc::new(rows.schema().as_arrow().clone());
        let batches = rows.collect().await.map_err(Error::Query)?;
        let batch = concat_batches(&schema, &batches).map_err(arrow_error)?;
        self.context
            .deregister_table(table.name())
            .map_err(Error::Query)?;
        self.register_batch(table.name(), batch)
    }

    /// Creates those views of [`models::peers`] that `goals` need, for `profiles`,
    /// unless it was done before.
    /// Views over requests are computed at once: the later ones read them many
    /// times, and inlined into each other they would take minutes to plan.
    ///
    /// # Errors
    /// When a file is unreadable.
    pub(crate) async fn add_peers(
        &self,
        profiles: &[Profile],
        goals: &[&'static str],
    ) -> Result<(), Error> {
        let is_there = self.context.table_exist("profiles");
        if is_there.map_err(Error::Query)? {
            return Ok(());
        }
        let chosen = peer::table(profiles).map_err(arrow_error)?;
        self.register_batch("profiles", chosen)?;
        let needed = models::needed_for(goals);
        for model in models::peers() {
            if needed.contains(model.name) {
                self.create_view(model, peer::KEPT_VIEWS.contains(&model.name))
                    .await?;
            }
        }
        Ok(())
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
        if sql.to_ascii_lowercase().contains("peer_") {
            let all: Vec<Profile> = Profile::all().collect();
            self.add_peers(&all, &["peer_summary", "peer_metric"])
                .await?;
        }
        let lower = sql.to_ascii_lowercase();
        let compares = models::compares().iter().map(|m| m.name);
        let goals: Vec<&str> = compares.filter(|name| lower.contains(name)).collect();
        if !goals.is_empty() {
            self.add_comparison(&goals).await?;
        }
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
    /// own Parquet source so that plans stay shippable; with it, under the same
    /// name, the rows that only a write-ahead log holds.
    fn register_recorded(&self, table: Table) -> Result<(), Error> {
        let mut urls = Vec::new();
        let mut unsealed = Vec::new();
        for recording in &self.recordings {
            for path in recording.files(table) {
                Footer::read(path)?.check_version(path)?;
                urls.push(file_url(path)?);
            }
            unsealed.extend(recording.unsealed(table)?);
        }
        let has_unsealed = !unsealed.is_empty();
        let memory = MemTable::try_new(table.schema(), vec![unsealed]).map_err(Error::Query)?;
        if urls.is_empty() {
            return self.register(table.name(), Arc::new(memory));
        }
        let sealed = parquet_files(urls, table.schema(), vec![])?;
        if !has_unsealed {
            return self.register(table.name(), sealed);
        }
        let read = |rows: Arc<dyn TableProvider>| self.context.read_table(rows);
        let both = read(sealed)
            .and_then(|sealed| sealed.union(read(Arc::new(memory))?))
            .map_err(Error::Query)?;
        self.register(table.name(), both.into_view())
    }

    /// A tokenizer that was asked for is loaded at once: what is wrong with it is
    /// said before any query runs.
    fn register_functions(&self, parameters: &Parameters) -> Result<(), Error> {
        let tokenizers = Arc::new(Tokenizers::default());
        if let Some(path) = &parameters.tokenizer {
            tokenizers.get(path)?;
        }
        let settings = self.recordings.iter().map(|r| &r.manifest.settings);
        let dialects = Dialects::of(settings);
        for function in functions::all(&dialects, tokenizers, parameters.tokenizer.clone()) {
            self.context.register_udf(function);
        }
        let sample_bytes = engine::sample_bytes(parameters.memory_limit_bytes);
        for function in functions::aggregates(sample_bytes) {
            self.context.register_udaf(function);
        }
        Ok(())
    }

    fn register_recordings(
        &self,
        parameters: &Parameters,
        damaged: Option<&[usize]>,
    ) -> Result<(), Error> {
        let chosen = parameters.tokenizer.as_deref();
        let batch = recordings::table(&self.recordings, chosen, damaged);
        self.register_batch("recordings", batch.map_err(arrow_error)?)
    }

    /// Files in place of the view that made them; the view says the columns.
    async fn register_derived(
        &self,
        model: &'static models::Model,
        files: &[PathBuf],
    ) -> Result<(), Error> {
        self.create_view(model, false).await?;
        let view = self.context.table(model.name).await.map_err(Error::Query)?;
        let schema = Arc::new(view.schema().as_arrow().clone());
        self.context
            .deregister_table(model.name)
            .map_err(Error::Query)?;
        let urls = files.iter().map(|path| file_url(path));
        let order = derived::order(&schema);
        let files = parquet_files(urls.collect::<Result<_, _>>()?, schema, order)?;
        self.register(model.name, files)
    }

    async fn has_tokenizer(&self) -> Result<bool, Error> {
        let recordings = self.context.table("recordings").await;
        let named = recordings
            .and_then(|all| all.filter(col("tokenizer").is_not_null()))
            .map_err(Error::Query)?;
        Ok(named.count().await.map_err(Error::Query)? > 0)
    }

    pub(crate) async fn create_view(
        &self,
        model: &'static models::Model,
        keep: bool,
    ) -> Result<(), Error> {
        let view_error = |cause| Error::View {
            view: model.name,
            cause,
        };
        self.context.sql(model.sql).await.map_err(view_error)?;
        // Without a tokenizer nothing is tokenized, and no payload need be read.
        let is_empty = model.name == "tokenized" && !self.has_tokenizer().await?;
        if !keep && !is_empty {
            return Ok(());
        }
        let name = format!("\"{}\"", model.name);
        let view = self
            .context
            .table(name.as_str())
            .await
            .map_err(view_error)?;
        let view = if is_empty {
            view.limit(0, Some(0)).map_err(view_error)?
        } else {
            view
        };
        let task = Arc::new(view.task_ctx());
        let plan = view.create_physical_plan().await.map_err(view_error)?;
        let rows = self.kept.rows(plan, task).await.map_err(view_error)?;
        let rows: Arc<dyn TableProvider> = match rows {
            Rows::Memory(rows) => Arc::new(rows),
            Rows::Files(paths, schema) => {
                let urls = paths.iter().map(|path| file_url(path));
                parquet_files(urls.collect::<Result<_, _>>()?, schema, vec![])?
            }
        };
        self.context
            .deregister_table(name.as_str())
            .map_err(view_error)?;
        self.context
            .register_table(name.as_str(), rows)
            .map_err(view_error)?;
        Ok(())
    }

    pub(crate) fn register_batch(&self, name: &str, batch: RecordBatch) -> Result<(), Error> {
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]]);
        self.register(name, Arc::new(table.map_err(Error::Query)?))
    }

    fn register(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<(), Error> {
        let registered = self.context.register_table(name, table);
        registered.map(drop).map_err(Error::Query)
    }
}

/// Ids of the requests for which `condition`, a SQL expression over the columns
/// of `requests`, holds: `--where` of a replay. Being parsed as an expression, it
/// can name columns and nothing else.
///
/// # Errors
/// When a recording cannot be read, or `condition` is not a condition.
pub async fn matching_requests(paths: &[PathBuf], condition: &str) -> Result<BTreeSet<i64>, Error> {
    #[derive(serde::Deserialize)]
    struct Row {
        request_id: i64,
    }
    let session = Session::open_tables(open_all(paths)?, &Parameters::default())?;
    let requests = session.context.table("requests").await;
    let requests = requests.map_err(Error::Query)?;
    let kept = requests
        .parse_sql_expr(condition)
        .and_then(|condition| requests.filter(condition))
        .and_then(|kept| kept.select_columns(&["request_id"]))
        .map_err(Error::Query)?;
    let batches = kept.collect().await.map_err(Error::Query)?;
    let rows: Vec<Row> = rows::from_batches(&batches).map_err(Error::Query)?;
    Ok(rows.into_iter().map(|row| row.request_id).collect())
}
