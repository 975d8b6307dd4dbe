-- latency_percentiles: one row per recording, metric and stat, over measured requests with outcome ok.
-- Reads: percentiles, metric, request_latency, request_metric, chunk_gap.
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
sampled AS (
  SELECT recording_id, metric, value
  FROM request_metric
  WHERE value IS NOT NULL
  UNION ALL
  SELECT g.recording_id, 'itl_ms' AS metric, g.itl_ms AS value
  FROM chunk_gap AS g
  JOIN request_latency AS r
    ON r.recording_id = g.recording_id
    AND r.request_id = g.request_id
    AND r.attempt = g.attempt
  WHERE r.outcome = 'ok'
),
ranked AS (
  SELECT
    recording_id,
    metric,
    value,
    CAST(row_number() OVER (
      PARTITION BY recording_id, metric ORDER BY value
    ) AS BIGINT) - 1 AS position,
    count(*) OVER (PARTITION BY recording_id, metric) AS n,
    avg(value) OVER (PARTITION BY recording_id, metric) AS mean,
    stddev_pop(value) OVER (PARTITION BY recording_id, metric) AS std
  FROM sampled
),
stat AS (
  SELECT stat, CAST(p AS DOUBLE) AS p FROM percentiles
  UNION ALL
  SELECT column1 AS stat, column2 AS p
  FROM (
    VALUES ('mean', 0.0), ('std', 0.0), ('min', 0.0), ('max', 100.0)
  ) AS v
),
picked AS (
  SELECT
    r.recording_id,
    r.metric,
    s.stat,
    min(s.p) AS p,
    min(r.n) AS n,
    min(r.mean) AS mean,
    min(r.std) AS std,
    min(r.value) AS below,
    max(r.value) AS above
  FROM ranked AS r
  JOIN stat AS s
    ON r.position >= floor(s.p / 100 * (r.n - 1))
    AND r.position <= ceil(s.p / 100 * (r.n - 1))
  GROUP BY r.recording_id, r.metric, s.stat
)
SELECT
  m.recording_id,
  m.metric,
  s.stat,
  CASE s.stat
    WHEN 'mean' THEN k.mean
    WHEN 'std' THEN k.std
    ELSE k.below + (k.above - k.below)
      * (k.p / 100 * (k.n - 1) - floor(k.p / 100 * (k.n - 1)))
  END AS value,
  m.unit,
  coalesce(k.n, 0) AS n
FROM metric AS m
CROSS JOIN stat AS s
LEFT JOIN picked AS k
  ON k.recording_id = m.recording_id
  AND k.metric = m.metric
  AND k.stat = s.stat;
