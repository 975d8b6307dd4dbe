-- peer_sample: one row per value that a profile's statistics run over, so one or many of a request.
-- Reads: peer_profile, peer_metric, peer_token_gap, peer_token_stream, requests.
--   recording_id  TEXT    -  -  Key.
--   profile       TEXT    -  -  Key.
--   metric        TEXT    -  -  Key. As in peer_metric.
--   value         DOUBLE  -  -  In the metric's unit.
--   weight        BIGINT  -  -  How many times it counts.
CREATE VIEW peer_sample AS
WITH
number AS (
  SELECT recording_id, profile, request_id, metric, value, output_tokens
  FROM peer_metric
  WHERE counted
    AND value IS NOT NULL
),
-- One value a request, weighted by tokens where GuideLLM does so.
request AS (
  SELECT
    n.recording_id,
    n.profile,
    n.metric,
    n.value,
    CASE
      WHEN n.profile = 'guidellm' AND n.metric = 'tpot_ms' THEN n.output_tokens
      WHEN n.profile = 'guidellm' AND n.metric = 'itl_ms' THEN n.output_tokens - 1
      ELSE 1
    END AS weight
  FROM number AS n
  JOIN peer_profile AS p
    ON p.recording_id = n.recording_id
    AND p.profile = n.profile
  WHERE n.metric <> 'itl_ms'
    OR p.gap_rule IS NULL
),
gapped AS (
  SELECT n.recording_id, n.profile, n.request_id, n.metric, p.gap_rule
  FROM number AS n
  JOIN peer_profile AS p
    ON p.recording_id = n.recording_id
    AND p.profile = n.profile
  WHERE n.metric = 'itl_ms'
    AND p.gap_rule IS NOT NULL
)
SELECT recording_id, profile, metric, value, weight
FROM request
UNION ALL
SELECT g.recording_id, n.profile, n.metric, g.gap_ms AS value, 1 AS weight
FROM peer_token_gap AS g
JOIN gapped AS n
  ON n.recording_id = g.recording_id
  AND n.request_id = g.request_id
  AND n.gap_rule = g.rule
UNION ALL
-- The tokens that came with another one.
SELECT
  s.recording_id,
  n.profile,
  n.metric,
  0.0 AS value,
  s.tokens - s.chunks AS weight
FROM peer_token_stream AS s
JOIN gapped AS n
  ON n.recording_id = s.recording_id
  AND n.request_id = s.request_id
  AND n.gap_rule = s.rule
WHERE n.profile = 'inference-perf'
  AND s.tokens > s.chunks
UNION ALL
-- Aphrodite's completions client takes TTFT for the first ITL.
SELECT n.recording_id, n.profile, 'itl_ms' AS metric, n.value, 1 AS weight
FROM number AS n
JOIN requests AS r
  ON r.recording_id = n.recording_id
  AND r.request_id = n.request_id
WHERE n.profile = 'aphrodite'
  AND n.metric = 'ttft_ms'
  AND r.attempt = 0
  AND r.api = 'openai-completions';
