"""The evaluation of rounds, on policies whose answers are known; each way of going wrong and its gate."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judging_tools import Answering, completion, prompt, shown

from gavel.engines.fake import EOS, FakeEngine
from gavel.errors import CheckFailed
from gavel.protocols import Refused, Sampled, SampleRequest, Scored, ScoreRequest
from gavel.records import PreferencePair, Sampling
from gavel.rundir import JsonlWriter, RunDir
from generate.stage import GenerateConfig
from judge.judging import Judging, Single
from judge.pairwise import Pairwise
from judge.rating import Rating
from rounds.config import EvaluationSettings
from rounds.evaluation import OfRound, evaluate
from rounds.figures import Figure
from rounds.gates import DEFAULTS, Gate, check, decide

Answer = Callable[[int], str]  # of the number of a question
QUESTIONS = 60
WORDS = "amber birch cedar delta ember fjord grove haven islet jetty knoll larch mango north olive".split()


class Policy(FakeEngine):
    """Answers by a rule, and finds every token of its own answers e times less likely than certain.

    reads: what the log-probability of a token is when it reads others' answers.
    """

    def __init__(self, name: str, answer: Answer, reads: float = -1.0, max_tokens: int = 1000) -> None:
        super().__init__(name)
        self._answer, self._reads, self._max = answer, reads, max_tokens

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
        for request in requests:
            asked = self.tokenizer.decode(request.prompt_ids)
            text = self._answer(int(asked.rpartition(" ")[2]))
            ids = [*text.encode(), EOS]
            cut = len(ids) > self._max
            ids = ids[: self._max]
            yield Sampled(key=request.key, text=self.tokenizer.decode(ids), token_ids=ids,
                          logprobs=[-1.0] * len(ids), finish_reason="length" if cut else "stop")  # fmt: skip

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored | Refused]:
        for request in requests:
            count = len(request.token_ids) - request.start
            yield Scored(key=request.key, logprobs=[self._reads] * count)


def varied(seed: int, words: int = 8) -> Answer:
    """Answers of words drawn by seed and question."""
    return lambda n: " ".join(random.Random(f"{seed} {n}").choices(WORDS, k=words))


def prefers(better: Callable[[str, str], bool]) -> Answering:
    """A judge that is sure of A where better(A, B), else of B."""

    def rule(text: str) -> dict[str, float]:
        return {"A" if better(shown(text, "answer A"), shown(text, "answer B")) else "B": 1.0}

    return Answering(rule)


def by_hash(a: str, b: str) -> bool:
    """A taste that has nothing to do with who wrote a text."""
    return hashlib.blake2b(a.encode()).digest() > hashlib.blake2b(b.encode()).digest()


def labels(folder: Path, good: str = "good answer", bad: str = "bad reply", **labelled: Any) -> OfRound:
    """A round whose pairs prefer `good` to `bad`."""
    run = RunDir(folder)
    with (
        JsonlWriter(run.prompts_path) as prompts,
        JsonlWriter(run.completions_path) as completions,
        JsonlWriter(run.pairs_path("made")) as pairs,
    ):
        for n in range(40):
            prompts.append(prompt(f"training question {n}", id=f"t{n}"))
            for index, text in enumerate((f"{good} {n}", f"{bad} {n}")):
                completions.append(completion(text, index, f"t{n}"))
            pairs.append(PreferencePair(
                id=f"pair{n}", prompt_id=f"t{n}", chosen_id=f"t{n}-0", rejected_id=f"t{n}-1", margin=1.0,
                chosen_score=1.0, rejected_score=0.0,
            ))  # fmt: skip
    return OfRound(folder, {"judgments": 80, "unusable": 0} | labelled, {"name": "made", "flip_rate": 0.1})


def evaluated(
    root: Path, policies: list[Policy], second: Answering | Judging | None, of_round: OfRound | None = None,
) -> dict[str, Figure]:  # fmt: skip
    """The last policy's figures, each policy trained from the one before."""
    judging = Single(second, Pairwise(ties=False)) if isinstance(second, Answering) else second
    settings = EvaluationSettings(judge=None, generate=GenerateConfig(n=1, sampling=Sampling()), pairs=30)
    held_out = [prompt(f"question {n}", id=f"p{n}") for n in range(QUESTIONS)]
    of_round = of_round or labels(root / "round")
    found: dict[str, Any] = {}
    for number in range(len(policies)):
        made = evaluate(root, number, number - 1 if number else None, held_out, settings,
                        policy=policies.__getitem__, judging=(lambda: judging) if judging else None,
                        of_round=of_round if number else None)  # fmt: skip
        found = made.summary["figures"]
    return {name: Figure.of(entry) for name, entry in found.items()}


def tripped(figures: dict[str, Figure]) -> set[tuple[str, str]]:
    return {(one.figure, one.action) for one in check(DEFAULTS, figures) if one.tripped}


good_judge = prefers(lambda a, b: ("bad" in b, by_hash(a, b)) > ("bad" in a, by_hash(b, a)))


def test_a_policy_that_did_not_change_is_a_draw_without_a_judge(tmp_path: Path) -> None:
    judge = prefers(lambda a, b: ("bad" in b) > ("bad" in a))
    found = evaluated(tmp_path, [Policy("first", varied(1)), Policy("second", varied(1))], judge)
    assert found["win_rate_first"].value == found["win_rate_previous"].value == 50.0
    assert all("question" in text and "training" in text for text in judge.seen), "of the labels alone"
    assert found["kl_first"].value == 0.0 and found["length_ratio_first"].value == 1.0
    assert found["judge_agreement"].value == 1.0
    assert tripped(found) == set()


def test_a_policy_that_is_no_better_and_no_worse_trips_nothing(tmp_path: Path) -> None:
    """Over six pairs of policies, judged by a taste that knows nothing of them."""
    for seed in range(6):
        policies = [Policy("first", varied(2 * seed)), Policy("second", varied(2 * seed + 1))]
        found = evaluated(tmp_path / str(seed), policies, good_judge)
        assert found["win_rate_first"].n == QUESTIONS
        assert tripped(found) == set(), seed


def test_a_policy_that_collapses_to_one_answer(tmp_path: Path) -> None:
    only = varied(2)(0)
    found = evaluated(tmp_path, [Policy("first", varied(1)), Policy("second", lambda _: only)], good_judge)
    assert found["top_answer"].value == 1.0
    assert {("top_answer_rise_first", "roll_back"), ("distinct_2_ratio_first", "warn")} <= tripped(found)


def test_a_policy_that_says_nothing_is_rolled_back_though_no_judge_is_asked(tmp_path: Path) -> None:
    found = evaluated(tmp_path, [Policy("first", varied(1)), Policy("second", lambda _: "")], good_judge)
    assert found["win_rate_first"].value is None
    assert decide(check(DEFAULTS, found)) == "roll_back"
    assert found["distinct_2_ratio_first"] == Figure(0.0)
    assert {("distinct_2_ratio_first", "roll_back"), ("length_ratio_first", "warn")} <= tripped(found)


def test_yes_and_no_are_no_collapse_where_the_first_policy_says_them_too(tmp_path: Path) -> None:
    yes_no = [Policy(name, lambda n, k=k: ("yes", "no")[(n + k) % 2]) for k, name in enumerate("ab")]  # type: ignore[misc]
    found = evaluated(tmp_path, yes_no, good_judge)
    assert found["top_answer"].value == 0.5
    assert not {figure for figure, _ in tripped(found)} & {"top_answer_rise_first", "distinct_2_ratio_first"}


def test_answers_that_got_longer(tmp_path: Path) -> None:
    """The judge loves length: the win rate is fine, its length-controlled one and the length are not."""
    policies = [Policy("first", varied(1)), Policy("second", varied(2, words=28))]
    found = evaluated(tmp_path, policies, prefers(lambda a, b: len(a) > len(b)))
    assert found["win_rate_first"].value == 100.0
    assert found["length_ratio_first"].value == pytest.approx(3.5, rel=0.1)
    assert ("length_ratio_first", "roll_back") in tripped(found)


def test_answers_that_no_longer_end(tmp_path: Path) -> None:
    policies = [Policy("first", varied(1)), Policy("second", lambda _: "so " * 100, max_tokens=200)]
    found = evaluated(tmp_path, policies, good_judge)
    assert found["cut_off"].value == 1.0
    assert {("cut_off_rise_first", "roll_back"), ("self_repetition_rise_first", "warn")} <= tripped(found)


def test_labels_that_are_flipped(tmp_path: Path) -> None:
    flipped = labels(tmp_path / "flipped", "bad reply", "good answer",
                     gold={"accuracy": 0.2, "order_agreement": 0.9, "n": 50})  # fmt: skip
    found = evaluated(tmp_path, [Policy("a", varied(1)), Policy("b", varied(1))], good_judge, flipped)
    assert found["judge_agreement"].value == 0.0
    assert ("judge_agreement", "stop") in tripped(found)
    assert check([Gate(figure="gold_accuracy", least=0.8)], found)[0].tripped


def test_weights_that_are_wrecked(tmp_path: Path) -> None:
    """The first policy finds what this one says very unlikely, and the judge finds it bad."""
    policies = [Policy("first", varied(1), reads=-9.0), Policy("second", lambda n: f"bad {varied(3)(n)}")]
    found = evaluated(tmp_path, policies, good_judge)
    assert found["win_rate_first"].value == 0.0
    assert found["kl_first_token"].value == pytest.approx(8.0)
    assert {("win_rate_first", "roll_back"), ("kl_first_token", "roll_back")} <= tripped(found)


def test_two_pairs_are_too_few_to_stop_a_run(tmp_path: Path) -> None:
    from rounds.figures import share

    assert tripped({"judge_agreement": share(0.0, 2)}) == set()
    assert ("judge_agreement", "stop") in tripped({"judge_agreement": share(0.0, 20)})


# what is asked, and what cannot be had


def test_a_judge_that_scores_sees_each_text_once_in_all_rounds(tmp_path: Path) -> None:
    judge = Answering(lambda text: {"3": 1.0})
    policies = [Policy(str(k), varied(k)) for k in range(4)]
    evaluated(tmp_path, policies, Single(judge, Rating()))
    held_out = [text for text in judge.seen if "training" not in text]
    assert len(held_out) == 4 * QUESTIONS
    assert max(Counter(judge.seen).values()) == 1


def test_the_same_call_asks_nothing_again(tmp_path: Path) -> None:
    policies = [Policy("first", varied(1)), Policy("second", varied(2))]
    of_round, judge = labels(tmp_path / "round"), prefers(by_hash)
    before = evaluated(tmp_path, policies, judge, of_round)
    asked = len(judge.seen)
    assert asked == 2 * (QUESTIONS + 30), "both orders, of all prompts and of the pairs that were drawn"
    assert evaluated(tmp_path, policies, judge, of_round) == before
    assert len(judge.seen) == asked


def test_a_second_judge_that_says_nothing_usable_ends_no_run(tmp_path: Path) -> None:
    policies = [Policy("first", varied(1)), Policy("second", varied(2))]
    found = evaluated(tmp_path, policies, Answering(lambda _: "I cannot say."))
    for name in ("win_rate_first", "win_rate_previous_lc", "judge_agreement"):
        assert found[name] == Figure(None, why="the second judge gave no verdict")


@pytest.mark.parametrize("gone", [1, 3])
def test_a_second_judge_whose_server_is_too_busy_is_no_figure_that_was_not_measured(
    tmp_path: Path, gone: int
) -> None:
    """What it did not answer is asked once more; if that is in vain, the stage is not over."""

    class Busy(Answering):
        left = gone

        def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
            busy, self.left = self.left > 0, self.left - 1
            for reply in super().sample(requests):
                yield Refused(key=reply.key, reason="503", transient=True) if busy else reply

    policies = [Policy("first", varied(1)), Policy("second", varied(2))]
    of_round = labels(tmp_path / "round")
    judge = Busy(
        lambda text: {"A" if by_hash(shown(text, "answer A"), shown(text, "answer B")) else "B": 1.0}
    )
    if gone > 1:
        with pytest.raises(CheckFailed, match="gave no answer to 120 requests, asked twice"):
            evaluated(tmp_path / "run", policies, judge, of_round)
        judge.left = 0
    found = evaluated(tmp_path / "run", policies, judge, of_round)
    assert found == evaluated(tmp_path / "calm", policies, prefers(by_hash), of_round)


def test_without_a_second_judge_its_figures_say_so(tmp_path: Path) -> None:
    found = evaluated(tmp_path, [Policy("first", varied(1)), Policy("second", varied(2))], None)
    for name in ("win_rate_first", "win_rate_previous", "win_rate_first_lc", "judge_agreement"):
        assert found[name].why == "there is no second judge"
    assert found["flip_rate"] == Figure(0.1), "what was measured has no excuse"
