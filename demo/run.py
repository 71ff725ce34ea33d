"""The demo: the rounds of demo/rounds.toml on the bundled models, and an oracle's figures beside them.

What the oracle measures is sampled while each round's weights are loaded; whether an answer is right is
asked in `demo.table` alone, after all rounds are over.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo.table import figures
from demo.tasks import Pool, draw
from gavel.command import read_toml, say
from gavel.errors import InputError
from gavel.records import Message, Prompt, Sampling, digest
from gavel.rundir import RunDir, write_atomic
from gavel.sources import BadRows
from generate.stage import GenerateConfig, generate, take_in
from rounds.config import RoundsConfig
from rounds.gates import last_words
from rounds.ledger import Ledger
from rounds.lifetimes import Lifetimes
from rounds.loop import run_rounds
from rounds.read_config import config_of
from rounds.report.page import write_page
from rounds.standing import Line

HERE = Path(__file__).parent
MODELS = HERE / "models"
HELD_OUT = 1100  # prompts; with SAMPLES, 4,400 sampled answers
ROOM = 16384  # prompts that a run has at least, so that more rounds can be asked for later
SAMPLES = 4
MAX_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a person chooses of the demo. trainer: "dpo" or "ppo". reference: "first", "previous" or "ema"."""

    rounds: int = 2
    prompts: int = 2048
    seed: int = 0
    shuffle_labels: bool = False
    trainer: str = "dpo"
    reference: str = "previous"


def settings(out: Path, chosen: Chosen) -> RoundsConfig:
    """The demo's recipe with paths in place; demo/README.md says how it was found.

    The prompts are named by where they were when the run took them in: it may have been moved since.
    """
    file = HERE / "rounds.toml"
    table = read_toml(str(file), str(file))
    if chosen.trainer == "ppo":
        table["train"] = read_toml(str(HERE / "ppo.toml"), "demo/ppo.toml")
        table["train"]["reward"]["model"] = str(MODELS / table["train"]["reward"]["model"])
    table["train"]["reference"] = chosen.reference
    table |= {"rounds": chosen.rounds, "seed": chosen.seed}
    for part in (table["policy"], table["judge"], table["evaluate"]["judge"]):
        part["model"] = str(MODELS / part["model"])
    taken_in = Ledger(RunDir(out)).known("prompts").get("settings", {})
    for key in ("source", "held_out_source"):
        here = str((out / "demo" / table["prompts"][key]).absolute())
        table["prompts"][key] = taken_in.get(key, here)
    table["prompts"]["per_round"] = chosen.prompts
    table["pairs"]["shuffle_labels"] = chosen.shuffle_labels
    return config_of(table, str(file))


def run_demo(out: str, chosen: Chosen) -> dict[str, Any]:
    """Runs the rounds below `out` and returns the figures that the table shows.

    Returns: rounds (from round 0: exact_match_sampled and exact_match_greedy in percent, pairs,
    judge_accuracy in percent), seconds (per stage and "total"), words, report, run (the directory).
    """
    started, root, count = time.monotonic(), Path(out), chosen.prompts * chosen.rounds
    held_out = _prompts("held-out", HELD_OUT)
    with RunDir.open(root) as run:
        _claim(run, chosen)
        if not run.stage("prompts"):
            for name, given in (("prompts", _prompts("round", max(count, ROOM))), ("held-out", held_out)):
                write_atomic(root / "demo" / f"{name}.jsonl", b"".join(map(_as_row, given)))
    config = settings(root, chosen)
    say("starting vLLM (its first start in a new environment takes a minute)")
    measured: list[float] = []

    def observe(line: Line, engines: Lifetimes, model: Path) -> None:
        begun = time.monotonic()
        _measure(root, line, engines, model, held_out, chosen.seed)
        measured.append(time.monotonic() - begun)

    lines = run_rounds(root, config, observe)
    pairs = [_pairs_of(root, line.round) for line in lines]
    result: dict[str, Any] = {
        "rounds": [figures(root, n, name, count, HELD_OUT) for n, name in enumerate(pairs)],
        "decisions": [line.decision for line in lines],
        "seconds": _seconds(lines) | {"oracle": round(sum(measured), 1)},
        "words": last_words(lines, root),
        "report": str(root / "report.html"),
        "run": str(root),
    }
    result["seconds"]["total"] = round(time.monotonic() - started, 1)
    with RunDir.open(root) as run:
        run.note(demo_result=result)
    write_page(root, root / "report.html")
    return result


def _seconds(lines: list[Line]) -> dict[str, float]:
    spent: dict[str, float] = {}
    for line in lines:
        for stage, seconds in line.seconds.items():
            spent[stage] = round(spent.get(stage, 0.0) + seconds, 1)
    return spent


def _claim(run: RunDir, chosen: Chosen) -> None:
    """Raises InputError when the directory holds a demo of other settings, or one that took in too few
    prompts for so many rounds: more may be added as long as they suffice."""
    wanted = {name: value for name, value in asdict(chosen).items() if name != "rounds"}
    known = run.manifest().get("demo", wanted)
    if known != wanted:
        differing = ", ".join(f"{k} {known.get(k)}, now {v}" for k, v in wanted.items() if known.get(k) != v)
        raise InputError(
            f"holds a demo of other settings ({differing})", where=str(run.path), hint="Choose another --out."
        )
    taken_in = run.stage("prompts").get("summary", {}).get("prompts")
    if taken_in is not None and taken_in < chosen.prompts * chosen.rounds:
        raise InputError(
            f"this demo took in {taken_in:,} prompts, enough for {taken_in // chosen.prompts} rounds",
            where=f"--rounds {chosen.rounds}, {run.path}", hint="Choose another --out for more.",
        )  # fmt: skip
    run.note(demo=wanted)


def _prompts(pool: Pool, count: int) -> list[Prompt]:
    """Prompts alone: no stage sees an answer. Raises InputError when the pool holds fewer."""
    try:
        texts = [task.prompt for task in draw(pool, count)]
    except ValueError as error:
        raise InputError(str(error), where="--rounds, --prompts", hint="Ask for fewer.") from None
    return [Prompt(id=digest("demo", text), messages=(Message("user", text),)) for text in texts]


def _as_row(prompt: Prompt) -> bytes:
    """A line of a source as `gavel generate` reads one."""
    import json

    row = {"id": prompt.id, "prompt": prompt.messages[-1].content}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _pairs_of(root: Path, number: int) -> str | None:
    entry = Ledger(RunDir(root)).entries().get(f"{number:02d}/pair")
    return entry["summary"]["name"] if entry else None


def _measure(
    root: Path, line: Line, engines: Lifetimes, model: Path, held_out: list[Prompt], seed: int
) -> None:
    """Samples the held-out prompts for the oracle, at temperature 1 and greedily."""
    for name, n, temperature in (("sampled", SAMPLES, 1.0), ("greedy", 1, 0.0)):
        sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS)
        with RunDir.open(root / "demo" / f"{line.round:02d}-{name}") as run:
            if run.stage("generate"):
                continue
            take_in(run, lambda bad: held_out, BadRows(0))
            generate(run, engines.policy(model), GenerateConfig(n=n, seed=seed + 1000, sampling=sampling))
