"""The judging stage: completions of a run directory to judgments, in a named pass."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gavel.errors import CheckFailed, RunDirError
from gavel.progress import Progress
from gavel.protocols import Engine
from gavel.records import Completion, Prompt
from gavel.rundir import Index, JsonlWriter, RunDir, count_lines, read_records
from gavel.sources import BadRows, OutputRow
from judge.collect import collect
from judge.method import Method


def judge(run: RunDir, engine: Engine, method: Method, *, name: str | None = None) -> dict[str, Any]:
    """Judges what the pass does not hold yet and returns a summary.

    Args:
        run: open for writing, with prompts and completions.
        name: of the pass; method and judge by default.

    Raises:
        CapabilityError: the engine cannot do what the method needs.
        RunDirError: the run has no completions.
        CheckFailed: not one judgment could be used.
    """
    started = time.monotonic()
    judging = name or pass_name(method.name, engine.model)
    path = run.judgments_path(judging)
    total = count_lines([run.completions_path])
    if not total:
        raise RunDirError(
            "holds no completions to judge", where=str(run.path), hint="Run gavel generate first."
        )
    stage = f"judge/{judging}"
    run.reopen_stage(stage)
    done = run.ids(path)
    index = Index(run.completions_path)
    try:
        with JsonlWriter(path) as writer, Progress(f"judging ({method.name})", None) as progress:
            counts = collect(
                _groups(run, index),
                method,
                engine,
                done=done,
                record=writer.append,
                progress=progress.advance,
            )
    finally:
        index.close()
    seconds = time.monotonic() - started
    judgments = counts["judged"] + counts["reused"]
    summary = {
        "pass": judging,
        "judgments": judgments,
        "judged": counts["judged"],
        "reused": counts["reused"],
        "unusable": counts["unusable"],
        "calls": counts["calls"],
        "tokens": counts["tokens"],
        "seconds": round(seconds, 2),
        "judge": engine.model,
        "weights": engine.weights,
        "method": method.name,
        "settings": method.fingerprint,
    }
    run.finish_stage(stage, summary)
    if counts["judged"] and counts["unusable"] == counts["judged"] and not counts["reused"]:
        raise CheckFailed(
            "not one judgment could be used", where=str(path), hint="Their reasons stand in the file."
        )
    return summary


def take_in_outputs(run: RunDir, read: Callable[[BadRows], Iterable[OutputRow]], bad: BadRows) -> int:
    """Records outputs that exist already as prompts and completions; returns how many there are.

    The source is read twice: nothing is written before all of it was seen, so bad input changes
    nothing.

    Raises InputError when too many rows cannot be used.
    """
    count = sum(len(row.completions) for row in read(bad))
    bad.check()
    prompts, completions = run.ids(run.prompts_path), run.ids(run.completions_path)
    with JsonlWriter(run.prompts_path) as prompt_writer, JsonlWriter(run.completions_path) as writer:
        for row in read(BadRows.quiet()):
            if row.prompt.id not in prompts:
                prompts.add(row.prompt.id)
                prompt_writer.append(row.prompt)
            for completion in row.completions:
                if completion.id not in completions:
                    writer.append(completion)
    return count


def pass_name(method: str, model: str) -> str:
    """Method and judge, fit for a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{method}-{Path(model).name or model}").strip("-.")


def _groups(run: RunDir, index: Index) -> Iterator[tuple[Prompt, list[Completion]]]:
    for prompt in read_records(run.prompts_path, Prompt):
        completions = index.read(prompt.id, Completion)
        if completions:
            yield prompt, completions
