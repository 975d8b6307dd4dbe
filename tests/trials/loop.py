"""record (proxy, real server) -> replay -> compare, and the recording as a server of its own.

    python loop.py --server http://127.0.0.1:8200 --bin target/debug

Exit code 1 if a body, their order or a served answer differs. Errors of time are printed, not judged: they are the
machine's as much as ours.
"""

import argparse
import json
import pathlib
import sys
import tempfile

from programs import Programs, recordings

QUESTIONS = ("Name a river", "Describe a tree", "Count to five", "Write a line about rain", "What is bread")

ARRIVALS = """
SELECT body_hash, t_received_ns FROM requests WHERE attempt = 0 AND t_received_ns IS NOT NULL ORDER BY t_received_ns
"""
# What the server said, however it was cut into chunks; an id or an instant in a chunk is another one each time.
TEXTS = """
SELECT q.body_hash, string_agg(output_text(c.data), '' ORDER BY c.chunk_index) AS text
FROM chunks AS c JOIN requests AS q USING (recording_id, request_id, attempt) GROUP BY q.body_hash
"""
BYTES = """
SELECT q.body_hash, c.chunk_index, encode(c.data, 'hex') AS data FROM chunks AS c
JOIN requests AS q USING (recording_id, request_id, attempt) WHERE q.phase = 'measure' ORDER BY 1, 2
"""
READS = """
SELECT q.body_hash, min(c.chunk_index) AS chunk_index, min(c.t_ns) AS t_ns FROM chunks AS c
JOIN requests AS q USING (recording_id, request_id, attempt) WHERE q.phase = 'measure'
GROUP BY q.body_hash, c.read_index ORDER BY 1, 2
"""


def quantile(values, share):
    """The nearest rank."""
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def row(name, values_ns):
    """One line of the table: ms."""
    values = [abs(v) / 1e6 for v in values_ns]
    cells = (*(quantile(values, share) for share in (0.5, 0.9, 0.99)), max(values))
    print(f"| {name} | {len(values)} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


def header(title):
    print(f"\n| {title} | n | p50 | p90 | p99 | max |\n|---|--:|--:|--:|--:|--:|")


def gaps(instants):
    return [b - a for a, b in zip(instants, instants[1:])]


def read_gaps(programs, recording):
    """The gap before each read, by body and first chunk."""
    found, before = {}, None
    for read in programs.query(recording, READS):
        if before and before["body_hash"] == read["body_hash"]:
            found[read["body_hash"], read["chunk_index"]] = read["t_ns"] - before["t_ns"]
        before = read
    return found


class Trial:
    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch
        self.programs = Programs(args.bin)
        self.wrong = []

    def expect(self, what, equal):
        print(f"- {what}: {'yes' if equal else 'NO'}")
        if not equal:
            self.wrong.append(what)

    def bodies(self):
        path = self.scratch / "bodies.jsonl"
        with path.open("w") as out:
            for n in range(self.args.number):
                body = {
                    "model": self.args.model,
                    "messages": [{"role": "user", "content": f"{QUESTIONS[n % len(QUESTIONS)]}, number {n}."}],
                    "max_tokens": self.args.tokens,
                    "temperature": 0,
                    "seed": 1,
                    "cache_prompt": False,
                }
                out.write(json.dumps(body) + "\n")
        return path

    def through_proxy(self, name, program, *command):
        """Runs a program against a proxy before the server; what the proxy recorded, and the program."""
        root, out = self.scratch / f"{name}-proxy", self.scratch / name
        proxy = ("proxy", "--listen", "127.0.0.1:0", "--upstream", self.args.server, "--out", root)
        with self.programs.server("proxy on", *proxy) as port:
            url = f"http://127.0.0.1:{port}"
            self.programs.run(program, *command, "--url", url, "--no-probe", "--no-report", "--out", out)
        (recorded,) = recordings(root)
        return recorded, out

    def run(self):
        load = ("load", "--dataset", "line_by_line", "--dataset-path", self.bodies(), "--rate", self.args.rate)
        original, _ = self.through_proxy("original", "record", *load, "--number", self.args.number)
        warm = ("--warm-connections", self.args.warm) if self.args.warm else ()
        replayed, replay = self.through_proxy("replay", "replay", "run", original, *warm)
        self.compare(original, replayed, replay)
        self.serve(original, warm)
        return self.wrong

    def compare(self, original, replayed, replay):
        query = self.programs.query
        base, new = query(original, ARRIVALS), query(replayed, ARRIVALS)
        hashes = [[r["body_hash"] for r in rows] for rows in (base, new)]
        print(f"{len(base)} requests at {self.args.rate} a second, {self.args.tokens} tokens each\n")
        self.expect("the same bodies", sorted(hashes[0]) == sorted(hashes[1]))
        self.expect("in the same order", hashes[0] == hashes[1])
        texts = [{r["body_hash"]: r["text"] for r in query(path, TEXTS)} for path in (original, replayed)]
        same = sum(texts[1].get(key) == text for key, text in texts[0].items())
        print(f"- the same text of the model: {same} of {len(texts[0])}")
        header("error, ms")
        pairs = zip(*(gaps([r["t_received_ns"] for r in rows]) for rows in (base, new)))
        row("gaps between arrivals, at the proxies", [b - a for a, b in pairs])
        print("\n```")
        print(self.programs.run("analyze", "compare", original, replay, codes=(0, 1)).rstrip())
        print("```")

    def serve(self, original, warm):
        out = self.scratch / "served"
        command = ("serve", original, "--listen", "127.0.0.1:0", "--no-order")
        with self.programs.server("answers on", *command, program="replay") as port:
            url = f"http://127.0.0.1:{port}"
            self.programs.run("replay", "run", original, *warm, "--url", url, "--no-probe", "--no-report", "--out", out)
        print("\nThe recording served, and replayed against itself:\n")
        chunks = [self.programs.query(path, BYTES) for path in (original, out)]
        self.expect(f"the same {len(chunks[0])} chunks", chunks[0] == chunks[1])
        recorded, served = read_gaps(self.programs, original), read_gaps(self.programs, out)
        shared = recorded.keys() & served.keys()
        header("gaps between reads, ms")
        row("recorded", recorded.values())
        row("served", served.values())
        row("difference", [served[key] - recorded[key] for key in shared])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help="URL of an OpenAI-compatible server")
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of record, analyze and replay")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--rate", type=float, default=3)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--warm", type=int, default=0, help="connections that replays open beforehand")
    parser.add_argument("--out", type=pathlib.Path, help="keep the recordings in this new folder")
    args = parser.parse_args()
    args.bin = args.bin.resolve()
    if args.out:
        args.out.mkdir(parents=True)
        wrong = Trial(args, args.out.resolve()).run()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            wrong = Trial(args, pathlib.Path(scratch)).run()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
