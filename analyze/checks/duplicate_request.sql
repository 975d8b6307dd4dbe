-- duplicate_request: request_id and attempt are the key of requests.
-- Reads: requests.
SELECT
  recording_id,
  concat('request ', request_id, ' attempt ', attempt) AS subject,
  concat('appears ', count(*), ' times in requests') AS problem
FROM requests
GROUP BY recording_id, request_id, attempt
HAVING count(*) > 1;
