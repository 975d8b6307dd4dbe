-- chunk_without_request: every chunk answers a request, unless events were dropped.
-- Reads: recordings, requests, chunks.
SELECT
  c.recording_id,
  concat('request ', c.request_id, ' attempt ', c.attempt) AS subject,
  concat('has ', c.n, ' chunks and no request') AS problem
FROM (
  SELECT recording_id, request_id, attempt, count(*) AS n
  FROM chunks
  GROUP BY recording_id, request_id, attempt
) AS c
JOIN recordings AS g ON g.recording_id = c.recording_id
LEFT JOIN requests AS r
  ON r.recording_id = c.recording_id
  AND r.request_id = c.request_id
  AND r.attempt = c.attempt
WHERE r.request_id IS NULL
  AND g.dropped_events = 0;
