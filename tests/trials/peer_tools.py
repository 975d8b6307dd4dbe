"""Other load generators: how to call each, where it leaves its means, and its own stamps of each request."""

import json
import sqlite3


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
        *("--save-result", "--save-detailed", "--result-dir", str(run.scratch), "--result-filename", "out.json"),
    ]


def sglang_arguments(run):
    return [
        *("--backend", "sglang-oai-chat", "--base-url", run.url, "--model", "sim", "--tokenizer", str(run.tokenizer)),
        *("--dataset-name", "random-ids", "--random-input-len", "50", "--random-output-len", str(run.tokens)),
        *("--random-range-ratio", "1", "--num-prompts", str(run.number), "--max-concurrency", str(run.parallel)),
        *("--warmup-requests", "0", "--disable-tqdm", "--output-file", str(run.scratch / "out.json")),
        "--output-details",
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


# Each tool's own stamps of the requests it counts: start and first token, ns of CLOCK_MONOTONIC (which is Python's
# perf_counter), and the end of its E2EL. `wall_offset` is CLOCK_REALTIME − CLOCK_MONOTONIC, for tools that stamp with that.


def guidellm_stamps(run, wall_offset):
    requests = json.loads((run.scratch / "out.json").read_text())["benchmarks"][0]["requests"]["successful"]
    timings = [request["info"]["timings"] for request in requests]
    names = ("request_start", "first_token_iteration", "request_end")
    return [tuple(round(t[name] * 1e9) - wall_offset for name in names) for t in timings]


def aiperf_stamps(run, wall_offset):
    lines = (run.scratch / "out/profile_export.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        start = record["metadata"]["request_start_ns"] - wall_offset
        metrics = record["metrics"]
        took = [round(metrics[name]["value"] * 1e6) for name in ("time_to_first_token", "request_latency")]
        yield start, start + took[0], start + took[1]


def evalscope_stamps(run, _):
    (database,) = (run.scratch / "out").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT start_time, first_chunk_latency, latency FROM result WHERE success").fetchall()
    return [bench_stamp(*row) for row in rows]


def bench_stamps(run, _):
    """vLLM's and SGLang's result files. Both drop the E2EL of a request, which is its TTFT and all its ITLs."""
    found = json.loads((run.scratch / "out.json").read_text().splitlines()[-1])
    kept = run.scratch / "starts.json"
    starts = json.loads(kept.read_text()) if kept.exists() else found.get("start_times")
    if starts is None:
        raise SystemExit("no start stamps: to follow SGLang, give sglang_starts.py as its --command")
    rows = zip(starts, found["ttfts"], found["itls"])
    return [bench_stamp(start, ttft, ttft + sum(itls)) for start, ttft, itls in rows]


def bench_stamp(start_s, ttft_s, e2el_s):
    return tuple(round(t * 1e9) for t in (start_s, start_s + ttft_s, start_s + e2el_s))


# The profile of a Rust client is that of its Python model; what it stamps with is not CLOCK_MONOTONIC.
TOOLS = {
    "aiperf": (aiperf_arguments, aiperf_means, aiperf_stamps),
    "evalscope": (evalscope_arguments, evalscope_means, evalscope_stamps),
    "guidellm": (guidellm_arguments, guidellm_means, guidellm_stamps),
    "sglang": (sglang_arguments, bench_means, bench_stamps),
    "sglang-rs": (sglang_arguments, bench_means, None),
    "vllm": (vllm_arguments, bench_means, bench_stamps),
    "vllm-rs": (vllm_arguments, bench_means, None),
}
