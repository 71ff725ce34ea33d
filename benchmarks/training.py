"""Pairs per second of DPO: gavel's trainer against TRL's own, at its defaults and tuned.

    python -P benchmarks/training.py [--pairs 256] [--per-prompt 4] [--repeats 3] [--threads 1]

A random Llama of 3.3 M parameters, float32 on all sides, prompts of about 100 tokens and completions of 8
to 160, the same ids, batches and seed. TRL's defaults: gradient checkpointing, the reference in every step.
Tuned: no checkpointing, the reference's log-probabilities computed once before. The sides take turns; "all"
has the making of the trainer in it, and with it the reference pass; "train" is the training alone.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import datasets
import torch
from tokenizers import Tokenizer
from tokenizers import models as backends
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from train import models, running
from train.config import DpoConfig
from train.data import PairRow
from train.dpo import ExactDPOTrainer, _arguments
from train.output import Output

VOCAB, BATCH, MICRO = 2048, 16, 8
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


class OnIds(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer as it is, on ids that are ready, so that both sides train on the same tokens."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--per-prompt", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    running.quiet()
    rows = pairs(options.pairs, options.per_prompt)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        compare(folder, rows, options)


def compare(folder: str, rows: list[PairRow], options: argparse.Namespace) -> None:
    sides: dict[str, Callable[[Path], Any]] = {
        "TRL": lambda out: stock(folder, rows, out, checkpointing=True, precompute=False),
        "TRL tuned": lambda out: stock(folder, rows, out, checkpointing=False, precompute=True),
        "gavel": lambda out: exact(folder, rows, out),
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for name, make in sides.items():
            with tempfile.TemporaryDirectory() as out:
                started = time.perf_counter()
                trainer = make(Path(out))
                made = time.perf_counter()
                trainer.train()
                ended = time.perf_counter()
            spent[name].append((ended - started, ended - made))
            losses[name] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tokens = sum(len(r.prompt_ids) * 2 + len(r.chosen_ids) + len(r.rejected_ids) for r in rows) / len(rows)
    print(f"{len(rows)} pairs, {options.per_prompt} per prompt, {tokens:.0f} tokens each")
    for name, times in spent.items():
        whole, alone = (statistics.median(len(rows) / t[i] for t in times) for i in (0, 1))
        print(f"{name:10} {whole:6.2f} pairs/s all, {alone:6.2f} train", end="")
        for other in ("TRL", "TRL tuned"):
            ratio = statistics.median(o[0] / t[0] for o, t in zip(spent[other], times, strict=True))
            alone = statistics.median(o[1] / t[1] for o, t in zip(spent[other], times, strict=True))
            print(f"; {ratio:.2f} and {alone:.2f} x {other}", end="")
        print()
    apart = max(abs(a - b) for a, b in zip(losses["TRL tuned"], losses["gavel"], strict=True))
    print(f"losses of gavel and TRL tuned differ by at most {apart:.1e}")


def pairs(count: int, per_prompt: int) -> list[PairRow]:
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(5, VOCAB) for _ in range(draw.randint(low, high))]

    rows: list[PairRow] = []
    while len(rows) < count:
        prompt = ids(80, 120)
        rows += [
            PairRow(prompt_ids=prompt, chosen_ids=[*ids(8, 160), 1], rejected_ids=[*ids(8, 160), 1],
                    pair_id=str(len(rows) + i))
            for i in range(per_prompt)
        ]  # fmt: skip
    return rows[:count]


def save_model(folder: str) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=True,
    )).save_pretrained(folder)  # fmt: skip


def loaded(folder: str) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", *(f"w{i}" for i in range(2, VOCAB))]
    backend = Tokenizer(backends.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="w2"
    )


def stock(folder: str, rows: list[PairRow], out: Path, *, checkpointing: bool, precompute: bool) -> Any:
    args = TrlConfig(
        output_dir=str(out), learning_rate=1e-5, num_train_epochs=1, per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=BATCH // MICRO, bf16=False, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=checkpointing, precompute_ref_log_probs=precompute, max_length=None,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({name: [list(getattr(row, name)) for row in rows] for name in IDS})
    return _silent(OnIds(model=loaded(folder), args=args, train_dataset=data, processing_class=tokenizer()))


def exact(folder: str, rows: list[PairRow], out: Path) -> Any:
    config = DpoConfig(
        model=folder, learning_rate=1e-5, batch_size=BATCH, micro_batch=MICRO, log_steps=1, precision="fp32",
        reference="pass", optim="adamw_torch_fused",
    )  # fmt: skip
    net = loaded(folder)
    return _silent(ExactDPOTrainer(
        config, rows, "fp32", models.Loaded(net, net.config, net.generation_config),
        args=_arguments(config, "fp32", Output(out)), processing_class=tokenizer(),
    ))  # fmt: skip


def _silent(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main()
