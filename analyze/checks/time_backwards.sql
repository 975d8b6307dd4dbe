-- time_backwards: chunks of an attempt arrive in the order of their index.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' arrived ', previous - t_ns, ' ns before the one it follows')
    AS problem
FROM (
  SELECT
    recording_id,
    request_id,
    attempt,
    chunk_index,
    t_ns,
    lag(t_ns) OVER (
      PARTITION BY recording_id, request_id, attempt ORDER BY chunk_index
    ) AS previous
  FROM chunks
) AS paired
WHERE t_ns < previous;
