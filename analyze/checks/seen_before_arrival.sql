-- seen_before_arrival: this process sees a chunk after it arrived.
-- Reads: chunks.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' was seen ', t_ns - t_seen_ns, ' ns before it arrived')
    AS problem
FROM chunks
WHERE t_seen_ns < t_ns;
