"""What stands beside a TRL trainer so that a step is exact: its rows as they are, and an objective that
neither micro-batches nor the number of processes change.

What goes through the data loader are places of rows, the same on all processes. Those of an optimiser step
are split into micro-batches (`arranged`), which are dealt to the processes; each makes its own from the rows
themselves. So a last batch that is not full is divided as well, and no row is lost or comes twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import datasets
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler

from gavel.errors import CheckFailed
from train import adapter, group, models
from train.rows import Row

T = TypeVar("T")

ROW = "row"  # of a micro-batch: its rows' places
_SPARE = "spare"  # of one that counts for nothing: a process that has none left must go along
_UNLOGGED = "unlogged.json"  # of a checkpoint
_NAMED = 8  # rows that an error names


class Drawn(Sampler):  # type: ignore[misc]
    """The random order of places that Trainer draws."""

    def __init__(self, count: int, seed: int) -> None:
        # as a part: accelerate would put its own in the place of anything that is one
        self._drawn = SeedableRandomSampler(range(count), data_seed=seed)

    def __len__(self) -> int:
        return len(self._drawn.data_source)

    def __iter__(self) -> Iterator[int]:
        yield from list(self._drawn)

    def set_epoch(self, epoch: int) -> None:
        self._drawn.set_epoch(epoch)


class NotANumber(CheckFailed):
    """A loss or gradient that is not finite; the weights are still those of the step before.

    Args:
        where: the step, and what its rows are called. names: of the rows; the message has the first few.
    """

    def __init__(self, what: str, where: str, names: Sequence[str]) -> None:
        self.names = list(names)
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        super().__init__(f"{what} at {where} {', '.join(names[:_NAMED])}{more}",
                         hint="Lower --learning-rate, or train with --precision fp32.")  # fmt: skip


class ExactRows:
    """Beside a TRL trainer: rows whose ids are ready, told apart, and no step that ruins the weights.

    Attributes:
        rows: what is trained on. loaded: the model as it came.
        totals: what a trainer's `counts` give for the batch under way, over all processes, divided by their
            number, as gradients are averaged over them while the objective is a sum over their shares.
        stepping: whether the optimiser may be at work on the weights. by_length: whether micro-batches are
            made of rows of like length, which changes nothing where the objective is a sum over rows.
        sizes: of the micro-batches since the last log, what their metrics are means over. counted_by: which
            of the sizes, of metrics that are not means over the first.

    What is summed up for the next log line goes into a checkpoint as well, so that a run which is resumed
    logs what an undisturbed one does.
    """

    loss_is_scaled_for_ga = True  # compute_loss weighs each micro-batch by its share of the batch
    by_length = True
    rows: Sequence[Row]
    loaded: models.Loaded
    stepping = False
    totals: list[float]
    sizes: list[dict[str, float]]
    counted_by: Mapping[str, str] = MappingProxyType({})
    _places: list[int]  # of the batch under way
    _order: Drawn
    _tr_loss = torch.zeros(())  # Trainer's: the sum over the steps since the last log
    _before: tuple[int, torch.Tensor, int]  # the batch under way: steps done, `_tr_loss` and how many `sizes`
    _carried: Mapping[str, Sequence[float]] = MappingProxyType({})  # sums of metrics, from a checkpoint

    @property
    def divided_by(self: Any) -> str:
        """What divides the model, or what belongs to it, once training begins: FSDP, DeepSpeed or nothing."""
        return "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else ""

    def create_scheduler(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Trainer calls it once the model is divided among the processes, before a checkpoint is loaded into
        it."""
        if self.divided_by:
            self.look_at_model()
            group.reshard(self.model)
        return super().create_scheduler(*args, **kwargs)  # type: ignore[misc]

    # what a trainer says

    def look_at_model(self) -> None:
        """What it has to know of its model before training. Called here of one that is divided; of one that
        is not the trainer calls it as soon as it can."""

    def micro_batch(self, places: Sequence[int]) -> dict[str, Any]:
        """Rows as the inputs of a forward pass."""
        raise NotImplementedError

    def counts(self, batch: dict[str, Any]) -> torch.Tensor:
        """What the means of the objective are divided by, of a micro-batch, shape (means,)."""
        raise NotImplementedError

    def share_of_loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """A micro-batch's part of the objective, whose means are over `totals`."""
        raise NotImplementedError

    def sizes_of(self, batch: dict[str, Any]) -> dict[str, float]:
        """What TRL's metrics of a micro-batch are means over."""
        raise NotImplementedError

    def order(self: Any) -> Drawn:
        """In which rows are drawn."""
        return Drawn(len(self.rows), self.args.seed)

    def arranged(self: Any, places: list[int]) -> list[list[int]]:
        """The micro-batches that the rows of a step are trained in, at most as many as their number asks."""
        if self.by_length:
            places = sorted(places, key=lambda place: -self.rows[place].length)
        size = self.args.train_batch_size
        return [places[start : start + size] for start in range(0, len(places), size)]

    # what Trainer and TRL are told

    def carry(self: Any) -> None:
        """To be called once the trainer is made."""
        self.sizes = []
        adapter.train_in_float32(self.model)
        # without it, Trainer neither rewrites the model's EOS and pad ids nor saves it in checkpoints
        self.processing_class = None

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def get_train_dataloader(self: Any) -> Any:
        """Places alone, the same on every process."""
        self._order = self.order()
        size = self.args.train_batch_size * self.args.world_size
        return DataLoader(range(len(self.rows)), batch_size=size, sampler=self._order, collate_fn=list)

    def _run_epoch(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._order.set_epoch(kwargs["epoch"])
        if kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._take_up(Path(kwargs["resume_from_checkpoint"]))
        return super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self: Any, *args: Any) -> None:
        super()._save_checkpoint(*args)  # type: ignore[misc]
        step, loss, count = self._before
        if step < self.state.global_step:  # the batch under way has become a step
            loss, count = self._tr_loss, len(self.sizes)
        sums = {"since": self._globalstep_last_logged, "metrics": self._summed(count),
                "loss": group.summed(loss.double().cpu()).item() / group.size()}  # fmt: skip
        if group.is_main():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (folder / _UNLOGGED).write_text(json.dumps(sums))

    def _take_up(self: Any, checkpoint: Path) -> None:
        """Goes on with what a checkpoint had summed up for its next log line."""
        if (checkpoint / _UNLOGGED).exists():  # checkpoints of before have none
            sums = json.loads((checkpoint / _UNLOGGED).read_text())
            self._globalstep_last_logged, self._carried = sums["since"], sums["metrics"]
            self._tr_loss += sums["loss"]

    def get_batch_samples(self: Any, drawn: Iterator[list[int]], count: int, device: Any) -> Any:
        """This process's micro-batches of a step; where fewer do, the first are empty."""
        given = list(islice(drawn, count))
        self._places = list(chain.from_iterable(given))
        self._before = self.state.global_step, self._tr_loss.clone(), len(self.sizes)
        self.stepping = False
        if not given:
            return [], None
        made = [
            self.micro_batch(places) | {ROW: torch.tensor(places), _SPARE: spare}
            for places, spare in dealt(self.arranged(self._places))
        ]
        counts = torch.stack([self.counts(batch) * (not batch[_SPARE]) for batch in made]).sum(dim=0)
        self.totals = (group.summed(counts) / group.size()).tolist()
        return [_EMPTY] * (len(given) - len(made)) + made, None

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not len(inputs[ROW]):
            return torch.zeros((), device=self.args.device)
        whole, self.accelerator = self.accelerator, _Alone(self.accelerator)
        try:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.accelerator = whole

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The micro-batch's share of the objective. Raises NotANumber."""
        batch = dict(inputs)
        places, spare = batch.pop(ROW).tolist(), batch.pop(_SPARE, False)
        sizes = self.sizes_of(batch)
        loss = self.share_of_loss(model, batch) * (not spare)
        self.sizes.append({name: size * (not spare) for name, size in sizes.items()})
        return self.finite(loss, places)

    def finite(self, loss: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """The loss of a micro-batch. Raises NotANumber, naming its rows; where there are other processes, all
        of them find it in the gradient and stop together."""
        if group.size() == 1 and not torch.isfinite(loss).all():
            raise self._not_a_number(f"the loss is {loss.item()}", places)
        return loss

    def _get_grad_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Trainer asks for it right before the optimiser's step; DeepSpeed has taken it by then."""
        self.stepping = self.is_deepspeed_enabled
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if not math.isfinite(norm):
            raise self._not_a_number(f"the gradient's norm is {float(norm)}", self._places)
        self.stepping = True
        return norm

    def _not_a_number(self: Any, what: str, places: Sequence[int]) -> NotANumber:
        rows = [self.rows[place] for place in places]
        where = f"step {self.state.global_step + 1}, in {rows[0].noun}"
        return NotANumber(what, where, [row.name for row in rows])

    def log(self: Any, logs: dict[str, float], *args: Any) -> None:
        """TRL's metrics are means over micro-batches of each process; here each counts by what it has, and
        those of all processes count."""
        for name, (total, weight) in self._summed(len(self.sizes)).items():
            self._metrics["train"][name][:] = [total / weight if weight else math.nan]
        self.sizes.clear()
        self._carried = {}
        super().log(logs, *args)  # type: ignore[misc]

    def _summed(self: Any, count: int) -> dict[str, list[float]]:
        """Of each metric the weighted sum and the sum of weights, over the first so many micro-batches since
        the last log and over all processes."""
        metrics = self._metrics["train"]
        names = sorted(name for name, values in metrics.items() if len(values) >= count > 0)
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        for place, name in enumerate(names):
            if group.is_main():
                sums[place] += torch.tensor(self._carried.get(name, (0.0, 0.0)), dtype=torch.float64)
            for value, sizes in zip(metrics[name][:count], self.sizes[:count], strict=True):
                weight = sizes[self.counted_by.get(name, next(iter(sizes)))]
                sums[place] += torch.tensor([weight * value, weight]) if weight else 0.0
        found: dict[str, list[float]] = dict(zip(names, group.summed(sums).tolist(), strict=True))
        return found

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one into every checkpoint."""

    def _send_telemetry(self) -> None:
        """TRL reports each run to Hugging Face; gavel sends nothing anywhere."""


class _Alone:
    """An accelerator whose figures are this process's alone: TRL gathers them in every micro-batch, which
    would have to be of one size on all."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def gather(self, figures: Any) -> Any:
        return figures

    gather_for_metrics = gather


def places_of(count: int) -> datasets.Dataset:
    """A data set of places alone, for trainers that ask for one."""
    return datasets.Dataset.from_dict({ROW: range(count)})


def mine(parts: Sequence[T]) -> Sequence[T]:
    """This process's share."""
    return parts[group.rank() :: group.size()]


def dealt(micro_batches: Sequence[list[int]]) -> list[tuple[list[int], bool]]:
    """This process's share of micro-batches, as many as any other's, and which are spare: where processes
    have shards of a model, each forward pass takes all of them."""
    share = [(places, False) for places in mine(micro_batches)]
    most = math.ceil(len(micro_batches) / group.size())
    return share + [(micro_batches[-1], True)] * (most - len(share))


_EMPTY = {ROW: torch.empty(0, dtype=torch.long)}
