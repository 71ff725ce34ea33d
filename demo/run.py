"""The demo's settings, and its evaluation on held-out prompts.

What is measured here is sampled while each round's weights are loaded; whether an answer is right is
asked in `demo.table` alone, after all rounds are over.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo.table import figures
from demo.tasks import Pool, draw
from gavel.command import say
from gavel.engines import EngineConfig, open_engine
from gavel.errors import InputError
from gavel.protocols import Engine
from gavel.records import Message, Prompt, Sampling, digest
from gavel.rundir import RunDir
from gavel.sources import BadRows
from generate.stage import GenerateConfig, generate, take_in
from judge.gptscore import GptScore
from judge.pairs import PairConfig
from rounds.loop import Round, RoundsConfig, Seconds, run_rounds
from train.config import DpoConfig

MODELS = Path(__file__).parent / "models"
HELD_OUT = 1100  # prompts; with SAMPLES, 4,400 sampled answers
SAMPLES = 4
CONTEXT = 512  # tokens; enough for the task language, and vLLM starts quicker
MAX_TOKENS = 24


def settings(rounds: int, seed: int, shuffle_labels: bool) -> RoundsConfig:
    """The demo's recipe; demo/README.md says how it was found."""
    return RoundsConfig(
        rounds=rounds,
        generate=GenerateConfig(n=8, seed=seed, sampling=Sampling(max_tokens=MAX_TOKENS)),
        pairs=PairConfig(strategy="best-worst", shuffle_labels=shuffle_labels, seed=seed),
        dpo=DpoConfig(
            model=str(MODELS / "policy"),
            learning_rate=3e-4,
            beta=1.0,
            loss={"sigmoid": 1.0, "sft": 1.0},
            epochs=2,
            batch_size=32,
            micro_batch=32,
            warmup=0.1,
            seed=seed,
        ),
    )


def run_demo(
    out: str, *, rounds: int, prompts: int, seed: int, shuffle_labels: bool = False
) -> dict[str, Any]:
    """Runs `rounds` rounds below `out` and returns the figures that the table shows.

    Returns: rounds (from round 0: exact_match_sampled and exact_match_greedy in percent, pairs,
    judge_accuracy in percent), seconds (per stage and "total"), run (the directory).
    """
    started = time.monotonic()
    root, seconds = Path(out), Seconds()
    config = settings(rounds, seed, shuffle_labels)
    texts = _prompts("round", prompts * rounds)
    method = GptScore(form="direct", count_eos=True, measure="sum")
    with RunDir.open(root) as run, ExitStack() as engines:
        _claim(run, {"prompts": prompts, "seed": seed, "shuffle_labels": shuffle_labels})
        with seconds.of("start"):
            say("starting vLLM (its first start in a new environment takes a minute)")
            policy, judge = (engines.enter_context(open_engine(_engine(n))) for n in ("policy", "judge"))
        done = run_rounds(
            root,
            config,
            policy=policy,
            judge_engine=judge,
            method=method,
            prompts=lambda number: texts[(number - 1) * prompts : number * prompts],
            evaluate=lambda r: _evaluate(root, r, policy, seed),
            seconds=seconds,
        )
        pair_sets = [r.pairs["name"] if r.pairs else None for r in done]
        result = {
            "rounds": [figures(root, n, name, len(texts), HELD_OUT) for n, name in enumerate(pair_sets)],
            "seconds": {k: round(v, 1) for k, v in seconds.spent.items()}
            | {"total": round(time.monotonic() - started, 1)},
            "run": str(root),
        }
        run.finish_stage("demo", result)
    return result


def _claim(run: RunDir, chosen: dict[str, Any]) -> None:
    """Raises InputError when the directory holds a demo of other settings (more rounds may be added)."""
    known = run.manifest().get("demo", chosen)
    if known != chosen:
        differing = ", ".join(f"{k} {known.get(k)}, now {v}" for k, v in chosen.items() if known.get(k) != v)
        raise InputError(
            f"holds a demo of other settings ({differing})", where=str(run.path), hint="Choose another --out."
        )
    run.note(demo=chosen)


def _engine(name: str) -> EngineConfig:
    return EngineConfig(model=str(MODELS / name), engine="vllm", context=CONTEXT)


def _prompts(pool: Pool, count: int) -> list[Prompt]:
    """Prompts alone: no stage sees an answer. Raises InputError when the pool holds fewer."""
    try:
        texts = [task.prompt for task in draw(pool, count)]
    except ValueError as error:
        raise InputError(str(error), where="--rounds, --prompts", hint="Ask for fewer.") from None
    return [Prompt(id=digest("demo", text), messages=(Message("user", text),)) for text in texts]


def _evaluate(root: Path, done: Round, policy: Engine, seed: int) -> None:
    """Samples the held-out prompts, at temperature 1 and greedily."""
    held_out = _prompts("held-out", HELD_OUT)
    for name, n, temperature in (("sampled", SAMPLES, 1.0), ("greedy", 1, 0.0)):
        config = GenerateConfig(
            n=n, seed=seed + 1000, sampling=Sampling(temperature=temperature, max_tokens=MAX_TOKENS)
        )
        with RunDir.open(root / "evaluation" / f"{done.number:02d}-{name}") as run:
            take_in(run, lambda bad: held_out, BadRows(0))
            generate(run, policy, config)
