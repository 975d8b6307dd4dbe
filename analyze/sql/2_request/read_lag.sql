-- read_lag: one row per recording and time that chunks waited for this client, in one or more parts: sum them up.
-- Reads: chunks.
--   recording_id  TEXT    -   -      Key.
--   lag_ns        BIGINT  ns  lower  Key. Seen minus arrived.
--   chunks        BIGINT  -   -      Chunks of every kind and phase with this lag.
CREATE VIEW read_lag AS
-- All phases: a client that cannot keep up in its warm-up cannot later either.
-- Kept under derived/ as chunk_stream is.
SELECT recording_id, t_seen_ns - t_ns AS lag_ns, count(*) AS chunks
FROM chunks
GROUP BY recording_id, t_seen_ns - t_ns;
