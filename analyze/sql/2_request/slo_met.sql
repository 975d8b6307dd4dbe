-- slo_met: one row per measured request with outcome ok, where there are objectives.
-- Reads: slos, request_metric.
--   recording_id  TEXT     -  -       Key.
--   request_id    BIGINT   -  -       Key.
--   good          BOOLEAN  -  higher  It meets every objective in table slos.
CREATE VIEW slo_met AS
SELECT
  m.recording_id,
  m.request_id,
  bool_and(CASE
    -- An answer of one token has no time per token to be late with; any
    -- other undefined value meets no objective.
    WHEN m.value IS NULL THEN
      m.metric = 'tpot_ms' AND coalesce(m.output_tokens < 2, FALSE)
    ELSE
      coalesce(m.value <= s.at_most, TRUE)
      AND coalesce(m.value >= s.at_least, TRUE)
  END) AS good
FROM request_metric AS m
JOIN slos AS s ON s.metric = m.metric
GROUP BY m.recording_id, m.request_id;
