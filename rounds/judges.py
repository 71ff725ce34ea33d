"""What a judge's word in a run of rounds hangs on: its options, and what the files that they name hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gavel.engines import EngineConfig
from gavel.options import engine_config
from gavel.records import digest
from gavel.weights import file_hash, weights_version
from judge.method import Method
from judge.methods import SEVERAL, make_method, method_from
from rounds.config import JudgeConfig
from rounds.freed import held

#: Options that name a file, each read anew whenever the judge is opened.
_FILES = ("rubric", "forms_file", "aspects_file", "demonstrations", "panel")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt")


def judge_settings(judge: JudgeConfig) -> dict[str, Any]:
    """Of a judge, what shapes its judgments; what is not set is left out."""
    speed = {"engine_arg", "trust_remote_code", "self_judge", "base_url"}
    given = {k: v for k, v in judge.options.items() if v not in (None, (), {}, False) and k not in speed}
    return {"model": judge.model} | given


def judge_contents(judge: JudgeConfig) -> dict[str, str]:
    """Content hashes of all that a judge is made of, by what it is and where: weights, adapter, tokenizer,
    the files of its method, the members of a panel. Of a server's model nothing is known but its name, which
    is among the settings. No engine is opened."""
    options = judge.fresh()
    found = _files({key: options.get(key) for key in _FILES})
    name, settings, _ = method_from(options)
    if name == "panel":
        from judge.panel_file import read_panel

        for member in read_panel(settings["panel"]).members:
            found |= _method(member.method) | _model(member.config)
    elif name not in SEVERAL:
        found |= _method(make_method(name, settings))
    if judge.model is not None:
        config = engine_config(judge.model, options)
        found |= _model(config)
        if name == "implicit":
            found |= _model(replace(config, model=settings["reference"], adapter=None))
    return found


def gold_contents(gold: str | None) -> dict[str, str]:
    """The hash of a file of labelled pairs; of one on a hub nothing is known."""
    path = Path(gold) if gold else None
    return {f"gold {gold}": file_hash(path)} if path and path.is_file() else {}


def _files(named: Mapping[str, Any]) -> dict[str, str]:
    return {f"{key} {path}": file_hash(Path(path).expanduser())
            for key, path in named.items() if isinstance(path, str) and path}  # fmt: skip


def _method(method: Method) -> dict[str, str]:
    """The files of a method; of a user's own all that it says of itself."""
    found = _files({key: getattr(method, key, None) for key in _FILES})
    if not type(method).__module__.startswith("judge."):
        asked = [(aspect, method.template(aspect)) for aspect in method.aspects]
        found[f"method {method.name}"] = digest(method.fingerprint, method.parser, asked)
    return found


def _model(config: EngineConfig) -> dict[str, str]:
    kind = config.resolved()
    if kind == "server" or (kind == "fake" and not held(Path(config.model))):
        return {}
    adapter = f" with {config.adapter}" if config.adapter else ""
    tokenizer = Path(config.tokenizer_path)
    files = [(name, file_hash(tokenizer / name)) for name in _TOKENIZER if (tokenizer / name).exists()]
    return {
        f"weights of {config.model}{adapter}": weights_version(config.model, config.adapter),
        **({f"tokenizer of {tokenizer}": digest(files)} if files else {}),
    }
