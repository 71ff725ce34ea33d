"""What overlapping sampling and judging saves in `gavel rounds`, with the judge on a server of its own.

    python -P benchmarks/overlap.py [--prompts 1024] [--repeats 3]

One round of the bundled policy, 8 samples of each prompt, judged by the bundled judge (GPTScore) behind a
real vLLM server on this machine; both have one thread. Sides take turns; what is timed are the stages sample
and judge, by the run's own events; the policy's engine was started before. Both sides must come to the same
judgments.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODELS = Path(__file__).parents[1] / "demo" / "models"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_NO_USAGE_STATS": "1",
              "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # fmt: skip

CONFIG = """
rounds = 1
[policy]
model = "{policy}"
max-model-len = 512
[prompts]
source = "{prompts}"
per_round = {count}
held_out = 32
[sample]
n = 8
max-tokens = 24
overlap = {overlap}
[judge]
model = "judge"
engine = "server"
base-url = "{address}"
tokenizer = "{judge}"
method = "gptscore"
form = "direct"
measure = "sum"
count-eos = true
[train]
method = "dpo"
reference = "previous"
epochs = 0.2
batch-size = 32
[evaluate]
judge = false
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(Path(name) / "server.log") as address:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", options.prompts + 32)
        spent: dict[bool, list[float]] = {False: [], True: []}
        for repeat in range(options.repeats):
            found = {}
            for overlap in (False, True):
                run = folder / f"{repeat}-{overlap}"
                spent[overlap].append(one_run(run, overlap, options.prompts, address))
                found[overlap] = scores(run)
            apart = max(abs(a - found[True][key]) for key, a in found[False].items())
            assert found[False].keys() == found[True].keys() and apart < 1e-3, "other judgments"
        ratios = [a / b for a, b in zip(spent[False], spent[True], strict=True)]
        for overlap, seconds in spent.items():
            print(f"overlap {overlap!s:5} {statistics.median(seconds):6.1f} s   {seconds}")
        print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


@contextmanager
def served(log: Path) -> Iterator[str]:
    """A server of the bundled judge; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", MODELS / "judge",
        "--served-model-name", "judge", "--host", "127.0.0.1", "--port", port, "--dtype", "float32",
        "--enforce-eager", "--max-model-len", 512, "--kv-cache-memory-bytes", 64 << 20,
    ]  # fmt: skip
    with open(log, "wb") as out:
        server = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=os.environ | ONE_THREAD,
                                  start_new_session=True)  # fmt: skip
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def write_prompts(path: Path, count: int) -> None:
    from demo.tasks import draw

    path.write_text("".join(json.dumps({"prompt": task.prompt}) + "\n" for task in draw("round", count)))


def one_run(run: Path, overlap: bool, prompts: int, address: str) -> float:
    """Seconds of sampling and judging."""
    given = {"policy": MODELS / "policy", "judge": MODELS / "judge", "address": address, "count": prompts}
    config = run.with_suffix(".toml")
    config.write_text(CONFIG.format(
        **given, prompts=run.with_name("prompts.jsonl"), overlap=str(overlap).lower()))  # fmt: skip
    command = [sys.executable, "-P", "-m", "gavel", "rounds", "start", config, "--out", run]
    done = subprocess.run([*map(str, command)], env=os.environ | ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    ends: dict[str, float] = {e["stage"]: e["seconds"] for e in events if e["what"] == "end"}
    return round(ends["01/sample"] + ends["01/judge"], 2)


def scores(run: Path) -> dict[str, float]:
    """Of each completion that was judged."""
    (file,) = run.glob("rounds/01/judgments/*/judgments.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {" ".join(row["completion_ids"]): row["score"] for row in rows if "score" in row}


if __name__ == "__main__":
    main()
