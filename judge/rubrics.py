"""Rubrics: what is judged by, as data: a table per aspect with its definition and, if wanted, a
description of each level."""

from __future__ import annotations

from typing import Any

from gavel.errors import InputError
from gavel.templates import tables


def rubrics(file: str | None, kind: str = "rating", name: str = "rubrics") -> dict[str, dict[str, Any]]:
    """Aspect → {name, definition, levels} of ``prompts/<kind>/<name>.toml``, or of the user's own file.

    Raises InputError for a table without a definition, or with levels that are no list of texts.
    """
    found = tables(kind, name, file)
    for aspect, entry in found.items():
        levels = entry.setdefault("levels", [])
        sound = isinstance(levels, list) and all(isinstance(level, str) for level in levels)
        if not isinstance(entry.get("definition"), str) or not sound:
            raise InputError(
                f"[{aspect}] needs a definition (text), and levels if any (a list of texts)",
                where=file or f"prompts/{kind}/{name}.toml",
            )
        entry["name"] = aspect.replace("_", " ")
    return found


def chosen(wanted: tuple[str, ...], known: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The aspects wanted, each once. Raises InputError for none, or one that is not known."""
    if not wanted:
        raise InputError("needs at least one aspect", where="--aspect")
    for aspect in wanted:
        if aspect not in known:
            raise InputError(
                f"unknown aspect {aspect!r}", where="--aspect", hint=f"Known: {', '.join(known)}."
            )
    return tuple(dict.fromkeys(wanted))
