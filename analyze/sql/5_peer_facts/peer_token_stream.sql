-- peer_token_stream: one row per rule of peer_token and request with at least one such chunk.
-- Reads: peer_token.
--   recording_id  TEXT    -       -  Key.
--   rule          TEXT    -       -  Key.
--   request_id    BIGINT  -       -  Key.
--   attempt       INT     -       -  Key.
--   chunks        BIGINT  chunks  -  How many count. NULL, like all below, where one could not be decided.
--   t_first_ns    BIGINT  ns      -  Arrival of the first.
--   t_last_ns     BIGINT  ns      -  Arrival of the last.
--   tokens        BIGINT  tokens  -  Of all of them; NULL unless the stream counts each.
--   first_tokens  INT     tokens  -  Of the first.
CREATE VIEW peer_token_stream AS
WITH counted AS (
  SELECT
    recording_id,
    rule,
    request_id,
    attempt,
    count(*) AS chunks,
    count(counts) AS decided,
    min(t_ns) AS t_first_ns,
    max(t_ns) AS t_last_ns,
    count(tokens) AS chunks_with_tokens,
    sum(tokens) AS tokens,
    first_value(tokens ORDER BY chunk_index) AS first_tokens
  FROM peer_token
  GROUP BY recording_id, rule, request_id, attempt
)
SELECT
  recording_id,
  rule,
  request_id,
  attempt,
  CASE WHEN decided = chunks THEN chunks END AS chunks,
  CASE WHEN decided = chunks THEN t_first_ns END AS t_first_ns,
  CASE WHEN decided = chunks THEN t_last_ns END AS t_last_ns,
  CASE WHEN decided = chunks AND chunks_with_tokens = chunks THEN tokens END
    AS tokens,
  CASE WHEN decided = chunks THEN first_tokens END AS first_tokens
FROM counted;
