-- speed_benchmark: one row per recording and number of input tokens of its answered requests: how fast each was, as EvalScope's speed benchmark has it.
-- Reads: samples, request_latency.
--   recording_id         TEXT    -         -       Key.
--   input_tokens         BIGINT  tokens    -       Key. As the server counted them, a chat template's included. NULL where nobody counted.
--   requests             BIGINT  requests  -       Requests with outcome ok.
--   output_tokens_per_s  DOUBLE  tokens/s  higher  Mean over them of output tokens over E2EL.
--   gpu_memory_gib       DOUBLE  GiB       lower   Mean over them of the most memory in use on all GPUs together from the beginning of the recording to their end, other programs' included. NULL where no GPU was seen.
CREATE VIEW speed_benchmark AS
-- EvalScope asks torch.cuda.max_memory_allocated, which is a peak so far, too;
-- only it leaves out what the CUDA context and other processes hold.
WITH
memory AS (
  SELECT recording_id, t_ns, sum(value) AS bytes
  FROM samples
  WHERE source LIKE 'gpu:%'
    AND name = 'memory_used_bytes'
  GROUP BY recording_id, t_ns
),
answered AS (
  SELECT
    recording_id,
    request_id,
    t_end_ns,
    input_tokens,
    output_tokens_per_s
  FROM request_latency
  WHERE outcome = 'ok'
),
instant AS (
  SELECT recording_id, t_ns, CAST(NULL AS BIGINT) AS request_id, bytes
  FROM memory
  UNION ALL
  SELECT recording_id, t_end_ns, request_id, CAST(NULL AS DOUBLE)
  FROM answered
),
peak AS (
  SELECT
    recording_id,
    request_id,
    max(bytes) OVER (
      PARTITION BY recording_id
      ORDER BY t_ns, request_id NULLS FIRST
      ROWS UNBOUNDED PRECEDING
    ) AS bytes
  FROM instant
)
SELECT
  a.recording_id,
  a.input_tokens,
  count(*) AS requests,
  avg(a.output_tokens_per_s) AS output_tokens_per_s,
  avg(p.bytes) / 1073741824 AS gpu_memory_gib
FROM answered AS a
JOIN peak AS p
  ON p.recording_id = a.recording_id
  AND p.request_id = a.request_id
GROUP BY a.recording_id, a.input_tokens;
