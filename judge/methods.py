"""The judging methods by name, and a user's own as `module:Class`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gavel.command import key_values
from gavel.errors import InputError
from judge.method import Method

F = TypeVar("F", bound=Callable[..., Any])

#: method → module:Class
METHODS: dict[str, str] = {"gptscore": "judge.gptscore:GptScore"}


def make_method(name: str, options: dict[str, Any]) -> Method:
    """Makes a method from options; those that are None are left at the method's own defaults.

    Raises InputError for an unknown method, or an option that it does not have.
    """
    place = METHODS.get(name, name)
    module, colon, attribute = place.partition(":")
    if not colon:
        raise InputError(
            f"unknown method {name!r}",
            where="--method",
            hint=f"Known: {', '.join(METHODS)}; your own as module:Class.",
        )
    if name not in METHODS and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that nothing there takes the place of gavel's own modules
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot be imported: {error}", where=f"--method {name}") from None
    given = {key: value for key, value in options.items() if value is not None}
    known = (
        {f.name for f in dataclasses.fields(made) if f.init} if dataclasses.is_dataclass(made) else set(given)
    )
    unknown = sorted(given.keys() - known)
    if unknown:
        raise InputError(
            f"the method {name} has no option {unknown[0]!r}",
            where="--method-arg",
            hint=f"It has {', '.join(sorted(known))}.",
        )
    method: Method = made(**given)
    return method


def method_options(function: F) -> F:
    """Adds the options of judging methods; `method_from` reads them."""
    for option in reversed(
        [
            click.option(
                "--method",
                default="gptscore",
                show_default=True,
                help=f"One of {', '.join(METHODS)}, or your own as module:Class.",
            ),
            click.option(
                "--aspect",
                multiple=True,
                help="What to judge by; several may be given.  [default: correctness]",
            ),
            click.option(
                "--form",
                type=click.Choice(["direct", "generate", "rewrite", "question"]),
                help="How gptscore asks.  [default: generate]",
            ),
            click.option(
                "--measure",
                type=click.Choice(["mean", "sum", "per_byte"]),
                help="Which number is the score.  [default: mean]",
            ),
            click.option(
                "--direction",
                type=click.Choice(["candidate", "reference", "mean", "harmonic"]),
                help="Of the rewrite form.  [default: candidate]",
            ),
            click.option(
                "--count-eos/--no-count-eos",
                default=None,
                help="Score the end-of-sequence token too.  [default: no]",
            ),
            click.option(
                "--plain/--chat",
                "plain",
                default=None,
                help="Without or with the chat template.  [default: chat where there is one]",
            ),
            click.option(
                "--demonstrations",
                metavar="FILE",
                help="JSON Lines of worked examples: instruction, reference, candidate, answer.",
            ),
            click.option("--forms-file", metavar="FILE", help="Your own templates instead of gavel's."),
            click.option("--aspects-file", metavar="FILE", help="Your own aspects instead of gavel's."),
            click.option(
                "--method-arg",
                multiple=True,
                callback=key_values,
                metavar="KEY=VALUE",
                help="A further option of the method.",
            ),
        ]
    ):
        function = option(function)
    return function


def method_from(options: dict[str, Any]) -> Method:
    """Takes the method's options out of `options` and makes it."""
    file = options.pop("demonstrations")
    aspects = options.pop("aspect")
    settings = {
        "aspects": tuple(aspects) or None,
        "demonstrations": _demonstrations(file) if file else None,
        **{
            key: options.pop(key)
            for key in ("form", "measure", "direction", "count_eos", "plain", "forms_file", "aspects_file")
        },
        **options.pop("method_arg"),
    }
    return make_method(options.pop("method"), settings)


def _demonstrations(path: str) -> tuple[dict[str, Any], ...]:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=f"--demonstrations {path}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError("is not a JSON object", where=f"{path}:{number}")
        found.append(row)
    return tuple(found)
