-- window: one row per recording: the measured span.
-- Reads: recordings, requests, responses, outcome.
--   recording_id     TEXT    -   -  Key.
--   t_first_sent_ns  BIGINT  ns  -  First measured attempt sent. NULL when none was.
--   t_last_end_ns    BIGINT  ns  -  Last measured attempt ended. NULL when none did.
--   duration_s       DOUBLE  s   -  From first sent to last end. NULL when either is unknown.
CREATE VIEW "window" AS
WITH span AS (
  SELECT
    r.recording_id,
    min(r.t_sent_ns) AS t_first_sent_ns,
    max(p.t_end_ns) AS t_last_end_ns
  FROM requests AS r
  JOIN outcome AS o
    ON o.recording_id = r.recording_id
    AND o.request_id = r.request_id
  LEFT JOIN responses AS p
    ON p.recording_id = r.recording_id
    AND p.request_id = r.request_id
    AND p.attempt = r.attempt
  WHERE o.measured
  GROUP BY r.recording_id
)
SELECT
  g.recording_id,
  s.t_first_sent_ns,
  s.t_last_end_ns,
  (s.t_last_end_ns - s.t_first_sent_ns) / 1e9 AS duration_s
FROM recordings AS g
LEFT JOIN span AS s ON s.recording_id = g.recording_id;
