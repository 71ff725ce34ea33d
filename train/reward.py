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

import numpy as np
import numpy.typing as npt
import torch
from trl import RewardConfig as TrlConfig
from trl import RewardTrainer

from gavel.errors import InputError
from gavel.records import digest
from train import adapter, checks, draw, exact, group, models, running, soft
from train.config import RewardConfig
from train.data import PairRow, data_version
from train.draw import SharedPairs
from train.output import Output
from train.reward_report import report
from train.unique import Unique

Rewards = npt.NDArray[np.float64]


class ExactRewardTrainer(SharedPairs, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer on rows whose ids are ready.

    Args:
        targets: probability of each row that chosen is better, None where labels are certain.
    """

    rows: Sequence[PairRow]

    def __init__(self, config: RewardConfig, rows: Sequence[PairRow], loaded: models.Loaded,
                 targets: Sequence[float] | None = None, **settings: Any) -> None:  # fmt: skip
        self.rows, self.loaded, self._config, self._targets = rows, loaded, config, targets
        super().__init__(
            model=loaded.model, train_dataset=exact.places_of(len(rows)), data_collator=list, **settings
        )
        self.carry()
        self.together = config.draw == "prompts"

    def batch(self, rows: Sequence[PairRow]) -> dict[str, Any]:
        """Unique sequences, (C, T), and under "sides" which of them the pairs name."""
        unique = Unique.of(rows)
        input_ids, real = unique.padded(self.loaded.model.config.get_text_config().pad_token_id)
        return {"input_ids": input_ids, "attention_mask": real.long(), "sides": unique.sides}

    def micro_batch(self, places: Sequence[int]) -> dict[str, Any]:
        rows = [self.rows[place] for place in places]
        batch = self.batch(rows)
        if self._config.margin_scale:
            batch["margin"] = torch.tensor([self._config.margin_scale * (row.margin or 0.0) for row in rows])
        if self._targets is not None:
            batch["p_chosen"] = torch.tensor([self._targets[place] for place in places])
        return batch

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(1,): pairs."""
        return torch.tensor([len(batch["sides"]) // 2]).double()

    def share_of_loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, whose mean over this micro-batch is weighed by its share of the batch."""
        sides, p_chosen = batch.pop("sides"), batch.pop("p_chosen", None)

        def pairs_of(**sequences: Any) -> Any:
            """What TRL calls in place of the model: the rewards of chosen, then rejected, (2 · pairs, 1)."""
            sequences.pop("margin", None)
            outputs = model(**sequences)
            outputs.logits = outputs.logits[sides]
            return outputs

        loss, outputs = RewardTrainer.compute_loss(self, pairs_of, batch, return_outputs=True)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        if p_chosen is not None:
            loss = loss + soft.flip_term(chosen - rejected, p_chosen).mean()
        return loss * (len(chosen) / self.totals[0])

    def sizes_of(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"pairs": len(batch["sides"]) / 2}


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
    group.check_shards("a reward model", "FSDP2", "DeepSpeed")
    checks.check_names(config)
    checks.check_rows(config, rows)
    _check_margins(config, rows)
    kept, held_out = split(rows, config.held_out, config.seed)
    checks.check_batch(config, kept)
    targets = soft.targets(config, kept)
    data = data_version(rows, config.soft_labels, config.reads_margins)

    with running.begin("train reward", config, rows, data, out) as begun:
        if begun.finished is not None:
            return begun.finished
        output, precision, tokenizer = begun.output, begun.precision, begun.tokenizer

        # 1. the model that training starts from, with a head and a pad token of its own
        def make(config: RewardConfig, callbacks: list[Any]) -> ExactRewardTrainer:
            loaded = models.load_reward(
                config.model, tokenizer, begun.dtype, config.trust_remote_code, config.seed
            )
            adapter.check_targets(loaded.model, config.lora_targets, "which is trained whole")
            return ExactRewardTrainer(
                config, kept, loaded, targets.p if targets else None,
                args=_arguments(config, precision, output), processing_class=tokenizer.hf,
                callbacks=callbacks, peft_config=adapter.lora(config, "SEQ_CLS"),
            )  # fmt: skip

        # 2. train
        done = running.run(config, output, make)
        trainer, trained = done.trainer, time.monotonic()

        # 3. where its rewards lie, and what they are worth on pairs that it has not seen
        mean = float(np.mean([pair_rewards(trainer, kept)]))
        measured = report(held_out, *pair_rewards(trainer, held_out)) if held_out else None

        # 4. save the model whole, the marker last
        trainer.loaded.config.reward_mean = mean
        output.publish(lambda folder: _save(begun, trainer, folder))
        summary = {
            "model": str(out), "pairs": len(kept), "steps": done.steps, "precision": precision,
            "loss": done.loss, "metrics": done.shown("accuracy", "margin", "mean_reward"),
            "reward_mean": mean, "targets": targets.summary() if targets else None, "held_out": measured,
            "seconds": {"start": round(done.began - started, 2), "train": round(trained - done.began, 2),
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
    found = torch.zeros(2, len(rows), dtype=torch.float64)
    trainer.model.eval()
    size = trainer.args.per_device_train_batch_size
    for picked, spare in exact.dealt(draw.micro_batches(rows, range(len(rows)), size)):
        batch = trainer._prepare_inputs(trainer.batch([rows[place] for place in picked]))
        sides = batch.pop("sides")
        with torch.no_grad(), trainer.compute_loss_context_manager():
            scores = trainer.model(**batch, use_cache=False).logits[sides]  # (2 · pairs, 1)
        if not spare:
            found[:, picked] = scores.double().cpu().reshape(2, -1)
    chosen, rejected = group.summed(found).numpy()
    return chosen, rejected


def _check_margins(config: RewardConfig, rows: Sequence[PairRow]) -> None:
    missing = [row for row in rows if row.margin is None or not np.isfinite(row.margin)]
    if config.margin_scale and missing:
        where = missing[0].place
        raise InputError(f"{len(missing):,} of {len(rows):,} pairs have no margin, the first is {where}",
                         where="--margin-scale",
                         hint="Judge by a method that scores, and make the pairs again.")  # fmt: skip


def _arguments(config: RewardConfig, precision: str, output: Output) -> TrlConfig:
    return TrlConfig(
        **running.arguments(config, precision, output), center_rewards_coefficient=config.center or None
    )


def _save(begun: running.Begun, trainer: Any, folder: Path) -> None:
    """The whole model, with LoRA merged: vLLM serves no adapters of reward models."""
    begun.save(trainer, folder, merge=True)
    if group.is_main():
        begun.tokenizer.hf.save_pretrained(folder)  # with the pad token
