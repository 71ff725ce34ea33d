"""The judging stage: what is asked, asked once, recorded, and never invented."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Engines, Ran, Tiny
from judged_runs import completion

from gavel.engines.fake import FakeEngine
from gavel.errors import CapabilityError, CheckFailed, InputError, RowError, RunDirError
from gavel.packed import pack_ids
from gavel.protocols import Capability, SampleRequest, ScoreRequest, Tokenizer
from gavel.records import Completion, Judgment, Message, PreferencePair, Prompt, Sampling, digest
from gavel.rundir import JsonlWriter, RunDir, read_records
from judge.gptscore import GptScore
from judge.method import Call, Item, OwnMethod, Reply, Request, Verdict
from judge.pairs import PairConfig, make_pairs
from judge.reward import Reward
from judge.stage import judge, pass_name

Gavel = Callable[..., Ran]
HERE = Path(__file__).stem


class Counting(FakeEngine):
    """Remembers what it is asked; `stop_after` ends the work as a kill would."""

    def __init__(
        self, *args: Any, stop_after: int | None = None, turn: bool = False, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.keys: list[str] = []
        self._stop_after, self._turn = stop_after, turn

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Any]:
        def counted() -> Iterator[ScoreRequest]:
            for request in requests:
                self.keys.append(request.key)
                yield request

        replies: Iterable[Any] = super().score(counted())
        if self._turn:  # in another order, as engines are free to
            replies = list(replies)
            random.Random(1).shuffle(replies)
        for number, reply in enumerate(replies):
            if number == self._stop_after:
                raise KeyboardInterrupt
            yield reply


def build(path: Path, answers: dict[str, list[str]]) -> Path:
    with (
        RunDir.open(path) as run,
        JsonlWriter(run.prompts_path) as prompts,
        JsonlWriter(run.completions_path) as writer,
    ):
        for name, texts in answers.items():
            prompts.append(Prompt(id=name, messages=(Message("user", name),)))
            for index, text in enumerate(texts):
                writer.append(completion(name, index, text))
    return path


def judged(path: Path, engine: Any, method: Any = None, **more: Any) -> dict[str, Any]:
    with RunDir.open(path) as run:
        return judge(run, engine, method or GptScore(), **more)


def judgments(path: Path, name: str | None = None) -> list[Judgment]:
    run = RunDir(path)
    return list(read_records(run.judgments_path(name or run.judging_passes()[-1]), Judgment))


ANSWERS = {"one": ["a", "b", "c"], "two": ["d", "e"], "three": ["f", "g", "h", "i"]}


# asked once
def test_one_text_finished_and_cut_off_is_asked_about_twice(tmp_path: Path) -> None:
    """Only the finished one has an end; the two finished ones are still one question."""
    path, engine = build(tmp_path / "run", {"one": ["a", "a", "a"]}), Counting()
    run = RunDir(path)
    first, *others = read_records(run.completions_path, Completion)
    run.completions_path.unlink()
    with JsonlWriter(run.completions_path) as writer:
        writer.append(msgspec.structs.replace(first, finish_reason="length"))
        for other in others:
            writer.append(msgspec.structs.replace(other, finish_reason="stop"))
    method = GptScore(form="direct", count_eos=True)
    assert judged(path, engine, method)["calls"] == len(engine.keys) == 2
    tokens = [j.measures["tokens"] for j in judgments(path)]
    assert sorted(tokens) == [1, 2, 2]


def test_a_pass_that_counted_every_end_is_not_gone_on_with(tmp_path: Path) -> None:
    path, method = build(tmp_path / "run", ANSWERS), GptScore(count_eos=True)
    name = judged(path, FakeEngine(), method)["pass"]
    run = RunDir(path)
    entry = run.manifest()["passes"][name]
    before = entry["settings"].replace("eos=finished", "eos=True")
    assert before != entry["settings"]
    with RunDir.open(path) as opened:
        opened.note(passes={name: entry | {"settings": before}})
    with pytest.raises(RunDirError, match="begun with another settings"):
        judged(path, FakeEngine(), method)
    assert "eos=False" in GptScore().fingerprint, "passes without it stay as they were"


def test_a_second_time_nothing_is_asked(tmp_path: Path) -> None:
    path, engine = build(tmp_path / "run", ANSWERS), Counting()
    first = judged(path, engine)
    assert (first["judged"], first["reused"], first["calls"], len(engine.keys)) == (9, 0, 9, 9)
    second = judged(path, engine)
    assert (second["judged"], second["reused"], len(engine.keys)) == (0, 9, 9)
    assert second["judgments"] == first["judgments"] == len(judgments(path)) == 9


def test_what_was_recorded_before_a_stop_is_not_asked_again(tmp_path: Path) -> None:
    path = build(tmp_path / "run", ANSWERS)
    with pytest.raises(KeyboardInterrupt):
        judged(path, Counting(stop_after=4))
    assert len(judgments(path)) == 4
    assert not RunDir(path).stage("judge/gptscore-fake"), "a stopped stage is not finished"
    engine = Counting()
    summary = judged(path, engine)
    assert (summary["reused"], summary["judged"], len(engine.keys)) == (4, 5, 5)
    whole = build(tmp_path / "whole", ANSWERS)
    judged(whole, Counting())
    assert by_id(path) == by_id(whole)
    assert RunDir(path).stage("judge/gptscore-fake")["judgments"] == 9


def by_id(path: Path) -> dict[str, Judgment]:
    found = judgments(path)
    keyed = {j.id: j for j in found}
    assert len(keyed) == len(found), "a judgment stands twice"
    return keyed


def test_new_completions_are_judged_beside_the_old(tmp_path: Path) -> None:
    path, engine = build(tmp_path / "run", ANSWERS), Counting()
    judged(path, engine)
    with JsonlWriter(RunDir(path).completions_path) as writer:
        writer.append(completion("one", 3, "new"))
    summary = judged(path, engine)
    assert (summary["judged"], summary["reused"]) == (1, 9)


def test_another_aspect_reuses_what_is_there(tmp_path: Path) -> None:
    path, engine = build(tmp_path / "run", ANSWERS), Counting()
    judged(path, engine, GptScore(aspects=("fluency",)))
    summary = judged(path, engine, GptScore(aspects=("fluency", "depth")))
    assert (summary["judged"], summary["reused"]) == (9, 9)
    assert {(j.completion_ids[0], j.aspect) for j in judgments(path)} == {
        (f"{p}-c{i}", aspect) for p, texts in ANSWERS.items() for i in range(len(texts))
        for aspect in ("fluency", "depth")
    }  # fmt: skip
    judged(path, engine, GptScore(aspects=("fluency", "fluency")))
    assert len(by_id(path)) == 18, "an aspect given twice is one aspect"


@pytest.mark.parametrize(
    ("engine", "method", "says"),
    [
        (Counting(), GptScore(measure="sum"), "settings"),
        (Counting(), GptScore(form="question"), "settings"),
        (Counting(), GptScore(demonstrations=({"instruction": "i", "candidate": "c"},)), "template of corr"),
        (Counting("elsewhere/fake"), GptScore(), "weights"),
    ],
)  # fmt: skip
def test_a_pass_is_of_one_kind(engine: Any, method: GptScore, says: str, tmp_path: Path) -> None:
    path = build(tmp_path / "run", ANSWERS)
    judged(path, Counting())
    before = judgments(path)
    with pytest.raises(RunDirError, match=says) as caught:
        judged(path, engine, method)
    assert "--name" in str(caught.value)
    assert judgments(path) == before
    assert engine.keys == []
    summary = judged(path, engine, method, name="second")
    assert (summary["judged"], summary["pass"]) == (9, "second")
    assert not {j.id for j in judgments(path, "second")} & {j.id for j in before}
    assert judged(path, engine, method, name="second")["reused"] == 9


def test_the_same_text_is_asked_once_and_judged_for_each(tmp_path: Path) -> None:
    path, engine = build(tmp_path / "run", {"one": ["x", "y", "x", "x"], "two": ["x"]}), Counting()
    summary = judged(path, engine, GptScore(aspects=("fluency", "depth")))
    assert len(engine.keys) == summary["calls"] == 6  # x and y of one, x of two: in two aspects
    found = judgments(path)
    assert len(by_id(path)) == summary["judged"] == 10
    scores = {(j.completion_ids[0], j.aspect): j.score for j in found}
    assert len({scores[f"one-c{i}", "depth"] for i in (0, 2, 3)}) == 1
    assert scores["one-c0", "depth"] != scores["one-c1", "depth"]
    assert sum(bool(j.usage) for j in found) == 6, "tokens are counted where they were spent"
    again = judged(path, engine, GptScore(aspects=("fluency", "depth")))
    assert (again["reused"], len(engine.keys)) == (10, 6)


def test_a_twin_whose_sibling_was_recorded_before_a_stop(tmp_path: Path) -> None:
    path = build(tmp_path / "run", {"one": ["x"]})
    judged(path, Counting())
    with JsonlWriter(RunDir(path).completions_path) as writer:
        writer.append(completion("one", 1, "x"))
    judged(path, Counting())
    assert {j.completion_ids: j.score for j in judgments(path)}.keys() == {("one-c0",), ("one-c1",)}


def test_a_reward_model_tells_apart_what_reads_alike(tmp_path: Path) -> None:
    """Completions of one text but other ids, and one that was cut off: each is asked about by itself."""
    engine = FakeEngine()
    path = build(tmp_path / "run", {"one": []})
    prompt_hash = digest("prompt_ids", engine.tokenizer.chat_ids((Message("user", "one"),)))
    sampled = [([5, 1], "stop"), ([5], "length"), ([6, 1], "stop"), ([5, 1], "stop")]
    alike = [
        Completion(id=f"c{i}", prompt_id="one", index=i, text="paris", token_ids=pack_ids(ids),
                   prompt_hash=prompt_hash, finish_reason=finish)
        for i, (ids, finish) in enumerate(sampled)
    ]  # fmt: skip
    with JsonlWriter(RunDir(path).completions_path) as writer:
        for made in alike:
            writer.append(made)
    summary = judged(path, engine, Reward())
    scores = {j.completion_ids[0]: j.score for j in judgments(path)}
    assert len(scores) == 4 and scores["c0"] == scores["c3"]
    assert len({scores["c0"], scores["c1"], scores["c2"]}) == 3
    assert summary["calls"] == 3, "what is the same to the last id is asked about once"


def test_the_order_of_replies_changes_nothing(tmp_path: Path) -> None:
    references = {"one": ["a", "b"], "two": ["c"]}
    found = []
    for name, turn in (("straight", False), ("turned", True)):
        path = build(tmp_path / name, references)
        prompts = [Prompt(id=p, messages=(Message("user", p),), references=("r1", "r2")) for p in references]
        RunDir(path).prompts_path.unlink()
        with JsonlWriter(RunDir(path).prompts_path) as writer:
            for prompt in prompts:
                writer.append(prompt)
        engine = Counting(turn=turn)
        judged(path, engine, GptScore(form="rewrite", direction="harmonic", aspects=("depth", "fluency")))
        assert len(engine.keys) == 3 * 2 * 4
        found.append(by_id(path))
    assert found[0] == found[1]


# unusable
def test_what_cannot_be_judged_is_kept_counted_and_never_a_pair(tmp_path: Path) -> None:
    path = build(tmp_path / "run", {"one": ["good", "", "x" * 5000, "fine"], "two": ["", "ok"]})
    engine = Counting(context=1000)
    summary = judged(path, engine)
    assert (summary["judgments"], summary["unusable"]) == (6, 3)
    reasons = {j.completion_ids[0]: j.reason for j in judgments(path)}
    assert reasons["one-c1"] == reasons["two-c0"] == "the text is empty"
    assert "context 1000" in (reasons["one-c2"] or "")
    assert reasons["one-c0"] is reasons["one-c3"] is None
    assert all((j.score is None) == (j.reason is not None) for j in judgments(path))
    again = judged(path, engine)
    assert (again["reused"], again["unusable"]) == (6, 3), "a rerun tells the same"
    with RunDir.open(path) as run:
        name = make_pairs(run, PairConfig())["name"]
        pairs = list(read_records(run.pairs_path(name), PreferencePair))
    assert [{p.chosen_id, p.rejected_id} for p in pairs] == [{"one-c0", "one-c3"}]


def test_what_was_too_long_is_asked_again_in_a_longer_context(tmp_path: Path) -> None:
    path = build(tmp_path / "run", {"one": ["good", "x" * 5000]})
    assert judged(path, Counting(context=1000))["unusable"] == 1
    again = judged(path, Counting(context=8000))
    assert (again["reused"], again["judged"], again["unusable"]) == (1, 1, 0)


def test_a_run_without_its_manifest_is_judged_in_place(gavel: Gavel, tmp_path: Path) -> None:
    path = build(tmp_path / "run", {"one": ["a", "b"]})
    (path / "manifest.json").unlink()
    assert gavel("judge", path, "--judge", "fake", "--engine", "fake").code == 0
    missing = gavel("judge", tmp_path / "nothing", "--judge", "fake", "--engine", "fake")
    assert (missing.code, "no such run" in missing.err) == (2, True)


def test_when_nothing_can_be_used_the_work_failed(gavel: Gavel, tmp_path: Path) -> None:
    path = build(tmp_path / "run", {"one": ["", ""]})
    for _ in range(2):  # the second time nothing is asked, and it is still no success
        with pytest.raises(CheckFailed):
            judged(path, Counting())
    done = gavel("judge", path, "--judge", "fake", "--engine", "fake")
    assert (done.code, "not one judgment" in done.err, "Traceback" in done.err) == (1, True, False)


def test_an_engine_that_cannot_score_is_refused_before_any_work(tmp_path: Path) -> None:
    class Chat(Counting):
        capabilities = frozenset({Capability.SAMPLE})

    path = build(tmp_path / "run", ANSWERS)
    with pytest.raises(CapabilityError, match="gptscore"):
        judged(path, Chat())
    with pytest.raises(RunDirError, match="gavel generate"):
        judged(tmp_path / "empty", Counting())


# a user's own method
@dataclass(frozen=True)
class Rater(OwnMethod):
    """Asks for a rating in words; knows without asking that "same" is 5; refuses to judge "taboo"."""

    aspects: tuple[str, ...] = ("taste",)
    harsh: bool = False

    name: str = field(default="rater", init=False)
    parser: str = field(default="rater/1", init=False)
    call: Call = field(default=Call.SAMPLE, init=False)
    needs: frozenset[Capability] = field(default=frozenset({Capability.SAMPLE}), init=False)

    @property
    def fingerprint(self) -> str:
        return f"harsh={self.harsh}"

    def template(self, aspect: str) -> str:
        return f"rate {aspect}"

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        for made in completions:
            yield Item(prompt, (made,), "taste")

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        assert tokenizer is not None
        text = item.completions[0].text
        if text == "taboo":
            raise RowError("will not judge this")
        if text == "same":
            return []
        ids = tokenizer.chat_ids([Message("user", f"Rate: {text}")])
        return [
            SampleRequest(key="", prompt=ids, sampling=Sampling(), seed=1, choice=("1", "2", "3", "none"))
        ]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        if not replies:
            return Verdict(score=5.0)
        text = replies[0].text  # type: ignore[union-attr]
        if text == "none":
            raise RowError("no rating in the reply")
        return Verdict(score=float(text) - self.harsh)


def test_a_user_s_own_method(gavel: Gavel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    texts = ["taboo", "same", *(f"answer {i}" for i in range(20))]
    path = build(tmp_path / "run", {"one": texts})
    base = ["judge", path, "--judge", "fake", "--engine", "fake", "--method", f"{HERE}:Rater", "--json"]
    done = gavel(*base)
    assert done.code == 0, done.err
    found = {texts[int(j.completion_ids[0].split("-c")[1])]: j for j in judgments(path, "rater-fake")}
    assert found["same"].score == 5.0
    assert (found["taboo"].score, found["taboo"].reason) == (None, "will not judge this")
    none = [j for j in found.values() if j.reason == "no rating in the reply"]
    rated = [j for j in found.values() if j.raw is not None and j.reason is None]
    assert none and {j.raw for j in none} == {"none"}, "the reply is kept, to be read again"
    assert {j.score for j in rated} == {1.0, 2.0, 3.0}
    assert all(j.score == float(j.raw or 0) for j in rated)
    assert json.loads(done.out)["unusable"] == 1 + len(none)
    harsh = gavel(*base, "--method-arg", "harsh=true", "--name", "harsh")
    assert harsh.code == 0, harsh.err
    assert {j.score for j in judgments(path, "harsh") if j.raw} == {0.0, 1.0, 2.0, None}
    with pytest.raises(InputError):
        from judge.methods import make_method

        make_method(f"{HERE}:Rater", {"sweet": 1})


def test_a_method_in_the_folder_one_works_in(
    gavel: Gavel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge.py").write_text("raise SystemExit('gavel has its own')")
    (tmp_path / "own_method.py").write_text(
        "from judge.gptscore import GptScore\n\nclass Mine(GptScore):\n    'As GPTScore.'\n"
    )
    path = build(tmp_path / "run", {"one": ["a", "b"]})
    monkeypatch.chdir(tmp_path)
    done = gavel("judge", path, "--judge", "fake", "--engine", "fake", "--method", "own_method:Mine")
    assert done.code == 0, done.err
    assert len(judgments(path)) == 2


# outputs that exist already
def outputs(path: Path) -> Path:
    rows = [
        {"prompt": "2+2?", "completion": "4", "model": "a"},
        {"prompt": "3+3?", "completion": "6", "model": "a"},
        {"prompt": "2+2?", "completion": "five, perhaps", "model": "b"},
        {"prompt": "3+3?", "completion": "7", "model": "b"},
        {"prompt": "2+2?", "completion": "4", "model": "c"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_outputs_from_elsewhere_become_pairs(gavel: Gavel, tmp_path: Path) -> None:
    source, run = outputs(tmp_path / "outputs.jsonl"), tmp_path / "run"
    command = ["judge", source, "--judge", "fake", "--engine", "fake", "--out", run, "--json"]
    done = gavel(*command)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["judgments"], result["calls"]) == (5, 4)
    found = {c.id: c for c in read_records(RunDir(run).completions_path, Completion)}
    assert {c.model for c in found.values()} == {"a", "b", "c"}
    assert all(c.token_ids is c.logprobs is None for c in found.values())
    made = gavel("pairs", run, "--json")
    assert made.code == 0, made.err
    pairs = list(read_records(next((run / "pairs").glob("*/pairs.jsonl")), PreferencePair))
    assert len(pairs) == 2
    scores = {j.completion_ids[0]: j.score for j in judgments(run)}
    for pair in pairs:
        chosen, rejected = scores[pair.chosen_id], scores[pair.rejected_id]
        assert chosen is not None
        assert rejected is not None
        assert pair.margin == pytest.approx(chosen - rejected)
        assert pair.margin > 0
    again = json.loads(gavel(*command).out)
    assert (again["judged"], again["reused"]) == (0, 5)
    assert len(list(read_records(RunDir(run).completions_path, Completion))) == 5


def test_what_the_command_refuses(gavel: Gavel, tmp_path: Path) -> None:
    source, run = outputs(tmp_path / "outputs.jsonl"), build(tmp_path / "run", ANSWERS)
    folder = tmp_path / "folder"
    folder.mkdir()
    engine = ["--judge", "fake", "--engine", "fake"]
    for arguments, says in [
        ([source], "--out RUN is needed"),
        ([folder], "is no run directory"),
        ([run, "--out", tmp_path / "x"], "judged in place"),
        ([tmp_path / "none.jsonl", "--out", tmp_path / "x"], "no such file"),
    ]:
        done = gavel("judge", *arguments, *engine)
        assert (done.code, says in done.err, "Traceback" in done.err) == (2, True, False), done.err
    clash = tmp_path / "clash.jsonl"
    clash.write_text('{"prompt_id": "one", "prompt": "another question", "completion": "x"}\n')
    before = RunDir(run).completions_path.read_bytes()
    done = gavel("judge", clash, "--out", run, *engine)
    assert (done.code, "'one'" in done.err) == (2, True), done.err
    assert RunDir(run).completions_path.read_bytes() == before


def test_names_of_passes_are_folders() -> None:
    assert pass_name("gptscore", "/models/My Judge/") == "gptscore-My-Judge"
    assert pass_name("mod:Class", "owner/name") == "mod-Class-name"
    assert "/" not in pass_name("a/b", "..")


# on real engines
@pytest.mark.engine
def test_vllm_and_transformers_judge_alike(engines: Engines, tiny: Tiny, tmp_path: Path) -> None:
    method = GptScore(form="direct", aspects=("fluency",), count_eos=True)
    answers = {"capital of france?": ["paris", "the lazy dog", "", "我", "paris"], "x " * 300: ["long"]}
    found = []
    for name in ("vllm", "transformers"):
        path = build(tmp_path / name, answers)
        summary = judged(path, engines[name], method)
        assert (summary["judgments"], summary["unusable"], summary["calls"]) == (6, 2, 4)
        found.append({j.completion_ids: j for j in judgments(path)})
        assert judged(path, engines[name], method)["reused"] == 6
    for ids, one in found[0].items():
        other = found[1][ids]
        assert (one.reason is None) == (other.reason is None)
        assert one.measures == pytest.approx(other.measures, abs=1e-4)
