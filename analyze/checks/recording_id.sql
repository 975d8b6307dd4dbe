-- recording_id: every row belongs to the recording it lies in.
-- Reads: recordings, requests, chunks, responses, samples, marks.
SELECT
  t.recording_id,
  concat('table ', t.name) AS subject,
  concat(t.n, ' rows of another recording') AS problem
FROM (
  SELECT 'requests' AS name, recording_id, count(*) AS n
  FROM requests GROUP BY recording_id
  UNION ALL
  SELECT 'chunks' AS name, recording_id, count(*) AS n
  FROM chunks GROUP BY recording_id
  UNION ALL
  SELECT 'responses' AS name, recording_id, count(*) AS n
  FROM responses GROUP BY recording_id
  UNION ALL
  SELECT 'samples' AS name, recording_id, count(*) AS n
  FROM samples GROUP BY recording_id
  UNION ALL
  SELECT 'marks' AS name, recording_id, count(*) AS n
  FROM marks GROUP BY recording_id
) AS t
LEFT JOIN recordings AS g ON g.recording_id = t.recording_id
WHERE g.recording_id IS NULL;
