"""`gavel audit` as a command, and on published data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_tools import ab, clean, found, writer

from gavel.cli import root
from gavel.command import exit_codes
from gavel.errors import GavelError
from judge.audit import AuditConfig, audit
from judge.audit_limits import LIMITS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared test data is not at {DATA}")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        with exit_codes():
            root.main(["audit", *args], prog_name="gavel", standalone_mode=False)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_exits_1_and_names_what_was_crossed(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = write(*(clean(i) for i in range(30)), name="fine.jsonl")
    code, out, err = run([fine], capsys)
    assert (code, err) == (0, "")
    assert "near-duplicates: MinHash" in out
    rows = [clean(i) for i in range(30)]
    poor = write(*rows, rows[0], rows[1], {**rows[2], "rejected": ""}, "{", name="poor.jsonl")
    code, out, err = run([poor, "--eval", fine, "--max-empty", "0.5"], capsys)
    assert code == 1
    assert "CROSSED" in out
    assert (
        "3 limits crossed: unusable 2.9% (limit 1.0%, --max-bad-rows); duplicates 6.1% (limit 1.0%, " in err
    )
    assert "eval overlap 100.0% (limit 0.0%, --max-eval-overlap)" in err
    assert "empty" not in err
    code, out, err = run([poor, "--json", "--max-bad-rows", "1", "--max-duplicates", "1"], capsys)
    assert (code, json.loads(out)["crossed"]) == (1, ["empty"])
    limits = json.loads(out)["findings"]
    assert limits["duplicates"]["limit"] == 1
    assert {limit.name: limit.most for limit in LIMITS if limit.name != "duplicates"} == {
        name: finding["limit"] for name, finding in limits.items() if name not in ("duplicates", "unusable")
    }


def test_a_person_sees_every_part(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**ab(i, "a"), "chosen_score": 1.5, "rejected_score": 2.5} for i in range(12)]
    rows[3]["response_b"] += "<|eot_id|>"
    code, out, _ = run([write(*rows), "--eval", write(rows[0], name="e.jsonl"), "--list", "2"], capsys)
    assert code == 1
    for part in ("scores against label", "(10 more)", "Llama 3: <|eot_id|> 1 1", "30%-70%", "median",
                 "of 1 prompts SRC holds 1 (1 rows)", "pairs.jsonl:4"):  # fmt: skip
        assert part in out, part


@pytest.mark.parametrize("args", [["none.jsonl"], ["--near", "0.2", "x"], ["--max-ties", "2", "x"], []])
def test_a_mistake_is_exit_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(args, capsys)
    assert (code, out) == (2, "")
    assert err


# real data


@needs_data
def test_the_hh_pairs(tmp_path: Path) -> None:
    report = audit(str(DATA / "hh" / "harmless-test-sample.jsonl.gz"), AuditConfig())
    longer = report["findings"]["longer_wins"]
    assert (longer["count"], longer["total"], longer["equal"]) == (223, 500, 2)  # the 44.6 % of its README
    assert found(report) == dict.fromkeys(report["findings"], 0) | {
        "near_identical": 1, "near_duplicate_prompts": 5, "longer_wins": 223,
        "scores_against_label": None, "eval_overlap": None, "first_column": None,
    }  # fmt: skip
    assert report["crossed"] == []


@needs_data
@pytest.mark.parametrize(
    ("subset", "longer", "first", "n"),
    [("natural", 56, 42, 100), ("gptinst", 12, 45, 92), ("gptout", 21, 22, 47)],
)
def test_llmbar(subset: str, longer: int, first: int, n: int) -> None:
    """Its README's counts of gold labels, and the known "longer wins": 56.0, 13.0 and 44.7 %."""
    report = audit(str(DATA / "llmbar" / f"{subset}.jsonl.gz"), AuditConfig())
    assert found(report, "longer_wins", "first_column") == {"longer_wins": longer, "first_column": first}
    assert report["labelled"] == n
    assert ("longer_wins" in report["crossed"]) is (subset == "gptinst")


@pytest.mark.slow
@needs_data
def test_alpaca_eval(write: Any) -> None:
    import gzip

    folder = DATA / "alpaca_eval"
    with gzip.open(folder / "prompts.jsonl.gz") as file:
        prompts = {row["index"]: row for row in map(json.loads, file)}
    with gzip.open(folder / "preferences.jsonl.gz") as file:
        judged = [row for row in map(json.loads, file) if row["model"] == "gemma-7b-it"]
    rows = [{"instruction": prompts[r["index"]]["instruction"], "preference": r["preference"],
             "output_1": prompts[r["index"]]["outputs"]["gpt4_1106_preview"],
             "output_2": prompts[r["index"]]["outputs"]["gemma-7b-it"]} for r in judged]  # fmt: skip
    report = audit(write(*rows), AuditConfig())
    ties = sum(r["preference"] == 1.5 for r in judged)
    assert found(report, "unusable", "ties", "first_column") == {
        "unusable": 0, "ties": ties, "first_column": sum(r["preference"] < 1.5 for r in judged)
    }  # fmt: skip
    assert report["scores"]["p_chosen"]["mean"] == pytest.approx(
        np.mean(
            [
                max(r["preference"] - 1, 2 - r["preference"])
                for r in judged
                if r["preference"] not in (1, 1.5, 2)
            ]
        )
    )
    assert "first_column" in report["crossed"]
    assert isinstance(report["findings"]["longer_wins"]["interval"], list)


def test_errors_are_for_people(write: Any) -> None:
    with pytest.raises(GavelError) as told:
        audit(write({"foo": 1}), AuditConfig())
    assert "--map" in str(told.value)
