-- peer_token: one row per rule for "this chunk is a token" and chunk that it takes for one, or cannot decide.
-- Reads: peer_profile, peer_chunk.
--   recording_id  TEXT     -   -  Key.
--   rule          TEXT     -   -  Key. content, text (content or reasoning), content_bearing (or tool), vllm, data (any message).
--   request_id    BIGINT   -   -  Key.
--   attempt       INT      -   -  Key.
--   chunk_index   INT      -   -  Key.
--   t_ns          BIGINT   ns  -  Arrival.
--   tokens        INT      -   -  Tokens of the chunk where the stream says so.
--   counts        BOOLEAN  -   -  TRUE, or NULL where only the payload could tell and it was not recorded.
CREATE VIEW peer_token AS
WITH
rule AS (
  SELECT DISTINCT chunk_rule AS rule
  FROM peer_profile
  WHERE chunk_rule IS NOT NULL
),
judged AS (
  SELECT
    c.recording_id,
    r.rule,
    c.request_id,
    c.attempt,
    c.chunk_index,
    c.t_ns,
    c.tokens,
    CASE r.rule
      WHEN 'content' THEN c.kind = 'content'
      WHEN 'text' THEN c.kind IN ('content', 'reasoning')
      WHEN 'content_bearing' THEN c.kind IN ('content', 'reasoning', 'tool')
      WHEN 'data' THEN c.kind NOT IN ('done', 'error')
      -- Its completions client takes any chunk with choices, even without text.
      WHEN 'vllm' THEN
        CASE WHEN c.api = 'openai-completions' THEN c.has_choices
        ELSE c.has_vllm_output END
    END AS counts
  FROM peer_chunk AS c
  CROSS JOIN rule AS r
)
SELECT recording_id, rule, request_id, attempt, chunk_index, t_ns, tokens, counts
FROM judged
WHERE coalesce(counts, TRUE);
