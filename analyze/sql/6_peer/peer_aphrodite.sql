-- peer_aphrodite: one row per measured request as Aphrodite's benchmark_serving would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: Aphrodite benchmark_serving v0.6.0
-- Source: benchmarks/backend_request_func.py and benchmark_serving.py at 54d6d87f0
-- Start: before the POST on a session of its own, so every request connects
-- First token: text or content that is not empty; reasoning and tool calls are none
-- Last token: ITL: last such chunk; E2EL: [DONE]
-- TPOT: (E2EL - TTFT) / (tokens - 1), so the wait for [DONE] is in it; no value for one token
-- ITL: gap between such chunks; completions: TTFT is the first value (a bug, fixed in 0.6.5)
-- Output tokens: its own tokenizer over the text, never usage
-- Statistics: numpy: linear percentiles, population std
-- Window: first start to last end, failed requests inside
-- Requests: status 200 and a [DONE]
-- Differs: starts before the connection; E2EL and TPOT run to [DONE]; reasoning is no token; counts tokens itself
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
CREATE VIEW peer_aphrodite AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.api,
    q.t_issue_ns,
    q.t_done_ns,
    q.t_end_ns,
    s.chunks,
    s.t_first_ns,
    s.t_last_ns,
    q.status = 200
      AND q.t_done_ns IS NOT NULL AS counted,
    q.tokenized_input_tokens AS input_tokens,
    q.tokenized_output_tokens AS output_tokens
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
    (t_done_ns - t_first_ns) / 1e6 / (output_tokens - 1)
  END AS tpot_ms,
  CASE WHEN api = 'openai-completions' THEN
    (t_last_ns - t_issue_ns) / 1e6 / nullif(chunks, 0)
  ELSE
    (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0)
  END AS itl_ms,
  (t_done_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
