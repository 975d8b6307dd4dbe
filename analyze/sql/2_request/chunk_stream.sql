-- chunk_stream: one row per attempt of the measured phase with a content-bearing chunk: what its chunks come to.
-- Reads: answer_chunk, requests.
-- requires: tapedeck (stream).
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
-- kept under derived/, and a report starts from them. The gaps are those of
-- chunk_gap, without its window over all chunks.
WITH
stream AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    min(t_ns) FILTER (WHERE has_content) AS t_first_ns,
    min(t_ns) FILTER (WHERE has_content AND kind <> 'reasoning')
      AS t_first_output_ns,
    max(t_ns) FILTER (WHERE has_content) AS t_last_ns,
    first_value(tokens ORDER BY chunk_index) FILTER (WHERE has_content)
      AS first_chunk_tokens,
    count(*) FILTER (WHERE has_content) AS content_chunks,
    count(tokens) FILTER (WHERE has_content) AS counted_chunks,
    stream(t_ns, choice_index, chunk_index, read_index)
      FILTER (WHERE has_content) AS content,
    sum(tokens) AS tokens
  FROM answer_chunk
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
  s.content['reads'] AS content_reads,
  s.tokens,
  s.content['itl_ns'] AS itl_ns
FROM stream AS s
JOIN requests AS r
  ON r.recording_id = s.recording_id
  AND r.request_id = s.request_id
  AND r.attempt = s.attempt
WHERE s.content_chunks > 0
  AND r.phase = 'measure';
