-- duplicate_chunk: request_id, attempt and chunk_index are the key of chunks.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk_index ', chunk_index, ' appears ', count(*), ' times') AS problem
FROM chunks
GROUP BY recording_id, request_id, attempt, chunk_index
HAVING count(*) > 1;
