-- outcome: one row per request: its last attempt and how that ended.
-- Reads: requests, responses, params.
--   recording_id     TEXT     -   -  Key.
--   request_id       BIGINT   -   -  Key.
--   attempt          INT      -   -  The last attempt; metrics are those of this one.
--   attempts         BIGINT   -   -  How many times the request was sent.
--   phase            TEXT     -   -  probe, warmup or measure.
--   measured         BOOLEAN  -   -  Counts in the summary: phase measure, not imported, sent after the warm-up.
--   outcome          TEXT     -   -  Outcome of the response; 'unfinished' where there is none.
--   status           INT      -   -  HTTP status.
--   error            TEXT     -   -  What went wrong, in the recorder's or the server's words.
--   t_scheduled_ns   BIGINT   ns  -  When it should have left; NULL where nothing scheduled it.
--   t_dispatched_ns  BIGINT   ns  -  When a worker took it.
--   t_sent_ns        BIGINT   ns  -  Last byte of the request written.
--   t_end_ns         BIGINT   ns  -  End of the response.
--   chunk_count      INT      -   -  Chunks of all kinds; 0 when the answer was not streamed.
CREATE VIEW outcome AS
WITH
last_attempt AS (
  SELECT
    recording_id,
    request_id,
    max(attempt) AS attempt,
    count(*) AS attempts
  FROM requests
  GROUP BY recording_id, request_id
),
ended AS (
  SELECT
    r.recording_id,
    r.request_id,
    r.attempt,
    l.attempts,
    r.phase,
    coalesce(p.outcome, 'unfinished') AS outcome,
    p.status,
    p.error,
    r.t_scheduled_ns,
    r.t_dispatched_ns,
    r.t_sent_ns,
    p.t_end_ns,
    p.chunk_count,
    -- A request that never got as far as the wire still has a place in the run.
    coalesce(r.t_sent_ns, r.t_dispatched_ns, r.t_scheduled_ns) AS t_start_ns
  FROM requests AS r
  JOIN last_attempt AS l
    ON l.recording_id = r.recording_id
    AND l.request_id = r.request_id
    AND l.attempt = r.attempt
  LEFT JOIN responses AS p
    ON p.recording_id = r.recording_id
    AND p.request_id = r.request_id
    AND p.attempt = r.attempt
),
warmup AS (
  SELECT
    e.recording_id,
    min(e.t_start_ns)
      + (SELECT max(value) FROM params WHERE name = 'warmup_ms') * 1e6
      AS t_until_ns
  FROM ended AS e
  WHERE e.phase = 'measure'
  GROUP BY e.recording_id
)
SELECT
  e.recording_id,
  e.request_id,
  e.attempt,
  e.attempts,
  e.phase,
  e.phase = 'measure'
    AND e.outcome <> 'imported'
    AND coalesce(e.t_start_ns >= w.t_until_ns, TRUE) AS measured,
  e.outcome,
  e.status,
  e.error,
  e.t_scheduled_ns,
  e.t_dispatched_ns,
  e.t_sent_ns,
  e.t_end_ns,
  e.chunk_count
FROM ended AS e
LEFT JOIN warmup AS w ON w.recording_id = e.recording_id;
