"""DPO's options beside its loss: what goes together, a reference that moves, a base of four bits."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_tools import (
    logps,
    planted,
    same_weights,
    settings,
    steps_of,
    tiny_model,
    weights_of,
)

from gavel.errors import InputError

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"divergence": "js_divergence", "loss": {"nca_pair": 1.0}}, "--divergence: nca_pair knows reverse_kl"),
     ({"divergence": "nonesuch"}, "--divergence: must be one of"),
     ({"ld_alpha": 1.5}, "--ld-alpha: must be in"),
     ({"ld_alpha": 0.5, "reference": "samples"}, "--ld-alpha: needs log-probabilities per token"),
     ({"ld_alpha": 0.5, "label_smoothing": 0.1}, "--ld-alpha: does not go with soft labels"),
     ({"divergence": "forward_kl", "soft_labels": True}, "--divergence: does not go with soft labels"),
     ({"wpo": True, "soft_labels": True}, "--wpo: does not go with soft labels"),
     ({"wpo": True, "loss": {"aot": 1.0}}, "--wpo: aot and aot_unpaired sort"),
     ({"discopop_tau": 0.0}, "--discopop-tau"),
     ({"sync_steps": -1}, "--sync-steps"),
     ({"sync_steps": 2, "lora_r": 4}, "--sync-steps: has no weights to move"),
     ({"sync_steps": 2, "reference": "samples"}, "--sync-steps: moves the reference"),
     ({"sync_mixup": 0.0}, "--sync-mixup"),
     ({"router_aux": -1.0}, "--router-aux"),
     ({"qlora": True}, "--qlora: needs --lora-r"),
     ({"qlora": True, "merge": True, "lora_r": 4}, "--merge: needs whole weights"),
     ({"sharing": "all"}, "--sharing"), ({"draw": "all"}, "--draw")],
)  # fmt: skip
def test_settings_that_do_not_go_together_name_their_option(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        settings("m", **({"loss": {"sigmoid": 1.0}} | changes))


def test_what_does_not_suit_the_model_is_refused(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    with pytest.raises(InputError, match="--router-aux: LlamaForCausalLM has no router"):
        train_dpo(settings(model, router_aux=0.1), planted(8), tmp_path / "a")
    for target, fault in (("lm_head", "lm_head is the head"), ("qproj", "has no module 'qproj'")):
        with pytest.raises(InputError, match=f"--lora-target: .*{fault}") as caught:
            train_dpo(settings(model, lora_r=4, lora_targets=(target,)), planted(8), tmp_path / "b")
        assert caught.value.hint is not None
        assert "q_proj" in caught.value.hint and "lm_head" not in caught.value.hint, "what would be taken"


def test_an_adapter_is_no_model(model: str, tmp_path: Path) -> None:
    import torch

    from train.dpo import train_dpo
    from train.models import context_of, load

    train_dpo(settings(model, lora_r=2), planted(8), tmp_path / "adapter")
    for read in (context_of, lambda path: load(path, torch.float32)):
        with pytest.raises(InputError, match=r"--model .*adapter: an adapter, and a whole model") as caught:
            read(str(tmp_path / "adapter"))
        assert "--merge" in str(caught.value.hint)


def test_a_model_of_which_weights_are_missing_is_refused(model: str, tmp_path: Path) -> None:
    """transformers would draw them at random. A tied head is no weight of its own."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    from gavel.tokenizer import HfTokenizer
    from train.models import load, load_reward

    for lost, whole in (("lm_head.weight", load_reward), ("model.norm.weight", None)):
        torn = tmp_path / lost
        shutil.copytree(model, torn)
        weights = load_file(torn / "model.safetensors")
        save_file({k: w for k, w in weights.items() if k != lost}, torn / "model.safetensors")
        with pytest.raises(InputError, match=f"--model .*1 of its weights are missing, {lost}"):
            load(str(torn), torch.float32)
        if whole is not None:  # a reward model has a head of another kind
            whole(str(torn), HfTokenizer.load(model), torch.float32)
        else:
            with pytest.raises(InputError, match=f"1 of its weights are missing, {lost}"):
                load_reward(str(torn), HfTokenizer.load(model), torch.float32)
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(tmp_path / "rm")
    with pytest.raises(InputError, match="rm: a reward model"):
        load(str(tmp_path / "rm"), torch.float32)


@pytest.mark.parametrize("load", ["load", "load_reward"])
def test_a_model_whose_files_are_damaged_is_refused(load: str, model: str, tmp_path: Path) -> None:
    """In a line, by the option that named it."""
    import json
    import shutil

    import torch

    from gavel.tokenizer import HfTokenizer
    from train import models

    def said(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            if load == "load":
                models.load(str(folder), torch.float32, option="--reference-model")
            else:
                models.load_reward(str(folder), HfTokenizer.load(model), torch.float32, ready=True)
        return str(caught.value)

    option = "--reference-model" if load == "load" else "--critic"
    for name in ("cut", "other"):
        shutil.copytree(model, tmp_path / name)
    os.truncate(tmp_path / "cut" / "model.safetensors", 5000)
    assert said(tmp_path / "cut").startswith(f"{option} {tmp_path / 'cut'}: no model can be loaded from it: ")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["intermediate_size"] += 8
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert "of its weights have other shapes than its config.json says, model.layers.0" in said(
        tmp_path / "other"
    )


def test_no_memory_for_a_model_is_no_damage(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from train import models

    def full(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        models.load(model, torch.float32)


# a reference that follows the policy


def test_the_reference_follows_the_policy(model: str, tmp_path: Path) -> None:
    """Going the whole way after every step it is the policy before the step: all margins are 0."""
    from train.dpo import train_dpo

    rows, base = planted(32), settings(model, loss={"sigmoid": 1.0}, learning_rate=3e-3)
    summary = train_dpo(replace(base, sync_steps=1, sync_mixup=1.0), rows, tmp_path / "moving")
    train_dpo(base, rows, tmp_path / "still")
    assert summary["reference"] == "moving"
    moving, still = (steps_of(tmp_path / name) for name in ("moving", "still"))
    assert moving[0]["loss"] == pytest.approx(still[0]["loss"], rel=1e-5)
    assert [s["rewards/margins"] for s in moving] == pytest.approx([0.0] * len(moving), abs=1e-5)
    assert still[-1]["rewards/margins"] > 0.1


def test_a_reference_that_never_came_to_move_is_the_precomputed_one(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = planted(24)
    train_dpo(settings(model, sync_steps=100), rows, tmp_path / "moving")
    train_dpo(settings(model), rows, tmp_path / "still")
    assert same_weights(tmp_path / "moving", tmp_path / "still", atol=1e-6)


def test_it_moves_by_the_part_that_is_asked(model: str, tmp_path: Path) -> None:
    """α · policy + (1 − α) · reference, once after the second of three steps."""
    import torch
    from safetensors.torch import load_file

    from train.dpo import train_dpo

    config = settings(model, sync_steps=2, sync_mixup=0.25, save_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.output.Output.finish", lambda self, summary: None)  # it frees the checkpoints
        train_dpo(config, planted(24), tmp_path / "out")
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    moved, policy = (
        load_file(checkpoint / "reference.safetensors"),
        load_file(checkpoint / "model.safetensors"),
    )
    start = weights_of(Path(model))
    for name, value in start.items():
        assert torch.allclose(moved[name], 0.25 * policy[name] + 0.75 * value, atol=1e-6), name
    assert any(not torch.equal(policy[name], value) for name, value in start.items())


def test_stopped_and_run_again_a_moving_reference_ends_the_same(model: str, tmp_path: Path) -> None:
    from train import callbacks
    from train.dpo import train_dpo

    rows, config = planted(29), settings(model, epochs=3, sync_steps=2, sync_mixup=0.5, scheduler="linear")
    train_dpo(config, rows, tmp_path / "straight")
    original = callbacks.Checkpoints.on_step_end

    def stop_at_five(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "on_step_end", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            train_dpo(config, rows, tmp_path / "stopped")
    train_dpo(config, rows, tmp_path / "stopped")
    assert same_weights(tmp_path / "straight", tmp_path / "stopped")


# four bits


def test_without_bitsandbytes_the_extra_is_named(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.dpo import train_dpo

    monkeypatch.setattr("train.models.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--qlora: needs bitsandbytes") as no:
        train_dpo(settings(model, qlora=True, lora_r=4), planted(8), tmp_path / "out")
    assert "gavel[qlora]" in str(no.value)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
def test_an_adapter_learns_over_four_bits(model: str, tmp_path: Path) -> None:
    """The base keeps its four bits, the adapter is what is saved, and the preference is learned."""
    from peft import AutoPeftModelForCausalLM

    from train import models
    from train.dpo import train_dpo

    loaded = models.load(model, __import__("torch").float32, four_bit=True)
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    rows = planted(64)
    config = settings(model, qlora=True, lora_r=8, loss={"sigmoid": 1.0}, learning_rate=2e-2, epochs=4)
    summary = train_dpo(config, rows, tmp_path / "out")
    assert summary["reference"] == "pass" and summary["sharing"] == "prompts"
    assert summary["metrics"]["rewards/accuracies"] > 0.9
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    gain = [
        sum(c - r for c, r in logps(path, planted(16, seed=1))) for path in (model, str(tmp_path / "merged"))
    ]
    assert gain[1] > gain[0] + 8


# a reference of its own


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("sharing", ["prompts", "off"])
def test_another_reference_is_what_the_policy_is_compared_with(
    model: str, tmp_path: Path, lora: int, sharing: str
) -> None:
    """The first step's loss, by hand: −log σ(β · (policy's margin − reference's margin))."""
    import torch

    from train.dpo import train_dpo

    other, rows = tiny_model(tmp_path / "other", seed=3), planted(8)
    summary = train_dpo(
        settings(model, loss={"sigmoid": 1.0}, beta=0.5, reference_model=other, lora_r=lora, sharing=sharing),
        rows, tmp_path / "out",
    )  # fmt: skip
    margins = [
        (pc - pr) - (rc - rr)
        for (pc, pr), (rc, rr) in zip(logps(model, rows), logps(other, rows), strict=True)
    ]
    expected = -torch.nn.functional.logsigmoid(0.5 * torch.tensor(margins)).mean().item()
    assert summary["reference"] == "pass"
    assert steps_of(tmp_path / "out")[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - 0.6931) > 0.01


def test_samples_of_the_reference_serve_and_another_reference_is_another_plan(
    model: str, tmp_path: Path
) -> None:
    from training_tools import with_reference

    from train.dpo import train_dpo
    from train.models import encoder_of

    other = tiny_model(tmp_path / "other", seed=3)
    config = settings(model, reference_model=other)
    assert encoder_of(config).weights == encoder_of(settings(other)).weights
    summary = train_dpo(config, with_reference(other, planted(8)), tmp_path / "out")
    assert summary["reference"] == "samples"
    with pytest.raises(InputError, match="reference_weights: was"):
        train_dpo(settings(model), planted(8), tmp_path / "out")
    with pytest.raises(InputError, match="--sync-steps: makes a reference of the policy"):
        settings(model, reference_model=other, sync_steps=2)
