-- chunk_index_gap: chunk_index counts the chunks of an attempt from 0 without a gap.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat(
    'chunk_index runs from ', min(chunk_index), ' to ', max(chunk_index),
    ' over ', count(DISTINCT chunk_index), ' chunks'
  ) AS problem
FROM chunks
GROUP BY recording_id, request_id, attempt
HAVING min(chunk_index) <> 0
  OR max(chunk_index) <> count(DISTINCT chunk_index) - 1;
