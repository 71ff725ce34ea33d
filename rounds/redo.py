"""`--from STAGE`: what is to be redone is set aside, not thrown away.

RUN/redone/01 (02, …) gets the rounds and evaluations that are redone as they were, with figures.jsonl,
config.toml and the manifest of that time. What the stages before STAGE made of its round is copied back.

A run is never between two states: all that needs room is first copied to RUN/redone/.part, then the manifest
says what is to be done, and then files are only renamed, which whoever opens the run next goes on with.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gavel.errors import InputError
from gavel.rundir import RunDir, disk_error, write_atomic
from rounds.config import RoundsConfig
from rounds.freed import folder_of, lacking
from rounds.ledger import Ledger
from rounds.standing import Line, read_figures
from rounds.toml_table import to_toml

#: What each stage adds to its round's folder, in their order.
_MADE = {"sample": ("prompts.jsonl", "completions.jsonl"), "judge": ("judgments",), "pair": ("pairs",),
         "reward": ("reward",), "train": ("reference", "model"), "evaluate": ()}  # fmt: skip
STAGES = tuple(_MADE)
_MARKERS = {"sample": ("generate",), "judge": ("judge/",), "pair": ("pairs/",)}


def parse(stage: str) -> tuple[int, str]:
    """Round and stage of a name as "02/train". Raises InputError for one that is none."""
    number, slash, name = stage.partition("/")
    if not (slash and re.fullmatch("[0-9]+", number) and name in STAGES):
        raise InputError(f"{stage!r} is no stage of a round", where="--from",
                         hint=f"For example 02/train; stages: {', '.join(STAGES)}.")  # fmt: skip
    return int(number), name


def from_on(number: int, name: str) -> Callable[[str], bool]:
    """Whether a stage, by its name in the ledger, is this one or one after it."""

    def is_after(stage: str) -> bool:
        round_, slash, which = stage.partition("/")
        if not slash:
            return False
        return int(round_) > number or (int(round_) == number and STAGES.index(which) >= STAGES.index(name))

    return is_after


def begun_in(run: RunDir) -> list[str]:
    """The stages that can be redone: those of rounds that were begun."""
    ledger = Ledger(run)
    return [name for name in dict.fromkeys([*ledger.entries(), *ledger.begun()]) if "/" in name]


def set_aside(run: RunDir, stage: str, config: RoundsConfig, lines: Sequence[Line]) -> Path:
    """Makes a run one that has not come to `stage` yet. Returns where the rest is kept.

    Args:
        run: open for writing. stage: one that was begun. config: by which the run goes on.
        lines: the rounds before it as that has them: by other gates a round may begin from other weights.

    Raises InputError, before anything is changed, where weights that are needed were freed, or what is copied
    finds no room.
    """
    number, name = parse(stage)
    _check_weights(run, number, name, config, lines)
    aside, part = _next(run.path), run.path / "redone" / ".part"
    try:
        with _writing(part):
            _copy_what_stays(run, number, name, part)
        run.note(redo={"from": stage, "aside": aside.name, "config": to_toml(dict(config.table))})
    except InputError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finish(run)
    return aside


def settle(root: Path) -> None:
    """Finishes a redo that was interrupted, where there is one."""
    if RunDir(root).manifest().get("redo"):
        with RunDir.open(root) as run:
            finish(run)


def finish(run: RunDir) -> None:
    """Does what is left of a redo that was decided on, and clears away one that was not; each of the steps
    may have been done before. run: open for writing.

    Raises InputError where the disk does not let it.
    """
    root, part = run.path, run.path / "redone" / ".part"
    decided: dict[str, Any] = run.manifest().get("redo") or {}
    if not decided:
        shutil.rmtree(part, ignore_errors=True)
        return
    number, name = parse(decided["from"])
    aside = root / "redone" / decided["aside"]
    with _writing(aside):
        if part.exists():
            part.rename(aside)
        for kind in ("rounds", "evaluation"):
            for old in sorted((root / kind).glob("*")):
                new = aside / kind / old.name
                if old.name.isdecimal() and int(old.name) >= number and not new.exists():
                    new.parent.mkdir(parents=True, exist_ok=True)
                    old.rename(new)
        if (aside / "kept").exists():
            (aside / "kept").rename(folder_of(root, number))
        kept = b"".join(line.to_json() for line in read_figures(root) if line.round < number)
        write_atomic(root / "figures.jsonl", kept)
        write_atomic(root / "config.toml", decided["config"].encode())
        ledger = Ledger(run)
        ledger.events.add("redo", stage=decided["from"])
        ledger.forget(from_on(number, name), redo=None)


def _check_weights(run: RunDir, number: int, name: str, config: RoundsConfig, lines: Sequence[Line]) -> None:
    lines = [*lines, *read_figures(run.path)[len(lines) :]]
    missing = lacking(run.path, lines, config.train, number, name)
    if missing:
        possible = [
            stage for stage in begun_in(run) if not lacking(run.path, lines, config.train, *parse(stage))
        ]
        raise InputError(
            f"round {number} needs weights that were freed: {', '.join(map(str, missing))}",
            where=f"--from {number:02d}/{name}",
            hint=f"What can be redone: {', '.join(possible)}. To keep more in other runs: every in [keep].",
        )


def _next(root: Path) -> Path:
    taken = [int(p.name) for p in (root / "redone").glob("*") if p.name.isdecimal()]
    return root / "redone" / f"{max(taken, default=0) + 1:02d}"


def _copy_what_stays(run: RunDir, number: int, name: str, part: Path) -> None:
    """The run's files as they are now, and in `kept` what the stages before made of the round, with their
    completion markers."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in ("manifest.json", "figures.jsonl", "config.toml"):
        _copy(run.path / file, part / file)
    old, new, before = folder_of(run.path, number), part / "kept", STAGES[: STAGES.index(name)]
    if not (old.exists() and before):
        return
    new.mkdir()
    for stage in before:
        for made in _MADE[stage]:
            _copy(old / made, new / made)
    manifest = RunDir(old).manifest()
    done = tuple(marker for stage in before for marker in _MARKERS.get(stage, ()))
    stages = {n: e for n, e in manifest.get("stages", {}).items() if n.startswith(done)} if done else {}
    if "judge" not in before:
        manifest = {k: v for k, v in manifest.items() if k not in ("passes", "gates")}
    RunDir(new).note(**(manifest | {"stages": stages}))


def _copy(old: Path, new: Path) -> None:
    """A file or a folder, to the disk: what it is a copy of will be moved. Nothing where there is none."""
    if old.is_dir():
        new.mkdir()
        for inner in sorted(old.iterdir()):
            _copy(inner, new / inner.name)
    elif old.exists():
        shutil.copy2(old, new)
        with open(new, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the disk refuses, said for a person."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from None
