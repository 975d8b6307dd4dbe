-- peer_answer: one row per chosen profile and measured request: the views of all profiles in one.
-- Reads: peer_profile, peer_vllm, peer_sglang, peer_aiperf, peer_guidellm, peer_evalscope, peer_evalscope_0_8, peer_aphrodite, peer_inference_perf, peer_llmperf, peer_llm_perf, peer_byzer_perf, peer_mlperf.
--   recording_id         TEXT     -         -       Key.
--   profile              TEXT     -         -       Key. As in peer_profile.
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
CREATE VIEW peer_answer AS
WITH profiled AS (
  SELECT 'vllm' AS profile, * FROM peer_vllm
  UNION ALL
  SELECT 'sglang' AS profile, * FROM peer_sglang
  UNION ALL
  SELECT 'aiperf' AS profile, * FROM peer_aiperf
  UNION ALL
  SELECT 'guidellm' AS profile, * FROM peer_guidellm
  UNION ALL
  SELECT 'evalscope' AS profile, * FROM peer_evalscope
  UNION ALL
  SELECT 'evalscope-0.8' AS profile, * FROM peer_evalscope_0_8
  UNION ALL
  SELECT 'aphrodite' AS profile, * FROM peer_aphrodite
  UNION ALL
  SELECT 'inference-perf' AS profile, * FROM peer_inference_perf
  UNION ALL
  SELECT 'llmperf' AS profile, * FROM peer_llmperf
  UNION ALL
  SELECT 'llm.perf' AS profile, * FROM peer_llm_perf
  UNION ALL
  SELECT 'byzer-perf' AS profile, * FROM peer_byzer_perf
  UNION ALL
  SELECT 'mlperf' AS profile, * FROM peer_mlperf
)
SELECT
  v.recording_id,
  v.profile,
  v.request_id,
  v.attempt,
  v.counted,
  v.t_start_ns,
  v.t_end_ns,
  v.ttft_ms,
  v.tpot_ms,
  v.itl_ms,
  v.e2el_ms,
  v.input_tokens,
  v.output_tokens,
  v.output_tokens_per_s
FROM profiled AS v
JOIN peer_profile AS p
  ON p.recording_id = v.recording_id
  AND p.profile = v.profile;
