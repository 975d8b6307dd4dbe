-- schedule_fidelity: one row per recording: how faithfully an open loop kept to its schedule.
-- Reads: recordings, requests, marks.
--   recording_id             TEXT    -         -      Key.
--   scheduled                BIGINT  requests  -      First attempts of the measured phase of an open loop without a cap.
--   late_dropped             BIGINT  requests  lower  Requests that --max-lateness kept from being sent: they are in no other number.
--   lag_ms_p50               DOUBLE  ms        lower  Median of sent minus scheduled.
--   lag_ms_p99               DOUBLE  ms        lower  99th percentile.
--   lag_ms_max               DOUBLE  ms        lower  Worst.
--   offset_error_ms_p50      DOUBLE  ms        lower  Median distance between the offset from the first request as sent and as scheduled.
--   offset_error_ms_p99      DOUBLE  ms        lower  99th percentile.
--   offset_error_ms_max      DOUBLE  ms        lower  Worst.
--   inter_arrival_error_ms_p50  DOUBLE  ms     lower  Median distance between the gap to the request before as sent and as scheduled.
--   inter_arrival_error_ms_p99  DOUBLE  ms     lower  99th percentile.
--   inter_arrival_error_ms_max  DOUBLE  ms     lower  Worst.
--   dispatch_gap_error_ms_p50   DOUBLE  ms     lower  As inter_arrival_error_ms_p50, of the instants at which a worker began to send: what is left without the writing of long bodies.
--   dispatch_gap_error_ms_p99   DOUBLE  ms     lower  99th percentile.
--   dispatch_gap_error_ms_max   DOUBLE  ms     lower  Worst.
--   sending_ms_p50           DOUBLE  ms        lower  Median from there until the last byte was written: a connection where there was none, and the body.
--   sending_ms_p99           DOUBLE  ms        lower  99th percentile.
--   sending_ms_max           DOUBLE  ms        lower  Worst.
CREATE VIEW schedule_fidelity AS
-- A replay is scheduled at its original's offsets over the speed, so against the
-- schedule is against the original. A constant lag shifts no offset: that is why
-- the lag stands beside the offset error.
WITH
sent AS (
  SELECT
    r.recording_id,
    r.request_id,
    r.t_scheduled_ns,
    (r.t_sent_ns - r.t_scheduled_ns) / 1e6 AS lag_ms,
    (r.t_dispatched_ns - r.t_scheduled_ns) / 1e6 AS dispatch_lag_ms
  FROM requests AS r
  JOIN recordings AS g ON g.recording_id = r.recording_id
  WHERE g.open_loop
    AND NOT g.waits_for_slots
    AND r.attempt = 0
    AND r.phase = 'measure'
    AND r.t_scheduled_ns IS NOT NULL
    AND r.t_sent_ns IS NOT NULL
),
error AS (
  SELECT
    recording_id,
    lag_ms,
    abs(lag_ms - first_value(lag_ms) OVER in_order) AS offset_error_ms,
    abs(lag_ms - lag(lag_ms) OVER in_order) AS inter_arrival_error_ms,
    abs(dispatch_lag_ms - lag(dispatch_lag_ms) OVER in_order)
      AS dispatch_gap_error_ms,
    lag_ms - dispatch_lag_ms AS sending_ms
  FROM sent
  WINDOW in_order AS (
    PARTITION BY recording_id
    ORDER BY t_scheduled_ns, request_id
  )
),
stat AS (
  SELECT
    recording_id,
    count(*) AS n,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_ms) AS lag_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY lag_ms) AS lag_p99,
    max(lag_ms) AS lag_max,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY offset_error_ms) AS offset_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY offset_error_ms) AS offset_p99,
    max(offset_error_ms) AS offset_max,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY inter_arrival_error_ms)
      AS gap_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY inter_arrival_error_ms)
      AS gap_p99,
    max(inter_arrival_error_ms) AS gap_max,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY dispatch_gap_error_ms)
      AS dispatch_gap_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY dispatch_gap_error_ms)
      AS dispatch_gap_p99,
    max(dispatch_gap_error_ms) AS dispatch_gap_max,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY sending_ms) AS sending_p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY sending_ms) AS sending_p99,
    max(sending_ms) AS sending_max
  FROM error
  GROUP BY recording_id
),
late AS (
  SELECT recording_id, count(*) AS n
  FROM marks
  WHERE name = 'late_dropped'
  GROUP BY recording_id
)
SELECT
  g.recording_id,
  coalesce(s.n, 0) AS scheduled,
  coalesce(d.n, 0) AS late_dropped,
  s.lag_p50 AS lag_ms_p50,
  s.lag_p99 AS lag_ms_p99,
  s.lag_max AS lag_ms_max,
  s.offset_p50 AS offset_error_ms_p50,
  s.offset_p99 AS offset_error_ms_p99,
  s.offset_max AS offset_error_ms_max,
  s.gap_p50 AS inter_arrival_error_ms_p50,
  s.gap_p99 AS inter_arrival_error_ms_p99,
  s.gap_max AS inter_arrival_error_ms_max,
  s.dispatch_gap_p50 AS dispatch_gap_error_ms_p50,
  s.dispatch_gap_p99 AS dispatch_gap_error_ms_p99,
  s.dispatch_gap_max AS dispatch_gap_error_ms_max,
  s.sending_p50 AS sending_ms_p50,
  s.sending_p99 AS sending_ms_p99,
  s.sending_max AS sending_ms_max
FROM recordings AS g
LEFT JOIN stat AS s ON s.recording_id = g.recording_id
LEFT JOIN late AS d ON d.recording_id = g.recording_id;
