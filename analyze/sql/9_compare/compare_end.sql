-- compare_end: one row per measured request of a compared recording, in the order in which they ended: its share of the window.
-- Reads: sides, window, outcome, request_latency, slo_met, slos.
--   recording_id   TEXT    -         -       Key.
--   request_id     BIGINT  -         -       Key.
--   side           TEXT    -         -       base or new.
--   unit           BIGINT  -         -       From 0 in the order of ending; what did not end comes last.
--   span_s         DOUBLE  s         -       Since the one before ended; of the first, since the window began. Together the window.
--   succeeded      DOUBLE  requests  higher  1 with outcome ok, else 0.
--   output_tokens  DOUBLE  tokens    higher  Of a succeeded request, 0 where they are not known.
--   total_tokens   DOUBLE  tokens    higher  With input tokens, 0 where either is not known.
--   good           DOUBLE  requests  higher  1 where it met every objective, else 0. NULL without objectives.
CREATE VIEW compare_end AS
-- Sums of these over sums of spans are the rates of view throughput, so that rates
-- can be resampled a request at a time.
WITH ended AS (
  SELECT
    s.side,
    o.recording_id,
    o.request_id,
    o.outcome,
    o.t_end_ns,
    w.t_first_sent_ns,
    l.input_tokens,
    l.output_tokens,
    m.good
  FROM outcome AS o
  JOIN sides AS s ON s.recording_id = o.recording_id
  JOIN "window" AS w ON w.recording_id = o.recording_id
  LEFT JOIN request_latency AS l
    ON l.recording_id = o.recording_id
    AND l.request_id = o.request_id
    AND l.outcome = 'ok'
  LEFT JOIN slo_met AS m
    ON m.recording_id = o.recording_id
    AND m.request_id = o.request_id
  WHERE o.measured
)
SELECT
  recording_id,
  request_id,
  side,
  CAST(row_number() OVER by_end - 1 AS BIGINT) AS unit,
  coalesce(
    (t_end_ns - coalesce(lag(t_end_ns) OVER by_end, t_first_sent_ns)) / 1e9,
    0e0
  ) AS span_s,
  CASE WHEN outcome = 'ok' THEN 1e0 ELSE 0e0 END AS succeeded,
  coalesce(CAST(output_tokens AS DOUBLE), 0e0) AS output_tokens,
  coalesce(CAST(input_tokens + output_tokens AS DOUBLE), 0e0) AS total_tokens,
  CASE
    WHEN (SELECT count(*) FROM slos) = 0 THEN NULL
    WHEN good THEN 1e0
    ELSE 0e0
  END AS good
FROM ended
WINDOW by_end AS (
  PARTITION BY recording_id
  ORDER BY t_end_ns NULLS LAST, request_id
);
