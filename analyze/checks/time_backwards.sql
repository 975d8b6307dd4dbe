-- time_backwards: events of an attempt arrive in the order of their index.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' arrived ', previous - t_ns, ' ns before one that it follows')
    AS problem
FROM (
  SELECT
    recording_id,
    request_id,
    attempt,
    chunk_index,
    t_ns,
    lag(t_ns) OVER (
      PARTITION BY recording_id, request_id, attempt ORDER BY chunk_index
    ) AS previous
  FROM chunks
  -- A comment or a lone field line inside an unfinished event is recorded when
  -- it comes, so before that event; the event keeps the instant of its own last
  -- byte, which may be earlier. Lone field lines have kind other or error.
  WHERE kind NOT IN ('comment', 'other', 'error')
) AS paired
WHERE t_ns < previous;
