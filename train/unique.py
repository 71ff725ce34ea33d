"""Each completion through the model once, however many pairs name it, and each prompt once where that can be.

How far it goes is one of `train.config_dpo.SHARING`:

    prompts       one row without padding, every prompt once (`train.forest`)
    completions   a padded batch of unique sequences
    off           a padded batch of all sequences, as TRL has it
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from train import forest
from train.apart import base_of, moved_in_forest, moved_in_packed_row
from train.data import PairRow
from train.memory import out_of_memory

_FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")  # of TRL's fused head

#: Mean |Δ log-probability| per token at which two ways to the same number still agree, by precision.
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
_MOST = 50.0  # times that, for a single token
_MOVED = 0.05  # times that, for what must not be seen at all, which moves hidden states by rounding alone


@dataclass(frozen=True)
class Unique:
    """The sequences of some pairs, each once.

    prompts: token ids. completions: the prompt that each answers, and its token ids. sides: the completion
    that is chosen in each pair, then the one rejected in each, (2 · pairs,).
    """

    prompts: list[Sequence[int]]
    completions: list[tuple[int, Sequence[int]]]
    sides: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[PairRow], merge: bool = True) -> Unique:
        """merge: False gives every pair two sequences of its own."""
        prompts: dict[bytes, int] = {}
        completions: dict[Any, int] = {}
        unique = cls([], [], torch.empty(2 * len(rows), dtype=torch.long))
        for number, row in enumerate(rows):
            prompt = prompts.setdefault(key_of(row.prompt_ids), len(prompts))
            if prompt == len(unique.prompts):
                unique.prompts.append(row.prompt_ids)
            for side, ids in enumerate((row.chosen_ids, row.rejected_ids)):
                key = (prompt, key_of(ids)) if merge else (number, side)
                place = completions.setdefault(key, len(completions))
                if place == len(unique.completions):
                    unique.completions.append((prompt, ids))
                unique.sides[side * len(rows) + number] = place
        return unique

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, prompt and completion."""
        return [len(self.prompts[prompt]) + len(ids) for prompt, ids in self.completions]

    def spread(self) -> torch.Tensor:
        """For each pair's chosen, then rejected completion, where its tokens stand when those of all
        completions follow one another; one past the end where it has no more: (2 · pairs, R)."""
        lengths = torch.tensor([len(ids) for _, ids in self.completions])
        step = torch.arange(int(lengths.max()))
        places = (lengths.cumsum(0) - lengths)[:, None] + step
        return places.masked_fill(step >= lengths[:, None], int(lengths.sum()))[self.sides]

    def padded(self, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole sequences and which of their places hold a token, each (C, T)."""
        whole = [torch.tensor([*self.prompts[prompt], *ids]) for prompt, ids in self.completions]
        input_ids = pad_sequence(whole, batch_first=True, padding_value=pad)
        return input_ids, torch.arange(input_ids.shape[1]) < torch.tensor(self.lengths)[:, None]


def key_of(ids: Sequence[int]) -> bytes:
    """What token ids are told apart by."""
    return array("i", ids).tobytes()


class Scored:
    """What stands in for a model where TRL computes its loss: one forward over unique sequences, its values
    handed out to the pairs, zeros where a completion has ended.

    Args:
        forward: `by_prompts` or `by_rows`. model: with TRL's fused head.

    Attributes:
        log_probs: of the last call, (2 · pairs, R), chosen first.
    """

    def __init__(self, forward: Callable[..., Any], model: Any, unique: Unique, device: torch.device) -> None:
        self._forward, self._model, self._unique, self._device = forward, model, unique, device
        self._spread = unique.spread().to(device)
        self.log_probs: torch.Tensor | None = None

    def __call__(self, output_router_logits: bool | None = None, **inputs: Any) -> Any:
        more = {"output_router_logits": True} if output_router_logits else {}
        outputs, counted = self._forward(self._model, self._unique, self._device, **more)
        handed = SimpleNamespace(aux_loss=outputs.aux_loss)
        for name in _FIELDS:
            values = getattr(outputs, name)
            if values is not None:
                values = values[counted]  # (tokens of completions,)
                values = torch.cat([values, values.new_zeros(1)])[self._spread]
            setattr(handed, name, values)
        self.log_probs = handed.log_probs
        return handed


def by_prompts(model: Any, unique: Unique, device: torch.device) -> tuple[Any, Any]:
    """TRL's output for the tokens of completions, one after another, and the index of these in its fields.
    The model needs `forest.install`."""
    # a leaf predicts its completion: it begins with the prompt's last token and lacks the completion's own
    grown = forest.plant(
        [ids[:-1] for ids in unique.prompts],
        [(prompt, [unique.prompts[prompt][-1], *ids[:-1]]) for prompt, ids in unique.completions],
    ).to(device)
    labels = torch.tensor([[token for _, ids in unique.completions for token in ids]], device=device)
    outputs = model(input_ids=grown.input_ids, position_ids=grown.position_ids, shift_labels=labels,
                    fused_lm_head=True, forest=grown)  # fmt: skip
    return outputs, 0


def by_rows(model: Any, unique: Unique, device: torch.device, **more: Any) -> tuple[Any, Any]:
    """The same from a padded batch. more: for the model."""
    input_ids, real = unique.padded()
    prompt = torch.tensor([len(unique.prompts[at]) for at, _ in unique.completions])
    counted = (real & (torch.arange(input_ids.shape[1]) >= prompt[:, None])).to(device)
    input_ids = input_ids.to(device)
    outputs = model(input_ids=input_ids, attention_mask=real.long().to(device), fused_lm_head=True,
                    labels=input_ids.masked_fill(~counted, -100), **more)  # fmt: skip
    return outputs, counted[:, 1:]


def try_prompts(model: Any, rows: Sequence[PairRow], device: torch.device, tolerance: float) -> str | None:
    """Installs what `by_prompts` needs, if both forwards then agree.

    Args:
        model: a causal language model, or one with an adapter. rows: pairs to try them on.
        tolerance: mean |Δ log-probability| per token at which they agree, see `try_forest`.

    Returns: what stands in the way; nothing is changed then.
    """
    unique = Unique.of(rows)

    def scores(forward: Callable[..., Any]) -> torch.Tensor:
        outputs, counted = forward(model, unique, device)
        found: torch.Tensor = outputs.log_probs[counted]
        return found

    return try_forest([model], lambda: scores(by_rows), lambda: scores(by_prompts), tolerance)


def packing_leaks(model: Any, tolerance: float) -> str | None:
    """How documents of one row see one another in a model that they should not, None where they do not.

    Args:
        tolerance: one of TOLERANCE.
    """
    was = model.training
    model.eval()
    with torch.no_grad():
        moved = moved_in_packed_row(model)
    model.train(was)
    return _leaking(moved, tolerance)


def try_forest(
    models: Sequence[Any], plain: Callable[[], torch.Tensor], shared: Callable[[], torch.Tensor],
    tolerance: float,
) -> str | None:  # fmt: skip
    """Installs a forest in models, if what they say in one is what they say without, and if in one no
    sequence sees another (`train.apart`): a leak shows in a sequence's first tokens, which a mean over long
    ones hides.

    Args:
        plain, shared: log-probabilities (or other numbers) of the same tokens in the same order, asked for
            before and after. tolerance: mean |Δ| at which they agree.

    Returns: what stands in the way; nothing is changed then.
    """
    training = [model.training for model in models]
    undo = []
    for model in models:
        model.eval()  # dropout would make them differ
    try:
        with torch.no_grad():
            expected = plain().double()
            for model in models:
                undo.append(forest.install(base_of(model)))
            problem = _unlike(shared().double(), expected, tolerance)
            for model in models:
                problem = problem or _leaking(moved_in_forest(model), tolerance)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        if out_of_memory(error):
            raise
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)
    if problem:
        for uninstall in undo:
            uninstall()
    return problem


def _leaking(moved: float, tolerance: float) -> str | None:
    """What `train.apart` found, None for rounding."""
    if moved < _MOVED * tolerance:
        return None
    return f"sequences see one another (hidden states move by {moved:.2g})"


def _unlike(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str | None:
    """How log-probabilities differ, None where they agree."""
    apart = (found - expected).abs()
    if not float(apart.mean()) < tolerance:
        return f"log-probabilities differ by {float(apart.mean()):.2g} per token"
    if not float(apart.max()) < _MOST * tolerance:
        return f"the log-probability of a token differs by {float(apart.max()):.2g}"
    return None
