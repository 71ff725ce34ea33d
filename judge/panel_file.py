"""Panels as a person describes them: a TOML file, or a policy with its reference."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from gavel.engines import EngineConfig
from gavel.errors import InputError
from gavel.options import engine_config
from judge.methods import make_method
from judge.panel import COMBINE, Member, Panel

ENGINE_KEYS = ("engine", "base_url", "tokenizer", "adapter", "dtype", "context", "trust_remote_code",
                "template_args", "engine_args")  # fmt: skip


def open_panel(name: str, model: str | None, settings: dict[str, Any], options: dict[str, Any]) -> Panel:
    """The panel of a TOML file, or policy and reference of the implicit reward.

    Raises InputError for a file that cannot be read, or a member that cannot be made.
    """
    if name == "implicit":
        reference, beta = settings.pop("reference", None), settings.pop("beta", 0.1)
        if model is None or reference is None:
            raise InputError("needs the policy and its reference", where="--method implicit",
                             hint="--judge POLICY --reference MODEL")  # fmt: skip
        likelihood = make_method(
            "gptscore", settings | {"form": "direct", "measure": "sum", "count_eos": True}
        )
        config = engine_config(model, options)
        return Panel(
            members=(
                Member(name="policy", config=config, method=likelihood),
                Member(
                    name="reference", config=replace(config, model=reference, adapter=None), method=likelihood
                ),
            ),
            combine="implicit",
            beta=float(beta),
        )
    if model is not None:
        raise InputError("a panel's judges stand in its file", where="--judge")
    file = settings.pop("panel", None)
    if file is None:
        raise InputError("needs a file with its judges", where="--panel")
    if settings:
        raise InputError(
            "a panel's judges have their own options in its file", where=f"--{next(iter(settings))}"
        )
    for key in ("engine", "base_url", "tokenizer", "adapter", "max_model_len"):
        if options.get(key) is not None:
            flag = f"--{key.replace('_', '-')}"
            raise InputError("a panel's judges have their own engine options in its file", where=flag)
    return read_panel(file)


def read_panel(file: str) -> Panel:
    """A panel from TOML: ``combine = "mean"`` and a table ``[[judge]]`` for each member, with model,
    method, the method's options, and engine options (engine, base_url, dtype, adapter, engine_args …).
    """
    try:
        table = tomllib.loads(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=f"--panel {file}") from None
    unknown = sorted(table.keys() - {"combine", "judge"})
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}", where=file, hint="It has combine and [[judge]].")
    combine, entries = table.get("combine", "mean"), table.get("judge", [])
    if combine not in COMBINE:
        raise InputError(
            f"unknown {combine!r}", where=f"{file}, combine", hint=f"Known: {', '.join(COMBINE)}."
        )
    if not isinstance(entries, list) or len(entries) < 2:
        raise InputError("needs two judges at least", where=file, hint="A table [[judge]] for each.")
    members = []
    for number, entry in enumerate(entries, 1):
        members.append(_member(dict(entry), number, file))
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise InputError("two judges have the same name", where=file)
    return Panel(members=tuple(members), combine=combine)


def _member(entry: dict[str, Any], number: int, file: str) -> Member:
    where = f"{file}, judge {number}"
    try:
        model, method = entry.pop("model"), entry.pop("method")
    except KeyError as key:
        raise InputError(f"lacks {key}", where=where) from None
    name = str(entry.pop("name", f"{number}-{method}"))
    if not isinstance(model, str) or not isinstance(method, str):
        raise InputError("model and method are texts", where=where)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise InputError(f"{name!r} cannot be part of a folder's name", where=f"{where}, name")
    config = EngineConfig(model=model, **{k: entry.pop(k) for k in ENGINE_KEYS if k in entry})
    config.resolved()
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    try:
        return Member(name=name, config=config, method=make_method(method, settings))
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", hint=error.hint) from None
