-- flight_level: one row per start and end of an attempt in flight: how many there are from then on.
-- Reads: flight.
--   recording_id  TEXT    -         -  Key.
--   t_ns          BIGINT  ns        -  When one was sent or ended. At one instant an end frees its place before a start.
--   t_next_ns     BIGINT  ns        -  The next such instant. NULL for the last.
--   in_flight     BIGINT  requests  -  Attempts in flight between the two.
CREATE VIEW flight_level AS
WITH
step AS (
  SELECT recording_id, t_from_ns AS t_ns, 1 AS change FROM flight
  UNION ALL
  SELECT recording_id, t_to_ns AS t_ns, -1 AS change FROM flight
)
SELECT
  recording_id,
  t_ns,
  lead(t_ns) OVER (PARTITION BY recording_id ORDER BY t_ns, change)
    AS t_next_ns,
  sum(change) OVER (
    PARTITION BY recording_id
    ORDER BY t_ns, change
    ROWS UNBOUNDED PRECEDING
  ) AS in_flight
FROM step;
