-- peer_inference_perf: one row per measured request as inference-perf would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: inference-perf 7de5ef2 with use_server_output_tokens
-- Source: inference_perf/reportgen/base.py:574-581 (effective_output_tokens, summarize)
-- Start: before the request is sent, connection setup inside
-- First token: `delta.content` that is not empty; reasoning and tool calls are none
-- Last token: TPOT: last such chunk; E2EL: end of the response
-- TPOT: (last - first token) / (tokens - 1)
-- ITL: one value a token: a chunk of several tokens gives its gap once and then zeros
-- Output tokens: usage (its use_server_output_tokens; by default its own tokenizer counts)
-- Statistics: numpy: linear percentiles; no std
-- Window: first start to last end, failed requests inside
-- Requests: answers without an error, also cut short (unverified)
-- Differs: starts before the connection; reasoning is no token, so TTFT waits for it; E2EL runs to the end of the response; ITL has zeros
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
CREATE VIEW peer_inference_perf AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.t_issue_ns,
    q.t_end_ns,
    s.t_first_ns,
    s.t_last_ns,
    s.tokens AS stream_tokens,
    q.outcome IN ('ok', 'truncated') AS counted,
    coalesce(q.usage_input_tokens, q.tokenized_input_tokens) AS input_tokens,
    coalesce(q.usage_output_tokens, q.tokenized_output_tokens) AS output_tokens
  FROM peer_request AS q
  LEFT JOIN peer_token_stream AS s
    ON s.recording_id = q.recording_id
    AND s.request_id = q.request_id
    AND s.rule = 'content'
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
  (t_last_ns - t_first_ns) / 1e6 / nullif(stream_tokens - 1, 0) AS itl_ms,
  (t_end_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
