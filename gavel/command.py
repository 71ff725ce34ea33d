"""What every command shares: `--config FILE`, `--json`, key=value options, results and exit codes.

Imports click and the standard library only, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from gavel.errors import Exit, GavelError, InputError

F = TypeVar("F", bound=Callable[..., Any])


class ConfigCommand(click.Command):
    """A command whose every option can stand in a TOML file; the flag on the command line wins."""

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


def _load_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    try:
        table = tomllib.loads(Path(value).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=f"--config {value}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not TOML: {error}", where=f"--config {value}") from None
    options = {p.name: p for p in ctx.command.params if p.name not in ("config", "help")}
    defaults: dict[str, Any] = {}
    for key, entry in table.items():
        name = key.replace("-", "_")
        option = options.get(name)
        if option is None or option.name is None:
            close = difflib.get_close_matches(name, [str(n) for n in options], n=1)
            known = (
                f'did you mean "{close[0]}"?' if close else "known: " + ", ".join(sorted(map(str, options)))
            )
            raise InputError(f'unknown key "{key}"', where=value, hint=known[0].upper() + known[1:])
        defaults[option.name] = _as_default(entry)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _as_default(entry: Any) -> Any:
    """TOML tables stand for KEY=VALUE options."""
    if isinstance(entry, dict):
        return [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in entry.items()]
    return entry


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
    for entry in entries:
        key, sign, value = entry.partition("=")
        if not sign or not key:
            raise InputError(f"{entry!r} is not KEY=VALUE", where=str(param.opts[0]))
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def text_values(ctx: click.Context, param: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    """click callback: KEY=VALUE entries as a dict of strings."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in key_values(ctx, param, entries).items()}


def say(message: str) -> None:
    """Tells the person something, on standard error."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    click.echo(click.style("warning: ", fg="yellow") + message, err=True)


def emit(result: dict[str, Any], as_json: bool, title: str | None = None) -> None:
    """Prints a command's result on standard output: one JSON object, or two columns for a person."""
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    if title:
        click.echo(title)
    rows = [(key.replace("_", " "), _plain(value)) for key, value in result.items()]
    width = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:
        click.echo(f"  {key.ljust(width)}  {value}")


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
    except click.UsageError as error:
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
