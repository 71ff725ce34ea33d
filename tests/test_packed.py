"""Packed token ids and log-probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gavel.packed import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs


@settings(deadline=None)
@given(st.integers(1, 32).flatmap(lambda bits: st.lists(st.integers(0, 2**bits - 1), max_size=70)))
def test_ids_round_trip(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids
    assert unpack_ids(pack_ids(np.array(ids, dtype=np.int64))) == ids  # type: ignore[arg-type]


def test_ids_by_hand() -> None:
    assert pack_ids([]) == "1:0:"
    assert pack_ids([0]) == "1:1:AA=="
    assert pack_ids([1, 2, 3]) == "2:3:bA=="  # 01 10 11 and two bits of padding
    assert unpack_ids("1:0:") == []
    assert len(pack_ids([2**17] * 500)) == len("18:500:") + 1500


@pytest.mark.parametrize("ids", [[-1], [2**32], [1, -5]])
def test_ids_out_of_range(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="token ids"):
        pack_ids(ids)


@pytest.mark.parametrize(
    "damaged",
    ["", "1", "1:2", "a:b:", "8:x:AA==", "1:1:!!!", "33:0:", "0:0:", "-1:0:", "8:-1:", "8:1:AA", "8:1:é",
     "8:1:", "8:2:AA==", "8:1:AAAA", "8:99999999999999999999:AAAA", "8:1:AA==\n", "8:1:AA==:", "[1, 2]"],
)  # fmt: skip
def test_damaged_ids(damaged: str) -> None:
    with pytest.raises(ValueError):
        unpack_ids(damaged)


@given(st.lists(st.integers(0, 2**17), min_size=1, max_size=40), st.data())
def test_ids_cut_off(ids: list[int], data: st.DataObject) -> None:
    packed = pack_ids(ids)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(ValueError):
        unpack_ids(packed[:cut])


@settings(deadline=None)
@given(st.lists(st.floats(-60_000, 0), max_size=50))
def test_logprobs_keep_three_digits(logprobs: list[float]) -> None:
    """float16: half a unit in the eleventh bit, relative; 3e-8 absolute next to zero."""
    found = unpack_logprobs(pack_logprobs(logprobs))
    assert len(found) == len(logprobs)
    np.testing.assert_allclose(found, logprobs, rtol=2**-11, atol=2**-25)


@given(st.lists(st.floats(width=16), max_size=30))
def test_float16_comes_out_as_it_went_in(logprobs: list[float]) -> None:
    np.testing.assert_array_equal(unpack_logprobs(pack_logprobs(logprobs)), logprobs)
    assert pack_logprobs(unpack_logprobs(pack_logprobs(logprobs))) == pack_logprobs(logprobs)


def test_logprobs_by_hand() -> None:
    assert pack_logprobs([]) == ""
    assert unpack_logprobs("") == []
    assert unpack_logprobs(pack_logprobs([-0.5, -1e9, 0.0])) == [-0.5, float("-inf"), 0.0]
    assert len(pack_logprobs([-1.0] * 500)) == 1336


@pytest.mark.parametrize("damaged", ["A", "AA==", "AAAAA", "é", "!!!!", "AAAA\n"])
def test_damaged_logprobs(damaged: str) -> None:
    with pytest.raises(ValueError):
        unpack_logprobs(damaged)
