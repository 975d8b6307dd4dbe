-- latency_percentiles: one row per recording, metric and stat, over measured requests with outcome ok.
-- Reads: percentiles, metric, request_latency, request_metric, chunk_stream.
-- requires: tapedeck (distribution).
--   recording_id  TEXT    -  -  Key.
--   metric        TEXT    -  -  Key. As in view metric.
--   stat          TEXT    -  -  Key. mean, std (population), min, max, and a row per row of table percentiles.
--   value         DOUBLE  -  -  NULL when n is 0.
--   unit          TEXT    -  -  Unit of value.
--   n             BIGINT  -  -  Values behind the stat: requests, or gaps for itl_ms.
CREATE VIEW latency_percentiles AS
-- Exact, by numpy's linear rule: the value at position p / 100 * (n - 1) of the
-- sorted values, between neighbours by proportion. `distribution` finds the
-- neighbours in one pass, without holding every gap; gaps stay in ns until then.
WITH
wanted AS (
  SELECT array_agg(p ORDER BY p) AS percentiles FROM percentiles
),
stream AS (
  SELECT s.recording_id, s.itl_ns
  FROM chunk_stream AS s
  JOIN request_latency AS r
    ON r.recording_id = s.recording_id
    AND r.request_id = s.request_id
    AND r.attempt = s.attempt
  WHERE r.outcome = 'ok'
),
sample AS (
  SELECT
    r.recording_id,
    r.metric,
    1e0 AS scale,
    distribution(r.value, w.percentiles) AS d
  FROM request_metric AS r
  CROSS JOIN wanted AS w
  GROUP BY r.recording_id, r.metric
  UNION ALL
  SELECT
    s.recording_id,
    'itl_ms' AS metric,
    1e6 AS scale,
    distribution(s.itl_ns, w.percentiles) AS d
  FROM stream AS s
  CROSS JOIN wanted AS w
  GROUP BY s.recording_id
),
stat AS (
  SELECT stat, CAST(row_number() OVER (ORDER BY p) AS BIGINT) AS place FROM percentiles
  UNION ALL
  SELECT column1 AS stat, NULL AS place
  FROM (
    VALUES ('mean'), ('std'), ('min'), ('max')
  ) AS v
),
-- The sample is read here and nowhere else: a second mention would be a second pass.
found AS (
  SELECT
    m.recording_id,
    m.metric,
    m.unit,
    t.stat,
    s.scale,
    s.d,
    s.d['percentiles'][t.place] AS near
  FROM metric AS m
  CROSS JOIN stat AS t
  LEFT JOIN sample AS s
    ON s.recording_id = m.recording_id
    AND s.metric = m.metric
)
SELECT
  recording_id,
  metric,
  stat,
  CASE stat
    WHEN 'mean' THEN d['mean'] / scale
    WHEN 'std' THEN d['std'] / scale
    WHEN 'min' THEN d['min'] / scale
    WHEN 'max' THEN d['max'] / scale
    ELSE near['below'] / scale
      + (near['above'] / scale - near['below'] / scale) * near['fraction']
  END AS value,
  unit,
  coalesce(d['n'], 0) AS n
FROM found;
