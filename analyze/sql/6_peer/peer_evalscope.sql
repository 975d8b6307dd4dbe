-- peer_evalscope: one row per measured request as EvalScope's perf would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: EvalScope perf 1.14.1
-- Source: evalscope/perf/utils/benchmark_util.py:115 (finalize, MetricsAccumulator); db_util.py (calculate_percentiles)
-- Start: before the request is sent, connection setup inside
-- First token: content or reasoning that is not empty
-- Last token: ITL: last such chunk; E2EL: last message, usage included, [DONE] not
-- TPOT: (E2EL - TTFT) / (tokens - 1), so the wait for usage is in it; 0 for one token, and the 0 is averaged
-- ITL: gap between such chunks, one value a chunk
-- Output tokens: usage, else its own tokenizer
-- Statistics: nearest rank, rounded to 2 places of ms (E2EL: of seconds); no std
-- Window: first start to last end, failed requests inside
-- Requests: answers without an error, also cut short (unverified)
-- Differs: starts before the connection; E2EL and TPOT run to the usage chunk; one-token answers count as TPOT 0; percentiles are rounded
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
CREATE VIEW peer_evalscope AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.streamed,
    q.t_issue_ns,
    q.t_last_message_ns,
    q.t_end_ns,
    s.chunks,
    s.t_first_ns,
    s.t_last_ns,
    q.outcome IN ('ok', 'truncated') AS counted,
    coalesce(q.usage_input_tokens, q.tokenized_input_tokens) AS input_tokens,
    coalesce(q.usage_output_tokens, q.tokenized_output_tokens) AS output_tokens
  FROM peer_request AS q
  LEFT JOIN peer_token_stream AS s
    ON s.recording_id = q.recording_id
    AND s.request_id = q.request_id
    AND s.rule = 'text'
)
SELECT
  recording_id,
  request_id,
  attempt,
  counted,
  t_issue_ns AS t_start_ns,
  t_end_ns,
  (t_first_ns - t_issue_ns) / 1e6 AS ttft_ms,
  CASE
    WHEN output_tokens > 1 THEN
      (t_last_message_ns - t_first_ns) / 1e6 / (output_tokens - 1)
    WHEN t_first_ns IS NOT NULL AND output_tokens IS NOT NULL THEN 0.0
  END AS tpot_ms,
  (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0) AS itl_ms,
  CASE WHEN streamed THEN t_last_message_ns - t_issue_ns
    ELSE t_end_ns - t_issue_ns
  END / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  output_tokens * 1e9
    / nullif(CASE WHEN streamed THEN t_last_message_ns ELSE t_end_ns END - t_issue_ns, 0) AS output_tokens_per_s
FROM taken;
