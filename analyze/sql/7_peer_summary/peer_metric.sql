-- peer_metric: one row per profile, measured request and metric: the tool's number, or why there is none.
-- Reads: peer_answer, outcome.
--   recording_id   TEXT     -  -  Key.
--   profile        TEXT     -  -  Key. As in peer_profile.
--   request_id     BIGINT   -  -  Key.
--   metric         TEXT     -  -  Key. ttft_ms, tpot_ms, itl_ms (mean of the request), e2el_ms, input_tokens, output_tokens, output_tokens_per_s.
--   metric_index   BIGINT   -  -  Order in a report.
--   value          DOUBLE   -  -  NULL where the tool has none, or a recording cannot give it.
--   unit           TEXT     -  -  Unit of value.
--   reason         TEXT     -  -  Why value is NULL.
--   counted        BOOLEAN  -  -  The tool takes the request for a success.
--   output_tokens  BIGINT   tokens  -  Of the request, as the tool counts.
CREATE VIEW peer_metric AS
WITH
name AS (
  SELECT column1 AS metric_index, column2 AS metric, column3 AS unit
  FROM (
    VALUES
      (0, 'ttft_ms', 'ms'),
      (1, 'tpot_ms', 'ms'),
      (2, 'itl_ms', 'ms'),
      (3, 'e2el_ms', 'ms'),
      (4, 'input_tokens', 'tokens'),
      (5, 'output_tokens', 'tokens'),
      (6, 'output_tokens_per_s', 'tokens/s')
  ) AS v
),
-- What no recording can give, or the tool does not have.
absent AS (
  SELECT column1 AS profile, column2 AS metric, column3 AS reason
  FROM (
    VALUES
      ('vllm', 'output_tokens_per_s', 'has no such number'),
      ('sglang', 'output_tokens_per_s', 'has no such number'),
      ('evalscope-0.8', 'tpot_ms', 'has one for the run, none for a request'),
      ('aphrodite', 'tpot_ms', 'divides by a count of its own tokenizer'),
      ('aphrodite', 'input_tokens', 'counts with its own tokenizer'),
      ('aphrodite', 'output_tokens', 'counts with its own tokenizer'),
      ('aphrodite', 'output_tokens_per_s', 'has no such number'),
      ('inference-perf', 'itl_ms', 'needs the tokens of every chunk'),
      ('inference-perf', 'output_tokens_per_s', 'has no such number'),
      ('llmperf', 'tpot_ms', 'has no such number'),
      ('llmperf', 'itl_ms', 'divides by a count of a Llama tokenizer'),
      ('llmperf', 'input_tokens', 'counts with a Llama tokenizer'),
      ('llmperf', 'output_tokens', 'counts with a Llama tokenizer'),
      ('llmperf', 'output_tokens_per_s', 'divides a count of a Llama tokenizer'),
      ('llm.perf', 'input_tokens', 'counts with its own tokenizer'),
      ('llm.perf', 'output_tokens_per_s', 'has no such number'),
      ('byzer-perf', 'ttft_ms', 'takes what its own server reports'),
      ('byzer-perf', 'tpot_ms', 'has no such number'),
      ('byzer-perf', 'itl_ms', 'has no such number'),
      ('byzer-perf', 'output_tokens_per_s', 'takes what its own server reports'),
      ('mlperf', 'tpot_ms', 'divides by a count of its own tokenizer'),
      ('mlperf', 'input_tokens', 'counts with its own tokenizer'),
      ('mlperf', 'output_tokens', 'counts with its own tokenizer'),
      ('mlperf', 'output_tokens_per_s', 'has no such number')
  ) AS v
),
number AS (
  SELECT
    a.recording_id,
    a.profile,
    a.request_id,
    n.metric,
    n.metric_index,
    n.unit,
    a.counted,
    a.output_tokens,
    CASE WHEN a.counted THEN
      CASE n.metric
        WHEN 'ttft_ms' THEN a.ttft_ms
        WHEN 'tpot_ms' THEN a.tpot_ms
        WHEN 'itl_ms' THEN a.itl_ms
        WHEN 'e2el_ms' THEN a.e2el_ms
        WHEN 'input_tokens' THEN CAST(a.input_tokens AS DOUBLE)
        WHEN 'output_tokens' THEN CAST(a.output_tokens AS DOUBLE)
        WHEN 'output_tokens_per_s' THEN a.output_tokens_per_s
      END
    END AS value
  FROM peer_answer AS a
  CROSS JOIN name AS n
)
SELECT
  v.recording_id,
  v.profile,
  v.request_id,
  v.metric,
  v.metric_index,
  v.value,
  v.unit,
  CASE
    WHEN v.value IS NOT NULL THEN NULL
    WHEN NOT coalesce(v.counted, FALSE) AND o.outcome = 'ok'
      AND o.chunk_count = 0 THEN
      'does not count an answer that was not streamed'
    WHEN NOT coalesce(v.counted, FALSE) THEN
      'does not count an answer with outcome ' || o.outcome
    WHEN b.reason IS NOT NULL THEN b.reason
    WHEN v.metric IN ('ttft_ms', 'tpot_ms', 'itl_ms') AND o.chunk_count = 0 THEN
      'the answer was not streamed'
    WHEN v.metric IN ('input_tokens', 'output_tokens') THEN
      'the recording has no such count'
    WHEN v.metric IN ('tpot_ms', 'output_tokens_per_s')
      AND v.output_tokens IS NULL THEN 'no count of the tokens'
    WHEN v.metric = 'tpot_ms' AND v.output_tokens < 2 THEN 'below two tokens'
    WHEN v.metric = 'itl_ms' THEN 'no two chunks to lie between'
    ELSE 'no chunk it takes for a token, or the payload that tells was not recorded'
  END AS reason,
  v.counted,
  v.output_tokens
FROM number AS v
JOIN outcome AS o
  ON o.recording_id = v.recording_id
  AND o.request_id = v.request_id
LEFT JOIN absent AS b
  ON b.profile = v.profile
  AND b.metric = v.metric;
