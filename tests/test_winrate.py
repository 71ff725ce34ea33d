"""Win rates by hand, a planted length effect taken out, the published leaderboard, runs, two sides."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from hypothesis import given
from hypothesis import strategies as st
from judging_tools import Answering, shown

from gavel.errors import InputError
from gavel.records import Completion, Judgment, Message, Prompt, digest
from gavel.rows import BadRows
from gavel.rundir import JsonlWriter, RunDir, read_records
from judge.annotations import Annotation, read_annotations
from judge.duels import Outcome
from judge.head_to_head import head_to_head, models_of
from judge.judging import Single
from judge.winrate import Anchor, Comparison, length_controlled, orders, win_rate
from rounds.sides import Side, bouts_of, is_model, join

ALPACA = Path(__file__).resolve().parents[2] / "shared" / "data" / "alpaca_eval"
needs_data = pytest.mark.skipif(not ALPACA.is_dir(), reason=f"the shared test data is not at {ALPACA}")
Gavel = Callable[..., Ran]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unzipped(name: str) -> list[dict[str, Any]]:
    with gzip.open(ALPACA / f"{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


# statistics
def test_by_hand() -> None:
    """Mean of 1, 0, 0.5, 0.9 is 0.6; squared deviations .16 + .36 + .01 + .09 = .62; √(.62 / 3 / 4)."""
    rate = win_rate([Comparison(p) for p in (1.0, 0.0, 0.5, 0.9, None, None)])
    assert rate.win_rate == pytest.approx(60)
    assert rate.standard_error == pytest.approx(100 * math.sqrt(0.62 / 3 / 4))
    assert (rate.n, rate.wins, rate.losses, rate.draws, rate.unparsed) == (4, 2, 1, 1, 2)


def test_the_interval_by_hand() -> None:
    """6 of 10 with two wins and two losses more: 8 of 14 ± 1.96 · √(8/14 · 6/14 / 14)."""
    rate = win_rate([Comparison(float(i < 6)) for i in range(10)])
    half = 1.959964 * math.sqrt(8 / 14 * 6 / 14 / 14)
    assert rate.interval == pytest.approx((100 * (8 / 14 - half), 100 * (8 / 14 + half)), abs=1e-4)
    many = win_rate([Comparison(p) for p in (0.2, 0.4, 0.6, 0.8) * 500])
    low, high = many.interval
    assert high - low == pytest.approx(2 * 1.96 * many.standard_error, rel=0.01)


@pytest.mark.parametrize("ps", [(0.0, 5e-99), (0.9999, 0.99999, 0.99995), (0.3, 0.3000001)])
def test_a_few_soft_verdicts_alike_are_not_certainty(ps: tuple[float, ...]) -> None:
    low, high = win_rate([Comparison(p) for p in ps]).interval
    assert high - low > 40


def test_no_spread_is_seen_as_none() -> None:
    """0.1 has no exact binary form; equal outcomes still have no error, and an interval."""
    rate = win_rate([Comparison(0.1)] * 3)
    assert rate.standard_error == 0 and rate.interval[1] > 50


def test_too_little_is_not_certainty() -> None:
    assert math.isnan(win_rate([Comparison(None)]).win_rate)
    one = win_rate([Comparison(1.0)])
    assert (
        one.win_rate == 100
        and math.isnan(one.standard_error)
        and one.interval[0] < 30
        and one.interval[1] == 100
    )
    five = win_rate([Comparison(1.0)] * 5)
    assert five.standard_error == 0 and 50 < five.interval[0] < 60 and five.interval[1] == 100


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1))
def test_swapping_the_sides_mirrors_the_rate(ps: list[float | None]) -> None:
    rate = win_rate([Comparison(p) for p in ps])
    mirrored = win_rate([Comparison(None if p is None else 1 - p) for p in ps])
    assert rate.n + rate.unparsed == len(ps) and rate.wins + rate.losses + rate.draws == rate.n
    assert mirrored.unparsed == rate.unparsed
    if rate.n:
        assert mirrored.win_rate == pytest.approx(100 - rate.win_rate)
        low, high = rate.interval
        assert 0 <= low < high <= 100 and low <= rate.win_rate + 1e-9 and rate.win_rate <= high + 1e-9
        assert mirrored.interval == pytest.approx((100 - high, 100 - low), abs=1e-6)


def test_orders_by_hand() -> None:
    """a wins both; the first shown wins both; a tie in both; one order missing."""
    found = orders([(0.9, 0.7), (0.9, 0.1), (0.5, 0.5), (0.5, None), (None, 1.0)])
    assert found is not None
    assert found.order_agreement == pytest.approx(200 / 3)
    assert found.p_first == pytest.approx(100 * (0.5 + 1 + 0.5) / 3)
    assert orders([(None, 1.0)]) is None


# length control
def planted(n: int, phi: float, theta: float, shift: float, psi: float = 0.0) -> list[Comparison]:
    """Comparisons that follow the model exactly; the model's outputs are longer by `shift` on average."""
    draw = random.Random(5)
    lengths = [(draw.gauss(1000, 300), draw.gauss(1000 + shift, 300)) for _ in range(n)]
    gammas = [draw.gauss(0, 1) for _ in range(n)]
    deltas = [a - b for a, b in lengths]
    mean = sum(deltas) / n
    sd = math.sqrt(sum((d - mean) ** 2 for d in deltas) / (n - 1))
    return [
        Comparison(1 / (1 + math.exp(-(phi * math.tanh(d / sd) + psi * g + theta))), a, b, g if psi else None)
        for d, g, (a, b) in zip(deltas, gammas, lengths, strict=True)
    ]


def test_a_planted_length_effect_is_taken_out() -> None:
    """The judge likes long outputs (φ < 0) and knows no other difference (θ = 0): the raw rate is far
    above one half, the controlled one is one half."""
    comparisons = planted(2000, phi=-2.0, theta=0.0, shift=400)
    assert win_rate(comparisons).win_rate > 70
    found = length_controlled(comparisons)
    assert found is not None and found.difficulty is None and found.n == 2000
    assert found.rate == pytest.approx(50, abs=0.1)
    assert found.length == pytest.approx(-2, abs=0.02)


def test_a_planted_quality_stays() -> None:
    found = length_controlled(planted(2000, phi=-2.0, theta=0.8, shift=-300))
    assert found is not None and found.rate == pytest.approx(100 / (1 + math.exp(-0.8)), abs=0.1)


def test_difficulty_is_found_and_averaged_over() -> None:
    comparisons = planted(2000, phi=1.0, theta=-0.5, shift=200, psi=1.5)
    expected = sum(1 / (1 + math.exp(0.5 - 1.5 * (c.difficulty or 0))) for c in comparisons) / 20
    found = length_controlled(comparisons)
    assert found is not None and found.difficulty == pytest.approx(1.5, abs=0.01)
    assert found.rate == pytest.approx(expected, abs=0.1)


def test_the_order_of_rows_does_not_matter() -> None:
    """liblinear draws at random: what is left of that at this tolerance."""
    comparisons = planted(300, phi=-1.0, theta=0.3, shift=300, psi=0.5)
    rates = set()
    for seed in range(4):
        found = length_controlled(random.Random(seed).sample(comparisons, k=300))
        assert found is not None
        rates.add(round(found.rate, 5))
    assert len(rates) == 1


def test_what_length_control_cannot_use() -> None:
    assert length_controlled([Comparison(None, 1, 2), Comparison(0.5)]) is None
    same = length_controlled([Comparison(0.25, 10, 10), Comparison(0.75, 20, 20)] * 50)
    assert same is not None and same.rate == pytest.approx(50, abs=0.1) and same.length == 0
    always = length_controlled([Comparison(1.0, 10, 10 + n) for n in range(9)])
    assert always is not None and always.rate == 100
    mixed = length_controlled(
        [Comparison(0.5, 1, 2, 0.1), Comparison(0.5, 2, 1, -0.1), Comparison(1.0, 1, 2)]
    )
    assert mixed is not None and mixed.n == 2, "a row without a difficulty is left out where others have one"


def test_anchors_weigh_what_they_say() -> None:
    """An anchor of weight 0 changes nothing, one of weight 2 is two of weight 1."""
    rows = planted(200, phi=-1.0, theta=0.3, shift=300)
    anchor = [Anchor(0.9, None, 1.0, 0.1), Anchor(-0.9, None, 1.0, 0.9)] * 20
    bare, none = length_controlled(rows), length_controlled(rows, [Anchor(0.9, None, 0.0, 0.1)])
    twice = length_controlled(rows, anchor * 2)
    heavy = length_controlled(rows, [Anchor(a.length, None, 2.0, a.p) for a in anchor])
    assert bare and none and twice and heavy
    assert none.rate == pytest.approx(bare.rate, abs=1e-6)
    assert twice.rate == pytest.approx(heavy.rate, abs=1e-5) and abs(twice.length - bare.length) > 0.05


# annotations
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


# a run
def judged_run(path: Path, verdicts: Iterable[tuple[str, str, float | None, float | None]]) -> RunDir:
    """verdicts: text of a, text of b, P(a better) with a first, with b first."""
    run = RunDir(path)
    with (
        JsonlWriter(run.prompts_path) as prompts,
        JsonlWriter(run.completions_path) as completions,
        JsonlWriter(run.judgments_path("pairwise-j")) as judgments,
    ):
        for number, (a, b, ab, ba) in enumerate(verdicts):
            name = f"p{number}"
            prompts.append(Prompt(id=name, messages=(Message("user", name),)))
            ids = []
            for place, (text, model) in enumerate(((a, "A"), (b, "B"))):
                ids.append(f"{name}-{model}")
                completions.append(
                    Completion(id=ids[-1], prompt_id=name, index=place, text=text, model=model)
                )
            for shown_first, p in ((0, ab), (1, ba)):
                order = tuple(ids) if shown_first == 0 else tuple(ids[::-1])
                p_first = p if p is None or shown_first == 0 else 1 - p
                judgments.append(
                    Judgment(
                        id=digest(name, order), prompt_id=name, completion_ids=order, method="pairwise",
                        aspect="overall", judge="j", weights="w", template="t", parser="1",
                        verdict=None if p_first is None else "first" if p_first > 0.5 else "second",
                        measures={} if p_first is None else {"p_first": p_first},
                        reason="no label" if p_first is None else None,
                    )
                )  # fmt: skip
    return run


def test_a_run_by_hand(tmp_path: Path, gavel: Gavel) -> None:
    """B wins with (1 - .1 + 1 - .3)/2 = .8; a position-bound judge gives .5; A wins with .9 (B: .1); one
    order without a verdict is none; equal texts are .5 whatever was said."""
    verdicts = [
        ("zz", "bbbb", 0.1, 0.3), ("a", "bb", 0.9, 0.1), ("a", "b", 0.9, 0.9),
        ("x", "b", None, 0.2), ("same", "same", 0.9, 0.9),
    ]  # fmt: skip
    run = judged_run(tmp_path / "run", verdicts)
    found = json.loads(gavel("winrate", run.path, "--length-control", "--json").out)
    assert found["win_rate"] == pytest.approx(100 * (0.8 + 0.5 + 0.1 + 0.5) / 4)
    assert (found["n"], found["unparsed"], found["not_asked"]) == (4, 1, 0)
    assert (found["wins"], found["losses"], found["draws"]) == (1, 1, 2)
    assert (found["model"], found["baseline"]) == ("B", "A")
    assert found["p_first"] == pytest.approx(100 * (0.5 + 1 + 0.5) / 3), "equal texts were not asked about"
    assert found["order_agreement"] == pytest.approx(200 / 3)
    assert found["length_control"]["n"] == 4
    swapped = json.loads(gavel("winrate", run.path, "--model", "A", "--json").out)
    assert swapped["win_rate"] == pytest.approx(100 - found["win_rate"])
    assert (swapped["model"], swapped["baseline"]) == ("A", "B")
    assert swapped["p_first"] == pytest.approx(found["p_first"])


def test_several_outputs_of_a_prompt_are_one_comparison(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "run", [("a", "b", 0.0, 0.0)])
    with JsonlWriter(run.completions_path) as writer:
        writer.append(Completion(id="again", prompt_id="p0", index=2, text="b", model="B"))
        writer.append(Completion(id="new", prompt_id="p0", index=3, text="new", model="B"))
    assert models_of(run) == ["A", "B"]
    (pair,) = head_to_head(run, "pairwise-j", "A", ["B"])
    assert win_rate(pair.comparisons()).n == 1 and pair.not_asked == 1
    assert len(pair.prompts[0]) == 2, "an equal text has the verdict of its twin"


def test_runs_that_say_nothing(tmp_path: Path, gavel: Gavel) -> None:
    run = judged_run(tmp_path / "run", [("a", "b", 0.0, 0.0)])
    assert "--anchors: is for AlpacaEval" in gavel("winrate", run.path, "--anchors", "x").err
    assert "no judging pass 'z'" in gavel("winrate", run.path, "--judgments", "z").err
    assert "no completions of 'C'" in gavel("winrate", run.path, "--model", "C").err
    (single,) = list(read_records(run.judgments_path("pairwise-j"), Judgment))[:1]
    with JsonlWriter(run.judgments_path("scores")) as writer:
        writer.append(
            Judgment(**{f: getattr(single, f) for f in single.__struct_fields__}
                     | {"completion_ids": ("p0-A",), "measures": {}, "verdict": None, "score": 1.0})
        )  # fmt: skip
    assert "holds no comparisons" in gavel("winrate", run.path, "--judgments", "scores").err
    lone = RunDir(tmp_path / "lone")
    with JsonlWriter(lone.completions_path) as completions:
        completions.append(Completion(id="c", prompt_id="p", index=0, text="t", model="A"))
    with JsonlWriter(lone.judgments_path("scores")) as judgments:
        judgments.append(single)
    assert "come from one model (A)" in gavel("winrate", lone.path).err


# two sides
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
    assert not is_model(str(judged_run(tmp_path / "run", []).path))


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
