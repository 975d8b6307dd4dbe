-- replay_length: one row per replay with an original and direction: lengths against the original's.
-- Reads: replay_original, replay_request.
--   recording_id     TEXT    -         -      Key. The replay.
--   direction        TEXT    -         -      Key. input (as the server counted the prompt) or output.
--   compared         BIGINT  requests  -      Requests of which both lengths are known; for output both have to be ok or imported.
--   differ           BIGINT  requests  lower  Those whose lengths differ.
--   original_tokens  BIGINT  tokens    -      Sum over those compared, by the original: what the trace says where it was one.
--   tokens           BIGINT  tokens    -      Sum over those compared, as measured.
--   error_mean       DOUBLE  tokens    -      Mean of measured minus original.
--   error_p99        DOUBLE  tokens    lower  99th percentile of the distance.
--   error_max        BIGINT  tokens    lower  Largest distance.
CREATE VIEW replay_length AS
WITH
length AS (
  SELECT
    recording_id,
    'input' AS direction,
    original_input_tokens AS original_tokens,
    input_tokens AS tokens
  FROM replay_request
  UNION ALL
  -- An answer that broke off is short for another reason.
  SELECT
    recording_id,
    'output' AS direction,
    original_output_tokens AS original_tokens,
    output_tokens AS tokens
  FROM replay_request
  WHERE outcome = 'ok'
    AND original_outcome IN ('ok', 'imported')
),
stat AS (
  SELECT
    recording_id,
    direction,
    count(*) AS compared,
    count(*) FILTER (WHERE tokens <> original_tokens) AS differ,
    sum(original_tokens) AS original_tokens,
    sum(tokens) AS tokens,
    avg(tokens - original_tokens) AS error_mean,
    percentile_cont(0.99) WITHIN GROUP (
      ORDER BY CAST(abs(tokens - original_tokens) AS DOUBLE)
    ) AS error_p99,
    max(abs(tokens - original_tokens)) AS error_max
  FROM length
  WHERE tokens IS NOT NULL
    AND original_tokens IS NOT NULL
  GROUP BY recording_id, direction
),
wanted AS (
  SELECT column1 AS direction FROM (VALUES ('input'), ('output')) AS v
)
SELECT
  g.recording_id,
  w.direction,
  coalesce(s.compared, 0) AS compared,
  coalesce(s.differ, 0) AS differ,
  s.original_tokens,
  s.tokens,
  s.error_mean,
  s.error_p99,
  s.error_max
FROM replay_original AS g
CROSS JOIN wanted AS w
LEFT JOIN stat AS s
  ON s.recording_id = g.recording_id
  AND s.direction = w.direction;
