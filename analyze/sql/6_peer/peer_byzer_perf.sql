-- peer_byzer_perf: one row per measured request as byzer-perf would have counted it.
-- Reads: peer_request.
-- Tool: byzer-perf 0.1.2
-- Source: byzerperf 0.1.2, perf_{i}.jsonl: client_start, client_end, generated_tokens_count
-- Start: client_start, before the request is sent (wall clock, ms)
-- First token: a duration that its own server reports, in no recording
-- Last token: client_end, the end of the response
-- TPOT: none
-- ITL: none
-- Output tokens: as the server counted
-- Statistics: means only
-- Window: first start to last end of the requests that count
-- Requests: answers that finished
-- Differs: starts before the connection; E2EL runs to the end of the response; no first token of its own; means only
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
CREATE VIEW peer_byzer_perf AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.t_issue_ns,
    q.t_end_ns,
    q.outcome = 'ok' AS counted,
    q.usage_input_tokens AS input_tokens,
    q.usage_output_tokens AS output_tokens
  FROM peer_request AS q
)
SELECT
  recording_id,
  request_id,
  attempt,
  counted,
  t_issue_ns AS t_start_ns,
  t_end_ns,
  CAST(NULL AS DOUBLE) AS ttft_ms,
  CAST(NULL AS DOUBLE) AS tpot_ms,
  CAST(NULL AS DOUBLE) AS itl_ms,
  (t_end_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
