-- response_without_request: what ended was sent, unless events were dropped.
-- Reads: recordings, requests, responses.
SELECT
  p.recording_id,
  concat('request ', p.request_id, ' attempt ', p.attempt) AS subject,
  'has a response and no request' AS problem
FROM responses AS p
JOIN recordings AS g ON g.recording_id = p.recording_id
LEFT JOIN requests AS r
  ON r.recording_id = p.recording_id
  AND r.request_id = p.request_id
  AND r.attempt = p.attempt
WHERE r.request_id IS NULL
  AND g.dropped_events = 0;
