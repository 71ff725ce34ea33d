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

#: method → module:Class; "panel" and "implicit" are several judges, see judge.panel
METHODS: dict[str, str] = {
    "gptscore": "judge.gptscore:GptScore",
    "rating": "judge.rating:Rating",
    "pairwise": "judge.pairwise:Pairwise",
    "listwise": "judge.listwise:Listwise",
    "principles": "judge.pairwise:Principles",
    "reward": "judge.reward:Reward",
}
SEVERAL = ("panel", "implicit")


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
            hint=f"Known: {', '.join((*METHODS, *SEVERAL))}; your own as module:Class.",
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
            where=FLAGS.get(unknown[0], "--method-arg"),
            hint=f"It has {', '.join(FLAGS.get(k, k) for k in sorted(known)) or 'none'}.",
        )
    try:
        method: Method = made(**given)
    except TypeError as error:
        raise InputError(f"cannot be made: {error}", where=f"--method {name}") from None
    return method


#: keyword of a method → its option on the command line
FLAGS: dict[str, str] = {
    "aspects": "--aspect",
    "preset": "--preset",
    "verdict": "--verdict",
    "rubric": "--rubric",
    "scale": "--scale",
    "with_reference": "--with-reference",
    "one_prompt": "--one-prompt",
    "max_tokens": "--max-reply-tokens",
    "orders": "--orders",
    "pairs": "--pairs",
    "ties": "--ties",
    "permutations": "--permutations",
    "draw": "--draw",
    "form": "--form",
    "measure": "--measure",
    "direction": "--direction",
    "count_eos": "--count-eos",
    "plain": "--plain",
    "demonstrations": "--demonstrations",
    "forms_file": "--forms-file",
    "aspects_file": "--aspects-file",
    "reference": "--reference",
    "beta": "--beta",
    "panel": "--panel",
}


def _scale(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    low, dash, high = value.partition("-")
    if not (dash and low.isdecimal() and high.isdecimal()):
        raise InputError(f"{value!r} is no scale", where="--scale", hint="For example 1-5.")
    return int(low), int(high)


def method_options(default: str = "gptscore") -> Callable[[F], F]:
    """Adds the options of judging methods; `method_from` reads them. default: the method."""
    made = [
        click.option(
            "--method",
            default=default,
            show_default=True,
            help=f"One of {', '.join([*METHODS, *SEVERAL])}, or your own as module:Class.",
        ),
        click.option("--aspect", "aspects", multiple=True, help="What to judge by; several may be given."),
        click.option("--preset", help="How it is asked: a table of prompts/METHOD/forms.toml."),
        click.option(
            "--verdict",
            type=click.Choice(["logprobs", "choice", "json", "text"]),
            help="How the reply is read.  [default: the preset's]",
        ),
        click.option("--rubric", metavar="FILE", help="Your own aspects (TOML: definition, levels)."),
        click.option("--scale", metavar="LOW-HIGH", callback=_scale, help="Of ratings, e.g. 1-5."),
        click.option(
            "--with-reference/--without-reference",
            "with_reference",
            default=None,
            help="Show the reference answer.  [default: where the prompt has one]",
        ),
        click.option(
            "--one-prompt/--prompt-per-aspect",
            "one_prompt",
            default=None,
            help="rating: all aspects in one JSON reply.  [default: no]",
        ),
        click.option("--max-reply-tokens", "max_tokens", type=int, help="Longest reply of the judge."),
        click.option(
            "--orders",
            type=click.Choice(["both", "one"]),
            help="pairwise: in which orders to show.  [default: both]",
        ),
        click.option(
            "--pairs",
            metavar="PLAN",
            help="pairwise: all, random:N, tournament or best-worst.  [default: all]",
        ),
        click.option("--ties/--no-ties", "ties", default=None, help="pairwise: whether a tie may be said."),
        click.option("--permutations", type=int, help="listwise: orders asked about.  [default: 4]"),
        click.option(
            "--draw",
            type=click.Choice(["one", "all"]),
            help="principles: one drawn for each pair, or all averaged.  [default: one]",
        ),
        click.option("--reference", metavar="MODEL", help="implicit: the reference policy."),
        click.option("--beta", type=float, help="implicit: DPO's beta.  [default: 0.1]"),
        click.option("--panel", metavar="FILE", help="panel: TOML with its judges."),
        click.option(
            "--form",
            type=click.Choice(["direct", "generate", "rewrite", "question"]),
            help="How gptscore asks.  [default: generate]",
        ),
        click.option(
            "--measure",
            type=click.Choice(["mean", "sum", "per_byte"]),
            help="gptscore: which number is the score.  [default: mean]",
        ),
        click.option(
            "--direction",
            type=click.Choice(["candidate", "reference", "mean", "harmonic"]),
            help="gptscore: of the rewrite form.  [default: candidate]",
        ),
        click.option(
            "--count-eos/--no-count-eos",
            default=None,
            help="gptscore: score the end of finished answers too.  [default: no]",
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
            help="gptscore: JSON Lines of worked examples: instruction, reference, candidate, answer.",
        ),
        click.option("--forms-file", metavar="FILE", help="Your own templates instead of gavel's."),
        click.option("--aspects-file", metavar="FILE", help="gptscore: your own aspects."),
        click.option(
            "--method-arg",
            multiple=True,
            callback=key_values,
            metavar="KEY=VALUE",
            help="A further option of the method.",
        ),
    ]

    def wrap(function: F) -> F:
        for option in reversed(made):
            function = option(function)
        return function

    return wrap


def method_from(options: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Takes the method's options out of `options`.

    Returns: the method's name, what it is made of, and both as the manifest can keep them.
    """
    given = {key: options.pop(key) for key in FLAGS if key in options}
    given["aspects"] = tuple(given.get("aspects") or ()) or None
    if given.get("demonstrations"):
        given["demonstrations"] = _demonstrations(given["demonstrations"])
    settings = {key: value for key, value in (given | options.pop("method_arg")).items() if value is not None}
    name = options.pop("method")
    if settings.get("panel") and name not in SEVERAL:
        name = "panel"
    return name, settings, {"method": name, "settings": settings}


def check_judge(model: str | None, options: dict[str, Any]) -> None:
    """Raises InputError where a method of gavel's is not told which model judges; before any work."""
    if model is None and options["method"] in METHODS and not options.get("panel"):
        raise InputError("a judge is needed", where="--judge", hint="A model directory or hub id.")


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
