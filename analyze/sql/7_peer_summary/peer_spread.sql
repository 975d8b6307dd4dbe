-- peer_spread: one row per recording, profile, metric and stat, by the tool's own statistics.
-- Reads: percentiles, peer_profile, peer_sample.
--   recording_id  TEXT    -  -  Key.
--   profile       TEXT    -  -  Key.
--   metric        TEXT    -  -  Key. As in peer_metric.
--   stat          TEXT    -  -  Key. mean, std, min, max, and a row per row of table percentiles.
--   value         DOUBLE  -  -  NULL when n is 0 or the tool has no such stat.
--   n             BIGINT  -  -  Values behind the stat, by weight.
CREATE VIEW peer_spread AS
-- As latency_percentiles, but a value takes as many positions as it weighs and
-- the rule decides which position is wanted.
WITH
placed AS (
  SELECT
    recording_id,
    profile,
    metric,
    value,
    weight,
    sum(weight) OVER (
      PARTITION BY recording_id, profile, metric
      ORDER BY value
      ROWS UNBOUNDED PRECEDING
    ) AS reach,
    sum(weight) OVER (PARTITION BY recording_id, profile, metric) AS n,
    max(weight) OVER (PARTITION BY recording_id, profile, metric) AS heaviest,
    sum(value * weight) OVER (PARTITION BY recording_id, profile, metric)
      AS total
  FROM peer_sample
  WHERE weight > 0
),
ranked AS (
  SELECT
    recording_id,
    profile,
    metric,
    value,
    n,
    total / n AS mean,
    CAST(reach - weight AS DOUBLE) AS first_position,
    CAST(reach - 1 AS DOUBLE) AS last_position,
    -- Only where a value takes one position can it be found by its share alone.
    CASE
      WHEN n < 1000 OR heaviest > 1 THEN -1
      ELSE CAST((reach - 1) * 1000 / n AS BIGINT)
    END AS thousandth,
    weight * (value - total / n) * (value - total / n) AS square
  FROM placed
),
stat AS (
  SELECT stat, p FROM percentiles
  UNION ALL
  SELECT column1 AS stat, column2 AS p
  FROM (
    VALUES ('min', 0.0), ('max', 100.0)
  ) AS v
),
near AS (
  SELECT stat, p, -1 AS thousandth FROM stat
  UNION ALL
  SELECT s.stat, s.p, CAST(s.p * 10 AS BIGINT) + o.column1 AS thousandth
  FROM stat AS s
  CROSS JOIN (VALUES (-3), (-2), (-1), (0), (1), (2), (3)) AS o
  WHERE CAST(s.p * 10 AS BIGINT) + o.column1 >= 0
),
wanted AS (
  SELECT
    r.recording_id,
    r.profile,
    r.metric,
    s.stat,
    r.value,
    r.n,
    r.first_position,
    r.last_position,
    p.percentile_least_n,
    CASE
      WHEN s.stat IN ('min', 'max') THEN NULL
      WHEN r.metric = 'e2el_ms' THEN p.percentile_step_e2el
      WHEN r.metric IN ('ttft_ms', 'tpot_ms', 'itl_ms') THEN p.percentile_step
      WHEN p.percentile_step IS NOT NULL THEN 0.01
    END AS step,
    CASE
      WHEN s.stat IN ('min', 'max') OR p.percentile_rule = 'linear' THEN
        s.p / 100 * (r.n - 1)
      WHEN p.percentile_rule = 'nearest_rank' THEN
        greatest(ceil(s.p * r.n / 100) - 1, 0.0)
      WHEN p.percentile_rule = 'floor' THEN
        least(floor(s.p * r.n / 100), CAST(r.n - 1 AS DOUBLE))
    END AS position
  FROM ranked AS r
  JOIN near AS s ON s.thousandth = r.thousandth
  JOIN peer_profile AS p
    ON p.recording_id = r.recording_id
    AND p.profile = r.profile
),
picked AS (
  SELECT
    recording_id,
    profile,
    metric,
    stat,
    min(n) AS n,
    min(position) AS position,
    min(step) AS step,
    min(percentile_least_n) AS least_n,
    min(value) AS below,
    max(value) AS above
  FROM wanted
  WHERE position > first_position - 1
    AND position < last_position + 1
  GROUP BY recording_id, profile, metric, stat
),
exact AS (
  SELECT
    recording_id,
    profile,
    metric,
    stat,
    n,
    step,
    CASE WHEN n >= least_n OR stat IN ('min', 'max') THEN
      below + (above - below) * (position - floor(position))
    END AS value
  FROM picked
),
moment AS (
  SELECT
    recording_id,
    profile,
    metric,
    min(n) AS n,
    min(mean) AS mean,
    sum(square) AS square
  FROM ranked
  GROUP BY recording_id, profile, metric
),
known AS (
  SELECT
    recording_id,
    profile,
    metric,
    stat,
    n,
    CASE WHEN step IS NULL THEN value ELSE round(value / step) * step END AS value
  FROM exact
  UNION ALL
  SELECT recording_id, profile, metric, 'mean' AS stat, n, mean AS value
  FROM moment
  UNION ALL
  SELECT
    m.recording_id,
    m.profile,
    m.metric,
    'std' AS stat,
    m.n,
    CASE p.std_rule
      WHEN 'population' THEN sqrt(m.square / m.n)
      WHEN 'sample' THEN sqrt(m.square / nullif(m.n - 1, 0))
    END AS value
  FROM moment AS m
  JOIN peer_profile AS p
    ON p.recording_id = m.recording_id
    AND p.profile = m.profile
),
name AS (
  SELECT column1 AS metric
  FROM (
    VALUES ('ttft_ms'), ('tpot_ms'), ('itl_ms'), ('e2el_ms'), ('input_tokens'),
      ('output_tokens'), ('output_tokens_per_s')
  ) AS v
),
every_stat AS (
  SELECT stat FROM stat
  UNION ALL
  SELECT column1 AS stat FROM (VALUES ('mean'), ('std')) AS v
)
SELECT
  p.recording_id,
  p.profile,
  m.metric,
  s.stat,
  k.value,
  coalesce(k.n, 0) AS n
FROM peer_profile AS p
CROSS JOIN name AS m
CROSS JOIN every_stat AS s
LEFT JOIN known AS k
  ON k.recording_id = p.recording_id
  AND k.profile = p.profile
  AND k.metric = m.metric
  AND k.stat = s.stat;
