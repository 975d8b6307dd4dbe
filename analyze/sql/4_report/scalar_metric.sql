-- scalar_metric: one row per recording and metric that a recording has one value of, shaped like latency_percentiles.
-- Reads: throughput, goodput, concurrency.
--   recording_id  TEXT    -  -  Key.
--   metric        TEXT    -  -  Key.
--   metric_index  BIGINT  -  -  Order in a report.
--   stat          TEXT    -  -  Always value.
--   value         DOUBLE  -  -  NULL where undefined.
--   unit          TEXT    -  -  Unit of value.
--   n             BIGINT  -  -  Requests behind the value.
CREATE VIEW scalar_metric AS
WITH names AS (
  SELECT column1 AS metric_index, column2 AS metric, column3 AS unit
  FROM (
    VALUES
      (0, 'request_throughput', 'requests/s'),
      (1, 'input_token_throughput', 'tokens/s'),
      (2, 'output_token_throughput', 'tokens/s'),
      (3, 'total_token_throughput', 'tokens/s'),
      (4, 'success_rate', 'ratio'),
      (5, 'goodput', 'requests/s'),
      (6, 'goodput_share', 'ratio'),
      (7, 'concurrency', 'requests'),
      (8, 'concurrency_max', 'requests')
  ) AS v
)
SELECT
  t.recording_id,
  n.metric,
  n.metric_index,
  'value' AS stat,
  CASE n.metric
    WHEN 'request_throughput' THEN t.request_throughput
    WHEN 'input_token_throughput' THEN t.input_token_throughput
    WHEN 'output_token_throughput' THEN t.output_token_throughput
    WHEN 'total_token_throughput' THEN t.total_token_throughput
    WHEN 'success_rate' THEN t.success_rate
    WHEN 'goodput' THEN g.goodput
    WHEN 'goodput_share' THEN g.goodput_share
    WHEN 'concurrency' THEN c.concurrency
    WHEN 'concurrency_max' THEN CAST(c.concurrency_max AS DOUBLE)
  END AS value,
  n.unit,
  CASE
    WHEN n.metric LIKE '%throughput' THEN t.succeeded
    ELSE t.requests
  END AS n
FROM throughput AS t
CROSS JOIN names AS n
LEFT JOIN goodput AS g ON g.recording_id = t.recording_id
LEFT JOIN concurrency AS c ON c.recording_id = t.recording_id;
