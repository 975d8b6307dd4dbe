-- read_index_backwards: read_index starts at 0 or later and never falls from one event of an attempt to the next.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' has read_index ', read_index, ' after ', previous)
    AS problem
FROM (
  SELECT
    recording_id,
    request_id,
    attempt,
    chunk_index,
    read_index,
    lag(read_index) OVER (
      PARTITION BY recording_id, request_id, attempt ORDER BY chunk_index
    ) AS previous
  FROM chunks
  -- A comment or a lone field line inside an unfinished event is recorded when
  -- it comes, so before that event; the event keeps the read of its own last
  -- byte, which may be earlier. Lone field lines have kind other or error.
  WHERE kind NOT IN ('comment', 'other', 'error')
) AS paired
WHERE read_index < previous
UNION ALL
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' has read_index ', read_index) AS problem
FROM chunks
WHERE read_index < 0;
