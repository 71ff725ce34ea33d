"""Which engines of a run of rounds are alive when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gavel.command import options_of
from gavel.engines import EngineConfig
from judge.cli import judge as judge_command
from rounds.config import JudgeConfig
from rounds.ledger import Events
from rounds.lifetimes import Lifetimes


class Memory:
    """An accelerator of 100 GB, of which a training takes so much."""

    total = 100 * 10**9

    def __init__(self, taken_gb: int) -> None:
        self._taken_gb, self._since_reset = taken_gb, 0

    def reset(self) -> None:
        self._since_reset = self._taken_gb * 10**9

    def peak(self) -> int:
        return self._since_reset


def engine(**settings: Any) -> EngineConfig:
    return EngineConfig(model="fake", engine="fake", engine_args=settings)


def judge() -> JudgeConfig:
    table: dict[str, Any] = {"engine": "fake", "method": "gptscore", "form": "direct"}
    given = {"out", "name", "dry_run", "reparse", "gold"}
    return JudgeConfig(model="fake", options=options_of(judge_command, table, "[judge]", given))


def lives(engines: Lifetimes) -> list[str]:
    return list(engines._open)


@pytest.mark.parametrize(
    ("mode", "alive"), [("keep", ["policy"]), ("restart", []), ("auto", ["policy"])], ids=str
)
def test_room_for_the_trainer(tmp_path: Path, mode: str, alive: list[str]) -> None:
    """On a CPU "auto" keeps them."""
    with Lifetimes(engine(), mode, Events(tmp_path / "events.jsonl")) as engines:
        engines.policy("fake")
        with engines.room():
            assert lives(engines) == alive
        assert lives(engines) == alive


@pytest.mark.parametrize(
    ("taken_gb", "mode"),
    [
        (7, "keep"),  # 7 and a tenth more are under the 8 that one engine leaves
        (8, "restart"),
    ],
)
def test_where_a_training_fits_beside_them_engines_stay_from_then_on(
    tmp_path: Path, taken_gb: int, mode: str
) -> None:
    events = Events(tmp_path / "events.jsonl")
    with Lifetimes(engine(), "auto", events, Memory(taken_gb)) as engines:
        engines.policy("fake")
        with engines.room():
            assert lives(engines) == [], "until it is known they make room"
        assert engines.mode == mode
        engines.policy("fake")
        with engines.room():
            assert lives(engines) == (["policy"] if mode == "keep" else [])
    choices = [event for event in events.read() if event["what"] == "engines"]
    assert [event["mode"] for event in choices] == ["restart", mode], "chosen once"
    assert choices[1]["training_took_gb"] == taken_gb and choices[1]["engines_leave_gb"] == 8.0


def test_two_engines_that_take_nearly_all_leave_no_room(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    with Lifetimes(engine(), "auto", events, Memory(1)) as engines:
        engines.policy("fake")
        engines.judging("judge", judge())
        with engines.room():
            pass
        assert engines.mode == "restart"
    assert events.read()[-1]["engines_leave_gb"] == -84.0
