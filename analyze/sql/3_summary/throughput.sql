-- throughput: one row per recording: what measured requests came to over the window.
-- Reads: recordings, outcome, window, request_latency.
--   recording_id             TEXT    -           -       Key.
--   duration_s               DOUBLE  s           -       Length of the window.
--   requests                 BIGINT  requests    -       Measured requests, finished or not.
--   succeeded                BIGINT  requests    higher  Outcome ok.
--   failed                   BIGINT  requests    lower   Finished with any other outcome.
--   unfinished               BIGINT  requests    lower   In flight when the recorder stopped.
--   success_rate             DOUBLE  ratio       higher  Succeeded over requests. NULL without requests.
--   request_throughput       DOUBLE  requests/s  higher  Succeeded requests per second.
--   input_token_throughput   DOUBLE  tokens/s    higher  Input tokens of succeeded requests per second.
--   output_token_throughput  DOUBLE  tokens/s    higher  Output tokens of succeeded requests per second.
--   total_token_throughput   DOUBLE  tokens/s    higher  Both.
--   uncounted                BIGINT  requests    lower   Succeeded requests whose output tokens are not known, missing above.
CREATE VIEW throughput AS
WITH
counted AS (
  SELECT
    recording_id,
    count(*) AS requests,
    count(*) FILTER (WHERE outcome = 'ok') AS succeeded,
    count(*) FILTER (WHERE outcome = 'unfinished') AS unfinished
  FROM outcome
  WHERE measured
  GROUP BY recording_id
),
tokens AS (
  SELECT
    recording_id,
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    count(*) FILTER (WHERE output_tokens IS NULL) AS uncounted
  FROM request_latency
  WHERE outcome = 'ok'
  GROUP BY recording_id
)
SELECT
  g.recording_id,
  w.duration_s,
  coalesce(c.requests, 0) AS requests,
  coalesce(c.succeeded, 0) AS succeeded,
  coalesce(c.requests - c.succeeded - c.unfinished, 0) AS failed,
  coalesce(c.unfinished, 0) AS unfinished,
  CAST(c.succeeded AS DOUBLE) / nullif(c.requests, 0) AS success_rate,
  c.succeeded / nullif(w.duration_s, 0) AS request_throughput,
  t.input_tokens / nullif(w.duration_s, 0) AS input_token_throughput,
  t.output_tokens / nullif(w.duration_s, 0) AS output_token_throughput,
  (t.input_tokens + t.output_tokens) / nullif(w.duration_s, 0)
    AS total_token_throughput,
  coalesce(t.uncounted, 0) AS uncounted
FROM recordings AS g
LEFT JOIN "window" AS w ON w.recording_id = g.recording_id
LEFT JOIN counted AS c ON c.recording_id = g.recording_id
LEFT JOIN tokens AS t ON t.recording_id = g.recording_id;
