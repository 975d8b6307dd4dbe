-- replay_outcome: one row per replay with an original, way in which originals ended and way in which their replays did.
-- Reads: replay_request.
--   recording_id      TEXT    -         -  Key. The replay.
--   original_outcome  TEXT    -         -  Key. As in view outcome; imported where the original is a trace's row.
--   outcome           TEXT    -         -  Key.
--   n                 BIGINT  requests  -  How many.
CREATE VIEW replay_outcome AS
SELECT recording_id, original_outcome, outcome, count(*) AS n
FROM replay_request
GROUP BY recording_id, original_outcome, outcome;
