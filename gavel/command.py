"""What every command shares: `--config FILE`, `--json`, key=value options, results and exit codes.

Imports click and the standard library only, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from gavel.errors import Exit, GavelError, InputError
from gavel.processes import is_main

F = TypeVar("F", bound=Callable[..., Any])


class ConfigCommand(click.Command):
    """A command whose every option can stand in a TOML file; the flag on the command line wins.

    A key is the option's long flag without the dashes: `max-tokens` or `max_tokens`. An option that
    may be given several times is a list, a KEY=VALUE option a table, a switch true or false.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--config"],
                type=click.Path(dir_okay=False),
                is_eager=True,
                expose_value=False,
                callback=_load_config,
                help="TOML file with any of these options; a flag wins over it.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if error.param is None or not _from_file(ctx, error.param):
                raise
            raise InputError(error.message, where=place(ctx, error.param)) from None


_CONFIG = "gavel.config"  # the file, in click's Context.meta


def _load_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    table = read_toml(value, f"--config {value}")
    ctx.meta[_CONFIG] = value
    ctx.default_map = {**(ctx.default_map or {}), **_defaults(ctx.command, table, value)}


def read_toml(path: str, where: str) -> dict[str, Any]:
    """A TOML file. Raises InputError, which names `where`, for one that cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error}", where=where) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not TOML: {error}", where=where) from None


def _defaults(command: click.Command, table: dict[str, Any], where: str) -> dict[str, Any]:
    """What a table says of a command's options, by their names in Python.

    Raises InputError for a key that is no option, twice the same, or of a wrong type.
    """
    options = _options_by_key(command)
    defaults: dict[str, Any] = {}
    for key, entry in table.items():
        name = key.replace("_", "-")
        if name not in options:
            raise InputError(f'unknown key "{key}"', where=where, hint=nearest(name, options))
        option, negated = options[name]
        if option.name in defaults:
            raise InputError(f'"{key}" is set a second time', where=where)
        default = _default(option, entry, where=f"{where}, {key}")
        defaults[str(option.name)] = not default if negated else default
    return defaults


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name that is not known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else "Known: " + ", ".join(known) + "."


def options_of(command: click.Command, table: dict[str, Any], where: str, set_elsewhere: Container[str]
               ) -> dict[str, Any]:  # fmt: skip
    """The options of a command as a table of a TOML file gives them, each checked as on the command line.

    Args:
        where: of the table, for messages. set_elsewhere: options, by their names in Python, that the table
            does not have.

    Raises InputError for an unknown key, a value that cannot be used, or a missing one.
    """
    params = [
        p for p in command.params
        if isinstance(p, click.Option) and p.name not in set_elsewhere and p.name not in ("config", "as_json")
    ]  # fmt: skip
    part = click.Command(command.name, params=list(params))
    defaults = _defaults(part, table, where)
    ctx = click.Context(part, default_map=defaults)
    ctx.meta[_CONFIG] = where
    try:
        part.parse_args(ctx, [])
    except click.MissingParameter as error:
        raise InputError(f"lacks {error.param.name if error.param else error}", where=where) from None
    except click.BadParameter as error:
        raise InputError(error.message, where=place(ctx, error.param) if error.param else where) from None
    return ctx.params


def _options_by_key(command: click.Command) -> dict[str, tuple[click.Option, bool]]:
    """TOML key → (option, whether the key is its negative, as in --plain/--chat)."""
    found: dict[str, tuple[click.Option, bool]] = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in ("config", "help"):
            found |= {flag[2:]: (option, False) for flag in option.opts if flag.startswith("--")}
            found |= {flag[2:]: (option, True) for flag in option.secondary_opts if flag.startswith("--")}
    return found


def _default(option: click.Option, entry: Any, where: str) -> Any:
    """A TOML value as click wants an option's default. Raises InputError for a wrong type."""
    if option.is_flag:
        if not isinstance(entry, bool):
            raise InputError(f"{entry!r} is neither true nor false", where=where)
        return entry
    if not option.multiple:
        return _scalar(option.type, entry, where)
    if isinstance(entry, dict):
        if option.callback is key_values:  # as JSON, so that a string stays one
            return [f"{key}={json.dumps(value, default=str)}" for key, value in entry.items()]
        if option.callback is text_values:
            return [f"{key}={_scalar(option.type, value, where)}" for key, value in entry.items()]
    entries = entry if isinstance(entry, list) else [entry]
    return [_scalar(option.type, item, where) for item in entries]


def _scalar(kind: click.ParamType[Any], entry: Any, where: str) -> Any:
    numeric = isinstance(entry, int | float) and not isinstance(entry, bool)
    if isinstance(kind, click.types.IntParamType):
        fits, wanted = numeric and isinstance(entry, int), "a whole number"
    elif isinstance(kind, click.types.FloatParamType):
        fits, wanted = numeric, "a number"
    else:
        fits, wanted = numeric or isinstance(entry, str), "a string"
    if not fits:
        raise InputError(f"{entry!r} is not {wanted}", where=where)
    return entry if isinstance(kind, click.types.IntParamType | click.types.FloatParamType) else str(entry)


def _from_file(ctx: click.Context, param: click.Parameter) -> bool:
    return ctx.get_parameter_source(str(param.name)) is click.core.ParameterSource.DEFAULT_MAP


def place(ctx: click.Context, param: click.Parameter) -> str:
    """Where an option's value stands: its flag, or file and key."""
    flag = max(param.opts, key=len)
    return f"{ctx.meta[_CONFIG]}, {flag.lstrip('-')}" if _from_file(ctx, param) else flag


def command(help: str, **settings: Any) -> Callable[[F], click.Command]:
    """Decorator: a gavel command with `--config` and `--json`. The function gets `as_json`."""

    def wrap(function: F) -> click.Command:
        json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        return click.command(
            cls=ConfigCommand, help=help, context_settings={"max_content_width": 100}, **settings
        )(json_flag(function))

    return wrap


def key_values(ctx: click.Context, param: click.Parameter, entries: tuple[str, ...]) -> dict[str, Any]:
    """click callback: KEY=VALUE entries as a dict; a value is read as JSON where it is JSON."""
    found: dict[str, Any] = {}
    for key, value in text_values(ctx, param, entries).items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def text_values(ctx: click.Context, param: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    """click callback: KEY=VALUE entries as a dict of strings."""
    found: dict[str, str] = {}
    for entry in entries:
        key, sign, value = entry.partition("=")
        if not sign or not key:
            raise InputError(f"{entry!r} is not KEY=VALUE", where=place(ctx, param))
        found[key] = value
    return found


def say(message: str) -> None:
    """Tells the person something, on standard error; of several processes the first speaks."""
    if is_main():
        click.echo(message, err=True)


def warn(message: str) -> None:
    say(click.style("warning: ", fg="yellow") + message)


def emit(result: dict[str, Any], as_json: bool, title: str | None = None) -> None:
    """Prints a command's result on standard output: one JSON object, or two columns for a person. Of several
    processes the first prints."""
    if not is_main():
        return
    if as_json:
        click.echo(json.dumps(_finite(result), ensure_ascii=False, allow_nan=False))
        return
    if title:
        click.echo(title)
    rows = [(key.replace("_", " "), _plain(value)) for key, value in result.items()]
    width = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:
        click.echo(f"  {key.ljust(width)}  {value}")


def _finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple):
        if any(isinstance(v, dict) for v in value):  # a table, which has no room in a line
            return f"{len(value):,} rows (--json)"
        return ", ".join(_plain(v) for v in value) or "-"
    return str(value)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns errors into messages and exit codes; SIGTERM stops like Ctrl-C."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except GavelError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show(sys.stderr)
        sys.exit(Exit.USAGE)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped; what was recorded is kept, the same command goes on from there", Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FAILED)


def _fail(message: str, code: int) -> None:
    click.echo(click.style("error: ", fg="red") + message if code != Exit.INTERRUPTED else message, err=True)
    sys.exit(code)
