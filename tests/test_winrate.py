"""Win rates by hand, a planted length effect taken out, the comparisons of a run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from conftest import Ran
from hypothesis import given
from hypothesis import strategies as st

from gavel.errors import CheckFailed
from gavel.records import Completion, Judgment, Message, Prompt, digest
from gavel.rundir import JsonlWriter, RunDir, read_records
from judge.head_to_head import head_to_head, models_of
from judge.winrate import (
    Anchor,
    Comparison,
    length_controlled,
    length_controlled_interval,
    orders,
    win_rate,
)

Gavel = Callable[..., Ran]


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


def test_the_interval_of_a_length_controlled_rate_holds_the_rate() -> None:
    """Of 100 draws with a length effect and a planted quality, 95 % hold the planted rate, give or take."""
    import numpy as np

    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        differences = rng.normal(0, 50, 200)
        terms = np.tanh(differences / differences.std(ddof=1))
        p = 1 / (1 + np.exp(-(1.5 * terms + 0.5)))
        rows = [
            Comparison(float(rng.random() < one), 300 + d, 300) for one, d in zip(p, differences, strict=True)
        ]
        found = length_controlled(rows)
        assert found is not None
        low, high = length_controlled_interval(rows, found) or (0.0, 0.0)
        held += low < 100 / (1 + math.exp(-0.5)) < high
    assert 89 <= held <= 99


def test_the_interval_without_length_differences_by_hand() -> None:
    """60 wins of 100: θ = ln 1.5, its error 1 / √(n p (1 - p)) = 0.2041."""
    rows = [Comparison(float(n < 60), 20, 20) for n in range(100)]
    found = length_controlled(rows)
    assert found is not None
    low, high = length_controlled_interval(rows, found) or (0.0, 0.0)
    ends = [100 / (1 + math.exp(-(math.log(1.5) + z * 0.20412))) for z in (-1.959964, 1.959964)]
    assert (low, high) == pytest.approx(ends, abs=0.3), "the fit's penalty draws it a little towards 50"
    always = [Comparison(1.0, 20, 20)] * 9
    sure = length_controlled(always)
    assert sure is not None and length_controlled_interval(always, sure) is None


def test_an_interval_of_three_comparisons_may_say_nothing_but_does_not_overflow() -> None:
    """The lengths say nearly all: the intercept's error is in the thousands."""
    rows = [Comparison(1.0, 17, 0), Comparison(0.0, 39, 18), Comparison(0.0, 27, 0)]
    found = length_controlled(rows)
    assert found is not None
    low, high = length_controlled_interval(rows, found) or (math.nan, math.nan)
    assert low == pytest.approx(0) and high == pytest.approx(100)


@given(
    st.lists(
        st.builds(Comparison, st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), st.integers(0, 40),
                  st.integers(0, 40)),
        max_size=8,
    )
)  # fmt: skip
def test_few_comparisons_have_an_interval_that_holds_the_rate_or_none(rows: list[Comparison]) -> None:
    try:
        found = length_controlled(rows)
    except CheckFailed:
        return
    interval = found and length_controlled_interval(rows, found)
    if found is None or interval is None:
        return
    low, high = interval
    assert 0 <= low <= found.rate + 1e-9 and found.rate - 1e-9 <= high <= 100


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
