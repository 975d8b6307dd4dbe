-- unknown_word: phase, kind, outcome and timestamp_source hold words of the format.
-- Reads: requests, chunks, responses.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('phase is ', phase) AS problem
FROM requests
WHERE phase NOT IN ('probe', 'warmup', 'measure')
UNION ALL
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('chunk ', chunk_index, ' is of kind ', kind) AS problem
FROM chunks
WHERE kind NOT IN (
  'error', 'content', 'tool', 'reasoning', 'usage', 'role', 'done', 'comment', 'other'
)
UNION ALL
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('outcome is ', outcome, ', timestamp_source ', timestamp_source) AS problem
FROM responses
WHERE outcome NOT IN (
    'ok', 'truncated', 'malformed', 'http_error', 'stream_error', 'timeout',
    'connection_error', 'cancelled', 'imported'
  )
  OR timestamp_source NOT IN ('kernel', 'process');
