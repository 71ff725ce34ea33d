"""The server engine against a local server that misbehaves on demand."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from servers import MODEL, LocalServer

from gavel.engines import EngineConfig, open_engine
from gavel.engines.server import ServerEngine
from gavel.errors import CapabilityError, EngineError, Exit, GavelError, InputError
from gavel.protocols import (
    Capability,
    Refused,
    Rewarded,
    RewardRequest,
    Sampled,
    SampleRequest,
    Scored,
    ScoreRequest,
)
from gavel.records import Message, Prompt, Sampling
from gavel.rundir import JsonlWriter, RunDir
from generate.stage import GenerateConfig, generate

KEY = "sk-very-secret-0123456789"


class Words:
    """As much of a tokenizer as the engine asks for: token i is written <i>."""

    version = "words"
    eos_id = 0

    def chat_ids(self, messages: Sequence[Message], **template_args: Any) -> list[int]:
        raise NotImplementedError

    def text_ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def span_ids(self, context: str, target: str) -> tuple[list[int], int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"<{i}>" for i in ids)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


def engine_for(server: LocalServer, **settings: Any) -> ServerEngine:
    settings = {"tokenizer": Words(), "backoff_s": 0.01, "timeout_s": 5.0, "max_tries": 4} | settings
    return ServerEngine(server.url, MODEL, **settings)


def request(i: int, **fields: Any) -> SampleRequest:
    fields = {"prompt": [i, 2], "sampling": Sampling(max_tokens=8), "seed": i} | fields
    return SampleRequest(key=f"key {i}", **fields)


def chat(i: int, **fields: Any) -> SampleRequest:
    return request(i, prompt=(Message(role="user", content=f"say {i}"),), **fields)


def by_key(replies: Iterable[Any]) -> dict[str, Any]:
    found = list(replies)
    keyed = {reply.key: reply for reply in found}
    assert len(keyed) == len(found), "a key came twice"
    return keyed


# what goes out and comes back
def test_a_sample_is_token_exact(server: LocalServer) -> None:
    sampling = Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        max_tokens=9999,
        min_tokens=1,
        stop=("END",),
    )
    with engine_for(server) as engine:
        (reply,) = engine.sample([request(17, sampling=sampling, top_logprobs=1)])
    assert reply == Sampled(
        key="key 17",
        text="<7><7><7>",  # decoded from the ids, not taken from the server
        token_ids=[7, 7, 7],
        logprobs=[-0.5, -0.5, -0.5],
        finish_reason="stop",
        top_logprobs=[{"<7>": -0.5, "<8>": -1.5}] * 3,
        usage={"prompt_tokens": 3, "completion_tokens": 3},
    )
    assert server.bodies[17] == {
        "model": MODEL,
        "prompt": [17, 2],
        "add_special_tokens": False,
        "seed": 17,
        "max_tokens": 4096,  # the server refuses more than its context
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
        "stop": ["END"],
        "logprobs": 1,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def test_constraints_go_out_as_structured_outputs(server: LocalServer) -> None:
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    with engine_for(server) as engine:
        assert {Capability.CHOICE, Capability.JSON_SCHEMA} <= engine.capabilities
        by_key(engine.sample([request(1, choice=("A", "B")), request(2, json_schema=schema)]))
    assert server.bodies[1]["structured_outputs"] == {"choice": ["A", "B"]}
    assert server.bodies[2]["structured_outputs"] == {"json": schema}


def test_a_score_is_of_the_span_only(server: LocalServer) -> None:
    with engine_for(server) as engine:
        (reply,) = engine.score([ScoreRequest(key="s", token_ids=[5, 10, 20, 30], start=2)])
    assert reply == Scored(key="s", logprobs=[-0.2, -0.3])
    assert server.bodies[5]["prompt_logprobs"] == 0
    assert server.bodies[5]["add_special_tokens"] is False


def test_a_reward_is_raw() -> None:
    with LocalServer(classify=True) as server, engine_for(server) as engine:
        assert engine.capabilities == {Capability.TOKENS, Capability.REWARD}
        (reply,) = engine.reward([RewardRequest(key="r", token_ids=[5, 6, 7])])
        assert reply == Rewarded(key="r", reward=1.5)
        assert server.bodies[5]["use_activation"] is False
        with pytest.raises(CapabilityError):
            list(engine.sample([request(1)]))


def test_a_model_with_two_labels_has_no_reward() -> None:
    with LocalServer(classify=True, labels=2) as server, engine_for(server) as engine:
        (reply,) = engine.reward([RewardRequest(key="r", token_ids=[5])])
        assert isinstance(reply, Refused)
        assert "2 labels" in reply.reason


def test_a_chat_without_a_tokenizer() -> None:
    with LocalServer(vllm=False) as server, engine_for(server, tokenizer=None) as engine:
        wanted = {Capability.SAMPLE, Capability.LOGPROBS, Capability.JSON_SCHEMA}
        assert engine.capabilities == wanted
        plain, top = (by_key(engine.sample([chat(1), chat(2, top_logprobs=2)]))[f"key {i}"] for i in (1, 2))
        assert (plain.text, plain.token_ids, plain.logprobs) == ("A", None, None)
        assert (top.logprobs, list(top.top_logprobs)) == ([-0.1], [{"A": -0.1, "B": -2.4}])
        assert server.bodies["say 1"] == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "say 1"}],
            "seed": 1,
            "max_tokens": 8,
            "temperature": 1.0,
            "top_p": 1.0,
        }
        schema = {"type": "object"}
        list(engine.sample([chat(3, json_schema=schema)]))
        sent = server.bodies["say 3"]["response_format"]
        assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", schema)
        for refused in (chat(4, choice=("A", "B")), request(5)):
            with pytest.raises(CapabilityError):
                list(engine.sample([refused]))
        with pytest.raises(CapabilityError):
            list(engine.score([]))
        with pytest.raises(CapabilityError):
            _ = engine.tokenizer


def test_a_chat_on_vllm_has_ids_and_choices(server: LocalServer) -> None:
    with engine_for(server, tokenizer=None, template_args={"enable_thinking": False}) as engine:
        (reply,) = engine.sample([chat(1, choice=("A", "B"))])
    assert isinstance(reply, Sampled)
    assert (reply.token_ids, reply.logprobs) == ([65], [-0.1])
    sent = server.bodies["say 1"]
    assert sent["structured_outputs"] == {"choice": ["A", "B"]}
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert sent["top_k"] == 0  # else vLLM takes the one of generation_config.json


def test_processed_logprobs_only_where_the_server_has_them(server: LocalServer) -> None:
    processed = Sampling(temperature=0.5, logprobs_mode="processed")
    with engine_for(server) as engine, pytest.raises(CapabilityError, match="raw"):
        list(engine.sample([request(1, sampling=processed)]))
    with engine_for(server) as engine:  # at temperature 1 the two are one
        assert len(list(engine.sample([request(2, sampling=Sampling(logprobs_mode="processed"))]))) == 1
    with engine_for(server, logprobs_mode="processed") as engine:
        assert len(list(engine.sample([request(3, sampling=processed)]))) == 1


def test_what_the_server_tells_of_itself(server: LocalServer) -> None:
    with engine_for(server) as engine:
        assert (engine.name, engine.model, engine.context) == ("server", MODEL, 4096)
        assert engine.weights == "server:tiny:/models/tiny"
        with pytest.raises(CapabilityError):
            engine.load_weights("elsewhere")
    with engine_for(server, context=128) as engine:
        assert engine.context == 128
    with LocalServer(vllm=False) as other, engine_for(other, tokenizer=None) as engine:
        assert engine.weights == "server:tiny:1700000000"
        assert engine.context > 1_000_000


# what goes wrong and passes
@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "hang", "cut", "short", "drop"])
def test_what_may_pass_is_asked_again(server: LocalServer, fault: str) -> None:
    server.faults = {3: [fault], 5: [fault, fault]}
    with engine_for(server, timeout_s=0.3) as engine:
        replies = by_key(engine.sample(request(i) for i in range(8)))
    assert all(isinstance(reply, Sampled) for reply in replies.values())
    assert sorted(replies) == [f"key {i}" for i in range(8)]
    assert server.asked == {i: {3: 2, 5: 3}.get(i, 1) for i in range(8)}
    assert server.answered == dict.fromkeys(range(8), 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("500", "HTTP 500: overloaded"),
        ("hang", "no answer within 0.2 s"),
        ("cut", "cut-off"),
        ("drop", "connection lost"),
    ],
)
def test_what_does_not_pass_is_refused_after_the_last_try(server: LocalServer, fault: str, says: str) -> None:
    server.faults = {1: [fault] * 9}
    with engine_for(server, timeout_s=0.2, max_tries=3) as engine:
        replies = by_key(engine.sample(request(i) for i in range(3)))
    assert isinstance(replies["key 1"], Refused)
    assert says in replies["key 1"].reason
    assert "after 3 tries" in replies["key 1"].reason
    assert server.asked == {0: 1, 1: 3, 2: 1}


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_row_that_the_server_declines_is_refused_at_once(server: LocalServer, status: int) -> None:
    server.faults = {1: [str(status)]}
    with engine_for(server) as engine:
        replies = by_key(engine.sample(request(i) for i in range(3)))
    reason = {400: "prompt is too long", 404: "no such model", 422: "overloaded"}[status]
    assert replies["key 1"] == Refused(key="key 1", reason=f"HTTP {status}: {reason}")
    assert server.asked == {0: 1, 1: 1, 2: 1}


def test_retry_after_holds_everything_back(server: LocalServer) -> None:
    server.faults = {0: ["429 0.3"]}
    with engine_for(server, in_flight=1) as engine:
        start = time.monotonic()
        replies = by_key(engine.sample(request(i) for i in range(3)))
        assert 0.3 <= time.monotonic() - start < 1.5
    assert len(replies) == 3
    assert server.asked == {0: 2, 1: 1, 2: 1}


def test_a_reply_of_another_shape_is_not_asked_for_again(server: LocalServer) -> None:
    server.faults = {1: ["odd"]}
    with engine_for(server) as engine:
        (reply,) = engine.sample([request(1)])
    assert isinstance(reply, Refused)
    assert "unexpected reply" in reply.reason
    assert server.asked == {1: 1}


def test_a_server_without_token_ids_is_not_taken_for_vllm() -> None:
    with LocalServer(vllm=False) as server, engine_for(server) as engine:
        (reply,) = engine.sample([request(1)])
        assert isinstance(reply, Refused)
        assert "without token ids" in reply.reason


def test_text_that_is_not_unicode_is_refused_here(server: LocalServer) -> None:
    bad = request(1, prompt=(Message(role="user", content="\ud800"),))
    with engine_for(server, tokenizer=None) as engine:
        replies = by_key(engine.sample([bad, chat(2)]))
    assert isinstance(replies["key 1"], Refused)
    assert isinstance(replies["key 2"], Sampled)
    assert server.asked == {"say 2": 1}


def test_what_is_longer_than_the_context_is_refused_here(server: LocalServer) -> None:
    with engine_for(server, context=4) as engine:
        replies = by_key(engine.sample([request(1, prompt=[1] * 4), request(2, prompt=[2] * 3)]))
        assert replies["key 1"] == Refused(key="key 1", reason="needs 5 tokens, the context is 4")
        assert isinstance(replies["key 2"], Sampled)
        (reply,) = engine.score([ScoreRequest(key="s", token_ids=[3] * 4, start=1)])
        assert isinstance(reply, Refused)
    assert server.asked == {2: 1}


# how much at a time
def test_no_more_than_in_flight_at_once_and_no_further_ahead() -> None:
    read = 0

    def counted() -> Iterator[SampleRequest]:
        nonlocal read
        for i in range(200):
            read += 1
            yield request(i)

    with LocalServer(latency_s=0.01) as server, engine_for(server, in_flight=20) as engine:
        for done, _ in enumerate(engine.sample(counted())):
            assert read <= done + 20
        assert (read, server.peak) == (200, 20)
        assert server.asked == dict.fromkeys(range(200), 1)


def test_nothing_is_read_before_the_first_reply_is_wanted(server: LocalServer) -> None:
    with engine_for(server) as engine:
        replies = engine.sample(pytest.fail("read") for _ in range(1))
        del replies
        assert list(engine.sample([])) == []


def test_closing_early_cancels_what_is_in_flight() -> None:
    with LocalServer(latency_s=0.0) as server, engine_for(server, in_flight=8) as engine:
        server.faults = {i: ["hang"] for i in range(1, 100)}
        replies = engine.sample(request(i) for i in range(100))
        assert next(replies).key == "key 0"
        start = time.monotonic()
        replies.close()  # type: ignore[attr-defined]
        wait_until(lambda: server.now == 0)
        assert time.monotonic() - start < 1
        assert len(server.asked) <= 9
        again = by_key(engine.sample(request(i) for i in range(200, 203)))  # the engine goes on
        assert len(again) == 3


def test_ctrl_c_while_waiting_stops_at_once() -> None:
    with LocalServer(latency_s=60) as server, engine_for(server) as engine:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(engine.sample(request(i) for i in range(5)))
        assert time.monotonic() - start < 2
        wait_until(lambda: server.now == 0)


def test_an_error_in_the_input_reaches_the_caller(server: LocalServer) -> None:
    def broken(many: int) -> Iterator[SampleRequest]:
        yield from (request(i) for i in range(many))
        raise InputError("bad row", where="prompts.jsonl:2")

    server.faults = {1: ["hang"]}
    with engine_for(server) as engine:
        for many in (1, 20):  # while the first are handed over, and later
            with pytest.raises(InputError, match="bad row"):
                list(engine.sample(broken(many)))
        wait_until(lambda: server.now == 0)


def test_a_closed_engine_says_so(server: LocalServer) -> None:
    engine = engine_for(server)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(engine.sample([request(1)]))


def test_closing_the_engine_ends_what_still_waits(server: LocalServer) -> None:
    server.faults = {2: ["hang"]}
    engine = engine_for(server)
    replies = engine.sample(request(i) for i in range(3))
    got = [next(replies).key, next(replies).key]
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(replies)
    assert sorted(got) == ["key 0", "key 1"]


# what is fatal
def test_a_rejected_key_is_fatal_and_stays_secret(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.api_key = "another"
    with pytest.raises(EngineError) as caught:
        engine_for(server, api_key_env="MY_KEY")
    assert "MY_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "Incorrect API key provided: ***" in str(caught.value)  # the server echoes it
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(EngineError, match="MY_KEY is not set"):
        engine_for(server, api_key_env="MY_KEY")


def test_the_key_is_sent_and_nowhere_else(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults = {1: ["400"], 2: ["401"]}
    with engine_for(server) as engine:
        (reply,) = engine.sample([request(1)])
        with pytest.raises(EngineError) as caught:
            list(engine.sample([request(2)]))
        seen = [repr(engine), str(engine), engine.weights, repr(reply), str(caught.value)]
    assert server.keys == {f"Bearer {KEY}"}
    assert not [text for text in seen if KEY in text]


def test_a_key_that_is_revoked_midway_keeps_what_was_answered() -> None:
    with LocalServer() as server, engine_for(server, in_flight=1) as engine:
        server.faults = {3: ["401"]}
        got = []
        with pytest.raises(EngineError):
            for reply in engine.sample(request(i) for i in range(6)):
                got.append(reply.key)
    assert got == ["key 0", "key 1", "key 2"]
    assert server.asked == {0: 1, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("0.1", 0.1), ("nan", 0), ("-5", 0), ("soon", 0), ("9999", 0.2), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_retry_after_is_bounded(server: LocalServer, header: str, wait_s: float) -> None:
    server.faults = {1: [f"429 {header}"]}
    with engine_for(server, timeout_s=0.2) as engine:
        start = time.monotonic()
        (reply,) = engine.sample([request(1)])
        assert wait_s <= time.monotonic() - start < wait_s + 1
    assert isinstance(reply, Sampled)


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match="cannot be reached") as caught:
        ServerEngine(url, MODEL, max_tries=2, backoff_s=0.01)
    assert url in str(caught.value)
    assert caught.value.exit_code is Exit.FAILED


def test_a_server_that_dies_midway_is_no_row_s_failure() -> None:
    with LocalServer() as server:
        engine = engine_for(server)
        assert len(list(engine.sample([request(1)]))) == 1
    with engine, pytest.raises(EngineError, match="cannot be reached"):
        list(engine.sample(request(i) for i in range(5)))


def test_a_model_that_is_not_served(server: LocalServer) -> None:
    with pytest.raises(EngineError, match='does not serve "big"') as caught:
        ServerEngine(server.url, "big")
    assert "other, tiny" in str(caught.value)


def test_an_address_that_is_no_api(server: LocalServer) -> None:
    with pytest.raises(EngineError, match="/v1"):
        ServerEngine(server.url.removesuffix("/v1"), MODEL)
    for bad in ("localhost:8000", "me:secret@localhost/v1", "http://me:secret@localhost/v1"):
        with pytest.raises(InputError) as caught:
            ServerEngine(bad, MODEL)
        assert "secret" not in str(caught.value)


def test_failed_construction_leaves_no_thread(server: LocalServer) -> None:
    before = threading.active_count()
    with pytest.raises(EngineError):
        ServerEngine(server.url, "big")
    assert threading.active_count() == before


def test_it_opens_by_configuration(server: LocalServer) -> None:
    config = EngineConfig(model=MODEL, base_url=server.url, engine_args={"max_tries": 2})
    with open_engine(config) as engine:
        assert engine.name == "server"
        assert Capability.TOKENS not in engine.capabilities
    bad: list[tuple[EngineConfig, str]] = [
        (EngineConfig(model=MODEL, base_url=server.url, engine_args={"max_try": 2}), "max_try"),
        (EngineConfig(model=MODEL, base_url=server.url, engine_args={"timeout_s": "soon"}), "timeout_s=soon"),
        (EngineConfig(model=MODEL, base_url=server.url, adapter="lora"), "--adapter"),
    ]
    for broken, says in bad:
        with pytest.raises(GavelError, match=says), open_engine(broken):
            pass


def test_a_run_is_sampled_from_a_server(server: LocalServer, tmp_path: Path) -> None:
    """Without a tokenizer the server renders, so the template's arguments are part of the address."""
    with RunDir.open(tmp_path / "run") as run, JsonlWriter(run.prompts_path) as prompts:
        prompts.append(Prompt(id="one", messages=(Message("user", "hello"),)))
        found = []
        for arguments in ({}, {}, {"enable_thinking": False}):
            config = EngineConfig(model=MODEL, base_url=server.url, template_args=arguments)
            with open_engine(config) as engine:
                found.append(generate(run, engine, GenerateConfig(n=2))["sampled"])
        assert found == [2, 0, 2]


def wait_until(true: Callable[[], bool], within_s: float = 2.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
