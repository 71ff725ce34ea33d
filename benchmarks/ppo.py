"""Iterations per second of PPO: gavel against TRL 1.12's PPOTrainer, among the last releases that had one.

    python -m venv TRL && TRL/bin/pip install trl==1.12.0 (with the torch and transformers of gavel's lock)
    python -P benchmarks/ppo.py --trl-python TRL/bin/python [--repeats 3] [--iterations 4] [--threads 1]

The same random Llama as policy, reference, critic and reward model on both sides, float32; the same prompts;
32 completions of 53 tokens, one minibatch, four epochs, an optimiser step over the whole batch. TRL at its
defaults checkpoints gradients; "TRL tuned" does not. TRL samples with transformers, gavel with vLLM; gavel
also records completions and judgments, saves and pushes the weights and probes the engine in each iteration.
Every run is a process of its own and the sides take turns; an iteration is timed from one sampling to the
next, in wall and in processor time, and the first one of a run is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Pair = tuple[float, float]  # seconds by the clock on the wall, and by the processor's
ROLLOUTS, TOKENS, EPOCHS, VOCAB = 32, 53, 4, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", help="Python of an environment with TRL 1.12.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--side", choices=["gavel", "TRL", "TRL tuned"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = gavel_side if options.side == "gavel" else trl_side
        print("SECONDS", json.dumps(side(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        save_models(options.folder)
        compare(options)


def compare(options: argparse.Namespace) -> None:
    sides = ["gavel"] + (["TRL", "TRL tuned"] if options.trl_python else [])
    spent: dict[str, list[Pair]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name in sides:
            wall, processor = zip(*one_run(name, options)[1:], strict=True)
            spent[name].append((statistics.median(wall), statistics.median(processor)))
    print(f"{ROLLOUTS} completions of {TOKENS} tokens, {EPOCHS} epochs, micro-batch {options.micro_batch}")
    for name, pairs in spent.items():
        print(f"{name:10}", end="")
        for place, clock in enumerate(("wall", "processor")):
            seconds, ours = ([pair[place] for pair in spent[side]] for side in (name, "gavel"))
            ratio = statistics.median(t / g for t, g in zip(seconds, ours, strict=True))
            print(
                f"  {clock} {statistics.median(seconds):6.2f} s an iteration ({ratio:.2f} x gavel's)", end=""
            )
        print(f"   {[round(pair[0], 2) for pair in pairs]}")


def one_run(name: str, options: argparse.Namespace) -> list[Pair]:
    """Seconds of each iteration."""
    python = sys.executable if name == "gavel" else options.trl_python
    threads = {
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    command = [python, "-P", __file__, "--side", name, "--folder", options.folder,
               "--iterations", options.iterations, "--micro-batch", options.micro_batch]  # fmt: skip
    done = subprocess.run([*map(str, command)], env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    said = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS "))
    return [(wall, processor) for wall, processor in json.loads(said.removeprefix("SECONDS "))]


def save_models(folder: Path) -> None:
    """A policy and a reward model of 3.3 M parameters with one tokenizer."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as backends
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = {w: i for i, w in enumerate(["<pad>", "</s>", *(f"w{i}" for i in range(VOCAB - 2))])}
    backend = Tokenizer(backends.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="w0"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, kind in (("policy", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        config.num_labels = 1
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def prompts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(f"w{draw.randrange(VOCAB - 2)}" for _ in range(20)) for _ in range(count)]


def now() -> Pair:
    return time.perf_counter(), time.process_time()


def between(times: list[Pair]) -> list[Pair]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(times)]


def gavel_side(options: argparse.Namespace) -> list[Pair]:
    from gavel.engines import EngineConfig, open_engine
    from gavel.records import Message, Prompt, Sampling
    from generate.stage import GenerateConfig
    from judge.judging import Single
    from judge.reward import Reward
    from rounds.live import LiveSampler, LiveScorer
    from train.config import PpoConfig
    from train.ppo import train_ppo

    started: list[Pair] = []

    class Timed(LiveSampler):
        def sample(self, iteration: int, given: Any) -> Any:
            started.append(now())
            return super().sample(iteration, given)

    policy, reward = str(options.folder / "policy"), str(options.folder / "reward")
    config = PpoConfig(
        model=policy, critic=reward, batch_size=ROLLOUTS, micro_batch=options.micro_batch, ppo_epochs=EPOCHS,
        max_tokens=TOKENS, epochs=1,
    )  # fmt: skip
    # EOS is banned, so that all are of one length
    sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS, logprobs_mode="processed")
    rows = [Prompt(id=str(i), messages=(Message("user", text),))
            for i, text in enumerate(prompts(ROLLOUTS * (options.iterations + 1)))]  # fmt: skip
    out = Path(tempfile.mkdtemp(dir=options.folder))
    with (
        open_engine(EngineConfig(model=policy, logprobs_mode="processed")) as engine,
        open_engine(EngineConfig(model=reward)) as judge,
    ):
        sampler = Timed(engine, GenerateConfig(n=1, sampling=sampling), out / "rollouts")
        train_ppo(config, rows, sampler, LiveScorer(Single(judge, Reward()), out / "rollouts"), out)
    shutil.rmtree(out)
    return between(started)


def trl_side(options: argparse.Namespace) -> list[Pair]:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    ended: list[Pair] = []

    class Timed(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ended.append(now())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append(now())

    policy, reward = str(options.folder / "policy"), str(options.folder / "reward")
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    rows = [tokenizer(text)["input_ids"] for text in prompts(ROLLOUTS * (options.iterations + 1))]
    out = Path(tempfile.mkdtemp(dir=options.folder))
    args = PPOConfig(
        output_dir=str(out), per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=ROLLOUTS // options.micro_batch, num_mini_batches=1,
        num_ppo_epochs=EPOCHS, response_length=TOKENS, total_episodes=len(rows), temperature=1.0,
        local_rollout_forward_batch_size=ROLLOUTS, num_sample_generations=0, use_cpu=True, bf16=False,
        gradient_checkpointing=options.side == "TRL", save_strategy="no", report_to="none",
        disable_tqdm=True, missing_eos_penalty=1.0,
    )  # fmt: skip
    models = [AutoModelForCausalLM.from_pretrained(policy) for _ in range(2)]
    heads = [AutoModelForSequenceClassification.from_pretrained(reward) for _ in range(2)]
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=models[0], ref_model=models[1], reward_model=heads[0],
        value_model=heads[1], train_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": rows[:ROLLOUTS]}), callbacks=[Timed()],
    )  # fmt: skip
    trainer.train()
    shutil.rmtree(out)
    return between(ended)


if __name__ == "__main__":
    main()
