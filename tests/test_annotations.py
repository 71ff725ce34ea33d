"""Recorded annotations, and the published leaderboard made of them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

from gavel.rows import BadRows
from judge.annotations import Annotation, read_annotations

ALPACA = Path(__file__).resolve().parents[2] / "shared" / "data" / "alpaca_eval"
needs_data = pytest.mark.skipif(not ALPACA.is_dir(), reason=f"the shared test data is not at {ALPACA}")
Gavel = Callable[..., Ran]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unzipped(name: str) -> list[dict[str, Any]]:
    with gzip.open(ALPACA / f"{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def annotate(path: Path, **row: Any) -> Annotation:
    (found,) = read_annotations(str(write(path / "a.jsonl", [row])), {}, BadRows(0))
    return found


def test_the_judges_token_by_hand(tmp_path: Path) -> None:
    """P(m) = .6, P(M) = .2: the output shown first wins with 3/4, whoever it is."""
    top = {"m": math.log(0.6), "M": math.log(0.2), "Both": math.log(0.1)}
    for shown_as, p in (("M", 0.75), ("m", 0.25)):
        found = annotate(tmp_path, judge_token="m", top_logprobs=top, baseline_shown_as=shown_as)
        assert found.comparison.p == pytest.approx(p)
    listed = [{"token": token, "logprob": lp} for token, lp in top.items()]
    assert annotate(tmp_path, top_logprobs=listed, baseline_shown_as="M").comparison.p == pytest.approx(0.75)
    packed = json.dumps(top)  # as a CSV cell holds it
    assert annotate(tmp_path, top_logprobs=packed, baseline_shown_as="M").comparison.p == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("row", "p", "reason"),
    [
        ({"top_logprobs": {"M": -0.1}, "baseline_shown_as": "M"}, 0.0, None),
        ({"top_logprobs": {"m": -9.0}, "baseline_shown_as": "M"}, 1.0, None),
        ({"top_logprobs": {"m": -2000.0, "M": -1.0}, "baseline_shown_as": "m"}, 1.0, None),
        ({"top_logprobs": {"The": -0.1, " M": -3.0}, "baseline_shown_as": "M"}, None, "neither m nor M"),
        ({"top_logprobs": {}, "judge_token": "m", "baseline_shown_as": "M"}, None, "neither m nor M"),
        ({"top_logprobs": {"m": -0.1}, "baseline_shown_as": None}, None, "order shown"),
        ({"top_logprobs": {"m": -0.7, "M": -0.7}, "baseline_shown_as": None}, 0.5, None),
        ({"top_logprobs": None, "judge_token": "M", "baseline_shown_as": "m"}, 1.0, None),
        ({"top_logprobs": None, "judge_token": "Neither", "baseline_shown_as": "m"}, None, "neither m nor M"),
        ({"top_logprobs": None, "judge_token": None, "baseline_shown_as": None}, None, "neither a pref"),
        ({"top_logprobs": None, "preference": 1.5}, 0.5, None),
        ({"top_logprobs": None, "output_1": "same", "output_2": "same"}, 0.5, None),
        ({"preference": None}, None, "neither a pref"),
        ({"preference": None, "top_logprobs": {"m": -0.1}, "baseline_shown_as": "M"}, 1.0, None),
        ({"preference": "2"}, 1.0, None),
        ({"preference": 1}, 0.0, None),
        ({"preference": 0}, None, "not between"),
        ({"preference": -1}, None, "not between"),
        ({"preference": 2.001}, None, "not between"),
    ],
    ids=str,
)
def test_a_failure_is_never_a_verdict(
    tmp_path: Path, row: dict[str, Any], p: float | None, reason: str | None
) -> None:
    found = annotate(tmp_path, **row)
    assert found.comparison.p == p
    assert (found.reason is None) is (p is not None) and (reason or "") in (found.reason or "")


def test_a_swapped_order_is_noticed(tmp_path: Path, gavel: Gavel) -> None:
    row = {"preference": 1.9, "top_logprobs": {"m": math.log(0.9), "M": math.log(0.1)}}
    assert not annotate(tmp_path, **row, baseline_shown_as="M").contradicted
    swapped = annotate(tmp_path, **row, baseline_shown_as="m")
    assert swapped.contradicted and swapped.comparison.p == pytest.approx(0.9)
    path = write(tmp_path / "s.jsonl", [{**row, "baseline_shown_as": "m"}])
    ran = gavel("winrate", path, "--json")
    assert json.loads(ran.out)["contradicted"] == 1 and "contradict their log-prob" in ran.err


def test_an_array_of_annotations(tmp_path: Path, gavel: Gavel) -> None:
    """As AlpacaEval saves them; lengths are those of the outputs."""
    rows = [
        {"instruction": f"Say {n}", "output_1": "x" * (n + 1), "output_2": "y" * 5, "generator_1": "old",
         "generator_2": "new", "annotator": "someone", "preference": preference}
        for n, preference in enumerate([2, 1.0, 1.5, None])
    ]  # fmt: skip
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    ran = gavel("winrate", path, "--length-control", "--json")
    found = json.loads(ran.out)
    assert ran.code == 0
    assert {k: found[k] for k in ("win_rate", "n", "wins", "losses", "draws", "unparsed")} == {
        "win_rate": 50.0, "n": 3, "wins": 1, "losses": 1, "draws": 1, "unparsed": 1,
    }  # fmt: skip
    assert found["length_control"]["n"] == 3 and found["length_control"]["difficulty"] is None
    assert "without --difficulty" in ran.err
    (first, *_) = read_annotations(str(path), {}, BadRows())
    assert (first.model, first.baseline) == ("new", "old")
    assert (first.comparison.len_baseline, first.comparison.len_model) == (1, 5)


def test_several_models_and_baselines(tmp_path: Path, gavel: Gavel) -> None:
    rows = [{"model": "a", "preference": 2}, {"model": "b", "preference": 1}, {"model": "b", "preference": 2}]
    path = write(tmp_path / "a.jsonl", rows)
    found = json.loads(gavel("winrate", path, "--json").out)
    assert {name: result["win_rate"] for name, result in found.items()} == {"a": 100.0, "b": 50.0}
    assert json.loads(gavel("winrate", path, "--model", "a", "--json").out)["n"] == 1
    two = [{"generator_1": base, "generator_2": "m", "preference": 2} for base in ("x", "y")]
    assert list(json.loads(gavel("winrate", write(path, two), "--json").out)) == [
        "m against x", "m against y",
    ]  # fmt: skip


def test_columns_of_other_names(tmp_path: Path, gavel: Gavel) -> None:
    path = write(tmp_path / "a.jsonl", [{"score": 1.25, "system": "m"}])
    assert gavel("winrate", path).code == 2
    ran = gavel("winrate", path, "--map", "preference=score", "--map", "model=system", "--json")
    assert json.loads(ran.out)["win_rate"] == 25.0
    assert "nothing is called 'prefrence'" in gavel("winrate", path, "--map", "prefrence=score").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "no such file"),
        (["wrong.jsonl"], "no usable columns: it needs preference"),
        (["good.jsonl", "--model", "z"], "no annotations of 'z'"),
        (["good.jsonl", "--anchors", "none.jsonl"], "no such file"),
        (["good.jsonl", "--anchors", "good.jsonl"], "needs preference_equivalent"),
        (["good.jsonl", "--difficulty", "good.jsonl"], "needs instruction_difficulty"),
        (["good.jsonl", "--difficulty", "gamma.jsonl"], "cannot be joined"),
        (["good.jsonl", "--judge", "j"], "--judge: compares two sides"),
        (["good.jsonl", "--out", "run"], "--out: is for comparing A and B"),
        (["good.jsonl", "--judgments", "p"], "--judgments: is for a run"),
        (["good.jsonl", "wrong.jsonl"], "--judge: a judge is needed"),
        (["a", "b", "c"], "one source or two, not 3"),
        (["text.jsonl"], "preference is 'good', no number"),
    ],
    ids=" ".join,
)
def test_mistakes_are_explained(
    tmp_path: Path, gavel: Gavel, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "wrong.jsonl", [{"prompt": "x", "completion": "y"}])
    write(tmp_path / "good.jsonl", [{"preference": 1.5}])
    write(tmp_path / "gamma.jsonl", [{"index": 4, "instruction_difficulty": 1.0}])
    write(tmp_path / "text.jsonl", [{"preference": "good"}])
    ran = gavel("winrate", *arguments)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err and not ran.out


def test_no_verdict_at_all_is_said(tmp_path: Path, gavel: Gavel) -> None:
    ran = gavel("winrate", write(tmp_path / "a.jsonl", [{"preference": None}] * 3), "--json")
    assert ran.code == 1 and "not one comparison has a verdict" in ran.err
    assert json.loads(ran.out)["win_rate"] is None and json.loads(ran.out)["unparsed"] == 3


# the published leaderboard
def alpaca(gavel: Gavel, source: Path, *options: object) -> Any:
    ran = gavel("winrate", source, "--json", *options)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.fixture
def full() -> list[object]:
    return ["--length-control", "--anchors", ALPACA / "lc_anchor_rows.jsonl.gz", "--difficulty",
            ALPACA / "lc_inputs.jsonl.gz"]  # fmt: skip


@needs_data
def test_the_leaderboard(gavel: Gavel, full: list[object]) -> None:
    found = alpaca(gavel, ALPACA / "preferences.jsonl.gz", *full)
    published = unzipped("leaderboard")
    assert found.keys() == {row["model"] for row in published} and len(published) == 2
    for row in published:
        mine = found[row["model"]]
        assert mine["win_rate"] == pytest.approx(row["win_rate"], abs=1e-6)
        assert mine["standard_error"] == pytest.approx(row["standard_error"], abs=1e-6)
        assert (mine["wins"], mine["losses"], mine["draws"], mine["n"]) == (
            row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"],
        )  # fmt: skip
        assert mine["length_controlled_win_rate"] == pytest.approx(row["length_controlled_winrate"], abs=0.2)
        assert mine["unparsed"] == 0 and mine["contradicted"] == 0


@needs_data
def test_the_leaderboard_from_log_probabilities_alone(gavel: Gavel, tmp_path: Path) -> None:
    """Without `preference`: the three answers that equal the baseline's were not asked about, and nothing
    in these columns says that they are equal."""
    rows = [{k: v for k, v in row.items() if k != "preference"} for row in unzipped("preferences")]
    found = alpaca(gavel, write(tmp_path / "p.jsonl", rows))
    for row in unzipped("leaderboard"):
        mine = found[row["model"]]
        silent = 3 if row["model"].startswith("vicuna") else 0
        assert (mine["unparsed"], mine["n"]) == (silent, 805 - silent)
        whole = (mine["win_rate"] * mine["n"] + 50 * silent) / 805
        assert whole == pytest.approx(row["win_rate"], abs=1e-6)


@needs_data
def test_the_leaderboard_from_the_outputs(gavel: Gavel, tmp_path: Path, full: list[object]) -> None:
    """As annotations.json has them: no index, no lengths; equal outputs are known to be equal."""
    prompts = unzipped("prompts")
    rows = []
    for row in unzipped("preferences"):
        outputs = prompts[row["index"]]["outputs"]
        baseline, model = outputs["gpt4_1106_preview"], outputs[row["model"]]
        rows.append({
            "instruction": prompts[row["index"]]["instruction"], "output_1": baseline, "output_2": model,
            "generator_1": "gpt4_1106_preview", "generator_2": row["model"],
            "preference": row["preference"] if baseline != model else None,
        })  # fmt: skip
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    found = alpaca(gavel, path, *full)
    for row in unzipped("leaderboard"):
        mine = found[row["model"]]
        assert mine["win_rate"] == pytest.approx(row["win_rate"], abs=1e-6)
        assert mine["length_controlled_win_rate"] == pytest.approx(row["length_controlled_winrate"], abs=0.2)
    path.write_text(json.dumps(rows[5:]))
    assert "cannot be joined" in gavel("winrate", path, *full).err, "in another order nothing fits"


@needs_data
def test_without_anchors_and_difficulty(gavel: Gavel) -> None:
    """Below and above the published figures by what docs/winrate.md says, and between bounds that mean
    something: both models are shorter than the baseline, so control lifts them."""
    found = alpaca(gavel, ALPACA / "preferences.jsonl.gz", "--length-control")
    for row in unzipped("leaderboard"):
        mine = found[row["model"]]["length_controlled_win_rate"]
        assert row["win_rate"] < mine < row["length_controlled_winrate"] + 4
