-- peer_profile: one row per recording and chosen profile: another tool, and how it summarizes.
-- Reads: recordings, profiles.
--   recording_id         TEXT    -         -  Key.
--   profile              TEXT    -         -  Key. As --as takes it.
--   profile_index        BIGINT  -         -  Order.
--   chunk_rule           TEXT    -         -  What it takes for a token: a rule of peer_token. NULL where it looks at none.
--   gap_rule             TEXT    -         -  The same where its ITL are the gaps of peer_token_gap; NULL where it has one ITL a request, or none.
--   percentile_rule      TEXT    -         -  linear (numpy), nearest_rank (rank ceil(n p / 100)), floor (index int(n p / 100)), none.
--   percentile_step      DOUBLE  -         -  Percentiles are rounded to multiples of this, in the metric's unit.
--   percentile_step_e2el DOUBLE  ms        -  The same for e2el_ms.
--   percentile_least_n   BIGINT  requests  -  It gives no percentiles of fewer values.
--   std_rule             TEXT    -         -  population, sample, none.
--   window_rule          TEXT    -         -  Whose start and end bound its throughput window: all requests, or counted ones.
CREATE VIEW peer_profile AS
WITH profile AS (
  SELECT
    column1 AS profile_index,
    column2 AS profile,
    column3 AS chunk_rule,
    column4 AS has_gaps,
    column5 AS percentile_rule,
    column6 AS percentile_step,
    column7 AS percentile_step_e2el,
    column8 AS percentile_least_n,
    column9 AS std_rule,
    column10 AS window_rule
  FROM (
    VALUES
      (0, 'vllm', 'vllm', TRUE, 'linear', NULL, NULL, 1, 'population', 'all'),
      (1, 'sglang', 'text', TRUE, 'linear', NULL, NULL, 1, 'population', 'all'),
      (2, 'aiperf', 'content_bearing', FALSE, 'linear', NULL, NULL, 1, 'population', 'counted'),
      (3, 'guidellm', 'text', FALSE, 'nearest_rank', NULL, NULL, 1, 'population', 'counted'),
      -- 2 places of ms; latency is in seconds there.
      (4, 'evalscope', 'text', TRUE, 'nearest_rank', 0.01, 10.0, 1, 'none', 'all'),
      -- 2 places of seconds.
      (5, 'evalscope-0.8', 'data', TRUE, 'floor', 10.0, 10.0, 10, 'none', 'all'),
      (6, 'aphrodite', 'content', TRUE, 'linear', NULL, NULL, 1, 'population', 'all'),
      (7, 'inference-perf', 'content', TRUE, 'linear', NULL, NULL, 1, 'none', 'all'),
      (8, 'llmperf', 'content', FALSE, 'linear', NULL, NULL, 1, 'sample', 'all'),
      (9, 'llm.perf', 'content', TRUE, 'linear', NULL, NULL, 1, 'population', 'all'),
      (10, 'byzer-perf', NULL, FALSE, 'none', NULL, NULL, 1, 'none', 'counted'),
      (11, 'mlperf', 'content_bearing', TRUE, 'linear', NULL, NULL, 1, 'population', 'counted')
  ) AS v
)
SELECT
  g.recording_id,
  p.profile,
  p.profile_index,
  p.chunk_rule,
  CASE WHEN p.has_gaps THEN p.chunk_rule END AS gap_rule,
  p.percentile_rule,
  CAST(p.percentile_step AS DOUBLE) AS percentile_step,
  CAST(p.percentile_step_e2el AS DOUBLE) AS percentile_step_e2el,
  p.percentile_least_n,
  p.std_rule,
  p.window_rule
FROM recordings AS g
CROSS JOIN profile AS p
JOIN profiles AS c ON c.profile = p.profile;
