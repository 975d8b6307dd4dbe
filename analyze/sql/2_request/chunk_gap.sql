-- chunk_gap: one row per pair of consecutive content-bearing chunks of one choice of an attempt.
-- Reads: content_chunk.
--   recording_id  TEXT     -   -      Key.
--   request_id    BIGINT   -   -      Key.
--   attempt       INT      -   -      Key.
--   choice_index  INT      -   -      Key; NULL is a choice of its own.
--   chunk_index   INT      -   -      Key: the later chunk of the pair.
--   t_ns          BIGINT   ns  -      Arrival of the later chunk.
--   itl_ms        DOUBLE   ms  lower  Gap between the two arrivals.
--   same_read     BOOLEAN  -   -      Both came in one read: the gap says nothing about the server.
CREATE VIEW chunk_gap AS
WITH paired AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    choice_index,
    chunk_index,
    t_ns,
    read_index,
    lag(t_ns) OVER choice AS previous_t_ns,
    lag(read_index) OVER choice AS previous_read_index
  FROM content_chunk
  WINDOW choice AS (
    PARTITION BY recording_id, request_id, attempt, choice_index
    ORDER BY chunk_index
  )
)
SELECT
  recording_id,
  request_id,
  attempt,
  choice_index,
  chunk_index,
  t_ns,
  (t_ns - previous_t_ns) / 1e6 AS itl_ms,
  read_index = previous_read_index AS same_read
FROM paired
WHERE previous_t_ns IS NOT NULL;
