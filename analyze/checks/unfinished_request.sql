-- unfinished_request: every attempt of a recording that nobody writes any more has a response.
-- Reads: recordings, requests, responses.
--   subject  TEXT  -  -  The request.
--   problem  TEXT  -  -  What is wrong with it.
SELECT
  concat('request ', q.request_id, ' attempt ', q.attempt) AS subject,
  'was in flight when its recorder died' AS problem
FROM requests AS q
INNER JOIN recordings AS g ON g.recording_id = q.recording_id
LEFT JOIN responses AS p
  ON p.recording_id = q.recording_id
  AND p.request_id = q.request_id
  AND p.attempt = q.attempt
WHERE p.request_id IS NULL AND NOT g.live
ORDER BY q.request_id, q.attempt;
