-- replay_flight: one row per replay with an original: its curve of requests in flight against the original's.
-- Reads: replay_request.
--   recording_id           TEXT    -         -      Key. The replay.
--   compared               BIGINT  requests  -      Requests of which both were sent and ended.
--   original_in_flight     DOUBLE  requests  -      Time average of the original: its answers, their times divided by the speed, begun when they were due.
--   in_flight              DOUBLE  requests  -      Time average of the replay over the same span.
--   in_flight_error_mean   DOUBLE  requests  lower  Time average of the distance between the two curves.
--   in_flight_error_max    BIGINT  requests  lower  Their largest distance, however short.
CREATE VIEW replay_flight AS
WITH
known AS (
  SELECT
    recording_id,
    t_sent_ns,
    greatest(t_end_ns, t_sent_ns) AS t_end_ns,
    t_original_from_ns,
    greatest(t_original_to_ns, t_original_from_ns) AS t_original_to_ns
  FROM replay_request
  WHERE t_sent_ns IS NOT NULL
    AND t_end_ns IS NOT NULL
    AND t_original_from_ns IS NOT NULL
    AND t_original_to_ns IS NOT NULL
),
step AS (
  SELECT recording_id, t_sent_ns AS t_ns, 1 AS of_replay, 0 AS of_original
  FROM known
  UNION ALL
  SELECT recording_id, t_end_ns AS t_ns, -1 AS of_replay, 0 AS of_original
  FROM known
  UNION ALL
  SELECT recording_id, t_original_from_ns AS t_ns, 0 AS of_replay, 1 AS of_original
  FROM known
  UNION ALL
  SELECT recording_id, t_original_to_ns AS t_ns, 0 AS of_replay, -1 AS of_original
  FROM known
),
-- At one instant all steps are taken before anybody looks.
instant AS (
  SELECT
    recording_id,
    t_ns,
    sum(of_replay) AS of_replay,
    sum(of_original) AS of_original
  FROM step
  GROUP BY recording_id, t_ns
),
level AS (
  SELECT
    recording_id,
    lead(t_ns) OVER in_order - t_ns AS span_ns,
    sum(of_replay) OVER in_order AS in_flight,
    sum(of_original) OVER in_order AS original_in_flight
  FROM instant
  WINDOW in_order AS (PARTITION BY recording_id ORDER BY t_ns)
),
counted AS (
  SELECT recording_id, count(*) AS compared
  FROM known
  GROUP BY recording_id
),
curve AS (
  SELECT
    recording_id,
    sum(CAST(span_ns AS DOUBLE)) AS span_ns,
    sum(CAST(span_ns AS DOUBLE) * original_in_flight) AS original_ns,
    sum(CAST(span_ns AS DOUBLE) * in_flight) AS replay_ns,
    sum(CAST(span_ns AS DOUBLE) * abs(in_flight - original_in_flight)) AS error_ns,
    max(abs(in_flight - original_in_flight)) AS error_max
  FROM level
  GROUP BY recording_id
)
SELECT
  c.recording_id,
  n.compared,
  c.original_ns / nullif(c.span_ns, 0) AS original_in_flight,
  c.replay_ns / nullif(c.span_ns, 0) AS in_flight,
  c.error_ns / nullif(c.span_ns, 0) AS in_flight_error_mean,
  c.error_max AS in_flight_error_max
FROM curve AS c
JOIN counted AS n ON n.recording_id = c.recording_id;
