-- chunk_stream: one row per attempt of the measured phase with a content-bearing chunk: what its chunks come to.
-- Reads: chunks, content_chunk.
--   recording_id        TEXT    -       -      Key.
--   request_id          BIGINT  -       -      Key.
--   attempt             INT     -       -      Key.
--   t_first_ns          BIGINT  ns      -      First content-bearing chunk of any choice.
--   t_first_output_ns   BIGINT  ns      -      First content or tool chunk.
--   t_last_ns           BIGINT  ns      -      Last content-bearing chunk.
--   first_chunk_tokens  INT     tokens  -      Tokens of the first content-bearing chunk where the stream says so.
--   content_chunks      BIGINT  chunks  -      Content-bearing chunks.
--   counted_chunks      BIGINT  chunks  -      Those of which the stream says the tokens.
--   content_reads       BIGINT  reads   -      Reads that brought at least one of them.
--   tokens              BIGINT  tokens  -      Sum over chunks of all kinds; tokens can ride on chunks without text.
--   itl_ns              LIST    ns      lower  Gaps of view chunk_gap, in no order. NULL where there is none.
CREATE VIEW chunk_stream AS
-- Nothing here depends on a user's choices: of a sealed recording these rows are
-- kept under derived/, and a report starts from them.
WITH
content AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    min(t_ns) AS t_first_ns,
    min(CASE WHEN kind <> 'reasoning' THEN t_ns END) AS t_first_output_ns,
    max(t_ns) AS t_last_ns,
    first_value(tokens ORDER BY chunk_index) AS first_chunk_tokens,
    count(*) AS content_chunks,
    count(tokens) AS counted_chunks,
    count(DISTINCT read_index) AS content_reads,
    array_agg(itl_ns) FILTER (WHERE itl_ns IS NOT NULL) AS itl_ns
  FROM content_chunk
  GROUP BY recording_id, request_id, attempt
),
counted AS (
  SELECT recording_id, request_id, attempt, sum(tokens) AS tokens
  FROM chunks
  WHERE tokens IS NOT NULL
  GROUP BY recording_id, request_id, attempt
)
SELECT
  s.recording_id,
  s.request_id,
  s.attempt,
  s.t_first_ns,
  s.t_first_output_ns,
  s.t_last_ns,
  s.first_chunk_tokens,
  s.content_chunks,
  s.counted_chunks,
  s.content_reads,
  k.tokens,
  s.itl_ns
FROM content AS s
LEFT JOIN counted AS k
  ON k.recording_id = s.recording_id
  AND k.request_id = s.request_id
  AND k.attempt = s.attempt;
