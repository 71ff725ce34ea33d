"""Engines: what samples, scores and rewards. `open_engine` makes the one that was asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gavel.errors import InputError
from gavel.protocols import Engine
from gavel.stops import Ends, ends_of

#: engine → (module, function EngineConfig → Engine)
ENGINES: dict[str, str] = {
    "vllm": "gavel.engines.vllm",
    "transformers": "gavel.engines.transformers",
    "server": "gavel.engines.server",
    "fake": "gavel.engines.fake",
}

_SHAPING = {
    "quantization",
    "quantization_config",
    "kv_cache_dtype",
    "hf_overrides",
    "rope_scaling",
    "rope_theta",
    "revision",
    "override_generation_config",
    "logits_processors",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How to open a model.

    engine: a key of ENGINES; None picks vllm where it is importable, else transformers; a base_url
        means server. dtype: "auto" is the checkpoint's, on a CPU float32. context: longest sequence
        in tokens, None for the model's own. adapter: a LoRA directory. logprobs_mode: "raw" or
        "processed", see `gavel.records.Sampling`. engine_args: passed through to the engine.
    """

    model: str
    engine: str | None = None
    base_url: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    context: int | None = None
    logprobs_mode: str = "raw"
    trust_remote_code: bool = False
    template_args: dict[str, Any] = field(default_factory=dict)
    engine_args: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer_path(self) -> str:
        """The one asked for, else the adapter's own, else the model's."""
        own = self.adapter if self.adapter and (Path(self.adapter) / "tokenizer.json").exists() else None
        return self.tokenizer or own or self.model

    def ends(self) -> Ends:
        """What ends an answer of this model with its adapter."""
        ends = ends_of(self.model)
        return ends.union(ends_of(self.adapter)) if self.adapter else ends

    def arithmetic(self, dtype: str) -> str:
        """`dtype` with the engine arguments that change a model's answers and not only its speed: part of
        the id of every record."""
        shaping = {k: v for k, v in self.engine_args.items() if k in _SHAPING}
        return f"{dtype} {json.dumps(shaping, sort_keys=True, default=str)}" if shaping else dtype

    def resolved(self) -> str:
        """The engine's name. Raises InputError for an unknown one."""
        name = self.engine or ("server" if self.base_url else None)
        if name is None:
            name = "vllm" if importlib.util.find_spec("vllm") else "transformers"
        if name not in ENGINES:
            raise InputError(
                f"unknown engine {name!r}", where="--engine", hint="Known: " + ", ".join(ENGINES) + "."
            )
        if name == "server" and not self.base_url:
            raise InputError("the server engine needs an address", where="--base-url")
        return name


@contextlib.contextmanager
def open_engine(config: EngineConfig) -> Iterator[Engine]:
    """Opens a model and closes it at the end.

    Raises:
        InputError: the model, its tokenizer or an option cannot be used.
        EngineError: the engine did not start.
    """
    module = importlib.import_module(ENGINES[config.resolved()])
    engine: Engine = module.open(config)
    try:
        yield engine
    finally:
        engine.close()
