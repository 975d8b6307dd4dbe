-- schedule_lag: one row per recording: how late this client was, at sending and at reading.
-- Reads: recordings, outcome, read_lag, samples.
-- requires: tapedeck (distribution).
--   recording_id          TEXT    -         -      Key.
--   dispatched            BIGINT  requests  -      Measured requests with a schedule and no slot to wait for.
--   dispatch_lag_ms_p50   DOUBLE  ms        lower  Median of dispatched minus scheduled.
--   dispatch_lag_ms_p99   DOUBLE  ms        lower  99th percentile.
--   dispatch_lag_ms_max   DOUBLE  ms        lower  Worst.
--   pacer_lag_ms_p50      DOUBLE  ms        lower  Median from when an arrival was due and had its slot until it was handed to a worker, as counted while it ran (up to 1/32 too high).
--   pacer_lag_ms_p99      DOUBLE  ms        lower  99th percentile.
--   pacer_lag_ms_max      DOUBLE  ms        lower  Worst.
--   slot_lag_ms_p50       DOUBLE  ms        lower  From the same instant until a worker had taken it, counted the same way; known for loads with slots too.
--   slot_lag_ms_p99       DOUBLE  ms        lower  99th percentile.
--   slot_lag_ms_max       DOUBLE  ms        lower  Worst.
--   chunks_read           BIGINT  chunks    -      Chunks of every kind.
--   read_lag_ms_p50       DOUBLE  ms        lower  Median of seen minus arrived: chunks waiting for this process.
--   read_lag_ms_p99       DOUBLE  ms        lower  99th percentile.
--   read_lag_ms_max       DOUBLE  ms        lower  Worst.
CREATE VIEW schedule_lag AS
WITH
dispatch AS (
  SELECT
    o.recording_id,
    (o.t_dispatched_ns - o.t_scheduled_ns) / 1e6 AS lag_ms
  FROM outcome AS o
  JOIN recordings AS g ON g.recording_id = o.recording_id
  -- A wait for a slot is part of a capped open loop: it says nothing of lateness.
  WHERE NOT g.waits_for_slots
    AND o.measured
    AND o.t_scheduled_ns IS NOT NULL
    AND o.t_dispatched_ns IS NOT NULL
),
dispatch_stat AS (
  SELECT
    recording_id,
    count(*) AS n,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_ms) AS p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY lag_ms) AS p99,
    max(lag_ms) AS worst
  FROM dispatch
  GROUP BY recording_id
),
-- What the client counted over its whole run, as it last said.
counted AS (
  SELECT
    recording_id,
    name,
    labels['stat'] AS stat,
    value,
    row_number() OVER (
      PARTITION BY recording_id, name, labels['stat']
      ORDER BY t_ns DESC
    ) AS age
  FROM samples
  WHERE source = 'client'
    AND name IN ('pacer_lag_ms', 'dispatch_lag_ms')
    AND labels['over'] = 'run'
),
counted_stat AS (
  SELECT
    recording_id,
    max(CASE WHEN name = 'pacer_lag_ms' AND stat = 'p50' THEN value END)
      AS pacer_p50,
    max(CASE WHEN name = 'pacer_lag_ms' AND stat = 'p99' THEN value END)
      AS pacer_p99,
    max(CASE WHEN name = 'pacer_lag_ms' AND stat = 'max' THEN value END)
      AS pacer_max,
    max(CASE WHEN name = 'dispatch_lag_ms' AND stat = 'p50' THEN value END)
      AS slot_p50,
    max(CASE WHEN name = 'dispatch_lag_ms' AND stat = 'p99' THEN value END)
      AS slot_p99,
    max(CASE WHEN name = 'dispatch_lag_ms' AND stat = 'max' THEN value END)
      AS slot_max
  FROM counted
  WHERE age = 1
  GROUP BY recording_id
),
-- All phases: a client that cannot keep up in its warm-up cannot later either.
read_sample AS (
  SELECT
    recording_id,
    distribution(lag_ns, [50.0, 99.0], 'linear', chunks) AS lag
  FROM read_lag
  GROUP BY recording_id
),
read_percentile AS (
  SELECT
    recording_id,
    lag['n'] AS n,
    lag['max'] / 1e6 AS worst,
    unnest(lag['percentiles']) AS near
  FROM read_sample
),
read_value AS (
  SELECT
    recording_id,
    n,
    worst,
    near['p'] AS p,
    near['below'] / 1e6
      + (near['above'] / 1e6 - near['below'] / 1e6) * near['fraction'] AS value
  FROM read_percentile
),
read_stat AS (
  SELECT
    recording_id,
    min(n) AS n,
    min(CASE WHEN p = 50 THEN value END) AS p50,
    min(CASE WHEN p = 99 THEN value END) AS p99,
    min(worst) AS worst
  FROM read_value
  GROUP BY recording_id
)
SELECT
  g.recording_id,
  coalesce(d.n, 0) AS dispatched,
  d.p50 AS dispatch_lag_ms_p50,
  d.p99 AS dispatch_lag_ms_p99,
  d.worst AS dispatch_lag_ms_max,
  c.pacer_p50 AS pacer_lag_ms_p50,
  c.pacer_p99 AS pacer_lag_ms_p99,
  c.pacer_max AS pacer_lag_ms_max,
  c.slot_p50 AS slot_lag_ms_p50,
  c.slot_p99 AS slot_lag_ms_p99,
  c.slot_max AS slot_lag_ms_max,
  coalesce(k.n, 0) AS chunks_read,
  k.p50 AS read_lag_ms_p50,
  k.p99 AS read_lag_ms_p99,
  k.worst AS read_lag_ms_max
FROM recordings AS g
LEFT JOIN dispatch_stat AS d ON d.recording_id = g.recording_id
LEFT JOIN counted_stat AS c ON c.recording_id = g.recording_id
LEFT JOIN read_stat AS k ON k.recording_id = g.recording_id;
