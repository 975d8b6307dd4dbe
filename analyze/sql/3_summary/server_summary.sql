-- server_summary: one row per recording and server that was scraped: what it said over the whole recording.
-- Reads: server_metric.
--   recording_id          TEXT    -         -      Key.
--   source                TEXT    -         -      Key. server:<url>.
--   engine                TEXT    -         -      Whose metrics they are.
--   scrapes               BIGINT  scrapes   -      Answers with at least one metric that is known.
--   waiting_requests_max  DOUBLE  requests  lower  Most in the server's queue at a scrape.
--   running_requests_max  DOUBLE  requests  -      Most in its batch at a scrape.
--   kv_cache_ratio_max    DOUBLE  ratio     -      Most of the KV cache in use at a scrape. NULL where the engine does not tell.
--   server_ttft_ms_mean   DOUBLE  ms        lower  Mean TTFT between the first and the last scrape, by the server's histogram; of everybody's requests. NULL where the engine does not tell.
CREATE VIEW server_summary AS
WITH
grown AS (
  SELECT
    recording_id,
    source,
    min(engine) AS engine,
    count(DISTINCT t_ns) AS scrapes,
    max(CASE WHEN metric = 'waiting_requests' THEN value END)
      AS waiting_requests_max,
    max(CASE WHEN metric = 'running_requests' THEN value END)
      AS running_requests_max,
    max(CASE WHEN metric = 'kv_cache_ratio' THEN value END) AS kv_cache_ratio_max,
    max(CASE WHEN metric = 'ttft_s_sum' THEN value END)
      - min(CASE WHEN metric = 'ttft_s_sum' THEN value END) AS ttft_s,
    max(CASE WHEN metric = 'ttft_count' THEN value END)
      - min(CASE WHEN metric = 'ttft_count' THEN value END) AS ttft_n
  FROM server_metric
  GROUP BY recording_id, source
)
SELECT
  recording_id,
  source,
  engine,
  scrapes,
  waiting_requests_max,
  running_requests_max,
  kv_cache_ratio_max,
  CASE WHEN ttft_n > 0 THEN ttft_s / ttft_n * 1e3 END AS server_ttft_ms_mean
FROM grown;
