"""Pairs per second and peak memory of DPO: gavel's trainer against TRL's own, at its defaults and tuned.

    python -P benchmarks/training.py [--pairs 112] [--cases one four all] [--repeats 3] [--threads 1] [--bf16]
    python -P benchmarks/training.py --size 500m --bf16 --attention flash_attention_2    # on a GPU

A random Llama of 3.3 M parameters (or 527 M), one precision on all sides (float32 unless asked otherwise),
prompts of about 100 tokens and completions of 8 to 160, the same ids and seed. Cases: one pair a prompt,
four (of eight completions), all 28 of eight completions. TRL's defaults: gradient checkpointing, the
reference in every step. Tuned: no checkpointing, the reference's log-probabilities computed once before.

Seconds are processor time, as a machine may be shared; with one thread that is what the clock says on a
free one. On a GPU they are those of the clock, with nothing left to be done. The sides take turns. "all"
has the making of the trainer in it, and with it the reference pass; "train" is the training alone.
Gradients are those of one batch of 16 pairs, a mean over its pairs on both sides. Memory is measured in a
process a side: the most that training held beyond what it held at its first step; on a GPU the most that
torch allocated there in all.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import torch
from tokenizers import Tokenizer
from tokenizers import models as backends
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from train import models, running
from train.config_dpo import DpoConfig
from train.data import PairRow
from train.dpo import ExactDPOTrainer, _arguments
from train.exact import ROW
from train.output import Output

VOCAB, BATCH, MICRO = 2048, 16, 8
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
#: name → vocabulary, hidden size, that of the feed-forward layers, layers, heads, heads of keys and values
SIZES = {"small": (VOCAB, 256, 512, 4, 8, 4), "500m": (32_000, 1280, 3456, 28, 20, 5)}
CASES = {"one": 1, "four": 4, "all": 28}  # pairs a prompt
TIMED = ("TRL", "TRL tuned", "gavel")
Side = Callable[[Path], Any]


class OnIds(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer as it is, on ids that are ready, so that both sides train on the same tokens."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=112)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--attention", help="as transformers names it; by default its own choice")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # a side, in a process of its own
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    running.quiet()
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, SIZES[options.size])
        for case in options.cases:
            rows = pairs(options.pairs, CASES[case])
            sides = sides_of(folder, rows, "bf16" if options.bf16 else "fp32", options.attention)
            if options.memory_of:
                print(held(sides[options.memory_of]))
                continue
            tokens = sum(2 * len(r.prompt_ids) + len(r.chosen_ids) + len(r.rejected_ids) for r in rows)
            print(f"{len(rows)} pairs, {CASES[case]} per prompt, {tokens / len(rows):.0f} tokens each")
            compare({name: sides[name] for name in TIMED}, len(rows), tokens, options.repeats)
            if not options.bf16:
                for other in ("TRL", "TRL tuned"):
                    far = apart(sides[other], sides["gavel"])
                    print(f"gradients of gavel and {other} differ by at most {far:.1e} of the largest")
            for name in sides:
                print(f"{name:18} {memory(name, case, options):5.0f} MB")


def sides_of(folder: str, rows: list[PairRow], precision: str, attention: str | None) -> dict[str, Side]:
    theirs, ours = partial(stock, folder, attention), partial(exact, folder, attention)
    return {
        "TRL": lambda out: theirs(rows, out, precision, checkpointing=True, precompute=False),
        "TRL tuned": lambda out: theirs(rows, out, precision, checkpointing=False, precompute=True),
        "gavel": lambda out: ours(rows, out, precision, checkpointing=False),
        "gavel checkpointed": lambda out: ours(rows, out, precision, checkpointing=True),
    }


def clock() -> float:
    """Seconds: of the processor, or with a GPU of the clock once that is done."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compare(sides: dict[str, Side], count: int, tokens: int, repeats: int) -> None:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, make in sides.items():
            with tempfile.TemporaryDirectory() as out:
                started = clock()
                trainer = make(Path(out))
                made = clock()
                trainer.train()
                ended = clock()
                del trainer
            spent[name].append((ended - started, ended - made))
    for name, times in spent.items():
        whole, alone = (statistics.median(count / t[i] for t in times) for i in (0, 1))
        speed = alone * tokens / count
        print(f"{name:18} {whole:6.2f} pairs/s all, {alone:6.2f} train ({speed:,.0f} tokens/s)", end="")
        for other in ("TRL", "TRL tuned"):
            ratio = statistics.median(o[0] / t[0] for o, t in zip(spent[other], times, strict=True))
            alone = statistics.median(o[1] / t[1] for o, t in zip(spent[other], times, strict=True))
            print(f"; {ratio:.2f} and {alone:.2f} x {other}", end="")
        print(flush=True)


def apart(stock: Side, exact: Side) -> float:
    """How far the gradients of one batch are apart, as a part of the largest."""
    found = []
    with tempfile.TemporaryDirectory() as out:
        theirs, ours = stock(Path(out)), exact(Path(out))
    theirs.compute_loss(
        theirs.model, theirs.data_collator([theirs.train_dataset[i] for i in range(BATCH)])
    ).backward()
    drawn = [list(range(at, at + MICRO)) for at in range(0, BATCH, MICRO)]
    batches, _ = ours.get_batch_samples(iter(drawn), len(drawn), ours.args.device)
    for batch in batches:
        if len(batch[ROW]):
            ours.compute_loss(ours.model, batch).backward()
    for p, q in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        found.append((float((p.grad - q.grad).abs().max()), float(p.grad.abs().max())))
    return max(a for a, _ in found) / max(b for _, b in found)


def memory(side: str, case: str, options: argparse.Namespace) -> float:
    """MB that training held at most, beyond what was held when it began."""
    command = [sys.executable, "-P", __file__, "--memory-of", side, "--cases", case,
               "--pairs", str(options.pairs), "--threads", str(options.threads),
               "--size", options.size, *(["--attention", options.attention] if options.attention else []),
               *(["--bf16"] if options.bf16 else [])]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def held(make: Side) -> float:
    with tempfile.TemporaryDirectory() as out:
        trainer = make(Path(out))
        if torch.cuda.is_available():
            trainer.train()
            return torch.cuda.max_memory_allocated() / 2**20
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        trainer.train()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    """kB, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def pairs(count: int, per_prompt: int) -> list[PairRow]:
    """So many pairs of each prompt: of two completions each, or all there are of eight."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(5, VOCAB) for _ in range(draw.randint(low, high))]

    rows: list[PairRow] = []
    while len(rows) < count:
        prompt = ids(80, 120)
        answers = [[*ids(8, 160), 1] for _ in range(min(2 * per_prompt, 8))]
        disjoint = zip(answers[::2], answers[1::2], strict=True)
        both = itertools.combinations(answers, 2) if per_prompt == 28 else disjoint
        rows += [
            PairRow(prompt_ids=prompt, chosen_ids=a, rejected_ids=b, pair_id=str(len(rows) + i))
            for i, (a, b) in enumerate(both)
        ]
    return rows[:count]


def save_model(folder: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    vocabulary, hidden, inner, layers, heads, pairs_of_heads = size
    LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=pairs_of_heads, max_position_embeddings=1024,
        pad_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    )).save_pretrained(folder)  # fmt: skip


def loaded(folder: str, attention: str | None) -> Any:
    more = {"attn_implementation": attention} if attention else {}
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", *(f"w{i}" for i in range(2, VOCAB))]
    backend = Tokenizer(backends.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="w2"
    )


def stock(
    folder: str, attention: str | None, rows: list[PairRow], out: Path, precision: str, *,
    checkpointing: bool, precompute: bool,
) -> Any:  # fmt: skip
    args = TrlConfig(
        output_dir=str(out), learning_rate=1e-5, num_train_epochs=1, per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=BATCH // MICRO, bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(), gradient_checkpointing=checkpointing,
        precompute_ref_log_probs=precompute, max_length=None, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({name: [list(getattr(row, name)) for row in rows] for name in IDS})
    net = loaded(folder, attention)
    return _silent(OnIds(model=net, args=args, train_dataset=data, processing_class=tokenizer()))


def exact(
    folder: str, attention: str | None, rows: list[PairRow], out: Path, precision: str, *, checkpointing: bool
) -> Any:
    config = DpoConfig(
        model=folder, learning_rate=1e-5, batch_size=BATCH, micro_batch=MICRO, log_steps=1,
        precision=precision, reference="pass", gradient_checkpointing=checkpointing,
    )  # fmt: skip
    net = loaded(folder, attention)
    return _silent(ExactDPOTrainer(
        config, rows, precision, models.Loaded(net, net.config, net.generation_config),
        args=_arguments(config, precision, Output(out)), processing_class=tokenizer(),
    ))  # fmt: skip


def _silent(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main()
