"""A headless Chromium, driven by its DevTools protocol: what tests of a page need of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless --disable-gpu --no-first-run --no-default-browser-check --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0 "
    "--hide-scrollbars --force-color-profile=srgb"
).split()
_KEYS = {"Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Tab": 9}


class Page:
    """One tab. errors: what the console and uncaught exceptions said. requests: addresses asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, run: Callable[[Any], Any]) -> None:
        self._socket, self._run, self._number = socket, run, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, and its result; events that come before it are kept."""
        result: dict[str, Any] = self._run(self._call(method, params))
        return result

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._event(message.get("method", ""), message.get("params", {}))

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(
                json.dumps([one.get("description", one.get("value")) for one in params["args"]])
            )

    def open(self, path: Path) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is waited for."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
            allowUnsafeEvalBlockedByCSP=False,
        )  # fmt: skip
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str, seconds: float = 20) -> None:
        """Waits for an expression to be true."""
        deadline = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 and key.isalnum() else 0)
        typed = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                **(typed if kind == "keyDown" else {}),
            )  # fmt: skip

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of an element, which something above it would catch."""
        place = (
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); "
            "one.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const box = one.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        at, before = self.js(place), None
        while at != before:  # what is drawn above it may still move it
            time.sleep(0.1)
            at, before = self.js(place), at
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A running browser; each tab has storage of its own."""

    def __init__(self, port: int, loop: asyncio.Runner) -> None:
        self._port, self._loop = port, loop

    @contextlib.contextmanager
    def tab(self) -> Iterator[Page]:
        self._loop.run(self._open())
        try:
            yield Page(self._socket, self._loop.run)
        finally:
            self._loop.run(self._close())

    async def _open(self) -> None:
        home = f"127.0.0.1:{self._port}"
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://{home}/json/version") as answer:
            address = (await answer.json())["webSocketDebuggerUrl"]
        self._whole = await self._session.ws_connect(address)
        self._context = await self._ask("Target.createBrowserContext")
        target = await self._ask(
            "Target.createTarget", url="about:blank", browserContextId=self._context["browserContextId"]
        )
        self._socket = await self._session.ws_connect(
            f"ws://{home}/devtools/page/{target['targetId']}", max_msg_size=0
        )

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        await self._whole.send_json({"id": 1, "method": method, "params": params})
        while (message := await self._whole.receive_json(timeout=60)).get("id") != 1:
            pass
        result: dict[str, Any] = message["result"]
        return result

    async def _close(self) -> None:
        await self._socket.close()
        await self._ask("Target.disposeBrowserContext", **self._context)
        await self._whole.close()
        await self._session.close()


@contextlib.contextmanager
def browse() -> Iterator[Browser]:
    """A browser of its own profile, which ends with it."""
    assert CHROMIUM is not None
    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, asyncio.Runner() as loop:
        process = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield Browser(_port(Path(profile) / "DevToolsActivePort"), loop)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.1)
    raise AssertionError("Chromium did not start")
