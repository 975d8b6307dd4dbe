-- peer_llmperf: one row per measured request as ray's llmperf would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: ray llmperf f1d6bed
-- Source: src/llmperf/ray_clients/openai_chat_completions_client.py:93-112; token_benchmark_ray.py (metrics_summary)
-- Start: before requests.post, so every request connects
-- First token: `delta.content` that is not empty; without any, TTFT is 0
-- Last token: E2EL: end of the response
-- TPOT: none
-- ITL: one value a request: (last content - start) / tokens, so TTFT is inside
-- Output tokens: a Llama tokenizer over the text, whatever the model
-- Statistics: pandas: linear quantiles, sample std
-- Window: first start to last end, failed requests inside
-- Requests: status 200 and no error in the stream, also cut short
-- Differs: starts before the connection; ITL includes TTFT; reasoning and tool calls are no tokens; tokens of another model's tokenizer
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
CREATE VIEW peer_llmperf AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.streamed,
    q.t_issue_ns,
    q.t_end_ns,
    s.t_first_ns,
    q.status = 200
      AND q.outcome IN ('ok', 'truncated') AS counted,
    CAST(NULL AS BIGINT) AS input_tokens,
    CAST(NULL AS BIGINT) AS output_tokens
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
  CASE WHEN streamed AND t_first_ns IS NULL THEN 0.0
    ELSE (t_first_ns - t_issue_ns) / 1e6
  END AS ttft_ms,
  CAST(NULL AS DOUBLE) AS tpot_ms,
  CAST(NULL AS DOUBLE) AS itl_ms,
  (t_end_ns - t_issue_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
