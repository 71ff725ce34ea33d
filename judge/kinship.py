"""Whether judge and policy are the same model, or of one family: a judge prefers its own kind's answers
(self-preference), so its labels say less."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gavel.command import say, warn
from gavel.rundir import read_lines

LOOKS = 1000  # completions looked at for their model and weights


@dataclass(frozen=True, slots=True)
class Kin:
    """A model as the user named it, with its weights version if it is known."""

    model: str
    weights: str | None = None


class _Made(msgspec.Struct):
    """What `policies` reads of a completion."""

    model: str | None = None
    weights: str | None = None


def policies(completions: Path) -> list[Kin]:
    """The models that made the first completions of a run."""
    decoder = msgspec.json.Decoder(_Made)
    found: dict[Kin, None] = {}
    for number, _, line in read_lines(completions):
        if number > LOOKS:
            break
        made = decoder.decode(line)
        if made.model:
            found.setdefault(Kin(made.model, made.weights))
    return list(found)


def relation(judges: Iterable[Kin], makers: Iterable[Kin]) -> str | None:
    """How a judge is related to a maker of what it judges, in words; None where it is not."""
    makers = list(makers)
    for judge in judges:
        for maker in makers:
            if judge.model == maker.model or (judge.weights and judge.weights == maker.weights):
                return f"the judge {judge.model} is the model that is judged"
    for judge in judges:
        for maker in makers:
            family = family_of(judge.model)
            if family and family == family_of(maker.model):
                return f"the judge {judge.model} and the policy {maker.model} are of one family ({family})"
    return None


def warn_of_kin(judges: Iterable[Kin], makers: Iterable[Kin], *, allowed: bool) -> None:
    """Warns of a judge that is related to a maker; where that is meant (--self-judge), says so."""
    related = relation(judges, makers)
    if related is not None and allowed:
        say(f"{related} (--self-judge)")
    elif related is not None:
        warn(f"{related}: judges prefer their own kind. Use another judge, or say --self-judge.")


def family_of(model: str) -> str | None:
    """The family of a model: the first word of its name, such as "qwen" of Qwen/Qwen2.5-7B-Instruct; of
    a directory the name it was made from, where its config.json says one. None where there is none.

    >>> family_of("Qwen/Qwen2.5-7B-Instruct"), family_of("meta-llama/Llama-3.1-8B"), family_of("./out")
    ('qwen', 'llama', None)
    """
    path = Path(model)
    if path.is_dir() or model.startswith((".", "/", "~")):
        try:
            name = json.loads((path / "config.json").read_bytes()).get("_name_or_path") or ""
        except (OSError, ValueError, AttributeError):
            return None
        if not name or name.startswith((".", "/", "~")):
            return None
        model = str(name)
    word = re.match(r"(?:meta-?)?([a-z]+)", model.rpartition("/")[2].lower())
    return word.group(1) if word and len(word.group(1)) > 2 else None
