"""`gavel judge --dry-run`: how much would be asked, found out without an engine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from gavel.engines import EngineConfig
from gavel.errors import InputError
from gavel.options import engine_config
from gavel.protocols import Capability, Tokenizer
from gavel.records import Judgment
from gavel.rundir import Index, RunDir
from judge.collect import collect, recorded
from judge.method import Method
from judge.methods import SEVERAL, make_method, method_from
from judge.stage import groups_of, pass_name


class Paper:
    """An engine on paper: takes every request and answers none. dtype: as the pass was judged in."""

    name = "paper"
    context = 1 << 30

    def __init__(self, config: EngineConfig, dtype: str) -> None:
        from gavel.weights import weights_version

        self.model, self.dtype = config.model, dtype
        self.capabilities = frozenset(Capability)
        self._tokenizer: Tokenizer | None = None
        self.weights = ""
        kind = config.resolved()
        if kind == "fake":
            from gavel.engines.fake import ByteTokenizer, FakeEngine

            self._tokenizer = ByteTokenizer()
            self.weights = FakeEngine(config.model, adapter=config.adapter).weights
        elif kind == "server" and config.tokenizer is None:
            self.capabilities -= {Capability.TOKENS}
        else:
            from gavel.tokenizer import HfTokenizer

            self._tokenizer = HfTokenizer.load(
                config.tokenizer or config.model,
                trust_remote_code=config.trust_remote_code,
                template_args=config.template_args,
            )
            if kind != "server":
                self.weights = weights_version(config.model, config.adapter)

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None
        return self._tokenizer

    def _take(self, requests: Iterable[Any]) -> Iterator[Any]:
        for _ in requests:
            pass
        return iter(())

    sample = score = reward = _take

    def load_weights(self, path: str) -> None:
        """Nothing to load into."""

    def close(self) -> None:
        """Nothing to free."""


def estimate(run: RunDir, model: str | None, options: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Calls and prompt tokens that judging would take now, and at most for a method that asks on by what
    was answered.

    Raises InputError for a panel, whose members are estimated one by one.
    """
    method_name, settings, _ = method_from(options)
    if method_name in SEVERAL:
        raise InputError("estimates one judge at a time", where="--dry-run",
                         hint="Ask for each: gavel judge RUN --judge M --method X --dry-run.")  # fmt: skip
    method = make_method(method_name, settings)
    if not method.needs:
        return {"calls": 0, "tokens": 0}
    if model is None:
        raise InputError("a judge is needed", where="--judge", hint="A model directory or hub id.")
    config = engine_config(model, options)
    judging = name or pass_name(method.name, model)
    dtype = run.manifest().get("passes", {}).get(judging, {}).get("dtype", "")
    paper = Paper(config, dtype)
    counts = _count(run, judging, method, paper)
    found = {
        "pass": judging,
        "calls": counts["calls"],
        "tokens": counts["tokens"],
        "reused": counts["reused"],
    }
    if method.adaptive and dataclasses.is_dataclass(method):
        most = _count(run, judging, dataclasses.replace(method, pairs="all"), paper)  # type: ignore[type-var]
        found |= {"calls_at_most": most["calls"], "tokens_at_most": most["tokens"]}
    return found


def _count(run: RunDir, judging: str, method: Method, paper: Any) -> Any:
    path = run.judgments_path(judging)
    with (
        contextlib.closing(Index(run.completions_path)) as index,
        contextlib.closing(Index(path)) as judged,
    ):
        return collect(
            groups_of(run, index),
            method,
            paper,
            done=recorded(path),
            record=lambda judgment: None,
            judged=lambda prompt_id: judged.read(prompt_id, Judgment),
        )
