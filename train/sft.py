"""Supervised fine-tuning on TRL's SFTTrainer, token-exact: texts, instructions, conversations, best samples.

The objective of one optimiser step is the mean over the trained tokens of the whole batch,

    −1/T · Σ_rows Σ_t log π(id_t | what stands before it in its part of the row),

T being the trained tokens of all its rows, whatever the micro-batches. What differs from TRL: rows come as
ids with the positions that are trained, and nothing is truncated; documents that are packed into one row do
not see one another (their position ids start anew, from which transformers makes the mask), and a model in
which they do is refused (`train.apart`). Left out: evaluation during training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from gavel.command import say
from gavel.errors import InputError
from gavel.records import digest
from train import adapter, checks, exact, group, models, running
from train.chat_template import Prepared, prepare
from train.config import SftConfig
from train.output import Output
from train.sft_data import IGNORED, SftRow, rows_version
from train.unique import TOLERANCE, packing_leaks

_SHOWN = ("mean_token_accuracy", "entropy")


class ExactSFTTrainer(exact.ExactRows, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on rows whose ids are ready. Raises InputError for packed documents that a model does not
    keep apart.

    Args:
        precision: "fp32" or "bf16".
    """

    rows: Sequence[SftRow]

    def __init__(
        self, rows: Sequence[SftRow], precision: str, loaded: models.Loaded, **settings: Any
    ) -> None:
        self._precision = precision
        self.rows, self.loaded, self._packed = rows, loaded, is_packed(rows)
        one = datasets.Dataset.from_list([_example(rows[0], self._packed)])  # TRL looks at its columns
        super().__init__(model=loaded.model, train_dataset=one, **settings)
        collator: Any = self.data_collator
        collator.return_position_ids = self._packed
        self.carry()
        self._aux_coef: float = self.router_aux_loss_coef
        if not self.divided_by:
            self.look_at_model()

    def look_at_model(self) -> None:
        """Whether it keeps packed documents apart."""
        if self._packed:
            model = self.accelerator.unwrap_model(self.model)
            if (why := packing_leaks(model, TOLERANCE[self._precision])) is not None:
                raise InputError(f"in a packed row of this model {why}", where="--pack",
                                 hint="Give each text a row of its own: --no-pack.")  # fmt: skip

    def micro_batch(self, places: Sequence[int]) -> dict[str, Any]:
        batch: dict[str, Any] = self.data_collator(
            [_example(self.rows[place], self._packed) for place in places]
        )
        if "position_ids" in batch:  # beside a mask they would not keep documents apart
            del batch["attention_mask"]
        return batch

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(1,): trained tokens."""
        return (batch["labels"][:, 1:] != IGNORED).sum()[None].double()

    def share_of_loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, a sum over this micro-batch, divided by the trained tokens of the batch."""
        if self.aux_loss_enabled:  # TRL takes the mean of this term over the micro-batches
            share = self.counts(batch).item() / self.totals[0]
            self.router_aux_loss_coef: float = (
                self._aux_coef * share * self.current_gradient_accumulation_steps
            )
        loss: torch.Tensor = SFTTrainer.compute_loss(self, model, batch, num_items_in_batch=self.totals[0])
        return loss

    def sizes_of(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"tokens": self.counts(batch).item()}


def is_packed(rows: Sequence[SftRow]) -> bool:
    """Whether any row holds several documents."""
    return any(len(row.starts) > 1 for row in rows)


def train_sft(
    config: SftConfig, rows: Sequence[SftRow], out: str | Path, prepared: Prepared | None = None
) -> dict[str, Any]:
    """Trains `config.model` on demonstrations and saves the model to `out`, with its chat template and with
    what ends an answer.

    The same call on the same `out` resumes, as `train.dpo.train_dpo` does.

    Args:
        prepared: the tokenizer that `chat_template.prepare` made for the rows; made again where it is None.

    Returns:
        The summary that gavel.json keeps: model, rows, tokens and trained tokens of one epoch, steps, loss,
        the last metrics, seconds.

    Raises:
        InputError: a row longer than the model's context, fewer rows than a batch, a model or template that
            cannot be used, or an `out` that holds the work of other settings or data.
        CheckFailed: a loss that is not a number.
    """
    started = time.monotonic()
    running.quiet()
    group.check_shards("SFT", "FSDP2", "DeepSpeed")
    checks.check_names(config)
    checks.check_rows(config, rows)
    checks.check_batch(config, rows)
    prepared = prepared or prepare(config)
    data = digest(rows_version(rows), prepared.tokenizer.version)
    tokens, trained_tokens = sum(row.length for row in rows), sum(row.trained for row in rows)

    with running.begin("train sft", config, rows, data, out) as begun:
        if begun.finished is not None:
            return begun.finished
        output, precision = begun.output, begun.precision
        say(f"{len(rows):,} rows of {tokens:,} tokens, {trained_tokens:,} of them trained")

        # 1. the model that training starts from, with a place for new tokens
        def make(config: SftConfig, callbacks: list[Any]) -> ExactSFTTrainer:
            loaded = models.load(config.model, begun.dtype, config.trust_remote_code)
            adapter.check_targets(loaded.model, config.lora_targets)
            if prepared.added:
                models.grow(loaded, prepared.added)
            return ExactSFTTrainer(
                rows, precision, loaded, args=_arguments(config, precision, output),
                processing_class=copy.deepcopy(prepared.tokenizer.hf),  # TRL gives it a pad token
                callbacks=callbacks, peft_config=adapter.lora(config),
            )  # fmt: skip

        # 2. train
        done = running.run(config, output, make)
        trained = time.monotonic()

        # 3. save the model whole, the marker last
        def save(folder: Path) -> None:
            begun.save(done.trainer, folder, merge=config.merge)
            if not rows[0].is_text and group.is_main():
                prepared.save(folder)

        output.publish(save)
        summary = {
            "model": str(out), "rows": len(rows), "tokens": tokens, "trained_tokens": trained_tokens,
            "steps": done.steps, "precision": precision,
            "loss": done.loss, "metrics": done.shown(*_SHOWN),
            "seconds": {"start": round(done.began - started, 2), "train": round(trained - done.began, 2),
                        "save": round(time.monotonic() - trained, 2)},
        }  # fmt: skip
        output.finish(summary)
        return summary


def _arguments(config: SftConfig, precision: str, output: Output) -> TrlConfig:
    settings = running.arguments(config, precision, output)
    del settings["disable_dropout"]  # TRL has no such setting here; `models.load` turned it off
    # the totals count all processes already
    return TrlConfig(**settings, average_tokens_across_devices=False)


def _example(row: SftRow, packed: bool) -> dict[str, Any]:
    """A row as TRL's collator reads it. packed: whether any row holds several documents."""
    example: dict[str, Any] = {"input_ids": list(row.ids), "labels": list(row.labels)}
    return example | ({"seq_lengths": row.lengths} if packed else {})
