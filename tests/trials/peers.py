"""Another load generator in front of the embedded simulator, `record proxy` between: its own means beside `--as` it.

    python peers.py guidellm --command path/to/guidellm --bin target/debug

Prints what the tool reported, what `analyze report --as TOOL` makes of the recording, and the difference, which is what
happens in the client before the proxy has the request and after it has passed the bytes on. With `--follow` (root) every
request is followed through: the tool's start, its packets, the proxy, the server, the proxy, the tool's stamp.
"""

import argparse
import contextlib
import json
import pathlib
import shlex
import subprocess
import tempfile

from peer_follow import follow, print_legs
from peer_tools import TOOLS, byte_tokenizer
from programs import Programs, recordings
from wire import Wire, wall_offset_ns

SHOWN = [
    ("ttft_ms", "mean"),
    ("tpot_ms", "mean"),
    ("itl_ms", "mean"),
    ("e2el_ms", "mean"),
    ("output_tokens", "mean"),
    ("request_throughput", "value"),
    ("output_token_throughput", "value"),
]


def before_the_run(programs, recording, counted):
    """Seconds after the first request in which the tool only tried out the server, for --warmup."""
    sql = "SELECT t_sent_ns FROM requests WHERE attempt = 0 ORDER BY t_sent_ns"
    sent = [row["t_sent_ns"] for row in programs.query(recording, sql)]
    extra = len(sent) - int(counted)
    return extra, (sent[extra] - sent[0]) / 1e9 - 0.0005 if extra > 0 else 0.0


# What the proxy itself adds on each leg.
ADDED = """
SELECT avg(r.t_sent_ns - r.t_received_ns) / 1e6 AS request_ms,
  (SELECT avg(t_forwarded_ns - t_ns) / 1e6 FROM chunks WHERE t_forwarded_ns IS NOT NULL) AS chunk_ms
FROM requests AS r
"""


def trial(args, scratch):
    programs = Programs(args.bin)
    arguments, means, stamps = TOOLS[args.tool]
    profile = args.tool.removesuffix("-rs")
    if args.follow and stamps is None:
        raise SystemExit(f"--follow: {args.tool} keeps no stamps that can be laid beside a recording's")
    args.scratch, args.tokenizer = scratch, byte_tokenizer(scratch / "tokenizer")
    simulator = ("simulate", "--listen", "127.0.0.1:0", "--ttft-ms", "100", "--itl-ms", "10", "--tokens", str(args.tokens))
    with programs.server("simulator on", *simulator) as upstream:
        out = scratch / "recordings"
        proxy = ("proxy", "--listen", "127.0.0.1:0", "--upstream", f"http://127.0.0.1:{upstream}", "--out", out)
        with programs.server("proxy on", *proxy) as port:
            args.url = f"http://127.0.0.1:{port}"
            command = [*shlex.split(args.command), *arguments(args)]
            wire = Wire(port) if args.follow else contextlib.nullcontext()
            with wire:
                done = subprocess.run(command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{shlex.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}")
    (recording,) = recordings(out)
    theirs = means(args)
    extra, warmup = before_the_run(programs, recording, theirs["requests"])
    more = ["--warmup", f"{warmup:.6f}s"] if extra > 0 else []
    report = json.loads(
        programs.run("analyze", "report", recording, "--as", profile, "--format", "json", *more, codes=(0, 1))
    )["recordings"][0]
    ours = {(m["metric"], m["stat"]): m["value"] for m in report["metrics"]}
    print(f"{args.tool}, {theirs['requests']:.0f} requests, {args.parallel} at a time, {args.tokens} tokens"
          f" ({extra} requests of its own before, verdict {report['verdict']})")
    print(f"\n| mean | {args.tool} | --as {profile} | difference |\n|---|--:|--:|--:|")
    for metric, stat in SHOWN:
        a, b = theirs.get(metric), ours[metric, stat]
        if a is not None and b is not None:
            print(f"| {metric} | {a:.3f} | {b:.3f} | {a - b:+.3f} ({100 * (a - b) / b:+.2f} %) |")
    if args.follow:
        of_tool = list(stamps(args, wall_offset_ns()))
        print_legs(args.tool, profile, follow(programs, recording, profile, of_tool, wire, extra))
    (added,) = programs.query(recording, ADDED)
    print(f"\nThe proxy held a request {added['request_ms']:.3f} ms and a chunk {added['chunk_ms']:.3f} ms, on average.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--command", required=True, help="how to call it; for sglang `python -m sglang.benchmark.serving`")
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of record, analyze and replay")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--follow", action="store_true", help="print where each request's time goes; needs root")
    parser.add_argument("--out", type=pathlib.Path, help="keep the recording and the tool's files in this new folder")
    args = parser.parse_args()
    args.bin = args.bin.resolve()
    if args.out:
        args.out.mkdir(parents=True)
        return trial(args, args.out.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        trial(args, pathlib.Path(scratch))


if __name__ == "__main__":
    main()
