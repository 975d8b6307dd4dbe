-- peer_vllm: one row per measured request as vLLM's `bench serve` would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: vLLM `vllm bench serve` 0.33.0
-- Source: vllm/benchmarks/lib/endpoint_request_func.py:248-307,392-398,443-501; serve.py:636-660
-- Start: before the POST, connection setup inside, after its own semaphore
-- First token: chat: content, tool call, field `reasoning` (not `reasoning_content`) or "" without a role; completions: any chunk with choices
-- Last token: last such chunk, so also an empty closing delta; not usage, not [DONE]
-- TPOT: (E2EL - TTFT) / (tokens - 1); no value for one token
-- ITL: gap between such chunks, one value a chunk
-- Output tokens: usage, else its own tokenizer over the text
-- Statistics: numpy: linear percentiles, population std
-- Window: first start to last end, failed requests inside
-- Requests: status 200 and one such chunk, also cut short or with an error in the stream
-- Differs: starts before the connection; takes one token off for the first chunk whatever it held; an empty delta is a token, `reasoning_content` is none
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
CREATE VIEW peer_vllm AS
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
    q.status = 200
      AND s.request_id IS NOT NULL
      AND q.outcome IN ('ok', 'truncated', 'stream_error') AS counted,
    coalesce(q.usage_input_tokens, q.tokenized_input_tokens) AS input_tokens,
    coalesce(q.usage_output_tokens, q.tokenized_output_tokens) AS output_tokens
  FROM peer_request AS q
  LEFT JOIN peer_token_stream AS s
    ON s.recording_id = q.recording_id
    AND s.request_id = q.request_id
    AND s.rule = 'vllm'
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
  (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0) AS itl_ms,
  (t_last_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
