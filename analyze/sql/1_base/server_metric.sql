-- server_metric: one row per recording, server, scrape and metric under the name that all engines share.
-- Reads: samples.
--   recording_id  TEXT    -   -  Key.
--   source        TEXT    -   -  Key. server:<url>.
--   t_ns          BIGINT  ns  -  Key. When the answer to the scrape arrived.
--   metric        TEXT    -   -  Key. running_requests, waiting_requests, kv_cache_ratio, prompt_tokens, output_tokens, ttft_s_sum, ttft_count, queue_s_sum or queue_count.
--   engine        TEXT    -   -  Whose name it has in samples: vllm, sglang, tgi or llama.cpp.
--   value         DOUBLE  -   -  Over the series of that name (models, ranks): their sum; the largest of kv_cache_ratio.
CREATE VIEW server_metric AS
-- vLLM calls KV use kv_cache_usage_perc since its V1 engine and
-- gpu_cache_usage_perc before. TGI has no time to first token and no KV use;
-- llama.cpp has no histograms, and its KV use only in older versions.
WITH
names AS (
  SELECT column1 AS engine, column2 AS name, column3 AS metric
  FROM (
    VALUES
      ('vllm', 'vllm:num_requests_running', 'running_requests'),
      ('vllm', 'vllm:num_requests_waiting', 'waiting_requests'),
      ('vllm', 'vllm:kv_cache_usage_perc', 'kv_cache_ratio'),
      ('vllm', 'vllm:gpu_cache_usage_perc', 'kv_cache_ratio'),
      ('vllm', 'vllm:prompt_tokens_total', 'prompt_tokens'),
      ('vllm', 'vllm:generation_tokens_total', 'output_tokens'),
      ('vllm', 'vllm:time_to_first_token_seconds_sum', 'ttft_s_sum'),
      ('vllm', 'vllm:time_to_first_token_seconds_count', 'ttft_count'),
      ('vllm', 'vllm:request_queue_time_seconds_sum', 'queue_s_sum'),
      ('vllm', 'vllm:request_queue_time_seconds_count', 'queue_count'),
      ('sglang', 'sglang:num_running_reqs', 'running_requests'),
      ('sglang', 'sglang:num_queue_reqs', 'waiting_requests'),
      ('sglang', 'sglang:token_usage', 'kv_cache_ratio'),
      ('sglang', 'sglang:prompt_tokens_total', 'prompt_tokens'),
      ('sglang', 'sglang:generation_tokens_total', 'output_tokens'),
      ('sglang', 'sglang:time_to_first_token_seconds_sum', 'ttft_s_sum'),
      ('sglang', 'sglang:time_to_first_token_seconds_count', 'ttft_count'),
      ('tgi', 'tgi_batch_current_size', 'running_requests'),
      ('tgi', 'tgi_queue_size', 'waiting_requests'),
      ('tgi', 'tgi_request_generated_tokens_sum', 'output_tokens'),
      ('tgi', 'tgi_request_queue_duration_sum', 'queue_s_sum'),
      ('tgi', 'tgi_request_queue_duration_count', 'queue_count'),
      ('llama.cpp', 'llamacpp:requests_processing', 'running_requests'),
      ('llama.cpp', 'llamacpp:requests_deferred', 'waiting_requests'),
      ('llama.cpp', 'llamacpp:kv_cache_usage_ratio', 'kv_cache_ratio'),
      ('llama.cpp', 'llamacpp:prompt_tokens_total', 'prompt_tokens'),
      ('llama.cpp', 'llamacpp:tokens_predicted_total', 'output_tokens')
  ) AS v
)
SELECT
  s.recording_id,
  s.source,
  s.t_ns,
  n.metric,
  min(n.engine) AS engine,
  CASE n.metric
    WHEN 'kv_cache_ratio' THEN max(s.value) ELSE sum(s.value)
  END AS value
FROM samples AS s
JOIN names AS n ON n.name = s.name
WHERE s.source LIKE 'server:%'
  -- NaN is how Prometheus says that there is nothing to say.
  AND NOT isnan(s.value)
GROUP BY s.recording_id, s.source, s.t_ns, n.metric;
