"""Another load generator in front of the embedded simulator, `record proxy` between: its own means beside `--as` it.

    python peers.py guidellm --command path/to/guidellm --bin target/debug

Prints what the tool reported, what `analyze report --as TOOL` makes of the recording, and the difference, which is what
happens in the client before the proxy has the request and after it has passed the bytes on.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import tempfile

from programs import Programs, recordings

SHOWN = [
    ("ttft_ms", "mean"),
    ("tpot_ms", "mean"),
    ("itl_ms", "mean"),
    ("e2el_ms", "mean"),
    ("output_tokens", "mean"),
    ("request_throughput", "value"),
    ("output_token_throughput", "value"),
]


def byte_tokenizer(folder):
    """A tokenizer whose tokens are bytes: tools want one, though the server counts."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = (b for b in range(256) if b not in printable)
    alphabet = sorted(map(chr, printable)) + [chr(256 + i) for i, _ in enumerate(spare)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {c: i for i, c in enumerate(alphabet)}, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": level}
    tokenizer |= {"post_processor": None, "decoder": level, "model": model}
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 100000, "chat_template": template}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# Each tool: its arguments, and its means in our names and units.


def guidellm_arguments(run):
    return [
        "run",
        *("--backend", f"kind=openai_http,target={run.url},model=sim"),
        *("--profile", f"kind=concurrent,streams={run.parallel}"),
        *("--constraint", f"kind=max_requests,count={run.number}"),
        *("--tokenizer", f"kind=huggingface_auto,model={run.tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=50,output_tokens={run.tokens}"),
        *("--output", f"kind=json,path={run.scratch / 'out.json'}"),
        "--disable-console-interactive",
    ]


def guidellm_means(run):
    metrics = json.loads((run.scratch / "out.json").read_text())["benchmarks"][0]["metrics"]
    mean = {name: m["successful"]["mean"] for name, m in metrics.items() if isinstance(m, dict) and m.get("successful")
            and isinstance(m["successful"], dict) and "mean" in m["successful"]}
    return {
        "requests": metrics["request_totals"]["successful"],
        "ttft_ms": mean["time_to_first_token_ms"],
        "tpot_ms": mean["time_per_output_token_ms"],
        "itl_ms": mean["inter_token_latency_ms"],
        "e2el_ms": mean["request_latency"] * 1e3,
        "output_tokens": mean["output_token_count"],
        "request_throughput": mean["requests_per_second"],
        "output_token_throughput": mean["output_tokens_per_second"],
    }


def aiperf_arguments(run):
    return [
        *("profile", "--model", "sim", "--url", run.url, "--endpoint-type", "chat", "--streaming"),
        *("--concurrency", str(run.parallel), "--request-count", str(run.number)),
        *("--tokenizer", str(run.tokenizer), "--use-server-token-count"),
        *("--synthetic-input-tokens-mean", "50", "--output-tokens-mean", str(run.tokens)),
        *("--artifact-dir", str(run.scratch / "out"), "--ui", "none"),
    ]


def aiperf_means(run):
    found = json.loads((run.scratch / "out/profile_export_aiperf.json").read_text())
    return {
        "requests": found["request_count"]["avg"],
        "ttft_ms": found["time_to_first_token"]["avg"],
        "tpot_ms": found["inter_token_latency"]["avg"],
        "itl_ms": found["inter_token_latency"]["avg"],
        "e2el_ms": found["request_latency"]["avg"],
        "output_tokens": found["output_sequence_length"]["avg"],
        "request_throughput": found["request_throughput"]["avg"],
        "output_token_throughput": found["output_token_throughput"]["avg"],
    }


def evalscope_arguments(run):
    prompts = run.scratch / "prompts.txt"
    prompts.write_text("".join(f"Tell me story {i} of a river.\n" for i in range(run.number)))
    return [
        *("perf", "--url", f"{run.url}/v1/chat/completions", "--api", "openai", "--model", "sim", "--stream"),
        *("--parallel", str(run.parallel), "--number", str(run.number)),
        *("--dataset", "line_by_line", "--dataset-path", str(prompts)),
        *("--max-tokens", str(run.tokens), "--min-tokens", str(run.tokens)),
        *("--outputs-dir", str(run.scratch / "out"), "--no-timestamp"),
    ]


def evalscope_means(run):
    (summary,) = (run.scratch / "out").rglob("benchmark_summary.json")
    found = json.loads(summary.read_text())
    return {
        "requests": found["Success Requests"],
        "ttft_ms": found["Avg TTFT (ms)"],
        "tpot_ms": found["Avg TPOT (ms)"],
        "itl_ms": found["Avg ITL (ms)"],
        "e2el_ms": found["Avg Latency (s)"] * 1e3,
        "output_tokens": found["Avg Output Tokens"],
        "request_throughput": found["Req Throughput (req/s)"],
        "output_token_throughput": found["Output Throughput (tok/s)"],
    }


def vllm_arguments(run):
    return [
        *("bench", "serve", "--backend", "openai-chat", "--base-url", run.url, "--endpoint", "/v1/chat/completions"),
        *("--model", "sim", "--tokenizer", str(run.tokenizer), "--dataset-name", "random"),
        *("--random-input-len", "50", "--random-output-len", str(run.tokens), "--ignore-eos"),
        *("--num-prompts", str(run.number), "--max-concurrency", str(run.parallel)),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(run.scratch), "--result-filename", "out.json"),
    ]


def sglang_arguments(run):
    return [
        *("--backend", "sglang-oai-chat", "--base-url", run.url, "--model", "sim", "--tokenizer", str(run.tokenizer)),
        *("--dataset-name", "random-ids", "--random-input-len", "50", "--random-output-len", str(run.tokens)),
        *("--random-range-ratio", "1", "--num-prompts", str(run.number), "--max-concurrency", str(run.parallel)),
        *("--warmup-requests", "0", "--disable-tqdm", "--output-file", str(run.scratch / "out.json")),
    ]


def bench_means(run):
    """vLLM's and SGLang's result files, which are of one family."""
    found = json.loads((run.scratch / "out.json").read_text().splitlines()[-1])
    return {
        "requests": found["completed"],
        "ttft_ms": found["mean_ttft_ms"],
        "tpot_ms": found["mean_tpot_ms"],
        "itl_ms": found["mean_itl_ms"],
        "e2el_ms": found.get("mean_e2el_ms", found.get("mean_e2e_latency_ms")),
        "output_tokens": found["total_output_tokens"] / found["completed"],
        "request_throughput": found["request_throughput"],
        "output_token_throughput": found["output_throughput"],
    }


TOOLS = {
    "aiperf": (aiperf_arguments, aiperf_means),
    "evalscope": (evalscope_arguments, evalscope_means),
    "guidellm": (guidellm_arguments, guidellm_means),
    "sglang": (sglang_arguments, bench_means),
    "vllm": (vllm_arguments, bench_means),
}


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
    arguments, means = TOOLS[args.tool]
    args.scratch, args.tokenizer = scratch, byte_tokenizer(scratch / "tokenizer")
    simulator = ("simulate", "--listen", "127.0.0.1:0", "--ttft-ms", "100", "--itl-ms", "10", "--tokens", str(args.tokens))
    with programs.server("simulator on", *simulator) as upstream:
        out = scratch / "recordings"
        proxy = ("proxy", "--listen", "127.0.0.1:0", "--upstream", f"http://127.0.0.1:{upstream}", "--out", out)
        with programs.server("proxy on", *proxy) as port:
            args.url = f"http://127.0.0.1:{port}"
            command = [*shlex.split(args.command), *arguments(args)]
            done = subprocess.run(command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{shlex.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}")
    (recording,) = recordings(out)
    theirs = means(args)
    extra, warmup = before_the_run(programs, recording, theirs["requests"])
    more = ["--warmup", f"{warmup:.6f}s"] if extra > 0 else []
    report = json.loads(
        programs.run("analyze", "report", recording, "--as", args.tool, "--format", "json", *more, codes=(0, 1))
    )["recordings"][0]
    ours = {(m["metric"], m["stat"]): m["value"] for m in report["metrics"]}
    print(f"{args.tool}, {theirs['requests']:.0f} requests, {args.parallel} at a time, {args.tokens} tokens"
          f" ({extra} requests of its own before, verdict {report['verdict']})")
    print(f"\n| mean | {args.tool} | --as {args.tool} | difference |\n|---|--:|--:|--:|")
    for metric, stat in SHOWN:
        a, b = theirs.get(metric), ours[metric, stat]
        if a is not None and b is not None:
            print(f"| {metric} | {a:.3f} | {b:.3f} | {a - b:+.3f} ({100 * (a - b) / b:+.2f} %) |")
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
