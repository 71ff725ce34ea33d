"""Reward models: what is optimised, what held-out pairs say, and that vLLM and transformers agree."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Engines, Tiny
from training_tools import (
    EOS,
    VOCAB,
    assert_one_trajectory,
    interrupted_after,
    planted,
    same_weights,
    steps_of,
    tiny_model,
)

from gavel.errors import InputError
from train.config import RewardConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(*pairs: tuple[int, int]) -> list[Any]:
    """Pairs of prompt number and length of chosen; rejected is two tokens long."""
    from train.data import PairRow

    return [
        PairRow(prompt_ids=[prompt], chosen_ids=[10] * length, rejected_ids=[11] * 2, pair_id=str(i))
        for i, (prompt, length) in enumerate(pairs)
    ]


# settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"held_out": 1.0}, "--held-out"), ({"held_out": -0.1}, "--held-out"), ({"center": -1}, "--center"),
        ({"label_smoothing": 0.5}, "--label-smoothing"), ({"margin_scale": -1.0}, "--margin-scale"),
        ({"margin_scale": 1.0, "soft_labels": True}, "--margin-scale"), ({"epochs": 0}, "--epochs"),
        ({"margin_scale": 1.0, "label_smoothing": 0.1}, "--margin-scale"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        RewardConfig(model="m", **changes)
    assert named in str(caught.value)


# held-out pairs


def test_all_pairs_of_a_prompt_are_on_one_side() -> None:
    from train.reward import split

    rows = rows_of(*[(prompt, 3) for prompt in range(100, 150) for _ in range(4)])
    kept, aside = split(rows, 0.1, seed=0)
    assert len(kept) == 180 and len(aside) == 20
    assert not {tuple(r.prompt_ids) for r in kept} & {tuple(r.prompt_ids) for r in aside}
    assert split(list(reversed(rows)), 0.1, seed=0)[1] == list(reversed(aside)), "whatever the order"
    assert split(rows, 0.1, seed=1)[1] != aside
    assert split(rows, 0.0, seed=0) == (rows, [])
    assert len(split(rows_of((1, 2), (2, 2)), 0.01, seed=0)[1]) == 1, "at least one prompt"
    with pytest.raises(InputError, match="too few"):
        split(rows_of((1, 2), (1, 3)), 0.5, seed=0)


def test_the_report_is_the_hand_worked_one() -> None:
    from train.reward_report import report

    rows = rows_of((1, 5), (2, 4), (3, 2), (4, 1))  # longer by 3, 2, 0, -1
    found = report(rows, np.array([2.0, 1.0, 0.0, -1.0]), np.array([0.0, 0.0, 0.0, 1.0]))
    assert found["n"] == 4
    assert found["accuracy"] == 2.5 / 4  # right, right, half, wrong
    assert found["accuracy_standard_error"] == pytest.approx(np.std([1, 1, 0.5, 0], ddof=1) / 2)
    losses = [math.log1p(math.exp(-z)) for z in (2, 1, 0, -2)]
    assert found["log_loss"] == pytest.approx(sum(losses) / 4)
    assert found["margin"] == pytest.approx(0.25)
    assert found["longer_wins"] == (1 + 1 + 0.5 + 0) / 4
    assert found["length_correlation"] == pytest.approx(1.0)
    # confidence 0.881 twice, of which one is right; 0.731, right; 0.5, half right
    assert [(b["n"], b["accuracy"]) for b in found["calibration"]] == [(1, 0.5), (1, 1.0), (2, 0.5)]
    sure = [1 / (1 + math.exp(-z)) for z in (2, 1)]
    assert found["calibration_error"] == pytest.approx((2 * (sure[0] - 0.5) + (1 - sure[1]) + 0) / 4)


def test_pairs_of_a_prompt_are_one_draw() -> None:
    """Every pair four times, under its prompt, tells nothing more than once."""
    from train.reward_report import report

    rewards = np.array([2.0, 1.0, 0.0, -1.0])
    rows = rows_of((1, 5), (2, 4), (3, 2), (4, 1))
    once, often = (report(rows * n, np.tile(rewards, n), np.zeros(4 * n)) for n in (1, 4))
    for figure in ("accuracy", "accuracy_standard_error"):
        assert often[figure] == pytest.approx(once[figure])


def test_nothing_correlates_with_what_never_varies() -> None:
    from gavel.correlation import rank_correlation
    from train.reward_report import report

    assert rank_correlation(np.ones(3), np.arange(3.0)) is None
    alone = report(rows_of((1, 2)), np.array([1.0]), np.array([0.0]))
    assert (alone["length_correlation"], alone["accuracy_standard_error"]) == (None, None)


def test_calibration_of_a_model_that_knows_how_sure_it_is() -> None:
    """Labels drawn by the model's own probabilities: the error is that of chance alone."""
    from train.reward_report import calibration

    draw = np.random.default_rng(0)
    difference = draw.normal(0, 2, 200_000)
    flipped = draw.random(len(difference)) > 1 / (1 + np.exp(-difference))
    bins = calibration(np.where(flipped, -difference, difference))
    assert sum(b.n for b in bins) == len(difference)
    assert all(abs(b.confidence - b.accuracy) < 0.02 for b in bins)


# a pad token of its own


@pytest.mark.parametrize(
    ("specials", "pad", "more_ends", "expected"),
    [
        (["</s>", "<|pad|>"], "<|pad|>", (), "<|pad|>"),
        (["</s>", "<|reserved_0|>"], "</s>", (), "<|reserved_0|>"),  # pad = eos
        (["</s>", "<|user|>"], "</s>", (), "<|pad|>"),  # none to spare: a new one
        (["</s>", "<|user|>"], None, (), "<|pad|>"),
        (["</s>", "<|pad_0|>", "<|pad_1|>"], "<|pad_0|>", (2,), "<|pad_1|>"),  # pad = another end
    ],
)
def test_the_pad_token_never_ends_a_sequence(
    specials: list[str], pad: str | None, more_ends: tuple[int, ...], expected: str
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from gavel.tokenizer import HfTokenizer
    from train.models import own_pad

    backend = Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))
    backend.add_special_tokens(specials)
    made = HfTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token=pad))
    assert made.hf.decode([own_pad(made, more_ends)]) == expected == made.hf.pad_token


def test_the_pad_token_is_none_of_the_ends_that_engines_stop_at(model: str, tmp_path: Path) -> None:
    """As generation_config.json has them."""
    import shutil

    import torch

    from gavel.tokenizer import HfTokenizer
    from train.models import load_reward

    shutil.copytree(model, tmp_path / "m")
    tokenizer = HfTokenizer.load(model)
    own = tokenizer.hf.pad_token_id
    assert load_reward(model, tokenizer, torch.float32).config.pad_token_id == own
    ends = {"eos_token_id": [tokenizer.eos_id, own]}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(ends))
    loaded = load_reward(str(tmp_path / "m"), HfTokenizer.load(model), torch.float32)
    assert loaded.config.pad_token_id not in (own, tokenizer.eos_id)


# training


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_new_pad_token_is_the_same_every_time(model: str) -> None:
    """A model that is loaded twice is one model, whatever was drawn at random before."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from gavel.tokenizer import HfTokenizer
    from train.models import load_reward

    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"</s>": VOCAB - 1}
    found = []
    for _ in range(2):
        backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
        full = HfTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
        found.append(load_reward(model, full, torch.float32).model.state_dict())
    table = found[0]["model.embed_tokens.weight"]
    assert len(table) == VOCAB + 1 and torch.allclose(table[VOCAB], table[:VOCAB].mean(dim=0))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_only_layers_that_a_model_has_are_kept_whole(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FSDP divides it; some families name their vision tower's as well."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

    from gavel.tokenizer import HfTokenizer
    from train.models import load, load_reward

    monkeypatch.setattr(LlamaPreTrainedModel, "_no_split_modules", ["LlamaDecoderLayer", "VisionBlock"])
    for loaded in (
        load(model, torch.float32),
        load_reward(model, HfTokenizer.load(model), torch.float32),
    ):
        assert loaded.model._no_split_modules == ["LlamaDecoderLayer"]


def settings(model: str, **changes: Any) -> RewardConfig:
    base = {"model": model, "learning_rate": 1e-3, "batch_size": 8, "log_steps": 1, "scheduler": "constant",
            "precision": "fp32", "held_out": 0.0}  # fmt: skip
    return RewardConfig(**(base | changes))


def labelled(count: int, seed: int = 0) -> list[Any]:
    """Planted pairs with a margin and a probability."""
    return [
        replace(row, margin=0.2 * (i % 5), p_chosen=0.5 + 0.1 * (i % 5))
        for i, row in enumerate(planted(count, seed))
    ]


def rewards_of(folder: str | Path, rows: list[Any]) -> list[tuple[float, float]]:
    """Rewards (chosen, rejected), one sequence at a time: no padding, no TRL."""
    import torch
    from transformers import AutoModelForSequenceClassification

    net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in rows:
        with torch.no_grad():
            one, other = (
                net(torch.tensor([[*row.prompt_ids, *ids]])).logits.item()
                for ids in (row.chosen_ids, row.rejected_ids)
            )
        found.append((one, other))
    return found


@pytest.mark.engine
@pytest.mark.parametrize(
    ("changes", "loss_of"),
    [
        ({}, lambda u, row: math.log1p(math.exp(-u))),
        ({"margin_scale": 0.7}, lambda u, row: math.log1p(math.exp(-(u - 0.7 * row.margin)))),
        ({"soft_labels": True},
         lambda u, row: row.p_chosen * math.log1p(math.exp(-u))
         + (1 - row.p_chosen) * math.log1p(math.exp(u))),
        ({"label_smoothing": 0.2},
         lambda u, row: 0.8 * math.log1p(math.exp(-u)) + 0.2 * math.log1p(math.exp(u))),
    ],
)  # fmt: skip
def test_the_loss_is_the_hand_worked_number(
    model: str, tmp_path: Path, changes: dict[str, Any], loss_of: Any
) -> None:
    """The first step's loss from rewards computed here, with the centring term, in two micro-batches."""
    from train.reward import train_reward

    rows = labelled(6)
    first = settings(model, batch_size=6, learning_rate=1e-12)
    train_reward(first, rows, tmp_path / "start")  # the head as it is drawn
    rewards = rewards_of(tmp_path / "start", rows)
    config = settings(model, batch_size=6, micro_batch=2, center=0.3, **changes)
    train_reward(config, rows, tmp_path / "out")
    expected = [loss_of(c - r, row) + 0.3 * (c + r) ** 2 for (c, r), row in zip(rewards, rows, strict=True)]
    (step,) = steps_of(tmp_path / "out")
    assert step["loss"] == pytest.approx(sum(expected) / 6, rel=1e-4)


@pytest.mark.engine
@pytest.mark.parametrize("changes", [{"soft_labels": True, "center": 0.01}, {"margin_scale": 1.0}])
def test_micro_batches_change_nothing(model: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    from train.reward import train_reward

    rows = labelled(29)  # the last step has five pairs
    for micro in (8, 1, 4):
        train_reward(settings(model, micro_batch=micro, epochs=2, **changes), rows, tmp_path / str(micro))
    for micro in (1, 4):
        assert_one_trajectory(tmp_path / str(micro), tmp_path / "8")


@pytest.mark.engine
def test_a_planted_preference_is_learned_and_measured(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    rows = planted(160)
    summary = train_reward(
        settings(model, epochs=4, learning_rate=3e-3, held_out=0.2), rows, tmp_path / "out"
    )
    assert summary["pairs"] + summary["held_out"]["n"] == 160 and summary["held_out"]["n"] >= 31  # by prompt
    assert summary["held_out"]["accuracy"] > 0.95
    fresh = rewards_of(tmp_path / "out", planted(40, seed=5))
    assert sum(c > r for c, r in fresh) >= 38
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept["reward_mean"] == pytest.approx(summary["reward_mean"])
    assert kept["architectures"] == ["LlamaForSequenceClassification"]
    assert kept["attention_dropout"] == 0.1, "as it came"


@pytest.mark.engine
def test_shuffled_labels_teach_nothing(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    rows = [
        replace(row, chosen_ids=row.rejected_ids, rejected_ids=row.chosen_ids) if i % 2 else row
        for i, row in enumerate(planted(160))
    ]
    summary = train_reward(
        settings(model, epochs=4, learning_rate=3e-3, held_out=0.2), rows, tmp_path / "out"
    )
    assert 0.2 < summary["held_out"]["accuracy"] < 0.8


@pytest.mark.engine
def test_stopped_and_run_again_it_ends_the_same(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    config, rows = settings(model, save_steps=2), labelled(64)
    train_reward(config, rows, tmp_path / "whole")
    with interrupted_after(5):
        train_reward(config, rows, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    summary = train_reward(config, rows, tmp_path / "out")
    assert summary["steps"] == 8
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    assert train_reward(config, rows, tmp_path / "out") == summary, "finished: nothing to do"
    with pytest.raises(InputError, match="learning_rate"):
        train_reward(replace(config, learning_rate=1e-2), rows, tmp_path / "out")


@pytest.mark.engine
def test_lora_is_saved_merged(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    rows = planted(64)
    with pytest.raises(
        InputError, match="--lora-target: score is the head, which is trained whole"
    ) as caught:
        train_reward(settings(model, lora_r=8, lora_targets=("score",)), rows, tmp_path / "head")
    assert "q_proj" in str(caught.value) and "lm_head" not in str(caught.value)
    train_reward(settings(model, lora_r=8, learning_rate=2e-2, epochs=8), rows, tmp_path / "out")
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    fresh = rewards_of(tmp_path / "out", planted(40, seed=5))
    assert sum(c > r for c, r in fresh) >= 36


@pytest.mark.engine
def test_a_pair_without_a_margin_is_an_error(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    rows = [*labelled(7), replace(planted(1)[0], where="pairs.jsonl:8")]
    with pytest.raises(InputError) as caught:
        train_reward(settings(model, margin_scale=1.0), rows, tmp_path / "out")
    assert "1 of 8 pairs have no margin" in str(caught.value) and "pairs.jsonl:8" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.engine
def test_other_margins_are_another_plan_where_they_are_read(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    rows = labelled(8)
    other = [replace(row, margin=3.0) for row in rows]
    for name, scale in (("read", 1.0), ("not read", 0.0)):
        train_reward(settings(model, margin_scale=scale), rows, tmp_path / name)
    with pytest.raises(InputError, match="data: was"):
        train_reward(settings(model, margin_scale=1.0), other, tmp_path / "read")
    train_reward(settings(model), other, tmp_path / "not read")  # finished already


@pytest.mark.engine
def test_vllm_and_transformers_agree_on_what_was_trained(
    tiny: Tiny, engines: Engines, tmp_path: Path
) -> None:
    """Sequences of uneven length, one cut off; transformers alone and in a padded batch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from gavel.protocols import Rewarded, RewardRequest
    from gavel.tokenizer import HfTokenizer
    from train.data import PairRow
    from train.reward import train_reward

    tokenizer = HfTokenizer.load(tiny.lm)

    def ids(text: str, *, ended: bool = True) -> list[int]:
        return [*tokenizer.text_ids(text), *([tokenizer.eos_id] if ended else [])]

    prompt = [3, *tokenizer.text_ids("what is the capital of france?"), 2]
    rows = [
        PairRow(prompt_ids=prompt, chosen_ids=ids(f"paris {i}" * (i + 1), ended=i != 2),
                rejected_ids=ids(f"the dog {i}"), pair_id=str(i))
        for i in range(6)
    ]  # fmt: skip
    train_reward(settings(tiny.lm, epochs=5, batch_size=2), rows, tmp_path / "out")
    alone = [reward for pair in rewards_of(tmp_path / "out", rows) for reward in pair]
    asked = [[*row.prompt_ids, *done] for row in rows for done in (row.chosen_ids, row.rejected_ids)]
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    padded = AutoTokenizer.from_pretrained(tmp_path / "out").pad({"input_ids": asked}, return_tensors="pt")
    with torch.no_grad():
        batch = net(**{k: padded[k] for k in ("input_ids", "attention_mask")}).logits[:, 0].tolist()
    assert batch == pytest.approx(alone, abs=1e-4)

    engine = engines["vllm/reward"]
    try:
        engine.load_weights(str(tmp_path / "out"))
        replies = list(engine.reward([RewardRequest(key=str(i), token_ids=x) for i, x in enumerate(asked)]))
    finally:
        engine.load_weights(tiny.reward)
    served = {r.key: r.reward for r in replies if isinstance(r, Rewarded)}
    assert [served[str(i)] for i in range(len(asked))] == pytest.approx(alone, abs=1e-3)
    assert max(alone) - min(alone) > 0.1


@pytest.mark.engine
def test_pad_equal_to_eos_still_scores_the_eos(tmp_path: Path) -> None:
    """A tokenizer whose pad is its EOS and that has no token to spare: the embedding grows by one."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from train.reward import train_reward

    folder = Path(tiny_model(tmp_path / "tiny"))
    settings_file = folder / "tokenizer_config.json"
    known = json.loads(settings_file.read_text()) | {"pad_token": "</s>"}
    settings_file.write_text(json.dumps(known))
    body = (folder / "tokenizer.json").read_text().replace("<pad>", "<was>")
    (folder / "tokenizer.json").write_text(body)
    rows = planted(16)
    train_reward(settings(str(folder)), rows, tmp_path / "out")
    pad = AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert pad == config["pad_token_id"] != EOS
    alone = rewards_of(tmp_path / "out", rows[:2])
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    whole = [*rows[0].prompt_ids, *rows[0].chosen_ids]
    assert whole[-1] == EOS
    with torch.no_grad():
        scored = net(torch.tensor([[*whole, pad, pad], [*whole[:-1], pad, pad, pad]])).logits[:, 0].tolist()
    assert scored[0] == pytest.approx(alone[0][0], abs=1e-5)
    assert abs(scored[1] - scored[0]) > 1e-3, "the EOS counts"
