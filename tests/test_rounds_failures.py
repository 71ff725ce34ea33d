"""Rounds that go wrong on the bundled models, and the gates that see it. Real vLLM, real training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

from rounds.standing import Line, read_figures
from rounds.toml_table import to_toml

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

Run = Callable[..., tuple[Ran, list[Line]]]


@pytest.fixture
def run(tmp_path: Path, gavel: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the demo's rounds on few prompts, with changes to their tables."""
    pytest.importorskip("vllm")
    from demo.run import Chosen, _as_row, _prompts, settings

    monkeypatch.chdir(Path(__file__).parent)  # where odd_judges is

    def go(rounds: int = 1, prompts: int = 160, **changes: dict[str, Any]) -> tuple[Ran, list[Line]]:
        root = tmp_path / "run"
        (tmp_path / "demo").mkdir()
        for name, given in (
            ("prompts", _prompts("round", prompts * rounds)),
            ("held-out", _prompts("held-out", 128)),
        ):
            (tmp_path / "demo" / f"{name}.jsonl").write_bytes(b"".join(map(_as_row, given)))
        table = dict(settings(tmp_path, Chosen(rounds=rounds, prompts=prompts)).table)
        table["prompts"]["held_out"] = 128
        for name, entries in changes.items():
            table[name] = entries if name == "gates" or "method" in entries else table[name] | entries
        (tmp_path / "rounds.toml").write_text(to_toml(table))
        done = gavel("rounds", "start", tmp_path / "rounds.toml", "--out", root)
        return done, read_figures(root)

    return go


def tripped(line: Line) -> dict[str, str]:
    """Figure → the strongest action of its gates that tripped."""
    strength = ("warn", "roll_back", "stop")
    found = sorted((g for g in line.gates if g["tripped"]), key=lambda g: strength.index(g["action"]))
    return {gate["figure"]: gate["action"] for gate in found}


def test_a_round_that_went_well_passes_and_one_too_proud_a_gate_leaves_its_evidence(
    run: Run, tmp_path: Path, gavel: Callable[..., Ran]
) -> None:
    done, lines = run(gates={"win_rate_first": [{"min": 50}, {"min": 99.5, "action": "stop"}]})
    assert tripped(lines[1]) == {"win_rate_first": "stop"}
    assert lines[1].figures["win_rate_first"]["value"] > 50
    assert done.code == 1 and "a gate stopped the run after round 1" in done.err
    folder = tmp_path / "run"
    for name in ("rounds/01/pairs", "rounds/01/model/model.safetensors", "evaluation/01/completions.jsonl",
                 "evaluation/duels/judgments"):  # fmt: skip
        assert (folder / name).exists(), name
    assert "win rate first" in done.err and "is under 99.5" in done.err


def test_a_judge_that_loves_length(run: Run) -> None:
    longer = {"length_ratio_first": {"max": 1.02, "action": "warn"}}  # answers of this language are short
    done, lines = run(judge={"method": "odd_judges:LovesLength"}, train={"epochs": 6}, gates=longer)
    found = tripped(lines[1])
    assert found["win_rate_first"] == "roll_back" and found["length_ratio_first"] == "warn"
    assert lines[1].decision in ("roll_back", "stop") and lines[1].best == 0
    assert "no round was better" in done.out


def test_a_judge_whose_labels_are_flipped(run: Run) -> None:
    from demo.run import MODELS

    flipped = {"model": str(MODELS / "judge"), "engine": "vllm", "max-model-len": 512,
               "method": "odd_judges:Flipped",
               "method-arg": {"form": "direct", "measure": "sum", "count_eos": True}}  # fmt: skip
    done, lines = run(judge=flipped)
    found = tripped(lines[1])
    assert found["judge_agreement"] == "stop" and found["win_rate_first"] == "roll_back"
    assert lines[1].figures["judge_agreement"]["value"] < 0.2
    assert done.code == 1 and "judge agreement" in done.err


def test_a_policy_that_collapses_to_one_answer(run: Run) -> None:
    hard = {"epochs": 12, "learning-rate": 2e-3, "batch-size": 8, "micro-batch": 8}
    _, lines = run(judge={"method": "odd_judges:OneAnswer"}, train=hard)
    found = tripped(lines[1])
    assert found.get("top_answer_rise_first") == "roll_back", lines[1].figures["top_answer"]
    assert lines[1].best == 0


def test_a_learning_rate_that_wrecks_the_policy(run: Run) -> None:
    """The second round starts from the first policy again, at half the rate."""
    done, lines = run(rounds=2, train={"learning-rate": 0.3})
    assert lines[1].decision == "roll_back" and lines[1].best == 0
    found = tripped(lines[1])
    assert found["win_rate_first"] == "roll_back" and "kl_first_token" in found
    assert lines[2].start == lines[0].model
    assert lines[2].learning_rate == pytest.approx(0.15)
    assert "round 1, roll back: win rate" in done.err
