"""`gavel rounds start --dry-run`: calls, tokens, disk and time, from one small round that is really run."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from gavel.command import say
from gavel.errors import InputError
from gavel.rundir import RunDir
from rounds.config import Budget, RoundsConfig
from rounds.ledger import Events, Ledger
from rounds.loop import run_rounds
from rounds.pool import Pool

_PROMPTS = 16  # of the small round, and as many held out


def estimate(config: RoundsConfig, pool: Pool | None, out: Path) -> dict[str, Any]:
    """What all rounds take, by stage, if they go as the small one went: its time and size times the number of
    prompts, pairs or held-out prompts. Starts of engines are counted once ("keep") or for each round.

    Raises InputError where the disk has too little room.
    """
    assert pool is not None
    taken, held_out = len(pool.of_round(1, config.prompts)), len(pool.held_out)
    small = _small(config, taken, held_out)
    say(f"one round of {small.prompts.per_round} prompts is run to see how long it takes")
    with tempfile.TemporaryDirectory(prefix="gavel-probe-") as folder:
        root = Path(folder) / "run"
        run_rounds(root, small)
        found = _measured(root)
    times = taken / (small.prompts.per_round or 1)
    looked = (config.evaluate.generate.n * held_out) / (small.evaluate.generate.n * small.prompts.held_out)
    trained = found["pairs"] * times * (config.train.dpo or config.train.reward or config.train.policy).epochs
    seconds = {
        "sample": found["sample"] * times,
        "judge": found["judge"] * times,
        "pair": found["pair"] * times,
        "train": found["train"] * trained / max(1, found["trained"]),
        "evaluate": found["evaluate"] * looked,
    }
    if config.train.ppo is not None:
        ppo = config.train.ppo
        seconds["ppo"] = found["ppo"] * taken * ppo.n / ppo.batch_size * ppo.epochs
    one = sum(seconds.values())
    starts = found["start"] * (1 if found["mode"] == "keep" else config.rounds)
    kept = 2 + (config.rounds // config.keep.every if config.keep.every else 0)
    disk = found["records"] * times * config.rounds + found["model"] * (kept + 6)  # optimiser and checkpoints
    result = {
        "rounds": config.rounds,
        "prompts_a_round": taken,
        "completions_a_round": taken * config.sample.n,
        "judge_calls": round(found["calls"] * times) * config.rounds,
        "judge_tokens": round(found["judge_tokens"] * times) * config.rounds,
        "sampled_tokens": round(found["tokens"] * times) * config.rounds,
        "pairs_a_round": round(found["pairs"] * times),
        "engines": found["mode"],
        "seconds_a_round": {stage: round(s, 1) for stage, s in seconds.items()},
        "hours": round((one * config.rounds + seconds["evaluate"] + starts) / 3600, 3),
        "disk_gb": round(disk / 1e9, 3),
        "disk_free_gb": round(_free_bytes(out) / 1e9, 1),
    }
    if disk > _free_bytes(out):
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


def _measured(root: Path) -> dict[str, Any]:
    """What the small round took: seconds by stage without the starts of engines, calls, tokens, bytes."""
    entries = Ledger(RunDir(root)).entries()
    events = Events(root / "events.jsonl").read()
    starting, started = _starts(events)
    spent = {name: entry["seconds"] - starting.get(name, 0.0) for name, entry in entries.items()}
    judged, sampled, paired = (entries[f"01/{stage}"]["summary"] for stage in ("judge", "sample", "pair"))
    last = "reward" if "01/reward" in entries else "train"
    folder = root / "rounds" / "01"
    trained = json.loads((folder / ("reward" if last == "reward" else "model") / "gavel.json").read_bytes())
    model = sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
    records = sum(f.stat().st_size for f in folder.rglob("*.jsonl"))
    return {
        "sample": spent["01/sample"], "judge": spent["01/judge"], "pair": spent["01/pair"],
        "train": trained["summary"]["seconds"]["train"], "trained": trained["summary"]["pairs"],
        "ppo": spent["01/train"] if last == "reward" else 0.0,
        "evaluate": spent["01/evaluate"], "pairs": paired["pairs"], "calls": judged["calls"],
        "judge_tokens": judged["tokens"], "tokens": sampled["tokens"], "start": started,
        "mode": next(event["mode"] for event in events if event["what"] == "engines"),
        "model": model, "records": records,
    }  # fmt: skip


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
