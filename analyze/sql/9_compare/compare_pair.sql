-- compare_pair: one row per request of the new side that has a counterpart in the base, where each side is one recording.
-- Reads: sides, recordings, requests, replay_request.
--   recording_id       TEXT    -  -  Key. Of the new side.
--   request_id         BIGINT  -  -  Key.
--   base_recording_id  TEXT    -  -  Of the base.
--   base_request_id    BIGINT  -  -  Key. The counterpart.
--   pairing            TEXT    -  -  Why: replay (one side replays the other), original (both replay the same), body (the same workload, and the same body at the same place of it).
CREATE VIEW compare_pair AS
WITH
origin AS (
  SELECT
    s.side,
    s.recording_id,
    g.workload_hash,
    coalesce(
      g.replay_of_recording_id,
      CASE WHEN g.speed IS NOT NULL THEN g.workload_hash END
    ) AS origin
  FROM sides AS s
  JOIN recordings AS g ON g.recording_id = s.recording_id
),
-- What the two have in common, where neither replays the other.
two AS (
  SELECT
    b.recording_id AS base_id,
    n.recording_id AS new_id,
    CASE
      WHEN b.origin = n.origin THEN 'original'
      WHEN b.origin IS NULL
        AND n.origin IS NULL
        AND b.workload_hash = n.workload_hash THEN 'body'
    END AS alike
  FROM origin AS b
  CROSS JOIN origin AS n
  WHERE b.side = 'base'
    AND n.side = 'new'
    AND (SELECT count(*) FROM sides) = 2
),
sent AS (
  SELECT
    recording_id,
    request_id,
    replay_of,
    body_hash,
    row_number() OVER (PARTITION BY recording_id ORDER BY request_id) AS place,
    row_number() OVER (PARTITION BY recording_id, replay_of ORDER BY request_id) AS nth
  FROM requests
  WHERE attempt = 0
    AND phase <> 'probe'
),
-- Equal in both of a pair. Copies and rounds: the first of one with the first of
-- the other.
known AS (
  SELECT
    s.recording_id,
    s.request_id,
    CASE t.alike WHEN 'original' THEN s.replay_of ELSE s.place END AS number,
    CASE t.alike
      WHEN 'original' THEN CAST(s.nth AS VARCHAR)
      ELSE s.body_hash
    END AS mark
  FROM two AS t
  JOIN sent AS s ON s.recording_id IN (t.base_id, t.new_id)
  WHERE t.alike IS NOT NULL
),
candidate AS (
  SELECT
    'replay' AS pairing,
    CASE r.recording_id
      WHEN t.new_id THEN r.original_request_id
      ELSE r.request_id
    END AS base_request_id,
    CASE r.recording_id
      WHEN t.new_id THEN r.request_id
      ELSE r.original_request_id
    END AS request_id
  FROM two AS t
  JOIN replay_request AS r
    ON r.recording_id IN (t.base_id, t.new_id)
    AND r.original_recording_id IN (t.base_id, t.new_id)
  UNION ALL
  SELECT t.alike AS pairing, b.request_id AS base_request_id, n.request_id
  FROM two AS t
  JOIN known AS b ON b.recording_id = t.base_id
  JOIN known AS n
    ON n.recording_id = t.new_id
    AND n.number = b.number
    AND n.mark = b.mark
),
counted AS (
  SELECT pairing, count(*) AS n
  FROM candidate
  GROUP BY pairing
),
-- Where less than half of the smaller side has a counterpart, the pairs would
-- speak of a few requests only. By name, the surest reason comes last.
enough AS (
  SELECT max(c.pairing) AS pairing
  FROM counted AS c
  WHERE 2 * c.n >= (
    SELECT min(n)
    FROM (
      SELECT s.recording_id, count(*) AS n
      FROM sent AS s
      JOIN sides AS d ON d.recording_id = s.recording_id
      GROUP BY s.recording_id
    ) AS size
  )
)
SELECT
  t.new_id AS recording_id,
  c.request_id,
  t.base_id AS base_recording_id,
  c.base_request_id,
  c.pairing
FROM candidate AS c
JOIN enough AS e ON e.pairing = c.pairing
CROSS JOIN two AS t;
