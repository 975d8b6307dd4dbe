-- read_index_backwards: read_index starts at 0 or later and never falls from one chunk of an attempt to the next.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat(
    'chunk ', chunk_index, ' has read_index ', read_index,
    coalesce(concat(' after ', previous), '')
  ) AS problem
FROM (
  SELECT
    recording_id,
    request_id,
    attempt,
    chunk_index,
    read_index,
    lag(read_index) OVER (
      PARTITION BY recording_id, request_id, attempt ORDER BY chunk_index
    ) AS previous
  FROM chunks
) AS paired
WHERE read_index < previous
  OR read_index < 0;
