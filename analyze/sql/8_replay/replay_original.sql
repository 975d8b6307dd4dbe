-- replay_original: one row per replay whose original is open in this session too.
-- Reads: recordings.
--   recording_id           TEXT    -      -  Key. The replay.
--   original_recording_id  TEXT    -      -  The recording that it names, or an import of the trace that it read; the first by its id where there are several.
--   speed                  DOUBLE  ratio  -  By which the replay divided all offsets.
--   reshaped_by            TEXT    -      -  Flags by which it moved them against each other. NULL where none did.
CREATE VIEW replay_original AS
SELECT
  n.recording_id,
  min(o.recording_id) AS original_recording_id,
  n.speed,
  n.reshaped_by
FROM recordings AS n
JOIN recordings AS o ON o.recording_id <> n.recording_id
WHERE n.speed IS NOT NULL
  AND (
    o.recording_id = n.replay_of_recording_id
    OR (
      n.replay_of_recording_id IS NULL
      AND o.speed IS NULL
      AND o.workload_kind = n.workload_kind
      AND o.workload_hash = n.workload_hash
    )
  )
GROUP BY n.recording_id, n.speed, n.reshaped_by;
