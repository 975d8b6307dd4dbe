"""One request followed from the tool's own clock, over the wire and through the proxy, and back to the tool's stamp."""

import dataclasses
import json
import statistics

# One row per request that the tool counts: instants as `--as` takes them, behind the proxy.
REQUESTS = """
SELECT p.request_id, p.t_start_ns, p.ttft_ms, p.e2el_ms, r.t_received_ns, r.t_sent_ns
FROM peer_{tool} AS p JOIN requests AS r USING (recording_id, request_id, attempt)
WHERE p.counted ORDER BY r.t_received_ns
"""
# The proxy stamps after its write: the tool can have read by then. Wall clocks are known to some µs.
SLACK_NS = 500_000
CHUNKS = "SELECT request_id, t_ns, t_forwarded_ns FROM chunks WHERE t_forwarded_ns IS NOT NULL"
RECEIVED = "SELECT t_received_ns, url_path FROM requests ORDER BY t_received_ns"


@dataclasses.dataclass
class Followed:
    """Instants of one request on CLOCK_MONOTONIC, ns, in the order in which they happen."""

    start: int  # the tool's
    packet: int  # first packet: SYN, or the request's first byte on an open connection
    written: int  # segment with the request's last byte
    received: int  # the proxy has read it
    sent: int  # the proxy has written it on
    chunk: int  # the first token's chunk reached the proxy (kernel)
    forwarded: int  # the proxy has written it to the tool
    stamped: int  # the tool's first token
    as_start: int  # start of `--as`
    as_ttft: int
    e2el: int  # the tool's
    as_e2el: int


LEGS = [
    ("client: from its start to its first packet", "start", "packet"),
    ("client: connecting, writing the request", "packet", "written"),
    ("proxy: reading it", "written", "received"),
    ("proxy: passing it on", "received", "sent"),
    ("server, and the way there and back", "sent", "chunk"),
    ("proxy: passing the chunk on", "chunk", "forwarded"),
    ("client: from the chunk's write to its stamp", "forwarded", "stamped"),
]


def follow(programs, recording, tool, stamps, wire, extra):
    """All requests that tool, wire and recording know; ends the trial where they are not the same ones."""
    manifest = json.loads((recording / "recording.json").read_text())
    origin = manifest["monotonic_start_ns"]
    rows = programs.query(recording, RECEIVED)
    received, paths = [row["t_received_ns"] for row in rows], {row["url_path"] for row in rows}
    posts = [post for post in wire.requests() if post.path in paths]
    if len(posts) != len(received):
        raise SystemExit(f"{len(posts)} requests on the wire, {len(received)} in {recording}")
    on_wire = dict(zip(received, posts))
    chunks = {(c["request_id"], c["t_forwarded_ns"]): c["t_ns"] for c in programs.query(recording, CHUNKS)}
    # What it sent before, to try the server out, it does not count.
    counted = sorted(programs.query(recording, REQUESTS.format(tool=tool))[extra:], key=first_forwarded)
    if len(counted) != len(stamps):
        raise SystemExit(f"{len(stamps)} requests of the tool, {len(counted)} in {recording}")
    followed = []
    # First tokens are stamped in the order in which they are passed on.
    for (start, first, end), row in zip(sorted(stamps, key=lambda s: s[1]), counted):
        early, late = row["t_received_ns"] + origin - start, first - first_forwarded(row) - origin
        if min(early, late) < -SLACK_NS:
            raise SystemExit(f"request {row['request_id']} of {recording} does not lie within the tool's own stamps")
        post = on_wire[row["t_received_ns"]]
        forwarded = first_forwarded(row)
        followed.append(
            Followed(
                start=start,
                packet=post.t_syn_ns if (post.t_syn_ns or 0) > start else post.t_first_ns,
                written=post.t_last_ns,
                received=row["t_received_ns"] + origin,
                sent=row["t_sent_ns"] + origin,
                chunk=chunks[row["request_id"], forwarded] + origin,
                forwarded=forwarded + origin,
                stamped=first,
                as_start=row["t_start_ns"] + origin,
                as_ttft=forwarded - row["t_start_ns"],
                e2el=end - start,
                as_e2el=round(row["e2el_ms"] * 1e6),
            )
        )
    return followed


def first_forwarded(row):
    return row["t_start_ns"] + round(row["ttft_ms"] * 1e6)


def print_legs(tool, profile, followed):
    def row(name, values):
        ms = [value / 1e6 for value in values]
        print(f"| {name} | {statistics.median(ms):.3f} | {statistics.mean(ms):.3f} |")

    print(f"\n| {tool}, {len(followed)} requests followed, ms | p50 | mean |\n|---|--:|--:|")
    for name, begin, end in LEGS:
        row(name, [getattr(f, end) - getattr(f, begin) for f in followed])
    row(f"**TTFT of {tool}** (the sum)", [f.stamped - f.start for f in followed])
    row(f"TTFT `--as {profile}`", [f.as_ttft for f in followed])
    row("before `--as` starts: the proxy has read the head", [f.as_start - f.start for f in followed])
    row("after `--as` ends: the chunk is written to the client", [f.stamped - f.forwarded for f in followed])
    row("difference of TTFT", [f.stamped - f.start - f.as_ttft for f in followed])
    row("difference of E2EL", [f.e2el - f.as_e2el for f in followed])
