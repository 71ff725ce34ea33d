"""PPO on live engines: end to end, resumed to the bit, engines that are not what they should be, bad days."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Engines, Ran, Tiny
from training_tools import same_weights, steps_of

from gavel.errors import CheckFailed, InputError
from gavel.records import Message, Prompt
from train.config_ppo import PpoConfig

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


# on live engines


PROMPTS = [Prompt(id=f"q{i}", messages=(Message("user", f"the quick brown fox {i}"),)) for i in range(12)]
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def policy_engine(tiny: Tiny) -> Iterator[Any]:
    """An engine of its own, as it takes other weights; deterministic."""
    from gavel.engines import EngineConfig, open_engine

    config = EngineConfig(model=tiny.lm, engine="transformers", context=256, logprobs_mode="processed")
    with open_engine(config) as engine:
        yield engine


@dataclass
class Letters:
    """Scores the share of letters. Implements `Scorer`."""

    identity: str = "letters"
    name: str = "share of letters"

    def score(self, iteration: int, rows: Sequence[Any]) -> list[float | None]:
        return [_share_of_letters(r.completion.text) for r in rows]


def _share_of_letters(text: str) -> float:
    return sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text))


def config_of(tiny: Tiny, **changes: Any) -> PpoConfig:
    base = {"batch_size": 8, "n": 2, "max_tokens": MAX_TOKENS, "epochs": 1, "learning_rate": 1e-4,
            "ppo_epochs": 2, "temperature": 0.8}  # fmt: skip
    return PpoConfig(model=tiny.lm, **(base | changes))


def run_ppo(tiny: Tiny, engine: Any, out: Path, config: PpoConfig, scorer: Any = None) -> dict[str, Any]:
    from gavel.records import Sampling
    from generate.stage import GenerateConfig
    from rounds.live import LiveSampler
    from train.ppo import train_ppo

    engine.load_weights(tiny.lm)
    sampling = Sampling(
        temperature=config.temperature, max_tokens=config.max_tokens, logprobs_mode="processed"
    )
    sampler = LiveSampler(engine, GenerateConfig(n=config.n, sampling=sampling), out / "rollouts")
    return train_ppo(config, PROMPTS, sampler, scorer or Letters(), out)


def figures_of(out: Path) -> list[dict[str, Any]]:
    """The metrics, seconds aside."""
    return [{k: v for k, v in s.items() if not k.startswith("seconds/")} for s in steps_of(out)]


def test_an_iteration_end_to_end(tiny: Tiny, policy_engine: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from gavel.rundir import RunDir, read_records

    summary = run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny))
    assert (summary["iterations"], summary["completions"]) == (3, 24)
    steps = steps_of(tmp_path / "out")
    assert [s["step"] for s in steps] == [1, 2, 3] and [s["episode"] for s in steps] == [8, 16, 24]
    assert steps[0]["objective/kl"] == 0.0 != steps[1]["objective/kl"]
    assert all(s["sampler/probe"] < 1e-4 and s["sampler/ess"] > 0.999 for s in steps)
    assert steps[0]["lr"] > steps[2]["lr"] > 0
    runs = [RunDir(tmp_path / "out" / "rollouts" / f"{i:06d}") for i in (1, 2, 3)]
    seen = [prompt.id for run in runs for prompt in read_records(run.prompts_path, Prompt)]
    assert sorted(seen) == sorted(p.id for p in PROMPTS), "each prompt once"
    assert not (tmp_path / "out" / ".weights").exists() and not (tmp_path / "out" / "checkpoints").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny))
    assert again == summary, "finished already"
    with pytest.raises(InputError, match="kl_coef"):
        run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny, kl_coef=0.1))
    other = Letters(identity="0123456789", name="gptscore by another")
    with pytest.raises(
        InputError, match=r"scorer: was share of letters \(letters\), now gptscore by another"
    ):
        run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny), other)


def test_it_learns_what_is_scored(tiny: Tiny, policy_engine: Any, tmp_path: Path) -> None:
    config = config_of(tiny, batch_size=24, epochs=8, learning_rate=5e-4, scheduler="constant", kl_coef=0.0,
                       critic_learning_rate=1e-3, ppo_epochs=4, missing_eos_penalty=0.0)  # fmt: skip
    run_ppo(tiny, policy_engine, tmp_path / "out", config)
    scores = [s["objective/scores"] for s in steps_of(tmp_path / "out")]
    assert sum(scores[-2:]) / 2 > sum(scores[:2]) / 2 + 0.2, scores


@pytest.mark.parametrize("lora", [0, 4])
def test_mixed_precision(tiny: Tiny, policy_engine: Any, tmp_path: Path, lora: int) -> None:
    """bfloat16 arithmetic, on a CPU too: what is saved and pushed is bfloat16, what is trained is not."""
    import torch
    from safetensors.torch import load_file

    config = config_of(tiny, precision="bf16", lora_r=lora, critic=tiny.reward, learning_rate=1e-3)
    run_ppo(tiny, policy_engine, tmp_path / "out", config)
    steps = figures_of(tmp_path / "out")
    assert steps[0]["objective/kl"] == 0.0 != steps[-1]["objective/kl"]
    assert all(1e-4 < s["sampler/probe"] < 0.1 for s in steps), "rounding, and no more"
    assert all(s["sampler/ess"] > 0.99 for s in steps)
    if not lora:
        saved = load_file(tmp_path / "out" / "model.safetensors")
        assert {w.dtype for w in saved.values()} == {torch.bfloat16}


class StopAfter:
    """A scorer that is interrupted as a person would."""

    def __init__(self, iteration: int) -> None:
        self._at, self._inner = iteration, Letters()
        self.identity, self.name = self._inner.identity, self._inner.name

    def score(self, iteration: int, rows: Sequence[Any]) -> list[float | None]:
        if iteration == self._at:
            raise KeyboardInterrupt
        return self._inner.score(iteration, rows)


@pytest.mark.parametrize("lora", [0, 4])
def test_a_resumed_run_is_the_same_to_the_bit(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, lora: int
) -> None:
    """Policy, critic, optimiser, learning rate, KL coefficient, order of prompts."""
    config = config_of(
        tiny, save_steps=1, lora_r=lora, kl_target=0.1, kl_horizon=50, epochs=2, critic=tiny.reward
    )
    run_ppo(tiny, policy_engine, tmp_path / "straight", config)
    for stop in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run_ppo(tiny, policy_engine, tmp_path / "out", config, StopAfter(stop))
    run_ppo(tiny, policy_engine, tmp_path / "out", config)
    assert same_weights(tmp_path / "straight", tmp_path / "out")
    straight, resumed = figures_of(tmp_path / "straight"), figures_of(tmp_path / "out")
    assert straight == resumed
    assert len({s["objective/kl_coef"] for s in straight}) > 3, "it moved"
    for before, after in itertools.pairwise(straight):  # eight completions an iteration
        error = min(max(before["objective/kl"] / 0.1 - 1, -0.2), 0.2)
        assert after["objective/kl_coef"] == pytest.approx(before["objective/kl_coef"] * (1 + error * 8 / 50))


def test_with_lora_the_engine_has_the_merged_weights_and_the_reference_is_the_base(
    tiny: Tiny, policy_engine: Any, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = config_of(tiny, lora_r=4, learning_rate=1e-2, critic=tiny.reward)
    run_ppo(tiny, policy_engine, tmp_path / "out", config)
    steps = steps_of(tmp_path / "out")
    assert all(s["sampler/probe"] < 1e-4 for s in steps) and abs(steps[-1]["objective/kl"]) > 1e-3
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny.lm)
    with torch.no_grad():
        plain = base(ids).logits
        beside = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter"))(ids).logits
        assert torch.allclose(merged(ids).logits, beside, atol=1e-4)
    assert not torch.allclose(beside, plain, atol=1e-2)


# an engine that is not what it should be


class Broken:
    """An engine with a fault. Everything else is the engine's."""

    def __init__(self, engine: Any, **faults: Any) -> None:
        self._engine, self._faults = engine, faults

    def __getattr__(self, name: str) -> Any:
        return self._faults.get(name) or getattr(self._engine, name)


@pytest.mark.parametrize(("precision", "rate"), [("fp32", 1e-3), ("bf16", 1e-5)])
def test_an_engine_that_keeps_the_old_weights_is_found_out(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, precision: str, rate: float
) -> None:
    """In bfloat16 also with steps that are smaller than what is rounded."""
    deaf = Broken(policy_engine, load_weights=lambda path: None)
    policy_engine.load_weights(tiny.lm)
    config = config_of(
        tiny, learning_rate=rate, precision=precision, batch_size=24, epochs=10, scheduler="constant"
    )
    with pytest.raises(CheckFailed, match="the engine still has the weights"):
        run_ppo(tiny, deaf, tmp_path / "out", config)


def test_an_engine_with_other_weights_is_found_out(tiny: Tiny, policy_engine: Any, tmp_path: Path) -> None:
    loads = policy_engine.load_weights
    wrong = Broken(policy_engine, load_weights=lambda path: loads(tiny.other))
    with pytest.raises(CheckFailed, match="engine and trainer differ by"):
        run_ppo(tiny, wrong, tmp_path / "out", config_of(tiny))


def test_an_engine_that_cannot_take_weights_is_refused(
    tiny: Tiny, policy_engine: Any, tmp_path: Path
) -> None:
    from gavel.errors import CapabilityError
    from gavel.protocols import Capability

    fixed = Broken(policy_engine, capabilities=policy_engine.capabilities - {Capability.LOAD_WEIGHTS})
    with pytest.raises(CapabilityError, match="load new weights"):
        run_ppo(tiny, fixed, tmp_path / "out", config_of(tiny))


# bad days


def spoil(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Makes the policy loss of one micro-batch no number. call: which, counted from 1."""
    from train import ppo_terms

    original, calls = ppo_terms.policy_loss, []

    def spoiled(*args: Any) -> Any:
        calls.append(1)
        found = original(*args)
        return replace(found, total=found.total * math.nan) if len(calls) == call else found

    monkeypatch.setattr(ppo_terms, "policy_loss", spoiled)


def test_a_loss_that_is_no_number_stops_before_the_step(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gavel.records import Completion
    from gavel.rundir import RunDir, read_records

    spoil(monkeypatch, 5)
    with pytest.raises(CheckFailed) as caught:
        run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny, ppo_epochs=2, batch_size=12))
    said, listed = str(caught.value), tmp_path / "out" / "checkpoints" / "suspects.txt"
    assert "policy loss nan" in said and "at iteration 2, in completions" in said and "checkpoint-1" in said
    names = listed.read_text().splitlines()
    sampled = read_records(RunDir(tmp_path / "out" / "rollouts" / "000002").completions_path, Completion)
    assert sorted(names) == sorted(c.id for c in sampled) and len(names) == 12
    assert [n for n in names if n in said] == names[:8] and f"All 12 are in {listed}." in said
    assert not (tmp_path / "out" / "checkpoints" / "last-good").exists(), "the checkpoint is that"
    kept = torch.load(tmp_path / "out" / "checkpoints" / "checkpoint-1" / "pytorch_model.bin")
    assert kept and all(weight.isfinite().all() for weight in kept.values())
    monkeypatch.undo()
    run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny, ppo_epochs=2, batch_size=12))
    assert [s["step"] for s in steps_of(tmp_path / "out")] == [1, 2]


@pytest.mark.parametrize("lora", [0, 4])
def test_a_later_step_that_fails_leaves_the_weights_of_before_it(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: int
) -> None:
    """They are those of no iteration: no checkpoint, but models that another run can begin from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from gavel.tokenizer import HfTokenizer
    from train import actor_critic
    from train.adapter import merged
    from train.ppo_learner import Learner

    kept: dict[str, Any] = {}
    step = Learner._step

    def watched(self: Any, *args: Any) -> Any:
        for part in ("policy", "critic"):
            state = merged(getattr(self.models.module, part), self.state_of(part))
            kept[part] = {name: w.clone() for name, w in state.items()}
        return step(self, *args)

    monkeypatch.setattr(Learner, "_step", watched)
    spoil(monkeypatch, 8)  # of two steps an iteration, the fourth's second
    config = config_of(tiny, micro_batch=8, save_steps=2, epochs=2, critic=tiny.reward, lora_r=lora)
    with pytest.raises(CheckFailed) as caught:
        run_ppo(tiny, policy_engine, tmp_path / "out", config)
    said, there = str(caught.value), tmp_path / "out" / "checkpoints"
    assert "at iteration 4" in said and "The state of iteration 2 is in" in said
    assert f"Policy and critic of before this step are models in {there / 'last-good'}." in said
    assert sorted(p.name for p in there.iterdir()) == ["checkpoint-2", "last-good", "suspects.txt"]
    for part, kind in (("policy", AutoModelForCausalLM), ("critic", AutoModelForSequenceClassification)):
        weights = kind.from_pretrained(there / "last-good" / part).state_dict()
        assert all(torch.equal(weights[name], w) for name, w in kept[part].items()), part
    good = {part: str(there / "last-good" / part) for part in kept}
    again = PpoConfig(model=good["policy"], critic=good["critic"])
    actor_critic.load(again, HfTokenizer.load(again.model), torch.float32)


def no_memory(*args: Any, **kwargs: Any) -> Any:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


def at_call(number: int, original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """One call of a function does something else."""
    calls: list[int] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return (instead if len(calls) == number else original)(*args, **kwargs)

    return called


def test_no_memory_before_an_iterations_first_step_keeps_the_one_before(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command then ends as if nothing had been."""
    from train.ppo_learner import Learner

    run_ppo(tiny, policy_engine, tmp_path / "straight", config_of(tiny))
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "evaluate", at_call(3, Learner.evaluate, no_memory))
        with pytest.raises(InputError, match="out of memory while training") as caught:
            run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny))
    assert "--micro-batch 8" in str(caught.value) and "The state of iteration 2 is in" in str(caught.value)
    run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny))
    assert same_weights(tmp_path / "straight", tmp_path / "out")


@pytest.mark.parametrize("whose", ["policy", "judge"])
def test_an_engine_without_memory_is_not_the_trainer(
    tiny: Tiny, policy_engine: Any, engines: Engines, tmp_path: Path, whose: str
) -> None:
    """What to do is said of engines, and the iteration before is kept."""
    from judge.judging import Single
    from judge.reward import Reward
    from rounds.live import LiveScorer

    engine, judge = policy_engine, engines["transformers/reward"]
    if whose == "policy":
        engine = Broken(engine, sample=at_call(2, engine.sample, no_memory))
    else:
        judge = Broken(judge, reward=at_call(2, judge.reward, no_memory))
    scorer = LiveScorer(Single(judge, Reward()), tmp_path / "out" / "rollouts")
    with pytest.raises(InputError, match=f"the {whose}'s engine is out of memory") as caught:
        run_ppo(tiny, engine, tmp_path / "out", config_of(tiny), scorer)
    said = str(caught.value)
    assert "--engine-arg gpu_memory_utilization" in said and "The state of iteration 1 is in" in said
    assert "--micro-batch" not in said and "--gradient-checkpointing" not in said


def test_no_memory_for_the_optimiser_is_said_too(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.optim.AdamW, "step", no_memory)
    with pytest.raises(InputError, match="out of memory") as caught:
        run_ppo(tiny, policy_engine, tmp_path / "out", config_of(tiny, lora_r=4))
    said = str(caught.value)
    assert "--max-tokens" in said and "--max-length" not in said and "--lora-r" not in said


def test_begun_otherwise_and_stopped_early_the_place_is_still_good(
    tiny: Tiny, policy_engine: Any, tmp_path: Path
) -> None:
    """Without a checkpoint nothing came of the first plan; its completions are not taken for others."""
    config = config_of(tiny)
    for changes in ({}, {"temperature": 0.5}, {"n": 4}, {"max_tokens": 6}):
        with pytest.raises(KeyboardInterrupt):
            run_ppo(tiny, policy_engine, tmp_path / "out", replace(config, **changes), StopAfter(0))
    run_ppo(tiny, policy_engine, tmp_path / "out", config)
    run_ppo(tiny, policy_engine, tmp_path / "straight", config)
    assert same_weights(tmp_path / "straight", tmp_path / "out")


@pytest.mark.parametrize("allowed", [False, True])
def test_out_of_memory(
    tiny: Tiny, policy_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """Raised as a GPU does for micro-batches above two rows."""
    import torch

    from train.actor_critic import ActorCritic

    original = ActorCritic.values

    def small(self: Any, tokens: Any) -> Any:
        if len(tokens.mask) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, tokens)

    config = config_of(tiny, halve_micro_batch=allowed, epochs=0.4)
    run_ppo(tiny, policy_engine, tmp_path / "plenty", config)
    monkeypatch.setattr(ActorCritic, "values", small)
    if not allowed:
        with pytest.raises(InputError, match="out of memory") as caught:
            run_ppo(tiny, policy_engine, tmp_path / "out", config)
        assert "--micro-batch 4" in str(caught.value) and "--halve-micro-batch" in str(caught.value)
        return
    run_ppo(tiny, policy_engine, tmp_path / "out", config)
    assert same_weights(tmp_path / "plenty", tmp_path / "out", atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 3}, "--n"), ({"mini_batches": 3}, "--mini-batches"), ({"clip": 0}, "--clip"),
        ({"gamma": 1.5}, "--gamma"), ({"kl_target": 0}, "--kl-target"), ({"kl_coef": -1}, "--kl-coef"),
        ({"temperature": 0}, "--temperature"), ({"ppo_epochs": 0}, "--ppo-epochs"),
        ({"kl_target": 6.0, "kl_horizon": 4}, "--kl-horizon"), ({"lora_alpha": 0.0}, "--lora-alpha"),
        ({"kl_coef": math.inf}, "--kl-coef"),
        ({"importance_cap": -1}, "--importance-cap"), ({"critic_learning_rate": 0}, "--critic-learning-rate"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        PpoConfig(model="m", batch_size=8, **changes)
    assert named in str(caught.value)


def test_what_is_known_beforehand_is_refused_beforehand(
    tiny: Tiny, policy_engine: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="12 prompts are fewer than the 32"):
        run_ppo(tiny, policy_engine, tmp_path / "a", config_of(tiny, batch_size=64))
    with pytest.raises(InputError, match="PPO cannot report to"):
        from train.ppo_accelerate import trackers

        trackers(config_of(tiny, report_to=("codecarbon",)))


# scorers


def test_a_reward_model_scores_the_ids_that_were_sampled(
    tiny: Tiny, policy_engine: Any, engines: Engines, tmp_path: Path
) -> None:
    """By a judge, on record, and equal to the model's own word on prompt and completion ids."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from gavel.records import Sampling
    from generate.stage import GenerateConfig
    from judge.judging import Single
    from judge.reward import Reward
    from rounds.live import LiveSampler, LiveScorer

    policy_engine.load_weights(tiny.lm)
    sampling = Sampling(max_tokens=MAX_TOKENS, logprobs_mode="processed")
    rows = LiveSampler(policy_engine, GenerateConfig(n=2, sampling=sampling), tmp_path).sample(0, PROMPTS[:4])
    scorer = LiveScorer(Single(engines["transformers/reward"], Reward()), tmp_path)
    scores = scorer.score(0, rows)
    model = AutoModelForSequenceClassification.from_pretrained(tiny.reward)
    for row, score in zip(rows, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits
        assert score == pytest.approx(float(logits), abs=1e-4)
    assert len(set(scores)) > 4
    assert scorer.score(0, rows) == scores, "from the record"


def test_a_judge_that_compares_is_refused(engines: Engines, tmp_path: Path) -> None:
    from judge.judging import Single
    from judge.pairwise import Pairwise
    from rounds.live import LiveScorer

    with pytest.raises(InputError, match="needs a score for each"):
        LiveScorer(Single(engines["fake"], Pairwise()), tmp_path)


# the command


def write_prompts(folder: Path, count: int = 12) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the quick brown fox {i}"}) + "\n" for i in range(count)))
    return path


@pytest.mark.parametrize(
    ("method", "judge"), [(["--method", "reward"], "reward"), (["--method", "gptscore"], "other")]
)
def test_the_command(
    tiny: Tiny, gavel: Callable[..., Ran], tmp_path: Path, method: list[str], judge: str
) -> None:
    common = ["train", "ppo", "--model", tiny.lm, "--prompts", write_prompts(tmp_path), "--judge",
              getattr(tiny, judge), *method, "--engine", "transformers", "--batch-size", 6, "--max-tokens", 8,
              "--max-model-len", 128, "--json"]  # fmt: skip
    done = gavel(*common, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert (summary["iterations"], summary["left_out"], summary["bad_rows"]) == (2, 0, 0)
    plan = json.loads((tmp_path / "out" / "gavel.json").read_text())["plan"]
    assert (plan["critic"] is not None) == (judge == "reward")


def test_the_critic_starts_from_the_judge_where_it_can(
    tiny: Tiny, gavel: Callable[..., Ran], tmp_path: Path
) -> None:
    """A judge with another tokenizer judges all the same; who names such a critic is told."""
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny.reward, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["Z"], words["X"] = words["X"], words["Z"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    common = ["train", "ppo", "--model", tiny.lm, "--prompts", write_prompts(tmp_path), "--engine",
              "transformers", "--batch-size", 12, "--max-tokens", 8, "--max-model-len", 128]  # fmt: skip
    apart = (
        "the critic starts from the policy's own body, not from the reward model: its tokenizer gives other"
    )
    for name, more, expected in (
        ("implied", ["--judge", other], apart),
        ("none", ["--judge", tiny.reward, "--critic", "none"], None),
    ):
        done = gavel(*common, *more, "--out", tmp_path / name)
        assert done.code == 0, done.err
        assert (apart in done.err) == (expected is not None), done.err
        assert json.loads((tmp_path / name / "gavel.json").read_text())["plan"]["critic"] is None
    done = gavel(*common, "--judge", tiny.reward, "--critic", other, "--out", tmp_path / "named")
    assert done.code == 2 and f"--critic {other}: its tokenizer" in done.err and "--critic none" in done.err


def test_a_server_that_judges_lends_the_critic_no_weights(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its model has a name there, and no path here."""
    from gavel.command import options_of
    from rounds.cli_ppo import _config, ppo

    options = options_of(ppo, {"engine": "server", "base-url": "http://host/v1"}, "a test",
                         {"model", "source", "out", "judge_model"})  # fmt: skip
    assert _config(options | {"model": tiny.lm}, "judge").critic is None
    assert "not from the reward model: a server has its weights" in capsys.readouterr().err


def test_plans_from_when_ppo_had_a_max_length_are_still_met() -> None:
    assert not hasattr(PpoConfig(model="m"), "max_length")
    assert PpoConfig(model="m").shaping()["max_length"] is None


def test_killed_at_random_moments_the_same_command_ends_the_same(tiny: Tiny, tmp_path: Path) -> None:
    """SIGKILL twice, somewhere after an iteration began to sample: while it samples, scores, trains, hands
    weights over or writes a checkpoint. In processes of their own, of one thread each."""
    seed = random.randrange(10_000)
    draw = random.Random(seed)
    prompts = write_prompts(tmp_path)

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "gavel", "train", "ppo", "--model", tiny.lm,
                   "--prompts", prompts, "--judge", tiny.reward, "--engine", "transformers",
                   "--batch-size", 4, "--max-tokens", 12, "--max-model-len", 128, "--epochs", 2,
                   "--save-steps", 1, "--learning-rate", 1e-4, "--kl-target", 0.1, "--kl-horizon", 50,
                   "--out", out]  # fmt: skip
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(tmp_path / "said.txt", "ab") as said:
            return subprocess.Popen([*map(str, command)], env=one_thread, stderr=said)

    def said() -> str:
        return f"seed {seed}\n{(tmp_path / 'said.txt').read_text()}"

    out = tmp_path / "killed"
    for iteration in (2, 4):
        child = start(out)
        try:
            deadline = time.monotonic() + 300
            while not (out / "rollouts" / f"{iteration:06d}").exists():
                assert child.poll() is None and time.monotonic() < deadline, said()
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.4))
        finally:
            child.kill()
            child.wait()
        assert child.returncode == -signal.SIGKILL and not (out / "config.json").exists(), said()
    for folder in (out, tmp_path / "straight"):
        child = start(folder)
        try:
            assert child.wait(timeout=300) == 0, said()
        finally:
            child.kill()
    assert same_weights(out, tmp_path / "straight"), seed
    assert figures_of(out) == figures_of(tmp_path / "straight"), seed
    assert [s["step"] for s in figures_of(out)] == [1, 2, 3, 4, 5, 6]
    assert len({s["objective/kl_coef"] for s in figures_of(out)}) > 3, "it moved"


def test_the_command_says_what_is_wrong(tiny: Tiny, gavel: Callable[..., Ran], tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path)
    common = ["train", "ppo", "--model", tiny.lm, "--prompts", prompts, "--out", tmp_path / "out",
              "--engine", "transformers"]  # fmt: skip
    for more, said in (
        (["--judge", tiny.reward], "fewer than the 64 of an iteration"),
        ([], "a judge is needed"),
        (
            ["--judge", tiny.other, "--method", "pairwise", "--batch-size", 4, "--max-tokens", 8],
            "needs a score for each",
        ),
        (["--judge", tiny.reward, "--batch-size", 4, "--max-model-len", 64, "--max-tokens", 60], "any room"),
        (["--judge", tiny.reward, "--batch-size", 4, "--n", 3], "must divide --batch-size 4"),
    ):
        done = gavel(*common, *more)
        assert done.code == 2 and said in done.err, (more, done.err)
        assert "Traceback" not in done.err


# vLLM


def test_vllm_takes_each_update_and_proves_it(tiny: Tiny, tmp_path: Path, engines: Engines) -> None:
    """After the run its engine says what a fresh model of the saved directory says."""
    import torch
    from transformers import AutoModelForCausalLM

    from gavel.protocols import Scored, ScoreRequest

    engine = engines["vllm/processed"]
    try:
        run_ppo(tiny, engine, tmp_path / "out", config_of(tiny, learning_rate=1e-3))
        ids = [5, 6, 7, 40, 41, 42, 43]
        (reply,) = engine.score([ScoreRequest(key="a", token_ids=ids, start=3)])
    finally:
        engine.load_weights(tiny.lm)
    assert all(s["sampler/probe"] < 1e-4 for s in steps_of(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert isinstance(reply, Scored)
    expected = [float(logps[t - 1, ids[t]]) for t in range(3, len(ids))]
    assert list(reply.logprobs) == pytest.approx(expected, abs=1e-4)
