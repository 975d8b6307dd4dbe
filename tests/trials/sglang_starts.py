"""`python -m sglang.benchmark.serving`, but the start stamps of its requests, which its result file lacks, go to
`starts.json` in the working directory, where `peers.py --follow` looks for them."""

import json
import pathlib

from sglang.benchmark import serving

calculate_metrics = serving.calculate_metrics


def keeping_starts(*args, **kwargs):
    starts = [output.start_time for output in kwargs["outputs"]]
    pathlib.Path("starts.json").write_text(json.dumps(starts))
    return calculate_metrics(*args, **kwargs)


serving.calculate_metrics = keeping_starts
serving.cli_main()
