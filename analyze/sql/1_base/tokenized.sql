-- tokenized: one row per attempt of the measured phase of which the server counted no input or no output, where its recording has a tokenizer.
-- Reads: recordings, requests, responses, chunks.
-- requires: tapedeck (output_text, input_text, text_is, token_count); elsewhere an empty table of these columns stands in for it.
--   recording_id   TEXT    -       -  Key.
--   request_id     BIGINT  -       -  Key.
--   attempt        INT     -       -  Key.
--   input_tokens   BIGINT  tokens  -  Of the text of the messages or the prompt, without the server's template around it. NULL where the server or the sender counted.
--   output_tokens  BIGINT  tokens  -  Of reasoning, content and tool calls. NULL where the server counted, and where a part of the text is missing.
CREATE VIEW tokenized AS
WITH
uncounted AS (
  SELECT
    r.recording_id,
    r.request_id,
    r.attempt,
    r.api,
    g.tokenizer,
    CASE WHEN coalesce(r.input_tokens, p.input_tokens) IS NULL THEN r.body END
      AS question,
    p.output_tokens IS NULL AS wants_output,
    CASE WHEN p.output_tokens IS NULL AND p.chunk_count = 0 THEN p.body END
      AS answer
  FROM requests AS r
  JOIN recordings AS g ON g.recording_id = r.recording_id
  LEFT JOIN responses AS p
    ON p.recording_id = r.recording_id
    AND p.request_id = r.request_id
    AND p.attempt = r.attempt
  WHERE r.phase = 'measure'
    AND g.tokenizer IS NOT NULL
    AND (
      p.output_tokens IS NULL
      OR coalesce(r.input_tokens, p.input_tokens) IS NULL
    )
),
piece AS (
  SELECT
    c.recording_id,
    c.request_id,
    c.attempt,
    c.choice_index,
    c.chunk_index,
    u.api,
    u.tokenizer,
    output_text(c.data, u.api) AS text
  FROM uncounted AS u
  JOIN chunks AS c
    ON c.recording_id = u.recording_id
    AND c.request_id = u.request_id
    AND c.attempt = u.attempt
  WHERE u.wants_output
    AND c.kind IN ('reasoning', 'content', 'tool')
),
-- Tokens run across chunks, never across choices.
choice AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    count(*) = count(text) AS is_whole,
    token_count(
      CASE WHEN text_is(api) = 'cumulative'
        THEN last_value(text ORDER BY chunk_index)
        ELSE string_agg(text, '' ORDER BY chunk_index) END,
      tokenizer
    ) AS tokens
  FROM piece
  GROUP BY recording_id, request_id, attempt, choice_index, api, tokenizer
),
streamed AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    CASE WHEN bool_and(is_whole) THEN sum(tokens) END AS tokens
  FROM choice
  GROUP BY recording_id, request_id, attempt
)
SELECT
  u.recording_id,
  u.request_id,
  u.attempt,
  token_count(input_text(u.question, u.api), u.tokenizer) AS input_tokens,
  coalesce(s.tokens, token_count(output_text(u.answer, u.api), u.tokenizer))
    AS output_tokens
FROM uncounted AS u
LEFT JOIN streamed AS s
  ON s.recording_id = u.recording_id
  AND s.request_id = u.request_id
  AND s.attempt = u.attempt;
