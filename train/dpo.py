"""Direct preference optimisation on TRL's DPOTrainer, token-exact.

What differs from TRL: the token ids are the sampled ones and nothing is truncated; the reference's
log-probabilities come from the samples when an audit agrees; what is optimised does not depend on
the micro-batch; progress goes to standard error; nothing is sent anywhere. Left out: evaluation during
training (`rounds` measures models itself).

The objective of one optimiser step over a batch of B pairs (Rafailov et al. 2023, eq. 7, for sigmoid):

    Σ_k w_k · 1/B · Σ_pairs loss_k(pair)  +  w_sft · −1/T · Σ_pairs Σ_t log π(chosen_t),

T being the number of chosen completion tokens in the whole batch. TRL takes both means over each
micro-batch. "aot", "aot_unpaired" and "bco_pair" compare pairs within a micro-batch, so they alone
still depend on it. With soft labels or label smoothing "sigmoid" and "sigmoid_norm" aim at
probabilities (`train.soft`); TRL's own read neither.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from train import models, running, soft
from train.config import CONSERVATIVE, WITHIN_MICRO_BATCH, DpoConfig
from train.data import PairRow, data_version
from train.output import Output
from train.reference import Reference, reference_logps

_SHOWN = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")

__all__ = ["DpoConfig", "ExactDPOTrainer", "train_dpo"]


class ExactDPOTrainer(running.ExactRows, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on rows whose ids are ready.

    Args:
        targets: probability of each row that chosen is better, None where labels are certain.

    Attributes:
        reference: the reference's log-probabilities, once the trainer is made.
    """

    rows: Sequence[PairRow]

    def __init__(self, config: DpoConfig, rows: Sequence[PairRow], precision: str, loaded: models.Loaded,
                 targets: Sequence[float] | None = None, **settings: Any) -> None:  # fmt: skip
        self._config, self.rows, self._precision, self.loaded = config, rows, precision, loaded
        self.reference: Reference | None = None
        super().__init__(model=loaded.model, train_dataset=_dataset(rows, targets), **settings)
        self.carry()
        self.by_length = not any(config.loss.get(name) for name in WITHIN_MICRO_BATCH)
        self._weights = dict(config.loss)
        self._aux_coef: float = self.router_aux_loss_coef

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        self.reference = reference_logps(
            self.rows, self._pass, self._config.reference, self._precision, self._config.audit_rows
        )
        columns = {"ref_chosen_logps": self.reference.chosen, "ref_rejected_logps": self.reference.rejected}
        for column, values in columns.items():
            dataset = dataset.add_column(column, np.asarray(values, dtype=np.float32))
        return dataset

    def _pass(self, rows: Sequence[PairRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reference log-probabilities of rows."""
        chosen, rejected = torch.empty(len(rows)), torch.empty(len(rows))  # (rows,)
        for picked, batch in self.batches(rows, _example):
            c, r = self.compute_ref_log_probs(self.model, batch)
            chosen[picked], rejected[picked] = c.float().cpu(), r.float().cpu()
        return chosen, rejected

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(2,): pairs and chosen completion tokens, chosen rows first."""
        mask = batch["completion_mask"]  # (2 · pairs, T)
        pairs = len(mask) // 2
        return torch.stack([torch.tensor(pairs, device=mask.device), mask[:pairs, 1:].sum()]).double()

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, whose means over this micro-batch are weighed by its share of the batch."""
        mine = self.counts(inputs).tolist()
        pairs, tokens = (count / total for count, total in zip(mine, self.totals, strict=True))
        self.loss_weights = [self._weights[k] * {"sft": tokens}.get(k, pairs) for k in self.loss_types]
        self.router_aux_loss_coef: float = self._aux_coef * pairs
        given = dict(inputs)
        places, p_chosen = given.pop(running.ROW), given.pop(soft.COLUMN, None)
        if p_chosen is None:
            loss = super().compute_loss(model, given, *args, **kwargs)
        else:
            overheard = soft.Overheard(model)
            loss = super().compute_loss(overheard, given, *args, **kwargs)
            loss = loss + self._flip_terms(overheard, given, p_chosen)
        return self.finite(loss, places)

    def _flip_terms(self, heard: soft.Overheard, batch: dict[str, Any], p_chosen: torch.Tensor) -> Any:
        """What the targets add to TRL's loss, weighted as its parts are."""
        assert heard.log_probs is not None
        terms = [
            weight * soft.flip_term(soft.logits_of(loss, heard.log_probs, batch, self.beta), p_chosen).mean()
            for loss, weight in zip(self.loss_types, self.loss_weights, strict=True)
            if loss in CONSERVATIVE
        ]
        return torch.stack(terms).sum()


def train_dpo(config: DpoConfig, rows: Sequence[PairRow], out: str | Path) -> dict[str, Any]:
    """Trains `config.model` on preference pairs and saves the model to `out`.

    The same call on the same `out` resumes from the newest whole checkpoint; what is finished is not
    done again. SIGTERM and Ctrl-C leave a checkpoint and raise KeyboardInterrupt.

    Returns:
        The summary that gavel.json keeps: model, pairs, steps, tokens, loss and the last metrics, the
        targets of soft labels, the reference and its audit, seconds.

    Raises:
        InputError: a pair longer than the model's context, no pairs, a pair without the probability
            that soft labels need, a model that cannot be loaded, or an `out` that holds the work of
            other settings or data.
        CheckFailed: a loss that is not a number, or `reference="samples"` and they do not serve.
    """
    started = time.monotonic()
    running.quiet()
    running.check_names(config)
    running.check_rows(config, rows)
    running.check_batch(config, rows)
    targets = soft.targets(config, rows)
    data = data_version(rows, config.soft_labels)

    with running.begin("train dpo", config, rows, data, out) as begun:
        if begun.finished is not None:
            return begun.finished
        output, precision = begun.output, begun.precision

        # 1. the model that training starts from, which is the reference as well
        def make(config: DpoConfig, callbacks: list[Any]) -> ExactDPOTrainer:
            loaded = models.load(config.model, begun.dtype, config.trust_remote_code)
            models.check_targets(loaded.model, config.lora_targets)
            return ExactDPOTrainer(
                config, rows, precision, loaded, targets.p if targets else None,
                args=_arguments(config, precision, output), processing_class=begun.tokenizer.hf,
                callbacks=callbacks, peft_config=models.lora(config),
            )  # fmt: skip

        # 2. train; making the trainer finds the reference's log-probabilities
        done = running.run(config, output, make)
        trainer = done.trainer

        # 3. save the model whole, the marker last
        trained = time.monotonic()
        output.publish(lambda folder: begun.save(trainer, folder, merge=config.merge))
        summary = {
            "model": str(out), "pairs": len(rows), "steps": done.result.global_step, "precision": precision,
            "loss": done.result.training_loss, "metrics": done.shown(*_SHOWN),
            "targets": targets.summary() if targets else None, **trainer.reference.summary(),
            "seconds": {"start": round(done.began - started, 2), "train": round(trained - done.began, 2),
                        "save": round(time.monotonic() - trained, 2)},
        }  # fmt: skip
        output.finish(summary)
        return summary


def _arguments(config: DpoConfig, precision: str, output: Output) -> TrlConfig:
    return TrlConfig(
        **running.arguments(config, precision, output),
        beta=config.beta,
        loss_type=list(config.loss),
        loss_weights=list(config.loss.values()),
        label_smoothing=config.label_smoothing,
        precompute_ref_log_probs=True,
    )


def _dataset(rows: Sequence[PairRow], targets: Sequence[float] | None) -> datasets.Dataset:
    columns: dict[str, Any] = {
        "prompt_ids": [np.asarray(row.prompt_ids, dtype=np.int32) for row in rows],
        "chosen_ids": [np.asarray(row.chosen_ids, dtype=np.int32) for row in rows],
        "rejected_ids": [np.asarray(row.rejected_ids, dtype=np.int32) for row in rows],
    }
    columns[running.ROW] = list(range(len(rows)))
    return datasets.Dataset.from_dict(columns | ({} if targets is None else {soft.COLUMN: list(targets)}))


def _example(row: PairRow) -> dict[str, list[int]]:
    return {"prompt_ids": list(row.prompt_ids), "chosen_ids": list(row.chosen_ids),
            "rejected_ids": list(row.rejected_ids)}  # fmt: skip
