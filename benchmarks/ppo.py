"""Iterations per second of PPO: gavel against TRL 1.12's PPOTrainer, among the last releases that had one,
and against a loop with nothing in it but PPO.

    python -m venv TRL && TRL/bin/pip install trl==1.12.0 (with the torch and transformers of gavel's lock)
    python -P benchmarks/ppo.py --trl-python TRL/bin/python [--repeats 3] [--iterations 4] [--threads 1]
    python -P benchmarks/ppo.py --trl-python TRL/bin/python --n 4 --ends   # 4 a prompt, of unlike lengths

The same random Llama as policy, reference, critic and reward model on all sides, float32; the same prompts;
32 completions of 53 tokens (with `--ends`: of at most 53, each token the last with a chance of 1 in 40), one
minibatch, four epochs, an optimiser step over the whole batch. TRL's PPOTrainer checkpoints no gradients
whatever it is told. TRL and the plain loop sample with transformers, gavel with vLLM; gavel also records
completions and judgments, saves and pushes the weights and probes the engine in each iteration. The plain
loop records nothing, checks nothing, and pads; "its update" is what forward, backward and optimiser take in
it. Every run is a process of its own and the sides take turns; an iteration is timed from one sampling to
the next, in wall and in processor time, and the first one of a run is left out.
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
ROLLOUTS, TOKENS, EPOCHS, VOCAB, PAD, EOS = 32, 53, 4, 2048, 0, 1
ENDS = 1 / 40  # how likely a token is the last, with --ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", help="Python of an environment with TRL 1.12.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--n", type=int, default=1, help="Completions of a prompt.")
    parser.add_argument("--prompt-tokens", type=int, default=20)
    parser.add_argument("--ends", action="store_true", help="Completions end by themselves.")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print("SECONDS", json.dumps(SIDES[options.side](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        save_models(options.folder, options.ends)
        compare(options)


def compare(options: argparse.Namespace) -> None:
    spent: dict[str, list[Pair]] = {}
    for _ in range(options.repeats):
        for side in ["gavel", "plain loop"] + (["TRL"] if options.trl_python else []):
            for name, times in one_run(side, options).items():
                wall, processor = zip(*times[1:], strict=True)
                found = statistics.median(wall), statistics.median(processor)
                spent.setdefault(name, []).append(found)
    print(f"{ROLLOUTS} completions of {'at most ' * options.ends}{TOKENS} tokens, {options.n} to a prompt of "
          f"{options.prompt_tokens}, {EPOCHS} epochs, micro-batch {options.micro_batch}")  # fmt: skip
    for name, pairs in spent.items():
        print(f"{name:10}", end="")
        for place, clock in enumerate(("wall", "processor")):
            seconds, ours = ([pair[place] for pair in spent[side]] for side in (name, "gavel"))
            ratio = statistics.median(t / g for t, g in zip(seconds, ours, strict=True))
            print(
                f"  {clock} {statistics.median(seconds):6.2f} s an iteration ({ratio:.2f} x gavel's)", end=""
            )
        print(f"   {[tuple(round(clock, 2) for clock in pair) for pair in pairs]}", flush=True)


def one_run(side: str, options: argparse.Namespace) -> dict[str, list[Pair]]:
    """Seconds of each iteration, by what was timed."""
    python = options.trl_python if side == "TRL" else sys.executable
    threads = {
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    command = [python, "-P", __file__, "--side", side, "--folder", options.folder, "--n", options.n,
               "--iterations", options.iterations, "--micro-batch", options.micro_batch,
               "--prompt-tokens", options.prompt_tokens]  # fmt: skip
    command += ["--ends"] * options.ends
    done = subprocess.run([*map(str, command)], env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    said = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS "))
    found: dict[str, list[Pair]] = json.loads(said.removeprefix("SECONDS "))
    return found


def save_models(folder: Path, ends: bool) -> None:
    """A policy and a reward model of 3.7 M parameters with one tokenizer."""
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
        model = kind(config)
        if ends and name == "policy":
            let_end(model)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def let_end(model: Any) -> None:
    """Makes the end of a completion about as likely as `ENDS` at every token: all embeddings get a direction
    in common, so that hidden states have it too, and the end's more of it."""
    import torch

    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        common = torch.nn.functional.normalize(torch.randn(weight.shape[1]), dim=0)
        weight += 0.3 * common
        ids = torch.randint(2, VOCAB, (16, TOKENS))
        along = float((model.model(ids).last_hidden_state @ common).mean())
        weight[EOS] += torch.tensor(VOCAB * ENDS).log() / along * common


def prompts(options: argparse.Namespace) -> list[str]:
    """Of all iterations; one more is asked for, as the first is not counted."""
    draw, count = random.Random(0), ROLLOUTS * (options.iterations + 1) // options.n
    length = options.prompt_tokens
    return [" ".join(f"w{draw.randrange(VOCAB - 2)}" for _ in range(length)) for _ in range(count)]


def now() -> Pair:
    return time.perf_counter(), time.process_time()


def between(times: list[Pair]) -> list[Pair]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(times)]


def gavel_side(options: argparse.Namespace) -> dict[str, list[Pair]]:
    from gavel.engines import EngineConfig, open_engine
    from gavel.records import Message, Prompt, Sampling
    from generate.stage import GenerateConfig
    from judge.judging import Single
    from judge.reward import Reward
    from rounds.live import LiveSampler, LiveScorer
    from train.config_ppo import PpoConfig
    from train.ppo import train_ppo

    started: list[Pair] = []

    class Timed(LiveSampler):
        def sample(self, iteration: int, given: Any) -> Any:
            started.append(now())
            return super().sample(iteration, given)

    policy, reward = str(options.folder / "policy"), str(options.folder / "reward")
    config = PpoConfig(
        model=policy, critic=reward, batch_size=ROLLOUTS, micro_batch=options.micro_batch, ppo_epochs=EPOCHS,
        max_tokens=TOKENS, epochs=1, n=options.n,
    )  # fmt: skip
    sampling = Sampling(
        max_tokens=TOKENS, min_tokens=0 if options.ends else TOKENS, logprobs_mode="processed"
    )
    rows = [Prompt(id=str(i), messages=(Message("user", text),)) for i, text in enumerate(prompts(options))]
    out = Path(tempfile.mkdtemp(dir=options.folder))
    with (
        open_engine(EngineConfig(model=policy, logprobs_mode="processed")) as engine,
        open_engine(EngineConfig(model=reward)) as judge,
    ):
        sampler = Timed(engine, GenerateConfig(n=options.n, sampling=sampling), out / "rollouts")
        train_ppo(config, rows, sampler, LiveScorer(Single(judge, Reward()), out / "rollouts"), out)
    shutil.rmtree(out)
    return {"gavel": between(started)}


def plain_side(options: argparse.Namespace) -> dict[str, list[Pair]]:
    """The loop, and its update alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = options.folder
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    critic, judge = (AutoModelForSequenceClassification.from_pretrained(folder / "reward") for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    asked = torch.tensor([tokenizer(text)["input_ids"] for text in prompts(options)])
    asked = asked.repeat_interleave(options.n, dim=0)
    before = asked.shape[1]
    optimiser = torch.optim.AdamW([*policy.parameters(), *critic.parameters()], lr=3e-6, eps=1e-5, fused=True)
    least = {} if options.ends else {"min_new_tokens": TOKENS}

    def logps_of(model: Any, ids: Any) -> Any:
        logits = model(input_ids=ids, logits_to_keep=ids.shape[1] - before + 1).logits[:, :-1]
        return logits.gather(-1, ids[:, before:, None])[..., 0] - logits.logsumexp(dim=-1)

    def values_of(ids: Any) -> Any:
        return critic.score(critic.model(input_ids=ids).last_hidden_state[:, before - 1 : -1])[..., 0]

    started, updates = [], []
    for begin in range(0, len(asked), ROLLOUTS):
        started.append(now())
        with torch.no_grad():
            ids = policy.generate(
                asked[begin : begin + ROLLOUTS], do_sample=True, top_k=0, max_new_tokens=TOKENS, **least
            )
            real = ids[:, before:] != PAD
            old, ref, old_values = logps_of(policy, ids), logps_of(reference, ids), values_of(ids)
            rewards = torch.where(real, -0.05 * (old - ref), 0.0)
            rows, last = torch.arange(len(ids)), real.sum(1) - 1
            rewards[rows, last] += judge.score(judge.model(input_ids=ids).last_hidden_state)[
                rows, before + last, 0
            ]
            running, advantages = torch.zeros(len(ids)), torch.zeros_like(rewards)
            for t in reversed(range(rewards.shape[1])):
                following = old_values[:, t + 1] * real[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
                running = (rewards[:, t] + following - old_values[:, t] + 0.95 * running) * real[:, t]
                advantages[:, t] = running
            returns = advantages + old_values
            advantages = (advantages - advantages[real].mean()) / advantages[real].std()
        updating = now()
        for _ in range(EPOCHS):
            for part in torch.randperm(len(ids)).split(options.micro_batch):
                keep = real[part]
                ratio = (logps_of(policy, ids[part]) - old[part])[keep].exp()
                value, was, goal = (v[keep] for v in (values_of(ids[part]), old_values[part], returns[part]))
                gain = advantages[part][keep]
                loss = torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.2)).sum()
                near = was + (value - was).clamp(-0.2, 0.2)
                loss = loss + 0.05 * torch.maximum((value - goal) ** 2, (near - goal) ** 2).sum()
                (loss / real.sum()).backward()
            for model in (policy, critic):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        updates += between([updating, now()])
    return {"plain loop": between([*started, now()])[:-1], "its update": updates[:-1]}


def trl_side(options: argparse.Namespace) -> dict[str, list[Pair]]:
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
    rows = [tokenizer(text)["input_ids"] for text in prompts(options) for _ in range(options.n)]
    out = Path(tempfile.mkdtemp(dir=options.folder))
    args = PPOConfig(
        output_dir=str(out), per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=ROLLOUTS // options.micro_batch, num_mini_batches=1,
        num_ppo_epochs=EPOCHS, response_length=TOKENS, total_episodes=len(rows), temperature=1.0,
        local_rollout_forward_batch_size=ROLLOUTS, num_sample_generations=0, use_cpu=True, bf16=False,
        gradient_checkpointing=False, stop_token="eos" if options.ends else None, save_strategy="no",
        report_to="none", disable_tqdm=True, missing_eos_penalty=1.0,
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
    return {"TRL": between(ended)}


SIDES = {"gavel": gavel_side, "plain loop": plain_side, "TRL": trl_side}


if __name__ == "__main__":
    main()
