-- comparison: one row per metric and stat: the new side against the base.
-- Reads: compare_value.
--   metric               TEXT    -          -  Key. As in compare_value.
--   metric_index         BIGINT  -          -  Order in a report.
--   stat                 TEXT    -          -  Key.
--   unit                 TEXT    -          -  Unit of the values.
--   base                 DOUBLE  -          -  Mean over the recordings of the base that have the value.
--   new                  DOUBLE  -          -  The same of the new side.
--   difference           DOUBLE  -          -  New minus base.
--   relative_difference  DOUBLE  ratio      -  Difference over base. NULL where base is 0.
--   base_runs            BIGINT  recordings  -  Recordings of the base that have the value.
--   new_runs             BIGINT  recordings  -  The same of the new side.
--   base_spread          DOUBLE  -          -  Standard deviation over the recordings of the base. NULL of one.
--   new_spread           DOUBLE  -          -  The same of the new side.
--   base_n               BIGINT  -          -  Values behind base, in all its recordings.
--   new_n                BIGINT  -          -  The same of the new side.
CREATE VIEW comparison AS
WITH total AS (
  SELECT
    metric,
    metric_index,
    stat,
    unit,
    avg(value) FILTER (WHERE side = 'base') AS base,
    avg(value) FILTER (WHERE side = 'new') AS new,
    count(value) FILTER (WHERE side = 'base') AS base_runs,
    count(value) FILTER (WHERE side = 'new') AS new_runs,
    stddev_samp(value) FILTER (WHERE side = 'base') AS base_spread,
    stddev_samp(value) FILTER (WHERE side = 'new') AS new_spread,
    sum(n) FILTER (WHERE side = 'base') AS base_n,
    sum(n) FILTER (WHERE side = 'new') AS new_n
  FROM compare_value
  GROUP BY metric, metric_index, stat, unit
)
SELECT
  metric,
  metric_index,
  stat,
  unit,
  base,
  new,
  new - base AS difference,
  (new - base) / nullif(abs(base), 0) AS relative_difference,
  base_runs,
  new_runs,
  base_spread,
  new_spread,
  coalesce(base_n, 0) AS base_n,
  coalesce(new_n, 0) AS new_n
FROM total;
