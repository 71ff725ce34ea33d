"""Rounds by a reward model and PPO, on the bundled models. Real vLLM, real training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

from gavel.weights import weights_version
from rounds.standing import read_figures
from rounds.toml_table import to_toml

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


def test_a_round_of_ppo_trains_a_reward_model_and_then_the_policy(
    tmp_path: Path, gavel: Callable[..., Ran]
) -> None:
    """Held to the first policy, sampled by the live engine; running it again does nothing again."""
    pytest.importorskip("vllm")
    from demo.run import MODELS, Chosen, _as_row, _prompts, settings

    (tmp_path / "demo").mkdir()
    for name, given in (("prompts", _prompts("round", 64)), ("held-out", _prompts("held-out", 32))):
        (tmp_path / "demo" / f"{name}.jsonl").write_bytes(b"".join(map(_as_row, given)))
    table = dict(settings(tmp_path, Chosen(rounds=1, prompts=64, trainer="ppo", reference="first")).table)
    table["prompts"]["held_out"] = 32
    table["train"] |= {"batch-size": 64, "micro-batch": 32, "n": 2}
    table["train"]["reward"] |= {"epochs": 1, "batch-size": 16, "micro-batch": 16}
    (tmp_path / "rounds.toml").write_text(to_toml(table))
    run = tmp_path / "run"
    done = gavel("rounds", "start", tmp_path / "rounds.toml", "--out", run)
    assert done.code in (0, 1), done.err  # a gate may think little of so short a training
    lines = read_figures(run)
    assert [line.round for line in lines] == [0, 1]
    folder = run / "rounds" / "01"
    stages = json.loads((run / "manifest.json").read_bytes())["stages"]
    of_round = ("sample", "judge", "pair", "reward", "train", "evaluate")
    assert list(stages) == ["prompts", "00/evaluate", *(f"01/{stage}" for stage in of_round)]
    assert stages["01/train"]["inputs"]["reward"] == weights_version(str(folder / "reward"))
    assert lines[1].weights == weights_version(str(folder / "model")) != lines[0].weights
    assert lines[1].figures["kl_first"]["value"] is not None
    plan = json.loads((folder / "model" / "gavel.json").read_bytes())["plan"]
    assert plan["weights"] == weights_version(str(MODELS / "policy")) and "reference_weights" not in plan
    assert len(list((folder / "model" / "rollouts").iterdir())) == 2  # of 64 answers, two to each prompt

    before = {p: p.read_bytes() for p in run.rglob("*.jsonl")}
    again = gavel("rounds", "resume", run)
    assert again.code == done.code and "starting" not in again.err
    assert {p: p.read_bytes() for p in run.rglob("*.jsonl")} == before
