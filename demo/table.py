"""The demo's tables: the only place that reads the oracle.

`python -m demo.table OUT` shows exact match over the iterations of `gavel train ppo` on round 1's prompts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from demo.oracle import exact_match
from demo.tasks import Pool, draw
from gavel.records import Completion, PreferencePair, Prompt
from gavel.rundir import RunDir, read_records

ROUND_TASKS = 2048  # that PPO's prompts were drawn from: round 1's


def figures(root: Path, number: int, pairs: str | None, drawn: int, held_out: int) -> dict[str, Any]:
    """One row of the table, in percent.

    drawn, held_out: how many tasks the rounds and the evaluation had.
    judge_accuracy: of the pairs with one right and one wrong answer, how many prefer the right one;
    None for round 0, which has no pairs.
    """
    row: dict[str, Any] = {"round": number}
    answers = _answers("held-out", held_out)
    for name in ("sampled", "greedy"):
        run = RunDir(root / "demo" / f"{number:02d}-{name}")
        right = list(_right(run, answers).values())
        row[f"exact_match_{name}"] = round(100 * sum(right) / len(right), 2)
        row[f"{name}_answers"] = len(right)
    row |= {"pairs": 0, "judge_accuracy": None}
    if pairs is not None:
        run = RunDir(root / "rounds" / f"{number:02d}")
        right_by_id = _right(run, _answers("round", drawn))
        agrees = []
        for pair in read_records(run.pairs_path(pairs), PreferencePair):
            row["pairs"] += 1
            chosen, rejected = right_by_id[pair.chosen_id], right_by_id[pair.rejected_id]
            if chosen != rejected:
                agrees.append(chosen)
        row["judge_accuracy"] = round(100 * sum(agrees) / len(agrees), 2) if agrees else None
    return row


def show(result: dict[str, Any]) -> None:
    """Prints the table for a person."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="exact match on held-out prompts")
    for column in ("round", "sampled %", "greedy %", "pairs", "judge right %"):
        table.add_column(column, justify="right")
    for row in result["rounds"]:
        judge = row["judge_accuracy"]
        table.add_row(
            str(row["round"]) if row["round"] else "before",
            f"{row['exact_match_sampled']:.1f}",
            f"{row['exact_match_greedy']:.1f}",
            f"{row['pairs']:,}" if row["pairs"] else "-",
            f"{judge:.1f}" if judge is not None else "-",
        )
    console = Console()
    console.print(table)
    seconds = ", ".join(f"{stage} {spent:.0f}" for stage, spent in result["seconds"].items())
    console.print(f"seconds: {seconds}", highlight=False, soft_wrap=True)
    console.print(result["words"], highlight=False, soft_wrap=True)
    console.print(f"the page of the run: {result['report']}", highlight=False, soft_wrap=True)
    console.print(f"everything was written to {result['run']}", highlight=False, soft_wrap=True)


def by_iteration(out: Path) -> list[float]:
    """Percent of each PPO iteration's own samples that are right."""
    answers = _answers("round", ROUND_TASKS)
    found = []
    for folder in sorted((out / "rollouts").iterdir()):
        right = list(_right(RunDir(folder), answers).values())
        found.append(round(100 * sum(right) / len(right), 1))
    return found


def _answers(pool: Pool, count: int) -> dict[str, str]:
    """Prompt → its right answer."""
    return {task.prompt: task.answer for task in draw(pool, count)}


def _right(run: RunDir, answers: dict[str, str]) -> dict[str, bool]:
    """Completion id → whether it is right."""
    prompts = {p.id: p.messages[-1].content for p in read_records(run.prompts_path, Prompt)}
    return {
        c.id: exact_match(answers[prompts[c.prompt_id]], c.text)
        for c in read_records(run.completions_path, Completion)
    }


if __name__ == "__main__":
    for number, right in enumerate(by_iteration(Path(sys.argv[1])), 1):
        print(f"iteration {number:3}  {right:5.1f} %")
