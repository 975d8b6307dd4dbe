-- peer_token_gap: one row per pair of consecutive chunks that a rule of peer_token takes for tokens, whatever their choice.
-- Reads: peer_token.
--   recording_id  TEXT    -       -      Key.
--   rule          TEXT    -       -      Key.
--   request_id    BIGINT  -       -      Key.
--   chunk_index   INT     -       -      Key: the later chunk of the pair.
--   gap_ms        DOUBLE  ms      lower  Between the two arrivals.
--   tokens        INT     tokens  -      Of the later chunk where the stream says so.
CREATE VIEW peer_token_gap AS
WITH decided AS (
  SELECT recording_id, rule, request_id, attempt
  FROM peer_token
  GROUP BY recording_id, rule, request_id, attempt
  HAVING count(counts) = count(*)
),
paired AS (
  SELECT
    recording_id,
    rule,
    request_id,
    attempt,
    chunk_index,
    tokens,
    t_ns,
    lag(t_ns) OVER (
      PARTITION BY recording_id, rule, request_id, attempt
      ORDER BY chunk_index
    ) AS previous_t_ns
  FROM peer_token
)
SELECT
  recording_id,
  rule,
  request_id,
  chunk_index,
  (t_ns - previous_t_ns) / 1e6 AS gap_ms,
  tokens
FROM paired
JOIN decided USING (recording_id, rule, request_id, attempt)
WHERE previous_t_ns IS NOT NULL;
