"""ServerEngine, records written, against a bare aiohttp client; alternating in one process.

A local server in a process of its own answers after 50 ms. The bare client keeps the same number of
requests in flight and only reads the bodies of the replies.

    python benchmarks/server_engine.py [--requests 4000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from gavel.engines.fake import ByteTokenizer
from gavel.engines.openai_api import completion_body
from gavel.engines.server import ServerEngine
from gavel.packed import pack_ids, pack_logprobs
from gavel.protocols import Refused, SampleRequest
from gavel.records import Completion, Sampling, digest
from gavel.rundir import JsonlWriter

SERVER = Path(__file__).parent.parent / "tests" / "servers.py"
SAMPLING = Sampling(max_tokens=32)
PROMPT = list(range(1, 65))


def requests(count: int) -> Iterator[SampleRequest]:
    for i in range(count):
        yield SampleRequest(key=f"{i:024d}", prompt=PROMPT, sampling=SAMPLING, seed=i)


async def bare(url: str, count: int, in_flight: int) -> None:
    """What aiohttp can do: `in_flight` workers that post and read."""
    waiting = requests(count)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Content-Type": "application/json"}
    ) as session:

        async def worker() -> None:
            for request in waiting:
                body = completion_body("tiny", request, 4096)
                async with session.post(f"{url}/completions", data=body) as response:
                    await response.read()

        await asyncio.gather(*(worker() for _ in range(in_flight)))


def through_engine(engine: ServerEngine, path: Path, count: int) -> None:
    """Samples and writes completion records as `gavel generate` does."""
    prompt_hash = digest(PROMPT)
    with JsonlWriter(path) as writer:
        for reply in engine.sample(requests(count)):
            assert not isinstance(reply, Refused), reply
            assert reply.token_ids is not None and reply.logprobs is not None
            record = Completion(
                id=reply.key,
                prompt_id=reply.key,
                index=0,
                text=reply.text,
                token_ids=pack_ids(reply.token_ids),
                prompt_hash=prompt_hash,
                logprobs=pack_logprobs(reply.logprobs),
                logprobs_mode="raw",
                logprob_sum=sum(reply.logprobs),
                finish_reason=reply.finish_reason,
                model=engine.model,
                weights=engine.weights,
                sampling=SAMPLING,
                seed=1,
            )
            writer.append(record)
    assert path.read_bytes().count(b"\n") == count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.05)
    arguments = parser.parse_args()
    count = arguments.requests
    command = [sys.executable, str(SERVER), "--latency", str(arguments.latency)]
    rates: dict[str, list[float]] = {"aiohttp": [], "gavel": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            engine = ServerEngine(url, "tiny", tokenizer=ByteTokenizer(), in_flight=arguments.in_flight)  # type: ignore[arg-type]
            with engine, tempfile.TemporaryDirectory() as folder:
                for i in range(arguments.repeats + 1):  # the first round warms up
                    start = time.perf_counter()
                    asyncio.run(bare(url, count, arguments.in_flight))
                    middle = time.perf_counter()
                    through_engine(engine, Path(folder) / f"{i}.jsonl", count)
                    end = time.perf_counter()
                    if i:
                        rates["aiohttp"].append(count / (middle - start))
                        rates["gavel"].append(count / (end - middle))
        finally:
            server.terminate()
    for name, found in rates.items():
        print(f"{name:8} median {statistics.median(found):6,.0f}/s  of", *(f"{r:,.0f}" for r in found))
    ratios = [g / a for a, g in zip(rates["aiohttp"], rates["gavel"], strict=True)]
    print(f"ratio    median {statistics.median(ratios):6.2f}    of", *(f"{r:.2f}" for r in ratios))


if __name__ == "__main__":
    main()
