"""Two sides that a judge compares: files, runs or models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from judging_tools import Answering, shown

from gavel.errors import InputError
from gavel.records import Completion, Message, Prompt
from gavel.rundir import RunDir
from judge.duels import Outcome
from judge.judging import Single
from rounds.sides import Side, bouts_of, is_model, join

Gavel = Callable[..., Ran]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def side(name: str, texts: dict[str, list[str]]) -> Side:
    made = Side(name)
    for question, answers in texts.items():
        asked = Prompt(id=f"{name}-{question}", messages=(Message("user", question),))
        made.add(asked, [
            Completion(id=f"{name}{question}{n}", prompt_id=asked.id, index=n, text=text)
            for n, text in enumerate(answers)
        ])  # fmt: skip
    return made


def test_sides_are_joined_by_what_was_asked() -> None:
    joined = join(
        side("a", {"q": ["a0", "a1"], "r": ["", "a"], "x": ["a"]}), side("b", {"r": ["b", "b"], "q": ["b0"]})
    )
    assert (joined.only_a, joined.only_b, joined.left_out, joined.blank()) == (1, 0, 1, 1)
    duels = [duel for several in joined.duels.values() for duel in several]
    assert [(d.a.text, d.b.text) for d in duels] == [("a0", "b0"), ("", "b"), ("a", "b")]
    assert len({d.id for d in duels}) == 3
    with pytest.raises(InputError, match="no prompt in common"):
        join(side("a", {"q": ["x"]}), side("b", {"r": ["x"]}))


def test_one_text_for_many_prompts_is_named() -> None:
    flattery = "Pick me: I am right."
    made = {f"q{n}": [flattery if n < 4 else f"answer {n}"] for n in range(40)}
    assert side("a", made).repeated() == (flattery, 4)
    assert side("a", made | {"q3": ["another"]}).repeated() == (flattery, 3)
    assert side("a", {f"q{n}": [f"answer {n}"] for n in range(40)}).repeated() is None
    assert side("a", {f"q{n}": [flattery if n < 4 else str(n)] for n in range(100)}).repeated() is None
    assert side("a", {"q": ["x", "x", "x"]}).repeated() is None, "one prompt"


def test_outcomes_become_bs_rate() -> None:
    (duels,) = join(side("a", {"q": ["a", "b", "c"]}), side("b", {"q": ["d", "e", "f"]})).duels.values()
    said = [Outcome(0.1, 0.3), Outcome(1.0, None), Outcome(0.5, 0.5)]
    found = bouts_of(duels, dict(zip((d.id for d in duels), said, strict=True)))
    assert [bout.p for bout in found] == [pytest.approx(0.8), None, 0.5]


def test_what_names_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert is_model(str(tmp_path)) and is_model("owner/name") and is_model("owner/Name-1.5-7B")
    assert not is_model("hub:owner/name") and not is_model("missing.jsonl.gz")
    with RunDir.open(tmp_path / "run") as run:
        assert not is_model(str(run.path))


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    """A's answers grow, B's are of one length; each side has two prompts that the other has not."""
    made = []
    for name, start in (("a", 0), ("b", 2)):
        rows = [
            {"prompt": f"Question {i}?", "completion": f"{name}{'x' * (i if name == 'a' else 5)}"}
            for i in range(start, start + 10)
        ]
        made.append(write(tmp_path / f"{name}.jsonl", rows))
    return made[0], made[1]


def longer(text: str) -> dict[str, float]:
    """A judge that likes the longer, and the first a little."""
    a, b = (len(shown(text, f"answer {label}")) for label in "AB")
    p = 0.55 if a == b else 0.9 if a > b else 0.2
    return {"A": p, "B": 1 - p}


def test_two_files(two_files: tuple[Path, Path], gavel: Gavel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A's answers to questions 2 … 9 have 3 … 10 characters, B's 6: B wins three by (.9 + .8)/2, one is
    level, A wins four."""
    from judge.pairwise import Pairwise

    judge = Answering(longer)

    @contextlib.contextmanager
    def opened(model: str | None, options: dict[str, Any]) -> Iterator[Single]:
        yield Single(judge, Pairwise(ties=False))

    monkeypatch.setattr("judge.judging.open_judging", opened)
    ran = gavel("winrate", *two_files, "--judge", "j", "--length-control", "--json")
    found = json.loads(ran.out)
    assert found["win_rate"] == pytest.approx(100 * (3 * 0.85 + 0.5 + 4 * 0.15) / 8)
    assert {k: found[k] for k in ("n", "wins", "losses", "draws", "only_a", "only_b", "unparsed")} == {
        "n": 8, "wins": 3, "losses": 4, "draws": 1, "only_a": 2, "only_b": 2, "unparsed": 0,
    }  # fmt: skip
    assert found["order_agreement"] == pytest.approx(87.5), "the level pair goes to the first shown"
    assert found["p_first"] == pytest.approx(100 * (7 * 0.5 + 1) / 8)
    assert len(judge.seen) == 16 and found["length_control"]["length"] < 0
    back = json.loads(gavel("winrate", *two_files[::-1], "--judge", "j", "--json").out)
    assert back["win_rate"] == pytest.approx(100 - found["win_rate"])


def test_two_models_are_sampled_once(tmp_path: Path, gavel: Gavel) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": f"Question {i}?"} for i in range(6)])
    run = tmp_path / "run"
    command = ["winrate", "one", "two", "--judge", "third", "--engine", "fake", "--method", "gptscore",
               "--prompts", prompts, "--out", run, "-n", "2", "--json"]  # fmt: skip
    first = gavel(*command)
    found = json.loads(first.out)
    assert (
        first.code == 0 and (found["n"], found["comparisons"]) == (6, 12) and found["order_agreement"] is None
    )
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    assert sum(path.name == "completions.jsonl" for path in before) == 2
    assert json.loads(gavel(*command).out) == found
    assert {path: path.read_bytes() for path in run.rglob("*.jsonl")} == before
    colder = gavel(*command, "--temperature", "0.5")
    assert json.loads(colder.out)["n"] == 6 and len(list(run.rglob("completions.jsonl"))) == 4


def test_a_model_needs_prompts_and_files_none(two_files: tuple[Path, Path], gavel: Gavel) -> None:
    judge = ["--judge", "j", "--engine", "fake", "--method", "gptscore"]
    assert "needs prompts" in gavel("winrate", two_files[0], "some/model", *judge).err
    ran = gavel("winrate", *two_files, *judge, "--prompts", two_files[0])
    assert ran.code == 2 and "--prompts: is for models" in ran.err
    bad = gavel("winrate", *two_files, "--judge", "j", "--engine", "fake", "--method", "nonsense")
    assert bad.code == 2 and "unknown method 'nonsense'" in bad.err


def test_the_judge_that_judges_itself_is_warned_of(two_files: tuple[Path, Path], gavel: Gavel) -> None:
    rows = [json.loads(line) | {"model": "qwen/Qwen-7B"} for line in two_files[1].read_text().splitlines()]
    write(two_files[1], rows)
    command = ["winrate", *two_files, "--judge", "Qwen/Qwen-72B", "--engine", "fake", "--method", "gptscore"]
    said = gavel(*command).err
    assert "warning: the judge Qwen/Qwen-72B" in said
    assert 'b.jsonl: the same text is offered for 10 of 10 prompts: "bxxxxx"' in said
    assert "warning: the judge" not in gavel(*command, "--self-judge").err
