"""Records: what goes in comes out, old versions are upgraded, everything else is refused by line."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gavel import records
from gavel.errors import RowError, RunDirError
from gavel.packed import pack_ids, pack_logprobs
from gavel.records import (
    Completion,
    Judgment,
    Message,
    PreferencePair,
    Prompt,
    Record,
    Sampling,
    decode,
    digest,
    encode,
    prompt_id,
    seed_for,
)
from gavel.rundir import read_records

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
INT = st.integers(-(2**53), 2**53)
JSON = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | INT | FLOAT | TEXT, st.lists, max_leaves=5), max_size=3
)
STRATEGIES: dict[Any, st.SearchStrategy[Any]] = {str: TEXT, float: FLOAT, int: INT, dict[str, Any]: JSON}


def any_of(kind: type[Record]) -> st.SearchStrategy[Record]:
    """Instances of a record, every field drawn by its type."""

    def of(hint: Any) -> st.SearchStrategy[Any]:
        if hint in STRATEGIES:
            return STRATEGIES[hint]
        match msgspec.inspect.type_info(hint):
            case msgspec.inspect.UnionType(types=types) if len(types) > 1:
                return st.one_of(*(of(t) for t in hint.__args__))
            case msgspec.inspect.VarTupleType():
                return st.lists(of(hint.__args__[0]), max_size=3).map(tuple)
            case msgspec.inspect.StructType(cls=cls):
                return any_of(cls)
            case msgspec.inspect.DictType():
                return st.dictionaries(TEXT, of(hint.__args__[1]), max_size=3)
            case _:
                return st.none()

    hints = msgspec.structs.fields(kind)
    return st.fixed_dictionaries({f.name: of(f.type) for f in hints}).map(lambda d: kind(**d))


@pytest.mark.parametrize("kind", [Prompt, Completion, Judgment, PreferencePair])
def test_round_trip(kind: type[Record]) -> None:
    @settings(max_examples=80, deadline=None)
    @given(any_of(kind))
    def check(record: Record) -> None:
        line = encode(record)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert decode(line, kind, "f:1") == record
        assert encode(decode(line, kind, "f:1")) == line

    check()


def test_a_number_that_is_not_finite_becomes_null() -> None:
    line = encode(Completion(id="c", prompt_id="p", index=0, text="", logprob_sum=float("-inf")))
    assert json.loads(line)["logprob_sum"] is None
    assert decode(line, Completion, "f:1").logprob_sum is None


# versions


def line_of(tag: str, **fields: Any) -> bytes:
    return json.dumps({"record": tag, "id": "c", "prompt_id": "p", "index": 0, "text": "t"} | fields).encode()


def test_an_older_version_is_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade(row: dict[str, Any]) -> dict[str, Any]:
        row["text"] = row.pop("response")
        return row

    monkeypatch.setitem(records.UPGRADES, "completion", {0: upgrade})
    old = json.dumps({"record": "completion/0", "id": "c", "prompt_id": "p", "index": 0, "response": "t"})
    assert decode(old.encode(), Completion, "f:1") == Completion(id="c", prompt_id="p", index=0, text="t")
    with pytest.raises(RunDirError, match=r"f:3: not a valid completion of version 0: KeyError"):
        decode(line_of("completion/0"), Completion, "f:3")


def test_an_upgrade_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {v: lambda row, v=v: row | {"text": row["text"] + str(v)} for v in (-1, 0)}
    monkeypatch.setitem(records.UPGRADES, "completion", steps)
    assert decode(line_of("completion/-1"), Completion, "f:1").text == "t-10"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (line_of("completion/2"), "completion of version 2, this gavel reads up to 1\n  Update gavel"),
        (line_of("completion/0"), "version 0 can no longer be read"),
        (line_of("prompt/1"), "holds a prompt where a completion is expected"),
        (line_of("prompt/9"), "holds a prompt where a completion is expected"),
        (line_of("completion/1", respnse="x"), "unknown field `respnse`"),
        (line_of("completion/1", sampling={"temprature": 1.0}), r"unknown field `temprature` .*sampling"),
        (line_of("completion/1", index="0"), r"Expected `int`, got `str` .*\.index"),
        (line_of("completion/1", text=None), r"Expected `str`, got `null`"),
        (b'{"record": "completion/1"}', "missing required field"),
        (line_of("completion"), "not a completion record"),
        (line_of("completion/1/1"), "not a completion record"),
        (line_of("completion/x"), "not a completion record"),
        (b'{"id": "c"}', "not a completion record"),
        (b"[]", "not a completion record"),
        (b"null", "not a completion record"),
        (b"", "not a completion record"),
        (b'{"record": "compl', "not a completion record"),
        (line_of("completion/1")[:-1], "not a completion record"),
        (b'{"record": "completion/1", "id": "\xff"}', "not a completion record"),
    ],
)
def test_refused_with_file_and_line(line: bytes, message: str, tmp_path: Path) -> None:
    good = encode(Completion(id="a", prompt_id="p", index=0, text="t"))
    path = tmp_path / "completions.jsonl"
    path.write_bytes(good + line + b"\n" + good)
    read = read_records(path, Completion)
    assert next(read).id == "a"
    with pytest.raises(RunDirError, match=message) as raised:
        next(read)
    assert raised.value.where == f"{path}:2"


@pytest.mark.parametrize(
    "record",
    [
        Prompt(id="p1", messages=(Message("user", "\ud800"),)),
        Prompt(id="p1", messages=(), metadata={"k": ["\udfff"]}),
        Completion(id="p1", prompt_id="p", index=0, text="a\udc80"),
    ],
)
def test_lone_surrogates_are_not_written(record: Record) -> None:
    with pytest.raises(RowError, match="p1: text that is not valid Unicode"):
        encode(record)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        Prompt(id="p", messages=()).id = "q"  # type: ignore[misc]


# ids and seeds: a change here makes every run on every disk begin anew


def test_ids_are_what_they_always_were() -> None:
    assert digest() == "5feb596270186253f9f617f0"
    assert digest("a", 1, 1.5, None, True, [2], {"b": 1, "a": 2}) == "fe74d3c524bf51fbc9ce666b"
    assert prompt_id((Message("user", "What is 1+1? 我"),)) == "a7b538f2522486672d266448"
    assert prompt_id((Message("user", "q"),), ("ref",)) == "e028e80fca13ae5ac4e59bb9"
    assert digest(Sampling()) == "1f51950325d8d0542e91e100"
    assert digest(Sampling(temperature=0.7, stop=("\n",))) == "83de72cb3b3d855d6dc1a9e1"
    assert [seed_for(1, "p", 0), seed_for(1, "p", 1), seed_for(2, "p", 0)] == [
        1467701079,
        870985317,
        787954197,
    ]


def test_digest_is_of_content() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("ab", "c") != digest("a", "bc") != digest(["a", "bc"])
    assert prompt_id((Message("user", "q"),)) != prompt_id((Message("system", "q"),))


def test_equal_sampling_has_equal_digests() -> None:
    """However it came: default, command line, JSON, whole numbers."""
    spelled = Sampling(
        temperature=float("1.0"), top_p=1, top_k=int("0"), max_tokens=int("512"), logprobs_mode="".join("raw")
    )
    read = msgspec.json.decode(b'{"temperature":1,"max_tokens":512,"stop":[]}', type=Sampling)
    assert digest(spelled) == digest(read) == digest(Sampling())
    assert digest(Sampling(temperature=2)) == digest(Sampling(temperature=2.0)) != digest(Sampling())
    again = msgspec.json.decode(msgspec.json.encode(Sampling(min_p=0.5)), type=Sampling)
    assert digest(again) == digest(Sampling(min_p=0.5))


def test_seeds() -> None:
    assert seed_for(1, "p", 1) != seed_for(2, "p", 0)
    seeds = [seed_for(run, f"p{p}", i) for run in range(10) for p in range(100) for i in range(100)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    # n²/2 / 2³¹ = 2.3 collisions expected; more than 12 once in a million times
    assert len(seeds) - len(set(seeds)) <= 12
    assert abs(sum(seeds) / len(seeds) / 2**30 - 1) < 0.01


def test_size_of_a_completion() -> None:
    draw = random.Random(0)
    logprobs = [-draw.expovariate(1.0) for _ in range(500)]
    completion = Completion(
        id="0" * 24, prompt_id="1" * 24, index=7, text="",
        token_ids=pack_ids([draw.randrange(150_000) for _ in range(500)]), prompt_hash="2" * 24,
        logprobs=pack_logprobs(logprobs), logprobs_mode="raw", logprob_sum=sum(logprobs),
        finish_reason="length", model="organisation/some-model-7b-instruct", weights="3" * 24,
        sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=500, stop=("\n\n",)), seed=2**31 - 1,
    )  # fmt: skip
    assert len(encode(completion)) < 3300
