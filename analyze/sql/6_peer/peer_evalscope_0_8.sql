-- peer_evalscope_0_8: one row per measured request as EvalScope's perf of 2024 would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: EvalScope perf 0.8.2
-- Source: evalscope 0.8.2 perf/utils/db_util.py:36-49 and its percentile list
-- Start: before the request is sent, connection setup inside
-- First token: the first message of the stream, whatever is in it
-- Last token: ITL: last message, usage included; E2EL: end of the response (unverified)
-- TPOT: one number a run: window / tokens of all requests
-- ITL: gap between messages, one value a message
-- Output tokens: usage, else its own tokenizer
-- Statistics: value at index int(n p / 100), rounded to 2 places of seconds, from 10 requests on; no std
-- Window: first start to last end, failed requests inside
-- Requests: answers without an error, also cut short (unverified)
-- Differs: a role or empty chunk is the first token; TPOT divides the run, not the request; percentiles in steps of 10 ms
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
CREATE VIEW peer_evalscope_0_8 AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.t_issue_ns,
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
    AND s.rule = 'data'
)
SELECT
  recording_id,
  request_id,
  attempt,
  counted,
  t_issue_ns AS t_start_ns,
  t_end_ns,
  (t_first_ns - t_issue_ns) / 1e6 AS ttft_ms,
  CAST(NULL AS DOUBLE) AS tpot_ms,
  (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0) AS itl_ms,
  (t_end_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  output_tokens * 1e9 / nullif(t_end_ns - t_issue_ns, 0) AS output_tokens_per_s
FROM taken;
