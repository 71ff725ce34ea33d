"""Sampling throughput: `gavel generate`'s stage, records written, against plain `LLM.generate`.

    python benchmarks/sampling.py [--model DIR] [--prompts 1024] [--n 8] [--repeats 5]

Both sides use one vLLM engine in one process, the same prompts, per-request seeds and settings, and
take turns; medians and the ratio are printed. "plain" returns token ids, text and log-probabilities
and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from demo.run import MODELS
from demo.tasks import draw
from gavel.engines import EngineConfig, open_engine
from gavel.records import Message, Prompt, Sampling, digest, seed_for
from gavel.rundir import RunDir
from gavel.sources import BadRows
from generate.stage import GenerateConfig, generate, take_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODELS / "policy"))
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sampling = Sampling(max_tokens=arguments.max_tokens)
    texts = [task.prompt for task in draw("round", arguments.prompts)]
    prompts = [Prompt(id=digest(t), messages=(Message("user", t),)) for t in texts]
    rates: dict[str, list[float]] = {"plain": [], "gavel": []}
    with open_engine(EngineConfig(model=arguments.model, engine="vllm", context=512)) as engine:
        for repeat in range(-1, arguments.repeats):  # the first warms up
            plain = _plain(engine, prompts, sampling, arguments.n, repeat + 1)
            gavel = _gavel(engine, prompts, sampling, arguments.n, repeat + 1)
            print(
                f"{'warm-up' if repeat < 0 else repeat}: plain {plain:,.0f} tokens/s, gavel {gavel:,.0f}",
                flush=True,
            )
            if repeat >= 0:
                rates["plain"].append(plain)
                rates["gavel"].append(gavel)
    ratios = [g / p for g, p in zip(rates["gavel"], rates["plain"], strict=True)]
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"medians: plain {medians['plain']:,.0f} tokens/s, gavel {medians['gavel']:,.0f} tokens/s")
    print(f"ratio of medians {medians['gavel'] / medians['plain']:.3f}")
    print(f"median of ratios {statistics.median(ratios):.3f}")


def _plain(engine, prompts, sampling: Sampling, n: int, seed: int) -> float:  # type: ignore[no-untyped-def]
    from vllm import SamplingParams

    started = time.perf_counter()
    inputs, params = [], []
    for prompt in prompts:
        ids = engine.tokenizer.chat_ids(prompt.messages)
        for index in range(n):
            inputs.append({"prompt_token_ids": ids})
            params.append(
                SamplingParams(
                    temperature=1.0,
                    max_tokens=sampling.max_tokens,
                    logprobs=0,
                    seed=seed_for(seed, prompt.id, index),
                )
            )
    outputs = engine._llm.generate(inputs, params, use_tqdm=False)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return tokens / (time.perf_counter() - started)


def _gavel(engine, prompts, sampling: Sampling, n: int, seed: int) -> float:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder, RunDir.open(Path(folder) / "run") as run:
        started = time.perf_counter()
        ids = take_in(run, lambda bad: prompts, BadRows(0))
        summary = generate(run, engine, GenerateConfig(n=n, seed=seed, sampling=sampling), ids=ids)
        tokens: int = summary["tokens"]
        return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
