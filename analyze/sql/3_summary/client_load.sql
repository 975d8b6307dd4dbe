-- client_load: one row per recording: what its client took of its machine over the window.
-- Reads: recordings, samples, window.
--   recording_id          TEXT    -      -      Key.
--   sampled_s             DOUBLE  s      -      From the last sample before the window to the first one after it. NULL without two samples.
--   busiest_thread        TEXT    -      -      Name of the thread with sockets that wanted a core most.
--   busiest_wanted_ratio  DOUBLE  ratio  lower  Share of its samples' span in which it ran or was ready to run. NULL below a second.
--   busiest_cpu_ratio     DOUBLE  ratio  lower  Share in which it ran.
--   process_cpu_ratio     DOUBLE  ratio  lower  CPU of all threads over that of the cores which it may use. NULL below a second.
--   queue_wait_ratio      DOUBLE  ratio  lower  Time that threads waited for room in the recording's queue, over all threads. NULL below a second.
CREATE VIEW client_load AS
-- A thread that had half a core because a neighbour had the other half is as
-- late as one that was busy: what it waited for a core counts. Below a second
-- the cost of starting is most of what is seen.
WITH
span AS (
  SELECT
    s.recording_id,
    coalesce(
      max(CASE WHEN s.t_ns <= w.t_first_sent_ns THEN s.t_ns END),
      min(s.t_ns)
    ) AS t_from_ns,
    coalesce(
      min(CASE WHEN s.t_ns >= w.t_last_end_ns THEN s.t_ns END),
      max(s.t_ns)
    ) AS t_to_ns
  FROM samples AS s
  JOIN "window" AS w ON w.recording_id = s.recording_id
  WHERE s.source = 'client'
    AND s.name = 'process_cpu_s_total'
    AND w.t_first_sent_ns IS NOT NULL
  GROUP BY s.recording_id
),
total AS (
  SELECT
    s.recording_id,
    s.name,
    s.labels['tid'] AS tid,
    s.labels['thread'] AS thread,
    max(s.value) - min(s.value) AS used_s,
    max(s.value) AS last_value,
    (max(s.t_ns) - min(s.t_ns)) / 1e9 AS seen_s
  FROM samples AS s
  JOIN span AS p ON p.recording_id = s.recording_id
  WHERE s.source = 'client'
    AND s.name IN (
      'cpu_s_total', 'run_delay_s_total', 'process_cpu_s_total',
      'queue_wait_s_total', 'allowed_cores'
    )
    AND s.t_ns BETWEEN p.t_from_ns AND p.t_to_ns
  GROUP BY s.recording_id, s.name, s.labels['tid'], s.labels['thread']
),
-- Threads that send and receive; the kernel cuts their names to 15 bytes.
thread AS (
  SELECT
    recording_id,
    thread,
    tid,
    sum(CASE WHEN name = 'cpu_s_total' THEN used_s END) AS cpu_s,
    sum(used_s) AS wanted_s,
    -- A worker may end before the last sample.
    CASE WHEN max(seen_s) >= 1 THEN max(seen_s) END AS seen_s
  FROM total
  WHERE thread LIKE 'tapedeck-worke%'
    OR thread LIKE 'tapedeck-proxy%'
  GROUP BY recording_id, thread, tid
),
ranked AS (
  SELECT
    recording_id,
    thread,
    cpu_s,
    wanted_s,
    seen_s,
    row_number() OVER (
      PARTITION BY recording_id
      ORDER BY wanted_s DESC, tid
    ) AS place
  FROM thread
),
process AS (
  SELECT
    recording_id,
    max(CASE WHEN name = 'process_cpu_s_total' THEN used_s END) AS cpu_s,
    max(CASE WHEN name = 'queue_wait_s_total' THEN used_s END) AS wait_s,
    max(CASE WHEN name = 'allowed_cores' THEN last_value END) AS cores
  FROM total
  GROUP BY recording_id
),
length AS (
  SELECT
    recording_id,
    CASE WHEN t_to_ns > t_from_ns THEN (t_to_ns - t_from_ns) / 1e9 END
      AS sampled_s,
    CASE WHEN t_to_ns - t_from_ns >= 1000000000 THEN (t_to_ns - t_from_ns) / 1e9
    END AS judged_s
  FROM span
)
SELECT
  g.recording_id,
  l.sampled_s,
  r.thread AS busiest_thread,
  r.wanted_s / r.seen_s AS busiest_wanted_ratio,
  r.cpu_s / r.seen_s AS busiest_cpu_ratio,
  p.cpu_s / (p.cores * l.judged_s) AS process_cpu_ratio,
  p.wait_s / l.judged_s AS queue_wait_ratio
FROM recordings AS g
LEFT JOIN length AS l ON l.recording_id = g.recording_id
LEFT JOIN process AS p ON p.recording_id = g.recording_id
LEFT JOIN ranked AS r ON r.recording_id = g.recording_id AND r.place = 1;
