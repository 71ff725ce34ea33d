"""The figures of a round and its gates, by hand."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from gavel.errors import InputError
from rounds.figures import (
    Answer,
    Figure,
    distinct,
    distinct_ratio,
    kl,
    logprob_changes,
    mean,
    of_answers,
    ratios,
    repetition,
    rises,
)
from rounds.gates import DEFAULTS, FIGURES, Gate, best, check, decide, last_words, read_gates, sayings
from rounds.show import _gates as shown
from rounds.standing import Line, plan_of, prunable


def answer(*tokens: int, text: str = "", cut_off: bool = False, logp: float | None = None) -> Answer:
    return Answer(text or " ".join(map(str, tokens)), tokens, cut_off, logp)


def test_distinct_counts_over_all_texts_and_not_across_them() -> None:
    assert distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4  # 12 23 | 12 24; 31 is none
    assert distinct([[1], [1], [2]], 1) == 2 / 3
    assert distinct([[1]], 2) is None


def test_repetition_is_the_share_that_came_before() -> None:
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4], 4) == pytest.approx(1 - 4 / 5)
    assert repetition([7] * 10, 4) == pytest.approx(1 - 1 / 7)
    assert repetition([1, 2, 3], 4) is None


def test_the_figures_of_answers() -> None:
    found = of_answers([answer(1, 2), answer(1, 2), answer(3, 4, 5, 6, cut_off=True)])
    assert found["length_mean"].value == pytest.approx(8 / 3)
    assert found["cut_off"].value == pytest.approx(1 / 3)
    assert found["top_answer"].value == pytest.approx(2 / 3)
    assert found["distinct_2"].value == pytest.approx(4 / 5)
    assert found["self_repetition"] == Figure(0.0, (0.0, 0.0), 3), "of short answers too"
    assert found["cut_off"].interval == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson's


def test_a_mean_has_the_interval_of_the_normal_distribution() -> None:
    low, high = mean([0.0, 1.0, 2.0]).interval or (0.0, 0.0)
    assert (low, high) == pytest.approx((1 - 1.959964 / math.sqrt(3), 1 + 1.959964 / math.sqrt(3)), rel=1e-6)
    assert mean([2.0]) == Figure(2.0, n=1)
    assert mean([]).value is None


def test_kl_is_the_mean_of_what_the_policies_say_of_the_policys_own_answers() -> None:
    found = kl([answer(1, 2, logp=-1.0), answer(1, 2, 3, logp=-2.0)], [-3.0, -2.5])
    assert found["kl_first"].value == pytest.approx((2.0 + 0.5) / 2)
    assert found["kl_first_token"].value == pytest.approx(2.5 / 5)
    # residuals of the ratio 1/2: 2 - 2/2 and 0.5 - 3/2, their sd √2; mean tokens 2.5
    half = 1.959964 * math.sqrt(2) / math.sqrt(2) / 2.5
    assert found["kl_first_token"].interval == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)
    assert kl([answer(1)], [-1.0])["kl_first"].value is None


def test_kl_of_samples_comes_to_the_kl_of_two_distributions() -> None:
    p, q, draw = [0.7, 0.2, 0.1], [0.2, 0.5, 0.3], random.Random(0)
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    drawn = draw.choices(range(3), p, k=4000)
    found = kl([answer(i, logp=math.log(p[i])) for i in drawn], [math.log(q[i]) for i in drawn])["kl_first"]
    low, high = found.interval or (0.0, 0.0)
    assert low < exact < high and high - low < 0.1


def test_ratios_and_changes() -> None:
    found = ratios([answer(1, 2, 3, 4), answer(5, 6)], [answer(1, 1), answer(2)])
    # of three drawn from 1 2 3 4 5 6 all differ, 1 1 2 has two
    assert found["distinct_1_ratio_first"].value == pytest.approx(3 / 2)
    assert found["length_ratio_first"].value == 2.0
    # residuals 4 - 2·2 and 2 - 2·1 are 0
    assert found["length_ratio_first"].interval == (2.0, 2.0)
    empty = ratios([answer(1)], [answer()])
    assert empty["length_ratio_first"] == Figure(None, why="the first policy's answers are empty")
    assert empty["distinct_1_ratio_first"] == Figure(None, why="no answer of the first policy has 1 token")
    strangers = [Answer("a", [1], False, prompt=name) for name in ("p", "q")]
    found = ratios(strangers[:1], strangers[1:])
    assert found["length_ratio_first"] == Figure(None, why="no prompt was answered by both policies")
    lines = [{"logps/chosen": -10.0 - i, "logps/rejected": -20.0 - 2 * i} for i in range(20)]
    found = logprob_changes(lines)
    assert found["chosen_logprob_change"].value == pytest.approx(-18.0)  # of two lines each
    assert found["rejected_logprob_change"].value == pytest.approx(-36.0)
    unlogged = logprob_changes([{"loss": 1.0}])["chosen_logprob_change"]
    assert unlogged == Figure(None, n=0, why="this training logs none")
    once = logprob_changes(lines[:1])["chosen_logprob_change"]
    assert once.value is None and once.why and "log-steps" in once.why


def test_different_k_grams_in_equally_many_by_hand() -> None:
    """Three of a a a b: C(3, 3) = 1 draw of 4 has no b, C(1, 3) = 0 have no a; 2 - 1/4 are expected."""
    assert distinct_ratio([[1, 1, 1, 2]], [[1, 2, 3]], 1) == pytest.approx((2 - 1 / 4) / 3)
    assert distinct_ratio([[1, 2, 3]], [[1, 1, 1, 2]], 1) == pytest.approx(3 / (2 - 1 / 4))
    assert distinct_ratio([[1, 2]], [[3]], 2) is None


def test_a_collapse_to_answers_without_k_grams_has_none_of_the_first_policys() -> None:
    found = ratios([answer(1), answer(1)], [answer(1, 2), answer(2, 3)])
    assert found["distinct_2_ratio_first"] == Figure(0.0)
    assert found["distinct_3_ratio_first"] == Figure(None, why="no answer of the first policy has 3 tokens")
    tripped = {(one.figure, one.action) for one in check(DEFAULTS, found) if one.tripped}
    assert ("distinct_2_ratio_first", "roll_back") in tripped


def test_longer_answers_of_the_same_diversity_keep_it_and_a_collapse_does_not() -> None:
    """Words drawn by rank; by plain distinct-2 the longer ones would have 0.5 of the diversity."""
    draw, words = random.Random(0), range(60)
    weights = [1 / (rank + 1) for rank in words]

    def texts(length: int) -> list[list[int]]:
        return [draw.choices(words, weights, k=length) for _ in range(256)]

    short, long = texts(10), texts(40)
    assert (distinct(long, 2) or 0) / (distinct(short, 2) or 1) < 0.55
    assert distinct_ratio(long, short, 2) == pytest.approx(1.0, abs=0.1)
    assert (distinct_ratio(short[:16] * 16, short, 2) or 1) < 0.2, "sixteen answers for all prompts"
    assert (distinct_ratio([[1, 2]] * 256, short, 2) or 1) < 0.01, "short, and all the same"


def test_answers_to_one_prompt_do_not_make_an_interval_narrower() -> None:
    """What is four times the same is known no better than once."""
    once = [Answer(str(i), [i] * (i + 1), i % 3 == 0, -1.0, prompt=str(i)) for i in range(9)]
    first = [-2.0 - i for i in range(9)]
    fourfold, single = of_answers(once * 4), of_answers(once)
    for name in ("length_mean", "cut_off", "self_repetition", "top_answer"):
        assert fourfold[name] == single[name] and single[name].n == 9
    assert kl(once * 4, first * 4) == kl(once, first)


def test_a_batch_of_longer_completions_is_no_change() -> None:
    lines = [
        {"logps/chosen": logp, "logps/rejected": logp, "rewards/chosen": reward, "rewards/rejected": -reward}
        for logp, reward in ((-100.0, 0.0), (-20.0, -0.3))
    ]
    found = logprob_changes(lines, beta=0.1)
    assert found["chosen_logprob_change"].value == pytest.approx(-3.0)
    assert found["rejected_logprob_change"].value == pytest.approx(3.0)
    assert logprob_changes(lines)["chosen_logprob_change"].value == pytest.approx(80.0)


def test_a_rise_is_over_what_the_first_policy_had() -> None:
    yes_no = of_answers([answer(i % 2, text=str(i % 2)) for i in range(100)])
    one = of_answers([answer(0, text="0") for i in range(100)])
    assert rises(yes_no, yes_no)["top_answer_rise_first"].value == 0.0
    found = rises(one, yes_no)["top_answer_rise_first"]
    assert found.value == 0.5
    # by hand: one is 1 (0.9630 to 1), the other 0.5 (0.4038 to 0.5962)
    assert found.interval == pytest.approx((0.5 - math.hypot(0.0370, 0.0962), 0.5962), abs=2e-4)


def test_a_figure_survives_json() -> None:
    for figure in (Figure(1.0, (0.5, 1.5), 3), Figure(None, why="no"), Figure(2.0)):
        assert Figure.of(figure.to_json()) == figure


# gates


def test_a_gate_trips_only_when_all_of_the_interval_is_beyond() -> None:
    least, most = Gate(figure="win_rate_first", least=50), Gate(figure="cut_off", most=0.2, action="stop")
    for interval, expected in (((40.0, 49.0), True), ((40.0, 51.0), False)):
        assert check([least], {"win_rate_first": Figure(45.0, interval, 100)})[0].tripped is expected
    assert check([most], {"cut_off": Figure(0.21)})[0].tripped
    assert not check([most], {"cut_off": Figure(0.2)})[0].tripped


def test_what_was_not_measured_does_not_trip_and_says_so() -> None:
    outcome = check(
        [Gate(figure="kl_first", most=1)], {"kl_first": Figure(None, why="no log-probabilities")}
    )[0]
    assert not outcome.tripped and outcome.what == "kl first was not measured: no log-probabilities"
    assert not check([Gate(figure="kl_first", most=1)], {})[0].tripped


def test_a_figure_without_end_is_beyond_every_threshold() -> None:
    """Where the first policy cannot say at all what this one says."""
    gates = [Gate(figure="kl_first", most=5, action="stop"), Gate(figure="kl_first", least=0)]
    over, under = check(gates, {"kl_first": Figure(math.inf, (math.nan, math.nan))})
    assert over.tripped and not under.tripped
    (unknown,) = check(gates[:1], {"kl_first": Figure(math.nan)})
    assert not unknown.tripped and unknown.value is None


def test_the_strongest_action_decides() -> None:
    figures = {"cut_off": Figure(0.9), "top_answer": Figure(0.9)}
    gates = [Gate(figure="cut_off", most=0.1, action=a) for a in ("warn", "roll_back", "stop")]
    assert [decide(check(gates[:n], figures)) for n in range(4)] == ["go_on", "go_on", "roll_back", "stop"]


def test_chance_seldom_rolls_back_a_policy_that_did_not_change() -> None:
    """Of 400 draws of a fair coin over 256 prompts about one in two hundred has its whole interval under 48;
    under 50 it would be one in forty. Of a policy that wins 35 % all have."""
    from judge.winrate import Comparison, win_rate

    def rolled_back(p: float) -> int:
        draw, count = random.Random(0), 0
        for _ in range(400):
            rate = win_rate([Comparison(float(draw.random() < p)) for _ in range(256)])
            found = check(DEFAULTS, {"win_rate_first": Figure(rate.win_rate, rate.interval, rate.n)})
            count += decide(found) != "go_on"
        return count

    assert rolled_back(0.5) <= 6
    assert rolled_back(0.35) >= 385


@pytest.mark.parametrize("gate", DEFAULTS, ids=lambda g: f"{g.figure}-{g.action}")
def test_every_default_gate_can_trip(gate: Gate) -> None:
    assert gate.figure in FIGURES
    value = gate.least - 1 if gate.least is not None else (gate.most or 0.0) + 1
    assert check([gate], {gate.figure: Figure(value)})[0].tripped


def test_gates_of_a_table_take_the_place_of_the_defaults() -> None:
    own = {"length_ratio_first": {"max": 1.3, "action": "stop"}, "unusable": False}
    found = read_gates(own, "f, [gates]")
    mine = Gate(figure="length_ratio_first", most=1.3, action="stop")
    assert [g for g in found if g.figure == "length_ratio_first"] == [mine]
    assert not [g for g in found if g.figure == "unusable"]
    assert len(found) == len([g for g in DEFAULTS if g.figure not in own]) + 1
    several = read_gates({"defaults": False, "cut_off": [{"max": 0.1}, {"max": 0.2, "action": "stop"}]}, "f")
    assert [g.action for g in several] == ["warn", "stop"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"cut_of": {"max": 1}}, 'Did you mean "cut_off"'),
        ({"cut_off": {"max": "much"}}, "'much' is no number"),
        ({"cut_off": {"max": 1, "action": "halt"}}, "unknown action 'halt'"),
        ({"cut_off": {"max": 50}}, "a share from 0 to 1"),
        ({"win_rate_first": {"min": 0.5}}, "in percent"),
        ({"top_answer_rise_first": {"max": 2}}, "a difference of shares"),
        ({"length_ratio_first": {"min": 3, "max": 2}}, "min is above max"),
        ({"cut_off": {"most": 1}}, 'unknown key "most"'),
        ({"cut_off": {}}, "has neither min nor max"),
        ({"gold_accuracy": False}, "Set min_accuracy = 0 in"),
        ({"cut_off": 1}, "is no gate"),
        ({"defaults": 1}, "neither true nor false"),
    ],
)
def test_gates_that_cannot_be_read(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_gates(table, "rounds.toml, [gates]")


# what follows from the rounds so far


def line(number: int, rate: float | None = None, decision: str = "go_on", best: int = 0, **more: Any) -> Line:
    figures = {} if rate is None else {"win_rate_first": {"value": rate, "interval": [rate - 5, rate + 5]}}
    return Line(round=number, model=f"rounds/{number:02d}/model" if number else "first", weights=str(number),
                figures=figures, decision=decision, best=best, **more)  # fmt: skip


def test_the_best_round_is_the_one_that_wins_most_and_was_not_rolled_back() -> None:
    lines = [line(0), line(1, 60.0), line(2, 70.0, "roll_back"), line(3, 60.0)]
    assert best(lines) == 1
    assert best([line(0), line(1, 45.0)]) == 0
    assert best([line(0), line(1), line(2)]) == 2
    assert best([line(0), line(1, 70.0), line(2), line(3, 52.0)]) == 1, "whatever round 2 is"
    assert best([line(0), line(1), line(2, 40.0)]) == 0
    assert best([line(0), line(1), line(2, decision="stop")]) == 1
    assert best([line(0), line(1, 40.0, "roll_back"), line(2)]) == 0, "it may be worse than the first"
    assert best([line(0), line(1, 60.0, "roll_back"), line(2)]) == 0, "rolled back for another reason"


def test_every_figure_has_a_default_gate_or_a_reason_in_the_documentation() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "rounds.md").read_text()
    reasons = guide.partition("The other figures have no default")[2].partition("A threshold that no")[0]
    without = {name for name in FIGURES if name not in {gate.figure for gate in DEFAULTS}}
    named = re.sub(r"`distinct_1` … `_3`", "`distinct_1` `distinct_2` `distinct_3`", reasons)
    for name in without:
        assert any(f"`{name}`" in row.split("|")[1] for row in named.splitlines() if row.startswith("|")), (
            name
        )


def test_a_round_starts_from_the_last_one_or_after_a_rollback_from_the_best() -> None:
    lines = [line(0), line(1, 60.0, best=1), line(2, 40.0, "roll_back", best=1)]
    assert (plan_of(lines[:2]).previous, plan_of(lines[:2]).rollbacks) == (1, 0)
    assert (plan_of(lines).number, plan_of(lines).previous, plan_of(lines).rollbacks) == (3, 1, 1)
    assert prunable([*lines, line(3, 50.0, best=1)], every=0) == [2]
    assert prunable([*lines, line(3, 50.0, best=1)], every=2) == []
    ended = Line(round=3, model="rounds/02/model", weights="2", decision="stop", best=1)
    assert prunable([line(0), line(1, 60.0), line(2, 55.0), ended], every=0) == [], "what 3 began from stays"


def test_last_words_name_the_checkpoint_and_the_reason() -> None:
    gate = {"figure": "cut_off", "tripped": True, "action": "roll_back", "what": "cut off 0.9 is over 0.5"}
    lines = [line(0), line(1, 63.2, best=1), line(2, 40.0, "roll_back", best=1, gates=[gate])]
    words = last_words(lines, Path("run"))
    assert words.startswith("Use run/rounds/01/model (round 1): it wins 63.2 % (95 %: 58.2 to 68.2)")
    assert words.endswith("Round 2 was rolled back: cut off 0.9 is over 0.5.")
    assert "chance" not in words
    close = last_words([line(0), line(1, 53.0, best=1)], Path("run"))
    assert "(95 %: 48.0 to 58.0)" in close and "by the second judge, which may be chance" in close
    assert "no round was better" in last_words([line(0), line(1, 45.0)], Path("run"))
    assert "win rates were not measured" in last_words([line(0), line(1, best=1)], Path("run"))
    unknown = [line(0), line(1, 40.0, "roll_back", gates=[gate]), line(2)]
    assert "before the rounds: no round is known to be better. round 1: cut off" in last_words(
        unknown, Path("run")
    )
    some = last_words([line(0), line(1, 70.0, best=1), line(2, best=1)], Path("run"))
    assert "by the second judge; round 2 was not measured." in some


def test_what_was_not_measured_is_said_once_and_before_nobody_trusts_its_gates() -> None:
    figures = {"judge_agreement": Figure(None, why="there is no second judge"), "unusable": Figure(0.0)}
    gates = [g for g in DEFAULTS if g.figure in figures]
    assert [g.figure for g in gates].count("judge_agreement") == 2
    said = sayings(line(1, gates=[o.to_json() for o in check(gates, figures)]))
    assert said == [
        "round 1 is over, its gates are passed",
        "round 1, no gate: judge agreement was not measured: there is no second judge",
    ]


def test_a_round_of_which_nothing_was_measured_has_not_passed() -> None:
    gates = [o.to_json() for o in check(DEFAULTS, {})]
    some = [o.to_json() for o in check(DEFAULTS, {"unusable": Figure(0.0), "flip_rate": Figure(0.9)})]
    assert shown(line(0)) == "-" and shown(line(1)) == "-"
    assert shown(line(1, gates=gates)) == f"{len({g.figure for g in DEFAULTS})} figures not measured"
    assert shown(line(1, gates=gates[:1])) == "1 figure not measured"
    assert shown(line(1, gates=[g for g in some if g["figure"] == "unusable"])) == "passed"
    both = [g for g in some if g["figure"] in ("flip_rate", "win_rate_first")]
    assert shown(line(1, gates=both)) == "warned: flip_rate; 1 figure not measured"
