-- peer_mlperf: one row per measured request as MLPerf Endpoints would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: MLPerf Endpoints ea33275
-- Source: src/inference_endpoint/async_utils/services/metrics_aggregator/metrics_table.py:357-397; accumulator.py:50-75; session.py:664-672
-- Start: issued in its main process, before dispatch; its hop to the worker is in no recording
-- First token: first chunk with content, reasoning or tool call, stamped after another hop
-- Last token: completion: end of the response
-- TPOT: (end - first token) / tokens after the first chunk, counted by its own tokenizer
-- ITL: chunk_delta: gap between such chunks (only with stream_all_chunks)
-- Output tokens: its own tokenizer over the whole answer, never usage
-- Statistics: numpy: linear percentiles, population std (unverified)
-- Window: first start to last end of the requests that count (its native window, not LoadGen's)
-- Requests: answers that completed
-- Differs: starts at issue; E2EL and TPOT run to the end of the response; counts tokens itself; its process hops are not simulated
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
CREATE VIEW peer_mlperf AS
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
    s.first_tokens,
    q.outcome = 'ok' AS counted,
    q.tokenized_input_tokens AS input_tokens,
    q.tokenized_output_tokens AS output_tokens
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
  (t_end_ns - t_first_ns) / 1e6 / nullif(output_tokens - first_tokens, 0) AS tpot_ms,
  (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0) AS itl_ms,
  (t_end_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
