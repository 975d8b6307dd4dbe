-- peer_spread: one row per recording, profile, metric and stat, by the tool's own statistics.
-- Reads: percentiles, peer_profile, peer_sample.
-- requires: tapedeck (distribution).
--   recording_id  TEXT    -  -  Key.
--   profile       TEXT    -  -  Key.
--   metric        TEXT    -  -  Key. As in peer_metric.
--   stat          TEXT    -  -  Key. mean, std, min, max, and a row per row of table percentiles.
--   value         DOUBLE  -  -  NULL when n is 0 or the tool has no such stat.
--   n             BIGINT  -  -  Values behind the stat, by weight.
CREATE VIEW peer_spread AS
-- As latency_percentiles, but a value takes as many positions as it weighs and
-- the tool's rule decides which position is wanted.
WITH
wanted AS (
  SELECT array_agg(p ORDER BY p) AS percentiles FROM percentiles
),
-- The profile is joined to the few rows that come out, so the sample is passed
-- once and not sorted.
sample AS (
  SELECT
    s.recording_id,
    s.profile,
    s.metric,
    distribution(
      s.value,
      w.percentiles,
      CASE WHEN p.percentile_rule = 'none' THEN 'linear' ELSE p.percentile_rule END,
      s.weight
    ) AS d
  FROM peer_sample AS s
  JOIN peer_profile AS p
    ON p.recording_id = s.recording_id
    AND p.profile = s.profile
  CROSS JOIN wanted AS w
  GROUP BY s.recording_id, s.profile, s.metric
),
stat AS (
  SELECT stat, CAST(row_number() OVER (ORDER BY p) AS BIGINT) AS place FROM percentiles
  UNION ALL
  SELECT column1 AS stat, NULL AS place
  FROM (
    VALUES ('mean'), ('std'), ('min'), ('max')
  ) AS v
),
name AS (
  SELECT column1 AS metric
  FROM (
    VALUES ('ttft_ms'), ('tpot_ms'), ('itl_ms'), ('e2el_ms'), ('input_tokens'),
      ('output_tokens'), ('output_tokens_per_s')
  ) AS v
),
-- The sample is read here and nowhere else: a second mention would be a second pass.
found AS (
  SELECT
    p.recording_id,
    p.profile,
    m.metric,
    t.stat,
    p.percentile_rule,
    p.percentile_least_n,
    p.std_rule,
    CASE
      WHEN m.metric = 'e2el_ms' THEN p.percentile_step_e2el
      WHEN m.metric IN ('ttft_ms', 'tpot_ms', 'itl_ms') THEN p.percentile_step
      WHEN p.percentile_step IS NOT NULL THEN 0.01
    END AS step,
    s.d,
    s.d['percentiles'][t.place] AS near
  FROM peer_profile AS p
  CROSS JOIN name AS m
  CROSS JOIN stat AS t
  LEFT JOIN sample AS s
    ON s.recording_id = p.recording_id
    AND s.profile = p.profile
    AND s.metric = m.metric
),
exact AS (
  SELECT
    recording_id,
    profile,
    metric,
    stat,
    step,
    CASE
      WHEN stat = 'mean' THEN d['mean']
      WHEN stat = 'min' THEN d['min']
      WHEN stat = 'max' THEN d['max']
      WHEN stat = 'std' AND std_rule = 'population' THEN d['std']
      WHEN stat = 'std' AND std_rule = 'sample' THEN
        d['std'] * sqrt(CAST(d['n'] AS DOUBLE) / nullif(d['n'] - 1, 0))
      WHEN percentile_rule <> 'none' AND d['n'] >= percentile_least_n THEN
        near['below'] + (near['above'] - near['below']) * near['fraction']
    END AS value,
    stat IN ('mean', 'std', 'min', 'max') AS is_moment,
    coalesce(d['n'], 0) AS n
  FROM found
)
SELECT
  recording_id,
  profile,
  metric,
  stat,
  CASE WHEN is_moment OR step IS NULL THEN value ELSE round(value / step) * step END
    AS value,
  n
FROM exact;
