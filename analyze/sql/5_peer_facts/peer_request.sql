-- peer_request: one row per measured request: the instants and counts that other tools' definitions choose from.
-- Reads: outcome, requests, responses, request_latency, peer_chunk.
--   recording_id             TEXT     -       -  Key.
--   request_id               BIGINT   -       -  Key.
--   attempt                  INT      -       -  The last attempt.
--   api                      TEXT     -       -  API of the request.
--   outcome                  TEXT     -       -  As in view outcome.
--   status                   INT      -       -  HTTP status.
--   streamed                 BOOLEAN  -       -  The answer came in chunks.
--   t_issue_ns               BIGINT   ns      -  Where a client starts its clock, before connection and send: dispatched; in a proxy the first of the head read and the last byte's arrival; else connect or sent.
--   t_write_ns               BIGINT   ns      -  Where a client begins to write the request: issued and connected; in a proxy as issued.
--   t_last_message_ns        BIGINT   ns      -  Last chunk but the end marker.
--   t_done_ns                BIGINT   ns      -  The end marker ([DONE]).
--   t_last_event_ns          BIGINT   ns      -  Last chunk, end marker included.
--   t_end_ns                 BIGINT   ns      -  End of the response; behind a proxy, passed on.
--   usage_input_tokens       BIGINT   tokens  -  As the server counted.
--   usage_output_tokens      BIGINT   tokens  -  As the server counted.
--   tokenized_input_tokens   BIGINT   tokens  -  As a tokenizer counted.
--   tokenized_output_tokens  BIGINT   tokens  -  As a tokenizer counted.
--   max_output_tokens        BIGINT   tokens  -  As the request allowed.
CREATE VIEW peer_request AS
WITH ends AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    max(CASE WHEN kind <> 'done' THEN t_ns END) AS t_last_message_ns,
    max(CASE WHEN kind = 'done' THEN t_ns END) AS t_done_ns,
    max(t_ns) AS t_last_event_ns
  FROM peer_chunk
  GROUP BY recording_id, request_id, attempt
),
issued AS (
  SELECT
    recording_id,
    request_id,
    attempt,
    api,
    max_output_tokens,
    -- Not the schedule: no tool here starts its clock there. A proxy that gets to
    -- the head late is not the client's time.
    coalesce(least(t_dispatched_ns, t_received_ns), t_connect_ns, t_sent_ns)
      AS t_issue_ns,
    -- A proxy's connection is the server's, not the client's.
    CASE WHEN t_received_ns IS NULL THEN greatest(t_connected_ns, t_tls_ns) END
      AS t_open_ns
  FROM requests
)
SELECT
  o.recording_id,
  o.request_id,
  o.attempt,
  r.api,
  o.outcome,
  o.status,
  coalesce(o.chunk_count > 0, e.request_id IS NOT NULL) AS streamed,
  r.t_issue_ns,
  greatest(r.t_issue_ns, r.t_open_ns) AS t_write_ns,
  e.t_last_message_ns,
  e.t_done_ns,
  e.t_last_event_ns,
  coalesce(p.t_client_end_ns, o.t_end_ns) AS t_end_ns,
  CAST(p.input_tokens AS BIGINT) AS usage_input_tokens,
  CAST(p.output_tokens AS BIGINT) AS usage_output_tokens,
  CASE WHEN l.input_tokens_source LIKE 'tokenizer%' THEN l.input_tokens END
    AS tokenized_input_tokens,
  CASE WHEN l.output_tokens_source LIKE 'tokenizer%' THEN l.output_tokens END
    AS tokenized_output_tokens,
  CAST(r.max_output_tokens AS BIGINT) AS max_output_tokens
FROM outcome AS o
JOIN issued AS r
  ON r.recording_id = o.recording_id
  AND r.request_id = o.request_id
  AND r.attempt = o.attempt
LEFT JOIN responses AS p
  ON p.recording_id = o.recording_id
  AND p.request_id = o.request_id
  AND p.attempt = o.attempt
LEFT JOIN request_latency AS l
  ON l.recording_id = o.recording_id
  AND l.request_id = o.request_id
LEFT JOIN ends AS e
  ON e.recording_id = o.recording_id
  AND e.request_id = o.request_id
  AND e.attempt = o.attempt
WHERE o.measured;
