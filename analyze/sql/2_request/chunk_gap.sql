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
SELECT
  recording_id,
  request_id,
  attempt,
  choice_index,
  chunk_index,
  t_ns,
  itl_ns / 1e6 AS itl_ms,
  same_read
FROM content_chunk
WHERE itl_ns IS NOT NULL;
