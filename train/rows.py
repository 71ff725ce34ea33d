"""What all trainers know of their rows, and how a model reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from gavel.errors import RowError
from gavel.rows import BadRows
from gavel.tokenizer import HfTokenizer


class Row(Protocol):
    """What every trainer wants to know of a row.

    noun: what rows of its kind are called. name: its id, and where it comes from. place: where it comes
        from, for a person. length: tokens of its longest sequence. fault: why it cannot be trained on.
    """

    noun: ClassVar[str]

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def fault(self) -> str | None: ...


@dataclass(frozen=True)
class Encoder:
    """How a model reads text.

    weights: version of the reference's weights; log-probabilities recorded under any other version are not
        the reference's.
    context: the model's longest sequence in tokens, None for no limit.
    max_length: longer rows are left out on purpose.
    left_out: rows left out, by reason. completions: how many of the rows' completions are trained on
        as "sampled" token ids, and how many were "tokenised" here from text.
    """

    tokenizer: HfTokenizer
    weights: str | None = None
    context: int | None = None
    max_length: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    completions: Counter[str] = field(default_factory=Counter)

    def takes(self, length: int, place: str, bad: BadRows) -> bool:
        """Whether a row is short enough: longer than is wanted is counted, else longer than the context is an
        error of that row."""
        if self.max_length is not None and length > self.max_length:
            self.left_out["longer than --max-length"] += 1
            return False
        if self.context is not None and length > self.context:
            bad.add(RowError(f"{length} tokens, the model's context is {self.context}", where=place,
                             hint=f"--max-length {self.context} leaves such rows out."))  # fmt: skip
            return False
        return True
