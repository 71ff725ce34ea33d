"""Reward models on TRL's RewardTrainer, token-exact: one score per sequence, learned from pairs.

The objective of one optimiser step over a batch of B pairs (Bradley-Terry; Stiennon et al. 2020, arXiv
2009.01325, eq. 1), with u = r_chosen − r_rejected − margin_scale · margin and a target p for each pair:

    1/B · Σ_pairs [ −p · log σ(u) − (1 − p) · log σ(−u) + center · (r_chosen + r_rejected)² ].

TRL takes the means over each micro-batch and knows certain labels only; here the batch counts, and as
log σ(−u) = log σ(u) − u the target adds (1 − p) · u. A sequence is prompt and completion as token ids,
the EOS where it was sampled, and is scored at its last token, as vLLM does.

The head has no bias, neither in transformers nor in vLLM, so rewards have an origin of their own: their
mean over the training data is kept as `reward_mean` in config.json, for whoever needs them around 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from trl import RewardConfig as TrlConfig
from trl import RewardTrainer

from gavel.command import say
from gavel.errors import InputError
from gavel.records import digest
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version
from train import models, running, soft
from train.config import RewardConfig
from train.data import PairRow, data_version
from train.output import Output
from train.reward_report import report

Rewards = npt.NDArray[np.float64]


class ExactRewardTrainer(running.ExactRows, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer on rows whose ids are ready.

    Args:
        targets: probability of each row that chosen is better, None where labels are certain.
    """

    def __init__(self, config: RewardConfig, rows: Sequence[PairRow], loaded: models.Loaded,
                 targets: Sequence[float] | None = None, **settings: Any) -> None:  # fmt: skip
        self.rows, self.loaded = rows, loaded
        super().__init__(model=loaded.model, train_dataset=_dataset(config, rows, targets), **settings)
        self.carry()
        self._pairs = 1.0

    def get_batch_samples(self, *args: Any) -> Any:
        """Counts what the mean over the whole batch is divided by."""
        batches, items = super().get_batch_samples(*args)
        if batches:
            count = torch.tensor(float(sum(len(batch["input_ids"]) // 2 for batch in batches)))
            # gradients are averaged over processes, the objective is a sum over their shares
            counts = self.accelerator.gather(count.to(self.accelerator.device)[None])
            self._pairs = counts.sum().item() / self.accelerator.num_processes
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, whose mean over this micro-batch is weighed by its share of the batch."""
        given = dict(inputs)
        places, p_chosen = given.pop(running.ROW), given.pop(soft.COLUMN, None)
        loss, outputs = super().compute_loss(model, given, return_outputs=True)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        if p_chosen is not None:
            loss = loss + soft.flip_term(chosen - rejected, p_chosen).mean()
        return self.finite(loss * (len(chosen) / self._pairs), places)


def train_reward(config: RewardConfig, rows: Sequence[PairRow], out: str | Path) -> dict[str, Any]:
    """Trains a reward model from `config.model` on preference pairs and saves it to `out`.

    The same call on the same `out` resumes, as `train.dpo.train_dpo` does.

    Returns:
        The summary that gavel.json keeps: model, pairs, steps, loss, the last metrics, the mean reward, and
        what `train.reward_report.report` says of the held-out pairs (None without any).

    Raises:
        InputError: as `train_dpo`; also a pair without the margin or probability that is asked for, or too
            few prompts to hold some out.
        CheckFailed: a loss that is not a number.
    """
    started = time.monotonic()
    running.quiet()
    running.check_names(config)
    _check_margins(config, rows)
    kept, held_out = split(rows, config.held_out, config.seed)
    running.check_rows(config, kept)
    running.check_lengths(config, held_out)
    targets = soft.targets(config, kept)
    precision = running.resolve(config.precision)
    plan = {"stage": "train reward", "config": config.shaping() | {"precision": precision},
            "weights": weights_version(config.model), "data": data_version(rows, config.soft_labels),
            "pairs": len(rows)}  # fmt: skip

    with Output.open(out) as output:
        if (finished := output.begin(plan)) is not None:
            say(f"{out} is finished already; nothing to do")
            return finished

        # 1. the model that training starts from, with a head and a pad token of its own
        tokenizer = HfTokenizer.load(config.model, trust_remote_code=config.trust_remote_code)
        dtype = torch.bfloat16 if config.lora_r and precision == "bf16" else torch.float32

        def make(config: RewardConfig, callbacks: list[Any]) -> ExactRewardTrainer:
            loaded = models.load_reward(config.model, tokenizer, dtype, config.trust_remote_code, config.seed)
            models.check_targets(loaded.model, config.lora_targets)
            return ExactRewardTrainer(
                config, kept, loaded, targets.p if targets else None,
                args=_arguments(config, precision, output), processing_class=tokenizer.hf,
                callbacks=callbacks, peft_config=models.lora(config, "SEQ_CLS"),
            )  # fmt: skip

        # 2. train
        done = running.run(config, output, make)
        trainer, trained = done.trainer, time.monotonic()

        # 3. where its rewards lie, and what they are worth on pairs that it has not seen
        mean = float(np.mean([pair_rewards(trainer, kept)]))
        measured = report(held_out, *pair_rewards(trainer, held_out)) if held_out else None

        # 4. save the model whole, the marker last
        trainer.loaded.config.reward_mean = mean
        output.publish(lambda folder: _save(config, trainer, tokenizer.hf, precision, folder))
        summary = {
            "model": str(out), "pairs": len(kept), "steps": done.result.global_step, "precision": precision,
            "loss": done.result.training_loss, "metrics": _closing(done.metrics), "reward_mean": mean,
            "targets": targets.summary() if targets else None, "held_out": measured,
            "seconds": {"start": round(done.begun - started, 2), "train": round(trained - done.begun, 2),
                        "measure and save": round(time.monotonic() - trained, 2)},
        }  # fmt: skip
        output.finish(summary)
        return summary


def split(rows: Sequence[PairRow], held_out: float, seed: int) -> tuple[list[PairRow], list[PairRow]]:
    """The pairs to train on, and those of the prompts that are held out: about that share of the prompts, at
    least one, drawn by a hash of prompt and seed.

    Raises InputError where nothing would be left to train on.
    """
    if not held_out:
        return list(rows), []
    by_prompt: dict[tuple[int, ...], list[PairRow]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.prompt_ids), []).append(row)
    drawn = sorted(by_prompt, key=lambda ids: digest("held out", seed, ids))
    count = max(1, round(held_out * len(drawn)))
    if count == len(drawn):
        raise InputError(f"{len(drawn):,} prompts are too few to hold any out", where="--held-out",
                         hint="Train on all pairs with --held-out 0.")  # fmt: skip
    aside = set(drawn[:count])
    sides: tuple[list[PairRow], list[PairRow]] = ([], [])
    for row in rows:
        sides[tuple(row.prompt_ids) in aside].append(row)
    return sides


def pair_rewards(trainer: Any, rows: Sequence[PairRow]) -> tuple[Rewards, Rewards]:
    """The rewards of chosen and of rejected by the trainer's model, each of shape (rows,)."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)  # batches pad little
    size = trainer.args.per_device_train_batch_size
    found = np.empty((2, len(rows)))
    trainer.model.eval()
    for start in range(0, len(rows), size):
        picked = order[start : start + size]
        batch = trainer._prepare_inputs(trainer.data_collator([_example(rows[i]) for i in picked]))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            scores = trainer.model(**batch, use_cache=False).logits  # (2 · size, 1)
        found[:, picked] = scores.double().cpu().numpy().reshape(2, -1)
    return found[0], found[1]


def _check_margins(config: RewardConfig, rows: Sequence[PairRow]) -> None:
    missing = [row for row in rows if row.margin is None or not np.isfinite(row.margin)]
    if config.margin_scale and missing:
        where = missing[0].where or f"pair {missing[0].pair_id}"
        raise InputError(f"{len(missing):,} of {len(rows):,} pairs have no margin, the first is {where}",
                         where="--margin-scale",
                         hint="Judge by a method that scores, and make the pairs again.")  # fmt: skip


def _arguments(config: RewardConfig, precision: str, output: Output) -> TrlConfig:
    return TrlConfig(
        **running.arguments(config, precision, output), center_rewards_coefficient=config.center or None
    )


def _save(config: RewardConfig, trainer: Any, tokenizer: Any, precision: str,
          folder: Path) -> None:  # fmt: skip
    """The whole model at `folder`, with LoRA merged and the adapter beside it: vLLM serves no adapters of
    reward models."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora_r:
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    models.save(trainer.loaded, model, config.model, tokenizer, dtype, folder)
    tokenizer.save_pretrained(folder)  # with the pad token


def _dataset(
    config: RewardConfig, rows: Sequence[PairRow], targets: Sequence[float] | None
) -> datasets.Dataset:
    columns: dict[str, Any] = {name: [] for name in _example(rows[0])} | {running.ROW: list(range(len(rows)))}
    for row in rows:
        for name, ids in _example(row).items():
            columns[name].append(np.asarray(ids, dtype=np.int32))
    if config.margin_scale:
        columns["margin"] = [config.margin_scale * (row.margin or 0.0) for row in rows]
    if targets is not None:
        columns[soft.COLUMN] = list(targets)
    return datasets.Dataset.from_dict(columns)


def _example(row: PairRow) -> dict[str, list[int]]:
    return {"chosen_ids": [*row.prompt_ids, *row.chosen_ids],
            "rejected_ids": [*row.prompt_ids, *row.rejected_ids]}  # fmt: skip


def _closing(last: dict[str, Any]) -> dict[str, Any]:
    """Of the last log step, what a person wants to read."""
    return {key: last[key] for key in ("accuracy", "margin", "mean_reward") if key in last}
