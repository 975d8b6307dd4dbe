"""Recorders and load generators against one server that stamps its own writes: how wrong each is, and what it costs.

    cargo bench -p tapedeck-live --bench accuracy --no-run   # prints the path for --truth
    python others.py --truth PATH --bin ../../target/release --parallel 500 --tool vllm='vllm' --tool vllm-rs='…/vllm-rs'

The server has core 0, each client core 1. `paced` (the default): TTFT 200 ms, ITL 20 ms, 100 tokens; errors against the
server's ledger. `bulk` and `single`: 200 tokens as fast as they go, 16 KiB or one chunk a write; CPU of the whole client,
the difference of a long and a short run, so that its start is not in it.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import shlex
import subprocess
import tempfile

from peer_tools import TOOLS, byte_tokenizer
from programs import Programs

TOKENS = {"paced": 100, "bulk": 200, "single": 200}
OURS = """
SELECT l.request_id, l.t_sent_ns, l.ttft_ms, v.ttft_ms AS as_vllm_ms
FROM request_latency AS l JOIN peer_vllm AS v USING (recording_id, request_id) ORDER BY l.t_sent_ns
"""
GAPS = "SELECT request_id, t_ns FROM chunks WHERE kind = 'content' ORDER BY request_id, chunk_index"


@contextlib.contextmanager
def truth(args):
    """Yields the server's URL and a list that holds its ledger afterwards: for each request [read, writes…], by read."""
    command = [args.truth, "--serve", args.shape]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ledger = []
    try:
        yield server.stdout.readline().strip(), ledger
    finally:
        told, _ = server.communicate()
    ledger += sorted(map(json.loads, told.splitlines()))


def run_client(command, cwd):
    """CPU seconds and peak MiB of the whole client, pinned to its core."""
    log = cwd / "log"
    with log.open("w") as output:
        client = subprocess.Popen(["taskset", "-c", "1", *map(str, command)], cwd=cwd, stdout=output, stderr=output)
        _, status, usage = os.wait4(client.pid, 0)
    client.returncode = os.waitstatus_to_exitcode(status)
    if client.returncode != 0:
        raise SystemExit(f"{shlex.join(map(str, command))}: exit {client.returncode}\n{log.read_text()[-3000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def command_of(args, tool, url, number, cwd):
    if tool == "tapedeck":
        load = ["load", "--url", url, "--model", "sim", "--prompt", "x", "--parallel", args.parallel, "--number", number]
        return [args.bin / "record", *load, "--no-probe", "--no-report", "--out", cwd / "recording"]
    run = argparse.Namespace(url=url, number=number, parallel=args.parallel, scratch=cwd)
    run.tokens, run.tokenizer = TOKENS[args.shape], byte_tokenizer(cwd / "tokenizer")
    return [*shlex.split(args.commands[tool]), *TOOLS[tool][0](run)]


def ours(args, cwd):
    """(name, [(sent, TTFT)…], gaps) for our own definition and, of the same recording, for one that starts earlier."""
    programs = Programs(args.bin)
    rows = programs.query(cwd / "recording", OURS)
    text = programs.run("analyze", "query", cwd / "recording", GAPS, "--format", "csv")
    instants = {}
    for request, t_ns in list(csv.reader(text.splitlines()))[1:]:
        instants.setdefault(int(request), []).append(int(t_ns))
    gaps = [gaps_of(instants[row["request_id"]]) for row in rows]
    yield "Tapedeck", [row["ttft_ms"] for row in rows], gaps
    yield "Tapedeck, `--as vllm`", [row["as_vllm_ms"] for row in rows], gaps


def theirs(tool, cwd):
    """Of the result files of vLLM's and SGLang's clients. Without start stamps they are in the order of the requests."""
    found = json.loads((cwd / "out.json").read_text().splitlines()[-1])
    starts = found.get("start_times", range(len(found["ttfts"])))
    order = sorted(range(len(starts)), key=lambda i: starts[i])
    # Some count the closing chunk as one more token.
    gaps = [[s * 1e3 for s in found["itls"][i][: TOKENS["paced"] - 1]] for i in order]
    yield tool, [found["ttfts"][i] * 1e3 for i in order], gaps


def gaps_of(instants_ns):
    return [(b - a) / 1e6 for a, b in zip(instants_ns, instants_ns[1:])]


def shown(errors):
    ordered = sorted(map(abs, errors))
    at = [ordered[min(int(q * len(ordered)), len(ordered) - 1)] for q in (0.5, 0.99)]
    return " / ".join(f"{value:.3f}" for value in at)


def paced(args, tool):
    """Requests are paired in the order of their starts; all true TTFTs are alike, so a swap costs what `server` shows."""
    with tempfile.TemporaryDirectory() as scratch:
        cwd = pathlib.Path(scratch)
        with truth(args) as (url, ledger):
            cpu, peak = run_client(command_of(args, tool, url, args.parallel * 3, cwd), cwd)
        ledger = ledger[-args.parallel * 3 :]
        true_ttft = [(writes[0] - read) / 1e6 for read, *writes in ledger]
        true_gaps = [gaps_of(writes) for _, *writes in ledger]
        for name, ttft, gaps in ours(args, cwd) if tool == "tapedeck" else theirs(tool, cwd):
            errors = [a - b for a, b in zip(ttft, true_ttft, strict=True)]
            itl = [a - b for got, true in zip(gaps, true_gaps) for a, b in zip(got, true)]
            after = errors[args.parallel :]
            print(f"| {name} | {shown(errors)} | {shown(after)} | {shown(itl)} | {cpu:.1f} | {peak:.0f} |", flush=True)
        itl = [gap - 20 for gaps in true_gaps for gap in gaps]
        print(f"| (server beside it − nominal) | {shown([t - 200 for t in true_ttft])} | | {shown(itl)} | | |", flush=True)


def capacity(args, tool):
    def once(number):
        with tempfile.TemporaryDirectory() as scratch:
            cwd = pathlib.Path(scratch)
            with truth(args) as (url, _):
                return run_client(command_of(args, tool, url, number, cwd), cwd)

    short, long = args.number // 10, args.number
    (less, _), (more, peak) = once(short), once(long)
    chunks = (long - short) * TOKENS[args.shape]
    print(f"| {tool} | {(more - less) / chunks * 1e6:.2f} | {peak:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=pathlib.Path, required=True, help="the accuracy benchmark's program")
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of record, analyze and replay")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=COMMAND", help="vllm, vllm-rs, sglang or sglang-rs")
    parser.add_argument("--shape", choices=TOKENS, default="paced")
    parser.add_argument("--parallel", type=int, default=500)
    parser.add_argument("--number", type=int, default=5000, help="requests of bulk and single")
    args = parser.parse_args()
    args.bin, args.truth = args.bin.resolve(), args.truth.resolve()
    args.commands = dict(tool.split("=", 1) for tool in args.tool)
    if strange := [name for name in args.commands if not name.startswith(("vllm", "sglang"))]:
        parser.error(f"--tool {strange[0]}: vllm, vllm-rs, sglang or sglang-rs")
    if args.shape == "paced":
        print(f"{args.parallel} streams; |error| p50 / p99, ms\n")
        print("| client | TTFT | TTFT after the first wave | ITL | CPU s | peak MiB |\n|---|---|---|---|--:|--:|")
    else:
        print(f"{args.shape}, {args.parallel} streams\n\n| client | CPU µs a chunk | peak MiB |\n|---|--:|--:|")
    for tool in ["tapedeck", *args.commands]:
        (paced if args.shape == "paced" else capacity)(args, tool)


if __name__ == "__main__":
    main()
