//! DataFusion as it is set up here, and how much it may hold.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::plans::{CompactSorts, MergeJoins};

/// What one request takes in a report whose joins hold one side.
const BYTES_PER_REQUEST: u64 = 1 << 10;

/// What one partition of a plan needs to sort and to group in, where memory is scarce.
const BYTES_PER_PARTITION: usize = 256 << 20;

/// Rows of a batch there: a sort that may not hold two of them cannot begin.
const BATCH_ROWS: usize = 1 << 10;

/// Rows of a file's row group: its writer holds one.
const ROWS_PER_GROUP: usize = 1 << 16;

/// The share of the memory that samples of `distribution` may hold.
pub(crate) const fn sample_bytes(memory_bytes: usize) -> usize {
    memory_bytes / 8
}

/// The engine for recordings of `requests` in all. Where their joins would take
/// more than the memory, requests are joined by merging, in fewer partitions.
///
/// # Errors
/// When there is no folder for temporary files.
pub(crate) fn context(memory_bytes: usize, requests: u64) -> Result<SessionContext> {
    // So that `SHOW TABLES` and `DESCRIBE requests` work in `analyze query`.
    let mut config = SessionConfig::new().with_information_schema(true);
    let mut rules = PhysicalOptimizer::new().rules;
    if requests.saturating_mul(BYTES_PER_REQUEST) > memory_bytes as u64 {
        let most = config.target_partitions();
        config = config
            .with_target_partitions((memory_bytes / BYTES_PER_PARTITION).clamp(1, most))
            .with_batch_size(BATCH_ROWS)
            .with_sort_spill_reservation_bytes(memory_bytes / 256)
            .with_prefer_existing_sort(true);
        rules.insert(0, Arc::new(MergeJoins));
        rules.push(Arc::new(CompactSorts));
    }
    // Each operator gets its share: a sort that does not fit goes to the disk
    // instead of taking what a join beside it needs.
    let pool = FairSpillPool::new(memory_bytes);
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool));
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime.build_arc()?)
        .with_default_features()
        .with_physical_optimizer_rules(rules);
    Ok(SessionContext::new_with_state(state.build()))
}

/// Rows that are computed once and read many times: in memory as long as all of
/// them take a quarter of it at most, in files beyond.
pub(crate) struct Kept {
    held: Arc<MemoryReservation>,
    most: usize,
    files: Arc<Files>,
}

/// A folder for files that go when it goes; there is none before the first file.
#[derive(Default)]
struct Files {
    folder: OnceLock<TempDir>,
    count: AtomicUsize,
}

impl Files {
    /// Of a file that is not there yet.
    fn path(&self) -> Result<PathBuf> {
        let folder = match self.folder.get() {
            Some(folder) => folder,
            None => {
                let folder = TempDir::with_prefix("tapedeck-")?;
                self.folder.get_or_init(|| folder)
            }
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        Ok(folder.path().join(format!("{number}.parquet")))
    }
}

/// Where the rows of one plan are.
pub(crate) enum Rows {
    Memory(MemTable),
    Files(Vec<PathBuf>, SchemaRef),
}

impl Kept {
    pub(crate) fn new(context: &SessionContext, memory_bytes: usize) -> Self {
        let pool = &context.runtime_env().memory_pool;
        Self {
            held: Arc::new(MemoryConsumer::new("kept views").register(pool)),
            most: memory_bytes / 4,
            files: Arc::default(),
        }
    }

    /// The rows of `plan`, partition by partition as it has them.
    ///
    /// # Errors
    /// When the plan fails or the disk takes no file.
    pub(crate) async fn rows(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        task: Arc<TaskContext>,
    ) -> Result<Rows> {
        let schema = plan.schema();
        let mut running = JoinSet::new();
        for (index, stream) in (0_usize..).zip(execute_stream_partitioned(plan, task)?) {
            let part = Part {
                held: Arc::clone(&self.held),
                most: self.most,
                files: Arc::clone(&self.files),
                batches: Vec::new(),
                file: None,
            };
            running.spawn(async move { Ok((index, part.read(stream).await?)) });
        }
        let mut parts: Vec<(usize, Part)> = Vec::with_capacity(running.len());
        while let Some(part) = running.join_next().await {
            let part: Result<_> = part.map_err(|error| DataFusionError::External(error.into()))?;
            parts.push(part?);
        }
        parts.sort_by_key(|(index, _)| *index);
        let parts = parts.into_iter().map(|(_, part)| part);
        let parts: Vec<Part> = parts.collect();
        if parts.iter().all(|part| part.file.is_none()) {
            let batches = parts.into_iter().map(|part| part.batches).collect();
            return Ok(Rows::Memory(MemTable::try_new(schema, batches)?));
        }
        let paths = parts
            .into_iter()
            .filter_map(|part| part.finish(&schema).transpose());
        Ok(Rows::Files(paths.collect::<Result<_>>()?, schema))
    }
}

/// The rows of one partition.
struct Part {
    held: Arc<MemoryReservation>,
    most: usize,
    files: Arc<Files>,
    batches: Vec<RecordBatch>,
    /// Once there is one, it has them all.
    file: Option<(PathBuf, ArrowWriter<File>)>,
}

impl Part {
    async fn read(mut self, mut stream: SendableRecordBatchStream) -> Result<Self> {
        while let Some(batch) = stream.try_next().await? {
            let bytes = batch.get_array_memory_size();
            if let Some((_, file)) = &mut self.file {
                file.write(&batch)?;
                continue;
            }
            self.batches.push(batch);
            let has_room = self.held.size().saturating_add(bytes) <= self.most;
            if !has_room || self.held.try_grow(bytes).is_err() {
                let others = self.batches.iter().rev().skip(1);
                let others: usize = others.map(RecordBatch::get_array_memory_size).sum();
                self.move_to_file(&stream.schema(), others)?;
            }
        }
        Ok(self)
    }

    /// `held` bytes of its batches are accounted for.
    fn move_to_file(&mut self, schema: &SchemaRef, held: usize) -> Result<()> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::LZ4_RAW)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP));
        let path = self.files.path()?;
        let file = File::create(&path)?;
        let mut writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties.build()))?;
        for batch in self.batches.drain(..) {
            writer.write(&batch)?;
        }
        self.held.shrink(held);
        self.file = Some((path, writer));
        Ok(())
    }

    /// The path of its file, which is written now if it was not.
    fn finish(mut self, schema: &SchemaRef) -> Result<Option<PathBuf>> {
        if self.file.is_none() {
            let held = self.batches.iter().map(RecordBatch::get_array_memory_size);
            let held = held.sum();
            self.move_to_file(schema, held)?;
        }
        let closed = self.file.map(|(path, file)| file.close().map(|_| path));
        Ok(closed.transpose()?)
    }
}
