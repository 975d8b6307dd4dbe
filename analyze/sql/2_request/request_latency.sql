-- request_latency: one row per measured request, whatever its outcome; summaries take those with outcome ok.
-- Reads: requests, responses, outcome, tokenized, chunk_stream.
--   recording_id          TEXT    -         -       Key.
--   request_id            BIGINT  -         -       Key.
--   attempt               INT     -         -       The last attempt.
--   outcome               TEXT    -         -       As in view outcome.
--   t_sent_ns             BIGINT  ns        -       Last byte of the request written.
--   t_end_ns              BIGINT  ns        -       End of the response.
--   ttft_ms               DOUBLE  ms        lower   First content-bearing chunk of any choice minus sent.
--   ttft_scheduled_ms     DOUBLE  ms        lower   First content-bearing chunk minus scheduled.
--   ttfo_ms               DOUBLE  ms        lower   First content or tool chunk minus sent.
--   tpot_ms               DOUBLE  ms        lower   Time per output token after the first chunk. NULL below two tokens.
--   e2el_ms               DOUBLE  ms        lower   Last content-bearing chunk minus sent; not streamed: end minus sent.
--   e2el_scheduled_ms     DOUBLE  ms        lower   The same end minus scheduled.
--   queue_delay_ms        DOUBLE  ms        lower   Sent minus scheduled.
--   stream_end_ms         DOUBLE  ms        lower   End of the response minus sent.
--   input_tokens          BIGINT  tokens    -       From usage, else as counted when the request was made, else the tokenizer's.
--   input_tokens_source   TEXT    -         -       Where input_tokens comes from: usage, what the request says, or tokenizer.
--   output_tokens         BIGINT  tokens    -       From usage, else the sum of the chunks' tokens, else the tokenizer's; never the chunk count.
--   output_tokens_source  TEXT    -         -       Where output_tokens comes from: usage, stream (token ids or logprobs), or tokenizer.
--   output_tokens_per_s   DOUBLE  tokens/s  higher  Output tokens over E2EL.
--   total_tokens_per_s    DOUBLE  tokens/s  higher  Input and output tokens over E2EL.
--   chunks_per_request    BIGINT  chunks    -       Chunks of all kinds. NULL when the answer was not streamed.
--   content_chunks        BIGINT  chunks    -       Content-bearing chunks. NULL when there are none.
--   content_reads         BIGINT  reads     -       Reads that brought at least one of them.
CREATE VIEW request_latency AS
WITH facts AS (
  SELECT
    o.recording_id,
    o.request_id,
    o.attempt,
    o.outcome,
    o.t_scheduled_ns,
    o.t_sent_ns,
    o.t_end_ns,
    s.t_first_ns,
    s.t_first_output_ns,
    s.t_last_ns,
    -- What has not ended has no end to end; what was not streamed has only the
    -- end of its response.
    CASE
      WHEN o.outcome = 'unfinished' THEN NULL
      WHEN o.chunk_count = 0 THEN o.t_end_ns
      ELSE s.t_last_ns
    END AS t_done_ns,
    coalesce(
      CAST(coalesce(p.input_tokens, r.input_tokens) AS BIGINT),
      z.input_tokens
    ) AS input_tokens,
    CASE
      WHEN p.input_tokens IS NOT NULL THEN coalesce(p.usage_source, 'usage')
      WHEN r.input_tokens IS NOT NULL THEN r.input_tokens_source
      WHEN z.input_tokens IS NOT NULL THEN 'tokenizer'
    END AS input_tokens_source,
    -- A sum over chunks some of which were not counted would be too small.
    coalesce(
      CAST(p.output_tokens AS BIGINT),
      CASE WHEN s.counted_chunks = s.content_chunks THEN s.tokens END,
      z.output_tokens
    ) AS output_tokens,
    CASE
      WHEN p.output_tokens IS NOT NULL THEN coalesce(p.usage_source, 'usage')
      WHEN s.counted_chunks = s.content_chunks THEN 'stream'
      WHEN z.output_tokens IS NOT NULL THEN 'tokenizer'
    END AS output_tokens_source,
    coalesce(s.first_chunk_tokens, 1) AS first_chunk_tokens,
    CAST(nullif(o.chunk_count, 0) AS BIGINT) AS chunks_per_request,
    s.content_chunks,
    s.content_reads
  FROM outcome AS o
  JOIN requests AS r
    ON r.recording_id = o.recording_id
    AND r.request_id = o.request_id
    AND r.attempt = o.attempt
  LEFT JOIN responses AS p
    ON p.recording_id = o.recording_id
    AND p.request_id = o.request_id
    AND p.attempt = o.attempt
  LEFT JOIN chunk_stream AS s
    ON s.recording_id = o.recording_id
    AND s.request_id = o.request_id
    AND s.attempt = o.attempt
  LEFT JOIN tokenized AS z
    ON z.recording_id = o.recording_id
    AND z.request_id = o.request_id
    AND z.attempt = o.attempt
  WHERE o.measured
)
SELECT
  recording_id,
  request_id,
  attempt,
  outcome,
  t_sent_ns,
  t_end_ns,
  (t_first_ns - t_sent_ns) / 1e6 AS ttft_ms,
  (t_first_ns - t_scheduled_ns) / 1e6 AS ttft_scheduled_ms,
  (t_first_output_ns - t_sent_ns) / 1e6 AS ttfo_ms,
  -- With all tokens in the first chunk there is no interval to share out.
  CASE WHEN output_tokens >= 2 AND output_tokens > first_chunk_tokens THEN
    (t_last_ns - t_first_ns) / 1e6 / (output_tokens - first_chunk_tokens)
  END AS tpot_ms,
  (t_done_ns - t_sent_ns) / 1e6 AS e2el_ms,
  (t_done_ns - t_scheduled_ns) / 1e6 AS e2el_scheduled_ms,
  (t_sent_ns - t_scheduled_ns) / 1e6 AS queue_delay_ms,
  (t_end_ns - t_sent_ns) / 1e6 AS stream_end_ms,
  input_tokens,
  input_tokens_source,
  output_tokens,
  output_tokens_source,
  output_tokens * 1e9 / nullif(t_done_ns - t_sent_ns, 0)
    AS output_tokens_per_s,
  (input_tokens + output_tokens) * 1e9 / nullif(t_done_ns - t_sent_ns, 0)
    AS total_tokens_per_s,
  chunks_per_request,
  content_chunks,
  content_reads
FROM facts;
