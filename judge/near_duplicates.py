"""Near-duplicates of texts by MinHash: time and memory grow with the number of texts, not its square.

A text is the set of its runs of five characters, after NFKC, case folding and with white space as one
space. Two texts are as alike as their sets: J = |A ∩ B| / |A ∪ B|. Each of 130 hash functions keeps the
smallest hash of a set; two sets have the same smallest hash with probability J (Broder 1997), so the
share of equal ones estimates J with standard error sqrt(J (1 − J) / 130): 0.035 at J = 0.8. Texts
are compared where one of 26 bands of five hashes is equal, which pairs of J ≥ 0.8 miss with a
probability of 5e-5 and pairs of J = 0.7 with 0.9 %.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # characters
BANDS, BAND = 26, 5
HASHES = BANDS * BAND
LEAST = 0.7  # the smallest similarity that the bands find reliably
NEIGHBOURS = 4  # how many of a band's equals a text is compared with, beside the first

_CHUNK = 2048  # shingles hashed at a time: the table of hashes stays in the processor's cache
_PAIRS = 1 << 16  # pairs compared at a time
_RANDOM = np.random.default_rng(20230206)  # fixed: the same file gives the same report
_FACTORS = _RANDOM.integers(1, 1 << 31, HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_MASKS = _RANDOM.integers(0, 1 << 32, HASHES, dtype=np.uint32)
_BAND_FACTORS = _RANDOM.integers(1, 1 << 62, BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

Pairs = NDArray[np.int64]  # (pairs, 2), places of texts


def normalised(text: str) -> str:
    """NFKC, case folded, white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Sketches:
    """MinHash sketches in the order they were added: 260 bytes a text."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, text: str) -> None:
        """Appends the sketch of a text."""
        shingles = _shingles(text)
        least = np.full(HASHES, 0xFFFFFFFF, dtype=np.uint32)
        for start in range(0, len(shingles), _CHUNK):
            table = (shingles[start : start + _CHUNK] ^ _MASKS[:, None]) * _FACTORS[
                :, None
            ]  # (130, shingles)
            table ^= table >> np.uint32(16)
            np.minimum(least, table.min(axis=1), out=least)
        # the low half of the smallest hash tells texts apart as well: equal by chance once in 65,536
        self._bytes += least.astype(np.uint16).tobytes()

    def table(self) -> NDArray[np.uint16]:
        """(texts, 130), a view: nothing can be added while it lives."""
        return np.frombuffer(self._bytes, dtype=np.uint16).reshape(-1, HASHES)


def _shingles(text: str) -> NDArray[np.uint32]:
    """Hashes of the runs of five characters; a shorter text is one run."""
    points = np.frombuffer(normalised(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    points = np.pad(points, (0, max(0, SHINGLE - len(points)))).astype(np.uint64)
    runs = len(points) - SHINGLE + 1
    found = np.zeros(runs, dtype=np.uint64)
    for offset in range(SHINGLE):
        found = found * np.uint64(0x100000001B3) + points[offset : offset + runs]
    found ^= found >> np.uint64(33)
    found *= np.uint64(0xFF51AFD7ED558CCD)
    mixed: NDArray[np.uint32] = (found >> np.uint64(32)).astype(np.uint32)
    return mixed


def similarity(table: NDArray[np.uint16], pairs: Pairs) -> NDArray[np.float64]:
    """The estimate of J for each pair."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS):
        part = pairs[start : start + _PAIRS]
        found[start : start + _PAIRS] = (table[part[:, 0]] == table[part[:, 1]]).mean(axis=1)
    return found


def near_pairs(table: NDArray[np.uint16], threshold: float) -> Pairs:
    """Pairs of texts whose similarity is at least `threshold`: enough of them to connect each group.

    In a band a text is compared with the first and the next four that have the same hashes, so that
    a template repeated a thousand times costs five comparisons a text and band, not a thousand.

    Args:
        table: of `Sketches`. threshold: in [0.7, 1].
    """
    found = [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        columns = table[:, band * BAND : (band + 1) * BAND].astype(np.uint64)
        keys = (columns * _BAND_FACTORS).sum(axis=1, dtype=np.uint64)
        candidates = _equals(keys)
        found.append(candidates[similarity(table, candidates) >= threshold])
    return np.unique(np.concatenate(found), axis=0)


def _equals(keys: NDArray[np.uint64]) -> Pairs:
    """Pairs of places with equal keys: each place with the first and with the next few."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    made = []
    for offset in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(ranked[:-offset] == ranked[offset:])
        made.append(np.stack([order[same], order[same + offset]], axis=1))
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    first = np.repeat(starts, np.diff(np.r_[starts, len(ranked)]))
    later = np.flatnonzero(np.arange(len(ranked)) - first > NEIGHBOURS)
    made.append(np.stack([order[first[later]], order[later]], axis=1))
    return np.concatenate(made).astype(np.int64)


def groups_of(table: NDArray[np.uint16], threshold: float) -> NDArray[np.int64]:
    """The number of the group of each text: connected by pairs that `near_pairs` finds."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs, count = near_pairs(table, threshold), len(table)
    edges = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return groups
