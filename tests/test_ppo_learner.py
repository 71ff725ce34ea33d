"""PPO's tensors: what policy, reference and critic say, what is optimised, and the optimum that it finds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Tiny

from gavel.errors import CheckFailed, InputError
from gavel.records import Completion, Message, Prompt
from train.config_ppo import PpoConfig

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

EOS = 3  # of the tiny models


def rollout(
    prompt: Sequence[int], completion: Sequence[int], *, cut_off: bool = False, name: str = "c"
) -> Any:
    from train.rollout import Rollout

    return Rollout(
        prompt=Prompt(id=f"p{prompt}", messages=(Message("user", "x"),)),
        completion=Completion(id=name, prompt_id=f"p{prompt}", index=0, text="t",
                              finish_reason="length" if cut_off else "stop"),
        prompt_ids=list(prompt), completion_ids=list(completion), sampler_logps=[0.0] * len(completion),
    )  # fmt: skip


#: Prompts and completions of unlike lengths; one ends without EOS, one is EOS alone.
ROLLOUTS = [
    ([5, 6, 7, 8, 9, 10, 11], [20, 21, EOS]),
    ([5], [30, 31, 32, 33, 34, 35, 36, 37]),
    ([40, 41, 42], [EOS]),
    ([50, 51], [60, 61, 62, 63, EOS]),
]


def rollouts() -> list[Any]:
    return [rollout(p, c, cut_off=c[-1] != EOS, name=f"c{i}") for i, (p, c) in enumerate(ROLLOUTS)]


def learner_of(tiny: Tiny, folder: Path, **changes: Any) -> Any:
    import torch

    from gavel.tokenizer import HfTokenizer
    from train import actor_critic
    from train.ppo_learner import Learner

    settings = {"critic": tiny.reward, "batch_size": 4, "learning_rate": 1e-3, "temperature": 0.7}
    config = PpoConfig(model=tiny.lm, **(settings | changes))
    models = actor_critic.load(config, HfTokenizer.load(config.model), torch.float32)
    return Learner(config, models, "fp32", 100, folder)


def learned_of(learner: Any, rows: list[Any], scores: Sequence[float | None] | None = None) -> Any:
    from train.experience import experience

    given = scores or [1.0, -2.0, 0.5, 3.0]
    said = learner.evaluate(rows)
    logps = [said.logps[i, : len(r.completion_ids)].tolist() for i, r in enumerate(rows)]
    drawn = [  # the sampler is a little off
        replace(r, sampler_logps=[lp + 0.1 * (-1) ** t for t, lp in enumerate(logps[i])])
        for i, r in enumerate(rows)
    ]
    return experience(learner._config, drawn, given, said, learner.kl.coef)


# what the models say


def test_at_the_start_policy_and_reference_agree(tiny: Tiny, tmp_path: Path) -> None:
    said = learner_of(tiny, tmp_path).evaluate(rollouts())
    assert float((said.logps - said.ref_logps).abs().max()) == 0.0


def test_log_probabilities_and_values_are_those_of_one_sequence_alone(tiny: Tiny, tmp_path: Path) -> None:
    """A batch = each sequence by itself, without any, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    said = learner_of(tiny, tmp_path).evaluate(rollouts())
    policy = AutoModelForCausalLM.from_pretrained(tiny.lm)
    critic = AutoModelForSequenceClassification.from_pretrained(tiny.reward)
    for row, (prompt, completion) in enumerate(ROLLOUTS):
        ids, start, n = torch.tensor([prompt + completion]), len(prompt), len(completion)
        with torch.no_grad():
            logps = (policy(ids).logits[0] / 0.7).log_softmax(-1)
            values = critic.score(critic.model(ids).last_hidden_state)[0, :, 0]
        expected = logps[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
        assert torch.allclose(said.logps[row, :n], expected, atol=1e-5)
        assert torch.allclose(said.values[row, :n], values[start - 1 : -1], atol=1e-5)
        assert said.after[row] == pytest.approx(float(values[-1]), abs=1e-5)
        entropy = -(logps.exp() * logps).sum(-1)[start - 1 : -1]
        assert torch.allclose(said.entropies[row, :n], entropy, atol=1e-5)


def test_what_stands_in_pad_slots_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """Of the padded batch that serves where a model cannot take one row."""
    import torch

    from train.tokens import Tokens

    learner = learner_of(tiny, tmp_path)
    learner.shared = False
    tokens = Tokens.of(rollouts(), torch.device("cpu"), shared=False)
    ids = torch.where(tokens.inputs["attention_mask"].bool(), tokens.inputs["input_ids"], 123)
    spoiled = replace(
        tokens,
        inputs=tokens.inputs | {"input_ids": ids},
        completion_ids=torch.where(tokens.mask, tokens.completion_ids, 123),
    )
    with torch.no_grad():
        logps, values = learner.models.module.said(tokens, 1.0)
        others, other_values = learner.models.module.said(spoiled, 1.0)
    assert torch.equal(logps[tokens.mask], others[tokens.mask])
    assert torch.equal(values[:, :-1][tokens.mask], other_values[:, :-1][tokens.mask])


def test_padding_on_the_right_is_no_padding(tiny: Tiny, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from train.ppo_terms import selected_logps

    said = learner_of(tiny, tmp_path).evaluate(rollouts())
    policy = AutoModelForCausalLM.from_pretrained(tiny.lm)
    width = max(len(p) + len(c) for p, c in ROLLOUTS)
    ids = torch.zeros(len(ROLLOUTS), width, dtype=torch.long)
    for row, (prompt, completion) in enumerate(ROLLOUTS):
        ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
    with torch.no_grad():
        logits = policy(ids).logits / 0.7
    logps = selected_logps(logits[:, :-1], ids[:, 1:])
    for row, (prompt, completion) in enumerate(ROLLOUTS):
        found = logps[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
        assert torch.allclose(said.logps[row, : len(completion)], found, atol=1e-5)


# one row without padding

#: Two prompts of two completions each among others; a prompt of one token; the longest stands in the middle.
KIN = [
    ([5, 6, 7, 8, 9], [20, 21, EOS]),
    ([40], [41, 42]),
    ([5, 6, 7, 8, 9], [30, 31, 32, 33, 34, 35, 36, 37]),
    ([40], [EOS]),
    ([50, 51], [60, 61, 62, 63, EOS]),
]


@pytest.mark.parametrize("given", [ROLLOUTS, KIN], ids=["no prompt twice", "prompts twice"])
@pytest.mark.parametrize("adapter", [0, 4])
def test_one_row_without_padding_says_and_learns_what_a_padded_batch_does(
    tiny: Tiny, tmp_path: Path, given: Any, adapter: int
) -> None:
    import torch

    rows = [rollout(p, c, cut_off=c[-1] != EOS, name=f"c{i}") for i, (p, c) in enumerate(given)]
    scores = [1.0, -2.0, 0.5, 3.0, 0.0][: len(rows)]
    learner, padded = (
        learner_of(tiny, tmp_path, batch_size=len(rows), lora_r=adapter, seed=1) for _ in range(2)
    )
    padded.shared = False
    learned, expected = learned_of(learner, rows, scores), learned_of(padded, rows, scores)
    assert learner.shared
    for name in ("logps", "ref_logps", "values", "after", "entropies"):
        assert torch.allclose(getattr(learned.said, name), getattr(expected.said, name), atol=1e-5), name
    plain = gradients(padded, rows, expected, len(rows))
    for micro in (len(rows), 2):
        for name, gradient in gradients(learner, rows, expected, micro).items():
            assert close(gradient, plain[name]), name


def test_a_shared_prompt_goes_through_the_models_once(tiny: Tiny, tmp_path: Path) -> None:
    import torch

    from train.tokens import Tokens, by_kin

    rows = [rollout(p, c) for p, c in KIN]
    tokens = Tokens.of(rows, torch.device("cpu"), shared=True)
    # 4 + 0 + 1 tokens of prompts but their last; with each completion the last of its prompt
    assert tokens.inputs["input_ids"].shape == (
        1,
        4 + 0 + 1 + (1 + 3) + (1 + 2) + (1 + 8) + (1 + 1) + (1 + 5),
    )
    alone = Tokens.of([rows[0], rows[1]], torch.device("cpu"), shared=True)
    assert alone.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 20, 21, EOS, 40, 41, 42]]
    assert list(by_kin(rows, range(5))) == [2, 0, 4, 1, 3], "a prompt's completions together"


def test_a_model_that_says_something_else_in_one_row_gets_a_padded_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import forest

    monkeypatch.setattr(forest.Forest, "masks", lambda self, window: (None, None))  # leaves see any stem
    learner, rows = learner_of(tiny, tmp_path), [rollout(p, c) for p, c in KIN]
    said = learner.evaluate(rows)
    assert learner.shared is False
    assert "log-probabilities differ by" in capsys.readouterr().err
    monkeypatch.undo()
    plain = learner_of(tiny, tmp_path)
    plain.shared = False
    assert said.logps.tolist() == plain.evaluate(rows).logps.tolist(), "as if it had never been tried"


def test_a_model_whose_layers_run_along_the_row_gets_a_padded_batch(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linear attention, with weights so small that log-probabilities hardly move."""
    import torch
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    from gavel.tokenizer import HfTokenizer

    torch.manual_seed(0)
    MiniMaxForCausalLM(MiniMaxConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, num_local_experts=2, block_size=16,
        layer_types=["linear_attention", "full_attention"], initializer_range=0.005, pad_token_id=0,
        bos_token_id=None, eos_token_id=EOS,
    )).save_pretrained(tmp_path / "hybrid")  # fmt: skip
    HfTokenizer.load(tiny.lm).hf.save_pretrained(tmp_path / "hybrid")
    hybrid: Any = SimpleNamespace(lm=str(tmp_path / "hybrid"), reward=None)
    learner = learner_of(hybrid, tmp_path, critic=None)
    learner.evaluate([rollout(p, c) for p, c in KIN][:4])
    assert learner.shared is False
    assert "sequences see one another" in capsys.readouterr().err


@pytest.mark.parametrize("micro", [2, 4, 16])
def test_processes_share_out_whole_micro_batches(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    """Prompts of four completions on two processes: each completion once, each process as many forward passes
    of as many rows, and prompts through the models as often as on one process with that micro-batch."""
    from train import group

    draw = random.Random(0)
    rows = [
        rollout([5, number, 7, 8], [30] * draw.randint(1, 9)) for number in range(20, 28) for _ in range(4)
    ]
    order = list(range(len(rows)))
    draw.shuffle(order)
    learner = learner_of(tiny, tmp_path, batch_size=32)
    learner.shared = True

    def passes(rank: int, size: int) -> list[tuple[list[int], int]]:
        monkeypatch.setattr(group, "rank", lambda: rank)
        monkeypatch.setattr(group, "size", lambda: size)
        found = learner._micro_batches(rows, order, micro)
        return [(part, tokens.inputs["input_ids"].shape[1]) for part, tokens in found]

    first, second = passes(0, 2), passes(1, 2)
    assert sorted(row for part, _ in first + second for row in part) == sorted(order)
    assert [len(part) for part, _ in first] == [len(part) for part, _ in second] == [micro] * (16 // micro)
    assert sum(n for _, n in first + second) == sum(n for _, n in passes(0, 1)), "tokens in all"


# what is optimised


def test_the_first_step_has_ratio_one_and_clips_nothing(tiny: Tiny, tmp_path: Path) -> None:
    learner = learner_of(tiny, tmp_path, ppo_epochs=1)
    rows = rollouts()
    steps = learner.update(0, rows, learned_of(learner, rows))
    assert steps["val/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert steps["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-10)
    assert steps["policy/clipfrac_avg"] == steps["val/clipfrac_avg"] == 0.0
    again = learner.evaluate(rows)
    assert float((again.logps - again.ref_logps).abs().max()) > 1e-4, (
        "the policy moved, the reference did not"
    )


def close(gradient: Any, other: Any) -> bool:
    """To 5e-5 of the largest: what float32 leaves of sums in another order."""
    return bool((gradient - other).abs().max() <= 5e-5 * other.abs().max().clamp(min=1e-3))


def gradients(learner: Any, rows: list[Any], learned: Any, micro: int) -> dict[str, Any]:
    import torch

    learner._optimiser.zero_grad()
    learner._gradients(rows, learned, range(len(rows)), micro, learned.mask.sum())
    found = {n: p.grad.clone() for n, p in learner.models.module.named_parameters() if p.grad is not None}
    assert any(torch.any(g != 0) for g in found.values())
    return found


def test_the_gradient_does_not_depend_on_the_micro_batch(tiny: Tiny, tmp_path: Path) -> None:
    learner, rows = learner_of(tiny, tmp_path), rollouts()
    learned = learned_of(learner, rows)
    whole = gradients(learner, rows, learned, 4)
    for micro in (1, 3):
        split = gradients(learner, rows, learned, micro)
        for name, gradient in whole.items():
            assert close(gradient, split[name]), name


def test_the_gradient_is_the_objectives(tiny: Tiny, tmp_path: Path) -> None:
    """Of the formula in the module's docstring, one sequence at a time, without padding or micro-batches."""
    import torch

    learner, rows = learner_of(tiny, tmp_path), rollouts()
    learned = learned_of(learner, rows)
    found = gradients(learner, rows, learned, 2)
    module, config = (
        learner_of(tiny, tmp_path).models.module,
        learner._config,
    )  # models as transformers has them
    total = torch.zeros(())
    for row, (prompt, completion) in enumerate(ROLLOUTS):
        ids, start, n = torch.tensor([prompt + completion]), len(prompt), len(completion)
        logps = (module.policy(ids).logits[0] / 0.7).log_softmax(-1)[start - 1 : -1]
        logps = logps.gather(1, ids[0, start:, None])[:, 0]
        values = module.critic.score(module.critic.model(ids).last_hidden_state)[0, start - 1 : -1, 0]
        advantages, weights = learned.advantages[row, :n], learned.weights[row, :n]
        ratio = (logps - learned.said.logps[row, :n]).exp()
        total = total - (weights * advantages * ratio).sum()  # nothing is clipped at the start
        total = total + config.value_coef * 0.5 * ((values - learned.returns[row, :n]) ** 2).sum()
    (total / learned.mask.sum()).backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert close(found[name], parameter.grad), name


def test_advantages_are_whitened_after_returns_and_the_penalty_is_of_the_moment(
    tiny: Tiny, tmp_path: Path
) -> None:
    """By hand, of a policy that has moved: another KL coefficient than the run began with."""
    import torch

    from train import ppo_terms as terms
    from train.experience import Evaluated, experience

    learner, rows = learner_of(tiny, tmp_path, kl_coef=0.05), rollouts()
    draw = torch.Generator().manual_seed(0)
    logps, ref_logps, values, entropies = (torch.randn(4, 8, generator=draw) for _ in range(4))
    said = Evaluated(logps, ref_logps, values, torch.zeros(4), entropies)
    learned = experience(learner._config, rows, [1.0, -2.0, 0.5, 3.0], said, 0.4)
    mask = learned.mask
    scores = torch.tensor([1.0, -2.0 - learner._config.missing_eos_penalty, 0.5, 3.0])
    expected = scores - 0.4 * torch.where(mask, logps - ref_logps, 0.0).sum(1)
    assert learned.rewards.sum(1).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    plain, returns = terms.gae(learned.rewards, values, torch.zeros(4), mask, 1.0, 0.95)
    assert torch.allclose(learned.returns, returns) and plain[mask].std() > 1.2
    assert float(learned.advantages[mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(learned.advantages[mask].std()) == pytest.approx(1.0, abs=1e-5)


def test_both_losses_are_clipped_as_the_settings_say(tiny: Tiny, tmp_path: Path) -> None:
    """Where policy and critic have moved further than that since the start of the iteration."""
    import torch

    from train import ppo_terms as terms

    learner, rows = learner_of(tiny, tmp_path, clip=0.1, value_clip=0.3), rollouts()
    learned = learned_of(learner, rows)
    now, mask = learned.said, learned.mask
    before = replace(now, logps=now.logps - 0.5, values=now.values + 1.0)
    sums = learner._gradients(rows, replace(learned, said=before), range(4), 2, mask.sum())
    ratio, advantages = math.exp(0.5), learned.advantages
    limited = torch.maximum(-advantages * ratio, -advantages * 1.1)
    near = now.values + 0.7  # a change of -1 from the value before, of which 0.3 are allowed
    worse = torch.maximum((now.values - learned.returns) ** 2, (near - learned.returns) ** 2)
    assert float(sums[0]) == pytest.approx(float((learned.weights * limited)[mask].sum()), rel=1e-4)
    assert float(sums[1]) == pytest.approx(float(0.5 * worse[mask].sum()), rel=1e-4)
    assert 0 < int(sums[2]) == int((advantages[mask] > 0).sum())
    found = terms.value_loss(now.values, before.values, learned.returns, mask, 0.3)
    assert 0 < int(sums[3]) == int(found.clipped)


def test_a_step_takes_its_own_rows_and_clips_their_gradient(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of two: means over their own tokens; each pass another order; policy and critic clipped apart."""
    import torch

    learner = learner_of(tiny, tmp_path, mini_batches=2, ppo_epochs=3, max_grad_norm=0.01)
    rows = rollouts()
    learned, steps, norms = learned_of(learner, rows), [], []
    original = learner._gradients

    def watched(given: Any, experience: Any, picked: Any, micro: int, count: Any) -> Any:
        steps.append(list(picked))
        assert int(count) == int(learned.mask[list(picked)].sum()) < int(learned.mask.sum())
        return original(given, experience, picked, micro, count)

    def taken() -> None:
        parts = (learner.models.module.policy, learner.models.module.critic)
        grads = [[p.grad.norm() for p in part.parameters() if p.grad is not None] for part in parts]
        norms.append([float(torch.stack(of).norm()) for of in grads])

    monkeypatch.setattr(learner, "_gradients", watched)
    monkeypatch.setattr(learner._optimiser, "step", taken)
    monkeypatch.setattr(learner.scheduler, "step", lambda: None)
    found = learner.update(0, rows, learned)
    passes = [steps[at] + steps[at + 1] for at in range(0, 6, 2)]
    assert [sorted(order) for order in passes] == [[0, 1, 2, 3]] * 3
    assert len(set(map(tuple, passes))) > 1
    assert found["grad_norm/policy"] > 0.02 and found["grad_norm/value"] > 0.02
    assert [norm for pair in norms for norm in pair] == pytest.approx([0.01] * 12, rel=1e-3)


def test_the_optimiser_is_the_recipes(tiny: Tiny, tmp_path: Path) -> None:
    """ε = 1e-5; the critic's own rate; no decay of norms."""
    learner = learner_of(tiny, tmp_path, learning_rate=1e-3, critic_learning_rate=5e-3, weight_decay=0.1)
    groups = learner._optimiser.param_groups
    assert [(g["initial_lr"], g["weight_decay"], g["eps"]) for g in groups] == [
        (rate, decay, 1e-5) for rate in (1e-3, 5e-3) for decay in (0.1, 0.0)
    ]
    assert all(p.ndim <= 1 for g in groups if g["weight_decay"] == 0.0 for p in g["params"])


def test_without_a_reward_model_the_critic_says_nothing_at_first(tiny: Tiny, tmp_path: Path) -> None:
    said = learner_of(tiny, tmp_path, critic=None).evaluate(rollouts())
    assert not said.values.any() and not said.after.any()


def test_an_end_that_is_also_the_pad_token_is_learned(tiny: Tiny, tmp_path: Path) -> None:
    """pad = EOS: masks come from lengths, so the EOS keeps its gradient."""
    import torch

    from train.tokens import Tokens

    rows = [rollout([5, 6], [20, 0]), rollout([5], [30, 31, 32, 0])]  # 0 fills the pad slots
    tokens = Tokens.of(rows, torch.device("cpu"), shared=False)
    assert tokens.mask.tolist() == [[True, True, False, False], [True] * 4]
    learner = learner_of(tiny, tmp_path)
    logps, _ = learner.models.module.said(tokens, 0.7)
    logps.retain_grad()
    learned = learned_of(learner, rows, [1.0, -1.0])
    from train.ppo_terms import policy_loss

    said = learned.said.logps
    policy_loss(logps, said, learned.advantages, learned.weights, learned.mask, 0.2).total.backward()
    assert logps.grad[0, 1] != 0 and logps.grad[1, 3] != 0
    assert logps.grad[0, 2:].tolist() == [0.0, 0.0]


# scores, penalties, masks


def test_the_length_limit_costs_the_penalty_and_nothing_else_does(tiny: Tiny, tmp_path: Path) -> None:
    learner = learner_of(tiny, tmp_path, missing_eos_penalty=5.0)
    rows = rollouts()
    learned = learned_of(learner, rows, [1.0, 1.0, 1.0, 1.0])
    assert [r.cut_off for r in rows] == [False, True, False, False]
    assert learned.rewards.sum(1).tolist() == pytest.approx([1.0, -4.0, 1.0, 1.0])  # KL is 0 at the start


def test_a_cut_off_completion_goes_on_in_the_critics_eyes_if_asked(tiny: Tiny, tmp_path: Path) -> None:
    rows = rollouts()
    plain = learned_of(learner_of(tiny, tmp_path, lam=1.0, missing_eos_penalty=0.0), rows)
    booted = learned_of(learner_of(tiny, tmp_path, lam=1.0, missing_eos_penalty=0.0, bootstrap=True), rows)
    change = (booted.returns - plain.returns)[:, 0]
    assert change.tolist() == pytest.approx([0.0, float(plain.said.after[1]), 0.0, 0.0], abs=1e-5)


def test_a_completion_without_a_score_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    from train.ppo_log import figures

    learner, rows = learner_of(tiny, tmp_path), rollouts()
    learned = learned_of(learner, rows, [1.0, None, 0.5, 3.0])
    assert learned.mask.sum(1).tolist() == [3, 0, 1, 5]
    found = gradients(learner, rows, learned, 2)
    others = [rows[0], *rows[2:]]
    without = learned_of(learner, others, [1.0, 0.5, 3.0])
    for name, gradient in gradients(learner, others, without, 2).items():
        assert close(found[name], gradient), name
    a, b = figures(rows, learned), figures(others, without)
    same = [n for n in a if n.startswith(("objective/", "policy/", "sampler/"))]
    assert len(same) > 8 and [a[n] for n in same] == pytest.approx([b[n] for n in same], abs=1e-5)
    assert (a["completions/unscored"], b["completions/unscored"]) == (1, 0)
    with pytest.raises(CheckFailed, match="usable score"):
        learned_of(learner, rows, [None] * 4)


def test_the_figures_are_the_hand_worked_ones(tiny: Tiny, tmp_path: Path) -> None:
    from train.ppo_log import figures

    learner, rows = learner_of(tiny, tmp_path), rollouts()
    learned = learned_of(learner, rows)
    found = figures(rows, learned)
    assert found["objective/scores"] == pytest.approx((1 - 2 + 0.5 + 3) / 4)
    assert found["objective/rlhf_reward"] == pytest.approx((1 - 2 - 1 + 0.5 + 3) / 4)  # one was cut off
    assert found["val/num_eos_tokens"] == 3 and found["completions/cut_off"] == 0.25
    assert found["completions/mean_length"] == (3 + 8 + 1 + 5) / 4
    logps = [learned.said.logps[i, : len(c)].tolist() for i, (_, c) in enumerate(ROLLOUTS)]
    assert found["objective/entropy"] == pytest.approx(-sum(map(sum, logps)) / 4, rel=1e-5)
    assert found["sampler/logp_diff_max"] == pytest.approx(0.1, abs=1e-5)
    assert found["sampler/logp_diff_mean"] == pytest.approx(0.1, abs=1e-5)
    weights = [math.exp(-0.1 * (-1) ** t) for _, c in ROLLOUTS for t in range(len(c))]
    assert found["sampler/ess"] == pytest.approx(
        sum(weights) ** 2 / 17 / sum(w * w for w in weights), rel=1e-5
    )


def test_rewards_are_whitened_by_option(tiny: Tiny, tmp_path: Path) -> None:
    rows = rollouts()
    plain = learned_of(learner_of(tiny, tmp_path), rows)
    white = learned_of(learner_of(tiny, tmp_path, whiten_rewards=True), rows)
    given = plain.rewards[plain.mask]
    assert white.rewards.tolist() == plain.rewards.tolist(), "as reported"
    expected = (plain.rewards[2, 0] - given.mean()) / given.std() + given.mean()  # the mean stays
    assert float(white.returns[2, 0]) == pytest.approx(float(expected), rel=1e-4)  # one token alone


# the optimum


@dataclass
class OneToken:
    """A policy over a small vocabulary that answers with one token. Implements `Sampler` and `Scorer`."""

    folder: str
    rewards: Sequence[float]
    n: int
    identity: str = "one token"
    name: str = "one token"

    def __post_init__(self) -> None:
        self.load_weights(Path(self.folder))

    def load_weights(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def distribution(self) -> Any:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)

    def sample(self, iteration: int, prompts: Sequence[Prompt]) -> list[Any]:
        import torch

        from train.rollout import Rollout

        log_probs = self.distribution()
        generator = torch.Generator().manual_seed(iteration)
        drawn = torch.multinomial(log_probs.exp(), self.n, replacement=True, generator=generator).tolist()
        return [
            Rollout(prompt=prompts[0], prompt_ids=PROMPT, completion_ids=[token],
                    sampler_logps=[float(log_probs[token])],
                    completion=Completion(id=str(i), prompt_id=prompts[0].id, index=i, text=str(token),
                                          finish_reason="stop"))
            for i, token in enumerate(drawn)
        ]  # fmt: skip

    def logps(self, rows: Sequence[Any]) -> list[Sequence[float]]:
        log_probs = self.distribution()
        return [[float(log_probs[row.completion_ids[0]])] for row in rows]

    def score(self, iteration: int, rows: Sequence[Any]) -> list[float | None]:
        return [self.rewards[row.completion_ids[0]] for row in rows]


PROMPT = [1, 2]
REWARDS = [0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 0.2, -2.0]
BETA = 0.5


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from tiny_models import save_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=len(REWARDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=16, initializer_range=0.3,
                         eos_token_id=EOS, pad_token_id=0, bos_token_id=None)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def distance(folder: str | Path, start: str) -> float:
    """KL(π ‖ π*), π* ∝ π_ref · exp(r / β) (Rafailov et al. 2023, eq. 4)."""
    import torch

    policy, reference = (OneToken(str(f), REWARDS, 1).distribution() for f in (folder, start))
    optimum = (reference + torch.tensor(REWARDS) / BETA).log_softmax(-1)
    return float((policy.exp() * (policy - optimum)).sum())


def test_ppo_reaches_the_analytic_optimum(small_vocabulary: str, tmp_path: Path) -> None:
    from train.ppo import train_ppo

    config = PpoConfig(
        model=small_vocabulary, batch_size=256, n=256, micro_batch=256, epochs=120, learning_rate=0.01,
        critic_learning_rate=0.02, kl_coef=BETA, ppo_epochs=2, max_tokens=1, value_clip=10.0, log_steps=20,
    )  # fmt: skip
    world = OneToken(small_vocabulary, REWARDS, 256)
    begun = distance(small_vocabulary, small_vocabulary)
    train_ppo(config, [Prompt(id="p", messages=(Message("user", "x"),))], world, world, tmp_path / "out")
    reached = distance(tmp_path / "out", small_vocabulary)
    assert begun > 0.3 and reached < 0.005, (begun, reached)


def test_dpo_reaches_the_analytic_optimum(small_vocabulary: str, tmp_path: Path) -> None:
    """Bradley-Terry soft labels; certain ones have no finite optimum."""
    from train.config_dpo import DpoConfig
    from train.data import PairRow
    from train.dpo import train_dpo

    rows = []
    for better in range(len(REWARDS)):
        for worse in range(len(REWARDS)):
            if REWARDS[better] > REWARDS[worse]:
                p = 1 / (1 + math.exp(REWARDS[worse] - REWARDS[better]))
                rows.append(PairRow(prompt_ids=PROMPT, chosen_ids=[better], rejected_ids=[worse],
                                    pair_id=f"{better}>{worse}", p_chosen=p))  # fmt: skip
    config = DpoConfig(model=small_vocabulary, beta=BETA, soft_labels=True, batch_size=28, micro_batch=28,
                       epochs=150, learning_rate=0.01, max_grad_norm=0.0)  # fmt: skip
    train_dpo(config, rows, tmp_path / "out")
    reached = distance(tmp_path / "out", small_vocabulary)
    assert reached < 0.001, reached


def test_the_critic_begins_from_the_scores_themselves(tiny: Tiny, tmp_path: Path) -> None:
    """Whatever mean its configuration keeps: the judge's scores are not centred either."""
    import shutil

    shutil.copytree(tiny.reward, tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text()) | {"reward_mean": 3.0}
    (tmp_path / "reward" / "config.json").write_text(json.dumps(config))
    said = learner_of(tiny, tmp_path, critic=str(tmp_path / "reward")).evaluate(rollouts())
    assert said.values.tolist() == learner_of(tiny, tmp_path).evaluate(rollouts()).values.tolist()


def test_a_new_head_is_trained_in_float32(tiny: Tiny, tmp_path: Path) -> None:
    """Over a frozen base in bfloat16, in which 1 + 3e-6 is 1."""
    import torch

    from gavel.tokenizer import HfTokenizer
    from train import actor_critic

    config = PpoConfig(model=tiny.lm, critic=tiny.reward, lora_r=4)
    loaded = actor_critic.load(config, HfTokenizer.load(tiny.lm), torch.bfloat16)
    trained = [p for p in loaded.module.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in loaded.module.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_score_that_is_no_number_is_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="the score of completion c2 is nan"):
        learned_of(learner_of(tiny, tmp_path), rollouts(), [1.0, 2.0, math.nan, 0.0])


def test_a_critic_that_reads_other_tokens_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    from training_tools import tiny_model

    with pytest.raises(InputError, match="other token ids"):
        learner_of(tiny, tmp_path, critic=tiny_model(tmp_path / "other"))


def test_a_critic_without_scores_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """A head that is drawn at random is no beginning."""
    with pytest.raises(InputError, match=r"--critic .*no reward model"):
        learner_of(tiny, tmp_path, critic=tiny.lm)


def test_a_critic_that_an_adapter_does_not_fit_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """Its layers may be named otherwise than the policy's."""
    from tiny_models import save_gpt2_reward_model

    critic = str(save_gpt2_reward_model(tmp_path / "gpt2", Path(tiny.tokenizer)))
    with pytest.raises(InputError, match="--lora-target: the critic has no module 'q_proj'") as caught:
        learner_of(tiny, tmp_path, critic=critic, lora_r=2, lora_targets=("q_proj",))
    assert "c_attn" in str(caught.value.hint)
