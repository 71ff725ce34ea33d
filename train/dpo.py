"""Direct preference optimisation on TRL's DPOTrainer, token-exact.

What differs from TRL: the token ids are the sampled ones and nothing is truncated; the reference's
log-probabilities come from the samples when an audit agrees; what is optimised does not depend on
the micro-batch; progress goes to standard error; nothing is sent anywhere. Left out: evaluation during
training (`rounds` measures models itself).

The objective of one optimiser step over a batch of B pairs (Rafailov et al. 2023, eq. 7, for sigmoid):

    Σ_k w_k · 1/B · Σ_pairs loss_k(pair)  +  w_sft · −1/T · Σ_pairs Σ_t log π(chosen_t),

T being the number of chosen completion tokens in the whole batch. TRL takes both means over each
micro-batch. "aot" and "aot_unpaired" compare pairs within a micro-batch, so they alone still depend on
it. With soft labels or label smoothing "sigmoid" and "sigmoid_norm" aim at probabilities (`train.soft`);
TRL's own read neither. Where pairs share completions or prompts, these go through the model once
(`train.unique`): TRL's loss is handed the log-probabilities in place of a model.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from gavel.command import say
from gavel.errors import InputError
from train import adapter, checks, draw, exact, group, memory, models, running, soft
from train.config_dpo import CONSERVATIVE, DpoConfig
from train.data import PairRow, data_version
from train.draw import SharedPairs
from train.output import Output
from train.reference import Moving, Reference, reference_logps
from train.unique import TOLERANCE, Scored, Unique, by_prompts, by_rows, key_of, try_prompts

_SHOWN = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
_UNIQUE = "unique"  # of a micro-batch: its sequences
#: Metrics that are means over tokens, and over which; the others are means over pairs.
_COUNTED_BY = {"entropy": "tokens", "logits/chosen": "chosen", "logits/rejected": "rejected",
               "mean_token_accuracy": "chosen"}  # fmt: skip
_P_CHOSEN = "p_chosen"  # of a micro-batch: its targets

__all__ = ["DpoConfig", "ExactDPOTrainer", "train_dpo"]


class ExactDPOTrainer(SharedPairs, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on rows whose ids are ready.

    Args:
        targets: probability of each row that chosen is better, None where labels are certain.

    Attributes:
        reference: the reference's log-probabilities, None where it moves; set once the trainer is made.
        sharing: how far pairs share work, one of `train.config_dpo.SHARING`.
    """

    rows: Sequence[PairRow]
    counted_by = _COUNTED_BY

    def __init__(self, config: DpoConfig, rows: Sequence[PairRow], precision: str, loaded: models.Loaded,
                 targets: Sequence[float] | None = None, **settings: Any) -> None:  # fmt: skip
        self._config, self.rows, self._precision, self.loaded = config, rows, precision, loaded
        self._targets = targets
        self._dtype = loaded.model.dtype
        self.reference: Reference | None = None
        self._moving: Moving | None = None
        super().__init__(
            model=loaded.model, train_dataset=exact.places_of(len(rows)), data_collator=list, **settings
        )
        self.carry()
        self.by_length = not config.within_micro_batch
        self.together = config.draw == "prompts"
        self._weights = dict(config.loss)
        self._aux_coef: float = self.router_aux_loss_coef

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL calls it once the model is there. What it gives is kept here, not in the data."""
        self.ref_model = None  # for FSDP, TRL loads one
        if not self.divided_by:
            self.look_at_model()
        return dataset

    def look_at_model(self) -> None:
        """Finds the reference's log-probabilities, with the model that training starts from: asked as the
        policy will be."""
        config = self._config
        self.sharing, self._forward = self._shared()
        self.merge = self.sharing != "off"
        if config.sync_steps:
            self._moving = Moving.behind(self)
            return
        policy = "pass" if config.ld_alpha is not None else config.reference
        self.reference = reference_logps(self.rows, self._pass, policy, self._precision, config.audit_rows)

    def _shared(self) -> tuple[str, Any]:
        """How far pairs share work, and the forward pass that does it."""
        asked = self._config.sharing
        if self.aux_loss_enabled:
            return "off", by_rows  # the router's loss is a mean over the tokens that were forwarded
        if asked != "prompts":
            return asked, by_rows
        model = self.accelerator.unwrap_model(self.model)
        why = self._against_prompts(model)
        if why is None:
            return "prompts", by_prompts
        say(f"prompts go through the model once for each completion: {why}")
        return "completions", by_rows

    def _against_prompts(self, model: Any) -> str | None:
        """Why a model cannot read each prompt once; it can from now on where nothing is returned."""
        return try_prompts(model, self._longest(), self.accelerator.device, TOLERANCE[self._precision])

    def _longest(self) -> list[PairRow]:
        """The pairs that would show whatever a model does only in long sequences: the longest, and where a
        micro-batch may hold it the longest with another prompt."""
        by_length = sorted(self.rows, key=lambda row: -row.length)
        first = by_length[0]
        others = (row for row in by_length if key_of(row.prompt_ids) != key_of(first.prompt_ids))
        return [first, *([] if self.args.per_device_train_batch_size == 1 else itertools.islice(others, 1))]

    def _pass(self, rows: Sequence[PairRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reference log-probabilities of rows."""
        chosen, rejected = torch.zeros(len(rows)), torch.zeros(len(rows))  # (rows,)
        size = self.args.per_device_train_batch_size
        dealt = exact.dealt(draw.micro_batches(rows, range(len(rows)), size, self.merge))
        with self._reference_model() as (model, forward):
            for picked, spare in dealt:
                batch = self._prepare_inputs(self._batch([rows[place] for place in picked]))
                c, r = self.compute_ref_log_probs(self._scored(model, batch, forward), batch)
                if spare:
                    continue
                chosen[picked], rejected[picked] = c.float().cpu(), r.float().cpu()
        return group.summed(chosen), group.summed(rejected)

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[tuple[Any, Any]]:
        """The reference with its forward: the policy as it starts, or another model, loaded for as long."""
        config = self._config
        if config.reference_model is None:
            yield self.model, self._forward
            return
        loaded = models.load(config.reference_model, self._dtype, config.trust_remote_code, config.qlora,
                             option="--reference-model")  # fmt: skip
        other = loaded.model.to(self.accelerator.device).eval()
        add_fused_lm_head(other)
        forward = self._forward
        if forward is by_prompts and self._against_prompts(other):
            forward = by_rows
        yield other, forward
        del loaded, other
        memory.free_memory()

    def _scored(self, model: Any, batch: dict[str, Any], forward: Any = None) -> Scored:
        """What TRL is to call in place of the model. forward: the policy's unless given."""
        return Scored(forward or self._forward, model, batch.pop(_UNIQUE), self.accelerator.device)

    def _batch(self, rows: Sequence[PairRow]) -> dict[str, Any]:
        """What TRL's loss reads of pairs: their completions alone, behind one place that predicts nothing."""
        unique = Unique.of(rows, self.merge)
        spread = unique.spread()  # (2 · pairs, R)
        tokens = torch.tensor([token for _, ids in unique.completions for token in ids] + [0])
        return {
            "input_ids": pad(tokens[spread], (1, 0)),
            "completion_mask": pad((spread < len(tokens) - 1).long(), (1, 0)),
            "attention_mask": torch.tensor(unique.lengths)[unique.sides],  # TRL counts tokens by its sum
            _UNIQUE: unique,
        }

    def micro_batch(self, places: Sequence[int]) -> dict[str, Any]:
        batch = self._batch([self.rows[place] for place in places])
        if self.reference is not None:
            for side, values in (("chosen", self.reference.chosen), ("rejected", self.reference.rejected)):
                batch[f"ref_{side}_logps"] = torch.tensor([values[place] for place in places])
        if self._targets is not None:
            batch[_P_CHOSEN] = torch.tensor([self._targets[place] for place in places])
        return batch

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(2,): pairs and chosen completion tokens, chosen rows first."""
        mask = batch["completion_mask"]  # (2 · pairs, 1 + R)
        pairs = len(mask) // 2
        return torch.stack([torch.tensor(pairs, device=mask.device), mask[:pairs].sum()]).double()

    def share_of_loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, whose means over this micro-batch are weighed by its share of the batch."""
        mine = self.counts(batch).tolist()
        pairs, tokens = (count / total for count, total in zip(mine, self.totals, strict=True))
        self.loss_weights = [self._weights[k] * {"sft": tokens}.get(k, pairs) for k in self.loss_types]
        self.router_aux_loss_coef: float = self._aux_coef * pairs
        p_chosen = batch.pop(_P_CHOSEN, None)
        if self._moving is not None:
            reference = self._scored(self._moving.model, dict(batch))
            both = self.compute_ref_log_probs(reference, batch)
            batch["ref_chosen_logps"], batch["ref_rejected_logps"] = both
        scored = self._scored(model, batch)
        loss: torch.Tensor = DPOTrainer.compute_loss(self, scored, batch)
        return loss if p_chosen is None else loss + self._flip_terms(scored, batch, p_chosen)

    def sizes_of(self, batch: dict[str, Any]) -> dict[str, float]:
        return _sizes(batch["completion_mask"])

    def _flip_terms(self, scored: Scored, batch: dict[str, Any], p_chosen: torch.Tensor) -> Any:
        """What the targets add to TRL's loss, weighted as its parts are."""
        assert scored.log_probs is not None
        terms = [
            weight * soft.flip_term(soft.logits_of(loss, scored.log_probs, batch, self.beta), p_chosen).mean()
            for loss, weight in zip(self.loss_types, self.loss_weights, strict=True)
            if loss in CONSERVATIVE
        ]
        return torch.stack(terms).sum()

    def _save_checkpoint(self, *args: Any) -> None:
        super()._save_checkpoint(*args)
        if self._moving is not None:
            self._moving.save(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, folder: str, *args: Any) -> None:
        super()._load_from_checkpoint(folder, *args)
        if self._moving is not None:
            self._moving.load(Path(folder))


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
    group.check_shards("DPO", "FSDP2", "DeepSpeed")
    _check_shards(config)
    checks.check_names(config)
    checks.check_rows(config, rows)
    checks.check_batch(config, rows)
    models.check_reference(config.model, config.reference_from, config.trust_remote_code)
    targets = soft.targets(config, rows)
    data = data_version(rows, config.soft_labels, config.reads_margins)

    with running.begin("train dpo", config, rows, data, out) as begun:
        if begun.finished is not None:
            return begun.finished
        output, precision = begun.output, begun.precision

        # 1. the model that training starts from, which is the reference as well
        def make(config: DpoConfig, callbacks: list[Any]) -> ExactDPOTrainer:
            loaded = models.load(config.model, begun.dtype, config.trust_remote_code, config.qlora)
            _check_model(config, loaded.model)
            return ExactDPOTrainer(
                config, rows, precision, loaded, targets.p if targets else None,
                args=_arguments(config, precision, output), processing_class=begun.tokenizer.hf,
                callbacks=callbacks, peft_config=adapter.lora(config),
            )  # fmt: skip

        # 2. train; making the trainer finds the reference's log-probabilities
        done = running.run(config, output, make)
        trainer = done.trainer

        # 3. save the model whole, the marker last
        trained = time.monotonic()
        output.publish(lambda folder: begun.save(trainer, folder, merge=config.merge))
        summary = {
            "model": str(out), "pairs": len(rows), "steps": done.steps, "precision": precision,
            "loss": done.loss, "metrics": done.shown(*_SHOWN),
            "targets": targets.summary() if targets else None, "sharing": trainer.sharing,
            **(trainer.reference.summary() if trainer.reference else {"reference": "moving"}),
            "seconds": {"start": round(done.began - started, 2), "train": round(trained - done.began, 2),
                        "save": round(time.monotonic() - trained, 2)},
        }  # fmt: skip
        output.finish(summary)
        return summary


def _check_shards(config: DpoConfig) -> None:
    """Refuses what asks for a whole model where processes have shards of it."""
    if group.shards():
        if config.sync_steps:
            raise InputError("a reference that moves needs whole copies of the model", where="--sync-steps")
        if config.reference_model is not None:
            raise InputError(f"another model than the trained one is not divided by {group.shards()}",
                             where="--reference-model")  # fmt: skip
        if config.qlora:
            raise InputError(f"4 bits are not divided by {group.shards()}", where="--qlora")


def _check_model(config: DpoConfig, model: Any) -> None:
    """Refuses settings that do not suit the model."""
    adapter.check_targets(model, config.lora_targets, "which DPO reads itself and not through an adapter")
    if config.router_aux and not hasattr(model.config.get_text_config(), "output_router_logits"):
        raise InputError(f"{type(model).__name__} has no router", where="--router-aux")


def _arguments(config: DpoConfig, precision: str, output: Output) -> TrlConfig:
    return TrlConfig(
        **running.arguments(config, precision, output),
        beta=config.beta,
        loss_type=list(config.loss),
        loss_weights=list(config.loss.values()),
        label_smoothing=config.label_smoothing,
        f_divergence_type=config.divergence,
        f_alpha_divergence_coef=config.divergence_alpha,
        discopop_tau=config.discopop_tau,
        ld_alpha=config.ld_alpha,
        use_weighting=config.wpo,
        router_aux_loss_coef=config.router_aux,
        ref_model_sync_steps=config.sync_steps or 1,  # `reference.Moving` reads both; TRL's own would need a
        ref_model_mixup_alpha=config.sync_mixup,  # reference that is not precomputed
        precompute_ref_log_probs=True,
        trust_remote_code=config.trust_remote_code,
    )


def _sizes(mask: torch.Tensor) -> dict[str, float]:
    """What a micro-batch's metrics are means over. mask: (2 · pairs, T), chosen first."""
    chosen, rejected = (float(side.sum()) for side in mask.chunk(2))
    return {"pairs": len(mask) / 2, "chosen": chosen, "rejected": rejected, "tokens": chosen + rejected}
