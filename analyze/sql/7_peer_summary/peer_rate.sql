-- peer_rate: one row per recording and profile: what the run came to over the tool's window.
-- Reads: peer_profile, peer_answer.
--   recording_id             TEXT    -           -       Key.
--   profile                  TEXT    -           -       Key.
--   duration_s               DOUBLE  s           -       Length of its window. NULL when nothing started or ended.
--   counted                  BIGINT  requests    higher  Requests it takes for a success.
--   request_throughput       DOUBLE  requests/s  higher  Of those.
--   input_token_throughput   DOUBLE  tokens/s    higher  NULL unless it could count each.
--   output_token_throughput  DOUBLE  tokens/s    higher  NULL unless it could count each.
--   total_token_throughput   DOUBLE  tokens/s    higher  NULL unless it could count each.
--   output_tokens            BIGINT  tokens      -       Of all of them; NULL unless it could count each.
CREATE VIEW peer_rate AS
WITH
run AS (
  SELECT
    a.recording_id,
    a.profile,
    count(CASE WHEN a.counted THEN 1 END) AS counted,
    count(CASE WHEN a.counted THEN a.input_tokens END) AS with_input,
    count(CASE WHEN a.counted THEN a.output_tokens END) AS with_output,
    sum(CASE WHEN a.counted THEN a.input_tokens END) AS input_tokens,
    sum(CASE WHEN a.counted THEN a.output_tokens END) AS output_tokens,
    min(a.t_start_ns) AS t_start_ns,
    max(a.t_end_ns) AS t_end_ns,
    min(CASE WHEN a.counted THEN a.t_start_ns END) AS t_counted_start_ns,
    max(CASE WHEN a.counted THEN a.t_end_ns END) AS t_counted_end_ns
  FROM peer_answer AS a
  GROUP BY a.recording_id, a.profile
),
total AS (
  SELECT
    p.recording_id,
    p.profile,
    coalesce(r.counted, 0) AS counted,
    CASE WHEN r.with_input = r.counted THEN r.input_tokens END AS input_tokens,
    CASE WHEN r.with_output = r.counted THEN r.output_tokens END
      AS output_tokens,
    CASE p.window_rule
      WHEN 'all' THEN r.t_end_ns - r.t_start_ns
      ELSE r.t_counted_end_ns - r.t_counted_start_ns
    END / 1e9 AS duration_s
  FROM peer_profile AS p
  LEFT JOIN run AS r
    ON r.recording_id = p.recording_id
    AND r.profile = p.profile
)
SELECT
  recording_id,
  profile,
  duration_s,
  counted,
  counted / nullif(duration_s, 0) AS request_throughput,
  input_tokens / nullif(duration_s, 0) AS input_token_throughput,
  output_tokens / nullif(duration_s, 0) AS output_token_throughput,
  (input_tokens + output_tokens) / nullif(duration_s, 0)
    AS total_token_throughput,
  output_tokens
FROM total;
