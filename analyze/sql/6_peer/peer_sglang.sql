-- peer_sglang: one row per measured request as SGLang's bench_serving would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: SGLang bench_serving 0.5.23 (OpenAI clients)
-- Source: sglang/benchmark/serving.py:150-155,340,496,563,1153 (async_request_openai_chat_completions)
-- Start: before the POST on a session of its own, so every request connects
-- First token: content, `reasoning_content` or `reasoning` that is not empty; a tool call is none, and an answer of only tool calls has TTFT 0
-- Last token: last event of the stream, usage and [DONE] included
-- TPOT: (E2EL - TTFT) / (tokens - 1), so the wait for usage is in it; no value for one token
-- ITL: gap between such chunks, one value a chunk
-- Output tokens: usage, else the number of tokens that was asked for, without a word
-- Statistics: numpy: linear percentiles, population std
-- Window: first start to last end; its own also holds a call of /server_info, which no recording has
-- Requests: status 200 and read to the end, also cut short; an error in a chat stream goes unnoticed
-- Differs: starts before the connection; E2EL and TPOT run to [DONE]; tool calls are no tokens; without usage the requested maximum is the count
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
CREATE VIEW peer_sglang AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.streamed,
    q.t_issue_ns,
    q.t_last_event_ns,
    q.t_end_ns,
    s.chunks,
    s.t_first_ns,
    s.t_last_ns,
    q.status = 200
      AND (q.outcome IN ('ok', 'truncated')
        OR (q.outcome = 'stream_error' AND q.api = 'openai-chat')) AS counted,
    coalesce(q.usage_input_tokens, q.tokenized_input_tokens) AS input_tokens,
    coalesce(q.usage_output_tokens, q.max_output_tokens) AS output_tokens
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
  CASE
    WHEN NOT streamed THEN (t_end_ns - t_issue_ns) / 1e6
    WHEN t_first_ns IS NULL THEN 0.0
    ELSE (t_first_ns - t_issue_ns) / 1e6
  END AS ttft_ms,
  CASE WHEN output_tokens > 1 AND streamed THEN
    (t_last_event_ns - coalesce(t_first_ns, t_issue_ns)) / 1e6
      / (output_tokens - 1)
  WHEN output_tokens > 1 THEN 0.0
  END AS tpot_ms,
  (t_last_ns - t_first_ns) / 1e6 / nullif(chunks - 1, 0) AS itl_ms,
  CASE WHEN streamed THEN t_last_event_ns - t_issue_ns
    ELSE t_end_ns - t_issue_ns
  END / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  CAST(NULL AS DOUBLE) AS output_tokens_per_s
FROM taken;
