-- goodput: one row per recording: measured requests that meet every objective in table slos.
-- Reads: recordings, slos, outcome, window, slo_met.
--   recording_id   TEXT    -           -       Key.
--   requests       BIGINT  requests    -       Measured requests; one that failed or did not finish meets nothing.
--   good_requests  BIGINT  requests    higher  Those that meet every objective. NULL without objectives.
--   goodput        DOUBLE  requests/s  higher  Good requests per second of the window. NULL without objectives.
--   goodput_share  DOUBLE  ratio       higher  Good requests over requests. NULL without objectives.
CREATE VIEW goodput AS
WITH
good AS (
  SELECT recording_id, count(*) AS good_requests
  FROM slo_met
  WHERE good
  GROUP BY recording_id
),
counted AS (
  SELECT recording_id, count(*) AS requests
  FROM outcome
  WHERE measured
  GROUP BY recording_id
),
total AS (
  SELECT
    g.recording_id,
    w.duration_s,
    coalesce(c.requests, 0) AS requests,
    CASE WHEN (SELECT count(*) FROM slos) > 0 THEN
      coalesce(good.good_requests, 0)
    END AS good_requests
  FROM recordings AS g
  LEFT JOIN "window" AS w ON w.recording_id = g.recording_id
  LEFT JOIN counted AS c ON c.recording_id = g.recording_id
  LEFT JOIN good ON good.recording_id = g.recording_id
)
SELECT
  recording_id,
  requests,
  good_requests,
  good_requests / nullif(duration_s, 0) AS goodput,
  good_requests / nullif(CAST(requests AS DOUBLE), 0) AS goodput_share
FROM total;
