-- compare_unit_memory: one row per compared recording: how alike requests are that were sent one after the other.
-- Reads: compare_request, request_latency.
--   recording_id  TEXT    -         -  Key.
--   requests      BIGINT  requests  -  Those whose latencies are compared.
--   memory        DOUBLE  ratio     -  Largest of the correlations of TTFT, TPOT and E2EL with those of the request before. NULL where they do not vary.
CREATE VIEW compare_unit_memory AS
-- Requests that wait in one queue are late together: the more they are alike, the
-- fewer independent ones there are behind a mean.
WITH
neighbour AS (
  SELECT
    q.recording_id,
    l.ttft_ms,
    l.tpot_ms,
    l.e2el_ms,
    lag(l.ttft_ms) OVER in_order AS before_ttft_ms,
    lag(l.tpot_ms) OVER in_order AS before_tpot_ms,
    lag(l.e2el_ms) OVER in_order AS before_e2el_ms
  FROM compare_request AS q
  JOIN request_latency AS l
    ON l.recording_id = q.recording_id
    AND l.request_id = q.request_id
  WINDOW in_order AS (PARTITION BY q.recording_id ORDER BY q.unit)
),
correlation AS (
  SELECT
    recording_id,
    count(*) AS requests,
    corr(ttft_ms, before_ttft_ms) AS of_ttft,
    corr(tpot_ms, before_tpot_ms) AS of_tpot,
    corr(e2el_ms, before_e2el_ms) AS of_e2el
  FROM neighbour
  GROUP BY recording_id
)
SELECT
  recording_id,
  requests,
  -- Of what does not vary there is none, and NaN would be greater than any number.
  greatest(
    CASE WHEN NOT isnan(of_ttft) THEN of_ttft END,
    CASE WHEN NOT isnan(of_tpot) THEN of_tpot END,
    CASE WHEN NOT isnan(of_e2el) THEN of_e2el END
  ) AS memory
FROM correlation;
