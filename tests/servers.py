"""A local OpenAI-compatible server for tests and benchmarks, which misbehaves on demand.

In a test: `with LocalServer() as server: ServerEngine(server.url, "tiny")`. As a process of its own:
`python tests/servers.py --latency 0.05` prints its address and serves until it is killed.

A request is known by its first prompt token, else its first message: `server.faults[17] = ["500"]`
makes the first try of the request whose prompt begins with token 17 fail.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections import Counter
from typing import Any

import msgspec
from aiohttp import web

MODEL = "tiny"
#: what a fault named by its status says
MESSAGES = {400: "prompt is too long", 401: "Incorrect API key provided: {key}", 404: "no such model"}


class LocalServer:
    """Serves `MODEL` on a free port of the loopback, from a thread.

    vllm: answers as vLLM does, with its own fields. classify: serves a reward model. root: where vLLM says
    that the model lies.
    faults: request → behaviours of its next tries: a status such as "500", "429 0.2" (Retry-After in
    seconds), "hang", "cut" (half a reply), "short" (ends before its Content-Length), "drop".
    asked, answered: request → how often. bodies: the last one of each request. peak: most at once.
    """

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        tokens: int = 3,
        vllm: bool = True,
        classify: bool = False,
        labels: int = 1,
        root: str = "/models/tiny",
    ) -> None:
        self.latency_s, self.tokens, self.vllm = latency_s, tokens, vllm
        self.classify, self.labels, self.root = classify, labels, root
        self.faults: dict[int | str, list[str]] = {}
        self.asked: Counter[int | str] = Counter()
        self.answered: Counter[int | str] = Counter()
        self.bodies: dict[int | str, dict[str, Any]] = {}
        self.keys: set[str] = set()
        self.now = self.peak = 0
        self.api_key = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._replies: dict[str, bytes] = {}

    def __enter__(self) -> LocalServer:
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        if self.classify:
            app.router.add_post("/classify", self._handle)
        else:
            app.router.add_post("/v1/completions", self._handle)
            app.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            sent = request.headers.get("Authorization", "")
            return _error(401, MESSAGES[401].format(key=sent.removeprefix("Bearer ")))
        card: dict[str, Any] = {"id": MODEL, "object": "model", "created": 1700000000, "owned_by": "someone"}
        if self.vllm:
            card |= {"owned_by": "vllm", "root": self.root, "max_model_len": 4096}
        return web.json_response({"object": "list", "data": [card, {"id": "other"}]})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization", ""))
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            body = msgspec.json.decode(await request.read())
            prompt = body.get("prompt") or body.get("input")
            name = prompt[0] if prompt else body["messages"][0]["content"]
            self.asked[name] += 1
            self.bodies[name] = body
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            reply = self._reply(request.path, body)
            fault = self.faults[name].pop(0) if self.faults.get(name) else None
            if fault is not None:
                return await self._misbehave(request, fault, reply)
            self.answered[name] += 1
            return web.Response(body=reply, content_type="application/json")
        finally:
            self.now -= 1

    async def _misbehave(self, request: web.Request, fault: str, reply: bytes) -> web.StreamResponse:
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "cut":
            return web.Response(body=reply[: len(reply) // 2], content_type="application/json")
        if fault == "odd":
            return web.Response(body=b'{"choices": "none"}', content_type="application/json")
        assert request.transport is not None
        if fault == "short":
            response = web.StreamResponse(headers={"Content-Length": str(len(reply))})
            await response.prepare(request)
            await response.write(reply[:10])
            request.transport.close()
            return response
        if fault == "drop":
            request.transport.close()
            return web.Response()
        status, _, retry_after = fault.partition(" ")
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        message = MESSAGES.get(int(status), "overloaded").format(key=key)
        return _error(int(status), message, {"Retry-After": retry_after} if retry_after else {})

    def _reply(self, path: str, body: dict[str, Any]) -> bytes:
        if path == "/classify":
            scores = [0.5 * len(body["input"])] * self.labels
            return msgspec.json.encode({"data": [{"index": 0, "label": "L", "probs": scores}]})
        if path.endswith("/chat/completions"):
            return msgspec.json.encode(self._chat(body))
        if body.get("prompt_logprobs") is not None:
            return msgspec.json.encode(_scored(body["prompt"]))
        if "sampled" not in self._replies:  # the same for all: a benchmark measures the client
            self._replies["sampled"] = msgspec.json.encode(self._completion())
        return self._replies["sampled"]

    def _completion(self) -> dict[str, Any]:
        count = self.tokens
        logprobs = {
            "token_logprobs": [-0.5] * count,
            "tokens": ["token_id:7"] * count,
            "top_logprobs": [{"token_id:7": -0.5, "token_id:8": -1.5}] * count,
            "text_offset": [0] * count,
        }
        choice = {
            "index": 0,
            "text": "x" * count,
            "finish_reason": "stop",
            "stop_reason": None,
            "prompt_logprobs": None,
            "prompt_token_ids": [1, 2, 3],
        }
        if self.vllm:
            choice |= {"token_ids": [7] * count, "logprobs": logprobs}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count},
        }

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "A"},
        }
        if body.get("logprobs"):
            top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.4}]
            content = [{"token": "A", "logprob": -0.1, "top_logprobs": top[: body["top_logprobs"]]}]
            choice["logprobs"] = {"content": content}
        if body.get("return_token_ids"):
            choice["token_ids"] = [65]
        return {"model": MODEL, "choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}


def _scored(prompt: list[int]) -> dict[str, Any]:
    """Token i has the log-probability -i / 100."""
    positions = [{str(i): {"logprob": -i / 100, "rank": 1, "decoded_token": "x"}} for i in prompt]
    return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": [None, *positions[1:]]}]}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"error": {"message": message, "type": "Error", "code": status}}
    return web.json_response(error, status=status, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a completion")
    arguments = parser.parse_args()
    with LocalServer(latency_s=arguments.latency, tokens=arguments.tokens) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
