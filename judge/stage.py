"""The judging stage: completions of a run directory to judgments, in a named pass."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gavel.errors import CheckFailed, RunDirError
from gavel.progress import Progress
from gavel.protocols import Engine
from gavel.records import Completion, Judgment, Prompt
from gavel.rundir import Index, JsonlWriter, RunDir, holds_lines, read_records
from gavel.sources import BadRows, OutputRow
from judge.collect import UNLIMITED, Limits, collect, identity, recorded
from judge.method import Method, orders_of


class NothingUsable(CheckFailed):
    """A pass without one judgment that can be used. summary: of the pass."""

    def __init__(self, what: str, summary: dict[str, Any], **place: Any) -> None:
        super().__init__(what, **place)
        self.summary = summary


#: Prompts with their completions, from the start each time it is called.
Groups = Callable[[], Iterable[tuple[Prompt, list[Completion]]]]


def judge(
    run: RunDir,
    engine: Engine,
    method: Method,
    *,
    name: str | None = None,
    groups: Groups | None = None,
    limits: Limits = UNLIMITED,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judges what the pass does not hold yet and returns a summary.

    Args:
        run: open for writing.
        name: of the pass; method and judge by default.
        groups: what to judge; None for the completions of the run.
        limits: where to stop asking.
        options: what the method was made of, kept so that its replies can be read again.

    Raises:
        CapabilityError: the engine cannot do what the method needs.
        RunDirError: the run has no completions, or the pass holds judgments of other settings.
        NothingUsable: not one judgment could be used.
    """
    started = time.monotonic()
    judging = name or pass_name(method.name, engine.model)
    path = run.judgments_path(judging)
    if groups is None and not holds_lines(run.completions_path):
        raise RunDirError(
            "holds no completions to judge", where=str(run.path), hint="Run gavel generate first."
        )
    stage = f"judge/{judging}"
    _claim_pass(run, judging, method, engine, options)
    run.reopen_stage(stage)
    with contextlib.closing(Index(run.completions_path)) as index:
        counts = _rounds(path, method, engine, groups or (lambda: groups_of(run, index)), limits)
    seconds = time.monotonic() - started
    judgments = counts["judged"] + counts["reused"]
    summary = {
        "pass": judging,
        "judgments": judgments,
        "judged": counts["judged"],
        "reused": counts["reused"],
        "unusable": counts["unusable"],
        "failed": counts["failed"],
        "left": counts["left"],
        "calls": counts["calls"],
        "tokens": counts["tokens"],
        "completion_tokens": counts["completion_tokens"],
        "seconds": round(seconds, 2),
        "judge": engine.model,
        "weights": engine.weights,
        "method": method.name,
        "settings": method.fingerprint,
    }
    if not counts["left"] and not counts["failed"]:
        run.finish_stage(stage, summary)
    if judgments and counts["unusable"] == judgments and not counts["left"]:
        raise NothingUsable(
            "not one judgment could be used",
            summary,
            where=str(path),
            hint="Their reasons stand in the file.",
        )
    return summary


def _rounds(path: Path, method: Method, engine: Engine, groups: Groups, limits: Limits) -> Counter[str]:
    """Asks until the method has nothing more to ask: once, or for an adaptive one round by round."""
    total: Counter[str] = Counter()
    done = recorded(path)

    def record(judgment: Judgment) -> None:
        writer.append(judgment)
        done[judgment.id] = judgment.reason

    while True:
        with contextlib.ExitStack() as stack:
            judged: dict[str, Any] = {}
            if method.adaptive:
                index = stack.enter_context(contextlib.closing(Index(path)))
                judged["judged"] = partial(index.read, kind=Judgment)
            writer = stack.enter_context(JsonlWriter(path))
            progress = stack.enter_context(Progress(f"judging ({method.name})", None))
            counts = collect(
                groups(),
                method,
                engine,
                done=done,
                record=record,
                progress=progress.advance,
                limits=limits.after(total),
                **judged,
            )
        again = ("reused", "reused_unusable") if total else ()
        total.update({key: n for key, n in counts.items() if key not in again})
        if not method.adaptive or not counts["judged"] or counts["left"]:
            total["unusable"] += total["reused_unusable"]
            return total


def take_in_outputs(run: RunDir, read: Callable[[BadRows], Iterable[OutputRow]], bad: BadRows) -> int:
    """Records outputs that exist already as prompts and completions; returns how many there are.

    The source is read twice: nothing is written before all of it was seen, so bad input changes
    nothing.

    Raises InputError when the run holds another prompt under the same given id, or too many rows
    cannot be used.
    """
    known = run.known_prompts()
    count = 0
    for row in read(bad):
        count += len(row.completions)
        run.refuse_other(known, row.prompt)
    bad.check()
    prompts, completions = set(known), run.ids(run.completions_path)
    with JsonlWriter(run.prompts_path) as prompt_writer, JsonlWriter(run.completions_path) as writer:
        for row in read(BadRows.quiet()):
            if row.prompt.id not in prompts:
                prompts.add(row.prompt.id)
                prompt_writer.append(row.prompt)
            for completion in row.completions:
                if completion.id not in completions:
                    completions.add(completion.id)
                    writer.append(completion)
    return count


def _claim_pass(
    run: RunDir, judging: str, method: Method, engine: Engine, options: Mapping[str, Any] | None
) -> None:
    """Notes what a pass is judged by; judgments of several kinds in one would be averaged into pairs.

    Raises RunDirError when it was judged by something else. Further aspects are welcome.
    """
    passes = run.manifest().get("passes", {})
    before = passes.get(judging, {})
    asks = {aspect: method.template(aspect) for aspect in method.aspects}
    now = identity(method, engine)
    differs = [key for key, value in now.items() if before.get(key, value) != value]
    templates = before.get("templates", {})
    differs += [f"template of {a}" for a, template in asks.items() if templates.get(a, template) != template]
    if differs:
        raise RunDirError(
            f"the judging pass {judging!r} was begun with another {', '.join(differs)}",
            where=str(run.path),
            hint="Give this one a name of its own with --name.",
        )
    entry = {"judge": engine.model, **now, "templates": templates | asks}
    if (orders := orders_of(method)) is not None:
        entry["orders"] = orders
    if options is not None:
        entry["options"] = dict(options)
    if entry != before:
        run.note(passes=passes | {judging: entry})


def pass_name(method: str, model: str) -> str:
    """Method and judge, fit for a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{method}-{Path(model).name or model}").strip("-.")


def groups_of(run: RunDir, index: Index) -> Iterator[tuple[Prompt, list[Completion]]]:
    for prompt in read_records(run.prompts_path, Prompt):
        completions = index.read(prompt.id, Completion)
        if completions:
            yield prompt, completions
