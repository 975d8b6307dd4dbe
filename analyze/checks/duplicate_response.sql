-- duplicate_response: an attempt ends once.
-- Reads: responses.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('appears ', count(*), ' times in responses') AS problem
FROM responses
GROUP BY recording_id, request_id, attempt
HAVING count(*) > 1;
