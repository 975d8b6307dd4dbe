-- end_before_chunk: a response ends with or after its last chunk and after its request was sent.
-- Reads: requests, chunks, responses.
SELECT
  p.recording_id,
  concat('request ', p.request_id, ' attempt ', p.attempt) AS subject,
  CASE
    WHEN p.t_end_ns < c.t_last_ns THEN
      concat('t_end_ns is ', c.t_last_ns - p.t_end_ns, ' ns before the last chunk')
    ELSE concat('t_end_ns is ', r.t_sent_ns - p.t_end_ns, ' ns before t_sent_ns')
  END AS problem
FROM responses AS p
LEFT JOIN requests AS r
  ON r.recording_id = p.recording_id
  AND r.request_id = p.request_id
  AND r.attempt = p.attempt
LEFT JOIN (
  SELECT recording_id, request_id, attempt, max(t_ns) AS t_last_ns
  FROM chunks
  GROUP BY recording_id, request_id, attempt
) AS c
  ON c.recording_id = p.recording_id
  AND c.request_id = p.request_id
  AND c.attempt = p.attempt
WHERE p.t_end_ns < c.t_last_ns
  -- A server may answer, and end, before it has read the whole request.
  OR (p.outcome = 'ok' AND p.t_end_ns < r.t_sent_ns);
