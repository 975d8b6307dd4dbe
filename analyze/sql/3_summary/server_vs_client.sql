-- server_vs_client: one row per recording, server and second in which it was scraped: what it said, and what the client saw.
-- Reads: samples, server_metric, request_latency.
--   recording_id         TEXT    -         -       Key.
--   source               TEXT    -         -       Key. server:<url>.
--   second               BIGINT  s         -       Key. Whole seconds since the recording started.
--   engine               TEXT    -         -       Whose metrics they are: vllm, sglang, tgi or llama.cpp.
--   waiting_requests     DOUBLE  requests  lower   In the server's queue, mean of the second's scrapes.
--   running_requests     DOUBLE  requests  -       In its batch, mean of the second's scrapes.
--   in_flight            DOUBLE  requests  -       Sent and not ended when the client sampled itself, mean of the second.
--   kv_cache_ratio       DOUBLE  ratio     -       KV cache in use, 0 to 1: the most of the second's scrapes. NULL where the engine does not tell.
--   output_tokens_per_s  DOUBLE  tokens/s  higher  Tokens generated since the second before, by the server's counter.
--   server_ttft_ms_mean  DOUBLE  ms        lower   Mean TTFT of those which had their first token since the second before, by the server's histogram. NULL where none had or the engine does not tell.
--   server_ttft_n        BIGINT  requests  -       How many had.
--   server_queue_ms_mean  DOUBLE  ms       lower   Mean wait in the queue of those which left it since the second before, by the server's histogram.
--   ttft_ms_p50          DOUBLE  ms        lower   Median TTFT of the successful requests whose first content arrived in this second. NULL where none did.
--   ttft_ms_p99          DOUBLE  ms        lower   99th percentile of the same.
--   ttft_n               BIGINT  requests  -       How many.
CREATE VIEW server_vs_client AS
-- The server counts from scrape to scrape and the client in whole seconds, so
-- that a request may be in neighbouring rows of the two. The server's TTFT
-- starts when it has the request and ends when it has the token: the client's
-- is longer by both ways, and by what stands between them.
WITH
scrape AS (
  SELECT
    recording_id,
    source,
    t_ns,
    min(engine) AS engine,
    max(CASE WHEN metric = 'waiting_requests' THEN value END) AS waiting_requests,
    max(CASE WHEN metric = 'running_requests' THEN value END) AS running_requests,
    max(CASE WHEN metric = 'kv_cache_ratio' THEN value END) AS kv_cache_ratio,
    max(CASE WHEN metric = 'output_tokens' THEN value END) AS output_tokens,
    max(CASE WHEN metric = 'ttft_s_sum' THEN value END) AS ttft_s_sum,
    max(CASE WHEN metric = 'ttft_count' THEN value END) AS ttft_count,
    max(CASE WHEN metric = 'queue_s_sum' THEN value END) AS queue_s_sum,
    max(CASE WHEN metric = 'queue_count' THEN value END) AS queue_count
  FROM server_metric
  GROUP BY recording_id, source, t_ns
),
server AS (
  SELECT
    recording_id,
    source,
    t_ns / 1000000000 AS second,
    min(engine) AS engine,
    avg(waiting_requests) AS waiting_requests,
    avg(running_requests) AS running_requests,
    max(kv_cache_ratio) AS kv_cache_ratio,
    max(t_ns) AS t_ns,
    -- Counters grow: the largest is the last.
    max(output_tokens) AS output_tokens,
    max(ttft_s_sum) AS ttft_s_sum,
    max(ttft_count) AS ttft_count,
    max(queue_s_sum) AS queue_s_sum,
    max(queue_count) AS queue_count
  FROM scrape
  GROUP BY recording_id, source, t_ns / 1000000000
),
grown AS (
  SELECT
    recording_id,
    source,
    second,
    engine,
    waiting_requests,
    running_requests,
    kv_cache_ratio,
    (t_ns - lag(t_ns) OVER in_order) / 1e9 AS since_s,
    output_tokens - lag(output_tokens) OVER in_order AS output_tokens,
    ttft_s_sum - lag(ttft_s_sum) OVER in_order AS ttft_s,
    ttft_count - lag(ttft_count) OVER in_order AS ttft_n,
    queue_s_sum - lag(queue_s_sum) OVER in_order AS queue_s,
    queue_count - lag(queue_count) OVER in_order AS queue_n
  FROM server
  WINDOW in_order AS (PARTITION BY recording_id, source ORDER BY second)
),
client_flight AS (
  SELECT
    recording_id,
    t_ns / 1000000000 AS second,
    avg(value) AS in_flight
  FROM samples
  WHERE source = 'client'
    AND name = 'in_flight'
  GROUP BY recording_id, t_ns / 1000000000
),
arrived AS (
  SELECT
    recording_id,
    (t_sent_ns + CAST(ttft_ms * 1e6 AS BIGINT)) / 1000000000 AS second,
    ttft_ms
  FROM request_latency
  WHERE outcome = 'ok'
    AND ttft_ms IS NOT NULL
),
client AS (
  SELECT
    recording_id,
    second,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_ms_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_ms_p99,
    count(*) AS ttft_n
  FROM arrived
  GROUP BY recording_id, second
)
SELECT
  s.recording_id,
  s.source,
  s.second,
  s.engine,
  s.waiting_requests,
  s.running_requests,
  f.in_flight,
  s.kv_cache_ratio,
  -- A server that began anew counts from zero: nothing is known of that second.
  CASE WHEN s.output_tokens >= 0 THEN s.output_tokens / s.since_s END
    AS output_tokens_per_s,
  CASE WHEN s.ttft_n > 0 THEN s.ttft_s / s.ttft_n * 1e3 END
    AS server_ttft_ms_mean,
  CASE WHEN s.ttft_n >= 0 THEN CAST(s.ttft_n AS BIGINT) END AS server_ttft_n,
  CASE WHEN s.queue_n > 0 THEN s.queue_s / s.queue_n * 1e3 END
    AS server_queue_ms_mean,
  c.ttft_ms_p50,
  c.ttft_ms_p99,
  coalesce(c.ttft_n, 0) AS ttft_n
FROM grown AS s
LEFT JOIN client_flight AS f
  ON f.recording_id = s.recording_id AND f.second = s.second
LEFT JOIN client AS c
  ON c.recording_id = s.recording_id AND c.second = s.second;
