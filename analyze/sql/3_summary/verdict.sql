-- verdict: one row per recording: whether its numbers are the server's or this client's.
-- Reads: recordings, params, client_load, schedule_lag.
--   recording_id  TEXT  -  -  Key.
--   verdict       TEXT  -  -  ok, client saturated, or invalid.
--   reason        TEXT  -  -  The facts behind it.
CREATE VIEW verdict AS
-- 10 ms is half the gap between two tokens at 50 tokens/s: beyond it lateness of
-- the client shows in ITL and TTFT alike. 100 ms is as much as a whole good
-- TTFT: such numbers describe the client. Dropped events and lost files mean
-- that rows are missing, so that no count and no percentile can be trusted.
-- Where requests wait for slots their lag is the one that the client counted
-- from the free slot on.
-- A thread that wants its core more than nine tenths of the time, or a process
-- that has as much of all its cores, sends the next request when it can rather
-- than when the last one has ended: a closed loop then measures the client's
-- throughput, however exact its stamps. An open loop is judged by its lags alone:
-- it polls for deadlines, which is CPU and not load. A tenth of the time waiting
-- for the writer (mostly for its disk) is the same as a tenth fewer workers.
WITH
fact AS (
  SELECT
    g.recording_id,
    g.dropped_events,
    g.missing_segments,
    g.damaged_segments,
    g.lost_rows,
    g.state <> 'sealed' AND NOT g.live AND g.without_log AS has_no_log,
    l.dispatched,
    l.chunks_read,
    coalesce(l.dispatch_lag_ms_p99, l.slot_lag_ms_p99) AS dispatch_ms,
    l.read_lag_ms_p99 AS read_ms,
    c.busiest_thread,
    CASE WHEN NOT g.open_loop THEN c.busiest_wanted_ratio END AS wanted_ratio,
    c.busiest_cpu_ratio AS cpu_ratio,
    CASE WHEN NOT g.open_loop THEN c.process_cpu_ratio END AS process_ratio,
    c.queue_wait_ratio AS wait_ratio,
    (SELECT max(value) FROM params WHERE name = 'saturated_lag_ms')
      AS saturated_ms,
    (SELECT max(value) FROM params WHERE name = 'invalid_lag_ms') AS invalid_ms,
    (SELECT max(value) FROM params WHERE name = 'saturated_cpu_ratio')
      AS most_cpu,
    (SELECT max(value) FROM params WHERE name = 'saturated_wait_ratio')
      AS most_wait
  FROM recordings AS g
  LEFT JOIN schedule_lag AS l ON l.recording_id = g.recording_id
  LEFT JOIN client_load AS c ON c.recording_id = g.recording_id
),
worded AS (
  SELECT
    *,
    CASE
      WHEN wait_ratio > most_wait THEN
        concat(
          'workers waited for the recording''s writer ',
          round(wait_ratio * 100), '% of the time, above ',
          round(most_wait * 100), '%'
        )
      WHEN wanted_ratio > most_cpu THEN
        concat(
          'thread ', busiest_thread, ' wanted a core ',
          round(wanted_ratio * 100), '% of the time and had one ',
          round(cpu_ratio * 100), '%, above ', round(most_cpu * 100), '%'
        )
      WHEN process_ratio > most_cpu THEN
        concat(
          'this process used ', round(process_ratio * 100),
          '% of the cores it may use, above ', round(most_cpu * 100), '%'
        )
    END AS cause
  FROM fact
)
SELECT
  recording_id,
  CASE
    WHEN dropped_events > 0
      OR missing_segments > 0
      OR damaged_segments > 0
      OR lost_rows > 0
      OR has_no_log
      OR read_ms > invalid_ms
      OR dispatch_ms > invalid_ms THEN 'invalid'
    WHEN read_ms > saturated_ms
      OR dispatch_ms > saturated_ms
      OR cause IS NOT NULL THEN 'client saturated'
    ELSE 'ok'
  END AS verdict,
  CASE
    WHEN dropped_events > 0 THEN
      concat(dropped_events, ' events were dropped: rows are missing')
    WHEN missing_segments > 0 THEN
      concat(missing_segments, ' sealed files are gone: rows are missing')
    WHEN damaged_segments > 0 THEN
      concat(damaged_segments, ' sealed files have changed since: analyze check names them')
    WHEN lost_rows > 0 THEN
      concat(lost_rows, ' rows were recorded and are lost: rows are missing')
    WHEN has_no_log THEN
      'a recorder without a log died: rows are missing, nobody knows how many'
    WHEN read_ms > saturated_ms
      AND (dispatch_ms IS NULL OR read_ms >= dispatch_ms) THEN
      concat(
        'chunks waited for this client: read lag p99 ',
        round(read_ms, 1), ' ms is above ',
        CASE WHEN read_ms > invalid_ms THEN invalid_ms ELSE saturated_ms END,
        ' ms', coalesce('; ' || cause, '')
      )
    WHEN dispatch_ms > saturated_ms THEN
      concat(
        'requests left late: dispatch lag p99 ',
        round(dispatch_ms, 1), ' ms is above ',
        CASE WHEN dispatch_ms > invalid_ms THEN invalid_ms ELSE saturated_ms END,
        ' ms', coalesce('; ' || cause, '')
      )
    WHEN cause IS NOT NULL THEN cause
    WHEN chunks_read = 0 AND dispatched = 0 THEN
      'nothing to judge: no chunks and no schedule'
    ELSE concat(
      'read lag p99 ',
      coalesce(CAST(round(read_ms, 3) AS VARCHAR) || ' ms', 'unknown'),
      ', dispatch lag p99 ',
      coalesce(CAST(round(dispatch_ms, 3) AS VARCHAR) || ' ms', 'unknown')
    )
  END AS reason
FROM worded;
