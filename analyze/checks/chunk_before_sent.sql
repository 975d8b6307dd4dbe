-- chunk_before_sent: an answer begins after its request was sent.
-- Reads: requests, chunks.
SELECT
  c.recording_id,
  concat('request ', c.request_id, ' attempt ', c.attempt) AS subject,
  concat('first chunk is ', r.t_sent_ns - c.t_first_ns, ' ns before t_sent_ns') AS problem
FROM (
  SELECT recording_id, request_id, attempt, min(t_ns) AS t_first_ns
  FROM chunks
  GROUP BY recording_id, request_id, attempt
) AS c
JOIN requests AS r
  ON r.recording_id = c.recording_id
  AND r.request_id = c.request_id
  AND r.attempt = c.attempt
WHERE c.t_first_ns < r.t_sent_ns;
