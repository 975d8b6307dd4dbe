-- prefix_reuse: one row per recording: how much of its prompts a prefix cache could have known, and did.
-- Reads: recordings, requests, responses.
--   recording_id     TEXT    -       -       Key.
--   blocks           BIGINT  blocks  -       Prefix blocks of all requests but the probe. NULL where none were recorded.
--   ideal_hits       BIGINT  blocks  higher  Those that an earlier request had: hits of a cache without end.
--   ideal_hit_ratio  DOUBLE  ratio   higher  Of blocks.
--   input_tokens     BIGINT  tokens  -       Of the requests whose usage says how many were cached. NULL where none does.
--   cached_tokens    BIGINT  tokens  higher  What usage says came from the cache.
--   cached_ratio     DOUBLE  ratio   higher  Of input tokens.
CREATE VIEW prefix_reuse AS
WITH
run AS (
  SELECT recording_id, request_id, unnest(block_runs) AS run
  FROM requests
  WHERE attempt = 0
    AND phase <> 'probe'
    AND block_runs IS NOT NULL
),
block AS (
  SELECT
    recording_id,
    request_id,
    unnest(range(run['start'], run['start'] + CAST(run['len'] AS BIGINT))) AS block
  FROM run
),
-- A block that comes twice in its first request is no hit.
seen AS (
  SELECT
    recording_id,
    block,
    count(*) AS times,
    min(request_id) AS first_request_id
  FROM block
  GROUP BY recording_id, block
),
first_time AS (
  SELECT b.recording_id, count(*) AS misses
  FROM block AS b
  JOIN seen AS s
    ON s.recording_id = b.recording_id
    AND s.block = b.block
    AND s.first_request_id = b.request_id
  GROUP BY b.recording_id
),
blocks AS (
  SELECT recording_id, CAST(sum(times) AS BIGINT) AS blocks
  FROM seen
  GROUP BY recording_id
),
cached AS (
  SELECT
    r.recording_id,
    sum(p.input_tokens) AS input_tokens,
    sum(p.cached_tokens) AS cached_tokens
  FROM responses AS p
  JOIN requests AS r
    ON r.recording_id = p.recording_id
    AND r.request_id = p.request_id
    AND r.attempt = p.attempt
  WHERE r.phase <> 'probe'
    AND p.cached_tokens IS NOT NULL
    AND p.input_tokens IS NOT NULL
  GROUP BY r.recording_id
)
SELECT
  g.recording_id,
  b.blocks,
  b.blocks - f.misses AS ideal_hits,
  (b.blocks - f.misses) / nullif(CAST(b.blocks AS DOUBLE), 0) AS ideal_hit_ratio,
  c.input_tokens,
  c.cached_tokens,
  c.cached_tokens / nullif(CAST(c.input_tokens AS DOUBLE), 0) AS cached_ratio
FROM recordings AS g
LEFT JOIN blocks AS b ON b.recording_id = g.recording_id
LEFT JOIN first_time AS f ON f.recording_id = g.recording_id
LEFT JOIN cached AS c ON c.recording_id = g.recording_id;
