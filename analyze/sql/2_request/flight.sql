-- flight: one row per measured attempt that was sent: from when to when it was in flight.
-- Reads: requests, responses, outcome, window.
--   recording_id  TEXT    -   -  Key.
--   request_id    BIGINT  -   -  Key.
--   attempt       INT     -   -  Key.
--   t_from_ns     BIGINT  ns  -  Last byte of the request written.
--   t_to_ns       BIGINT  ns  -  End of the response; the end of the window where there is none.
CREATE VIEW flight AS
SELECT
  r.recording_id,
  r.request_id,
  r.attempt,
  r.t_sent_ns AS t_from_ns,
  -- Without an end an attempt was in flight until the window closed.
  greatest(coalesce(p.t_end_ns, w.t_last_end_ns), r.t_sent_ns) AS t_to_ns
FROM requests AS r
JOIN outcome AS o
  ON o.recording_id = r.recording_id
  AND o.request_id = r.request_id
JOIN "window" AS w ON w.recording_id = r.recording_id
LEFT JOIN responses AS p
  ON p.recording_id = r.recording_id
  AND p.request_id = r.request_id
  AND p.attempt = r.attempt
WHERE o.measured
  AND r.t_sent_ns IS NOT NULL;
