-- content_chunk: one row per content-bearing chunk of a request in the measured phase, every attempt.
-- Reads: answer_chunk, requests.
--   recording_id  TEXT    -   -  Key.
--   request_id    BIGINT  -   -  Key.
--   attempt       INT     -   -  Key.
--   chunk_index   INT     -   -  Key. Position among all chunks of the attempt, from 0.
--   read_index    INT     -   -  Chunks with the same number arrived in one read.
--   choice_index  INT     -   -  Which of several answers; NULL where the API does not say.
--   t_ns          BIGINT  ns  -  Arrival, since the recording started.
--   kind          TEXT    -   -  reasoning, content or tool.
--   tokens        INT     -   -  Tokens of the chunk where the stream says so.
--   itl_ns        BIGINT  ns  lower  Gap to the content-bearing chunk of the same choice before; NULL for the first.
--   same_read     BOOLEAN -   -  Both came in one read: the gap says nothing about the server. NULL for the first.
CREATE VIEW content_chunk AS
SELECT
  c.recording_id,
  c.request_id,
  c.attempt,
  c.chunk_index,
  c.read_index,
  c.choice_index,
  c.t_ns,
  c.kind,
  c.tokens,
  c.t_ns - lag(c.t_ns) OVER choice AS itl_ns,
  c.read_index = lag(c.read_index) OVER choice AS same_read
FROM answer_chunk AS c
JOIN requests AS r
  ON r.recording_id = c.recording_id
  AND r.request_id = c.request_id
  AND r.attempt = c.attempt
WHERE c.has_content
  AND r.phase = 'measure'
WINDOW choice AS (
  PARTITION BY c.recording_id, c.request_id, c.attempt, c.choice_index
  ORDER BY c.chunk_index
);
