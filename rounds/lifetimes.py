"""Which engines are alive when: beside one another and the trainer where they fit, else one after another.

"keep": each starts once and takes new weights in place. "restart": an engine lives only while it is used.
"auto": "keep" on a CPU; on an accelerator, whose memory engines and trainer share, "restart" until a training
has shown what it takes at its peak, then "keep" if the engines leave it that much. The choice with its
numbers, what each start and each change of weights took, are noted in events.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from gavel.command import say
from gavel.engines import EngineConfig, open_engine
from gavel.protocols import Engine
from judge.judging import Judging, open_judging
from rounds.config import JudgeConfig
from rounds.ledger import Events

_SHARE = 0.92  # of an accelerator's memory, that vLLM takes for an engine unless told otherwise
_SPARE = 1.1  # of the peak of one training, what the next may take


class Memory(Protocol):
    """An accelerator's memory. total: bytes there are. peak: most bytes in use since `reset`."""

    total: int

    def reset(self) -> None: ...

    def peak(self) -> int: ...


class Lifetimes:
    """The engines of a run, opened when they are first asked for. Use as `with Lifetimes(…) as engines`.

    Args:
        policy: how the policy is opened. mode: one of `rounds.config.ENGINES`.
        memory: what engines and trainer share, None where that is no accelerator's; by default the machine's.
    """

    def __init__(self, policy: EngineConfig, mode: str, events: Events, memory: Memory | None = None) -> None:
        self._config, self._events = policy, events
        self._memory = memory or (_cuda() if policy.resolved() != "fake" else None)
        self._measures = mode == "auto" and self._memory is not None
        self.mode = ("restart" if self._measures else "keep") if mode == "auto" else mode
        self._shares: dict[str, float] = {}  # of the memory, by engine
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
            self._shares["policy"] = _share(config.engine_args)
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
            self._shares[name] = _share(config.options.get("engine_arg") or {})
            self._start(name, open_judging(config.model, config.fresh()), beside)
        found: Judging = self._open[name][0]
        return found

    @contextmanager
    def room(self) -> Iterator[None]:
        """Gives the trainer what memory it needs, and with "auto" sees what that is."""
        if self.mode != "keep":
            self.close()
        if not (self._measures and self._memory):
            yield
            return
        self._memory.reset()
        yield
        took, left = self._memory.peak(), self._memory.total * (1 - sum(self._shares.values()))
        self.mode, self._measures = ("keep" if took * _SPARE <= left else "restart"), False
        self._events.add("engines", mode=self.mode, training_took_gb=round(took / 1e9, 3),
                         engines_leave_gb=round(left / 1e9, 3))  # fmt: skip

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


def _share(engine_args: Mapping[str, Any]) -> float:
    return float(engine_args.get("gpu_memory_utilization", _SHARE))


def _cuda() -> Memory | None:
    import torch

    return _Cuda() if torch.cuda.is_available() else None


class _Cuda:
    """The first GPU's memory, as this process uses it."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self.total: int = self._cuda.get_device_properties(0).total_memory

    def reset(self) -> None:
        self._cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return int(self._cuda.max_memory_reserved())
