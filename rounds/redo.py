"""`gavel rounds resume --from STAGE`: what is to be redone is set aside, not thrown away.

RUN/redone/01 (02, …) gets the rounds and evaluations that are redone as they were, with figures.jsonl and the
manifest of that time. What the stages before STAGE made of its round is copied back.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from gavel.errors import InputError
from gavel.rundir import RunDir, write_atomic
from rounds.ledger import Ledger
from rounds.standing import read_figures

#: What each stage adds to its round's folder, in their order.
_MADE = {"sample": ("prompts.jsonl", "completions.jsonl"), "judge": ("judgments",), "pair": ("pairs",),
         "reward": ("reward",), "train": ("reference", "model"), "evaluate": ()}  # fmt: skip
STAGES = tuple(_MADE)
_MARKERS = {"sample": ("generate",), "judge": ("judge/",), "pair": ("pairs/",)}


def set_aside(root: Path, stage: str) -> Path:
    """Makes a run one that has not come to `stage` yet. Returns where the rest is kept.

    Raises InputError for a stage that is none or was not begun.
    """
    number, name = _parse(root, stage)
    with RunDir.open(root) as run:
        lines, aside = read_figures(root), _next(root)
        last = max(len(lines), number)
        aside.mkdir(parents=True)
        for file in ("manifest.json", "figures.jsonl", "config.toml"):
            if (root / file).exists():
                shutil.copy2(root / file, aside / file)
        for n in range(number, last + 1):
            for kind in ("rounds", "evaluation"):
                _move(root / kind / f"{n:02d}", aside / kind / f"{n:02d}")
        before = STAGES[: STAGES.index(name)]
        old, new = aside / "rounds" / f"{number:02d}", root / "rounds" / f"{number:02d}"
        if old.exists() and before:
            _copy_back(old, new, before)
        kept = b"".join(line.to_json() for line in lines if line.round < number)
        write_atomic(root / "figures.jsonl", kept)
        Ledger(run).forget(_from(number, name))
    return aside


def _parse(root: Path, stage: str) -> tuple[int, str]:
    matched = re.fullmatch(r"(\d+)/([a-z]+)", stage)
    known = [n for n in RunDir(root).manifest().get("stages", {}) if "/" in n]
    known += [n for n in RunDir(root).manifest().get("begun", {}) if "/" in n and n not in known]
    if matched and f"{int(matched[1]):02d}/{matched[2]}" in known and matched[2] in STAGES:
        return int(matched[1]), matched[2]
    raise InputError(f"{stage!r} was not begun in this run", where="--from",
                     hint=f"Known: {', '.join(known) or 'none'}.")  # fmt: skip


def _next(root: Path) -> Path:
    taken = [int(p.name) for p in (root / "redone").glob("*") if p.name.isdecimal()]
    return root / "redone" / f"{max(taken, default=0) + 1:02d}"


def _move(old: Path, new: Path) -> None:
    if old.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)


def _copy_back(old: Path, new: Path, before: tuple[str, ...]) -> None:
    """What the stages before made, with their completion markers."""
    new.mkdir(parents=True)
    for stage in before:
        for name in _MADE[stage]:
            if (old / name).is_dir():
                shutil.copytree(old / name, new / name)
            elif (old / name).exists():
                shutil.copy2(old / name, new / name)
    manifest = RunDir(old).manifest()
    done = tuple(marker for stage in before for marker in _MARKERS.get(stage, ()))
    stages = {n: e for n, e in manifest.get("stages", {}).items() if n.startswith(done)} if done else {}
    if "judge" not in before:
        manifest = {k: v for k, v in manifest.items() if k not in ("passes", "gates")}
    with RunDir.open(new) as run:
        run.note(**(manifest | {"stages": stages}))


def _from(number: int, name: str) -> Callable[[str], bool]:
    def is_after(stage: str) -> bool:
        round_, slash, which = stage.partition("/")
        if not slash:
            return False
        return int(round_) > number or (int(round_) == number and STAGES.index(which) >= STAGES.index(name))

    return is_after
