-- recording_health: one row per recording and finding: what to know before believing a number.
-- Reads: recordings, requests, responses, marks, outcome, request_latency, server_summary, throughput, verdict.
--   recording_id   TEXT    -  -  Key.
--   finding        TEXT    -  -  Key.
--   finding_index  BIGINT  -  -  Order in a report.
--   severity       TEXT    -  -  ok (nothing to see), info, warning or error.
--   value          DOUBLE  -  -  How many, or which share. NULL where the finding is a word.
--   detail         TEXT    -  -  One sentence.
CREATE VIEW recording_health AS
WITH
names AS (
  SELECT column1 AS finding_index, column2 AS finding
  FROM (
    VALUES
      (0, 'state'),
      (1, 'verdict'),
      (2, 'dropped_events'),
      (3, 'missing_segments'),
      (4, 'damaged_segments'),
      (5, 'unfinished_requests'),
      (6, 'late_dropped'),
      (7, 'malformed_chunks'),
      (8, 'truncated_events'),
      (9, 'process_timestamps'),
      (10, 'coalesced_chunks'),
      (11, 'uncounted_requests'),
      (12, 'token_sources'),
      (13, 'retried_requests'),
      (14, 'reused_connections'),
      (15, 'server_metrics'),
      (16, 'server_metrics_failed'),
      (17, 'warmup_requests')
  ) AS v
),
connection AS (
  SELECT
    recording_id,
    avg(CASE WHEN conn_reused THEN 1.0 ELSE 0.0 END) AS reused_share
  FROM requests
  WHERE conn_reused IS NOT NULL
  GROUP BY recording_id
),
response AS (
  SELECT
    recording_id,
    sum(malformed_chunks) AS malformed_chunks,
    -- Where nothing arrived the source of the stamps says nothing.
    count(*) FILTER (
      WHERE timestamp_source = 'process' AND t_headers_ns IS NOT NULL
    ) AS process_stamped,
    count(t_headers_ns) AS stamped
  FROM responses
  GROUP BY recording_id
),
mark AS (
  SELECT
    recording_id,
    count(*) FILTER (WHERE name = 'truncated_event') AS truncated_events,
    count(*) FILTER (WHERE name = 'late_dropped') AS late_dropped,
    count(*) FILTER (WHERE name = 'server_metrics_failed') AS failing_servers
  FROM marks
  GROUP BY recording_id
),
server AS (
  SELECT
    recording_id,
    count(*) AS servers,
    string_agg(
      concat(
        source, ' (', engine, '): at most ',
        coalesce(CAST(waiting_requests_max AS VARCHAR), 'unknown'),
        ' waiting and ',
        coalesce(CAST(running_requests_max AS VARCHAR), 'unknown'),
        ' running',
        coalesce(
          ', KV cache ' || CAST(round(kv_cache_ratio_max * 100, 1) AS VARCHAR)
            || '% in use',
          ''
        ),
        coalesce(
          ', mean TTFT ' || CAST(round(server_ttft_ms_mean, 2) AS VARCHAR)
            || ' ms by its own count',
          ''
        )
      ),
      '; '
    ) AS detail
  FROM server_summary
  GROUP BY recording_id
),
request AS (
  SELECT
    recording_id,
    count(*) FILTER (WHERE outcome = 'unfinished') AS unfinished,
    count(*) FILTER (WHERE attempts > 1) AS retried,
    count(*) FILTER (WHERE phase = 'warmup') AS warmup,
    count(*) FILTER (WHERE phase = 'warmup' AND outcome <> 'ok') AS warmup_failed,
    count(*) FILTER (
      WHERE phase = 'measure' AND NOT measured AND outcome <> 'imported'
    ) AS left_out
  FROM outcome
  GROUP BY recording_id
),
stream AS (
  SELECT
    recording_id,
    CAST(sum(content_chunks - content_reads) AS DOUBLE)
      / nullif(sum(content_chunks), 0) AS coalesced_share
  FROM request_latency
  GROUP BY recording_id
),
token AS (
  SELECT
    recording_id,
    count(*) FILTER (WHERE input_tokens_source = 'tokenizer') AS input_tokenizer,
    count(input_tokens_source) AS input_all,
    count(*) FILTER (WHERE output_tokens_source = 'stream') AS output_stream,
    count(*) FILTER (WHERE output_tokens_source = 'tokenizer')
      AS output_tokenizer,
    count(output_tokens_source) AS output_all
  FROM request_latency
  WHERE outcome = 'ok'
  GROUP BY recording_id
),
fact AS (
  SELECT
    g.recording_id,
    g.state,
    g.live,
    g.recovered_rows,
    g.lost_rows,
    g.torn_bytes,
    g.dropped_events,
    g.missing_segments,
    g.damaged_segments,
    v.verdict,
    v.reason,
    coalesce(q.unfinished, 0) AS unfinished,
    coalesce(q.retried, 0) AS retried,
    coalesce(q.warmup, 0) AS warmup,
    coalesce(q.warmup_failed, 0) AS warmup_failed,
    coalesce(q.left_out, 0) AS left_out,
    coalesce(p.malformed_chunks, 0) AS malformed_chunks,
    coalesce(p.process_stamped, 0) AS process_stamped,
    coalesce(p.stamped, 0) AS stamped,
    coalesce(m.truncated_events, 0) AS truncated_events,
    coalesce(m.late_dropped, 0) AS late_dropped,
    s.coalesced_share,
    t.uncounted,
    k.input_tokenizer,
    k.input_all,
    k.output_stream,
    k.output_tokenizer,
    k.output_all,
    coalesce(k.input_tokenizer + k.output_stream + k.output_tokenizer, 0)
      AS not_usage,
    c.reused_share,
    coalesce(m.failing_servers, 0) AS failing_servers,
    coalesce(x.servers, 0) AS servers,
    x.detail AS server_detail
  FROM recordings AS g
  LEFT JOIN server AS x ON x.recording_id = g.recording_id
  LEFT JOIN verdict AS v ON v.recording_id = g.recording_id
  LEFT JOIN throughput AS t ON t.recording_id = g.recording_id
  LEFT JOIN request AS q ON q.recording_id = g.recording_id
  LEFT JOIN response AS p ON p.recording_id = g.recording_id
  LEFT JOIN mark AS m ON m.recording_id = g.recording_id
  LEFT JOIN stream AS s ON s.recording_id = g.recording_id
  LEFT JOIN token AS k ON k.recording_id = g.recording_id
  LEFT JOIN connection AS c ON c.recording_id = g.recording_id
)
SELECT
  f.recording_id,
  n.finding,
  n.finding_index,
  CASE n.finding
    WHEN 'verdict' THEN
      CASE f.verdict
        WHEN 'ok' THEN 'ok' WHEN 'invalid' THEN 'error' ELSE 'warning'
      END
    WHEN 'state' THEN
      CASE
        WHEN f.state = 'sealed' THEN 'ok'
        WHEN f.lost_rows > 0 THEN 'error'
        ELSE 'warning'
      END
    WHEN 'dropped_events' THEN
      CASE WHEN f.dropped_events > 0 THEN 'error' ELSE 'ok' END
    WHEN 'missing_segments' THEN
      CASE WHEN f.missing_segments > 0 THEN 'error' ELSE 'ok' END
    WHEN 'damaged_segments' THEN
      CASE WHEN f.damaged_segments > 0 THEN 'error' ELSE 'ok' END
    WHEN 'unfinished_requests' THEN
      CASE WHEN f.unfinished > 0 THEN 'warning' ELSE 'ok' END
    WHEN 'late_dropped' THEN
      CASE WHEN f.late_dropped > 0 THEN 'warning' ELSE 'ok' END
    WHEN 'malformed_chunks' THEN
      CASE WHEN f.malformed_chunks > 0 THEN 'warning' ELSE 'ok' END
    WHEN 'truncated_events' THEN
      CASE WHEN f.truncated_events > 0 THEN 'info' ELSE 'ok' END
    WHEN 'process_timestamps' THEN
      CASE WHEN f.process_stamped > 0 THEN 'warning' ELSE 'ok' END
    -- Above a tenth the ITL percentiles describe reads rather than tokens.
    WHEN 'coalesced_chunks' THEN
      CASE
        WHEN f.coalesced_share > 0.1 THEN 'warning'
        WHEN f.coalesced_share > 0 THEN 'info'
        ELSE 'ok'
      END
    WHEN 'uncounted_requests' THEN
      CASE WHEN f.uncounted > 0 THEN 'warning' ELSE 'ok' END
    WHEN 'token_sources' THEN CASE WHEN f.not_usage > 0 THEN 'info' ELSE 'ok' END
    WHEN 'retried_requests' THEN
      CASE WHEN f.retried > 0 THEN 'info' ELSE 'ok' END
    WHEN 'server_metrics' THEN CASE WHEN f.servers > 0 THEN 'info' ELSE 'ok' END
    WHEN 'server_metrics_failed' THEN
      CASE WHEN f.failing_servers > 0 THEN 'warning' ELSE 'ok' END
    WHEN 'warmup_requests' THEN
      CASE
        WHEN f.warmup_failed > 0 THEN 'warning'
        WHEN f.warmup + f.left_out > 0 THEN 'info'
        ELSE 'ok'
      END
    ELSE 'ok'
  END AS severity,
  CASE n.finding
    WHEN 'dropped_events' THEN CAST(f.dropped_events AS DOUBLE)
    WHEN 'missing_segments' THEN CAST(f.missing_segments AS DOUBLE)
    WHEN 'damaged_segments' THEN CAST(f.damaged_segments AS DOUBLE)
    WHEN 'unfinished_requests' THEN CAST(f.unfinished AS DOUBLE)
    WHEN 'late_dropped' THEN CAST(f.late_dropped AS DOUBLE)
    WHEN 'malformed_chunks' THEN CAST(f.malformed_chunks AS DOUBLE)
    WHEN 'truncated_events' THEN CAST(f.truncated_events AS DOUBLE)
    WHEN 'process_timestamps' THEN
      CAST(f.process_stamped AS DOUBLE) / nullif(f.stamped, 0)
    WHEN 'coalesced_chunks' THEN f.coalesced_share
    WHEN 'uncounted_requests' THEN CAST(f.uncounted AS DOUBLE)
    WHEN 'token_sources' THEN
      CAST(f.output_stream + f.output_tokenizer AS DOUBLE) / nullif(f.output_all, 0)
    WHEN 'retried_requests' THEN CAST(f.retried AS DOUBLE)
    WHEN 'reused_connections' THEN f.reused_share
    WHEN 'server_metrics' THEN CAST(f.servers AS DOUBLE)
    WHEN 'server_metrics_failed' THEN CAST(f.failing_servers AS DOUBLE)
    WHEN 'warmup_requests' THEN CAST(f.warmup + f.left_out AS DOUBLE)
  END AS value,
  CASE n.finding
    WHEN 'verdict' THEN concat(f.verdict, ': ', f.reason)
    WHEN 'state' THEN
      CASE f.state
        WHEN 'sealed' THEN 'sealed by its recorder'
        WHEN 'open' THEN
          CASE
            WHEN f.live THEN
              'still being written: this is what had arrived so far'
            ELSE
              concat(
                'unfinished, its recorder died: ',
                f.recovered_rows, ' rows read from its log, ',
                f.lost_rows, ' rows lost, ', f.torn_bytes,
                ' bytes torn; record repair seals it'
              )
          END
        ELSE
          concat(
            f.state, ' after its recorder died: ',
            f.recovered_rows, ' rows from its log, ',
            f.lost_rows, ' rows lost, ', f.torn_bytes, ' bytes torn'
          )
      END
    WHEN 'dropped_events' THEN
      concat(f.dropped_events, ' events dropped by the recorder')
    WHEN 'missing_segments' THEN
      concat(f.missing_segments, ' files of the manifest are not on disk')
    WHEN 'damaged_segments' THEN
      CASE
        WHEN f.damaged_segments IS NULL THEN
          'the hashes of sealed files were not looked at'
        ELSE
          concat(
            f.damaged_segments,
            ' sealed files are not what was sealed, by their hash'
          )
      END
    WHEN 'unfinished_requests' THEN
      concat(f.unfinished, ' requests without a response')
    WHEN 'late_dropped' THEN
      concat(
        f.late_dropped,
        ' planned requests were not sent: they would have been later than --max-lateness allows'
      )
    WHEN 'malformed_chunks' THEN
      concat(f.malformed_chunks, ' chunks that do not parse')
    WHEN 'truncated_events' THEN
      concat(f.truncated_events, ' events kept only in part; lengths are true')
    WHEN 'process_timestamps' THEN
      concat(
        f.process_stamped, ' of ', f.stamped,
        ' responses stamped by this process instead of the kernel'
      )
    WHEN 'coalesced_chunks' THEN
      concat(
        coalesce(CAST(round(f.coalesced_share * 100, 1) AS VARCHAR), 'unknown'),
        '% of content chunks share a read with the one before'
      )
    WHEN 'uncounted_requests' THEN
      concat(
        f.uncounted,
        ' successful requests without a token count, missing in token throughput'
      )
    WHEN 'token_sources' THEN
      concat(
        'output tokens of ',
        coalesce(f.output_all - f.output_stream - f.output_tokenizer, 0),
        ' successful requests from usage, ', coalesce(f.output_stream, 0),
        ' from the stream, ', coalesce(f.output_tokenizer, 0),
        ' from the tokenizer; input tokens of ', coalesce(f.input_tokenizer, 0),
        ' from the tokenizer, without the server''s template'
      )
    WHEN 'retried_requests' THEN
      concat(f.retried, ' requests sent more than once; the last attempt counts')
    WHEN 'reused_connections' THEN
      concat(
        coalesce(CAST(round(f.reused_share * 100, 1) AS VARCHAR), 'unknown'),
        '% of attempts on a connection used before'
      )
    WHEN 'server_metrics' THEN coalesce(f.server_detail, 'no server was scraped')
    WHEN 'server_metrics_failed' THEN
      concat(
        f.failing_servers,
        ' servers could not be scraped at least once; their marks say why'
      )
    WHEN 'warmup_requests' THEN
      concat(
        f.warmup, ' requests of the warm-up, ', f.warmup_failed,
        ' of them failed, and ', f.left_out,
        ' that --warmup leaves out are in no metric'
      )
  END AS detail
FROM fact AS f
CROSS JOIN names AS n;
