-- metric: one row per recording and metric of latency_percentiles.
-- Reads: recordings.
--   recording_id  TEXT    -  -  Key.
--   metric        TEXT    -  -  Key. A column of request_latency, or itl_ms.
--   metric_index  BIGINT  -  -  Order in a report.
--   unit          TEXT    -  -  Unit of the metric's values.
CREATE VIEW metric AS
-- Every recording has every metric, so that one without a single value shows
-- as NULL and n = 0 instead of going missing.
WITH names AS (
  SELECT column1 AS metric_index, column2 AS metric, column3 AS unit
  FROM (
    VALUES
      (0, 'ttft_ms', 'ms'),
      (1, 'ttft_scheduled_ms', 'ms'),
      (2, 'ttfo_ms', 'ms'),
      (3, 'tpot_ms', 'ms'),
      (4, 'itl_ms', 'ms'),
      (5, 'e2el_ms', 'ms'),
      (6, 'e2el_scheduled_ms', 'ms'),
      (7, 'queue_delay_ms', 'ms'),
      (8, 'input_tokens', 'tokens'),
      (9, 'output_tokens', 'tokens'),
      (10, 'output_tokens_per_s', 'tokens/s'),
      (11, 'total_tokens_per_s', 'tokens/s'),
      (12, 'chunks_per_request', 'chunks')
  ) AS v
)
SELECT r.recording_id, n.metric, n.metric_index, n.unit
FROM recordings AS r
CROSS JOIN names AS n;
