-- failures: one row per way in which measured requests did not succeed.
-- Reads: outcome.
--   recording_id      TEXT    -  -      Key.
--   outcome           TEXT    -  -      Key. Any but ok; unfinished where no response was recorded.
--   status            INT     -  -      Key. HTTP status.
--   error             TEXT    -  -      Key. What went wrong.
--   n                 BIGINT  requests  lower  How many requests.
--   first_request_id  BIGINT  -  -      The first of them, to look at.
CREATE VIEW failures AS
SELECT
  recording_id,
  outcome,
  status,
  error,
  count(*) AS n,
  min(request_id) AS first_request_id
FROM outcome
WHERE measured
  AND outcome <> 'ok'
GROUP BY recording_id, outcome, status, error;
