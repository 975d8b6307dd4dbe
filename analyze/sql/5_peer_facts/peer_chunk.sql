-- peer_chunk: one row per chunk but comments of the last attempt of a measured request, with what other tools look at in it.
-- Reads: chunks, outcome, requests.
-- requires: tapedeck (json_extract_string).
--   recording_id       TEXT     -   -  Key.
--   request_id         BIGINT   -   -  Key.
--   attempt            INT      -   -  Key.
--   chunk_index        INT      -   -  Key.
--   api                TEXT     -   -  API of the request.
--   t_ns               BIGINT   ns  -  Arrival; behind a proxy, where the tool would stand: passed on.
--   kind               TEXT     -   -  As recorded.
--   tokens             INT      -   -  Tokens of the chunk where the stream says so.
--   has_choices        BOOLEAN  -   -  Its choices are not empty: also a role, an empty delta, a finish. NULL without the payload.
--   has_vllm_output    BOOLEAN  -   -  vLLM's chat client sees output in it. NULL without the payload.
CREATE VIEW peer_chunk AS
-- Payloads are parsed only where the kind does not decide.
SELECT
  c.recording_id,
  c.request_id,
  c.attempt,
  c.chunk_index,
  r.api,
  coalesce(c.t_forwarded_ns, c.t_ns) AS t_ns,
  c.kind,
  c.tokens,
  CASE
    WHEN c.kind IN ('content', 'tool', 'reasoning', 'role') THEN TRUE
    WHEN c.kind IN ('done', 'error') THEN FALSE
    WHEN c.data IS NOT NULL THEN
      json_extract_string(c.data, '/choices/0') IS NOT NULL
  END AS has_choices,
  -- content, tool calls, the field `reasoning` (not `reasoning_content`), or a
  -- delta whose content is "" and that names no role.
  CASE
    WHEN c.kind IN ('content', 'tool') THEN TRUE
    WHEN c.kind IN ('role', 'done', 'error') THEN FALSE
    WHEN c.kind = 'reasoning' THEN
      CASE WHEN c.data IS NOT NULL THEN
        coalesce(json_extract_string(c.data, '/choices/0/delta/reasoning'), '')
          <> ''
      END
    WHEN c.data IS NOT NULL THEN
      coalesce(json_extract_string(c.data, '/choices/0/delta/content') = '', FALSE)
      AND json_extract_string(c.data, '/choices/0/delta/role') IS NULL
  END AS has_vllm_output
-- Requests first: what a join holds in memory is then a row a request.
FROM outcome AS o
JOIN requests AS r
  ON r.recording_id = o.recording_id
  AND r.request_id = o.request_id
  AND r.attempt = o.attempt
JOIN chunks AS c
  ON c.recording_id = o.recording_id
  AND c.request_id = o.request_id
  AND c.attempt = o.attempt
WHERE o.measured
  AND c.kind <> 'comment';
