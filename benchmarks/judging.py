"""Judgments per second of each method, records written, against the same requests sent straight to vLLM.

    python -P benchmarks/judging.py [--judge DIR] [--prompts 256] [--k 4] [--repeats 5] [--method NAME ...]

Both sides use one engine in one process and take turns. "plain" hands the same requests to
`LLM.generate` all at once: no reading of replies, no records. It is measured with the requests ready
beforehand ("ready"), and with the time to render them by the same code ("rendered"), which nobody who
asks by hand is spared. gavel's time has rendering, reading, records and fsync in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it, before torch is loaded

from demo.mistakes import mistake
from demo.run import MODELS
from demo.tasks import draw
from gavel.engines import EngineConfig, open_engine
from gavel.errors import CheckFailed
from gavel.protocols import SampleRequest, ScoreRequest
from gavel.records import Completion, Message, Prompt, digest
from gavel.rundir import JsonlWriter, RunDir
from judge.gptscore import GptScore
from judge.listwise import Listwise
from judge.method import Method
from judge.pairwise import Pairwise, Principles
from judge.rating import Rating
from judge.stage import judge

FORMS = str(MODELS.parent / "judging.toml")  # what the bundled judge was trained to answer
METHODS: dict[str, Callable[[], Method]] = {
    "gptscore": lambda: GptScore(form="direct", count_eos=True),
    "rating": lambda: Rating(preset="rating", forms_file=FORMS),
    "rating/choice": lambda: Rating(preset="rating", forms_file=FORMS, verdict="choice"),
    "rating/text": lambda: Rating(verdict="text", max_tokens=16),
    "pairwise": lambda: Pairwise(preset="choice", forms_file=FORMS),
    "pairwise/long": Pairwise,
    "listwise": lambda: Listwise(max_tokens=16),
    "principles": Principles,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default=str(MODELS / "judge"))
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--method", action="append", choices=list(METHODS))
    arguments = parser.parse_args()
    groups = candidates(arguments.prompts, arguments.k)
    with open_engine(EngineConfig(model=arguments.judge, engine="vllm")) as engine:
        for name in arguments.method or METHODS:
            measure(name, METHODS[name](), engine, groups, arguments.repeats)


def candidates(count: int, k: int) -> list[tuple[Prompt, list[Completion]]]:
    """The right answer of a task and k - 1 different mistakes."""
    rng = random.Random(0)
    groups = []
    for task in draw("round", count):
        name = digest(task.prompt)
        texts = {task.answer: None}
        while len(texts) < k:
            texts[mistake(task, rng)] = None
        prompt = Prompt(id=name, messages=(Message("user", task.prompt),))
        groups.append(
            (
                prompt,
                [Completion(id=f"{name}-{i}", prompt_id=name, index=i, text=t) for i, t in enumerate(texts)],
            )
        )
    return groups


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and seconds of processor time: those that other programs take do not count."""

    wall: float
    cpu: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


def timed(work: Callable[[], Any]) -> tuple[Any, Spent]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def measure(name: str, method: Method, engine: Any, groups: Any, repeats: int) -> None:
    sides: dict[str, list[Spent]] = {"ready": [], "rendered": [], "gavel": []}
    for repeat in range(-1, repeats):  # the first warms up
        turns = [lambda: plain(engine, method, groups), lambda: gavel(engine, method, groups)]
        found = [turn() for turn in (turns if repeat % 2 else turns[::-1])]
        (asked, rendering, generating), mine = found if repeat % 2 else found[::-1]
        if repeat >= 0:
            sides["ready"].append(generating)
            sides["rendered"].append(generating + rendering)
            sides["gavel"].append(mine)
    rates = {side: len(asked) / statistics.median(one.wall for one in spent) for side, spent in sides.items()}
    tokens = statistics.mean(map(_length, asked))
    print(f"{name:14} {len(asked):6,} requests of {tokens:4.0f} tokens", end="", flush=True)
    for side, rate in rates.items():
        print(f"; {side} {rate:,.0f}/s", end="")
    for side in ("rendered", "ready"):
        pairs = list(zip(sides[side], sides["gavel"], strict=True))
        wall = statistics.median(plain.wall / mine.wall for plain, mine in pairs)
        cpu = statistics.median(plain.cpu / mine.cpu for plain, mine in pairs)
        print(f"; gavel / {side} {wall:.3f} (processor time {cpu:.3f})", end="")
    print(flush=True)


def _length(request: Any) -> int:
    return len(request.prompt if isinstance(request, SampleRequest) else request.token_ids)


def plain(engine: Any, method: Method, groups: Any) -> tuple[list[Any], Spent, Spent]:
    """The requests, what it took to render them, and what `LLM.generate` took."""
    from vllm import SamplingParams

    def render() -> list[Any]:
        return [
            request
            for prompt, completions in groups
            for item in method.items(prompt, completions)
            for request in method.render(item, engine.tokenizer)
        ]

    def generate() -> None:
        if isinstance(asked[0], ScoreRequest):
            inputs = [{"prompt_token_ids": list(r.token_ids)} for r in asked]
            params: Any = SamplingParams(
                max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, flat_logprobs=True
            )
        else:
            inputs = [{"prompt_token_ids": list(r.prompt)} for r in asked]
            params = engine._new_params(asked[0], asked[0].sampling.max_tokens)  # the same for all
            params.skip_clone = False  # as it is where one asks by hand
        engine._llm.generate(inputs, params, use_tqdm=False)

    engine._llm.reset_prefix_cache()
    asked, rendering = timed(render)
    return asked, rendering, timed(generate)[1]


def gavel(engine: Any, method: Method, groups: Any) -> Spent:
    engine._llm.reset_prefix_cache()
    with tempfile.TemporaryDirectory() as folder, RunDir.open(Path(folder) / "run") as run:
        with JsonlWriter(run.prompts_path) as prompts, JsonlWriter(run.completions_path) as completions:
            for prompt, made in groups:
                prompts.append(prompt)
                for completion in made:
                    completions.append(completion)

        def ask() -> None:
            with contextlib.suppress(CheckFailed):  # the bundled judge has no answer to gavel's long presets
                judge(run, engine, method)

        return timed(ask)[1]


if __name__ == "__main__":
    main()
