-- chunk_count: a response counts the chunks that are there, unless events were dropped.
-- Reads: recordings, chunks, responses.
SELECT
  p.recording_id,
  concat('request ', p.request_id, ' attempt ', p.attempt) AS subject,
  concat('chunk_count is ', p.chunk_count, ', chunks holds ', coalesce(c.n, 0)) AS problem
FROM responses AS p
JOIN recordings AS g ON g.recording_id = p.recording_id
LEFT JOIN (
  SELECT recording_id, request_id, attempt, count(*) AS n
  FROM chunks
  GROUP BY recording_id, request_id, attempt
) AS c
  ON c.recording_id = p.recording_id
  AND c.request_id = p.request_id
  AND c.attempt = p.attempt
WHERE p.chunk_count <> coalesce(c.n, 0)
  AND (g.dropped_events = 0 OR p.chunk_count < coalesce(c.n, 0))
  -- An import knows how many chunks there were, and may not have them.
  AND p.outcome <> 'imported';
