"""The three programs, run as a user would run them."""

import contextlib
import json
import pathlib
import re
import signal
import subprocess


class Programs:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        for name in ("record", "analyze", "replay"):
            if not (self.folder / name).exists():
                raise SystemExit(f"no {name} in {folder}: build with `cargo build --workspace --bins` and pass --bin")

    def run(self, name, *args, codes=(0,)):
        """Stdout of one command; ends the trial where it ends with another exit code than `codes`."""
        done = subprocess.run([self.folder / name, *map(str, args)], capture_output=True, text=True)
        if done.returncode not in codes:
            raise SystemExit(f"{name} {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def query(self, recording, sql):
        return json.loads(self.run("analyze", "query", recording, sql, "--format", "json"))

    @contextlib.contextmanager
    def server(self, said, *args, program="record"):
        """Runs `PROGRAM ARGS`, which says on stderr where it listens after `said`; yields its port. SIGTERM ends it."""
        process = subprocess.Popen([self.folder / program, *map(str, args)], stderr=subprocess.PIPE, text=True)
        lines = []
        try:
            for line in process.stderr:
                lines.append(line)
                if found := re.search(re.escape(said) + r" \S+://[^:/\s]+:(\d+)", line):
                    yield int(found[1])
                    break
            else:
                raise SystemExit(f"{program} {args[0]} did not start:\n{''.join(lines)}")
        finally:
            process.send_signal(signal.SIGTERM)
            for line in process.stderr:
                lines.append(line)
            if process.wait(60) != 0:
                raise SystemExit(f"{program} {args[0]} ended with exit {process.returncode}:\n{''.join(lines)}")


def recordings(root):
    return sorted(path.parent for path in pathlib.Path(root).glob("**/recording.json"))
