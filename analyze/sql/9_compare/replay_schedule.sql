-- replay_schedule: one row per replay with an original: how faithfully requests left, and which are missing.
-- Reads: replay_original, replay_request, requests.
--   recording_id                TEXT    -         -       Key. The replay.
--   original_recording_id       TEXT    -         -       What is replayed.
--   speed                       DOUBLE  ratio     -       By which the replay divided all offsets.
--   reshaped_by                 TEXT    -         -       Flags by which it moved them against each other: its errors are then against its own plan. NULL where none did.
--   replayed                    BIGINT  requests  -       Requests of the replay that have an original.
--   missing                     BIGINT  requests  -       Originals without a replay; --limit and --where leave some out.
--   extra                       BIGINT  requests  lower   Requests of the replay without an original, but for the probe.
--   schedule_error_ms_p50       DOUBLE  ms        lower   Median distance between when requests left and when they were due.
--   schedule_error_ms_p99       DOUBLE  ms        lower   99th percentile.
--   schedule_error_ms_max       DOUBLE  ms        lower   Worst.
--   inter_arrival_error_ms_p50  DOUBLE  ms        lower   Median distance between the gap to the request before as sent and as due.
--   inter_arrival_error_ms_p99  DOUBLE  ms        lower   99th percentile.
--   inter_arrival_error_ms_max  DOUBLE  ms        lower   Worst.
--   drift_ms                    DOUBLE  ms        lower   Mean schedule error of the last tenth of the arrivals minus that of the first. NULL below 20.
--   overtook                    BIGINT  requests  lower   Those that left before one that was due earlier.
--   cancelled_again             BIGINT  requests  -       Requests that were given up, as their originals were.
--   cancel_error_ms_p50         DOUBLE  ms        lower   Median distance between how long after sending they and their originals were given up.
--   cancel_error_ms_p99         DOUBLE  ms        lower   99th percentile.
--   cancel_error_ms_max         DOUBLE  ms        lower   Worst.
--   bodies_compared             BIGINT  requests  -       Those of which both bodies were kept.
--   bodies_differ               BIGINT  requests  lower   Those whose bodies differ, by hash.
--   outcomes_differ             BIGINT  requests  lower   Those that ended otherwise; an imported original has no outcome to differ from.
CREATE VIEW replay_schedule AS
-- schedule_fidelity asks how an open loop kept to its own schedule; this one asks
-- the original.
WITH
stat AS (
  SELECT
    recording_id,
    count(*) AS replayed,
    count(DISTINCT original_request_id) AS originals,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(schedule_error_ms))
      AS error_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY abs(schedule_error_ms))
      AS error_p99,
    max(abs(schedule_error_ms)) AS error_max,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(inter_arrival_error_ms))
      AS gap_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY abs(inter_arrival_error_ms))
      AS gap_p99,
    max(abs(inter_arrival_error_ms)) AS gap_max,
    count(*) FILTER (WHERE overtook) AS overtook,
    count(cancel_error_ms) AS cancelled_again,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(cancel_error_ms))
      AS cancel_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY abs(cancel_error_ms))
      AS cancel_p99,
    max(abs(cancel_error_ms)) AS cancel_max,
    count(body_same) AS bodies_compared,
    count(*) FILTER (WHERE NOT body_same) AS bodies_differ,
    count(*) FILTER (
      WHERE original_outcome <> 'imported' AND outcome <> original_outcome
    ) AS outcomes_differ
  FROM replay_request
  GROUP BY recording_id
),
ends AS (
  SELECT
    r.recording_id,
    avg(r.schedule_error_ms) FILTER (WHERE r.place > 0.9 * s.replayed) AS last_ms,
    avg(r.schedule_error_ms) FILTER (WHERE r.place <= 0.1 * s.replayed) AS first_ms
  FROM replay_request AS r
  JOIN stat AS s ON s.recording_id = r.recording_id
  WHERE s.replayed >= 20
  GROUP BY r.recording_id
),
total AS (
  SELECT
    recording_id,
    count(*) FILTER (
      WHERE coalesce(t_received_ns, t_scheduled_ns, t_sent_ns) IS NOT NULL
    ) AS came,
    count(*) AS requests
  FROM requests
  WHERE attempt = 0
    AND phase <> 'probe'
  GROUP BY recording_id
)
SELECT
  g.recording_id,
  g.original_recording_id,
  g.speed,
  g.reshaped_by,
  coalesce(s.replayed, 0) AS replayed,
  coalesce(o.came, 0) - coalesce(s.originals, 0) AS missing,
  coalesce(n.requests, 0) - coalesce(s.replayed, 0) AS extra,
  s.error_p50 AS schedule_error_ms_p50,
  s.error_p99 AS schedule_error_ms_p99,
  s.error_max AS schedule_error_ms_max,
  s.gap_p50 AS inter_arrival_error_ms_p50,
  s.gap_p99 AS inter_arrival_error_ms_p99,
  s.gap_max AS inter_arrival_error_ms_max,
  e.last_ms - e.first_ms AS drift_ms,
  coalesce(s.overtook, 0) AS overtook,
  coalesce(s.cancelled_again, 0) AS cancelled_again,
  s.cancel_p50 AS cancel_error_ms_p50,
  s.cancel_p99 AS cancel_error_ms_p99,
  s.cancel_max AS cancel_error_ms_max,
  coalesce(s.bodies_compared, 0) AS bodies_compared,
  coalesce(s.bodies_differ, 0) AS bodies_differ,
  coalesce(s.outcomes_differ, 0) AS outcomes_differ
FROM replay_original AS g
LEFT JOIN stat AS s ON s.recording_id = g.recording_id
LEFT JOIN ends AS e ON e.recording_id = g.recording_id
LEFT JOIN total AS o ON o.recording_id = g.original_recording_id
LEFT JOIN total AS n ON n.recording_id = g.recording_id;
