"""`gavel rounds status` of runs whose files are written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rounds_made import small_table

from gavel.errors import RunDirError
from gavel.rundir import RunDir
from rounds.ledger import Events
from rounds.standing import Line
from rounds.status import status
from rounds.toml_table import to_toml

_ROUND = {"sample": 10.0, "judge": 20.0, "pair": 1.0, "train": 60.0, "evaluate": 9.0}  # 100 s


def lines(count: int, text: str = "{}") -> str:
    return f"{text}\n" * count


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three rounds of which the first is over."""
    root = tmp_path / "run"
    with RunDir.open(root) as opened:
        for stage, seconds in _ROUND.items():
            opened.finish_stage(f"01/{stage}", {"output": "x", "summary": {}, "seconds": seconds})
        opened.finish_stage("02/sample", {"output": "x", "summary": {}, "seconds": 12.0})
    write(root, table_of(tmp_path))
    over = [Line(round=n, model="m", weights="w") for n in (0, 1)]
    (root / "figures.jsonl").write_bytes(b"".join(line.to_json() for line in over))
    (root / "held_out.jsonl").write_text(lines(8))
    judged = root / "rounds" / "02" / "judgments" / "j"
    judged.mkdir(parents=True)
    (judged / "judgments.jsonl").write_text(lines(900))
    return root


def table_of(folder: Path) -> dict[str, Any]:
    models: Any = SimpleNamespace(lm="policy", other="judge", half="second")
    return small_table(models, folder)


def write(root: Path, table: dict[str, Any]) -> None:
    (root / "config.toml").write_text(to_toml(table))


def happened(root: Path, *events: tuple[float, str, dict[str, Any]]) -> None:
    """Events so many seconds ago."""
    now = datetime.now(UTC)
    rows = [
        {"at": (now - timedelta(seconds=ago)).isoformat(), "what": what, **about}
        for ago, what, about in events
    ]
    (root / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


STAGE = {"stage": "02/judge"}


def test_the_rate_is_of_the_present_attempt(run: Path) -> None:
    """500 judgments of an attempt that was stopped an hour ago, 400 in the 40 s since."""
    happened(
        run,
        (4000, "begin", STAGE | {"kept": 0}),
        (3980, "stopped", STAGE | {"seconds": 20.0}),
        (40, "begin", STAGE | {"kept": 500}),
    )
    with RunDir.open(run):
        found = status(run)
    assert found["state"] == "running"
    assert (found["progress"]["of"], found["progress"]["done"]) == ("judgments", 900)
    assert found["progress"]["per_second"] == pytest.approx(10, rel=0.05)
    # of round 2 sampling took 12 s and judging 20 + 40 s so far; rounds take 100 s, and there is a third one
    assert found["seconds_left"] == pytest.approx(100 - 12 - 60 + 100, abs=2)


@pytest.mark.parametrize("how", ["stopped", "failed", "killed"])
def test_a_run_that_was_stopped_has_no_rate_and_the_clock_stands(run: Path, how: str) -> None:
    said = [] if how == "killed" else [(3950.0, how, STAGE | {"seconds": 50.0})]
    happened(run, (4000, "begin", STAGE | {"kept": 0}), (3950, "load weights", {"seconds": 0.1}), *said)
    found = status(run)
    assert (found["state"], found["stage"]) == ("stopped", "02/judge")
    assert found["progress"]["done"] == 900 and found["progress"]["per_second"] is None
    assert found["seconds_left"] == pytest.approx(100 - 12 - 50 + 100, abs=0.5)


def test_a_run_that_starts_again_has_no_rate_before_its_stage_begins(run: Path) -> None:
    happened(run, (4000, "begin", STAGE | {"kept": 0}), (3950, "failed", STAGE | {"seconds": 50.0}))
    with RunDir.open(run):
        found = status(run)
    assert found["state"] == "running" and found["progress"]["per_second"] is None


def test_a_round_that_takes_longer_than_any_leaves_the_rounds_after_it(run: Path) -> None:
    happened(run, (500, "begin", STAGE | {"kept": 0}))
    with RunDir.open(run):
        assert status(run)["seconds_left"] == pytest.approx(100.0)


@pytest.mark.parametrize(("stage", "total"), [("reward", 40), ("train", 20)])
def test_a_training_has_the_steps_of_its_own_epochs(
    run: Path, tmp_path: Path, stage: str, total: int
) -> None:
    table = small_table(SimpleNamespace(lm="policy", other="judge", half="second"), tmp_path)  # type: ignore[arg-type]
    table["train"] = {"reference": "previous", "method": "ppo", "epochs": 2, "reward": {"epochs": 4}}
    write(run, table)
    folder = run / "rounds" / "02" / {"reward": "reward", "train": "model"}[stage]
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-4" / "whole").touch()
    (folder / "checkpoints" / "checkpoint-8").mkdir()  # torn
    (folder / "metrics.jsonl").write_text(
        '{"step": 4, "epoch": 0.4}\n{"step": 6, "epoch": 0.6}\n{"step": 7, '
    )
    about = {"stage": f"02/{stage}"}
    with Events(run / "events.jsonl").of(about["stage"]):
        pass
    (event, _) = Events(run / "events.jsonl").read()
    assert event["kept"] == 4, "what was logged after the checkpoint is done again"
    happened(run, (2, "begin", about | {"kept": 4}))
    with RunDir.open(run):
        found = status(run)["progress"]
    assert found == {"of": "steps", "done": 6, "total": total, "per_second": pytest.approx(1, rel=0.1)}


def test_what_is_counted_of_each_stage(run: Path) -> None:
    def count(stage: str) -> Any:
        happened(run, (4, "begin", {"stage": stage, "kept": 0}))
        found = status(run)["progress"]
        return found and (found["of"], found["done"], found["total"])

    (run / "rounds" / "02" / "prompts.jsonl").write_text(lines(8))
    (run / "rounds" / "02" / "completions.jsonl").write_text(lines(20))
    (run / "evaluation" / "02").mkdir(parents=True)
    (run / "evaluation" / "02" / "completions.jsonl").write_text(lines(3) + "{")
    assert count("02/sample") == ("completions", 20, 32)
    assert count("02/evaluate") == ("completions", 3, 8)
    assert count("02/pair") is None and count("02/train") is None and count("prompts") is None


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("events.jsonl", "{", "not JSON"),
        ("events.jsonl", "[1]", "not a JSON object"),
        ("figures.jsonl", '{"round": 1}', "not the figures of a round"),
    ],
)
def test_a_line_that_is_none_is_said_by_its_place(run: Path, name: str, line: str, said: str) -> None:
    with open(run / name, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunDirError, match=f"{name}:[0-9]+.*{said}"):
        status(run)
