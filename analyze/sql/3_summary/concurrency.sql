-- concurrency: one row per recording: measured attempts in flight, from sent to the end of the response.
-- Reads: recordings, window, flight, flight_level.
--   recording_id     TEXT    -         -  Key.
--   concurrency      DOUBLE  requests  -  Time average over the window. NULL without a window.
--   concurrency_max  BIGINT  requests  -  Most at one instant; an end frees its place before a start at the same instant.
CREATE VIEW concurrency AS
WITH
average AS (
  SELECT recording_id, sum(t_to_ns - t_from_ns) / 1e9 AS in_flight_s
  FROM flight
  GROUP BY recording_id
),
peak AS (
  SELECT recording_id, max(in_flight) AS concurrency_max
  FROM flight_level
  GROUP BY recording_id
)
SELECT
  g.recording_id,
  a.in_flight_s / nullif(w.duration_s, 0) AS concurrency,
  p.concurrency_max
FROM recordings AS g
LEFT JOIN "window" AS w ON w.recording_id = g.recording_id
LEFT JOIN average AS a ON a.recording_id = g.recording_id
LEFT JOIN peak AS p ON p.recording_id = g.recording_id;
