-- request_metric: one row per measured request with outcome ok and per metric that a request has one value of.
-- Reads: metric, request_latency.
--   recording_id   TEXT    -  -  Key.
--   request_id     BIGINT  -  -  Key.
--   metric         TEXT    -  -  Key. A column of request_latency.
--   unit           TEXT    -  -  Unit of value.
--   value          DOUBLE  -  -  The request's value. NULL where undefined.
--   output_tokens  BIGINT  tokens  -  Of the request, for rules that depend on it.
CREATE VIEW request_metric AS
SELECT
  r.recording_id,
  r.request_id,
  m.metric,
  m.unit,
  CASE m.metric
    WHEN 'ttft_ms' THEN r.ttft_ms
    WHEN 'ttft_scheduled_ms' THEN r.ttft_scheduled_ms
    WHEN 'ttfo_ms' THEN r.ttfo_ms
    WHEN 'tpot_ms' THEN r.tpot_ms
    WHEN 'e2el_ms' THEN r.e2el_ms
    WHEN 'e2el_scheduled_ms' THEN r.e2el_scheduled_ms
    WHEN 'queue_delay_ms' THEN r.queue_delay_ms
    WHEN 'input_tokens' THEN CAST(r.input_tokens AS DOUBLE)
    WHEN 'output_tokens' THEN CAST(r.output_tokens AS DOUBLE)
    WHEN 'output_tokens_per_s' THEN r.output_tokens_per_s
    WHEN 'total_tokens_per_s' THEN r.total_tokens_per_s
    WHEN 'chunks_per_request' THEN CAST(r.chunks_per_request AS DOUBLE)
  END AS value,
  r.output_tokens
FROM request_latency AS r
JOIN metric AS m ON m.recording_id = r.recording_id
WHERE r.outcome = 'ok'
  AND m.metric <> 'itl_ms';
