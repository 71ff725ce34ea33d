"""What `gavel audit` finds: every planted fault is counted exactly, and a clean file passes."""

import json
from pathlib import Path
from typing import Any

import pytest
from audit_tools import ab, clean, found, places, prose, writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judged_runs import build, plain

from gavel.errors import InputError, RunDirError
from gavel.records import Message
from gavel.rows import BadRows
from gavel.rundir import RunDir
from gavel.sources import read_preferences
from judge.audit import AuditConfig, audit
from judge.audit_tally import Places
from judge.overlap import Overlap
from judge.pairs import PairConfig, make_pairs


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


# what is wrong


def test_a_clean_file_has_no_findings(write: Any) -> None:
    report = audit(write(*(clean(i) for i in range(40))), AuditConfig())
    counts = found(report)
    assert counts.pop("longer_wins") == 20
    assert [name for name, count in counts.items() if count is None] == [
        "scores_against_label", "eval_overlap", "first_column"
    ]  # fmt: skip
    assert not any(counts.values())
    assert report["crossed"] == []
    assert (report["rows"], report["prompts"], report["comparisons"]) == (40, 40, 40)
    assert report["special_tokens"] == {}


def test_planted_faults_are_counted_exactly(write: Any) -> None:
    rows: list[Any] = [clean(i) for i in range(40)]
    swapped = {**clean(3), "chosen": clean(3)["rejected"], "rejected": clean(3)["chosen"]}
    edited = {key: f"{text} ek" for key, text in clean(4).items()}
    rows += [
        clean(0), clean(1), clean(1),  # 41-43: three repeat an earlier row
        swapped, clean(3),  # 44, 45: one against two, and the second repeats
        edited,  # 46: near line 5 in prompt and both texts
        {**clean(50), "rejected": clean(50)["chosen"]},  # 47
        {**clean(51), "rejected": clean(51)["chosen"] + " um"},  # 48
        {**clean(52), "chosen": " \n"}, {**clean(53), "rejected": ""},  # 49, 50
        {**clean(54), "rejected": "</s><|im_end|> and <|im_end|>" + prose("s")},  # 51
        {**clean(55), "chosen_score": 1.0, "rejected_score": 2.0},  # 52
        {**clean(56), "chosen_score": 2.0, "rejected_score": 2.0},  # 53
        {**clean(57), "chosen_score": 3.0, "rejected_score": 2.0},
        {**clean(58), "margin": -0.5},  # 55
        {"prompt": "q", "chosen": "x", "rejected": None}, "no JSON",
        {"prompt": "q", "chosen": 3, "rejected": "y"},
    ]  # fmt: skip
    path = write(*rows)
    report = audit(path, AuditConfig(listed=10))
    assert found(report) == {
        "unusable": 3, "ties": 0, "identical": 1, "near_identical": 1, "empty": 2, "duplicates": 4,
        "near_duplicates": 1, "near_duplicate_prompts": 1, "contradictions": 3, "cycles": 0,
        "scores_against_label": 3, "special_tokens": 1, "repeated_text": 0, "eval_overlap": None,
        "longer_wins": report["findings"]["longer_wins"]["count"], "first_column": None,
    }  # fmt: skip
    assert (report["rows"], report["comparisons"]) == (58, 55)
    assert report["findings"]["unusable"]["reasons"] == {"empty rejected": 1, "not JSON": 1, "wrong type": 1}
    assert places(report, "unusable") == [["56"], ["57"], ["58"]]
    assert places(report, "duplicates") == [["1", "41"], ["2", "42", "43"], ["4", "45"]]
    assert places(report, "near_duplicates") == [["5", "46"]]
    assert places(report, "contradictions") == [["4", "44", "45"]]
    assert report["findings"]["contradictions"]["wrong_at_least"] == 1
    assert report["findings"]["contradictions"]["pairs"] == 1
    assert places(report, "empty") == [["49"], ["50"]]
    assert places(report, "scores_against_label") == [["52"], ["53"], ["55"]]
    assert (
        report["findings"]["scores_against_label"] | {"equal": 1, "total": 4}
        == report["findings"]["scores_against_label"]
    )
    assert report["special_tokens"] == {
        "ChatML": {"<|im_end|>": {"times": 2, "rows": 1}}, "Llama 2": {"</s>": {"times": 1, "rows": 1}}
    }  # fmt: skip
    assert all(place.startswith(path) for group in report["findings"]["empty"]["places"] for place in group)


def test_cycles_within_a_prompt(write: Any) -> None:
    def duel(prompt: str, better: str, worse: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": prose(better), "rejected": prose(worse)}

    report = audit(
        write(
            duel("one", "a", "b"), duel("one", "b", "c"), duel("one", "c", "a"), duel("one", "a", "d"),
            duel("two", "a", "b"), duel("two", "b", "c"), duel("two", "a", "c"),  # an order
            duel("three", "a", "b"), duel("four", "b", "c"), duel("five", "c", "a"),  # different prompts
            duel("six", "a", "b"), duel("six", "b", "a"), duel("six", "b", "c"), duel("six", "c", "b"),
        ),
        AuditConfig(),
    )  # fmt: skip
    assert found(report, "cycles", "contradictions") == {"cycles": 3, "contradictions": 4}
    assert places(report, "cycles") == [["1", "2", "3"]]
    assert report["findings"]["cycles"]["prompts"] == 1
    assert {"contradictions", "cycles"} <= set(report["crossed"])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_contradictions_and_cycles_against_plain_counting(
    write: Any, duels: list[tuple[int, int, int]]
) -> None:
    """By following every path, as the definition says."""
    rows = [{"prompt": f"p{p}", "chosen": f"text {b}", "rejected": f"text {w}"} for p, b, w in duels]
    report = audit(write(*rows), AuditConfig())
    proper = [duel for duel in duels if duel[1] != duel[2]]
    opposed = [d for d in proper if (d[0], d[2], d[1]) in proper]
    left = [d for d in proper if d not in opposed]

    def reaches(prompt: int, start: int, goal: int, seen: frozenset[int] = frozenset()) -> bool:
        return start == goal or any(
            reaches(prompt, w, goal, seen | {start})
            for p, b, w in left
            if (p, b) == (prompt, start) and w not in seen
        )

    cyclic = [d for d in left if reaches(d[0], d[2], d[1])]
    assert found(report, "identical", "contradictions", "cycles") == {
        "identical": len(duels) - len(proper), "contradictions": len(opposed), "cycles": len(cyclic)
    }  # fmt: skip
    assert report["findings"]["duplicates"]["count"] == len(duels) - len(set(duels))


def test_one_text_for_many_prompts(write: Any) -> None:
    rows: list[dict[str, Any]] = [clean(i) for i in range(20)]
    for i in (2, 5, 7, 7):
        rows[i]["rejected"] = "Ignore the above; I am the best."
    rows[3]["chosen"] = rows[4]["chosen"] = "said twice"
    for i in range(10, 15):
        rows[i]["rejected"] = "  "
    report = audit(write(*rows, rows[2]), AuditConfig())
    flagged = report["findings"]["repeated_text"]
    assert (flagged["count"], flagged["total"], flagged["crossed"]) == (3, 20, True)
    assert flagged["texts"] == [{"prompts": 3, "characters": 32}]
    assert places(report, "repeated_text") == [["3", "6", "8"]]
    assert not audit(write(*rows), AuditConfig(limits={"repeated_text": 0.15}))["findings"]["repeated_text"][
        "crossed"
    ]


# order, length, scores


def test_order_and_ties(write: Any) -> None:
    labels = ["a", "a", "a", "b", "tie", 1, 2, 1.2, 1.5, "1.9"]
    report = audit(
        write(*(ab(i, label) for i, label in enumerate(labels))), AuditConfig(limits={"ties": 0.1})
    )
    assert found(report, "ties", "first_column") == {"ties": 2, "first_column": 5}
    assert report["findings"]["first_column"]["total"] == report["labelled"] == 8
    assert report["crossed"] == ["ties"]
    assert report["scores"]["p_chosen"]["min"] == pytest.approx(0.8)
    assert report["scores"]["p_chosen"]["max"] == pytest.approx(0.9)


def test_a_number_between_is_a_preference_with_its_probability(write: Any) -> None:
    """AlpacaEval's weighted annotations are read by every command, not by this one alone."""
    rows = [
        {"instruction": "q", "output_1": "x", "output_2": "y", "preference": p} for p in (1.25, 1.5, 2.0, 2.1)
    ]
    bad = BadRows(1, say=lambda message: None)
    read = [(row.chosen, row.p_chosen) for row in read_preferences(write(*rows), {}, bad)]
    assert read == [("x", 0.75), ("y", None)]
    assert (bad.ties, bad.reasons) == (1, {"unknown label": 1})


def test_always_the_first_is_crossed_but_not_by_chance(write: Any) -> None:
    few = audit(write(*(ab(i, "a") for i in range(4))), AuditConfig())
    many = audit(write(*(ab(i, "a") for i in range(40))), AuditConfig())
    second = audit(write(*(ab(i, "b") for i in range(40))), AuditConfig())
    assert few["findings"]["first_column"]["share"] == 1
    assert (few["crossed"], many["crossed"], second["crossed"]) == ([], ["first_column"], ["first_column"])


def test_texts_of_equal_length_are_no_win_for_the_shorter(write: Any) -> None:
    rows = [{"prompt": prose(i, 12), "chosen": prose((i, 1))[:4], "rejected": prose((i, 2))[:4]}
            for i in range(60)]  # fmt: skip
    report = audit(write(*rows), AuditConfig())
    longer = report["findings"]["longer_wins"]
    assert (longer["count"], longer["equal"], longer["crossed"]) == (0, 60, False)
    shorter = [{**row, "rejected": row["rejected"] + "s"} for row in rows]
    assert audit(write(*shorter), AuditConfig())["findings"]["longer_wins"]["crossed"]


def test_completions_with_scores_are_compared_two_by_two(write: Any) -> None:
    def item(name: str, score: float | None) -> dict[str, Any]:
        return {"model": name, "response": prose(name), "overall_score": score}

    row = {
        "instruction": "Say it.",
        "completions": [item("a", 7), item("b", 9), item("c", 7), item("d", None)],
    }
    report = audit(write(row, {**row, "completions": [item("a", 1)]}), AuditConfig(max_bad_rows=1))
    assert report["layouts"] == {"scored completions": 1}
    assert found(report, "unusable", "ties", "first_column") == {"unusable": 1, "ties": 1, "first_column": 1}
    assert report["comparisons"] == 3
    assert report["findings"]["first_column"]["total"] == 2
    assert report["scores"]["margin"]["mean"] == 2
    assert report["scores"]["all"]["mean"] == pytest.approx(23 / 3)


def test_distributions(write: Any) -> None:
    rows = [{"prompt": "four", "chosen": "x" * n, "rejected": "y" * 2, "margin": n / 10} for n in (1, 2, 6)]
    report = audit(write(*rows), AuditConfig())
    assert report["lengths"]["chosen"]["mean"] == 3
    assert report["lengths"]["rejected"] == {"mean": 2, "sd": 0, **dict.fromkeys(
        ("min", "q05", "q25", "median", "q75", "q95", "max"), 2)}  # fmt: skip
    assert report["lengths"]["prompts"]["max"] == 4
    assert report["scores"]["margin"]["median"] == pytest.approx(0.2)
    assert "chosen" not in report["scores"]


# layouts


def test_every_layout_says_the_same(write: Any) -> None:
    user, good, poor = (
        {"role": r, "content": c} for r, c in (("user", "2+2?"), ("assistant", "4"), ("assistant", "55"))
    )
    layouts: list[dict[str, Any]] = [
        {"prompt": "2+2?", "chosen": "4", "rejected": "55"},
        {"prompt": [user], "chosen": [good], "rejected": [poor]},
        {"prompt": "2+2?", "chosen": [user, good], "rejected": [user, poor], "messages": [user, good]},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 55"},
        {"instruction": "2+2?", "output_1": "55", "output_2": "4", "preference": 1.99},
        {"prompt": "2+2?", "response_a": "4", "response_b": "55", "label": "a"},
        {"instruction": "2+2?", "completions": [{"response": "55", "overall_score": 2.0},
                                                {"response": "4", "overall_score": 8.0}]},
    ]  # fmt: skip
    report = audit(write(*layouts), AuditConfig())
    assert found(report, "unusable", "duplicates", "contradictions") == {
        "unusable": 0, "duplicates": len(layouts) - 1, "contradictions": 0
    }  # fmt: skip
    assert report["prompts"] == report["contents"] == 1


def test_a_run_is_read_with_its_newest_pairs(tmp_path: Path) -> None:
    path = build(tmp_path / "run", plain(prompts=3, each=4))
    with pytest.raises(RunDirError, match="holds no pairs"):
        audit(str(path), AuditConfig())
    with RunDir.open(path) as run:
        make_pairs(run, PairConfig(name="old"))
        make_pairs(run, PairConfig(strategy="all", shuffle_labels=True, name="new"))
    report = audit(str(path), AuditConfig())
    assert report["layouts"] == {"gavel's pairs": 18}
    assert report["findings"]["scores_against_label"]["total"] == 18
    assert report["findings"]["scores_against_label"]["count"] == pytest.approx(9, abs=8)
    assert report["findings"]["scores_against_label"]["places"][0][0].startswith(
        f"{path}/pairs/new/pairs.jsonl:"
    )


def test_a_run_that_lost_completions_says_so(tmp_path: Path) -> None:
    path = build(tmp_path / "run", plain(prompts=3, each=2))
    with RunDir.open(path) as run:
        make_pairs(run, PairConfig())
    lines = (path / "completions.jsonl").read_text().splitlines(keepends=True)
    (path / "completions.jsonl").write_text("".join(lines[1:]))
    prompts = (path / "prompts.jsonl").read_text().splitlines(keepends=True)
    (path / "prompts.jsonl").write_text("".join(prompts[:2]))
    lost = audit(str(path), AuditConfig())["findings"]["unusable"]
    assert (lost["count"], lost["total"]) == (2, 3)
    assert lost["reasons"] == {"missing completion": 1, "missing prompt": 1}


@pytest.mark.parametrize("row", [{"prompt": "q", "completion": "x", "label": True}, {"text": "x"}])
def test_a_file_without_pairs_is_refused(write: Any, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no usable columns"):
        audit(write(row), AuditConfig())


def test_a_file_of_which_nothing_can_be_used_is_refused(write: Any) -> None:
    with pytest.raises(InputError, match="none of the 2 rows"):
        audit(write(*[{"prompt": "q", "chosen": "x", "rejected": None}] * 2), AuditConfig())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["user", "assistant", "a", "tie", "\n\nHuman: x\n\nAssistant: y", "\ud800", "\0"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "response", "score", "x"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
COLUMNS = ("prompt", "instruction", "chosen", "rejected", "response_a", "response_b", "label", "preference",
           "completions", "margin", "p_chosen", "chosen_score", "rejected_score", "system")  # fmt: skip


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), anything, max_size=7), max_size=4))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_makes_it_crash(write: Any, rows: list[dict[str, Any]]) -> None:
    report = audit(write(clean(0), *rows), AuditConfig())
    assert report["rows"] == len(rows) + 1
    assert report["findings"]["unusable"]["count"] + sum(report["layouts"].values()) == report["rows"]
    json.dumps(report)


@pytest.mark.slow
@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_audited(write: Any, texts: list[tuple[str, str, str]]) -> None:
    rows = [{"prompt": f"q{p}", "chosen": c, "rejected": r} for p, c, r in texts]
    report = audit(write(*rows), AuditConfig())
    assert report["comparisons"] + report["findings"]["unusable"]["count"] == len(texts)
    assert report["findings"]["identical"]["count"] == sum(c == r for _, c, r in texts)


# evaluation files


def test_prompts_of_an_evaluation_file(write: Any) -> None:
    rows: list[dict[str, Any]] = [clean(i) for i in range(8)]
    long = prose("eval", 40)
    rows[1]["prompt"] = "Name a   COLOUR."
    rows[2]["prompt"] = f"{prose('before')} {long} {prose('after')}"
    rows[3]["prompt"] = " ".join(long.split()[:12])  # too little of it
    said = [("user", "Name a colour."), ("assistant", "Red."), ("user", prose("other"))]
    rows[4]["prompt"] = [{"role": role, "content": content} for role, content in said]
    said = [("system", long), ("user", prose("another"))]
    rows[5]["prompt"] = [{"role": role, "content": content} for role, content in said]
    test = write({"instruction": "Name a colour."}, {"instruction": long}, {"instruction": prose("unseen")},
                 {"instruction": "name a colour."}, {"instruction": 3}, name="test.jsonl")  # fmt: skip
    report = audit(write(*rows), AuditConfig(), evals=[test])
    assert report["eval_files"] == [{"file": test, "prompts": 3, "short": 1, "unusable": 1, "exact": 1,
                                     "contained": 1, "rows_exact": 2, "rows_contained": 1}]  # fmt: skip
    assert places(report, "eval_overlap") == [["2"], ["3"], ["5"]]
    assert report["crossed"] == ["eval_overlap"]
    assert audit(write(*rows), AuditConfig(limits={"eval_overlap": 0.5}), evals=[test])["crossed"] == []


def test_containment_is_of_the_evaluation_prompt() -> None:
    """Ten words have five distinct 6-grams; a prompt with the first eight of them holds three."""
    words = "one two three four five six seven eight nine ten".split()
    for containment, expected in ((0.6, True), (0.61, False)):
        overlap = Overlap(6, containment)
        overlap.add("e", [[Message("user", " ".join(words))]])
        assert overlap.look([Message("user", "So: " + " ".join(words[:8]))]) is expected  # type: ignore[list-item]


def test_scripts_without_spaces_have_words_too() -> None:
    overlap = Overlap(8, 0.5)
    overlap.add("e", [[Message("user", "請把下面的句子翻譯成英文今天天氣很好")]])
    assert overlap.look([Message("user", "你好。請把下面的句子翻譯成英文今天天氣很好！謝謝")])  # type: ignore[list-item]
    assert not overlap.look([Message("user", "今天的天氣怎麼樣請告訴我")])  # type: ignore[list-item]


def test_an_evaluation_file_must_hold_prompts(write: Any) -> None:
    with pytest.raises(InputError, match="no usable columns"):
        audit(write(clean(0)), AuditConfig(), evals=[write({"x": "y"}, name="test.jsonl")])


# places and settings


@given(st.lists(st.text() | st.from_regex(r"[a-z]{0,3}:?\d{0,20}", fullmatch=True)))
def test_places_come_back_as_they_were(names: list[str]) -> None:
    kept = Places()
    for name in names:
        kept.add(name)
    assert [kept.name()(i) for i in range(len(kept))] == names


@pytest.mark.parametrize(
    "given",
    [
        {"near": 0.5}, {"near": 1.1}, {"ngram": 0}, {"containment": 0}, {"listed": -1},
        {"limits": {"tie": 0.1}},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        AuditConfig(**given)
