"""What a model directory says of where its answers end, and that engines heed it without being told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny
from servers import MODEL, LocalServer
from test_server_engine import chat, request

from gavel.engines import EngineConfig, open_engine
from gavel.protocols import Sampled, SampleRequest
from gavel.records import Message, Sampling
from gavel.stops import Ends, ends_of, stopping
from gavel.weights import weights_version


def directory(path: Path, **settings: Any) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "generation_config.json").write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, Ends()),
        ({"eos_token_id": 2}, Ends((2,))),
        ({"eos_token_id": [2, 7], "stop_strings": "END"}, Ends((2, 7), ("END",))),
        ({"eos_token_id": None, "stop_strings": ["a", "b"]}, Ends((), ("a", "b"))),
        ({"eos_token_id": True, "stop_strings": ["", 3]}, Ends()),
    ],
)
def test_what_generation_config_says(tmp_path: Path, settings: dict[str, Any], ends: Ends) -> None:
    assert ends_of(directory(tmp_path / "model", **settings)) == ends


def test_what_says_nothing_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[")
    for model in (str(tmp_path), str(tmp_path / "none"), "gpt-4o", "nobody/none-of-it", "a/b/c", ""):
        assert ends_of(model) == Ends(), model


def test_requests_stop_at_both() -> None:
    asked = SampleRequest(key="k", prompt=[1], sampling=Sampling(stop=("a",), top_k=3), seed=0)
    (found,) = stopping([asked], ("a", "b"))
    assert found.sampling == Sampling(stop=("a", "b"), top_k=3) and found.key == "k"
    assert list(stopping([asked], ("a",))) == [asked] == list(stopping([asked], ()))


def test_an_adapter_brings_its_own_ends_and_tokenizer(tmp_path: Path) -> None:
    base = directory(tmp_path / "base", eos_token_id=2, stop_strings=["A"])
    adapter = directory(tmp_path / "adapter", eos_token_id=[5, 2], stop_strings=["B"])
    config = EngineConfig(model=base, adapter=adapter)
    assert config.ends() == Ends((2, 5), ("A", "B")) and config.tokenizer_path == base
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    assert config.tokenizer_path == adapter
    assert EngineConfig(model=base, adapter=adapter, tokenizer="t").tokenizer_path == "t"


def test_a_server_is_told_where_to_stop(tmp_path: Path) -> None:
    """By the tokenizer's directory, or by the served one where it is on this machine."""
    from gavel.engines.server import ServerEngine

    here = directory(tmp_path, stop_strings=["END"])
    with LocalServer() as server:
        with ServerEngine(server.url, MODEL, tokenizer=None) as engine:
            list(engine.sample([chat(1)]))
            plain = engine.weights
        assert "stop" not in server.bodies["say 1"]
    with LocalServer(root=here) as server, ServerEngine(server.url, MODEL, tokenizer=None) as engine:
        list(engine.sample([chat(1), chat(2, sampling=Sampling(stop=("x",)))]))
        assert server.bodies["say 1"]["stop"] == ["END"] and server.bodies["say 2"]["stop"] == ["x", "END"]
        assert engine.weights.startswith(f"server:tiny:{here}:ends:") and ":ends:" not in plain


def test_the_tokenizers_directory_tells_a_server(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.tokenizer, tmp_path, dirs_exist_ok=True)
    directory(tmp_path, stop_strings=["END"])
    with LocalServer() as server:
        config = EngineConfig(model=MODEL, base_url=server.url, tokenizer=str(tmp_path))
        with open_engine(config) as engine:
            list(engine.sample([request(1)]))
        assert server.bodies[1]["stop"] == ["END"]


def ask(engine: Any, stop: tuple[str, ...] = ()) -> list[Sampled]:
    """Greedy answers to six questions."""
    requests = [
        SampleRequest(
            key=str(i), prompt=engine.tokenizer.chat_ids([Message("user", f"the dog {i}")]), seed=0,
            sampling=Sampling(temperature=0.0, max_tokens=24, stop=stop),
        )
        for i in range(6)
    ]  # fmt: skip
    return sorted((r for r in engine.sample(requests) if isinstance(r, Sampled)), key=lambda r: r.key)


def said(replies: list[Sampled]) -> list[tuple[str, Any]]:
    return [(r.text, r.stop_reason) for r in replies]


@pytest.mark.engine
@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_saved_is_as_told(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """A stop string in the model directory does what --stop does, and shapes the version; also in the
    directory of weights that are loaded later."""
    saved = Path(shutil.copytree(tiny.lm, tmp_path / "saved"))
    with open_engine(EngineConfig(model=tiny.lm, engine=name, context=256)) as engine:
        free = said(ask(engine))
        letter = next(c for text, _ in free for c in text[1:] if c.isascii() and c.isprintable())
        told = said(ask(engine, (letter,)))
        before = engine.weights
        settings = json.loads((saved / "generation_config.json").read_text())
        directory(saved, **settings, stop_strings=[letter])
        engine.load_weights(str(saved))
        loaded, after = said(ask(engine)), engine.weights
    with open_engine(EngineConfig(model=str(saved), engine=name, context=256)) as engine:
        opened = said(ask(engine))
    assert told != free and any(stopped == letter for _, stopped in told)
    assert loaded == told == opened
    assert before != after == weights_version(str(saved))


@pytest.mark.engine
def test_an_adapters_ends_reach_vllm(tiny: Tiny, tmp_path: Path) -> None:
    """A token that ends the adapter's answers, but not the base model's."""
    adapter = Path(shutil.copytree(tiny.adapter, tmp_path / "adapter"))
    answers: dict[tuple[str, bool], list[list[int]]] = {}
    for ended in (False, True):
        for name in ("transformers", "vllm"):
            config = EngineConfig(model=tiny.lm, adapter=str(adapter), engine=name, context=256)
            with open_engine(config) as engine:
                answers[name, ended] = [list(r.token_ids or ()) for r in ask(engine)]
        free = max(answers["transformers", False], key=len)
        directory(adapter, eos_token_id=free[2])
    for name in ("transformers", "vllm"):
        for whole, cut in zip(answers[name, False], answers[name, True], strict=True):
            assert cut == (whole[: whole.index(free[2]) + 1] if free[2] in whole else whole)
    assert answers["vllm", True] == answers["transformers", True] != answers["vllm", False]
