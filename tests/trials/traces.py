"""A public trace replayed at several speeds against the simulator: how far requests left from their instants.

    python traces.py TRACE… --bin target/release --speeds 10,30,100 --minutes 60

Prints one Markdown row a speed (ms, p50 / p99 / max). A simulator in the replay's own process (`sim:`, the default)
shares cores with the client; `--apart` runs it on core 0 in a process of its own and the client on the others. Times
are printed, not judged: they are the machine's as much as ours. Exit code 1 if requests are missing or a recording is
not whole.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
import time

from programs import Programs

SIMULATOR = "ttft_ms=50&itl_ms=5&slots=4096"
HEADER = """
| trace, minutes | speed | requests | dispatched − scheduled | sent − scheduled | offset error p99 | gap error, sent | gap error, dispatched | body written in | failed | late | client CPU s | verdict |
|---|--:|--:|---|---|--:|---|---|---|--:|--:|--:|---|"""
# Separate queries: what one view lacks in an older build must not cost the others.
COUNTS = """
SELECT count(*) AS n, count(*) FILTER (WHERE outcome <> 'ok') AS failed FROM outcome WHERE phase = 'measure'
"""
CPU = "SELECT max(value) - min(value) AS cpu_s FROM samples WHERE source = 'client' AND name = 'process_cpu_s_total'"


def cell(value):
    return "–" if value is None else f"{value:.3f}"


def three(row, name):
    return " / ".join(cell(row.get(f"{name}_{stat}")) for stat in ("p50", "p99", "max"))


def one(programs, recording, sql):
    return programs.query(recording, sql)[0]


def row(programs, trace, minutes, speed, recording):
    """The printed row, and whether everything that was planned is there."""
    counts = one(programs, recording, COUNTS)
    schedule = one(programs, recording, "SELECT * FROM schedule_fidelity")
    lag = one(programs, recording, "SELECT * FROM schedule_lag")
    verdict = one(programs, recording, "SELECT verdict, reason FROM verdict")
    late = schedule.get("late_dropped") or 0
    said = verdict["verdict"] if verdict["verdict"] == "ok" else f"{verdict['verdict']}: {verdict['reason']}"
    cells = (
        f"{trace.parent.name} {trace.stem}, 0 to {minutes}",
        speed,
        f"{counts['n']:,}",
        three(lag, "dispatch_lag_ms"),
        three(schedule, "lag_ms"),
        cell(schedule["offset_error_ms_p99"]),
        three(schedule, "inter_arrival_error_ms"),
        three(schedule, "dispatch_gap_error_ms"),
        three(schedule, "sending_ms"),
        counts["failed"],
        late,
        f"{one(programs, recording, CPU)['cpu_s']:.1f}",
        said,
    )
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return counts["n"] + late


@contextlib.contextmanager
def target(programs, args):
    """Where to send to; the client's cores are settled."""
    if not args.apart:
        yield args.url
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("--apart needs two cores")
    os.sched_setaffinity(0, cores[:1])
    with programs.server("simulator on", "simulate", "--listen", "127.0.0.1:0", "--sim", SIMULATOR) as port:
        os.sched_setaffinity(0, cores[1:])
        yield f"http://127.0.0.1:{port}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=pathlib.Path, metavar="TRACE")
    parser.add_argument("--bin", required=True, help="folder with record, analyze and replay")
    parser.add_argument("--speeds", default="10,30,100", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=60, help="of the trace, from its begin (default: all of an hour)")
    parser.add_argument("--url", default=f"sim:?{SIMULATOR}", help="default: %(default)s")
    parser.add_argument("--apart", action="store_true", help="the simulator in a process and on a core of its own")
    parser.add_argument("--warm", type=int, default=64, help="connections opened before (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=2, help="seconds between two runs (default: %(default)s)")
    parser.add_argument("--replay", default="", help="more flags of `replay run`")
    parser.add_argument("--out", type=pathlib.Path, help="keep the recordings here")
    args = parser.parse_args()
    programs = Programs(args.bin)
    minutes = f"{args.minutes:g}"
    window = ("--window", f"..{round(args.minutes * 60)}s")
    is_whole = True
    print(HEADER, flush=True)
    with contextlib.ExitStack() as stack:
        out = args.out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(target(programs, args))
        for trace in args.traces:
            planned = programs.run("replay", "plan", trace, *window).count("\n") - 1
            for speed in args.speeds.split(","):
                recording = out / f"{trace.stem}-{speed}"
                flags = ("--speed", speed, "--warm-connections", args.warm, "--no-report", "--no-progress", "--json")
                # Every request failed is a finding of the replay, and one of ours.
                more = args.replay.split()
                programs.run("replay", "run", trace, "--url", url, *window, *flags, *more, "--out", recording, codes=(0, 1))
                is_whole &= row(programs, trace, minutes, speed, recording) == planned
                programs.run("analyze", "check", recording)
                time.sleep(args.rest)
    sys.exit(0 if is_whole else 1)


if __name__ == "__main__":
    main()
