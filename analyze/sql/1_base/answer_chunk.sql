-- answer_chunk: one row per chunk, with what a metric looks at in it.
-- Reads: chunks.
--   recording_id  TEXT     -   -  Key.
--   request_id    BIGINT   -   -  Key.
--   attempt       INT      -   -  Key.
--   chunk_index   INT      -   -  Key. Position among all chunks of the attempt, from 0.
--   read_index    INT      -   -  Chunks with the same number arrived in one read.
--   choice_index  INT      -   -  Which of several answers; NULL where the API does not say.
--   t_ns          BIGINT   ns  -  Arrival, since the recording started.
--   kind          TEXT     -   -  As recorded.
--   tokens        INT      -   -  Tokens of the chunk where the stream says so.
--   has_content   BOOLEAN  -   -  It bears content: reasoning, content or tool.
CREATE VIEW answer_chunk AS
-- The one definition of "the server has begun to answer": a role, a usage or an
-- empty delta is not content.
SELECT
  recording_id,
  request_id,
  attempt,
  chunk_index,
  read_index,
  choice_index,
  t_ns,
  kind,
  tokens,
  kind IN ('reasoning', 'content', 'tool') AS has_content
FROM chunks;
