"""DPO on a tiny model: what is trained on, and what is optimised."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_tools import (
    assert_adapter_and_merged_agree,
    assert_one_trajectory,
    assert_pad_slots_do_not_count,
    logps,
    planted,
    same_weights,
    settings,
    steps_of,
    tiny_model,
    trainer_of,
    weights_of,
    with_reference,
)

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("sharing", ["prompts", "completions", "off"])
def test_the_sampled_ids_reach_the_model(
    model: str, tmp_path: Path, sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read where the model reads: every sequence whole, and nothing else."""
    import torch
    from transformers import LlamaModel

    from train.dpo import train_dpo

    seen: set[tuple[int, ...]] = set()
    original = LlamaModel.forward

    def spy(self: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        forest = kwargs.get("forest")
        if torch.is_grad_enabled() and forest is not None:
            read = [input_ids[0, places[places < input_ids.shape[1]]] for places in forest.seen]
            seen.update(tuple(ids.tolist()) for ids in read)
        elif torch.is_grad_enabled():
            seen.update(
                tuple(ids[mask == 1].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)
            )
        return original(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", spy)
    rows = planted(8)
    rows[3] = replace(rows[3], chosen_ids=[10, 20, 21])  # cut off: no EOS
    train_dpo(settings(model, reference="pass", sharing=sharing), rows, tmp_path / "out")
    whole = {(*r.prompt_ids, *ids) for r in rows for ids in (r.chosen_ids, r.rejected_ids)}
    # in a forest a completion's last token is predicted and not read, as nothing follows it
    assert seen == ({ids[:-1] for ids in whole} if sharing == "prompts" else whole)


def test_loss_is_the_hand_worked_number(model: str, tmp_path: Path) -> None:
    """The first step's loss, the reference set off by 0.5: both formulas written out here."""
    from train.dpo import train_dpo
    from train.unique import TOLERANCE

    rows = with_reference(model, planted(4))
    offset = [replace(r, ref_rejected_logp=r.ref_rejected_logp + 0.5) for r in rows]
    loss = {"sigmoid": 2.0, "sft": 0.5}
    config = settings(model, reference="samples", loss=loss, batch_size=4, micro_batch=2, beta=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOLERANCE, "fp32", 1.0)
        train_dpo(config, offset, tmp_path / "out")
    # at the start the policy is the reference: β·(0 − (−0.5)) for every pair
    sigmoid = math.log(1 + math.exp(-0.3 * 0.5))
    tokens = sum(len(r.chosen_ids) for r in rows)
    sft = -sum(r.ref_chosen_logp for r in rows) / tokens
    first = steps_of(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(2.0 * sigmoid + 0.5 * sft, rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.3 * 0.5, rel=1e-4)


def test_a_planted_preference_is_learned(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = planted(64)
    summary = train_dpo(
        settings(model, epochs=4, loss={"sigmoid": 1.0}, learning_rate=3e-3), rows, tmp_path / "out"
    )
    fresh = planted(32, seed=1)
    before = [c - r for c, r in logps(model, fresh)]
    after = [c - r for c, r in logps(str(tmp_path / "out"), fresh)]
    assert sum(after) > sum(before) + 32
    assert sum(a > b for a, b in zip(after, before, strict=True)) >= 30
    assert summary["metrics"]["rewards/accuracies"] == 1.0
    assert summary["steps"] == 32


def test_reference_from_the_samples_equals_a_pass(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = with_reference(model, planted(24))
    taken = train_dpo(settings(model), rows, tmp_path / "samples")
    passed = train_dpo(settings(model, reference="pass"), rows, tmp_path / "pass")
    assert (taken["reference"], passed["reference"]) == ("samples", "pass")
    assert taken["reference_audit"]["rows"] == 16
    assert taken["reference_audit"]["max_delta_per_token"] < 1e-5
    assert same_weights(tmp_path / "samples", tmp_path / "pass", atol=1e-5)


def test_an_audit_that_disagrees_falls_back_aloud(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gavel.errors import CheckFailed
    from train.dpo import train_dpo

    rows = planted(16)
    wrong = with_reference(model, rows, shift=1.0)
    summary = train_dpo(settings(model), wrong, tmp_path / "out")
    assert summary["reference"] == "pass"
    assert summary["reference_audit"]["mean_delta_per_token"] > 0.1
    captured = capsys.readouterr()
    assert "engine and trainer differ" in captured.err and captured.out == ""
    train_dpo(settings(model, reference="pass"), rows, tmp_path / "pass")
    assert same_weights(tmp_path / "out", tmp_path / "pass")
    with pytest.raises(CheckFailed, match="differ"):
        train_dpo(settings(model, reference="samples"), wrong, tmp_path / "strict")


def test_micro_batches_change_nothing(model: str, tmp_path: Path) -> None:
    """1 × 8, 8 × 1 and 4 × 2 give one trajectory, the short batch at the end included."""
    from train.dpo import train_dpo

    rows = planted(29)  # the last step has five pairs
    for micro in (8, 1, 4):
        train_dpo(settings(model, micro_batch=micro, epochs=2), rows, tmp_path / str(micro))
    for micro in (1, 4):
        assert_one_trajectory(tmp_path / str(micro), tmp_path / "8")


@pytest.mark.parametrize("sharing", ["prompts", "completions"])
def test_masked_positions_get_no_gradient(
    model: str, tmp_path: Path, sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, batch_size=4, sharing=sharing)
    trainer = trainer_of(config, planted(4), tmp_path)
    assert trainer.sharing == sharing
    assert_pad_slots_do_not_count(trainer, monkeypatch)


def test_lora_trains_and_reloads(model: str, tmp_path: Path) -> None:

    from train.dpo import train_dpo

    rows = planted(24)
    config = settings(model, lora_r=4, learning_rate=1e-2)
    train_dpo(config, rows, tmp_path / "adapter")
    train_dpo(replace(config, merge=True), rows, tmp_path / "merged")
    assert_adapter_and_merged_agree(model, tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "adapter" / "tokenizer.json").exists()


def test_bf16_and_checkpointing_train(model: str, tmp_path: Path) -> None:
    import torch

    from train.dpo import train_dpo

    rows = with_reference(model, planted(16))
    summary = train_dpo(
        settings(model, precision="bf16", gradient_checkpointing=True), rows, tmp_path / "out"
    )
    assert summary["reference_audit"]["tolerance"] == 2e-2
    assert {t.dtype for t in weights_of(tmp_path / "out").values()} == {torch.bfloat16}
