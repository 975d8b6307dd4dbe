//! How sure each difference is: rows of the views, by block, into [`super::bootstrap`].

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use futures::TryStreamExt as _;
use serde::Deserialize;

use crate::models::Polarity;
use crate::session::{Error, Session};

use super::bootstrap::{Drawing, Reach, Runs, Series, Stat, block_length, reach, welch};
use super::{Compared, Judgement};

/// Requests of a recording that are resampled; of more, every so many'th block.
const MOST_REQUESTS: u64 = 20_000;
/// Gaps of a recording that are resampled. With [`super::bootstrap::REPLICATES`] it
/// bounds the work: some 10^9 additions a side.
const MOST_GAPS: u64 = 1_000_000;

/// Values that have to lie beyond a percentile before its interval is believed:
/// with fewer the resampled percentile is one of a handful of values.
const LEAST_BEYOND: f64 = 5.0;

/// Metrics of which a request has one value.
const OF_REQUESTS: [&str; 12] = [
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

/// Metrics that are a sum over another, with the columns of `compare_end`.
const RATIOS: [(&str, &str, &str); 6] = [
    ("request_throughput", "succeeded", "span_s"),
    ("output_token_throughput", "output_tokens", "span_s"),
    ("total_token_throughput", "total_tokens", "span_s"),
    ("success_rate", "succeeded", "requests"),
    ("goodput", "good", "span_s"),
    ("goodput_share", "good", "requests"),
];

/// Which rows of a view are looked at: requests in a row are a block, and of all
/// blocks every `step`th is taken.
#[derive(Debug, Clone, Copy)]
struct Sampling {
    length: u64,
    step: u64,
}

impl Sampling {
    fn new(counts: &[Count], values: u64, most_values: u64) -> Self {
        let fewest = counts.iter().map(|c| c.n).min().unwrap_or(0);
        let most = counts.iter().map(|c| c.n).max().unwrap_or(0);
        let memories = counts.iter().filter_map(|c| c.memory);
        Self {
            length: block_length(fewest, memories.fold(0.0, f64::max)),
            step: most
                .div_ceil(MOST_REQUESTS)
                .max(values.div_ceil(most_values))
                .max(1),
        }
    }

    fn block(self, unit: &str) -> String {
        format!("{unit} / {}", self.length)
    }

    fn condition(self, unit: &str) -> String {
        format!("({unit} / {}) % {} = 0", self.length, self.step)
    }

    fn share(self) -> f64 {
        1.0 / self.step as f64
    }
}

/// Rows of one recording.
#[derive(Deserialize)]
struct Count {
    n: u64,
    /// Correlation of neighbours.
    memory: Option<f64>,
}

const COUNTS: &str = "SELECT requests AS n, memory FROM compare_unit_memory";

/// The rows of one recording: their blocks, and columns of values that may be NULL.
#[derive(Debug, Default)]
struct Rows {
    blocks: Vec<i64>,
    columns: Vec<Vec<Option<f64>>>,
}

type ByRecording = BTreeMap<String, Rows>;

/// Rows of `sql`: recording, block, then numbers, or lists of them.
async fn rows(session: &Session, sql: &str) -> Result<ByRecording, Error> {
    let mut found = ByRecording::new();
    let stream = session.query(sql).await?.execute_stream().await;
    let mut stream = stream.map_err(Error::Query)?;
    while let Some(batch) = stream.try_next().await.map_err(Error::Query)? {
        add(&batch, &mut found).map_err(|e| Error::Query(e.into()))?;
    }
    Ok(found)
}

fn add(batch: &RecordBatch, found: &mut ByRecording) -> Result<(), arrow::error::ArrowError> {
    let ids = cast(batch.column(0), &DataType::Utf8)?;
    let blocks = cast(batch.column(1), &DataType::Int64)?;
    let blocks = blocks.as_primitive::<Int64Type>();
    let values = &batch.columns()[2..];
    let lists = values
        .first()
        .and_then(|column| column.as_list_opt::<i32>());
    let numbers = match lists {
        Some(_) => Vec::new(),
        None => values
            .iter()
            .map(|column| cast(column, &DataType::Float64))
            .collect::<Result<Vec<_>, _>>()?,
    };
    for row in 0..batch.num_rows() {
        let id = ids.as_string::<i32>().value(row);
        if !found.contains_key(id) {
            found.insert(id.to_owned(), Rows::default());
        }
        let Some(rows) = found.get_mut(id) else {
            continue;
        };
        rows.columns.resize(values.len(), Vec::new());
        if let Some(lists) = lists {
            if lists.is_valid(row) {
                let gaps = lists.value(row);
                let gaps = gaps.as_primitive::<Int64Type>().values();
                rows.blocks
                    .extend(std::iter::repeat_n(blocks.value(row), gaps.len()));
                rows.columns[0].extend(gaps.iter().map(|ns| Some(*ns as f64 / 1e6)));
            }
            continue;
        }
        rows.blocks.push(blocks.value(row));
        for (column, numbers) in rows.columns.iter_mut().zip(&numbers) {
            let numbers = numbers.as_primitive::<Float64Type>();
            column.push(numbers.is_valid(row).then(|| numbers.value(row)));
        }
    }
    Ok(())
}

/// The sides of `session`, each with the ids of its recordings.
struct Sides {
    base: Vec<String>,
    new: Vec<String>,
    drawing: Drawing,
    seed: u64,
}

impl Sides {
    /// Blocks of all rows, numbered; of a pair the same on both sides.
    fn numbers(&self, found: &ByRecording) -> BTreeMap<String, BTreeMap<i64, u32>> {
        let of = |rows: &Rows| rows.blocks.clone();
        let numbered = |mut blocks: Vec<i64>| -> BTreeMap<i64, u32> {
            blocks.sort_unstable();
            blocks.dedup();
            blocks.into_iter().zip(0..).collect()
        };
        if self.drawing == Drawing::Pairs {
            let all = numbered(found.values().flat_map(of).collect());
            return found.keys().map(|id| (id.clone(), all.clone())).collect();
        }
        let each = found.iter();
        each.map(|(id, rows)| (id.clone(), numbered(of(rows))))
            .collect()
    }

    /// The series of both sides, of what `make` makes of a recording's rows and
    /// numbers of blocks. Empty where a recording has no rows.
    fn series(
        &self,
        found: &ByRecording,
        make: impl Fn(&Rows, &BTreeMap<i64, u32>) -> Series,
    ) -> (Vec<Series>, Vec<Series>) {
        let numbers = self.numbers(found);
        let side = |ids: &[String]| {
            let made = ids
                .iter()
                .map(|id| Some(make(found.get(id)?, numbers.get(id)?)));
            made.collect::<Option<Vec<Series>>>().unwrap_or_default()
        };
        (side(&self.base), side(&self.new))
    }
}

fn values(rows: &Rows, numbers: &BTreeMap<i64, u32>, column: usize) -> Series {
    let values = rows.columns.get(column).into_iter().flatten();
    let pairs = values.zip(&rows.blocks);
    let known = pairs.filter_map(|(value, block)| Some(((*value)?, *numbers.get(block)?)));
    Series::values(known.collect(), numbers.len())
}

/// Sums per block, in the order of the rows' values: their order of arrival differs.
fn ratio(rows: &Rows, numbers: &BTreeMap<i64, u32>, over: usize, under: usize) -> Series {
    let mut sums = vec![(0.0, 0.0); numbers.len()];
    let pairs = rows.columns[over].iter().zip(&rows.columns[under]);
    let mut all: Vec<(u32, f64, f64)> = pairs
        .zip(&rows.blocks)
        .filter_map(|((a, b), block)| Some((*numbers.get(block)?, (*a)?, (*b)?)))
        .collect();
    all.sort_unstable_by(|x, y| {
        let sums = x.1.total_cmp(&y.1).then(x.2.total_cmp(&y.2));
        x.0.cmp(&y.0).then(sums)
    });
    for (block, over, under) in all {
        let sum = &mut sums[block as usize];
        (sum.0, sum.1) = (sum.0 + over, sum.1 + under);
    }
    Series::Ratio(sums)
}

/// Fills interval and judgement of every row of `metrics`.
pub(super) async fn judge(
    session: &Session,
    metrics: &mut [Compared],
    paired: bool,
    seed: u64,
) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct SideRow {
        recording_id: String,
        side: String,
    }
    let mut sides = Sides {
        base: Vec::new(),
        new: Vec::new(),
        drawing: if paired {
            Drawing::Pairs
        } else {
            Drawing::Apart
        },
        seed,
    };
    for row in session.rows::<SideRow>("SELECT * FROM sides").await? {
        match row.side.as_str() {
            "base" => sides.base.push(row.recording_id),
            _ => sides.new.push(row.recording_id),
        }
    }
    let mut reaches = Reaches::new();
    // Runs on both sides speak for themselves.
    if sides.base.len() < 2 || sides.new.len() < 2 {
        of_requests(session, &sides, metrics, &mut reaches).await?;
        of_rates(session, &sides, &mut reaches).await?;
    }
    for row in metrics {
        let key = (row.metric.clone(), row.stat.clone());
        row.interval = interval(row, reaches.get(&key).copied());
        row.judgement = judgement(row);
    }
    Ok(())
}

type Reaches = BTreeMap<(String, String), Reach>;

/// The stats that `metrics` have of `metric`, in ascending order.
fn stats(metrics: &[Compared], metric: &str) -> Vec<(String, Stat)> {
    let of_metric = metrics.iter().filter(|row| row.metric == metric);
    let mut stats: Vec<(String, Stat)> = of_metric
        .map(|row| {
            let p = row.stat.strip_prefix('p').and_then(|p| p.parse().ok());
            (row.stat.clone(), p.map_or(Stat::Mean, Stat::Percentile))
        })
        .collect();
    let place = |stat: &Stat| match stat {
        Stat::Mean => -1.0,
        Stat::Percentile(p) => *p,
    };
    stats.sort_by(|a, b| place(&a.1).total_cmp(&place(&b.1)));
    stats
}

async fn of_requests(
    session: &Session,
    sides: &Sides,
    metrics: &[Compared],
    reaches: &mut Reaches,
) -> Result<(), Error> {
    let counts: Vec<Count> = session.rows(COUNTS).await?;
    let sampling = Sampling::new(&counts, 0, 1);
    let columns: Vec<String> = OF_REQUESTS.iter().map(|name| format!("l.{name}")).collect();
    let sql = format!(
        "SELECT q.recording_id, {}, {}
         FROM compare_request AS q
         JOIN request_latency AS l
           ON l.recording_id = q.recording_id AND l.request_id = q.request_id
         WHERE {}",
        sampling.block("q.unit"),
        columns.join(", "),
        sampling.condition("q.unit")
    );
    let found = rows(session, &sql).await?;
    let mut add = |metric: &str, series: (Vec<Series>, Vec<Series>), share: f64| {
        let stats = stats(metrics, metric);
        let asked: Vec<Stat> = stats.iter().map(|(_, stat)| *stat).collect();
        let both = (series.0.as_slice(), series.1.as_slice());
        let found = reach(both, &asked, sides.drawing, share, sides.seed);
        for ((stat, _), reach) in stats.into_iter().zip(found) {
            reaches.extend(reach.map(|reach| ((metric.to_owned(), stat), reach)));
        }
    };
    for (column, metric) in OF_REQUESTS.iter().enumerate() {
        let series = sides.series(&found, |rows, numbers| values(rows, numbers, column));
        add(metric, series, sampling.share());
    }
    let gaps = metrics.iter().filter(|row| row.metric == "itl_ms");
    let gaps = gaps.map(|row| row.base_n.max(row.new_n)).max().unwrap_or(0);
    let sampling = Sampling::new(&counts, gaps, MOST_GAPS);
    let sql = format!(
        "SELECT q.recording_id, {}, s.itl_ns
         FROM compare_request AS q
         JOIN chunk_stream AS s
           ON s.recording_id = q.recording_id AND s.request_id = q.request_id
           AND s.attempt = q.attempt
         WHERE {}",
        sampling.block("q.unit"),
        sampling.condition("q.unit")
    );
    let found = rows(session, &sql).await?;
    let series = sides.series(&found, |rows, numbers| values(rows, numbers, 0));
    add("itl_ms", series, sampling.share());
    Ok(())
}

/// Rates are of each side's own window: they are never drawn in pairs. Where one side
/// replays the other both have the same arrivals, so their rates can only differ by when
/// the last answers ended, and of that no block of time before says anything; loads of
/// the same bodies have no instants in common.
async fn of_rates(session: &Session, sides: &Sides, reaches: &mut Reaches) -> Result<(), Error> {
    let sides = Sides {
        base: sides.base.clone(),
        new: sides.new.clone(),
        drawing: Drawing::Apart,
        seed: sides.seed,
    };
    let counts = "SELECT count(*) AS n, CAST(NULL AS DOUBLE) AS memory
                  FROM compare_end GROUP BY recording_id";
    let counts: Vec<Count> = session.rows(counts).await?;
    let sampling = Sampling::new(&counts, 0, 1);
    let columns = [
        "succeeded",
        "output_tokens",
        "total_tokens",
        "good",
        "span_s",
        "requests",
    ];
    let sql = format!(
        "SELECT recording_id, {}, succeeded, output_tokens, total_tokens, good, span_s, 1e0
         FROM compare_end WHERE {}",
        sampling.block("unit"),
        sampling.condition("unit")
    );
    let found = rows(session, &sql).await?;
    for (metric, over, under) in RATIOS {
        let place = |name: &str| columns.iter().position(|c| *c == name).unwrap_or(0);
        let (over, under) = (place(over), place(under));
        let (base, new) = sides.series(&found, |rows, numbers| ratio(rows, numbers, over, under));
        let share = sampling.share();
        let found = reach(
            (&base, &new),
            &[Stat::Mean],
            sides.drawing,
            share,
            sides.seed,
        );
        let key = (metric.to_owned(), "value".to_owned());
        reaches.extend(found[0].map(|reach| (key, reach)));
    }
    Ok(())
}

fn interval(row: &Compared, reach: Option<Reach>) -> Option<[f64; 2]> {
    let difference = row.difference?;
    let runs = |n, spread: Option<f64>| Some(Runs { n, spread: spread? });
    let base = runs(row.base_runs, row.base_spread);
    let new = runs(row.new_runs, row.new_spread);
    let of_runs = base.zip(new).and_then(|(base, new)| welch(base, new));
    match (of_runs, reach) {
        (Some(half), _) => Some([difference - half, difference + half]),
        // Resampled differences lie about the one found as it lies about the true
        // one.
        (None, Some(reach)) => Some([difference + reach.below, difference + reach.above]),
        (None, None) => None,
    }
}

fn judgement(row: &Compared) -> Judgement {
    let (Some(difference), Some(_), Some(_)) = (row.difference, row.base, row.new) else {
        return Judgement::NoData;
    };
    let is_judged = OF_REQUESTS.contains(&row.metric.as_str())
        || row.metric == "itl_ms"
        || RATIOS.iter().any(|(metric, _, _)| *metric == row.metric);
    let Some([low, high]) = row.interval else {
        return if is_judged {
            Judgement::TooFew
        } else {
            Judgement::NotJudged
        };
    };
    let is_by_runs = row.base_runs > 1 && row.new_runs > 1;
    let p = row
        .stat
        .strip_prefix('p')
        .and_then(|p| p.parse::<f64>().ok());
    let beyond = p.map(|p| row.base_n.min(row.new_n) as f64 * (100.0 - p).min(p) / 100.0);
    if !is_by_runs && beyond.is_some_and(|n| n < LEAST_BEYOND) {
        return Judgement::TooFew;
    }
    if difference == 0.0 && low == 0.0 && high == 0.0 {
        return Judgement::Same;
    }
    if low <= 0.0 && high >= 0.0 {
        return Judgement::Noise;
    }
    match row.polarity() {
        None => Judgement::Differs,
        Some(Polarity::Lower) if difference < 0.0 => Judgement::Better,
        Some(Polarity::Higher) if difference > 0.0 => Judgement::Better,
        Some(_) => Judgement::Worse,
    }
}
