"""What a judge's word in a run of rounds hangs on: its options, its models, and what the files that they name
hold; and what is done where it gives none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gavel.engines import EngineConfig
from gavel.errors import CheckFailed
from gavel.options import engine_config
from gavel.records import digest
from gavel.weights import file_hash, weights_version
from judge.kinship import Kin
from judge.method import Method
from judge.methods import SEVERAL, make_method, method_from
from rounds.config import JudgeConfig
from rounds.freed import held

#: Options that name a file, each read anew whenever the judge is opened.
_FILES = ("rubric", "forms_file", "aspects_file", "demonstrations", "panel")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt")
_MAY_FAIL = 0.01  # of judgments that a busy server gave up on; more are an outage


def judge_settings(judge: JudgeConfig) -> dict[str, Any]:
    """Of a judge, what shapes its judgments; what is not set is left out."""
    speed = {"engine_arg", "trust_remote_code", "self_judge", "base_url"}
    given = {k: v for k, v in judge.options.items() if v not in (None, (), {}, False) and k not in speed}
    return {"model": judge.model} | given


def parts_of(judge: JudgeConfig) -> list[tuple[Method, EngineConfig | None]]:
    """The methods that a judge is made of, each with its model, None where it needs none: one, or those of a
    panel's members, or of an implicit reward's policy and reference. No engine is opened.

    Raises InputError for options that do not fit, or a panel that cannot be read.
    """
    from judge.panel_file import open_panel

    options = judge.fresh()
    name, settings, _ = method_from(options)
    if name in SEVERAL:
        panel = open_panel(name, judge.model, settings, options)
        return [(member.method, member.config) for member in panel.members]
    method = make_method(name, settings)
    if judge.model is None:
        engine_config("none", options | {"engine": "fake"})
        return [(method, None)]
    return [(method, engine_config(judge.model, options))]


def models_of(judge: JudgeConfig) -> list[EngineConfig]:
    """The models that judge."""
    return [config for _, config in parts_of(judge) if config is not None]


def kin_of(config: EngineConfig) -> Kin:
    """A model as `judge.kinship` compares it."""
    return Kin(config.model, weights_version(config.model, config.adapter) if _has_files(config) else None)


def asked_twice(ask: Callable[[], dict[str, Any]], where: str) -> dict[str, Any]:
    """A pass of judgments; what a server was too busy for is asked once more.

    ask: goes on with the pass and returns its summary.

    Raises CheckFailed where more than a few stay without an answer: the stage is not over then, and a resumed
    run asks again. To take it as done would train on what happened to be answered.
    """
    summary = ask()
    if summary["failed"]:
        first, summary = summary, ask()
        summary = summary | {cost: first[cost] + summary[cost] for cost in ("calls", "tokens")}
    failed = summary["failed"]
    if failed > _MAY_FAIL * (failed + summary["judgments"]):
        raise CheckFailed(
            f"the judge gave no answer to {failed:,} requests, asked twice", where=where,
            hint="See to its server and resume: what is on record is not asked again.",
        )  # fmt: skip
    return summary


def judge_contents(judge: JudgeConfig) -> dict[str, str]:
    """Content hashes of all that a judge is made of, by what it is and where: weights, adapter, tokenizer,
    the files of its method, the members of a panel. Of a server's model nothing is known but its name, which
    is among the settings. No engine is opened."""
    found = _files({key: judge.options.get(key) for key in _FILES})
    for method, config in parts_of(judge):
        found |= _method(method) | (_model(config) if config is not None else {})
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


def _has_files(config: EngineConfig) -> bool:
    """Whether its weights can be looked at: a server's cannot, and a fake engine needs none."""
    kind = config.resolved()
    return kind != "server" and (kind != "fake" or held(Path(config.model)))


def _model(config: EngineConfig) -> dict[str, str]:
    if not _has_files(config):
        return {}
    adapter = f" with {config.adapter}" if config.adapter else ""
    found = {f"weights of {config.model}{adapter}": weights_version(config.model, config.adapter)}
    tokenizer = tokenizer_hash(config)
    return found | ({f"tokenizer of {config.tokenizer_path}": tokenizer} if tokenizer else {})


def tokenizer_hash(config: EngineConfig) -> str:
    """Of a model's tokenizer and chat template; empty of one on a hub, of which nothing is known."""
    folder = Path(config.tokenizer_path)
    files = [(name, file_hash(folder / name)) for name in _TOKENIZER if (folder / name).exists()]
    return digest(files) if files else ""
