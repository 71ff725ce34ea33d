"""`gavel rounds start --dry-run`: calls, tokens, disk and time, from one small round that is really run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from gavel.command import say
from gavel.errors import CheckFailed, InputError
from gavel.rundir import RunDir, read_lines
from rounds import gates
from rounds.budget import Paid
from rounds.config import Budget, RoundsConfig
from rounds.ledger import Events, Ledger
from rounds.loop import run_rounds
from rounds.pool import Pool

_PROMPTS = 16  # of the small round, and as many held out


def estimate(config: RoundsConfig, pool: Pool | None, out: Path) -> dict[str, Any]:
    """What all rounds take, by `scaled`, from a small one in a temporary folder.

    Raises InputError where the disk has too little room, CheckFailed where the small one leaves too little to
    train on.
    """
    assert pool is not None
    taken, held_out = len(pool.of_round(1, config.prompts)), len(pool.held_out)
    small = _small(config, taken, held_out)
    say(f"one round of {small.prompts.per_round} prompts is run to see how long it takes")
    with tempfile.TemporaryDirectory(prefix="gavel-probe-") as folder:
        root = Path(folder) / "run"
        last = run_rounds(root, small)[-1]
        if last.decision == "stop":  # it has no gates: there was too little to train on
            raise CheckFailed(
                f"the small round ended before its training: {gates.tripped(last)[0]['what']}",
                where="--dry-run", hint="How long the rest takes is not known; a whole round may do better.",
            )  # fmt: skip
        found = measured(root)
    result = scaled(config, small, found, taken, held_out)
    result["disk_free_gb"] = round(_free_bytes(out) / 1e9, 1)
    if result["disk_gb"] * 1e9 > _free_bytes(out):
        raise InputError(f"about {result['disk_gb']} GB are needed, {result['disk_free_gb']} are free",
                         where=f"--out {out}")  # fmt: skip
    return result


def _small(config: RoundsConfig, taken: int, held_out: int) -> RoundsConfig:
    """The same recipe on few prompts, without gates and gold test."""
    train, ppo = config.train, config.train.ppo
    prompts = min(taken, max(_PROMPTS, ppo.batch_size // ppo.n if ppo else 0))
    few: dict[str, Any] = {"batch_size": max(1, min(4, prompts // 4)), "micro_batch": None, "epochs": 1.0}
    if train.dpo is not None:
        train = replace(train, dpo=replace(train.dpo, **few), smoothing_measured=False)
    if train.reward is not None:
        train = replace(train, reward=replace(train.reward, held_out=0.0, **few), smoothing_measured=False)
    if ppo is not None:
        train = replace(train, ppo=replace(ppo, epochs=1.0))
    held = min(held_out, _PROMPTS)
    return replace(
        config, rounds=1, train=train, gates=(), gold=None, replay=0.0, budget=Budget(),
        prompts=replace(config.prompts, per_round=prompts, held_out=held),
        evaluate=replace(config.evaluate, pairs=min(config.evaluate.pairs, prompts)),
    )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a judge was asked, by its judgments on record. items: prompts, or duels. compares: whether it sees
    two completions at once."""

    calls: int = 0
    tokens: int = 0
    items: int = 0
    compares: bool = False


@dataclass(frozen=True)
class Measured:
    """What the small round took.

    seconds: by stage without the starts of engines, "first" for the evaluation of the first policy.
    start: seconds of those starts. mode: of the engines. trained, train: pairs, and the seconds that DPO or
    the reward model took for them. model, records: bytes. labels, second: by the two judges.
    """

    seconds: dict[str, float]
    start: float
    mode: str
    tokens: int
    pairs: int
    trained: int
    train: float
    model: int
    records: int
    labels: Asked
    second: Asked


def scaled(
    config: RoundsConfig, small: RoundsConfig, found: Measured, taken: int, held_out: int
) -> dict[str, Any]:
    """What all rounds take, if they go as the small one went: its times and sizes times the number of
    prompts, pairs or held-out prompts. Starts of engines are counted once ("keep") or for each round.

    From the second round on there is more to do: pairs of earlier rounds are replayed, and the second judge
    compares with the previous policy and the first, which after one round are the same. One that scores is
    asked about the newest policy's answers alone. Answers that happen to be equal, of which no judge is
    asked, are not counted on. The labelling judge's gold test is left out.

    Args:
        taken, held_out: prompts, of a round and of the evaluation.
    """
    rounds, times = config.rounds, taken / (small.prompts.per_round or 1)
    looked = (config.evaluate.generate.n * held_out) / (small.evaluate.generate.n * small.prompts.held_out)
    pairs = found.pairs * times
    duels = [_duels(config, number, held_out, pairs, found.second) for number in range(1, rounds + 1)]
    each = 1 / max(1, found.second.items)
    # after one round: as the first policy was evaluated, and the second judge
    first = found.seconds["first"]
    judged = max(0.0, found.seconds["evaluate"] - first)
    evaluated = judged * each * sum(duels) if found.second.items else judged * looked * rounds
    replayed = sum(_replayed(config.replay, number, pairs) for number in range(1, rounds + 1))
    epochs = (config.train.dpo or config.train.reward or config.train.policy).epochs
    seconds = {stage: found.seconds[stage] * times * rounds for stage in ("sample", "judge", "pair")}
    seconds["train"] = found.train * (pairs * rounds + replayed) * epochs / max(1, found.trained)
    if (ppo := config.train.ppo) is not None:
        seconds["ppo"] = found.seconds["train"] * taken * ppo.n / ppo.batch_size * ppo.epochs * rounds
    seconds["evaluate"] = first * looked * rounds + evaluated
    starts = found.start * (1 if found.mode == "keep" else rounds)
    kept = 2 + (rounds // config.keep.every if config.keep.every else 0)
    disk = found.records * times * rounds + found.model * (kept + 6)  # optimiser and checkpoints
    return {
        "rounds": rounds,
        "prompts_a_round": taken,
        "completions_a_round": taken * config.sample.n,
        "judge_calls": round(found.labels.calls * times) * rounds,
        "judge_tokens": round(found.labels.tokens * times) * rounds,
        "second_judge_calls": round(found.second.calls * each * sum(duels)),
        "second_judge_tokens": round(found.second.tokens * each * sum(duels)),
        "sampled_tokens": round(found.tokens * times) * rounds,
        "pairs_a_round": round(pairs),
        "replayed_pairs": round(replayed),
        "engines": found.mode,
        "seconds_a_round": {stage: _digits(s / rounds) for stage, s in seconds.items()},
        "hours": _digits((sum(seconds.values()) + first * looked + starts) / 3600),
        "disk_gb": _digits(disk / 1e9),
    }


def _duels(config: RoundsConfig, number: int, held_out: int, pairs: float, second: Asked) -> float:
    """Of how many duels a round's evaluation asks the second judge; one that scores is asked of half of those
    whose other side it has scored before."""
    answers = config.evaluate.generate.n * held_out
    before = 1.0 if number == 1 else 2.0 if second.compares else 0.5
    return answers * before + min(config.evaluate.pairs, pairs)


def _replayed(share: float, number: int, pairs: float) -> float:
    """Of how many pairs of earlier rounds a round makes use."""
    return min(pairs * share / (1 - share), pairs * (number - 1))


def _digits(value: float) -> float:
    """Three significant digits: a quick run takes no 0.0 hours."""
    return float(f"{value:.3g}")


def measured(root: Path) -> Measured:
    """What the small round took."""
    entries = Ledger(RunDir(root)).entries()
    events = Events(root / "events.jsonl").read()
    starting, started = _starts(events)
    spent = {name: entry["seconds"] - starting.get(name, 0.0) for name, entry in entries.items()}
    last = "reward" if "01/reward" in entries else "train"
    folder = root / "rounds" / "01"
    trained = json.loads((folder / ("reward" if last == "reward" else "model") / "gavel.json").read_bytes())
    summary = trained["summary"]
    return Measured(
        seconds={stage: spent[f"01/{stage}"] for stage in ("sample", "judge", "pair", "train", "evaluate")}
        | {"first": spent["00/evaluate"]},
        start=started,
        mode=[event["mode"] for event in events if event["what"] == "engines"][-1],
        tokens=entries["01/sample"]["summary"]["tokens"],
        pairs=entries["01/pair"]["summary"]["pairs"],
        trained=summary["pairs"],
        train=summary["seconds"]["train"],
        model=sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors")),
        records=sum(f.stat().st_size for f in folder.rglob("*.jsonl")),
        labels=_asked(folder.glob("judgments/*/judgments.jsonl")),
        second=_asked((root / "evaluation" / "duels").glob("judgments/*/judgments.jsonl")),
    )


class _Judgment(Paid, kw_only=True):
    """What is read of a judgment."""

    prompt_id: str
    completion_ids: tuple[str, ...]


def _asked(paths: Iterable[Path]) -> Asked:
    """What stands in files of judgments, whichever stage asked it."""
    decoder = msgspec.json.Decoder(_Judgment)
    calls = tokens = 0
    items, compares = set(), False
    for path in paths:
        for _, _, line in read_lines(path):
            judgment = decoder.decode(line)
            items.add(judgment.prompt_id)
            compares |= len(judgment.completion_ids) > 1
            calls += judgment.calls
            tokens += judgment.tokens
    return Asked(calls, tokens, len(items), compares)


def _starts(events: list[dict[str, Any]]) -> tuple[dict[str, float], float]:
    """Seconds of engines' starts: within each stage, and in all."""
    within: dict[str, float] = {}
    stage = ""
    for event in events:
        if event["what"] == "begin":
            stage = event["stage"]
        elif event["what"] == "start engine":
            within[stage] = within.get(stage, 0.0) + event["seconds"]
    return within, sum(within.values())


def _free_bytes(path: Path) -> int:
    """On the disk that a path lies on, or will."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
