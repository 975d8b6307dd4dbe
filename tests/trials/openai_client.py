"""The `openai` package in front of a real server, through `record proxy`: what went in, what came out, what was kept.

    python openai_client.py --server http://127.0.0.1:8200 --bin target/debug

One byte tee stands between client and proxy, one between proxy and server; both know nothing of HTTP while they pass
bytes on. Afterwards every exchange is read out of both, and compared with each other and with the recording. The
recording is then checked, reported, and replayed against the same server. Exit code 1 if anything differs.
"""

import argparse
import asyncio
import json
import pathlib
import tempfile
import urllib.parse

import openai
from programs import Programs, recordings
from wiretap import Tee

HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
# Greedy, seeded, and no prefix cache: equal requests get equal answers.
SAME = {"temperature": 0, "seed": 1}
NO_CACHE = {"cache_prompt": False}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def say(text):
    return [{"role": "user", "content": text}]


def asked_for_weather():
    """Two questions that were answered by a call, then a third: even a small model goes on like this."""
    messages = []
    for number, city in enumerate(("Rome", "Lima")):
        call = {"id": f"call_{number}", "type": "function"}
        call["function"] = {"name": "weather", "arguments": json.dumps({"city": city})}
        messages += say(f"What is the weather in {city}?")
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "4 degrees"})
    return messages + say("What is the weather in Oslo?")


def chat(client, messages, **more):
    options = {"model": client.model, "max_tokens": 24, "extra_body": NO_CACHE} | SAME | more
    return client.chat.completions.create(messages=messages, **options)


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# Each case returns what the client library made of the answer, in a line.


def plain(client):
    answer = chat(client, say("Name a colour."))
    return f"{answer.usage.completion_tokens} tokens: {answer.choices[0].message.content!r}"


def streamed(client):
    chunks = list(chat(client, say("Name a river."), stream=True, stream_options={"include_usage": True}))
    return f"{len(chunks)} chunks, usage {chunks[-1].usage.completion_tokens}: {text_of(chunks)!r}"


def two_choices(client):
    answer = chat(client, say("Name a tree."), n=2, max_tokens=8)
    return f"{len(answer.choices)} choices"


def completion(client):
    more = {"model": client.model, "max_tokens": 16, "extra_body": NO_CACHE} | SAME
    chunks = list(client.completions.create(prompt="Once upon a time", stream=True, **more))
    return f"{len(chunks)} chunks: {''.join(c.choices[0].text for c in chunks if c.choices)!r}"


def tool(client):
    answer = chat(client, asked_for_weather(), tools=[WEATHER], tool_choice="required", max_tokens=40)
    calls = answer.choices[0].message.tool_calls or []
    return f"calls {[(c.function.name, c.function.arguments) for c in calls]}"


def tool_streamed(client):
    more = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 40, "stream": True}
    chunks = list(chat(client, asked_for_weather(), **more))
    deltas = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices and c.choices[0].delta.tool_calls]
    arguments = "".join(d.function.arguments or "" for d in deltas)
    return f"{len(deltas)} tool deltas: {deltas[0].function.name if deltas else None} {arguments}"


def utf8(client):
    chunks = list(chat(client, say("Répète : « ÿ 漢字 🦀 »."), stream=True))
    return f"{len(chunks)} chunks: {text_of(chunks)!r}"


def refused(client):
    try:
        chat(client, say("word " * 6000))
    except openai.BadRequestError as error:
        return f"HTTP {error.status_code}, as the server said"
    raise SystemExit("the server took a prompt longer than its context: use a smaller one (llama-server --ctx-size)")


def cancelled(client):
    taken = []
    with chat(client, say("Count from one to a hundred."), stream=True, max_tokens=400) as stream:
        for chunk in stream:
            taken.append(chunk)
            if len(taken) == 6:
                break
    return f"left after {len(taken)} chunks"


def models(client):
    return f"{client.models.list().data[0].id} (a path that is not recorded)"


CASES = [models, plain, streamed, two_choices, completion, tool, tool_streamed, utf8, refused, cancelled]


async def together(base_url, model, number):
    """`number` streams at once over one client."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-trial-not-to-be-kept", max_retries=0) as client:

        async def one(index):
            more = {"model": model, "max_tokens": 12, "extra_body": NO_CACHE, "stream": True} | SAME
            stream = await client.chat.completions.create(messages=say(f"Name number {index}."), **more)
            return [chunk async for chunk in stream]

        answers = await asyncio.gather(*(one(index) for index in range(number)))
    return f"{number} streams at once, {sum(map(len, answers))} chunks"


def end_to_end(message):
    # `Host` names the next hop: the one header that a proxy has to change.
    return [(n, v) for n, v in message.headers if n.lower() not in HOP_BY_HOP | {"host"}]


def pairs(client_leg, server_leg):
    """(exchange with the client, exchanges with the server) by request: the bytes tell which."""
    left = list(server_leg)
    for exchange in client_leg:
        same = [s for s in left if (s.request.start, s.request.body) == (exchange.request.start, exchange.request.body)]
        # Equal requests are passed on in their order; one may have met a closed connection and was sent again.
        taken = [s for s in same if s.response is None] + [s for s in same if s.response][:1]
        for one in taken:
            left.remove(one)
        yield exchange, taken
    for exchange in left:
        yield None, [exchange]


def differences(client_leg, server_leg):
    """What is not the same on both legs, and the counts of what was compared."""
    found, counts = [], dict.fromkeys(("exchanges", "request bytes", "response bytes", "left early", "sent again"), 0)
    for mine, others in pairs(client_leg, server_leg):
        theirs = next((o for o in others if o.response), None)
        if mine is None or theirs is None or mine.response is None:
            legs = f"{'yes' if mine else 'no'}, answered {'yes' if mine and mine.response else 'no'}; {len(others)} to the server"
            found.append(f"not whole: {(mine or others[0]).request.start} (from the client {legs})")
            continue
        counts["exchanges"] += 1
        counts["sent again"] += len(others) - 1
        counts["request bytes"] += len(mine.request.body)
        counts["response bytes"] += len(mine.response.body)
        name = mine.request.start.rsplit(" ", 1)[0]
        if mine.response.start != theirs.response.start:
            found.append(f"{name}: status {theirs.response.start!r} became {mine.response.start!r}")
        for what, a, b in (("request", mine.request, theirs.request), ("response", theirs.response, mine.response)):
            if end_to_end(a) != end_to_end(b):
                found.append(f"{name}: {what} headers {sorted(set(end_to_end(a)) ^ set(end_to_end(b)))}")
        if mine.response.whole and theirs.response.whole:
            if mine.response.body != theirs.response.body:
                found.append(f"{name}: response bodies differ")
        else:
            # On purpose, or after [DONE] without waiting for the end of the chunked encoding.
            counts["left early"] += 1
            if not theirs.response.body.startswith(mine.response.body):
                found.append(f"{name}: what was read before leaving is not how the answer began")
    return found, counts


def payloads(body):
    """The payloads of an event stream, framed here and not by Tapedeck."""
    events = body.replace(b"\r\n", b"\n").split(b"\n\n")
    # The last piece is empty, or an event that was cut off.
    return [b"\n".join(l[5:].removeprefix(b" ") for l in e.split(b"\n") if l.startswith(b"data:")) for e in events[:-1]]


def recorded_differently(programs, recording, server_leg):
    """What the recording does not hold as it passed on the server's leg."""
    rows = programs.query(
        recording,
        "SELECT r.request_id, r.attempt, encode(r.body, 'hex') AS request, p.outcome, p.chunk_count,"
        " encode(p.body, 'hex') AS response FROM requests AS r JOIN responses AS p USING (request_id, attempt)"
        " ORDER BY r.request_id, r.attempt",
    )
    data = {}
    for c in programs.query(
        recording,
        "SELECT request_id, attempt, encode(data, 'hex') AS payload FROM chunks ORDER BY request_id, attempt, chunk_index",
    ):
        data.setdefault((c["request_id"], c["attempt"]), []).append(bytes.fromhex(c["payload"] or ""))
    # One exchange for one row: equal requests are held apart by taking what is found.
    left = [e for e in server_leg if e.request.start.startswith("POST")]
    found = []
    for row in rows:
        body = bytes.fromhex(row["request"] or "")
        failed = row["outcome"] == "connection_error"
        exchange = next((e for e in left if e.request.body == body and (e.response is None) == failed), None)
        name = f"request {row['request_id']} attempt {row['attempt']} ({row['outcome']})"
        if exchange is None:
            found.append(f"{name}: no such request passed")
            continue
        left.remove(exchange)
        if exchange.response is None:
            continue
        chunks = data.get((row["request_id"], row["attempt"]), [])
        if "event-stream" in (exchange.response.header("content-type") or ""):
            sent = payloads(exchange.response.body)
            # After the client left, what was on its way may not have been read.
            same = sent == chunks or (row["outcome"] == "cancelled" and sent[: len(chunks)] == chunks)
            if not same:
                found.append(f"{name}: {len(chunks)} chunks recorded, {len(sent)} sent, or not equal")
        elif bytes.fromhex(row["response"] or "") != exchange.response.body:
            found.append(f"{name}: another body")
    found += [f"not recorded: {e.request.start}" for e in left]
    outcomes = [row["outcome"] for row in rows]
    if (outcomes.count("cancelled"), outcomes.count("http_error")) != (1, 1):
        found.append("one request was left early and one refused, but these are the outcomes:")
    counted = ", ".join(f"{outcomes.count(o)} {o}" for o in sorted(set(outcomes)))
    return found, f"{len(rows)} attempts ({counted}), {sum(map(len, data.values()))} chunks"


HASHES = (
    "SELECT body_hash FROM requests WHERE attempt = 0 AND phase = 'measure'"
    " ORDER BY coalesce(t_received_ns, t_scheduled_ns), request_id"
)
TEXTS = (
    "SELECT coalesce(r.replay_of, r.request_id) AS id, string_agg(output_text(c.data), '' ORDER BY c.chunk_index) AS text"
    " FROM requests AS r JOIN responses AS p USING (request_id, attempt) JOIN chunks AS c USING (request_id, attempt)"
    " WHERE p.outcome = 'ok' AND c.choice_index = 0 GROUP BY 1 ORDER BY 1"
)


def replayed(programs, recording, server, out):
    programs.run("replay", "run", recording, "--url", server, "--out", out, "--no-report", codes=(0, 1))
    found = []
    if programs.query(recording, HASHES) != programs.query(out, HASHES):
        found.append("the replay sent other bodies, or in another order")
    was = {row["id"]: row["text"] for row in programs.query(recording, TEXTS)}
    now = {row["id"]: row["text"] for row in programs.query(out, TEXTS)}
    same = sum(was[i] == now.get(i) for i in was)
    return found, f"{same} of {len(was)} streamed answers came back with the same text"


def report(programs, recording):
    r = json.loads(programs.run("analyze", "report", recording, "--format", "json"))["recordings"][0]
    mean = {m["metric"]: m["value"] for m in r["metrics"] if m["stat"] == "mean"}
    shown = ", ".join(f"{name} {mean[name]:.2f}" for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms") if mean.get(name))
    return f"verdict {r['verdict']}, {', '.join(f'{n} {what}' for what, n in r['counts'].items())}, mean {shown}"


def trial(args, root):
    programs = Programs(args.bin)
    # What both tees saw is read only after the proxy has ended.
    there = urllib.parse.urlsplit(args.server)
    server_tee = Tee(there.hostname, there.port or 80)
    upstream = f"http://127.0.0.1:{server_tee.port}"
    proxy = ("proxy", "--listen", "127.0.0.1:0", "--upstream", upstream, "--out", root / "recordings", "--drain-timeout", "60s")
    with programs.server("proxy on", *proxy) as port:
        client_tee = Tee("127.0.0.1", port)
        base_url = f"http://127.0.0.1:{client_tee.port}/v1"
        with openai.OpenAI(base_url=base_url, api_key="sk-trial-not-to-be-kept", max_retries=0) as client:
            client.model = args.model or client.models.list().data[0].id
            for case in CASES:
                print(f"  {case.__name__:<14} {case(client)}", flush=True)
        print(f"  {'together':<14} {asyncio.run(together(base_url, client.model, 8))}", flush=True)
    client_leg, server_leg = client_tee.close(), server_tee.close()
    (recording,) = recordings(root / "recordings")

    failures = []

    def show(what, found, counted):
        failures.extend(found)
        print(f"{what:<10} {'ok' if not found else 'NOT OK'}: {counted}")
        for line in found:
            print(f"           {line}")

    found, counts = differences(client_leg, server_leg)
    show("both legs", found, ", ".join(f"{n} {what}" for what, n in counts.items()))
    show("recorded", *recorded_differently(programs, recording, server_leg))
    show("checked", [], programs.run("analyze", "check", recording).strip().splitlines()[-1])
    show("analyzed", [], report(programs, recording))
    again = root / "again"
    show("replayed", *replayed(programs, recording, args.server, again))
    show("checked", [], programs.run("analyze", "check", again).strip().splitlines()[-1])
    show("analyzed", [], report(programs, again))
    kept = [f for f in root.rglob("*") if f.is_file() and b"sk-trial-not-to-be-kept" in f.read_bytes()]
    show("secrets", [f"the API key is in {f.relative_to(root)}" for f in kept], f"the API key is in {len(kept)} files")
    return bool(failures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help="OpenAI-compatible server, http://HOST:PORT")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of record, analyze and replay")
    parser.add_argument("--out", type=pathlib.Path, help="keep the recordings in this new folder")
    args = parser.parse_args()
    print(f"openai {openai.__version__} through record proxy to {args.server}")
    if args.out:
        args.out.mkdir(parents=True)
        return trial(args, args.out)
    with tempfile.TemporaryDirectory() as scratch:
        return trial(args, pathlib.Path(scratch))


if __name__ == "__main__":
    raise SystemExit(main())
