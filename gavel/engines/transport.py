"""Many HTTP requests at once for synchronous callers: an event loop in a background thread.

What may pass is asked again within bounds (429, 5xx, timeouts, cut-off replies, dropped
connections); what will not is a `Refused` row or, for a rejected key and a server that is gone, an
EngineError. A request that was answered is never sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import queue
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gavel.engines.openai_api import BadReply, error_message
from gavel.errors import EngineError
from gavel.protocols import Refused

A = TypeVar("A")
T = TypeVar("T")

_CHUNK = 16  # requests handed over, and replies consumed before more are, at a time
_GATHER_S = 0.002  # replies that arrive within this time wake the consumer once
_MAX_BACKOFF_S = 30.0
_GET_TRIES, _GET_TIMEOUT_S = 3, 30.0  # somebody waits for these
_RETRIED = frozenset({408, 425, 429})  # and 5xx


class Ask(NamedTuple, Generic[A]):
    """One request. read: makes the answer of a 200's body; see `Transport.ask` for what it raises."""

    key: str
    body: bytes
    read: Callable[[bytes], A]


class Transport:
    """One HTTP session to one server.

    Args:
        base_url: without a trailing slash.
        api_key: sent as a bearer token when not empty; never part of a message.
        key_hint: what to do about a rejected key.
        timeout_s: the longest that one try may take, and that a Retry-After is waited for.
        max_tries: how often one request is sent at most.
        backoff_s: wait before the second try; it doubles from try to try, with jitter.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        key_hint: str,
        in_flight: int,
        timeout_s: float,
        max_tries: int,
        backoff_s: float,
    ) -> None:
        self.base_url = base_url
        self.in_flight, self.timeout_s = in_flight, timeout_s
        self.max_tries, self.backoff_s = max_tries, backoff_s
        self._api_key, self._key_hint = api_key, key_hint
        self._resume_at = 0.0  # event-loop time before which a Retry-After forbids to send
        self._works: set[_Work[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gavel-server", daemon=True)
        self._thread.start()
        self._session = self._wait_for(self._open())

    async def _open(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),  # vLLM closes idle ones after 5 s
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=_has_proxy(self.base_url),
        )

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and body of a GET, tried again like the rest. Raises EngineError."""
        try:
            return 200, self._wait_for(self._exchange("GET", url, None, bytes))
        except _Declined as declined:
            return declined.status, declined.payload

    def ask(self, url: str, asks: Iterable[Ask[A] | Refused]) -> Generator[A | Refused, None, None]:
        """POSTs each body and yields answers as they come; a Refused among the asks passes through.

        `asks` is read in the caller's thread, never further ahead than `in_flight` asks whose answers
        the caller has not come back from. Closing the iterator cancels what is in flight.

        Ask.read runs in the loop's thread. msgspec.DecodeError from it is a cut-off reply, which is
        asked for again; msgspec.ValidationError or BadReply refuses the row.
        """
        work: _Work[A] = _Work(self._loop)
        self._works.add(work)
        iterator = iter(asks)
        try:
            open_count = self._start(work, url, iterator, self.in_flight)
            while open_count:
                consumed = 0
                for answer in work.take():
                    yield answer
                    consumed += 1
                    if consumed == _CHUNK:
                        open_count += self._start(work, url, iterator, consumed) - consumed
                        consumed = 0
                open_count += self._start(work, url, iterator, consumed) - consumed
        finally:
            self._works.discard(work)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is in flight
                self._loop.call_soon_threadsafe(work.cancel)

    def _start(self, work: _Work[A], url: str, asks: Iterator[Ask[A] | Refused], room: int) -> int:
        """Sends off at most `room` more; returns how many there were."""
        started = 0
        while started < room and (chunk := list(islice(asks, min(_CHUNK, room - started)))):
            if self._loop.is_closed():
                raise self._closed()
            started += len(chunk)
            self._loop.call_soon_threadsafe(self._begin, work, url, chunk)
        return started

    def _begin(self, work: _Work[A], url: str, chunk: list[Ask[A] | Refused]) -> None:
        if work.ended:
            return
        for ask in chunk:
            if isinstance(ask, Refused):
                work.give(ask)
                continue
            task = self._loop.create_task(self._answer(work, url, ask))
            work.tasks.add(task)
            task.add_done_callback(work.tasks.discard)

    async def _answer(self, work: _Work[A], url: str, ask: Ask[A]) -> None:
        try:
            answer = await self._post(url, ask)
            work.give(answer)
        except Exception as error:  # fatal, or a bug: the consumer raises it
            work.fail(error)

    async def _post(self, url: str, ask: Ask[A]) -> A | Refused:
        try:
            return await self._exchange("POST", url, ask.body, ask.read)
        except _GaveUp as gave_up:
            return Refused(key=ask.key, reason=str(gave_up), transient=True)
        except _Declined as no:
            return Refused(key=ask.key, reason=f"HTTP {no.status}: {self._hide(no.payload)}")
        except (msgspec.ValidationError, BadReply) as error:
            return Refused(key=ask.key, reason=f"unexpected reply: {error}")

    async def _exchange(self, method: str, url: str, body: bytes | None, read: Callable[[bytes], T]) -> T:
        """One request until it is answered; without a body, for less long.

        Raises _Declined for a status that stays, _GaveUp after the last try, EngineError for 401, 403
        and a server that is gone.
        """
        tries, timeout_s = self.max_tries, self.timeout_s
        if body is None:
            tries, timeout_s = min(tries, _GET_TRIES), min(timeout_s, _GET_TIMEOUT_S)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        problem, gone, retry_after_s = "", False, 0.0
        for attempt in range(tries):
            if attempt:
                backoff_s = min(self.backoff_s * 2 ** (attempt - 1), _MAX_BACKOFF_S) * random.uniform(0.5, 1)
                await asyncio.sleep(retry_after_s + backoff_s)
            while (pause_s := self._resume_at - self._loop.time()) > 0:
                await asyncio.sleep(pause_s + random.uniform(0, self.backoff_s))
            gone, retry_after_s = False, 0.0
            try:
                async with self._session.request(
                    method, url, data=body, timeout=timeout, allow_redirects=False
                ) as response:
                    payload = await response.read()
            except TimeoutError:
                problem = f"no answer within {timeout_s:g} s"
                continue
            except aiohttp.ClientConnectorError as error:
                problem, gone = f"cannot be reached ({error.strerror or error})", True
                continue
            except (aiohttp.ClientError, OSError) as error:
                problem = f"connection lost ({type(error).__name__})"
                continue
            status = response.status
            if status == 200:
                try:
                    return read(payload)
                except msgspec.ValidationError:
                    raise
                except (msgspec.DecodeError, UnicodeDecodeError):
                    problem = "a cut-off reply"
            elif status in (401, 403):
                raise self._no_entry(status, payload)
            elif status >= 500 or status in _RETRIED:
                problem = f"HTTP {status}: {self._hide(payload)}"
                retry_after_s = self._retry_after(response)
                if status == 429 and retry_after_s:
                    self._resume_at = max(self._resume_at, self._loop.time() + retry_after_s)
            else:
                raise _Declined(status, payload)
        raise (self._gone if gone else _GaveUp)(f"{problem}, after {tries} tries")

    def _closed(self) -> EngineError:
        return EngineError("the engine is closed", where=self.base_url)

    def _gone(self, problem: str) -> EngineError:
        return EngineError(
            f"the server {problem}",
            where=self.base_url,
            hint="Check the address and that the server runs (for example `vllm serve MODEL`), then run "
            "the same command again.",
        )

    def _no_entry(self, status: int, payload: bytes) -> EngineError:
        return EngineError(
            f"the server refuses the API key (HTTP {status}: {self._hide(payload)})",
            where=self.base_url,
            hint=self._key_hint,
        )

    def _hide(self, payload: bytes) -> str:
        """The server's message without the key that it may echo."""
        text = error_message(payload)
        return text.replace(self._api_key, "***") if self._api_key else text

    def _retry_after(self, response: aiohttp.ClientResponse) -> float:
        """Seconds to wait by the Retry-After header (a number or a date), 0 without one."""
        value = response.headers.get("Retry-After", "")
        try:
            wait_s = float(value)
        except ValueError:
            try:
                wait_s = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError):
                return 0.0
        return min(wait_s, self.timeout_s) if wait_s > 0 else 0.0

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        except _GaveUp as gave_up:
            raise EngineError(f"the server does not answer: {gave_up}", where=self.base_url) from None

    def close(self) -> None:
        """Cancels what is in flight and ends the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._wait_for(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        for work in list(self._works):
            work.fail(self._closed())
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()


class _GaveUp(Exception):
    """The last try failed."""


class _Declined(Exception):
    """A status that asking again would not change."""

    def __init__(self, status: int, payload: bytes) -> None:
        super().__init__(status)
        self.status, self.payload = status, payload


class _Work(Generic[A]):
    """The state of one `Transport.ask`. All but `take` runs in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended = False
        self._loop = loop
        self._fresh: list[A | Refused] = []
        self._queue: queue.SimpleQueue[list[A | Refused] | Exception] = queue.SimpleQueue()

    def take(self) -> list[A | Refused]:
        """Blocks for the next answers; raises what ended the work."""
        answers = self._queue.get()
        if isinstance(answers, Exception):
            raise answers
        return answers

    def give(self, answer: A | Refused) -> None:
        if not self._fresh:
            self._loop.call_later(_GATHER_S, self._flush)
        self._fresh.append(answer)

    def _flush(self) -> None:
        if self._fresh:
            self._queue.put(self._fresh)
            self._fresh = []

    def fail(self, error: Exception) -> None:
        """What was answered before is still yielded, then `error` is raised; the rest is cancelled."""
        if not self.ended:
            self._flush()
            self._queue.put(error)
            self.cancel()

    def cancel(self) -> None:
        self.ended = True
        for task in self.tasks:
            task.cancel()


def _has_proxy(url: str) -> bool:
    """Whether the environment sends this address through a proxy; asked once, not per request."""
    host = urlsplit(url).hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return False
    return bool(urllib.request.getproxies()) and not urllib.request.proxy_bypass(host)
