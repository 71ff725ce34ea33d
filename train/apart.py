"""Whether sequences that stand in one row of tokens see nothing of one another.

Masks say what attention sees. A convolution or a state that is carried along the row does not ask them: in a
hybrid model the first tokens of a sequence are computed from the last of whatever stands before it. So the
model itself is asked, with sequences of drawn tokens: other tokens in all that one must not see must leave
its hidden states as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from train import forest

Parts = Sequence[Sequence[int]]


def moved_in_forest(model: Any) -> float:
    """How far leaves see stems and leaves that are not their own: 0 up to rounding where they do not.

    Args:
        model: in eval mode and with `forest.install`; possibly with an adapter.

    Returns: the largest |Δh| / |h| of a leaf's token when all that the leaf must not see is changed.
    """

    def row(parts: Parts) -> dict[str, Any]:
        grown = forest.plant(parts[:2], [(0, parts[2]), (1, parts[3]), (0, parts[4])]).to(model.device)
        return {"input_ids": grown.input_ids, "position_ids": grown.position_ids, "forest": grown}

    return _moved(model, row, (9, 7, 6, 5, 8), [(0, 2), (1, 3), (0, 4)], before=2)


def moved_in_packed_row(model: Any) -> float:
    """How far documents of a packed row, whose position ids start anew with each, see one another: as
    `moved_in_forest`."""

    def row(parts: Parts) -> dict[str, Any]:
        positions = [place for part in parts for place in range(len(part))]
        ids = [token for part in parts for token in part]
        return {name: torch.tensor([values], device=model.device)
                for name, values in (("input_ids", ids), ("position_ids", positions))}  # fmt: skip

    return _moved(model, row, (9, 6, 8), [(0,), (1,), (2,)])


def _moved(model: Any, row: Callable[[Parts], dict[str, Any]], lengths: Sequence[int],
           seen: Sequence[Sequence[int]], before: int = 0) -> float:  # fmt: skip
    """The largest relative change of a hidden state that should not change.

    Args:
        row: what the model is called with for the parts of a row. lengths: of the parts. seen: parts that
            may be seen together, the last of them being looked at. before: parts whose states are not kept.
    """
    words = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randint(words, (length,), generator=draw) for length in lengths]
    others = [(p + torch.randint(1, words, p.shape, generator=draw)) % words for p in parts]
    starts = [sum(lengths[before:part]) for part in range(len(lengths))]

    def states(kept: Sequence[int]) -> Tensor:
        both = enumerate(zip(parts, others, strict=True))
        return _states(model, row([(p if at in kept else o).tolist() for at, (p, o) in both]))  # (N, d)

    plain, far = states(range(len(parts))), []
    for kept in seen:
        at = slice(starts[kept[-1]], starts[kept[-1]] + lengths[kept[-1]])
        change = (states(kept)[at] - plain[at]).norm(dim=1) / plain[at].norm(dim=1)
        far.append(change.max())
    return float(torch.stack(far).max())


def _states(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The last hidden states that a model's body gives. A causal language model is called as a whole, since
    where it is divided among processes its parts cannot be called alone."""
    body = base_of(model).base_model
    caught: list[Tensor] = []
    handle = body.register_forward_hook(lambda *call: caught.append(call[-1].last_hidden_state))
    try:
        (model if model.get_output_embeddings() is not None else body)(**inputs, use_cache=False)
    finally:
        handle.remove()
    return caught[0].flatten(0, 1).double()


def base_of(model: Any) -> Any:
    """The model itself, below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
