"""What tests of the trainers share: a model of words, planted preferences, and what came of a training."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

PAD, BOS, EOS, USER, ASSISTANT = range(5)
VOCAB = 40
CONTEXT = 64


def tiny_model(folder: Path, seed: int = 0) -> str:
    """A random Llama of two layers with a word-level tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<user>", "<assistant>"] + [f"w{i}" for i in range(VOCAB - 5)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w0",
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "<s> {% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS, attention_dropout=0.1, initializer_range=0.3,
    ))  # fmt: skip
    model.generation_config.eos_token_id = [EOS, ASSISTANT]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


#: Models whose attention can be replaced, and whose other layers run along the row.
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2,
                 "moe_intermediate_size": 32, "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8,
                         "mamba_n_groups": 1, "mamba_d_state": 8, "num_local_experts": 4,
                         "num_experts_per_tok": 2, "shared_intermediate_size": 32,
                         "position_embedding_type": "rope"},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3,
                        "block_types": ("recurrent", "recurrent", "attention")},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4,
                "block_size": 16},
}  # fmt: skip


def small(kind: str, **fields: Any) -> Any:
    """A random model of an architecture."""
    import torch
    import transformers

    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
             "head_dim": 8, "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": EOS,
             "initializer_range": 0.3}  # fmt: skip
    if kind == "gpt2":
        sizes = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
                 "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**(sizes | fields))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def planted(count: int, seed: int = 0) -> list[Any]:
    """Pairs of uneven length in which w5 (id 10) is preferred to w6 (id 11)."""
    import random

    from train.data import PairRow

    draw = random.Random(seed)
    rows = []
    for i in range(count):
        tail = [draw.randrange(12, VOCAB) for _ in range(draw.randrange(0, 6))]
        other = [draw.randrange(12, VOCAB) for _ in range(draw.randrange(0, 6))]
        asked = [draw.randrange(12, VOCAB) for _ in range(draw.randrange(1, 9))]
        rows.append(PairRow(
            prompt_ids=[BOS, USER, *asked, ASSISTANT],
            chosen_ids=[10, *tail, EOS], rejected_ids=[11, *other, EOS], pair_id=str(i), where=f"f:{i + 1}",
        ))  # fmt: skip
    return rows


def settings(model: str, **changes: Any) -> Any:
    from train.config_dpo import DpoConfig

    base = {"model": model, "learning_rate": 1e-3, "loss": {"sigmoid": 1.0, "sft": 1.0}, "batch_size": 8,
            "log_steps": 1, "scheduler": "constant", "precision": "fp32"}  # fmt: skip
    return DpoConfig(**(base | changes))


def logps(model: str, rows: list[Any]) -> list[tuple[float, float]]:
    """Summed log-probabilities (chosen, rejected), one sequence at a time: no padding, no TRL."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in rows:
        sums = []
        for ids in (row.chosen_ids, row.rejected_ids):
            whole = torch.tensor([[*row.prompt_ids, *ids]])
            with torch.no_grad():
                table = net(whole).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
            picked = table.gather(1, whole[0, 1:, None])[:, 0]
            sums.append(picked[len(row.prompt_ids) - 1 :].sum().item())
        found.append((sums[0], sums[1]))
    return found


def with_reference(model: str, rows: list[Any], shift: float = 0.0) -> list[Any]:
    return [
        replace(row, ref_chosen_logp=c + shift, ref_rejected_logp=r + shift)
        for row, (c, r) in zip(rows, logps(model, rows), strict=True)
    ]


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights_of(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(out.glob("*.safetensors")))


def same_weights(a: Path, b: Path, atol: float = 0.0) -> bool:
    import torch

    left, right = weights_of(a), weights_of(b)
    return left.keys() == right.keys() and all(
        torch.allclose(left[k], right[k], rtol=0, atol=atol) for k in left
    )


def one_outcome(a: Path, b: Path) -> bool:
    """Whether two trainings by the learning rate 1e-3 came to the same, up to the order of sums. Where the
    terms of a gradient cancel, Adam makes a part of a step of what the order leaves: no weight is further off
    than a tenth of one, and nearly all are equal."""
    left, right = weights_of(a), weights_of(b)
    return same_weights(a, b, atol=1e-4) and all(
        (left[name] - right[name]).abs().mean() < 1e-6 for name in left
    )


def assert_adapter_and_merged_agree(model: str, adapter: Path, merged: Path) -> None:
    """An adapter, the same beside the merged model, and that model say one thing, and not the base's."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[BOS, USER, 12, ASSISTANT, 10, 13]])
    base, whole = (AutoModelForCausalLM.from_pretrained(m)(ids).logits for m in (model, merged))
    adapted, beside = (
        AutoPeftModelForCausalLM.from_pretrained(p)(ids).logits for p in (adapter, merged / "adapter")
    )
    assert (adapted - base).abs().max() > 0.01
    assert torch.allclose(adapted, whole, atol=1e-4) and torch.allclose(adapted, beside, atol=1e-4)


@contextlib.contextmanager
def interrupted_after(step: int) -> Iterator[None]:
    """Within, a training is stopped as by Ctrl-C once a step is logged."""
    from train.callbacks import Metrics

    original = Metrics.on_log

    def dies(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        original(self, args, state, *rest, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "on_log", dies)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_one_trajectory(one: Path, other: Path) -> None:
    """Two trainings by the learning rate 1e-3 took the same steps, up to the order of sums."""
    steps, expected = steps_of(one), steps_of(other)
    assert [s["loss"] for s in steps] == pytest.approx([s["loss"] for s in expected], rel=1e-5)
    assert [s["grad_norm"] for s in steps] == pytest.approx([s["grad_norm"] for s in expected], rel=1e-4)
    assert one_outcome(one, other)


def trainer_of(config: Any, rows: list[Any], out: Path, targets: list[float] | None = None) -> Any:
    """A trainer that has not begun."""
    import torch

    from gavel.tokenizer import HfTokenizer
    from train import adapter, models
    from train.dpo import ExactDPOTrainer, _arguments
    from train.output import Output

    return ExactDPOTrainer(
        config, rows, "fp32", models.load(config.model, torch.float32), targets,
        args=_arguments(config, "fp32", Output(out)), processing_class=HfTokenizer.load(config.model).hf,
        peft_config=adapter.lora(config),
    )  # fmt: skip


def gradients(trainer: Any, places: list[int]) -> dict[str, Any]:
    """Of a step on these rows, in as many micro-batches as it takes."""
    size = trainer.args.train_batch_size
    drawn = [places[at : at + size] for at in range(0, len(places), size)]
    batches, _ = trainer.get_batch_samples(iter(drawn), len(drawn), trainer.args.device)
    trainer.model.zero_grad()
    for batch in batches:
        if len(batch["row"]):
            trainer.compute_loss(trainer.model, batch).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_pad_slots_do_not_count(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the slots of no token, no gradient changes."""
    import torch

    from train import forest, unique

    count = len(trainer.rows)
    plain = gradients(trainer, list(range(count)))
    assert any(g.abs().max() > 1e-3 for g in plain.values())
    # the embedding of the pad token is read nowhere that counts
    assert plain["model.embed_tokens.weight"][PAD].abs().max() == 0

    flat, pad = forest._flat, unique.pad_sequence

    def garbage(states: Any) -> Any:
        rows = flat(states)
        return torch.cat([rows[:-1], torch.randn_like(rows[-1:])])

    monkeypatch.setattr(forest, "_flat", garbage)
    monkeypatch.setattr(unique, "pad_sequence", lambda ids, **how: pad(ids, **how | {"padding_value": 33}))
    filled = gradients(trainer, list(range(count)))
    for name, gradient in plain.items():
        assert torch.equal(gradient, filled[name]), name
