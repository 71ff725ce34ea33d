"""The formats that the judges know, read from ``formats.toml``."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2


@cache
def formats() -> dict[str, jinja2.Template]:
    """Format name (``generate``, ``rating``, ``choice``) → its template."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    return {
        name: environment.from_string(part["template"])
        for name, part in _file().items()
        if isinstance(part, dict)
    }


@cache
def aspects() -> tuple[str, ...]:
    """The aspect definitions that the ``generate`` format was trained with."""
    return tuple(_file()["aspects"])


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "formats.toml").read_text(encoding="utf-8"))
