-- negative_length: lengths and counts are not negative.
-- Reads: requests, chunks, responses.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' has bytes ', bytes) AS problem
FROM chunks
WHERE bytes < 0
UNION ALL
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('body_bytes of the request is ', body_bytes) AS problem
FROM requests
WHERE body_bytes < 0
UNION ALL
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat(
    'the response has body_bytes ', body_bytes, ', chunk_count ', chunk_count,
    ', malformed_chunks ', malformed_chunks
  ) AS problem
FROM responses
WHERE body_bytes < 0
  OR chunk_count < 0
  OR malformed_chunks < 0;
