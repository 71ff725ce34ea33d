"""Judges put together, rewards, and scorers of one's own: by hand, and on real engines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Engines, Ran, Tiny
from judging_tools import completion, item, prompt

from gavel.engines import EngineConfig
from gavel.engines.fake import ByteTokenizer
from gavel.errors import InputError
from gavel.protocols import Rewarded, RewardRequest, ScoreRequest
from gavel.records import Completion, Judgment, PreferencePair, Prompt
from gavel.rundir import JsonlWriter, RunDir, read_records
from gavel.scores import Candidate
from judge.gptscore import GptScore
from judge.method import OwnMethod
from judge.pairs import PairConfig, make_pairs
from judge.panel import Member, Panel, votes
from judge.panel_file import read_panel
from judge.reward import Reward
from judge.select import p_better
from judge.stage import judge

Gavel = Callable[..., Ran]


class Fixed(OwnMethod):
    """Scores by a table of texts; None is no score. Needs no judge, but says it asks one, for a panel."""

    def __init__(self, name: str, table: Mapping[str, float | None]) -> None:
        self.name = name  # type: ignore[misc]
        self._table = table

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {sorted(self._table.items())}"

    def score(self, prompt: Prompt, completion: Completion) -> float:
        from gavel.errors import RowError

        value = self._table[completion.text]
        if value is None:
            raise RowError("no score on purpose")
        return value


def run_of(path: Path, *texts: str) -> RunDir:
    run = RunDir(path)
    with JsonlWriter(run.prompts_path) as prompts, JsonlWriter(run.completions_path) as writer:
        prompts.append(prompt())
        for index, text in enumerate(texts):
            writer.append(completion(text, index))
    return run


def panel_of(combine: str, *tables: Mapping[str, float | None]) -> Panel:
    config = EngineConfig(model="fake", engine="fake")
    members = [Member(name=f"m{n}", config=config, method=Fixed(f"m{n}", t)) for n, t in enumerate(tables)]
    return Panel(members=tuple(members), combine=combine)


def judged(run: RunDir, panel: Panel) -> tuple[dict[str, Any], list[Judgment]]:
    with RunDir.open(run.path) as opened:
        summary = panel.judge(opened, "panel")
    return summary, list(read_records(run.judgments_path("panel"), Judgment))


def by_text(run: RunDir, judgments: list[Judgment]) -> dict[str, float | None]:
    texts = {c.id: c.text for c in read_records(run.completions_path, Completion)}
    return {texts[j.completion_ids[0]]: j.score for j in judgments}


def test_the_mean_is_of_calibrated_scores(tmp_path: Path) -> None:
    """A judge of 1–100 does not outweigh one of 1–5."""
    small = {"a": 1.0, "b": 2.0, "c": 3.0}
    large = {"a": 100.0, "b": 50.0, "c": 0.0}
    run = run_of(tmp_path / "run", "a", "b", "c")
    summary, judgments = judged(run, panel_of("mean", small, large))
    assert list(by_text(run, judgments).values()) == pytest.approx([0.0, 0.0, 0.0])
    sd = math.sqrt(2 / 3)
    assert judgments[0].measures == pytest.approx({"m0": -1 / sd, "m1": 1 / sd})
    assert summary["agreement"]["m0 ~ m1"] == {"pairs": 3, "agree": 0.0, "kappa": pytest.approx(-0.0)}
    smallest, _ = judged(run_of(tmp_path / "min", "a", "b", "c"), panel_of("minimum", small, large))
    assert smallest["judgments"] == 3


def test_the_minimum_is_the_strictest_judge(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "a", "b", "c")
    _, judgments = judged(
        run, panel_of("minimum", {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 3.0, "b": 2.0, "c": 1.0})
    )
    scores = by_text(run, judgments)
    assert scores["b"] == pytest.approx(0.0) and scores["a"] == scores["c"] == pytest.approx(
        -1 / math.sqrt(2 / 3)
    )


def test_the_majority_and_its_ties(tmp_path: Path) -> None:
    one, two, three = {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 3.0}, {"a": 5.0, "b": 4.0}
    run = run_of(tmp_path / "run", "a", "b")
    _, judgments = judged(run, panel_of("majority", one, two, three))
    (judgment,) = judgments
    first_is_a = judgment.completion_ids[0] == "p-0"
    assert judgment.verdict == ("second" if first_is_a else "first")
    assert judgment.measures["p_first"] == pytest.approx(1 / 3 if first_is_a else 2 / 3)
    with RunDir.open(run.path) as opened:
        make_pairs(opened, PairConfig(judgments="panel"))
        (pair,) = read_records(opened.pairs_path("panel-best-worst"), PreferencePair)
    assert (pair.chosen_id, pair.p_chosen) == ("p-1", pytest.approx(2 / 3))

    for texts in (("a", "b"), ("b", "a")):  # an even split is a tie, whatever the order
        even = run_of(tmp_path / f"even-{texts[0]}", *texts)
        _, judgments = judged(even, panel_of("majority", one, three))
        assert judgments[0].verdict == "tie" and judgments[0].measures["p_first"] == 0.5


def test_a_member_without_a_score_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "a", "b")
    for combine in ("mean", "majority"):
        panel = panel_of(combine, {"a": 1.0, "b": 2.0}, {"a": None, "b": 2.0})
        path = tmp_path / combine
        run = run_of(path, "a", "b")
        if combine == "majority":
            with pytest.raises(Exception, match="combined"):
                judged(run, panel)
        else:
            summary, judgments = judged(run, panel)
            assert summary["unusable"] == 1
            assert [j.reason for j in judgments] == ["no score from m1", None]


def test_votes_of_nobody() -> None:
    assert list(votes({})) == []


def test_a_panel_s_file(tmp_path: Path, gavel: Gavel) -> None:
    file = tmp_path / "panel.toml"
    file.write_text(
        'combine = "mean"\n'
        '[[judge]]\nmodel = "one"\nmethod = "gptscore"\nengine = "fake"\naspects = ["fluency"]\n'
        '[[judge]]\nname = "two"\nmodel = "two"\nmethod = "gptscore"\nengine = "fake"\nform = "direct"\n'
    )
    panel = read_panel(str(file))
    assert [m.name for m in panel.members] == ["1-gptscore", "two"]
    run = run_of(tmp_path / "run", "a", "b", "c")
    done = gavel("judge", run.path, "--panel", file, "--name", "both", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["method"] == "panel" and set(summary["members"]) == {"1-gptscore", "two"}
    assert RunDir(run.path).judging_passes()[-1] == "both"
    again = json.loads(gavel("judge", run.path, "--panel", file, "--name", "both", "--json").out)
    assert again["calls"] == 0, "what the members said is not asked again"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": "bb"}\n')
    scored = gavel("score", rows, "--panel", file, "--out", tmp_path / "scored.jsonl", "--json")
    assert scored.code == 0, scored.err
    assert all(json.loads(line)["scores"] for line in (tmp_path / "scored.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('combine = "sum"', "unknown 'sum'"),
        ("colour = 1", "unknown key 'colour'"),
        ('[[judge]]\nmodel = "m"\nmethod = "gptscore"', "two judges"),
        ('[[judge]]\nmodel = "m"\n[[judge]]\nmodel = "m"', "lacks 'method'"),
        ('[[judge]]\nmodel = "m"\nmethod = "gptscore"\nsweet = 1\n' * 2, "no option 'sweet'"),
        ("[[judge", "cannot be read"),
    ],
)
def test_a_panel_s_file_with_a_fault(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "panel.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_panel(str(file))
    assert says in str(caught.value)


def test_a_panel_does_not_take_another_pass_s_place(tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run", "a", "b")
    fake = ["--judge", "fake", "--engine", "fake", "--form", "direct", "--name", "x", "--json"]
    assert gavel("judge", run.path, *fake).code == 0
    before = run.judgments_path("x").read_bytes()
    with RunDir.open(run.path) as opened, pytest.raises(Exception, match="other judges"):
        panel_of("mean", {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}).judge(opened, "x")
    assert run.judgments_path("x").read_bytes() == before


def test_limits_are_the_whole_panel_s(tmp_path: Path, gavel: Gavel) -> None:
    file = tmp_path / "panel.toml"
    entry = '[[judge]]\nmodel = "{0}"\nmethod = "gptscore"\nengine = "fake"\nform = "direct"\n'
    file.write_text(entry.format("m") + entry.format("n"))
    run = run_of(tmp_path / "run", "a", "b", "c")
    asked = []
    for _ in range(4):
        done = gavel("judge", run.path, "--panel", file, "--max-calls", 2, "--json")
        assert done.code == 0, done.err
        asked.append(json.loads(done.out)["calls"])
    assert asked == [2, 2, 2, 0]


def test_the_adapter_is_the_policy_s() -> None:
    from judge.panel_file import open_panel

    options = dict.fromkeys(("engine", "base_url", "tokenizer", "max_model_len"))
    more: dict[str, Any] = {"adapter": "/lora", "dtype": "auto", "engine_arg": {}, "chat_template_arg": {},
                            "trust_remote_code": False}  # fmt: skip
    panel = open_panel("implicit", "policy", {"reference": "base"}, {**options, **more})
    assert [(m.config.model, m.config.adapter) for m in panel.members] == [
        ("policy", "/lora"),
        ("base", None),
    ]


# DPO's own reward
def test_the_implicit_reward_by_hand(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "a", "b")
    config = EngineConfig(model="fake", engine="fake")
    policy, reference = {"a": -2.0, "b": -5.0}, {"a": -3.0, "b": -4.0}
    panel = Panel(
        members=(
            Member(name="policy", config=config, method=Fixed("policy", policy)),
            Member(name="reference", config=config, method=Fixed("reference", reference)),
        ),
        combine="implicit",
        beta=0.5,
    )
    _, judgments = judged(run, panel)
    assert by_text(run, judgments) == pytest.approx({"a": 0.5, "b": -0.5})
    with RunDir.open(run.path) as opened:
        make_pairs(opened, PairConfig(judgments="panel"))
        (pair,) = read_records(opened.pairs_path("panel-best-worst"), PreferencePair)
    assert pair.p_chosen == pytest.approx(1 / (1 + math.exp(-1.0))), "σ of the difference of rewards"


@pytest.mark.engine
def test_the_implicit_reward_of_real_models(tiny: Tiny, tmp_path: Path, gavel: Gavel) -> None:
    run = run_of(tmp_path / "run", "paris", "the lazy dog")
    done = gavel(
        "judge", run.path, "--method", "implicit", "--judge", tiny.lm, "--reference", tiny.other,
        "--beta", "0.1", "--engine", "transformers", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    found = list(read_records(run.judgments_path(summary["pass"]), Judgment))
    for judgment in found:
        logps = judgment.measures
        assert judgment.score == pytest.approx(0.1 * (logps["policy"] - logps["reference"]))
    same = gavel(
        "judge", run.path, "--method", "implicit", "--judge", tiny.lm, "--reference", tiny.lm,
        "--engine", "transformers", "--name", "same", "--json",
    )  # fmt: skip
    assert same.code == 0, same.err
    assert all(j.score == 0.0 for j in read_records(run.judgments_path("same"), Judgment))


# reward models
def test_what_a_reward_model_reads() -> None:
    (request,) = Reward().render(item("four"), ByteTokenizer())
    assert isinstance(request, RewardRequest)
    asked = ByteTokenizer().chat_ids(prompt().messages)
    assert request.token_ids == [*asked, *b"four", ByteTokenizer.eos_id]
    cut = Completion(id="c", prompt_id="p", index=0, text="four", finish_reason="length")
    (request,) = Reward().render(item("x").__class__(prompt(), (cut,), "reward"), ByteTokenizer())
    assert isinstance(request, RewardRequest)
    assert request.token_ids[-1] == ord("r"), "an answer that was cut off does not end"
    assert Reward().parse(item("x"), [Rewarded(key="", reward=1.5)]).score == 1.5


@pytest.mark.engine
def test_a_reward_model_on_vllm_is_that_of_transformers(engines: Engines, tmp_path: Path) -> None:
    found = {}
    for name in ("vllm/reward", "transformers/reward"):
        run = run_of(tmp_path / name.split("/")[0], "paris", "the quick brown fox", "a")
        with RunDir.open(run.path) as opened:
            summary = judge(opened, engines[name], Reward())
        found[name] = by_text(run, list(read_records(run.judgments_path(summary["pass"]), Judgment)))
    assert found["vllm/reward"] == pytest.approx(found["transformers/reward"], abs=1e-4)
    assert len(set(found["vllm/reward"].values())) == 3


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    class Generates:
        name, model, weights, dtype, context = "g", "g", "w", "", 100
        capabilities = frozenset()  # type: ignore[var-annotated]

    run = run_of(tmp_path / "run", "a")
    with RunDir.open(run.path) as opened, pytest.raises(Exception, match="reward"):
        judge(opened, Generates(), Reward())  # type: ignore[arg-type]


# probabilities
def test_the_probability_of_ratings_with_a_spread() -> None:
    a = Candidate(completion("a"), 4.0, sd=0.6)
    b = Candidate(completion("b", 1), 3.0, sd=0.8)
    assert p_better(a, b) == pytest.approx(0.8413447, abs=1e-6), "Φ(1 / 1)"
    assert p_better(b, a) == pytest.approx(1 - 0.8413447, abs=1e-6)
    assert p_better(a, Candidate(completion("c", 2), 1.0)) is None


# one's own
def test_a_scorer_of_one_s_own_needs_no_judge(
    tmp_path: Path, gavel: Gavel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifteen lines of docs/judging.md."""
    docs = Path(__file__).parents[1] / "docs" / "judging.md"
    code = docs.read_text("utf-8").split("```python\n")[-1].split("```")[0]
    (tmp_path / "shorter.py").write_text(code)
    assert len(code.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    run = run_of(tmp_path / "run", "a" * 10, "a" * 80, "a" * 300)
    done = gavel("judge", "run", "--method", "shorter:Shorter", "--method-arg", "limit=80", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    scores = by_text(run, list(read_records(run.judgments_path(summary["pass"]), Judgment)))
    assert {len(text): score for text, score in scores.items()} == {10: -70.0, 80: 0.0, 300: -220.0}
    other = gavel("judge", "run", "--method", "shorter:Shorter", "--method-arg", "limit=9", "--json")
    assert other.code == 2 and "another settings" in other.err, "never into the same pass"


def test_gptscore_renders_for_the_implicit_reward() -> None:
    (request,) = GptScore(form="direct", measure="sum", count_eos=True).render(
        item("x", aspect="correctness"), ByteTokenizer()
    )
    assert isinstance(request, ScoreRequest) and request.token_ids[-1] == ByteTokenizer.eos_id
