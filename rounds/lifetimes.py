"""Which engines are alive when: beside one another and the trainer where they fit, else one after another.

"keep": each starts once and takes new weights in place. "restart": an engine lives only while it is used.
"auto": "keep" where engines and trainer do not share an accelerator's memory (on a CPU, or with servers),
else "restart". What each start and each change of weights took is noted in events.jsonl.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gavel.command import say
from gavel.engines import EngineConfig, open_engine
from gavel.protocols import Engine
from judge.judging import Judging, open_judging
from rounds.config import JudgeConfig
from rounds.ledger import Events


class Lifetimes:
    """The engines of a run, opened when they are first asked for. Use as `with Lifetimes(…) as engines`.

    Args:
        policy: how the policy is opened. mode: one of `rounds.config.ENGINES`.
    """

    def __init__(self, policy: EngineConfig, mode: str, events: Events) -> None:
        self._config, self._events = policy, events
        self.mode = choose(policy) if mode == "auto" else mode
        self._open: dict[str, tuple[Any, ExitStack]] = {}
        self._loaded = ""  # the model whose weights the policy has
        self._said = False

    def __enter__(self) -> Lifetimes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def policy(self, model: str | Path) -> Engine:
        """The policy's engine with the weights of a model directory (or the first policy's hub id)."""
        model = str(model)
        if "policy" not in self._open:
            config = replace(self._config, model=model)
            engine: Engine = self._start("policy", open_engine(config))
            engine.model = self._config.model  # records name the policy as it was named, whatever its round
            self._loaded = model
        engine = self._open["policy"][0]
        if self._loaded != model:
            self.load(engine, model)
        return engine

    def load(self, engine: Engine, model: str) -> None:
        """Gives the live policy other weights."""
        started = time.monotonic()
        self._loaded = ""  # neither, until it is done
        engine.load_weights(model)
        self._loaded = model
        self._events.add("load weights", seconds=round(time.monotonic() - started, 3))

    def forget_weights(self) -> None:
        """Says that someone else gave the live policy weights, as PPO does."""
        self._loaded = ""

    def judging(self, name: str, config: JudgeConfig, *, beside: bool = False) -> Judging:
        """A judge. name: under which it stays open. beside: the other engines stay open whatever the mode."""
        if name not in self._open:
            self._start(name, open_judging(config.model, config.fresh()), beside)
        found: Judging = self._open[name][0]
        return found

    def make_room(self) -> None:
        """Gives the trainer what memory it needs."""
        if self.mode != "keep":
            self.close()

    def drop(self, name: str) -> None:
        """Closes one engine for good."""
        if name in self._open:
            self._open.pop(name)[1].close()

    def close(self) -> None:
        for name in list(self._open):
            self.drop(name)

    def _start(self, name: str, opening: Any, beside: bool = False) -> Any:
        if self.mode == "restart" and not beside:
            self.close()
        if not self._said:
            self._said = True
            self._events.add("engines", mode=self.mode)
        say(f"starting the {name}'s engine")
        started = time.monotonic()
        stack = ExitStack()
        self._open[name] = stack.enter_context(opening), stack
        self._events.add("start engine", name=name, seconds=round(time.monotonic() - started, 3))
        return self._open[name][0]


def choose(policy: EngineConfig) -> str:
    """What "auto" comes to for a policy on this machine."""
    if policy.resolved() in ("server", "fake"):
        return "keep"
    import torch

    return "restart" if torch.cuda.is_available() else "keep"
