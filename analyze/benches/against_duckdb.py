"""The same questions to `analyze report` and to DuckDB, from the same files.

    python3 analyze/benches/against_duckdb.py RECORDING [--analyze PROGRAM]

Both are asked for mean, p50, p90 and p99 of TTFT, TPOT, ITL and E2EL, for the
throughputs and for the lag with which the client read its chunks. The answers are
compared; then wall time, CPU and peak memory of each process are printed, with the
ratio. `analyze` answers more besides: it prints its whole report. It runs twice,
without derived/ and with what the first run left there; derived/ is put back as it
was found. DuckDB runs as the package `duckdb` has it, with its defaults.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

PERCENTILES = [50, 90, 99]
# Two engines add in another order; nothing else may differ.
TOLERANCE = 1e-9
MIB = 1 << 20

REQUESTS = """
CREATE TEMP TABLE measured AS
SELECT r.request_id, r.attempt, r.t_sent_ns, p.t_end_ns, p.outcome,
       coalesce(p.input_tokens, r.input_tokens) AS input_tokens, p.output_tokens
FROM requests r
JOIN (SELECT request_id, max(attempt) AS attempt FROM requests GROUP BY 1) USING (request_id, attempt)
LEFT JOIN responses p USING (request_id, attempt)
WHERE r.phase = 'measure'
"""

# Lists instead of a window over rows: measured to be the faster way in DuckDB.
STREAMS = """
CREATE TEMP TABLE stream AS
SELECT request_id, attempt, min(t_ns) AS t_first_ns, max(t_ns) AS t_last_ns,
       {gaps}
FROM chunks
JOIN measured USING (request_id, attempt)
WHERE kind IN ('reasoning', 'content', 'tool') AND outcome = 'ok'
GROUP BY request_id, attempt
"""

LATENCIES = """
SELECT {columns}
FROM (
  SELECT (t_first_ns - t_sent_ns) / 1e6 AS ttft_ms,
         (t_last_ns - t_sent_ns) / 1e6 AS e2el_ms,
         CASE WHEN output_tokens >= 2
           THEN (t_last_ns - t_first_ns) / 1e6 / (output_tokens - 1) END AS tpot_ms
  FROM measured JOIN stream USING (request_id, attempt)
  WHERE outcome = 'ok')
"""

GAPS_OF_LISTS = """
SELECT {columns} FROM (
  SELECT unnest(list_transform(range(1, len(ts)), lambda i: ts[i + 1] - ts[i])) / 1e6 AS itl_ms
  FROM (SELECT list(t_ns ORDER BY chunk_index) AS ts
        FROM chunks JOIN measured USING (request_id, attempt)
        WHERE kind IN ('reasoning', 'content', 'tool') AND outcome = 'ok'
        GROUP BY request_id, attempt, choice_index))
"""

GAPS_OF_WINDOW = """
SELECT {columns} FROM (
  SELECT (t_ns - lag(t_ns) OVER (
           PARTITION BY request_id, attempt, choice_index ORDER BY chunk_index)) / 1e6 AS itl_ms
  FROM chunks JOIN measured USING (request_id, attempt)
  WHERE kind IN ('reasoning', 'content', 'tool') AND outcome = 'ok')
"""

RATES = """
SELECT count(*) FILTER (outcome = 'ok') / d AS request_throughput,
       sum(output_tokens) FILTER (outcome = 'ok') / d AS output_token_throughput,
       sum(input_tokens + output_tokens) FILTER (outcome = 'ok') / d AS total_token_throughput
FROM measured, (SELECT (max(t_end_ns) - min(t_sent_ns)) / 1e9 AS d FROM measured)
GROUP BY d
"""

READ_LAG = """
SELECT {columns} FROM (SELECT (t_seen_ns - t_ns) / 1e6 AS read_lag_ms FROM chunks)
"""


def columns(names):
    stats = []
    for name in names:
        stats.append(f'avg({name}) AS "{name}.mean"')
        shares = [p / 100 for p in PERCENTILES]
        stats.append(f'quantile_cont({name}, {shares}) AS "{name}.q"')
    return ", ".join(stats)


def ask_duckdb(path, gaps):
    import duckdb

    db = duckdb.connect()
    for table in ["requests", "responses", "chunks"]:
        db.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{path}/{table}/*.parquet')")
    db.execute(REQUESTS)
    db.execute(STREAMS.format(gaps="count(*) AS content_chunks"))
    itl = GAPS_OF_LISTS if gaps == "lists" else GAPS_OF_WINDOW
    found = {}
    for sql, names in [
        (LATENCIES, ["ttft_ms", "tpot_ms", "e2el_ms"]),
        (itl, ["itl_ms"]),
        (READ_LAG, ["read_lag_ms"]),
        (RATES, []),
    ]:
        result = db.execute(sql.format(columns=columns(names)))
        row = dict(zip([c[0] for c in result.description], result.fetchone()))
        for name, value in row.items():
            if name.endswith(".q"):
                found |= {f"{name[:-2]}.p{p}": v for p, v in zip(PERCENTILES, value)}
            else:
                found[name if "." in name else f"{name}.value"] = value
    print(json.dumps(found))


def run(arguments):
    """Its output, and wall s, CPU s and peak MiB of the process."""
    start = time.monotonic()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{arguments[0]} failed with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return output, (time.monotonic() - start, cpu, usage.ru_maxrss * 1024 / MIB)


def of_report(output):
    metrics = json.loads(output)["recordings"][0]["metrics"]
    return {f"{m['metric']}.{m['stat']}": m["value"] for m in metrics}


def compare(theirs, ours):
    compared = 0
    for name, value in theirs.items():
        if name not in ours:
            continue
        same = abs(ours[name] - value) <= TOLERANCE * max(abs(value), 1e-300)
        if not same:
            sys.exit(f"{name} differs: DuckDB {value!r}, analyze {ours[name]!r}")
        compared += 1
    if compared < 15:
        sys.exit(f"only {compared} answers could be compared")
    return compared


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=pathlib.Path)
    parser.add_argument("--analyze", default="target/release/analyze")
    parser.add_argument("--gaps", choices=["lists", "window"], default="lists")
    parser.add_argument("--ask-duckdb", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask_duckdb:
        return ask_duckdb(arguments.recording, arguments.gaps)
    report = [arguments.analyze, "report", arguments.recording, "--format", "json"]
    derived = arguments.recording / "derived"
    aside = arguments.recording / ".derived-aside"
    if derived.exists():
        derived.rename(aside)
    try:
        first, first_cost = run(report)
        _, again_cost = run(report)
        kept = sum(f.stat().st_size for f in derived.glob("*")) if derived.exists() else 0
    finally:
        shutil.rmtree(derived, ignore_errors=True)
        if aside.exists():
            aside.rename(derived)
    rows = [("analyze report", first_cost), ("analyze report, again", again_cost)]
    if importlib.util.find_spec("duckdb") is None:
        print("the package duckdb is not installed: no reference (pip install duckdb)")
    else:
        asked = [sys.executable, __file__, arguments.recording, "--ask-duckdb", "--gaps", arguments.gaps]
        theirs, their_cost = run(asked)
        compared = compare(json.loads(theirs), of_report(first))
        rows.append(("DuckDB", their_cost))
        print(f"{compared} answers are the same\n")
    files = arguments.recording.glob("chunks/*.parquet")
    print(f"chunks: {sum(f.stat().st_size for f in files) / MIB:.0f} MiB, derived/: {kept / MIB:.0f} MiB\n")
    print("|  | wall s | CPU s | peak MiB | wall against DuckDB |\n|---|--:|--:|--:|--:|")
    for name, (wall, cpu, memory) in rows:
        reference = rows[-1][1][0] if rows[-1][0] == "DuckDB" else None
        ratio = f"{wall / reference:.2f}" if reference else "-"
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {memory:.0f} | {ratio} |")


main()
