-- peer_llm_perf: one row per measured request as SenseTime's llm.perf would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: llm.perf api_bench_tools (SenseTime)
-- Source: api_bench_tools/python/backend_request_func.py:91-94,176; benchmark_metrics.py (the vllm client; it sends completions only, chat is read by the same rule)
-- Start: before requests.post, so every request connects
-- First token: text that is not empty
-- Last token: ITL: last such chunk; E2EL: [DONE]
-- TPOT: (E2EL - TTFT) / (tokens - 1); its README has the inverse
-- ITL: gap between such chunks, one value a chunk
-- Output tokens: the number of such chunks
-- Statistics: numpy: linear percentiles, population std
-- Window: first start to last end, failed requests inside
-- Requests: status 200, no error in the stream, and a [DONE]
-- Differs: starts before the connection; chunks are its tokens; E2EL and TPOT run to [DONE]; reasoning and tool calls are no tokens
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
CREATE VIEW peer_llm_perf AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.t_issue_ns,
    q.t_done_ns,
    q.t_end_ns,
    s.chunks,
    s.t_first_ns,
    s.t_last_ns,
    q.status = 200
      AND q.outcome = 'ok'
      AND q.t_done_ns IS NOT NULL AS counted,
    q.tokenized_input_tokens AS input_tokens,
    s.chunks AS output_tokens
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
  (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0) AS itl_ms,
  (t_done_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
