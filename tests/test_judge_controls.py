"""What keeps a judge in check: dry runs, limits, reading again, kinship, and the gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Ran
from judging_tools import Answering, completion, prompt, shown

from gavel.errors import CheckFailed, InputError, RunDirError
from gavel.records import Judgment
from gavel.rundir import JsonlWriter, RunDir, read_records
from judge.collect import Limits
from judge.gate import Gate
from judge.judging import Single
from judge.kinship import Kin, family_of, relation
from judge.pairwise import Pairwise
from judge.rating import Rating
from judge.reparse import reparse_pass
from judge.stage import judge

Gavel = Callable[..., Ran]


def run_of(path: Path, prompts: int = 3, each: int = 3, model: str | None = None) -> Path:
    run = RunDir(path)
    with JsonlWriter(run.prompts_path) as asked, JsonlWriter(run.completions_path) as writer:
        for n in range(prompts):
            asked.append(prompt(f"question {n}", id=f"p{n}"))
            for index in range(each):
                made = completion("a" * (index + 1), index, f"p{n}")
                writer.append(msgspec.structs.replace(made, model=model))
    return path


def fake(path: Path, *more: object) -> list[object]:
    return ["judge", path, "--judge", "fake", "--engine", "fake", "--json", *more]


# dry runs and limits
@pytest.mark.parametrize("method", ["gptscore", "rating", "pairwise", "listwise", "principles"])
def test_a_dry_run_says_what_will_be_asked(method: str, tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run")
    command = fake(run, "--method", method, "--max-model-len", 100000)
    if method == "listwise":
        command += ["--permutations", 2]
    planned = json.loads(gavel(*command, "--dry-run").out)
    assert not (run / "judgments").exists(), "nothing was asked"
    done = gavel(*command)
    real = json.loads(done.out) if done.out else RunDir(run).stage(f"judge/{method}-fake")
    assert (planned["calls"], planned["tokens"]) == (real["calls"], real["tokens"])
    again = json.loads(gavel(*command, "--dry-run").out)
    assert again["calls"] == 0 and again["reused"] == real["judgments"]


def test_a_dry_run_of_a_tournament_says_at_most(tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run", each=6)
    command = fake(run, "--method", "pairwise", "--pairs", "tournament", "--max-model-len", 100000)
    planned = json.loads(gavel(*command, "--dry-run").out)
    assert 0 < planned["calls"] < planned["calls_at_most"] == 3 * 30


def test_limits_stop_cleanly_and_the_same_command_goes_on(tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run")
    base = fake(run, "--form", "direct")
    for expected in (4, 4, 1):
        done = gavel(*base, "--max-calls", 4)
        assert done.code == 0, done.err
        assert json.loads(done.out)["calls"] == expected
    assert RunDir(run).stage("judge/gptscore-fake"), "finished with the last of them"
    found = list(read_records(RunDir(run).judgments_path("gptscore-fake"), Judgment))
    assert len(found) == len({j.id for j in found}) == 9

    small = run_of(tmp_path / "small")
    none = json.loads(gavel(*fake(small, "--form", "direct", "--max-tokens", 1)).out)
    assert (none["calls"], none["left"]) == (0, 9)
    assert not RunDir(small).stage("judge/gptscore-fake"), "not finished"


def test_limits_hold_over_the_rounds_of_a_tournament(tmp_path: Path) -> None:
    def longer(text: str) -> dict[str, float]:
        a, b = (len(shown(text, f"answer {label}")) for label in "AB")
        return {"A": 0.9, "B": 0.1} if a > b else {"A": 0.1, "B": 0.9}

    with RunDir.open(run_of(tmp_path / "run", prompts=2, each=8)) as run:
        method = Pairwise(ties=False, pairs="tournament")
        spent = 0
        for _ in range(50):
            summary = judge(run, Answering(longer), method, limits=Limits(calls=10))
            assert summary["calls"] <= 10
            spent += summary["calls"]
            if not summary["left"]:
                break
    with RunDir.open(run_of(tmp_path / "whole", prompts=2, each=8)) as run:
        assert judge(run, Answering(longer), method)["calls"] == spent


# reading again
class _Strict(Rating):
    """A newer parser: takes no rating above 3."""

    def parse(self, item: Any, replies: Any) -> Any:
        from gavel.errors import RowError

        verdict = super().parse(item, replies)
        if verdict.score is not None and verdict.score > 3:
            raise RowError("too kind")
        return verdict


def test_replies_are_read_again_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter(["Rating: [[2]]", "Rating: [[9]]", "no rating"] * 3)
    path = run_of(tmp_path / "run")
    options = {"method": "rating", "settings": {"preset": "mt-bench"}}
    with RunDir.open(path) as run:
        summary = judge(run, Answering(lambda _: next(replies)), Rating(preset="mt-bench"), options=options)
        before = list(read_records(run.judgments_path(summary["pass"]), Judgment))
        assert sorted(str(j.score) for j in before) == ["2.0"] * 3 + ["9.0"] * 3 + ["None"] * 3

        same = reparse_pass(run, None)
        assert (same["read_again"], same["changed"]) == (9, 0)
        after = list(read_records(run.judgments_path(summary["pass"]), Judgment))
        assert after == before, "the same parser reads the same"

        monkeypatch.setattr("judge.reparse.make_method", lambda name, settings: _strict(settings))
        newer = reparse_pass(run, summary["pass"])
        assert (newer["changed"], newer["unusable"]) == (3, 6)
        read = list(read_records(run.judgments_path(summary["pass"]), Judgment))
        assert [j.raw for j in read] == [j.raw for j in before], "the replies stay"
        assert {j.reason for j in read if j.raw == "Rating: [[9]]"} == {"too kind"}
        assert {j.parser for j in read} == {"strict/2"}
        assert not {j.id for j in read} & {j.id for j in before}, "another parser, another judgment"
        kept = run.judgments_path(summary["pass"]).parent / newer["kept"]
        assert list(read_records(kept, Judgment)) == before


def _strict(settings: dict[str, Any]) -> Rating:
    made = _Strict(**settings)
    object.__setattr__(made, "parser", "strict/2")
    return made


def test_reading_again_from_the_command_line(tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run")
    gavel(*fake(run, "--method", "rating", "--verdict", "choice", "--max-model-len", 9999))
    again = gavel("judge", run, "--reparse", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["read_again"] == 9
    likelihood = run_of(tmp_path / "other")
    gavel(*fake(likelihood, "--form", "direct"))
    assert json.loads(gavel("judge", likelihood, "--reparse", "--json").out)["read_again"] == 0


def test_a_changed_template_is_another_question(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.toml"
    rubric.write_text('[x]\ndefinition = "one"\n')
    options = {"method": "rating", "settings": {"rubric": str(rubric)}}
    with RunDir.open(run_of(tmp_path / "run")) as run:
        judge(run, Answering(lambda _: {"3": 1.0}), Rating(rubric=str(rubric)), options=options)
        rubric.write_text('[x]\ndefinition = "two"\n')
        with pytest.raises(InputError, match="another question"):
            reparse_pass(run, None)


def test_a_pass_that_does_not_say_how_it_was_made(tmp_path: Path) -> None:
    with RunDir.open(run_of(tmp_path / "run")) as run:
        judge(run, Answering(lambda _: {"3": 1.0}), Rating())
        with pytest.raises(RunDirError, match="how it was made"):
            reparse_pass(run, None)


# kinship
@pytest.mark.parametrize(
    ("judge_model", "maker", "related"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "is the model"),
        ("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-7B-Instruct", "one family (qwen)"),
        ("meta-llama/Llama-3.1-8B", "Meta-Llama-3-70B", "one family (llama)"),
        ("Qwen/Qwen2.5-7B", "google/gemma-2-9b-it", None),
        ("./judge", "./policy", None),
    ],
)
def test_relations(judge_model: str, maker: str, related: str | None) -> None:
    found = relation([Kin(judge_model)], [Kin(maker)])
    assert (related in found) if related and found else found is related


def test_the_same_weights_under_another_name() -> None:
    assert relation([Kin("a", "w")], [Kin("b", "w")]) is not None
    assert family_of("x") is None


def test_a_judge_of_its_own_kind_is_warned_about(tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run", model="fake")
    told = gavel(*fake(run, "--form", "direct"))
    assert told.code == 0 and "warning" in told.err and "--self-judge" in told.err
    meant = gavel(*fake(run, "--form", "direct", "--self-judge"))
    assert "warning" not in meant.err
    other = run_of(tmp_path / "other", model="somebody/else")
    assert "warning" not in gavel(*fake(other, "--form", "direct")).err


# the gate
def gold(path: Path, count: int = 10) -> Path:
    """The longer answer is right."""
    rows = []
    for n in range(count):
        a, b = ("a" * (n + 2), "b") if n % 2 else ("a", "b" * (n + 2))
        label = "a" if n % 2 else "b"
        rows.append(
            {"id": f"g{n}", "prompt": f"question {n}", "response_a": a, "response_b": b, "label": label}
        )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def likes(longer: bool) -> Callable[[str], dict[str, float]]:
    def rule(text: str) -> dict[str, float]:
        a, b = (len(shown(text, f"answer {label}")) for label in "AB")
        return {"A": 0.9, "B": 0.1} if (a > b) is longer else {"A": 0.1, "B": 0.9}

    return rule


def test_a_judge_that_fails_does_not_label(tmp_path: Path) -> None:
    gate = Gate(gold=str(gold(tmp_path / "gold.jsonl")), min_accuracy=0.9, min_order_agreement=0.9)
    with RunDir.open(run_of(tmp_path / "run")) as run:
        good = Single(Answering(likes(True)), Pairwise(ties=False))
        passed = gate.check(run, good, "good")
        assert (passed["accuracy"], passed["order_agreement"], passed["passed"]) == (1.0, 1.0, True)
        bad = Single(Answering(likes(False)), Pairwise(ties=False, with_reference=False))
        with pytest.raises(CheckFailed, match=r"accuracy 0\.000 is under 0\.9"):
            gate.check(run, bad, "bad")
        biased = Single(Answering(lambda _: {"A": 0.9, "B": 0.1}), Pairwise(ties=False, plain=False))
        with pytest.raises(CheckFailed, match=r"order agreement 0\.000"):
            Gate(gold=gate.gold, min_accuracy=0.0, min_order_agreement=0.5).check(run, biased, "biased")
        assert not run.judging_passes(), "nothing was labelled"
        assert run.manifest()["gates"]["bad"]["passed"] is False


def test_the_gate_of_the_command_line(tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run")
    asked = ["--method", "gptscore", "--form", "direct", "--gold", gold(tmp_path / "gold.jsonl")]
    refused = gavel(*fake(run, *asked, "--min-accuracy", 1))
    assert refused.code == 1 and "nothing was labelled" in refused.err
    assert not list((run / "judgments").glob("gptscore-fake")) if (run / "judgments").exists() else True
    passed = gavel(*fake(run, *asked, "--min-accuracy", 0, "--min-order-agreement", 0))
    assert passed.code == 0, passed.err
    for wrong, says in (
        (["--min-accuracy", 0.5], "--gold FILE"),
        (["--gold", tmp_path / "none"], "no such file"),
    ):
        found = gavel(*fake(run, *wrong))
        assert found.code == 2 and says in found.err
