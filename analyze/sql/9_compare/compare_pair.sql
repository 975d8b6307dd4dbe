-- compare_pair: one row per request of the new side that has a counterpart in the base, where each side is one recording.
-- Reads: sides, recordings, requests, replay_request.
--   recording_id       TEXT    -  -  Key. Of the new side.
--   request_id         BIGINT  -  -  Key.
--   base_recording_id  TEXT    -  -  Of the base.
--   base_request_id    BIGINT  -  -  Key. The counterpart.
--   pairing            TEXT    -  -  Why: replay (one side replays the other), original (both replay the same), body (the same workload, and the same body at the same place of it).
CREATE VIEW compare_pair AS
WITH
two AS (
  SELECT
    b.recording_id AS base_id,
    n.recording_id AS new_id,
    b.origin AS base_origin,
    n.origin AS new_origin,
    b.workload_hash AS base_hash,
    n.workload_hash AS new_hash
  FROM (
    SELECT
      s.recording_id,
      g.workload_hash,
      coalesce(
        g.replay_of_recording_id,
        CASE WHEN g.speed IS NOT NULL THEN g.workload_hash END
      ) AS origin
    FROM sides AS s
    JOIN recordings AS g ON g.recording_id = s.recording_id
    WHERE s.side = 'base'
  ) AS b
  CROSS JOIN (
    SELECT
      s.recording_id,
      g.workload_hash,
      coalesce(
        g.replay_of_recording_id,
        CASE WHEN g.speed IS NOT NULL THEN g.workload_hash END
      ) AS origin
    FROM sides AS s
    JOIN recordings AS g ON g.recording_id = s.recording_id
    WHERE s.side = 'new'
  ) AS n
  WHERE (SELECT count(*) FROM sides) = 2
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
candidate AS (
  SELECT
    t.new_id,
    r.request_id,
    t.base_id,
    r.original_request_id AS base_request_id,
    'replay' AS pairing
  FROM two AS t
  JOIN replay_request AS r
    ON r.recording_id = t.new_id
    AND r.original_recording_id = t.base_id
  UNION ALL
  SELECT
    t.new_id,
    r.original_request_id AS request_id,
    t.base_id,
    r.request_id AS base_request_id,
    'replay' AS pairing
  FROM two AS t
  JOIN replay_request AS r
    ON r.recording_id = t.base_id
    AND r.original_recording_id = t.new_id
  UNION ALL
  SELECT
    t.new_id,
    n.request_id,
    t.base_id,
    b.request_id AS base_request_id,
    'original' AS pairing
  FROM two AS t
  JOIN sent AS n ON n.recording_id = t.new_id
  JOIN sent AS b
    ON b.recording_id = t.base_id
    AND b.replay_of = n.replay_of
    -- Copies and rounds: the first of one with the first of the other.
    AND b.nth = n.nth
  WHERE t.base_origin = t.new_origin
  UNION ALL
  SELECT
    t.new_id,
    n.request_id,
    t.base_id,
    b.request_id AS base_request_id,
    'body' AS pairing
  FROM two AS t
  JOIN sent AS n ON n.recording_id = t.new_id
  JOIN sent AS b
    ON b.recording_id = t.base_id
    AND b.place = n.place
    AND b.body_hash = n.body_hash
  WHERE t.base_hash = t.new_hash
    AND t.base_origin IS NULL
    AND t.new_origin IS NULL
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
  c.new_id AS recording_id,
  c.request_id,
  c.base_id AS base_recording_id,
  c.base_request_id,
  c.pairing
FROM candidate AS c
JOIN enough AS e ON e.pairing = c.pairing;
