-- compare_request: one row per request whose latencies are compared: measured, with outcome ok; where there are pairs, on both sides.
-- Reads: sides, request_latency, compare_pair.
--   recording_id  TEXT    -  -  Key.
--   request_id    BIGINT  -  -  A request that is replayed twice is in two pairs.
--   attempt       INT     -  -  The last one.
--   side          TEXT    -  -  base or new.
--   unit          BIGINT  -  -  Key. From 0 in the order of sending; the two of a pair have the same.
CREATE VIEW compare_request AS
WITH
answered AS (
  SELECT s.side, l.recording_id, l.request_id, l.attempt, l.t_sent_ns
  FROM request_latency AS l
  JOIN sides AS s ON s.recording_id = l.recording_id
  WHERE l.outcome = 'ok'
),
pair AS (
  SELECT
    b.recording_id AS base_id,
    b.request_id AS base_request_id,
    b.attempt AS base_attempt,
    n.recording_id AS new_id,
    n.request_id AS new_request_id,
    n.attempt AS new_attempt,
    row_number() OVER (
      ORDER BY b.t_sent_ns, b.request_id, n.request_id
    ) - 1 AS unit
  FROM compare_pair AS p
  JOIN answered AS b
    ON b.recording_id = p.base_recording_id
    AND b.request_id = p.base_request_id
  JOIN answered AS n
    ON n.recording_id = p.recording_id
    AND n.request_id = p.request_id
),
single AS (
  SELECT
    a.recording_id,
    a.request_id,
    a.attempt,
    a.side,
    row_number() OVER (
      PARTITION BY a.recording_id
      ORDER BY a.t_sent_ns, a.request_id
    ) - 1 AS unit
  FROM answered AS a
  WHERE (SELECT count(*) FROM compare_pair) = 0
)
SELECT
  base_id AS recording_id,
  base_request_id AS request_id,
  base_attempt AS attempt,
  'base' AS side,
  CAST(unit AS BIGINT) AS unit
FROM pair
UNION ALL
SELECT
  new_id AS recording_id,
  new_request_id AS request_id,
  new_attempt AS attempt,
  'new' AS side,
  CAST(unit AS BIGINT) AS unit
FROM pair
UNION ALL
SELECT recording_id, request_id, attempt, side, CAST(unit AS BIGINT) AS unit
FROM single;
