"""How long vLLM takes to be ready with a bundled model, after imports; and a second engine beside it.

    python benchmarks/engine_start.py [--repeats 3]

Each repeat is a process of its own, since the first engine of a process is what is measured. "ready"
includes the first sampled and the first scored completion.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def once() -> dict[str, float]:
    """Seconds for imports, the first engine, its first replies, a second engine and its first reply."""
    started = time.perf_counter()
    from demo.run import MODELS
    from gavel.engines import EngineConfig, open_engine
    from gavel.engines.vllm import prepare_environment
    from gavel.protocols import SampleRequest, ScoreRequest
    from gavel.records import Message, Sampling

    prepare_environment()
    import vllm  # noqa: F401
    from vllm import LLM  # noqa: F401

    marks = {"imports": time.perf_counter() - started}
    started = time.perf_counter()
    with open_engine(EngineConfig(model=str(MODELS / "policy"), engine="vllm")) as policy:
        marks["first engine"] = time.perf_counter() - started
        ids = policy.tokenizer.chat_ids([Message("user", "What is 2 + 2?")])
        request = SampleRequest(key="a", prompt=ids, sampling=Sampling(max_tokens=4), seed=0)
        started = time.perf_counter()
        list(policy.sample([request]))
        list(policy.score([ScoreRequest(key="a", token_ids=[*ids, *ids], start=len(ids))]))
        marks["first replies"] = time.perf_counter() - started
        started = time.perf_counter()
        with open_engine(EngineConfig(model=str(MODELS / "judge"), engine="vllm")) as judge:
            marks["second engine"] = time.perf_counter() - started
            started = time.perf_counter()
            list(judge.score([ScoreRequest(key="a", token_ids=[*ids, *ids], start=len(ids))]))
            marks["its first reply"] = time.perf_counter() - started
        started = time.perf_counter()
        policy.load_weights(str(MODELS / "policy"))
        marks["load weights"] = time.perf_counter() - started
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once()))
        return
    found: list[dict[str, float]] = []
    for _ in range(arguments.repeats):
        ran = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", __file__, "--once"],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(ran.stdout.splitlines()[-1]))
    for name in found[0]:
        values = [marks[name] for marks in found]
        print(
            f"{name:16} median {statistics.median(values):6.2f} s   ({', '.join(f'{v:.2f}' for v in values)})"
        )


if __name__ == "__main__":
    main()
