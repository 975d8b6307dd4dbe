-- peer_token_gap: one row per pair of consecutive chunks that a rule of peer_token takes for tokens, whatever their choice.
-- Reads: peer_token.
--   recording_id  TEXT    -       -      Key.
--   rule          TEXT    -       -      Key.
--   request_id    BIGINT  -       -      Key.
--   chunk_index   INT     -       -      Key: the later chunk of the pair.
--   gap_ms        DOUBLE  ms      lower  Between the two arrivals.
--   tokens        INT     tokens  -      Of the later chunk where the stream says so.
CREATE VIEW peer_token_gap AS
WITH paired AS (
  SELECT
    recording_id,
    rule,
    request_id,
    chunk_index,
    tokens,
    t_ns,
    lag(t_ns) OVER answer AS previous_t_ns,
    bool_and(counts IS NOT NULL) OVER (
      PARTITION BY recording_id, rule, request_id, attempt
    ) AS decided
  FROM peer_token
  WINDOW answer AS (
    PARTITION BY recording_id, rule, request_id, attempt
    ORDER BY chunk_index
  )
)
SELECT
  recording_id,
  rule,
  request_id,
  chunk_index,
  (t_ns - previous_t_ns) / 1e6 AS gap_ms,
  tokens
FROM paired
WHERE decided
  AND previous_t_ns IS NOT NULL;
