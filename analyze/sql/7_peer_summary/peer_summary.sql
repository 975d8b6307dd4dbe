-- peer_summary: one row per recording, profile, metric and stat: a tool's summary, in the form of our own.
-- Reads: peer_rate, peer_spread.
--   recording_id  TEXT    -  -  Key.
--   profile       TEXT    -  -  Key. As in peer_profile.
--   metric        TEXT    -  -  Key. As in peer_metric, and the throughputs of peer_rate.
--   metric_index  BIGINT  -  -  Order in a report.
--   stat          TEXT    -  -  Key. As in peer_spread, or value where there is only one.
--   value         DOUBLE  -  -  NULL where the tool has none or the recording cannot give it: peer_metric says why.
--   unit          TEXT    -  -  Unit of value.
--   n             BIGINT  -  -  Values behind the number.
CREATE VIEW peer_summary AS
WITH
name AS (
  SELECT column1 AS metric_index, column2 AS metric, column3 AS unit
  FROM (
    VALUES
      (0, 'ttft_ms', 'ms'),
      (1, 'tpot_ms', 'ms'),
      (2, 'itl_ms', 'ms'),
      (3, 'e2el_ms', 'ms'),
      (4, 'input_tokens', 'tokens'),
      (5, 'output_tokens', 'tokens'),
      (6, 'output_tokens_per_s', 'tokens/s'),
      (7, 'request_throughput', 'requests/s'),
      (8, 'input_token_throughput', 'tokens/s'),
      (9, 'output_token_throughput', 'tokens/s'),
      (10, 'total_token_throughput', 'tokens/s'),
      (11, 'duration', 's'),
      (12, 'succeeded', 'requests')
  ) AS v
),
spread AS (
  SELECT
    s.recording_id,
    s.profile,
    s.metric,
    s.stat,
    -- One number a run: its window over the tokens of all requests.
    CASE
      WHEN s.profile = 'evalscope-0.8' AND s.metric = 'tpot_ms' AND s.stat = 'mean'
        THEN r.duration_s * 1e3 / nullif(r.output_tokens, 0)
      ELSE s.value
    END AS value,
    CASE
      WHEN s.profile = 'evalscope-0.8' AND s.metric = 'tpot_ms' AND s.stat = 'mean'
        THEN r.counted
      ELSE s.n
    END AS n
  FROM peer_spread AS s
  JOIN peer_rate AS r
    ON r.recording_id = s.recording_id
    AND r.profile = s.profile
),
scalar AS (
  SELECT
    r.recording_id,
    r.profile,
    n.metric,
    'value' AS stat,
    CASE n.metric
      WHEN 'request_throughput' THEN r.request_throughput
      WHEN 'input_token_throughput' THEN r.input_token_throughput
      WHEN 'output_token_throughput' THEN r.output_token_throughput
      WHEN 'total_token_throughput' THEN r.total_token_throughput
      WHEN 'duration' THEN r.duration_s
      WHEN 'succeeded' THEN CAST(r.counted AS DOUBLE)
    END AS value,
    r.counted AS n
  FROM peer_rate AS r
  CROSS JOIN name AS n
  WHERE n.metric_index >= 7
),
every AS (
  SELECT recording_id, profile, metric, stat, value, n FROM spread
  UNION ALL
  SELECT recording_id, profile, metric, stat, value, n FROM scalar
)
SELECT
  e.recording_id,
  e.profile,
  e.metric,
  n.metric_index,
  e.stat,
  e.value,
  n.unit,
  e.n
FROM every AS e
JOIN name AS n ON n.metric = e.metric;
