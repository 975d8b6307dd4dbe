-- timeline: one row per recording and second in which a measured request was sent, ended or received content.
-- Reads: request_latency, content_chunk.
--   recording_id    TEXT    -         -       Key.
--   second          BIGINT  s         -       Key. Whole seconds since the recording started.
--   sent            BIGINT  requests  -       Requests sent in this second.
--   succeeded       BIGINT  requests  higher  Requests that ended in it with outcome ok.
--   failed          BIGINT  requests  lower   Requests that ended in it otherwise.
--   in_flight       BIGINT  requests  -       Sent and not yet ended when the second was over.
--   content_chunks  BIGINT  chunks    -       Content-bearing chunks that arrived in it.
--   output_tokens   BIGINT  tokens    -       Output tokens of the requests that succeeded in it. NULL when none is known.
--   ttft_ms_mean    DOUBLE  ms        lower   Mean TTFT of the successful requests sent in it. NULL when none was.
CREATE VIEW timeline AS
WITH
sent AS (
  SELECT
    recording_id,
    t_sent_ns / 1000000000 AS second,
    count(*) AS sent,
    avg(CASE WHEN outcome = 'ok' THEN ttft_ms END) AS ttft_ms_mean
  FROM request_latency
  WHERE t_sent_ns IS NOT NULL
  GROUP BY recording_id, t_sent_ns / 1000000000
),
ended AS (
  SELECT
    recording_id,
    t_end_ns / 1000000000 AS second,
    count(*) FILTER (WHERE outcome = 'ok') AS succeeded,
    count(*) FILTER (WHERE outcome <> 'ok') AS failed,
    -- What was never sent does not leave the flight either.
    count(t_sent_ns) AS landed,
    sum(CASE WHEN outcome = 'ok' THEN output_tokens END) AS output_tokens
  FROM request_latency
  WHERE t_end_ns IS NOT NULL
  GROUP BY recording_id, t_end_ns / 1000000000
),
arrived AS (
  SELECT
    c.recording_id,
    c.t_ns / 1000000000 AS second,
    count(*) AS content_chunks
  FROM content_chunk AS c
  JOIN request_latency AS r
    ON r.recording_id = c.recording_id
    AND r.request_id = c.request_id
    AND r.attempt = c.attempt
  GROUP BY c.recording_id, c.t_ns / 1000000000
),
seconds AS (
  SELECT recording_id, second FROM sent
  UNION
  SELECT recording_id, second FROM ended
  UNION
  SELECT recording_id, second FROM arrived
)
SELECT
  t.recording_id,
  t.second,
  coalesce(s.sent, 0) AS sent,
  coalesce(e.succeeded, 0) AS succeeded,
  coalesce(e.failed, 0) AS failed,
  sum(coalesce(s.sent, 0) - coalesce(e.landed, 0)) OVER (
    PARTITION BY t.recording_id
    ORDER BY t.second
    ROWS UNBOUNDED PRECEDING
  ) AS in_flight,
  coalesce(a.content_chunks, 0) AS content_chunks,
  e.output_tokens,
  s.ttft_ms_mean
FROM seconds AS t
LEFT JOIN sent AS s
  ON s.recording_id = t.recording_id AND s.second = t.second
LEFT JOIN ended AS e
  ON e.recording_id = t.recording_id AND e.second = t.second
LEFT JOIN arrived AS a
  ON a.recording_id = t.recording_id AND a.second = t.second;
