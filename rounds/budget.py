"""What a run may spend, and what it has spent by what is on record: whether a stage was finished, stopped or
redone changes nothing of that."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gavel.errors import BudgetSpent
from gavel.rundir import read_lines
from judge.collect import Limits
from rounds.config import Budget
from rounds.ledger import Events


def check_budget(root: Path, budget: Budget, events: Events) -> None:
    """Raises BudgetSpent where the hours or the disk are spent."""
    if budget.hours is not None and (hours := events.seconds() / 3600) >= budget.hours:
        raise BudgetSpent(f"the budget of {budget.hours:g} hours is spent ({hours:.2f})",
                          where=str(root), hint="Raise hours in [budget] and resume.")  # fmt: skip
    if budget.disk_gb is not None and (size := _bytes_in(root) / 1e9) >= budget.disk_gb:
        raise BudgetSpent(f"the budget of {budget.disk_gb:g} GB on disk is spent ({size:.2f})",
                          where=str(root),
                          hint="Raise disk_gb in [budget], or free some, and resume.")  # fmt: skip


def judge_limits(root: Path, budget: Budget) -> Limits:
    """What is left of the labelling judge's budget."""
    if budget.judge_calls is None and budget.judge_tokens is None:
        return Limits()
    calls, tokens = asked_of_judge(root)
    return Limits(
        calls=None if budget.judge_calls is None else max(0, budget.judge_calls - calls),
        tokens=None if budget.judge_tokens is None else max(0, budget.judge_tokens - tokens),
    )


class Paid(msgspec.Struct):
    """What is read of a judgment to know what it cost: nothing where it shares another one's call."""

    id: str
    usage: dict[str, int] = {}

    @property
    def calls(self) -> int:
        return self.usage.get("calls", 1) if self.usage else 0

    @property
    def tokens(self) -> int:
        """Of its prompts."""
        return self.usage.get("prompt_tokens", 0)


def asked_of_judge(root: Path) -> tuple[int, int]:
    """Calls and prompt tokens of all labels on record, those that were set aside included; what was copied
    back and stands in both places counts once."""
    decoder = msgspec.json.Decoder(Paid)
    calls = tokens = 0
    for folder in sorted((root / "rounds").glob("*")):
        seen: set[str] = set()
        for run in (folder, *sorted((root / "redone").glob(f"*/rounds/{folder.name}"))):
            for path in sorted(run.glob("judgments/*/judgments.jsonl")):
                for _, _, line in read_lines(path):
                    paid = decoder.decode(line)
                    if paid.usage and paid.id not in seen:
                        calls += paid.calls
                        tokens += paid.tokens
                        seen.add(paid.id)
    return calls, tokens


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
