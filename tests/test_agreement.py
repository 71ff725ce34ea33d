"""A judge against gold labels: by hand, on LLMBar's recorded replies, and asked live."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_tools import Answering, shown

from gavel.errors import InputError
from gavel.rundir import RunDir
from gavel.sources import BadRows
from judge.agreement import Compared, agreement, compare, flip_rate, kappa
from judge.duels import ask
from judge.intervals import wilson
from judge.judging import Single
from judge.labelled import duels_of, read_labelled
from judge.pairwise import Pairwise
from judge.recorded import own_style, read_verdict, replay

Gavel = Callable[..., Ran]
DATA = Path(__file__).parents[2] / "shared" / "data" / "llmbar"
SUBSETS = ("natural", "gptinst", "gptout")
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="LLMBar's recorded replies are not beside the project"
)


def one(
    gold: float, ab: float | None, ba: float | None, a: int = 10, b: int = 20, name: str = "x"
) -> Compared:
    return Compared(name, gold, ab, ba, a, b)


# by hand
def test_the_figures_by_hand() -> None:
    found = agreement([
        one(1, 1, 1), one(1, 1, 0), one(0, 1, 0, 30, 20), one(0, None, 0, 20, 21), one(0, 0.2, 0.4, 40, 20),
    ])  # fmt: skip
    assert found["n"] == 5
    assert found["accuracy_ab"] == pytest.approx(3 / 5)
    assert found["accuracy_ba"] == pytest.approx(4 / 5)
    assert found["accuracy"] == pytest.approx(7 / 10)
    assert found["both_correct"] == pytest.approx(2 / 5)
    assert found["order_agreement"] == pytest.approx(2 / 5)
    assert found["unparsed"] == 1
    # first shown: ab says a: 1, 1, 1, -, 0; ba says b: 0, 1, 1, 1, 1
    assert found["p_first"] == pytest.approx(7 / 9)
    assert found["baselines"]["longer_wins"] == pytest.approx(1 / 5), "b is longer and right once"
    assert found["baselines"]["first_wins"] == pytest.approx(2 / 5)
    assert found["length_matched"]["n"] == 1 and found["length_matched"]["accuracy"] == 0.5


def test_kappa_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import cohen_kappa_score

    gold, said = [0, 0, 1, 1, 2, 0, 1], [0, 1, 1, 1, 2, 0, 0]
    table = [
        [sum((g, s) == (i, j) for g, s in zip(gold, said, strict=True)) for j in range(3)] for i in range(3)
    ]
    import numpy as np

    assert kappa(np.array(table)) == pytest.approx(cohen_kappa_score(gold, said))
    assert kappa(np.zeros((3, 3))) is None and kappa(np.diag([3, 0, 0])) is None


def test_wilson_by_hand() -> None:
    assert wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx([0.7225, 1.0], abs=1e-4)


def test_gold_ties_make_it_three_way() -> None:
    two_way = agreement([one(1, 0.5, 0.5), one(0, 0, 0)])
    assert two_way["accuracy"] == 0.75, "a tie is half right where gold knows no ties"
    three_way = agreement([one(1, 0.5, 0.5), one(0, 0, 0), one(0.5, 0.5, 1)])
    assert three_way["accuracy_ab"] == pytest.approx(2 / 3)
    assert three_way["accuracy_ba"] == pytest.approx(1 / 3)


def test_a_judge_that_always_says_the_first() -> None:
    found = agreement([one(n % 2, 1, 0) for n in range(20)])
    assert (found["p_first"], found["order_agreement"], found["accuracy"]) == (1.0, 0.0, 0.5)


def test_the_flip_rate_is_of_the_labels_that_would_be_made() -> None:
    rows = [one(1, 1, 1), one(1, 0, 0), one(1, 1, 0), one(1, 0.9, 0.2), one(0, None, 0), one(1, 0.5, 0.5)]
    assert flip_rate(rows, "soften") == pytest.approx(1 / 3), (
        "two right, one wrong; a tie, a half, none left out"
    )
    assert flip_rate(rows, "drop") == pytest.approx(1 / 2)
    assert flip_rate([], "drop") is None


def test_nothing_compared() -> None:
    assert agreement([])["n"] == 0


SAID = st.sampled_from([None, 0.0, 0.3, 0.5, 1.0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), SAID, SAID), min_size=1, max_size=12))
def test_renaming_the_sides_changes_nothing_but_their_names(rows: list[tuple[Any, Any, Any]]) -> None:
    def flip(p: float | None) -> float | None:
        return None if p is None else 1 - p

    straight = agreement([one(g, ab, ba) for g, ab, ba in rows])
    renamed = agreement([one(1 - g, flip(ba), flip(ab), 20, 10) for g, ab, ba in rows])
    for key in ("accuracy", "both_correct", "order_agreement", "unparsed", "p_first", "kappa"):
        assert straight[key] == (renamed[key] if renamed[key] is None else pytest.approx(renamed[key])), key
    assert straight["accuracy_ab"] == pytest.approx(renamed["accuracy_ba"])
    for name, ends in straight["intervals"].items():
        if ends and name != "unparsed":
            assert ends[0] <= straight[name] + 1e-9 and straight[name] - 1e-9 <= ends[1]


# labels
def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_of_every_layout(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": "q", "response_a": "x", "response_b": "y", "label": "a"},
        {"id": "2", "prompt": "q", "response_a": "x", "response_b": "y", "label": "b"},
        {"id": "3", "prompt": "q", "response_a": "x", "response_b": "y", "label": "tie"},
        {"id": "1", "prompt": "q", "response_a": "x", "response_b": "y", "label": "a"},
        {"id": "5", "prompt": "q", "response_a": "x", "response_b": "y", "label": "c"},
    ]
    bad = BadRows(0.9, say=lambda _: None)
    found = list(read_labelled(str(jsonl(tmp_path / "labels.jsonl", rows)), {}, bad))
    assert [(f.id, f.gold) for f in found] == [("1", 1.0), ("2", 0.0), ("3", 0.5)]
    assert bad.count == 2, "an id twice, a label that is none"


def test_chosen_is_not_always_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(200)]
    source = jsonl(tmp_path / "pairs.jsonl", rows)
    found = list(read_labelled(str(source), {}, BadRows(0)))
    assert 70 < sum(f.gold == 1.0 for f in found) < 130
    for f in found:
        assert (f.a if f.gold else f.b).text.startswith("good")
    swapped = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    again = list(read_labelled(str(jsonl(tmp_path / "swapped.jsonl", swapped)), {}, BadRows(0)))
    assert [f.a.text for f in again] == [f.a.text for f in found], "the side says nothing of the label"


def test_a_source_without_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        list(read_labelled(str(jsonl(tmp_path / "x.jsonl", [{"prompt": "q"}])), {}, BadRows(0)))


# recorded
def load(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def replayed(subset: str, evaluator: str, rule: str) -> tuple[dict[str, Any], Any]:
    labelled = list(read_labelled(str(DATA / f"{subset}.jsonl.gz"), {}, BadRows(0)))
    found = replay(str(DATA / "judge_outputs.jsonl.gz"), labelled, evaluator, rule, BadRows(0))
    return agreement(compare(labelled, found.outcomes)), found


@needs_data
@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("evaluator", ["GPT-4/Vanilla", "ChatGPT/CoT", "ChatGPT/Swap_CoT", "GPT-4/Rating"])
def test_llmbar_s_published_figures(subset: str, evaluator: str) -> None:
    (published,) = [s for s in load("statistics") if (s["subset"], s["evaluator"]) == (subset, evaluator)]
    found, _ = replayed(subset, evaluator, "first")
    names = {"accuracy_ab": "correct_False", "accuracy_ba": "correct_True", "accuracy": "correct_average",
             "both_correct": "correct_both", "order_agreement": "equal"}  # fmt: skip
    wanted = {name: published[theirs] / 100 for name, theirs in names.items()}
    if (subset, evaluator) == ("gptinst", "GPT-4/Rating"):
        # one reply is empty: the source counts its answer a in one order and b in the other
        assert found["unparsed"] == 2
        wanted["accuracy_ab"] -= 1 / 92
        wanted["accuracy"] -= 1 / 184
        wanted["order_agreement"] += 1 / 92
    assert {name: found[name] for name in names} == pytest.approx(wanted, abs=1e-12)


@needs_data
def test_where_the_two_rules_differ() -> None:
    """Read by hand: in 16 the judge argues for one after the other and ends with the last. In the other it
    concludes "the better output … is Output (a)", after "Assistant (b) argues that Output (b) is better"."""
    differ = {}
    for subset in SUBSETS:
        for evaluator in ("GPT-4/Vanilla", "ChatGPT/CoT", "ChatGPT/Swap_CoT"):
            _, found = replayed(subset, evaluator, "last")
            differ |= {(evaluator, f"{d.id} {d.order}"): d for d in found.differences}
    read = ["gptinst-006 ab", "gptinst-065 ba", "gptout-017 ba", "gptout-026 ab", "gptout-028 ba",
            "gptout-029 ba", "gptout-030 ba", "gptout-039 ab", "natural-007 ab", "natural-013 ab",
            "natural-030 ba", "natural-033 ab", "natural-064 ba", "natural-096 ab", "natural-096 ba",
            "natural-097 ba"]  # fmt: skip
    assert {evaluator for evaluator, _ in differ} == {"ChatGPT/Swap_CoT"}
    said = {name: (d.first, d.last, d.read, d.careful) for (_, name), d in differ.items()}
    assert said.pop("gptinst-022 ba") == ("first", "second", "first", "first")
    assert said == dict.fromkeys(read, ("first", "second", "second", "last"))
    endings = {f"{r['id']} {r['order']}": r["raw_output"] for r in load("judge_outputs")
               if r["evaluator"] == "ChatGPT/Swap_CoT" and r["final"]}  # fmt: skip
    for name in read:
        last = endings[name].rpartition("Output (b) is better")[2]
        assert "Output (a)" not in last, "nothing is said for the other after it"


@needs_data
def test_baselines_of_llmbar() -> None:
    longer = {s: replayed(s, "GPT-4/Vanilla", "last")[0]["baselines"]["longer_wins"] for s in SUBSETS}
    assert {s: round(100 * share, 1) for s, share in longer.items()} == {
        "natural": 56.0, "gptinst": 13.0, "gptout": 44.7,
    }  # fmt: skip


LABELS = [
    {"id": f"p{n}", "prompt": "q", "response_a": "x", "response_b": "yy", "label": "a"} for n in range(3)
]


def recorded(tmp_path: Path, *records: dict[str, Any], **options: Any) -> Any:
    labelled = list(read_labelled(str(jsonl(tmp_path / "labels.jsonl", LABELS)), {}, BadRows(0)))
    source = str(jsonl(tmp_path / "records.jsonl", records))
    settings = {"evaluator": None, "rule": "last", "bad": BadRows(0.9, say=lambda _: None), **options}
    return replay(source, labelled, **settings)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "first"), ("[[B]]", "second"), ("[[C]]", "tie"), ("Output (a) is better", "first"),
        ("Output (b)", "second"), ("B", "second"), ("m", "first"), ("M", "second"), ("[RESULT] A", "first"),
        ("Verdict: C", "tie"), ("", None), ("neither", None), ("Output (a) and Output (b) are equal", None),
        ("[[D]]", None), ("Output (c) is better", None), ("Output (b) (it is right)", "second"),
        ("Output (a) is good.\nOutput (b) is bad.", None),
        ("The better output for the instruction is Output (a).", "first"),
    ],
)  # fmt: skip
def test_verdicts_of_every_style(text: str, verdict: str | None) -> None:
    found = read_verdict(text, "last")
    assert found.value == verdict and (found.reason is None) is (verdict is not None)


def test_orders_and_missing_ones(tmp_path: Path) -> None:
    found = recorded(
        tmp_path,
        {"id": "p0", "evaluator": "e", "order": "ab", "raw_output": "[[A]]"},
        {"id": "p0", "evaluator": "e", "order": "ba", "raw_output": "[[A]]"},
        {"id": "p1", "evaluator": "e", "order": "ba", "raw_output": "[[B]]"},
        {"id": "elsewhere", "evaluator": "e", "order": "ab", "raw_output": "[[A]]"},
    )
    assert (found.outcomes["p0"].ab, found.outcomes["p0"].ba) == (1.0, 0.0)
    assert (found.outcomes["p1"].ab, found.outcomes["p1"].ba) == (None, 1.0)
    assert (found.records, found.unknown) == (3, 1)
    assert found.reasons == {"no record of this pair and order": 3}


def test_which_of_several_records_counts(tmp_path: Path) -> None:
    record = {"id": "p0", "evaluator": "e", "order": "ab"}
    final = recorded(
        tmp_path,
        record | {"raw_output": "[[B]]", "stage": 1, "final": True},
        record | {"raw_output": "[[A]]", "stage": 2, "final": False},
    )
    assert final.outcomes["p0"].ab == 0.0 and final.replaced == 1
    stage = recorded(
        tmp_path, record | {"raw_output": "[[B]]", "stage": 1}, record | {"raw_output": "[[A]]", "stage": 0}
    )
    assert stage.outcomes["p0"].ab == 0.0
    last = recorded(tmp_path, record | {"raw_output": "[[A]]"}, record | {"raw_output": "[[B]]"})
    assert last.outcomes["p0"].ab == 0.0


def test_ratings_and_their_ties(tmp_path: Path) -> None:
    rows = [
        {"id": "p0", "evaluator": "e", "kind": "rating", "raw_output_a": "7", "raw_output_b": "3"},
        {"id": "p1", "evaluator": "e", "kind": "rating", "raw_output_a": "5", "raw_output_b": "5"},
        {"id": "p2", "evaluator": "e", "kind": "rating", "raw_output_a": "", "raw_output_b": "5"},
    ]
    tie = recorded(tmp_path, *rows)
    assert [(o.ab, o.ba) for o in tie.outcomes.values()] == [(1.0, 1.0), (0.5, 0.5), (None, None)]
    source = recorded(tmp_path, *rows, rule="first")
    assert (source.outcomes["p1"].ab, source.outcomes["p1"].ba) == (0.0, 1.0), "the one shown second"


def test_ratings_in_words_and_on_their_own_scale(tmp_path: Path) -> None:
    def row(a: str, b: str) -> dict[str, Any]:
        return {"id": "p0", "evaluator": "e", "kind": "rating", "raw_output_a": a, "raw_output_b": b}

    for a, b in (("7/10", "3/10"), ("It is good. Rating: 7", "Rating: [[3]]"), ("[[8]]", "2"), ("9", "0")):
        assert recorded(tmp_path, row(a, b)).outcomes["p0"].ab == 1.0, (a, b)


def test_recorded_replies_about_chosen_and_rejected(tmp_path: Path, gavel: Gavel) -> None:
    """Whoever recorded them had chosen as a: no hash draws the sides."""
    rows = [
        {"id": f"p{n}", "prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)
    ]
    replies = [
        {"id": f"p{n}", "evaluator": "e", "order": order, "raw_output": f"Output ({best}) is better"}
        for n in range(8) for order, best in (("ab", "a"), ("ba", "b"))
    ]  # fmt: skip
    labels, records = jsonl(tmp_path / "pairs.jsonl", rows), jsonl(tmp_path / "replies.jsonl", replies)
    found = json.loads(gavel("agreement", labels, "--recorded", records, "--json").out)
    assert (found["accuracy"], found["order_agreement"]) == (1.0, 1.0)


def test_records_that_cannot_be_used(tmp_path: Path) -> None:
    good = {"id": "p0", "evaluator": "e", "order": "ab", "raw_output": "[[A]]"}
    for fault in ({"order": "aa"}, {"raw_output": None}, {"id": None}):
        bad = BadRows(0.9, say=lambda _: None)
        recorded(tmp_path, good, good | fault, bad=bad)
        assert bad.count == 1
    with pytest.raises(InputError, match="several evaluators"):
        recorded(tmp_path, good, good | {"evaluator": "f"})
    with pytest.raises(InputError, match="no evaluator 'g'"):
        recorded(tmp_path, good, evaluator="g")
    with pytest.raises(InputError, match="no id in common"):
        recorded(tmp_path, good | {"id": "elsewhere"})


def test_a_style_of_one_s_own(tmp_path: Path) -> None:
    record = {"id": "p0", "evaluator": "e", "order": "ab", "raw_output": "I vote <left>, not <right>: <left>"}
    own = (own_style(r"<(?P<label>\w+)>", ["left", "right"]),)
    assert recorded(tmp_path, record, styles=own).outcomes["p0"].ab == 1.0
    for pattern, labels in (("(", ["a", "b"]), ("x", ["a", "b"]), ("(?P<label>x)", ["a"])):
        with pytest.raises(InputError):
            own_style(pattern, labels)


# asked live
def test_a_planted_judge_gets_what_it_deserves(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "prompt": f"q{n}", "response_a": "x" * (1 + n % 5),
         "response_b": "y" * (1 + (n * 3) % 7),
         "label": "a" if n % 5 > (n * 3) % 7 else "b" if n % 5 < (n * 3) % 7 else "tie"}
        for n in range(30)
    ]  # fmt: skip

    def longer(text: str) -> dict[str, float]:
        a, b = (len(shown(text, f"answer {label}")) for label in "AB")
        return {"A": 0.9, "B": 0.1} if a > b else {"B": 0.9, "A": 0.1} if b > a else {"C": 1.0}

    labelled = list(read_labelled(str(jsonl(tmp_path / "gold.jsonl", rows)), {}, BadRows(0)))
    for rule, accuracy in ((longer, 1.0), (lambda _: {"A": 0.8, "B": 0.2}, None)):
        with RunDir.open(tmp_path / f"run{accuracy}") as journal:
            outcomes, summary = ask(
                duels_of(labelled), Single(Answering(rule), Pairwise()), journal, name="x"
            )
        found = agreement(compare(labelled, outcomes))
        assert summary["calls"] == 60
        if accuracy is not None:
            assert (found["accuracy"], found["order_agreement"], found["kappa"]) == (1.0, 1.0, 1.0)
        else:
            assert (found["order_agreement"], found["p_first"]) == (0.0, 1.0)


def test_the_command(tmp_path: Path, gavel: Gavel) -> None:
    labels = jsonl(tmp_path / "labels.jsonl", LABELS)
    live = gavel("agreement", labels, "--judge", "fake", "--engine", "fake", "--method", "gptscore", "--json")
    assert live.code == 0, live.err
    found = json.loads(live.out)
    assert found["n"] == 3 and found["order_agreement"] == 1.0, "a score knows no order"
    names = "n accuracy_ab accuracy_ba accuracy both_correct order_agreement p_first unparsed kappa"
    assert {*names.split(), "intervals", "baselines", "length_matched"} <= found.keys()
    records = jsonl(
        tmp_path / "records.jsonl",
        [{"id": f"p{n}", "evaluator": "e", "order": o, "raw_output": "[[A]] no, [[B]]"} for n in range(3)
         for o in ("ab", "ba")],
    )  # fmt: skip
    shown_ = gavel("agreement", labels, "--recorded", records, "--differences", tmp_path / "d.jsonl")
    assert shown_.code == 0, shown_.err
    assert "p0 ab: first first, last second" in shown_.out
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 6
    failed = gavel("agreement", labels, "--recorded", records, "--min-accuracy", 0.9)
    assert failed.code == 1 and "accuracy 0.500 is under 0.9" in failed.err
    for wrong, says in (
        ([], "a judge is needed"),
        (["--judge", "m", "--recorded", records], "either"),
        (["--judge", "m", "--engine", "fake", "--evaluator", "e"], "--recorded FILE"),
        (["--recorded", tmp_path / "none"], "no such file"),
    ):
        refused = gavel("agreement", labels, *wrong)
        assert refused.code == 2 and says in refused.err, refused.err
