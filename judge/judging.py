"""A judge that is ready: a method with its engine, or several of them put together (`judge.panel`).

What uses a judge (the stage, scoring, agreement, duels, gates) needs only `Judging`: it hands over
groups of completions and finds judgments in a pass of a run directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gavel.engines import EngineConfig, open_engine
from gavel.errors import InputError
from gavel.options import engine_config
from gavel.protocols import Capability, Engine
from gavel.records import digest
from gavel.rundir import RunDir
from judge.collect import UNLIMITED, Limits, identity
from judge.kinship import Kin
from judge.method import Method, orders_of
from judge.methods import SEVERAL, make_method, method_from
from judge.stage import Groups, judge, pass_name


class Judging(Protocol):
    """name: of the method. models: the judges as the user named them. aspects: of its judgments."""

    @property
    def name(self) -> str: ...

    @property
    def models(self) -> tuple[str, ...]: ...

    @property
    def aspects(self) -> tuple[str, ...]: ...

    @property
    def one_order(self) -> bool:
        """Whether two completions are compared in one order only, on purpose."""
        ...

    @property
    def both_orders(self) -> bool:
        """Whether every two completions that are compared are compared in both orders."""
        ...

    def identity(self) -> str:
        """Hash of all that shapes its judgments."""
        ...

    def judge(
        self, run: RunDir, name: str | None = None, groups: Groups | None = None, limits: Limits = UNLIMITED
    ) -> dict[str, Any]:
        """Judges into the pass `name` of `run` and returns a summary, as `judge.stage.judge`."""
        ...

    def kin(self) -> list[Kin]:
        """What the judges are, to be compared with the policy."""
        ...


@dataclass(frozen=True)
class Single:
    """One method on one open engine. Implements `Judging`. options: what the method was made of."""

    engine: Engine
    method: Method
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def models(self) -> tuple[str, ...]:
        return (self.engine.model,)

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.method.aspects

    @property
    def one_order(self) -> bool:
        return orders_of(self.method) == "one"

    @property
    def both_orders(self) -> bool:
        return orders_of(self.method) == "both"

    def identity(self) -> str:
        asks = [(aspect, self.method.template(aspect)) for aspect in self.method.aspects]
        return digest(identity(self.method, self.engine), asks)

    def judge(
        self, run: RunDir, name: str | None = None, groups: Groups | None = None, limits: Limits = UNLIMITED
    ) -> dict[str, Any]:
        return judge(
            run, self.engine, self.method, name=name, groups=groups, limits=limits, options=self.options
        )

    def kin(self) -> list[Kin]:
        return [Kin(self.engine.model, self.engine.weights)] if self.method.needs else []


class Nobody:
    """The engine of a method that needs none. Implements `gavel.protocols.Engine` with no capability."""

    name = model = weights = "none"
    dtype = ""
    context = 0
    capabilities: frozenset[Capability] = frozenset()

    def _refuse(self, *requests: object) -> Any:
        raise InputError("this method asks an engine", where="--judge", hint="Name a model.")

    tokenizer = property(_refuse)
    sample = score = reward = load_weights = _refuse

    def close(self) -> None:
        """Nothing to free."""


@contextlib.contextmanager
def open_judging(model: str | None, options: dict[str, Any]) -> Iterator[Judging]:
    """The judge that a command's options describe; takes them out of `options`.

    Raises:
        InputError: options that do not fit, or no model where one is needed; before an engine starts.
    """
    name, settings, described = method_from(options)
    if name in SEVERAL:
        from judge.panel_file import open_panel

        yield open_panel(name, model, settings, options)
        return
    method = make_method(name, settings)
    if not method.needs:
        engine_config("none", options | {"engine": "fake"})
        yield Single(Nobody(), method, described)  # type: ignore[arg-type]
        return
    if model is None:
        raise InputError("a judge is needed", where="--judge", hint="A model directory or hub id.")
    config: EngineConfig = engine_config(model, options)
    with open_engine(config) as engine:
        yield Single(engine, method, described)


def default_pass(judging: Judging) -> str:
    """The name of a pass that was given none."""
    return pass_name(judging.name, "+".join(judging.models))
