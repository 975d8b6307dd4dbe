-- steady_state: one row per recording: the part of the window in which the load was at its plateau, and the rates within it.
-- Reads: recordings, window, flight_level, request_latency.
--   recording_id             TEXT    -           -       Key.
--   plateau                  BIGINT  requests    -       Attempts in flight from which on the load counts as steady: 95 % of the most there were.
--   t_from_ns                BIGINT  ns          -       First instant with as many in flight. NULL when nothing was sent.
--   t_until_ns               BIGINT  ns          -       Last instant with as many: from then on the load only falls.
--   duration_s               DOUBLE  s           -       Between the two.
--   window_share             DOUBLE  ratio       -       Of the whole window.
--   requests                 BIGINT  requests    -       Succeeded requests that ended in it.
--   request_throughput       DOUBLE  requests/s  higher  Those per second.
--   output_token_throughput  DOUBLE  tokens/s    higher  Their output tokens per second.
--   ttft_ms_p50              DOUBLE  ms          lower   Median TTFT of the succeeded requests that were sent in it.
--   ttft_ms_p99              DOUBLE  ms          lower   99th percentile.
--   tpot_ms_p50              DOUBLE  ms          lower   Median TPOT of the same.
--   tpot_ms_p99              DOUBLE  ms          lower   99th percentile.
CREATE VIEW steady_state AS
-- A run begins with fewer requests in flight than it means to have, and ends with
-- the last ones alone: both make a server look faster than under its load, and
-- rates look smaller. The rule is that of SGLang's Rust client: 0.95 of the
-- highest concurrency, from the first time to the last.
WITH
ranked AS (
  SELECT
    recording_id,
    t_ns,
    t_next_ns,
    in_flight,
    max(in_flight) OVER (PARTITION BY recording_id) AS most
  FROM flight_level
),
plateau AS (
  SELECT
    recording_id,
    CAST(ceil(0.95 * min(most)) AS BIGINT) AS plateau,
    min(t_ns) AS t_from_ns,
    max(t_next_ns) AS t_until_ns
  FROM ranked
  WHERE in_flight >= 0.95 * most
  GROUP BY recording_id
),
placed AS (
  SELECT
    r.recording_id,
    r.output_tokens,
    r.ttft_ms,
    r.tpot_ms,
    r.t_end_ns BETWEEN p.t_from_ns AND p.t_until_ns AS ended_in_it,
    r.t_sent_ns BETWEEN p.t_from_ns AND p.t_until_ns AS sent_in_it
  FROM request_latency AS r
  JOIN plateau AS p ON p.recording_id = r.recording_id
  WHERE r.outcome = 'ok'
),
stat AS (
  SELECT
    recording_id,
    count(*) FILTER (WHERE ended_in_it) AS requests,
    sum(output_tokens) FILTER (WHERE ended_in_it) AS output_tokens,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY ttft_ms)
      FILTER (WHERE sent_in_it) AS ttft_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY ttft_ms)
      FILTER (WHERE sent_in_it) AS ttft_p99,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY tpot_ms)
      FILTER (WHERE sent_in_it) AS tpot_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY tpot_ms)
      FILTER (WHERE sent_in_it) AS tpot_p99
  FROM placed
  GROUP BY recording_id
),
span AS (
  SELECT
    p.recording_id,
    p.plateau,
    p.t_from_ns,
    p.t_until_ns,
    (p.t_until_ns - p.t_from_ns) / 1e9 AS duration_s
  FROM plateau AS p
)
SELECT
  g.recording_id,
  p.plateau,
  p.t_from_ns,
  p.t_until_ns,
  p.duration_s,
  p.duration_s / nullif(w.duration_s, 0) AS window_share,
  coalesce(s.requests, 0) AS requests,
  s.requests / nullif(p.duration_s, 0) AS request_throughput,
  s.output_tokens / nullif(p.duration_s, 0) AS output_token_throughput,
  s.ttft_p50 AS ttft_ms_p50,
  s.ttft_p99 AS ttft_ms_p99,
  s.tpot_p50 AS tpot_ms_p50,
  s.tpot_p99 AS tpot_ms_p99
FROM recordings AS g
LEFT JOIN "window" AS w ON w.recording_id = g.recording_id
LEFT JOIN span AS p ON p.recording_id = g.recording_id
LEFT JOIN stat AS s ON s.recording_id = g.recording_id;
