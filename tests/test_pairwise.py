"""Comparisons: verdicts by hand, both orders, ties, plans, lists, principles; planted preferences."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from judging_tools import Answering, as_json, completion, item, prompt, says, shown

from gavel.engines.fake import ByteTokenizer, FakeEngine
from gavel.errors import InputError
from gavel.protocols import SampleRequest
from gavel.records import Completion, Judgment, PreferencePair
from gavel.rundir import JsonlWriter, RunDir, read_records
from gavel.scores import score_completions
from gavel.standing import by_order, disagree, settled, standing
from judge.listwise import Listwise, orders
from judge.method import Method
from judge.pair_statistics import Tally
from judge.pairs import PairConfig, make_pairs
from judge.pairwise import Pairwise, Principles, weighed
from judge.stage import judge


# verdicts
def test_the_weighted_verdict_by_hand() -> None:
    """p(first) = p(A) / (p(A) + p(B)), a tie counting half (AlpacaEval 2)."""
    verdict = Pairwise(ties=False).parse(item("x", "y"), [says("A", {"A": 0.6, "B": 0.2, "C": 0.1})])
    assert verdict.verdict == "first"
    assert verdict.measures == pytest.approx({"p_first": 0.75, "mass": 0.8})
    with_ties = Pairwise().parse(item("x", "y"), [says("A", {"A": 0.6, "B": 0.2, "C": 0.1})])
    assert with_ties.measures == pytest.approx({"p_first": 0.65 / 0.9, "mass": 0.9})


def test_a_label_that_is_not_among_the_likeliest_counts_nothing() -> None:
    verdict = Pairwise(preset="alpaca-eval").parse(item("x", "y"), [says("M", {"M": 0.5, "The": 0.5})])
    assert verdict.verdict == "second" and verdict.measures["p_first"] == 0.0


@pytest.mark.parametrize(
    ("weights", "verdict", "p"),
    [((0.3, 0.3), "tie", 0.5), ((0.2, 0.1, 0.4), "tie", 4 / 7), ((0.0, 1.0), "second", 0.0)],
)
def test_weighed(weights: tuple[float, ...], verdict: str, p: float) -> None:
    found = weighed(weights, sum(weights))
    assert found.verdict == verdict and found.measures["p_first"] == pytest.approx(p)


@pytest.mark.parametrize(
    ("preset", "reply", "verdict"),
    [
        ("mt-bench", "A is vague. [[B]]", "second"),
        ("mt-bench", "Both are fine. [[C]]", "tie"),
        ("mt-bench", "[[A]] … no, on a second look [[B]]", "second"),
        ("mt-bench", "[[D]]", None),
        ("prometheus", "Feedback: the first is right. [RESULT] A", "first"),
        ("llmbar", "Output (b) follows it exactly.\nOutput (b) is better", "second"),
        ("llmbar", "I cannot decide.", None),
    ],
)
def test_presets_read_their_own_form(preset: str, reply: str, verdict: str | None) -> None:
    found = Pairwise(preset=preset).parse(item("one", "two"), [says(reply)])
    assert found.verdict == verdict and (found.reason is None) is (verdict is not None)


def test_json_and_choice() -> None:
    asked = item("one", "two")
    (request,) = Pairwise(verdict="choice").render(asked, ByteTokenizer())
    assert isinstance(request, SampleRequest) and request.choice == ("A", "B", "C")
    assert Pairwise(verdict="choice").parse(asked, [says("B")]).verdict == "second"
    (request,) = Pairwise(verdict="json", ties=False).render(asked, ByteTokenizer())
    assert isinstance(request, SampleRequest) and request.json_schema is not None
    assert request.json_schema["properties"]["verdict"]["enum"] == ["A", "B"]
    reply = says(as_json(rationale="It is right.", verdict="A"))
    assert Pairwise(verdict="json").parse(asked, [reply]).verdict == "first"


def test_equal_texts_are_a_tie_without_asking() -> None:
    method, asked = Pairwise(), item("same", "same")
    assert method.render(asked, ByteTokenizer()) == []
    assert method.parse(asked, []).measures == {"p_first": 0.5}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"orders": "three"}, "--orders"),
        ({"preset": "alpaca-eval", "ties": True}, "--ties"),
        ({"pairs": "some"}, "--pairs"),
        ({"verdict": "json", "preset": "llmbar"}, "--verdict"),
        ({"aspects": ("nope",)}, "--aspect"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict, where: str) -> None:
    with pytest.raises(InputError) as caught:
        Pairwise(**options)
    assert where in str(caught.value)


# what is asked
def ids(asked: Method, texts: list[str]) -> list[tuple[str, ...]]:
    candidates = [completion(text, index) for index, text in enumerate(texts)]
    return [tuple(c.text for c in i.completions) for i in asked.items(prompt(), candidates)]


def test_both_orders_of_all_pairs() -> None:
    assert sorted(ids(Pairwise(), ["a", "b", "c"])) == sorted(itertools.permutations("abc", 2))
    assert ids(Pairwise(), ["a", "a", " "]) == [], "equal and blank texts are not compared"


def test_one_order_is_a_fair_coin_that_depends_on_the_texts_alone() -> None:
    first = [ids(Pairwise(orders="one"), [f"x{n}", f"y{n}"])[0][0] for n in range(200)]
    assert 70 < sum(text.startswith("x") for text in first) < 130
    assert ids(Pairwise(orders="one"), ["x", "y"]) == ids(Pairwise(orders="one"), ["y", "x"])


def test_principles_one_drawn_or_all() -> None:
    drawn = Principles()
    asked = list(drawn.items(prompt(), [completion("a", 0), completion("b", 1)]))
    assert len(asked) == 2 and len({i.aspect for i in asked}) == 1, "both orders by the same principle"
    every = list(Principles(draw="all").items(prompt(), [completion("a", 0), completion("b", 1)]))
    assert len(every) == 2 * len(Principles().aspects)
    found = {
        next(iter(drawn.items(prompt(id=f"p{n}"), [completion("a", 0), completion("b", 1)]))).aspect
        for n in range(200)
    }
    assert found == set(drawn.aspects), "each is drawn at some time"


def test_orders_come_with_their_reverse() -> None:
    candidates = [completion(text, index) for index, text in enumerate("abcd")]
    found = orders(candidates, 4, "key")
    texts = {tuple(c.text for c in order) for order in found}
    assert len(texts) == 4 and found[1] == found[0][::-1] and found[3] == found[2][::-1]
    assert orders(candidates[::-1], 4, "key") == found, "whatever order they are given in"
    assert len(orders(candidates[:2], 10, "key")) == 2


# a run
def run_of(path: Path, texts: Mapping[str, list[str]]) -> RunDir:
    run = RunDir(path)
    with JsonlWriter(run.prompts_path) as prompts, JsonlWriter(run.completions_path) as writer:
        for name, offered in texts.items():
            prompts.append(prompt(f"question {name}", id=name))
            for index, text in enumerate(offered):
                writer.append(completion(text, index, name))
    return run


def longer(text: str) -> dict[str, float]:
    """A judge that likes the longer of two."""
    a, b = len(shown(text, "answer A")), len(shown(text, "answer B"))
    if a == b:
        return {"A": 0.5, "B": 0.5}
    return {"A": 0.8, "B": 0.2} if a > b else {"A": 0.2, "B": 0.8}


def first_always(text: str) -> dict[str, float]:
    return {"A": 0.9, "B": 0.1}


def prefers(run: RunDir, judging: str, **settings: object) -> list[tuple[str, str, float | None]]:
    with RunDir.open(run.path) as opened:
        make_pairs(opened, PairConfig(judgments=judging, **settings))  # type: ignore[arg-type]
        name = opened.pair_sets()[-1]
    texts = {c.id: c.text for c in read_records(run.completions_path, Completion)}
    pairs = read_records(run.pairs_path(name), PreferencePair)
    return [(texts[p.chosen_id], texts[p.rejected_id], p.p_chosen) for p in pairs]


@pytest.mark.parametrize(
    "method",
    [
        Pairwise(ties=False),
        Pairwise(ties=False, pairs="tournament"),
        Pairwise(ties=False, pairs="random:3"),
        Pairwise(ties=False, orders="one"),
    ],
)
def test_a_planted_preference_comes_out(method: Pairwise, tmp_path: Path) -> None:
    texts = ["a" * n for n in (3, 1, 5, 2, 4)]
    run = run_of(tmp_path / "run", {f"p{n}": random.Random(n).sample(texts, 5) for n in range(6)})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(longer), method)
    found = prefers(run, summary["pass"], strategy="best-worst")
    if method.pairs.startswith("random"):  # the two ends may never have met
        assert len(found) == 6 and all(len(chosen) > len(rejected) for chosen, rejected, _ in found)
    else:
        assert [pair[:2] for pair in found] == [("aaaaa", "a")] * 6
    assert all(p is not None and p > 0.5 for *_, p in found)
    if method.pairs == "tournament":
        assert summary["calls"] < 6 * 20, "asks less than all pairs in both orders"


def test_of_two_candidates_the_probability_is_the_judges_own(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"p": ["aa", "a"]})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(longer), Pairwise(ties=False))
    assert prefers(run, summary["pass"]) == [("aa", "a", pytest.approx(0.8))]


def test_a_judge_that_always_says_the_first_prefers_nobody(tmp_path: Path) -> None:
    """Swapping the order must not decide: the two orders cancel."""
    run = run_of(tmp_path / "run", {"p": ["aa", "a", "aaa"], "q": ["b", "bb", "c"]})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(first_always), Pairwise(ties=False))
        judgments = list(read_records(opened.judgments_path(summary["pass"]), Judgment))
        for name in ("p", "q"):
            candidates = score_completions(
                [c for c in read_records(opened.completions_path, Completion) if c.prompt_id == name],
                [j for j in judgments if j.prompt_id == name],
                ("overall",),
            )
            assert len({c.score for c in candidates}) == 1
    with pytest.raises(Exception, match="tie"):
        prefers(run, summary["pass"])


def test_disputed_pairs_are_softened_or_dropped(tmp_path: Path) -> None:
    def leaning(text: str) -> dict[str, float]:
        """Likes the longer a little, the first more: its two orders disagree."""
        a, b = len(shown(text, "answer A")), len(shown(text, "answer B"))
        p = 0.7 + (0.1 if a > b else -0.1)
        return {"A": p, "B": 1 - p}

    run = run_of(tmp_path / "run", {"p": ["aa", "a"]})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(leaning), Pairwise(ties=False))
    assert prefers(run, summary["pass"]) == [("aa", "a", pytest.approx(0.6))]
    with pytest.raises(Exception, match="disputed"):
        prefers(run, summary["pass"], disputed="drop")
    made = RunDir(run.path).stage(f"pairs/{summary['pass']}-best-worst")
    assert made["order_disagreement"] == 1.0 and made["flip_rate"] == 0.49


@pytest.mark.parametrize(("disputed", "expected"), [("soften", 0.1), ("drop", 0.1**2 / (0.1**2 + 0.9**2))])
def test_the_flip_rate_by_hand(disputed: str, expected: float) -> None:
    """Each order errs in one of ten: they oppose each other in 18 of 100."""
    tally = Tally()
    tally._orders = [100, 25, 18]  # 7 ties against a preference say nothing of errors
    found = tally.orders(None, disputed)
    assert found["order_disagreement"] == 0.25
    assert found["flip_rate"] == pytest.approx(expected) and found["flip_rate_from"] == "orders"
    gold = tally.orders({"flip_rate": {"soften": 0.2, "drop": 0.05}}, disputed)
    assert gold["flip_rate"] == (0.2 if disputed == "soften" else 0.05)


def test_an_order_without_a_verdict_leaves_the_pair_without_one(tmp_path: Path) -> None:
    def silent_once(text: str) -> str | dict[str, float]:
        return {"Hmm": 1.0} if shown(text, "answer A") == "aa" else {"A": 0.1, "B": 0.9}

    run = run_of(tmp_path / "run", {"p": ["aa", "a"], "q": ["b", "bb"]})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(silent_once), Pairwise(ties=False))
    assert summary["unusable"] == 1
    judgments = list(read_records(run.judgments_path(summary["pass"]), Judgment))
    assert standing([j for j in judgments if j.prompt_id == "p"]) is None


def test_a_ranked_list(tmp_path: Path) -> None:
    def ranks(text: str) -> str:
        lengths = {label: len(shown(text, f"answer {label}")) for label in "ABCD"}
        return " > ".join(sorted(lengths, key=lambda label: -lengths[label]))

    run = run_of(tmp_path / "run", {"p": ["aa", "aaaa", "a", "aaa"]})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(ranks), Listwise())
        assert summary["calls"] == 4
    assert [pair[:2] for pair in prefers(run, summary["pass"])] == [("aaaa", "a")]
    found = list(read_records(run.judgments_path(summary["pass"]), Judgment))
    assert all(j.verdict is not None and len(j.completion_ids) == 4 for j in found)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B > A > C", "2 > 1 > 3"),
        ("B > A = C", "2 > 1 = 3"),
        ("A > B", None),
        ("A > B > C > D", None),
        ("A > B > B", None),
        ("", None),
    ],
)
def test_rankings_name_each_candidate_once(reply: str, verdict: str | None) -> None:
    try:
        found = Listwise().parse(item("x", "y", "z"), [says(reply)])
    except Exception as error:
        assert verdict is None, error
        return
    assert found.verdict == verdict
    in_json = Listwise(verdict="json")
    listed = in_json.parse(item("x", "y"), [says(as_json(rationale="", ranking=["B", "A"]))])
    assert listed.verdict == "2 > 1"
    assert in_json.parse(item("x", "y"), [says(as_json(rationale="", ranking=["B", "B"]))]).reason


# adaptive plans
def test_a_tournament_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    texts = {f"p{n}": ["a" * k for k in random.Random(n).sample(range(1, 30), 8)] for n in range(4)}

    class Killed(Answering):
        def __init__(self, rule: Callable[[str], dict[str, float]], after: int) -> None:
            super().__init__(rule)
            self._after = after

        def sample(self, requests):  # type: ignore[no-untyped-def]
            for number, reply in enumerate(super().sample(requests)):
                if number == self._after:
                    raise KeyboardInterrupt
                yield reply

    whole = run_of(tmp_path / "whole", texts)
    method = Pairwise(ties=False, pairs="tournament")
    with RunDir.open(whole.path) as run:
        judge(run, Answering(longer), method, name="t")
    wanted = {j.id: j for j in read_records(whole.judgments_path("t"), Judgment)}

    broken = run_of(tmp_path / "broken", texts)
    asked: list[str] = []
    for after in (3, 1, 10, 7, 20, 1000):
        engine = Killed(longer, after)
        with RunDir.open(broken.path) as run:
            try:
                judge(run, engine, method, name="t")
            except KeyboardInterrupt:
                asked += engine.seen[:-1]
            else:
                asked += engine.seen
    found = list(read_records(broken.judgments_path("t"), Judgment))
    assert {j.id for j in found} == set(wanted) and len(found) == len(wanted)
    assert len(set(asked)) == len(asked), "nothing recorded is asked again"


# the arithmetic of orders
def test_orders_by_hand() -> None:
    def said(first: str, second: str, p: float | None) -> Judgment:
        fields: dict = {"verdict": "first", "measures": {"p_first": p}} if p is not None else {"reason": "no"}
        return Judgment(
            id=f"{first}{second}{p}", prompt_id="p", completion_ids=(first, second), method="m", aspect="a",
            judge="j", weights="w", template="t", parser="1", **fields,
        )  # fmt: skip

    judgments = [said("x", "y", 0.9), said("y", "x", 0.3), said("x", "y", 0.7)]
    orders_of = by_order(judgments)["x", "y"]
    assert settled(orders_of) == pytest.approx(((0.9 + 0.7) / 2 + 0.7) / 2)
    assert disagree(orders_of) is False
    assert disagree(by_order([said("x", "y", 0.9), said("y", "x", 0.6)])["x", "y"]) is True
    assert disagree(by_order([said("x", "y", 0.5), said("y", "x", 0.6)])["x", "y"]) is True
    assert disagree(by_order([said("x", "y", 0.9)])["x", "y"]) is None
    assert settled(by_order([said("x", "y", 0.9), said("y", "x", None)])["x", "y"]) is None


# what a reviewer found
def test_an_order_that_failed_for_a_while_leaves_no_pair(tmp_path: Path) -> None:
    """A judge that always says the first, half of whose replies were not to be had: no pair, not finished."""
    from gavel.protocols import Refused

    class HalfGone(Answering):
        def sample(self, requests):  # type: ignore[no-untyped-def]
            for number, reply in enumerate(super().sample(requests)):
                yield Refused(key=reply.key, reason="503", transient=True) if number % 2 else reply

    run = run_of(tmp_path / "run", {"p": ["aa", "a"]})
    with RunDir.open(run.path) as opened:
        summary = judge(opened, HalfGone(first_always), Pairwise(ties=False))
        assert summary["failed"] == 1 and not opened.stage(f"judge/{summary['pass']}")
    with pytest.raises(Exception, match="unscored"):
        prefers(run, summary["pass"])


def test_a_tie_is_a_tie_whatever_leads_beside_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"p": ["aa", "a"]})

    def mostly_tied(text: str) -> dict[str, float]:
        a, b = (0.3, 0.1) if shown(text, "answer A") == "aa" else (0.1, 0.3)
        return {"A": a, "B": b, "C": 0.6}

    with RunDir.open(run.path) as opened:
        summary = judge(opened, Answering(mostly_tied), Pairwise())
    with pytest.raises(Exception, match="tie"):
        prefers(run, summary["pass"])


def test_a_refusal_does_not_outlive_its_answer(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"p": ["aa", "a"]})
    with RunDir.open(run.path) as opened:
        small = FakeEngine("answering", context=10)
        with pytest.raises(Exception, match="not one judgment"):
            judge(opened, small, Pairwise(ties=False), name="x")
        judge(opened, Answering(longer), Pairwise(ties=False), name="x")
    assert prefers(run, "x") == [("aa", "a", pytest.approx(0.8))]


def test_a_tournament_goes_by_the_aspect_that_it_asks_about(tmp_path: Path) -> None:
    calls = []
    for first in ((), ("overall",)):
        run = run_of(tmp_path / f"run{len(first)}", {"p": ["a" * n for n in range(1, 7)]})
        with RunDir.open(run.path) as opened:
            for aspect in first:
                judge(opened, Answering(longer), Pairwise(ties=False, aspects=(aspect,)), name="x")
            plan = Pairwise(ties=False, aspects=("helpfulness",), pairs="best-worst")
            calls.append(judge(opened, Answering(longer), plan, name="x")["calls"])
    assert calls[0] == calls[1] < 30


def test_one_list_that_cannot_be_read_does_not_silence_a_prompt() -> None:
    def ranked(ids: str, verdict: str | None) -> Judgment:
        return Judgment(
            id=ids, prompt_id="p", completion_ids=tuple(ids), method="listwise", aspect="a", judge="j",
            weights="w", template="t", parser="1", verdict=verdict, reason=None if verdict else "no ranking",
        )  # fmt: skip

    lists = [
        ranked("xyz", "1 > 2 > 3"),
        ranked("zyx", "3 > 2 > 1"),
        ranked("yxz", None),
        ranked("zxy", "1 > 2 > 3"),
    ]
    found = standing(lists)
    assert found is not None
    assert found.score("x") > found.score("y") > found.score("z"), "neither it nor its reverse is heard"
