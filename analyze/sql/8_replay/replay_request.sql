-- replay_request: one row per request of a replay that has an original: what of it is the same.
-- Reads: replay_original, recordings, requests, responses, outcome, request_latency.
--   recording_id            TEXT     -       -      Key. The replay.
--   request_id              BIGINT   -       -      Key.
--   original_recording_id   TEXT     -       -      What is replayed.
--   original_request_id     BIGINT   -       -      The request of it.
--   place                   BIGINT   -       -      From 1 in the order in which they were due.
--   t_due_ns                BIGINT   ns      -      When it had to leave: the original's offset over the speed, on the replay's clock. Where the replay moved offsets against each other (reshaped_by), when its own plan had it leave.
--   t_sent_ns               BIGINT   ns      -      When it left.
--   schedule_error_ms       DOUBLE   ms      lower  Sent minus due.
--   inter_arrival_error_ms  DOUBLE   ms      lower  Gap to the request before as sent, minus the gap between the two when due.
--   overtook                BOOLEAN  -       lower  It left before one that was due earlier.
--   t_original_from_ns      BIGINT   ns      -      When the original was sent, as if it had come at t_due_ns; when it came where it was not sent.
--   t_original_to_ns        BIGINT   ns      -      When the original's answer ended, likewise.
--   t_end_ns                BIGINT   ns      -      When the replay's answer ended.
--   cancel_error_ms         DOUBLE   ms     lower  Of those that were given up, as their original was: how much longer after sending. NULL of all others.
--   body_same               BOOLEAN  -       higher  Equal by hash. NULL where a body was not kept.
--   original_outcome        TEXT     -       -      How the original ended.
--   outcome                 TEXT     -       -      How the replay of it ended.
--   original_input_tokens   BIGINT   tokens  -      By usage, else as the recording or trace has it.
--   input_tokens            BIGINT   tokens  -      By usage: what the server made of the prompt. NULL where it does not count.
--   original_output_tokens  BIGINT   tokens  -      By usage, stream or tokenizer, else as the trace has it.
--   output_tokens           BIGINT   tokens  -      By usage, stream or tokenizer.
CREATE VIEW replay_request AS
-- An original came when the proxy had received it, when it was scheduled, or when
-- it was sent: the instant that a replay's offsets are made from. The zero of both
-- clocks is the first replayed request, by schedule and not by sending: were it
-- late itself, all others would seem early. A plan that cut idle time out, repeated
-- or stretched the original has other offsets, and only the replay knows them.
WITH
sent AS (
  SELECT
    r.recording_id,
    r.request_id,
    r.replay_of,
    r.t_scheduled_ns,
    r.t_sent_ns,
    coalesce(r.t_received_ns, r.t_scheduled_ns, r.t_sent_ns) AS t_came_ns,
    CASE WHEN g.content = 'full' THEN r.body_hash END AS body_hash,
    o.outcome,
    o.t_end_ns,
    CASE WHEN o.outcome = 'cancelled' THEN o.t_end_ns - o.t_sent_ns END
      AS cancelled_after_ns,
    CAST(p.input_tokens AS BIGINT) AS counted_input_tokens,
    CAST(coalesce(p.input_tokens, r.input_tokens) AS BIGINT) AS input_tokens,
    coalesce(l.output_tokens, CAST(p.output_tokens AS BIGINT)) AS output_tokens
  FROM requests AS r
  JOIN recordings AS g ON g.recording_id = r.recording_id
  JOIN outcome AS o
    ON o.recording_id = r.recording_id
    AND o.request_id = r.request_id
  LEFT JOIN responses AS p
    ON p.recording_id = o.recording_id
    AND p.request_id = o.request_id
    AND p.attempt = o.attempt
  LEFT JOIN request_latency AS l
    ON l.recording_id = r.recording_id
    AND l.request_id = r.request_id
  WHERE r.attempt = 0
    AND r.phase <> 'probe'
),
pair AS (
  SELECT
    s.recording_id,
    n.request_id,
    s.original_recording_id,
    o.request_id AS original_request_id,
    s.speed,
    s.reshaped_by,
    n.t_scheduled_ns,
    n.t_sent_ns,
    n.t_end_ns,
    o.t_came_ns,
    coalesce(o.t_sent_ns, o.t_came_ns) AS t_original_from_ns,
    o.t_end_ns AS t_original_to_ns,
    min(o.t_came_ns) OVER (PARTITION BY s.recording_id) AS t_original_zero_ns,
    min(coalesce(n.t_scheduled_ns, n.t_sent_ns))
      OVER (PARTITION BY s.recording_id) AS t_zero_ns,
    (n.cancelled_after_ns - o.cancelled_after_ns) / 1e6 AS cancel_error_ms,
    n.body_hash = o.body_hash AS body_same,
    o.outcome AS original_outcome,
    n.outcome,
    o.input_tokens AS original_input_tokens,
    n.counted_input_tokens AS input_tokens,
    o.output_tokens AS original_output_tokens,
    n.output_tokens
  FROM replay_original AS s
  JOIN sent AS n ON n.recording_id = s.recording_id
  JOIN sent AS o
    ON o.recording_id = s.original_recording_id
    AND o.request_id = n.replay_of
),
due AS (
  SELECT
    *,
    CASE
      WHEN reshaped_by IS NOT NULL THEN t_scheduled_ns
      ELSE t_zero_ns
        + CAST(round((t_came_ns - t_original_zero_ns) / speed) AS BIGINT)
    END AS t_due_ns
  FROM pair
),
placed AS (
  SELECT
    *,
    CAST(row_number() OVER in_order AS BIGINT) AS place
  FROM due
  WINDOW in_order AS (
    PARTITION BY recording_id
    ORDER BY t_due_ns, t_came_ns, original_request_id, request_id
  )
),
-- Requests that are due at one instant have no order to keep.
earlier AS (
  SELECT
    recording_id,
    t_due_ns,
    max(max(t_sent_ns)) OVER (
      PARTITION BY recording_id
      ORDER BY t_due_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS t_sent_ns
  FROM placed
  GROUP BY recording_id, t_due_ns
)
SELECT
  p.recording_id,
  p.request_id,
  p.original_recording_id,
  p.original_request_id,
  p.place,
  p.t_due_ns,
  p.t_sent_ns,
  (p.t_sent_ns - p.t_due_ns) / 1e6 AS schedule_error_ms,
  (
    p.t_sent_ns - p.t_due_ns
    - lag(p.t_sent_ns - p.t_due_ns)
        OVER (PARTITION BY p.recording_id ORDER BY p.place)
  ) / 1e6 AS inter_arrival_error_ms,
  coalesce(p.t_sent_ns < e.t_sent_ns, FALSE) AS overtook,
  p.t_due_ns
    + CAST(round((p.t_original_from_ns - p.t_came_ns) / p.speed) AS BIGINT)
    AS t_original_from_ns,
  p.t_due_ns
    + CAST(round((p.t_original_to_ns - p.t_came_ns) / p.speed) AS BIGINT)
    AS t_original_to_ns,
  p.t_end_ns,
  p.cancel_error_ms,
  p.body_same,
  p.original_outcome,
  p.outcome,
  p.original_input_tokens,
  p.input_tokens,
  p.original_output_tokens,
  p.output_tokens
FROM placed AS p
LEFT JOIN earlier AS e
  ON e.recording_id = p.recording_id
  AND e.t_due_ns = p.t_due_ns;
