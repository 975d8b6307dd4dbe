-- latency_percentiles: one row per recording, metric and stat, over measured requests with outcome ok.
-- Reads: percentiles, metric, request_latency, request_metric, chunk_stream.
--   recording_id  TEXT    -  -  Key.
--   metric        TEXT    -  -  Key. As in view metric.
--   stat          TEXT    -  -  Key. mean, std (population), min, max, and a row per row of table percentiles.
--   value         DOUBLE  -  -  NULL when n is 0.
--   unit          TEXT    -  -  Unit of value.
--   n             BIGINT  -  -  Values behind the stat: requests, or gaps for itl_ms.
CREATE VIEW latency_percentiles AS
-- Exact, by numpy's linear rule: the value at position p / 100 * (n - 1) of the
-- sorted values, between neighbours by proportion. One sort serves all metrics
-- and stats: mean and std ride along the same window, min and max are its ends.
WITH
gap AS (
  SELECT s.recording_id, unnest(s.itl_ns) AS itl_ns
  FROM chunk_stream AS s
  JOIN request_latency AS r
    ON r.recording_id = s.recording_id
    AND r.request_id = s.request_id
    AND r.attempt = s.attempt
  WHERE r.outcome = 'ok'
),
sampled AS (
  SELECT recording_id, metric, value
  FROM request_metric
  WHERE value IS NOT NULL
  UNION ALL
  SELECT recording_id, 'itl_ms' AS metric, itl_ns / 1e6 AS value
  FROM gap
),
ranked AS (
  SELECT
    recording_id,
    metric,
    value,
    CAST(row_number() OVER (
      PARTITION BY recording_id, metric ORDER BY value
    ) AS DOUBLE) - 1 AS position,
    count(*) OVER (PARTITION BY recording_id, metric) AS n,
    avg(value) OVER (PARTITION BY recording_id, metric) AS mean,
    stddev_pop(value) OVER (PARTITION BY recording_id, metric) AS std
  FROM sampled
),
reach AS (
  SELECT
    recording_id,
    metric,
    value,
    n,
    mean,
    std,
    CAST(n AS DOUBLE) - 1 AS last_position,
    position - 1 AS previous_position,
    position + 1 AS next_position,
    CASE WHEN n < 1000 THEN -1 ELSE CAST(position * 1000 / n AS BIGINT) END
      AS thousandth
  FROM ranked
),
stat AS (
  SELECT stat, p / 100 AS share FROM percentiles
  UNION ALL
  SELECT column1 AS stat, column2 AS share
  FROM (
    VALUES ('mean', 0.0), ('std', 0.0), ('min', 0.0), ('max', 1.0)
  ) AS v
),
-- A shortcut that changes no result: a neighbour of position share * (n - 1) is
-- less than 2 / n off in rank, so with n >= 1000 it lies at most two thousandths
-- (three with rounding) beside the share, and the join below can hash instead of
-- trying every value with every stat. Fewer values are all tried.
near AS (
  SELECT stat, share, -1 AS thousandth FROM stat
  UNION ALL
  SELECT s.stat, s.share, CAST(s.share * 1000 AS BIGINT) + o.column1 AS thousandth
  FROM stat AS s
  CROSS JOIN (VALUES (-3), (-2), (-1), (0), (1), (2), (3)) AS o
  -- Below 0 is no value, and -1 means something else.
  WHERE CAST(s.share * 1000 AS BIGINT) + o.column1 >= 0
),
-- The one or two neighbours of each wanted position.
picked AS (
  SELECT
    r.recording_id,
    r.metric,
    s.stat,
    min(s.share * r.last_position) AS wanted,
    min(r.n) AS n,
    min(r.mean) AS mean,
    min(r.std) AS std,
    min(r.value) AS below,
    max(r.value) AS above
  FROM near AS s
  JOIN reach AS r
    ON r.thousandth = s.thousandth
    AND s.share * r.last_position > r.previous_position
    AND s.share * r.last_position < r.next_position
  GROUP BY r.recording_id, r.metric, s.stat
)
SELECT
  m.recording_id,
  m.metric,
  s.stat,
  CASE s.stat
    WHEN 'mean' THEN k.mean
    WHEN 'std' THEN k.std
    ELSE k.below + (k.above - k.below) * (k.wanted - floor(k.wanted))
  END AS value,
  m.unit,
  coalesce(k.n, 0) AS n
FROM metric AS m
CROSS JOIN stat AS s
LEFT JOIN picked AS k
  ON k.recording_id = m.recording_id
  AND k.metric = m.metric
  AND k.stat = s.stat;
