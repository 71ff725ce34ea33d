"""One contract for all engines, and what the heavy ones promise beyond it.

The fake engine passes the contract too; the real ones are marked and share a session's engines.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import CONTEXT, Engines, Tiny

from gavel.engines import EngineConfig, open_engine
from gavel.engines.fake import FakeEngine
from gavel.errors import CapabilityError, EngineError, GavelError, InputError
from gavel.protocols import (
    Capability,
    Engine,
    Refused,
    Rewarded,
    RewardRequest,
    Sampled,
    SampleRequest,
    Scored,
    ScoreRequest,
    require,
)
from gavel.records import Message, Sampling

REAL = ["transformers", "vllm", "server"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"rating": {"type": "integer", "enum": [1, 2, 3]}, "fair": {"type": "boolean"}},
    "required": ["rating", "fair"],
    "additionalProperties": False,
}


def real(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.engine) for name in names]


@pytest.fixture(params=["fake", *real(*REAL)])
def engine(request: pytest.FixtureRequest, engines: Engines) -> Engine:
    return engines[request.param]


@pytest.fixture
def reference(engines: Engines) -> Engine:
    return engines["transformers"]


def prompt(engine: Engine, text: str = "what is the capital of france?") -> list[int]:
    return engine.tokenizer.chat_ids([Message("user", text)])


def ask(engine: Engine, key: object = "a", text: str = "hello", **fields: Any) -> SampleRequest:
    settings = {
        "max_tokens": 12,
        **{k: fields.pop(k) for k in list(fields) if k in Sampling.__struct_fields__},
    }
    made = {"prompt": prompt(engine, text), "seed": 1, "sampling": Sampling(**settings), **fields}
    return SampleRequest(key=str(key), **made)


def sampled(engine: Engine, *requests: SampleRequest) -> list[Sampled]:
    """The replies in the order of the requests."""
    replies = keyed(engine.sample(requests))
    assert all(isinstance(reply, Sampled) for reply in replies.values()), replies
    return [replies[request.key] for request in requests]


def keyed(replies: Iterable[Any]) -> dict[str, Any]:
    found = list(replies)
    by_key = {reply.key: reply for reply in found}
    assert len(by_key) == len(found), "a key came twice"
    return by_key


def score(engine: Engine, ids: Sequence[int], start: int) -> list[float]:
    (reply,) = engine.score([ScoreRequest(key="s", token_ids=ids, start=start)])
    assert isinstance(reply, Scored), reply
    return list(reply.logprobs)


def written(text: str) -> str:
    """A text without the half letter that it may end in, which vLLM's own decoding leaves out."""
    return text.rstrip("\ufffd")


# sampling
def test_every_key_comes_back_once_and_whole(engine: Engine) -> None:
    requests = [ask(engine, i, f"question {i}", seed=i) for i in range(24)]
    replies = keyed(engine.sample(iter(requests)))
    assert sorted(replies) == sorted(r.key for r in requests)
    for reply in replies.values():
        assert len(reply.token_ids) == len(reply.logprobs) > 0
        assert all(lp <= 0 for lp in reply.logprobs)
        assert reply.finish_reason in ("stop", "length")
        assert (reply.finish_reason == "length") == (reply.token_ids[-1] != engine.tokenizer.eos_id)
        assert reply.usage == {
            "prompt_tokens": len(prompt(engine, f"question {reply.key}")),
            "completion_tokens": len(reply.token_ids),
        }


def test_eos_is_in_the_ids_and_not_in_the_text(engine: Engine) -> None:
    requests = [ask(engine, i, f"question {i}", seed=i, max_tokens=40) for i in range(12)]
    ended = [reply for reply in sampled(engine, *requests) if reply.finish_reason == "stop"]
    assert ended, "none of twelve answers ended"
    for reply in ended:
        ids = list(reply.token_ids or ())
        assert ids.count(engine.tokenizer.eos_id) == 1
        assert written(reply.text) == written(engine.tokenizer.decode(ids[:-1]))
        assert "<|end|>" not in reply.text


def test_an_endless_stream_is_read_as_it_is_answered(engine: Engine) -> None:
    read = 0

    def endless() -> Iterator[SampleRequest]:
        nonlocal read
        for read in itertools.count(1):
            yield ask(engine, read, seed=read, max_tokens=2)

    replies = engine.sample(endless())
    assert read == 0, "read before the first reply was wanted"
    for _ in range(3):
        next(replies)
    assert read <= 1100, "more in flight than twice what vLLM runs at once"
    replies.close()  # type: ignore[attr-defined]
    assert len(sampled(engine, ask(engine))) == 1, "the engine goes on after a stream was left"


def test_no_requests_no_replies(engine: Engine) -> None:
    assert list(engine.sample([])) == list(engine.score([])) == []


def test_max_tokens_and_min_tokens(engine: Engine) -> None:
    (short,) = sampled(engine, ask(engine, max_tokens=1, seed=3))
    assert len(short.token_ids or ()) == 1
    if engine.name != "fake":  # which has no eos to hold back
        (exact,) = sampled(engine, ask(engine, max_tokens=20, min_tokens=20))
        assert (len(exact.token_ids or ()), exact.finish_reason) == (20, "length")


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    (whole,) = sampled(engine, ask(engine, max_tokens=30, seed=5))
    stop = whole.text[2:4]
    (cut,) = sampled(engine, ask(engine, max_tokens=30, seed=5, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.token_ids or ()) == len(cut.logprobs or ()) <= len(whole.token_ids or ())
    assert list(cut.token_ids or ()) == list(whole.token_ids or ())[: len(cut.token_ids or ())]


def test_seeds(engine: Engine) -> None:
    one, again, other = sampled(
        engine, ask(engine, 1, seed=11), ask(engine, 2, seed=11), ask(engine, 3, seed=12)
    )
    assert one.token_ids == again.token_ids
    assert one.token_ids != other.token_ids


def test_temperature_zero_has_one_answer(engine: Engine) -> None:
    requests = [ask(engine, seed, seed=seed, temperature=0.0) for seed in range(3)]
    assert len({tuple(reply.token_ids or ()) for reply in sampled(engine, *requests)}) == 1


def test_sampled_logprobs_are_those_of_scoring(engine: Engine) -> None:
    for reply in sampled(engine, *(ask(engine, i, f"q {i}", seed=i, temperature=0.5) for i in range(4))):
        before = prompt(engine, f"q {reply.key}")
        again = score(engine, [*before, *(reply.token_ids or ())], len(before))
        assert list(reply.logprobs or ()) == pytest.approx(again, abs=1e-4)


def test_a_prompt_that_leaves_no_room_is_refused_and_the_rest_goes_on(engine: Engine) -> None:
    def filled(key: str, size: int) -> SampleRequest:
        return SampleRequest(key=key, prompt=[70] * size, seed=1, sampling=Sampling(max_tokens=9))

    room = engine.context
    replies = keyed(
        engine.sample([filled("full", room), filled("over", room + 50), filled("one", room - 1), ask(engine)])
    )
    for key in ("full", "over"):
        assert isinstance(replies[key], Refused)
        assert str(room) in replies[key].reason
    assert len(replies["one"].token_ids) == 1
    assert isinstance(replies["a"], Sampled)


# scoring
def test_every_start_scores_the_rest_of_the_sequence(engine: Engine) -> None:
    ids = prompt(engine)
    whole = score(engine, ids, 1)
    assert len(whole) == len(ids) - 1
    for start in (2, len(ids) // 2, len(ids) - 1):
        assert score(engine, ids, start) == pytest.approx(whole[start - 1 :], abs=1e-4)


def test_a_sequence_longer_than_the_context_is_no_score_and_no_harm(engine: Engine) -> None:
    sizes = {"over": 1, "full": 0, "fits": -1}  # a full one is scored where no token need be sampled
    requests = [
        ScoreRequest(key=key, token_ids=[70] * (engine.context + n), start=5) for key, n in sizes.items()
    ]
    replies = keyed(engine.score(requests))
    assert isinstance(replies["over"], Refused)
    assert isinstance(replies["fits"], Scored)
    for key in ("full", "fits"):
        if isinstance(replies[key], Scored):
            assert len(replies[key].logprobs) == engine.context + sizes[key] - 5


def test_a_request_that_the_engine_cannot_take_is_that_row_s_failure(engine: Engine) -> None:
    if engine.name not in ("vllm", "server"):
        return  # the others take any
    replies = keyed(engine.sample([ask(engine, "odd", top_logprobs=2000), ask(engine)]))
    assert isinstance(replies["odd"], Refused)
    assert isinstance(replies["a"], Sampled)


def test_many_scores_at_once_are_those_of_one(engine: Engine) -> None:
    texts = [f"{'word ' * (i % 7)}question {i}" for i in range(40)]
    requests = [
        ScoreRequest(key=t, token_ids=prompt(engine, t), start=1 + i % 3) for i, t in enumerate(texts)
    ]
    replies = keyed(engine.score(iter(requests)))
    assert sorted(replies) == sorted(texts)
    for request in requests[::9]:
        alone = score(engine, request.token_ids, request.start)
        assert list(replies[request.key].logprobs) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("name", real("vllm", "server"))
def test_scores_and_samples_agree_with_transformers(name: str, engines: Engines, reference: Engine) -> None:
    engine = engines[name]
    for text in ("what is the capital of france?", "我很開心 🙂", "the lazy dog " * 9):
        ids = prompt(engine, text)
        assert ids == prompt(reference, text)
        assert score(engine, ids, 1) == pytest.approx(score(reference, ids, 1), abs=1e-4)
        greedy = [sampled(e, ask(e, text=text, temperature=0.0))[0] for e in (engine, reference)]
        assert greedy[0].token_ids == greedy[1].token_ids
        assert written(greedy[0].text) == written(greedy[1].text)
        assert greedy[0].logprobs == pytest.approx(greedy[1].logprobs, abs=1e-4)


# alternatives and constraints
@pytest.mark.parametrize("name", real(*REAL))
def test_top_logprobs_hold_the_sampled_token_and_the_likeliest(
    name: str, engines: Engines, reference: Engine
) -> None:
    engine = engines[name]
    (reply,) = sampled(engine, ask(engine, top_logprobs=4, min_tokens=6))
    (expected,) = sampled(reference, ask(reference, top_logprobs=4, min_tokens=6))
    assert len(reply.top_logprobs) == len(reply.token_ids or ())
    for token, logprob, position in zip(
        reply.token_ids or (), reply.logprobs or (), reply.top_logprobs, strict=True
    ):
        assert 1 <= len(position) <= 5
        assert position[engine.tokenizer.decode([token])] >= logprob - 1e-6
    assert reply.top_logprobs[0].keys() >= expected.top_logprobs[0].keys() - {
        reference.tokenizer.decode(list(expected.token_ids or ())[:1])
    }


@pytest.mark.parametrize("name", ["fake", *real("vllm", "server")])
def test_a_choice_is_kept(name: str, engines: Engines) -> None:
    engine = engines[name]
    requests = [ask(engine, i, seed=i, choice=("Yes", "No"), top_logprobs=5) for i in range(6)]
    for reply in sampled(engine, *requests):
        assert reply.text in ("Yes", "No")
        assert len(reply.top_logprobs) == len(reply.token_ids or ()) > 0


@pytest.mark.parametrize("name", ["fake", *real("vllm", "server")])
def test_a_json_schema_is_kept(name: str, engines: Engines) -> None:
    engine = engines[name]
    requests = [ask(engine, i, seed=i, json_schema=SCHEMA, max_tokens=60, top_logprobs=3) for i in range(4)]
    for reply in sampled(engine, *requests):
        found = json.loads(reply.text)
        assert found.keys() == {"rating", "fair"}
        assert found["rating"] in (1, 2, 3)
        assert isinstance(found["fair"], bool)
        assert reply.top_logprobs


def test_a_model_of_the_wrong_kind_is_named_as_such() -> None:
    kinds = {
        "a language model": {Capability.SAMPLE, Capability.TOKENS, Capability.SCORE},
        "a reward model": {Capability.TOKENS, Capability.REWARD},
    }
    model, reward = (Mock(model=name, capabilities=has) for name, has in kinds.items())
    require(model, Capability.SCORE, task="a test")
    require(reward, Capability.REWARD, task="a test")
    with pytest.raises(CapabilityError, match="gives no rewards, which a test needs") as refused:
        require(model, Capability.REWARD, task="a test")
    assert refused.value.hint and "gavel train reward" in refused.value.hint
    with pytest.raises(CapabilityError, match="is a reward model, and a test needs a language model"):
        require(reward, Capability.SCORE, task="a test")


def test_what_an_engine_cannot_do_it_says_before_any_work(engine: Engine) -> None:
    for capability in Capability:
        if capability in engine.capabilities:
            require(engine, capability, task="a test")
            continue
        with pytest.raises(CapabilityError, match="a test needs"):
            require(engine, capability, task="a test")
    if Capability.REWARD not in engine.capabilities:
        with pytest.raises(CapabilityError):
            list(engine.reward([RewardRequest(key="r", token_ids=[70, 71])]))
    if Capability.CHOICE not in engine.capabilities:
        with pytest.raises(CapabilityError):
            list(engine.sample([ask(engine, choice=("A", "B"))]))
    if Capability.LOAD_WEIGHTS not in engine.capabilities:
        with pytest.raises(CapabilityError):
            engine.load_weights("elsewhere")


# rewards
@pytest.mark.engine
def test_rewards_agree_with_transformers(engines: Engines) -> None:
    engine, reference = engines["vllm/reward"], engines["transformers/reward"]
    requests = [
        RewardRequest(key=str(i), token_ids=prompt(engine, "very good " * i + "answer")) for i in range(6)
    ]
    found, expected = keyed(engine.reward(requests)), keyed(reference.reward(requests))
    rewards = [found[r.key].reward for r in requests]
    assert rewards == pytest.approx([expected[r.key].reward for r in requests], abs=1e-3)
    assert max(abs(r) for r in rewards) > 1, "an activation would keep them in (0, 1)"
    for e in (engine, reference):
        assert e.capabilities == {Capability.TOKENS, Capability.LOAD_WEIGHTS, Capability.REWARD}
        with pytest.raises(CapabilityError):
            list(e.sample([ask(e)]))
        over, fits = keyed(
            e.reward(
                [
                    RewardRequest(key="over", token_ids=[70] * (CONTEXT + 1)),
                    RewardRequest(key="fits", token_ids=[70] * CONTEXT),
                ]
            )
        ).values()
        assert (type(over), type(fits)) == (Refused, Rewarded)


# new weights
@pytest.mark.engine
@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_loaded_weights_are_those_of_a_fresh_engine(kind: str, engines: Engines, tiny: Tiny) -> None:
    engine = engines[f"{kind}/loads"]
    ids = prompt(engine, "the quick brown fox jumps over the lazy dog")
    versions, scores = [engine.weights], [score(engine, ids, 1)]
    for path in (tiny.other, tiny.half, tiny.lm):
        engine.load_weights(path)
        versions.append(engine.weights)
        scores.append(score(engine, ids, 1))
        fresh = EngineConfig(model=path, engine="transformers", context=CONTEXT)
        with open_engine(fresh) as expected:
            assert engine.weights == expected.weights
            assert scores[-1] == pytest.approx(score(expected, ids, 1), abs=1e-4)
            request = ask(engine, text="and now?", temperature=0.0, max_tokens=20)
            assert sampled(engine, request)[0].token_ids == sampled(expected, request)[0].token_ids
    assert versions[3] == versions[0]
    assert len(set(versions)) == 3
    assert scores[3] == pytest.approx(scores[0], abs=1e-5)
    assert scores[1] != pytest.approx(scores[0], abs=0.1)


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_weights_that_cannot_be_loaded_change_nothing(
    kind: str, engines: Engines, tiny: Tiny, tmp_path: Path
) -> None:
    engine = engines[f"{kind}/loads"]
    before, ids = engine.weights, prompt(engine)
    scores = score(engine, ids, 1)
    with pytest.raises(InputError):
        engine.load_weights(str(tmp_path))
    if kind == "vllm":  # transformers loads any model
        larger = Path(shutil.copytree(tiny.other, tmp_path / "larger"))
        config = json.loads((larger / "config.json").read_text())
        (larger / "config.json").write_text(json.dumps(config | {"hidden_size": 256}))
        with pytest.raises(InputError, match="hidden_size is 256"):
            engine.load_weights(str(larger))
    assert engine.weights == before
    assert score(engine, ids, 1) == pytest.approx(scores, abs=1e-5)
    with pytest.raises(CapabilityError):
        engines[f"{kind}/adapter"].load_weights(str(tmp_path))


def test_the_fake_engine_answers_otherwise_with_other_weights() -> None:
    engine = FakeEngine("m")
    before = sampled(engine, ask(engine))[0]
    weights = engine.weights
    engine.load_weights("elsewhere")
    assert engine.weights != weights
    assert sampled(engine, ask(engine))[0] != before
    assert FakeEngine("m", adapter="a").weights != weights


# adapters and modes
@pytest.mark.engine
def test_an_adapter_changes_the_policy_as_peft_does(engines: Engines, tiny: Tiny) -> None:
    plain, adapted, expected = (engines[n] for n in ("vllm", "vllm/adapter", "transformers/adapter"))
    ids = prompt(plain, "the quick brown fox")
    assert score(adapted, ids, 1) == pytest.approx(score(expected, ids, 1), abs=1e-3)
    assert score(adapted, ids, 1) != pytest.approx(score(plain, ids, 1), abs=0.1)
    assert adapted.weights == expected.weights != plain.weights
    greedy = [sampled(e, ask(e, temperature=0.0))[0] for e in (adapted, expected)]
    assert greedy[0].token_ids == greedy[1].token_ids
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny.lm), tiny.adapter)
    import torch

    with torch.inference_mode():
        logits = merged.merge_and_unload()(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    by_hand = logits.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert score(adapted, ids, 1) == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_processed_logprobs_are_of_the_distribution_sampled_from(
    kind: str, engines: Engines, tiny: Tiny
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    raw, processed = engines[kind], engines[f"{kind}/processed"]
    fields: dict[str, Any] = {"temperature": 0.5, "seed": 4, "max_tokens": 8, "min_tokens": 8}
    (r,), (p,) = (sampled(e, ask(e, **fields)) for e in (raw, processed))
    assert r.token_ids == p.token_ids, "the mode must not change what is sampled"
    before, ids = prompt(raw, "hello"), list(r.token_ids or ())
    assert list(r.logprobs or ()) == pytest.approx(score(raw, before + ids, len(before)), abs=1e-4)
    model = LlamaForCausalLM.from_pretrained(tiny.lm)
    with torch.no_grad():
        logits = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1].clone()
    logits[: fields["min_tokens"], raw.tokenizer.eos_id] = -torch.inf  # held back by min_tokens
    by_hand = (logits / 0.5).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert list(p.logprobs or ()) == pytest.approx(by_hand, abs=1e-4)
    (top,) = sampled(processed, ask(processed, top_k=1, max_tokens=5))
    assert list(top.logprobs or ()) == pytest.approx([0.0] * len(top.logprobs or ()), abs=1e-5)


# two streams, closing
@pytest.mark.engine
def test_a_vllm_engine_outlives_one_that_closes_beside_it(engines: Engines, tiny: Tiny) -> None:
    """Both in one process, where vLLM's distributed state is common to all."""
    living = engines["vllm"]
    request = ScoreRequest(key="a", token_ids=[5, 6, 7, 8], start=1)
    before = list(living.score([request]))
    with open_engine(EngineConfig(model=tiny.other, engine="vllm", context=CONTEXT)) as passing:
        assert list(passing.score([request])) != before
    assert list(living.score([request])) == before


@pytest.mark.engine
def test_two_streams_of_one_vllm_engine_do_not_mix(engines: Engines) -> None:
    engine = engines["vllm"]
    judged = engine.score(
        ScoreRequest(key=f"s{i}", token_ids=prompt(engine, f"text {i}"), start=2) for i in range(700)
    )
    answers = engine.sample(ask(engine, f"a{i}", seed=i) for i in range(30))
    found: list[Any] = []
    for one in answers:  # a policy samples while a judge reads
        found += [one, *itertools.islice(judged, 20)]
    found += list(judged)
    by_key = keyed(found)
    assert len(by_key) == 730
    assert all(isinstance(by_key[f"s{i}"], Scored) for i in range(700))
    alone = score(engine, prompt(engine, "text 77"), 2)
    assert list(by_key["s77"].logprobs) == pytest.approx(alone, abs=1e-4)


def test_seeded_requests_with_more_prompt_tokens_than_a_step_takes(engine: Engine) -> None:
    """vLLM on a CPU cannot go on with a seeded request whose prompt was split over two steps."""
    count = 60 if engine.name in ("vllm", "fake") else 4
    long = list(itertools.islice(itertools.cycle(prompt(engine, "many words ")), 150))  # 60 × 150 tokens
    requests = [
        SampleRequest(key=str(i), prompt=[*long, 40 + i], sampling=Sampling(max_tokens=4), seed=i)
        for i in range(count)
    ]
    found = keyed(engine.sample(requests))
    assert len(found) == count
    assert all(isinstance(reply, Sampled) for reply in found.values())


def test_a_stream_that_is_left_takes_nothing_with_it(engine: Engine) -> None:
    left = engine.sample(ask(engine, i, seed=i) for i in range(50))
    kept = engine.score(
        ScoreRequest(key=str(i), token_ids=prompt(engine, f"{i}"), start=1) for i in range(20)
    )
    next(left)
    first = next(kept)
    left.close()  # type: ignore[attr-defined]
    assert len(keyed([first, *kept])) == 20


@pytest.mark.parametrize("kind", ["fake", *real("transformers", "vllm")])
def test_closing_twice_is_no_harm_and_a_closed_engine_says_so(
    kind: str, tiny: Tiny, engines: Engines
) -> None:
    with open_engine(engines.config(kind)) as engine:
        request = ask(engine)
        if kind == "fake":
            engine.close()
            return
        waiting = engine.sample(ask(engine, i, seed=i) for i in range(2000))
        next(waiting)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            list(engine.sample([request]))
        with pytest.raises(EngineError, match="closed"):
            list(waiting)


# what cannot be opened
@pytest.mark.parametrize("kind", real("transformers", "vllm"))
@pytest.mark.parametrize(
    "fault",
    ["missing", "no tokenizer", "no weights", "no config", "no adapter", "cut off", "a weight is missing"],
)
def test_a_model_that_cannot_be_opened_is_named(
    kind: str, fault: str, engines: Engines, tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    if fault != "missing":
        shutil.copytree(tiny.lm, path)
    for pattern in {
        "no tokenizer": ["token*"],
        "no weights": ["*.safetensors"],
        "no config": ["config.json"],
    }.get(fault, []):
        for file in path.glob(pattern):
            file.unlink()
    weights = path / "model.safetensors"
    if fault == "cut off":
        os.truncate(weights, 10_000)
    elif fault == "a weight is missing":  # which would be drawn at random
        from safetensors.torch import load_file, save_file

        held = load_file(weights)
        save_file({k: w for k, w in held.items() if k != "model.norm.weight"}, weights, {"format": "pt"})
    adapter = str(tmp_path) if fault == "no adapter" else None
    with (
        pytest.raises(GavelError) as caught,
        open_engine(EngineConfig(model=str(path), engine=kind, context=CONTEXT, adapter=adapter)),
    ):
        pass
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.engine
def test_weights_of_other_shapes_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    """By transformers; vLLM takes what fits of them."""
    path = Path(shutil.copytree(tiny.lm, tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    config["intermediate_size"] += 8
    (path / "config.json").write_text(json.dumps(config))
    with (
        pytest.raises(InputError, match=r"of its weights have other shapes than its config.json says"),
        open_engine(EngineConfig(model=str(path), engine="transformers", context=CONTEXT)),
    ):
        pass


def test_unknown_engines_and_arguments_are_named() -> None:
    for config, says in [
        (EngineConfig(model="m", engine="vlm"), "Known: vllm, transformers"),
        (EngineConfig(model="m", engine="server"), "--base-url"),
        (EngineConfig(model="m", engine="fake", engine_args={"fail_evry": 3}), "fail_every"),
        (EngineConfig(model="m", engine="fake", engine_args={"fail_every": "often"}), "whole number"),
    ]:
        with pytest.raises(InputError, match=says), open_engine(config):
            pass
