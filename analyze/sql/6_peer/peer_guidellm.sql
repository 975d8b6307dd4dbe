-- peer_guidellm: one row per measured request as GuideLLM would have counted it.
-- Reads: peer_request, peer_token_stream.
-- Tool: GuideLLM 0.8.1
-- Source: guidellm/schemas/base/request_stats.py:110-190 (and request_latency); schemas/statistics.py (from_values); backends/openai/http.py:340-441
-- Start: the first write of the head (wall clock), when its connection is there
-- First token: first chunk with content or reasoning; tool calls unverified, taken for none
-- Last token: TPOT and ITL: last such chunk; E2EL: end of the response
-- TPOT: (last token - start) / tokens: the time to the first token is inside
-- ITL: one value a request: (last - first token) / (tokens - 1), the TPOT of others
-- Output tokens: usage, else the number of chunks
-- Statistics: nearest rank on weights: TPOT weighs its tokens, ITL its tokens - 1; population std
-- Window: first start to last end of the requests that count; its own mean rates weigh time slices
-- Requests: answers without an error, also cut short
-- Differs: starts when it writes, connection setup left out; TPOT includes TTFT; ITL is what others call TPOT; both weighted by tokens; E2EL runs to the end of the response; chunks count where usage is missing
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
CREATE VIEW peer_guidellm AS
WITH taken AS (
  SELECT
    q.recording_id,
    q.request_id,
    q.attempt,
    q.t_write_ns,
    q.t_end_ns,
    s.chunks,
    s.t_first_ns,
    s.t_last_ns,
    q.outcome IN ('ok', 'truncated') AS counted,
    coalesce(q.usage_input_tokens, q.tokenized_input_tokens) AS input_tokens,
    coalesce(q.usage_output_tokens, s.chunks) AS output_tokens
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
  t_write_ns AS t_start_ns,
  t_end_ns,
  (t_first_ns - t_write_ns) / 1e6 AS ttft_ms,
  (coalesce(t_last_ns, t_end_ns) - t_write_ns) / 1e6
    / nullif(output_tokens, 0) AS tpot_ms,
  CASE WHEN output_tokens > 1 THEN
    (t_last_ns - t_first_ns) / 1e6 / (output_tokens - 1)
  END AS itl_ms,
  (t_end_ns - t_write_ns) / 1e6 AS e2el_ms,
  input_tokens,
  output_tokens,
  output_tokens * 1e9 / nullif(t_end_ns - t_write_ns, 0) AS output_tokens_per_s
FROM taken;
