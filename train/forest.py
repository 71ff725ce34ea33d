"""Token sequences that begin alike, through an unmodified transformers model as one row without padding.

A stem is what several sequences begin with, a leaf the rest of one of them. All stems and all leaves stand
one after another in a row of N tokens, so that embeddings, projections and MLPs see each of them once. Only
attention has to know that a leaf follows its stem and no other leaf; transformers lets a function for that
be registered by name and hands it what the model is called with (`AttentionInterface`): `attend`.

    prompt A | prompt B | answer 1 of A | answer 2 of A | answer 1 of B

`attend` takes the row apart into two padded batches, stems (causal) and leaves (each sees its stem and
itself), and puts their outputs back. Its padding costs attention alone. Leaves of one length without stems
are a batch as they stand, and are read as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "gavel_forest"
#: What models hand to attention beside masks and windows, and what changes nothing in a single training pass.
_WITHOUT_EFFECT = {"position_ids", "position_embeddings", "past_key_values", "cache_position", "use_cache",
                   "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
                   "is_causal"}  # fmt: skip


Masks = tuple[torch.Tensor | None, torch.Tensor | None]  # of stems, of leaves


@dataclass(frozen=True)
class Forest:
    """Stems and leaves as one row; U stems of up to S tokens, C leaves of up to R, N tokens in all.

    input_ids, position_ids: (1, N). stems: places in the row of each stem's tokens, N where there is none,
    (U, S). leaves: the same of leaves, (C, R). seen: the same of what a leaf may see, its stem ending at
    column S, (C, S + R). back: place of each token among stems and leaves as they are padded, (N,).
    before: tokens of all stems, which stand first.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    stems: torch.Tensor
    leaves: torch.Tensor
    seen: torch.Tensor
    back: torch.Tensor
    before: int
    _masks: dict[int | None, Masks] = field(default_factory=dict, repr=False)

    @property
    def regular(self) -> bool:
        """Whether the row is nothing but leaves of one length."""
        return not self.before and self.leaves.numel() == self.input_ids.shape[1]

    def to(self, device: torch.device) -> Forest:
        moved = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved, _masks={})

    def masks(self, window: int | None) -> Masks:
        """Who may look at whom, (1, 1, S, S) for stems and (C, 1, R, S + R) for leaves; None where they are
        plainly causal. window: how many tokens back, itself included; None: all."""
        if window not in self._masks:
            longest, rest = self.stems.shape[1], self.leaves.shape[1]
            at = torch.arange(longest + rest, device=self.stems.device)
            back = at[:, None] - at  # tokens from query back to key
            near = (back >= 0) & (back < (window or len(at) + 1))
            real = self.seen < self.input_ids.shape[1]
            leaves = (near[longest:] & real[:, None])[:, None] if longest or window else None
            stems = None if window is None else near[None, None, :longest, :longest]
            self._masks[window] = stems, leaves
        return self._masks[window]


def plant(stems: Sequence[Sequence[int]], leaves: Sequence[tuple[int, Sequence[int]]]) -> Forest:
    """Lays out a forest.

    Args:
        stems: their token ids, possibly none. leaves: the stem that each follows, and at least one token id.
    """
    ids = [token for stem in stems for token in stem]
    before = len(ids)
    begins, positions = [0], [p for stem in stems for p in range(len(stem))]
    for stem in stems:
        begins.append(begins[-1] + len(stem))
    starts = []
    for at, leaf in leaves:
        starts.append(len(ids))
        ids += leaf
        positions += range(len(stems[at]), len(stems[at]) + len(leaf))
    nowhere = len(ids)
    longest, rest = max(map(len, stems)), max(len(leaf) for _, leaf in leaves)
    stem_at = torch.full((len(stems), longest), nowhere)
    leaf_at = torch.full((len(leaves), rest), nowhere)
    seen = torch.full((len(leaves), longest + rest), nowhere)
    for row, stem in enumerate(stems):
        stem_at[row, : len(stem)] = torch.arange(begins[row], begins[row + 1])
    for row, (at, leaf) in enumerate(leaves):
        here = torch.arange(starts[row], starts[row] + len(leaf))
        leaf_at[row, : len(leaf)] = seen[row, longest : longest + len(leaf)] = here
        seen[row, longest - len(stems[at]) : longest] = torch.arange(begins[at], begins[at + 1])
    padded = torch.cat([stem_at.flatten(), leaf_at.flatten()])
    back = torch.empty(nowhere + 1, dtype=torch.long)
    back[padded] = torch.arange(len(padded))
    back = back[:nowhere]
    return Forest(torch.tensor([ids]), torch.tensor([positions]), stem_at, leaf_at, seen, back, before)


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, forest: Forest | None = None,
    sliding_window: int | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention within a forest, as transformers calls it.

    Args:
        query: (1, heads, N, D). key, value: (1, groups, N, D), groups dividing heads.

    Returns: (1, N, heads, D).

    Raises NotImplementedError for what a model asks of attention that is not done here.
    """
    asked = [name for name, given in others.items() if given is not None and name not in _WITHOUT_EFFECT]
    if asked or forest is None or dropout:
        raise NotImplementedError(f"attention with {', '.join(asked) or 'dropout, or without a forest'}")
    heads = query.shape[1]
    stem_mask, leaf_mask = forest.masks(sliding_window)
    if forest.regular:
        rows = len(forest.leaves)
        q, k, v = (_rows(states, rows, heads) for states in (query, key, value))
        batch = scaled_dot_product_attention(
            q, k, v, attn_mask=leaf_mask, is_causal=leaf_mask is None, scale=scaling
        )
        return batch.transpose(1, 2).reshape(1, query.shape[2], heads, -1), None
    q, k, v = (_flat(states) for states in (query, key, value))

    def part(asking: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        found = scaled_dot_product_attention(
            _pick(q, asking, heads, heads), _pick(k, seen, key.shape[1], heads),
            _pick(v, seen, value.shape[1], heads), attn_mask=mask, is_causal=mask is None, scale=scaling,
        )  # fmt: skip
        return found.transpose(1, 2).flatten(0, 1).flatten(1)  # (rows · length, heads · D)

    parts = [part(forest.leaves, forest.seen, leaf_mask)]
    if forest.before:
        parts.insert(0, part(forest.stems, forest.stems, stem_mask))
    outputs = torch.cat(parts).index_select(0, forest.back)
    return outputs.view(1, len(outputs), heads, -1), None


def _flat(states: torch.Tensor) -> torch.Tensor:
    """(1, heads, N, D) as rows of tokens, and one of zeros for those not there: (N + 1, heads · D)."""
    rows = states[0].transpose(0, 1).flatten(1)
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _pick(rows: torch.Tensor, places: torch.Tensor, groups: int, heads: int) -> torch.Tensor:
    """The tokens at `places`, (B, T), every group repeated for its heads: (B, heads, T, D)."""
    picked = rows.index_select(0, places.flatten()).view(*places.shape, groups, -1).transpose(1, 2)
    return _for_heads(picked, heads)


def _rows(states: torch.Tensor, rows: int, heads: int) -> torch.Tensor:
    """(1, groups, N, D) as that many rows, every group repeated for its heads: (rows, heads, N / rows, D)."""
    return _for_heads(states[0].unflatten(1, (rows, -1)).transpose(0, 1), heads)


def _for_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, groups, T, D), every group repeated for its heads."""
    groups = states.shape[1]
    if groups == heads:
        return states
    return states[:, :, None].expand(-1, -1, heads // groups, -1, -1).flatten(1, 2)


AttentionInterface.register(NAME, attend)


def install(model: Any) -> Callable[[], None]:
    """Lets a causal language model be called with `forest=`: its attention is `attend`, and of its last
    hidden states only those of leaves are kept. Without a forest it cannot be called.

    Returns: a function that undoes it.

    Raises NotImplementedError for a model whose attention cannot be replaced.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise NotImplementedError(f"the attention of {type(model).__name__} cannot be replaced")
    before = model.config._attn_implementation

    def keep_leaves(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, kwargs["forest"].before :]
        return output

    model.set_attn_implementation(NAME)
    handle = model.base_model.register_forward_hook(keep_leaves, with_kwargs=True)

    def undo() -> None:
        handle.remove()
        model.set_attn_implementation(before)

    return undo
