-- compare_value: one row per compared recording, metric and stat.
-- Reads: percentiles, metric, sides, compare_request, request_metric, chunk_stream, scalar_metric.
-- requires: tapedeck (distribution).
--   recording_id  TEXT    -  -  Key.
--   side          TEXT    -  -  base or new.
--   metric        TEXT    -  -  Key. As in views metric and scalar_metric.
--   metric_index  BIGINT  -  -  Order in a report.
--   stat          TEXT    -  -  Key. mean and a row per row of table percentiles; value where there is only one.
--   unit          TEXT    -  -  Unit of value.
--   value         DOUBLE  -  -  Over the requests of compare_request; of scalar metrics, over all measured ones.
--   n             BIGINT  -  -  Values behind it: requests, or gaps for itl_ms.
CREATE VIEW compare_value AS
-- Exact, as latency_percentiles computes it.
WITH
wanted AS (
  SELECT array_agg(p ORDER BY p) AS percentiles FROM percentiles
),
sample AS (
  SELECT
    q.recording_id,
    m.metric,
    1e0 AS scale,
    distribution(m.value, w.percentiles) AS d
  FROM compare_request AS q
  JOIN request_metric AS m
    ON m.recording_id = q.recording_id
    AND m.request_id = q.request_id
  CROSS JOIN wanted AS w
  GROUP BY q.recording_id, m.metric
  UNION ALL
  SELECT
    q.recording_id,
    'itl_ms' AS metric,
    1e6 AS scale,
    distribution(s.itl_ns, w.percentiles) AS d
  FROM compare_request AS q
  JOIN chunk_stream AS s
    ON s.recording_id = q.recording_id
    AND s.request_id = q.request_id
    AND s.attempt = q.attempt
  CROSS JOIN wanted AS w
  GROUP BY q.recording_id
),
stat AS (
  SELECT stat, CAST(row_number() OVER (ORDER BY p) AS BIGINT) AS place
  FROM percentiles
  UNION ALL
  SELECT 'mean' AS stat, NULL AS place
),
found AS (
  SELECT
    m.recording_id,
    g.side,
    m.metric,
    m.metric_index,
    m.unit,
    t.stat,
    s.scale,
    s.d,
    s.d['percentiles'][t.place] AS near
  FROM metric AS m
  JOIN sides AS g ON g.recording_id = m.recording_id
  CROSS JOIN stat AS t
  LEFT JOIN sample AS s
    ON s.recording_id = m.recording_id
    AND s.metric = m.metric
)
SELECT
  recording_id,
  side,
  metric,
  metric_index,
  stat,
  unit,
  CASE stat
    WHEN 'mean' THEN d['mean'] / scale
    ELSE near['below'] / scale
      + (near['above'] / scale - near['below'] / scale) * near['fraction']
  END AS value,
  coalesce(d['n'], 0) AS n
FROM found
UNION ALL
SELECT
  c.recording_id,
  g.side,
  c.metric,
  -- Behind those of requests.
  100 + c.metric_index AS metric_index,
  c.stat,
  c.unit,
  c.value,
  c.n
FROM scalar_metric AS c
JOIN sides AS g ON g.recording_id = c.recording_id;
