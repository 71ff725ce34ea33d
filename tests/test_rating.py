"""Ratings: the expectation by hand, what a reply says, and what the options allow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from judging_tools import Answering, as_json, completion, item, prompt, says, shown

from gavel.engines.fake import ByteTokenizer
from gavel.errors import InputError, RowError
from gavel.protocols import Capability, SampleRequest, Scored, ScoreRequest
from gavel.records import Completion, Judgment
from gavel.rundir import JsonlWriter, RunDir, read_records
from gavel.templates import tables
from judge.method import Call
from judge.rating import Rating, expectation
from judge.stage import judge


def test_the_expectation_by_hand() -> None:
    top = {"1": 0.1, " 4": 0.2, "5": 0.3, "five": 0.35, "6": 0.05}
    verdict = Rating().parse(item("x", aspect="quality"), [says("5", top)])
    assert verdict.score == pytest.approx((0.1 * 1 + 0.2 * 4 + 0.3 * 5) / 0.6)  # 4.0
    assert verdict.measures["mass"] == pytest.approx(0.6), "the rest is reported, not spread"
    spread = (0.1 * 9 + 0.2 * 0 + 0.3 * 1) / 0.6
    assert verdict.measures["sd"] == pytest.approx(math.sqrt(spread))


def test_tokens_that_differ_by_white_space_are_one_rating() -> None:
    verdict = Rating().parse(item("x", aspect="quality"), [says("2", {"2": 0.3, " 2": 0.3, "1": 0.4})])
    assert verdict.score == pytest.approx(1.6)
    assert verdict.measures["mass"] == pytest.approx(1.0)


@pytest.mark.parametrize("top", [{"Sure": 0.9, "I": 0.1}, {"6": 1.0}, {"0": 1.0}, {}])
def test_no_rating_token_is_no_verdict(top: dict[str, float]) -> None:
    with pytest.raises(RowError):
        Rating().parse(item("x", aspect="quality"), [says("Sure", top)])


def test_ratings_of_two_digits_are_scored_as_whole_replies() -> None:
    method = Rating(scale=(1, 10))
    assert method.call is Call.SCORE and Capability.SCORE in method.needs
    requests = method.render(item("x", aspect="quality"), ByteTokenizer())
    assert len(requests) == 10
    last = requests[-1]
    assert isinstance(last, ScoreRequest)
    assert ByteTokenizer().decode(last.token_ids[last.start :]) == "10"
    assert last.token_ids[-1] == ByteTokenizer.eos_id, "so that 1 is not the beginning of 10"
    logprobs = [[math.log(0.1)]] + [[-50.0]] * 8 + [[math.log(0.6), math.log(0.5)]]
    verdict = method.parse(item("x", aspect="quality"), [Scored(key="", logprobs=lp) for lp in logprobs])
    assert verdict.score == pytest.approx((0.1 * 1 + 0.3 * 10) / 0.4)
    assert verdict.measures["mass"] == pytest.approx(0.4)


def test_expectation_of_nothing() -> None:
    with pytest.raises(RowError):
        expectation({"1": 0.0, "2": 0.0})


def test_json_with_rationale() -> None:
    method = Rating(verdict="json")
    (request,) = method.render(item("x", aspect="quality"), ByteTokenizer())
    assert isinstance(request, SampleRequest)
    schema = request.json_schema
    assert schema is not None
    assert list(schema["properties"]) == ["rationale", "rating"], "reasons first"
    assert schema["properties"]["rating"]["enum"] == [1, 2, 3, 4, 5]
    asked = item("x", aspect="quality")
    assert method.parse(asked, [says(as_json(rationale="It is right.", rating=4))]).score == 4
    assert method.parse(asked, [says(as_json(rationale="It is right.", rating=9))]).reason
    cut = says('{"rationale": "It is', finish_reason="length")
    assert method.parse(asked, [cut]).score is None


@pytest.mark.parametrize(
    ("preset", "reply", "score"),
    [
        ("mt-bench", "Clear and right. Rating: [[8]]", 8),
        ("mt-bench", "First I thought [[3]]. On reflection: Rating: [[10]]", 10),
        ("prometheus", "Feedback: it misses the point. [RESULT] 2", 2),
        ("ultrafeedback", as_json(rationale="all of it", rating=5), 5),
        ("mt-bench", "Rating: [[11]]", None),
        ("prometheus", "Feedback: it is good.", None),
    ],
)
def test_presets_read_their_own_form(preset: str, reply: str, score: float | None) -> None:
    method = Rating(preset=preset)
    verdict = method.parse(item("an answer", aspect=method.aspects[0]), [says(reply)])
    assert verdict.score == score
    assert (verdict.reason is None) is (score is not None)


def test_presets_have_their_aspects() -> None:
    assert Rating(preset="ultrafeedback").aspects == (
        "instruction_following", "truthfulness", "honesty", "helpfulness",
    )  # fmt: skip
    assert Rating(preset="hhh").aspects == ("helpfulness", "honesty", "harmlessness")
    for name in tables("rating", "forms"):
        assert Rating(preset=name).aspects


def test_a_reference_is_shown_where_there_is_one() -> None:
    with_one, without = prompt("q", "the right one"), prompt("q")
    for preset in ("prometheus", "mt-bench", "single", "ultrafeedback", "hhh"):
        method = Rating(preset=preset)
        aspect = method.aspects[0]

        def text(asked_prompt: object, method: Rating = method, aspect: str = aspect) -> str:
            asked = item("x", aspect=aspect, asked=asked_prompt)  # type: ignore[arg-type]
            (request,) = [r for r in method.render(asked, ByteTokenizer()) if isinstance(r, SampleRequest)]
            return ByteTokenizer().decode(request.prompt_ids)

        assert "the right one" in text(with_one) and "the right one" not in text(without)
    hidden = Rating(with_reference=False).render(item("x", aspect="quality", asked=with_one), ByteTokenizer())
    assert isinstance(hidden[0], SampleRequest)
    assert "the right one" not in ByteTokenizer().decode(hidden[0].prompt_ids)
    with pytest.raises(RowError, match="reference"):
        Rating(with_reference=True).render(item("x", aspect="quality", asked=without), ByteTokenizer())


def test_a_rubric_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "rubric.toml"
    file.write_text('[brevity]\ndefinition = "no word too many"\nlevels = ["long", "so so", "short"]\n')
    method = Rating(rubric=str(file), scale=(1, 3))
    assert method.aspects == ("brevity",)
    (request,) = method.render(item("x", aspect="brevity"), ByteTokenizer())
    assert isinstance(request, SampleRequest)
    text = ByteTokenizer().decode(request.prompt_ids)
    assert "no word too many" in text and "3: short" in text
    before = method.template("brevity")
    file.write_text('[brevity]\ndefinition = "no word too many at all"\n')
    assert Rating(rubric=str(file), scale=(1, 3)).template("brevity") != before


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"preset": "nope"}, "prompts/rating"),
        ({"aspects": ("nope",)}, "--aspect"),
        ({"verdict": "json", "preset": "mt-bench"}, "--verdict"),
        ({"scale": (5, 1)}, "--scale"),
        ({"scale": (1, 7), "preset": "ultrafeedback"}, "--scale"),
        ({"one_prompt": True}, "--one-prompt"),
        ({"max_tokens": 0}, "--max-reply-tokens"),
        ({"rubric": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
def test_what_cannot_be_used_is_refused_before_an_engine_starts(options: dict, where: str) -> None:
    with pytest.raises(InputError) as caught:
        Rating(**options)
    assert where in str(caught.value)


def test_requests_about_one_prompt_begin_alike() -> None:
    """So that a prefix cache serves: the candidate is the first thing that differs."""
    rendered = []
    for text in ("one answer", "another answer"):
        (request,) = Rating().render(item(text, aspect="quality"), ByteTokenizer())
        assert isinstance(request, SampleRequest)
        rendered.append(ByteTokenizer().decode(request.prompt_ids))
    shared = len(_common(*rendered))
    assert rendered[0][:shared].rstrip().endswith("answer to rate]")


def _common(a: str, b: str) -> str:
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:end]


def test_all_aspects_in_one_request(tmp_path: Path) -> None:
    """One call, a judgment for each aspect; a rerun asks nothing."""
    method = Rating(preset="ultrafeedback", one_prompt=True)
    wanted = {"instruction_following": 1, "truthfulness": 2, "honesty": 3, "helpfulness": 4}
    engine = Answering(lambda text: as_json(rationale="so", **wanted))
    with RunDir.open(tmp_path / "run") as run:
        with JsonlWriter(run.prompts_path) as prompts, JsonlWriter(run.completions_path) as writer:
            prompts.append(prompt())
            for index, text in enumerate(("a", "b", "a")):
                writer.append(completion(text, index))
        summary = judge(run, engine, method)
        assert summary["calls"] == 2, "the two equal texts are asked about once"
        assert summary["judgments"] == 12
        found = list(read_records(run.judgments_path(summary["pass"]), Judgment))
        assert {(j.aspect, j.score) for j in found} == {(a, float(s)) for a, s in wanted.items()}
        assert sum(bool(j.usage) for j in found) == 2, "the usage is counted once a request"
        again = judge(run, engine, method)
        assert again["calls"] == 0 and again["reused"] == 12


def test_a_planted_preference_comes_out(tmp_path: Path) -> None:
    def likes_long(text: str) -> dict[str, float]:
        length = min(len(shown(text, "answer to rate")), 4)
        return {str(1 + length): 0.9, "1": 0.1} if length else {"1": 1.0}

    with RunDir.open(tmp_path / "run") as run:
        with JsonlWriter(run.prompts_path) as prompts, JsonlWriter(run.completions_path) as writer:
            prompts.append(prompt())
            for index, text in enumerate(("aaa", "a", "aaaa", "aa")):
                writer.append(completion(text, index))
        summary = judge(run, Answering(likes_long), Rating())
        found = read_records(run.judgments_path(summary["pass"]), Judgment)
        texts = {c.id: c.text for c in read_records(run.completions_path, Completion)}
        scores = {texts[j.completion_ids[0]]: j.score for j in found}
    assert sorted(scores, key=lambda t: scores[t] or 0) == ["a", "aa", "aaa", "aaaa"]
    assert scores["aaaa"] == pytest.approx(0.9 * 5 + 0.1 * 1)
