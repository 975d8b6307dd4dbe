-- peer_aiperf: one row per measured request as NVIDIA's AIPerf would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: NVIDIA AIPerf 0.13.0 with --use-server-token-count
-- Source: metrics/inter_token_latency_metric.py:55-102; record_models.py:671-700
-- Start: before the request is sent, connection setup inside
-- First token: first chunk with content, reasoning or tool call
-- Last token: last such chunk
-- TPOT: the same number as its ITL
-- ITL: one value a request: (E2EL - TTFT) / (tokens - 1); --per-chunk-usage, which takes off the tokens of the first chunk, is not its default
-- Output tokens: usage (its --use-server-token-count; by default its own tokenizer counts)
-- Statistics: numpy: linear percentiles, population std
-- Window: first start to last end of the requests that count
-- Requests: answers with such a chunk and no error
-- Differs: starts before the connection; ITL is a mean per request, not the gaps; takes one token off for the first chunk whatever it held
--   recording_id         TEXT     -         -       Key.
--   request_id           BIGINT   -         -       Key.
--   attempt              INT      -         -       The last attempt.
--   counted              BOOLEAN  -         -       The tool takes the request for a success; summaries take these.
--   t_start_ns           BIGINT   ns        -       Its start instant.
--   t_end_ns             BIGINT   ns        -       End of the response, for its throughput window.
--   ttft_ms              DOUBLE   ms        lower   Its time to first token.
--   tpot_ms              DOUBLE   ms        lower   Its time per output token.
--   itl_ms               DOUBLE   ms        lower   Mean of its inter-token latencies of the request.
--   e2el_ms              DOUBLE   ms        lower   Its end-to-end latency.
--   input_tokens         BIGINT   tokens    -       Its count.
--   output_tokens        BIGINT   tokens    -       Its count.
--   output_tokens_per_s  DOUBLE   tokens/s  higher  Its rate of one request.
CREATE VIEW peer_aiperf AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.t_issue_ns,
    q.t_end_ns,
    s.t_first_ns,
    s.t_last_ns,
    q.outcome IN ('ok', 'truncated')
      AND s.request_id IS NOT NULL AS counted,
    coalesce(q.usage_input_tokens, q.tokenized_input_tokens) AS input_tokens,
    coalesce(q.usage_output_tokens, q.tokenized_output_tokens) AS output_tokens
  FROM peer_request AS q
  LEFT JOIN peer_token_stream AS s
    ON s.recording_id = q.recording_id
    AND s.request_id = q.request_id
    AND s.rule = 'content_bearing'
)
SELECT
  recording_id,
  request_id,
  attempt,
  counted,
  t_issue_ns AS t_start_ns,
  t_end_ns,
  (t_first_ns - t_issue_ns) / 1e6 AS ttft_ms,
  CASE WHEN output_tokens > 1 THEN
    (t_last_ns - t_first_ns) / 1e6 / (output_tokens - 1)
  END AS tpot_ms,
  CASE WHEN output_tokens > 1 THEN
    (t_last_ns - t_first_ns) / 1e6 / (output_tokens - 1)
  END AS itl_ms,
  (t_last_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CASE WHEN output_tokens > 1 THEN
    (output_tokens - 1) * 1e9 / nullif(t_last_ns - t_first_ns, 0)
  END AS output_tokens_per_s
FROM taken;
