"""From what an audit remembers to its findings: how many, of how many, over the limit or not, and where."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.audit_limits import LIMITS
from judge.audit_tally import Tally
from judge.intervals import wilson
from judge.near_duplicates import groups_of, similarity
from judge.pair_statistics import REPEATED_PROMPTS

Ints = NDArray[np.int64]
_PLACES = 10  # places named of one group


@dataclass(frozen=True, slots=True)
class Listing:
    """Groups of places, as many as are named, and how many there are."""

    groups: Sequence[Sequence[str]]
    total: int


@dataclass(frozen=True, slots=True)
class Finding:
    """count of `total` things, `of` what, against the largest share allowed.

    total 0: the question does not apply, and `details` says why. interval: 95 % of the share;
    what has one is held to at least 1 − limit too.
    """

    of: str
    count: int
    total: int
    limit: float
    crossed: bool
    listing: Listing | None = None
    option: str = ""
    interval: tuple[float, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def report(self, listed: int) -> dict[str, Any]:
        """As JSON has it, with the places of at most `listed` groups."""
        made: dict[str, Any] = {
            "count": self.count if self.total else None,
            "of": self.of,
            "total": self.total,
            "share": self.count / self.total if self.total else None,
            "limit": self.limit,
            "option": self.option,
            "crossed": self.crossed,
        }
        if self.interval is not None:
            made["interval"] = list(self.interval)
            made["least"] = 1 - self.limit
        if self.listing is not None:
            made |= {"places": [list(group[:_PLACES]) for group in self.listing.groups[:listed]],
                     "groups": self.listing.total}  # fmt: skip
        return made | self.details


@dataclass(frozen=True)
class Tables:
    """A tally's comparisons as arrays. labelled: those that are no tie."""

    tally: Tally
    place: Callable[[int], str]
    row: Ints
    prompt: Ints
    better: Ints
    worse: Ints
    better_chars: Ints
    worse_chars: Ints
    gap: NDArray[np.float64]
    labelled: NDArray[np.bool_]

    @classmethod
    def of(cls, tally: Tally) -> Tables:
        chars = np.array(tally.text_chars)
        row, better, worse = (np.array(ids) for ids in (tally.pair_row, tally.better, tally.worse))
        return cls(
            tally, tally.places.name(), row, np.array(tally.row_prompt)[row], better, worse,
            chars[better], chars[worse], np.array(tally.pair_gap), np.array(tally.pair_tie) == 0,
        )  # fmt: skip

    def listing(self, groups: Iterable[Iterable[int]]) -> Listing:
        """Groups of rows, by their places; a row is named once."""
        rows = [list(dict.fromkeys(int(row) for row in group)) for group in groups]
        return Listing([[self.place(row) for row in group[:_PLACES]] for group in rows], len(rows))

    def rows(self, comparisons: NDArray[np.bool_]) -> Listing:
        """The rows of some comparisons, each by itself."""
        return self.listing([row] for row in np.unique(self.row[comparisons]))


def findings(
    tables: Tables, overlapping: array[int] | None, near: float, limit: Callable[[str], float]
) -> dict[str, Finding]:
    """Every finding by its name, in the order of `LIMITS`.

    Args:
        overlapping: rows whose prompt stands in an evaluation file, None where none was given.
        near: similarity of near-duplicates. limit: the largest share allowed of a finding.
    """
    opposed, opposites = _contradictions(tables)
    special, rows = tables.tally.row_special, len(tables.tally.places)
    texts = tables.tally.text_sketches.table()
    prompt_groups = groups_of(tables.tally.prompt_sketches.table(), near)
    sums = {
        **_simple(tables),
        "duplicates": _duplicates(tables),
        "near_identical": _near_identical(tables, texts, near),
        "near_duplicates": _near_contents(tables, prompt_groups, groups_of(texts, near)),
        "near_duplicate_prompts": _near_prompts(tables, prompt_groups),
        "contradictions": opposites,
        "cycles": _cycles(tables, opposed),
        "special_tokens": (len(special), rows, tables.listing([row] for row in special), {}),
        "repeated_text": _repeated_texts(tables, limit("repeated_text")),
        "eval_overlap": _overlap(tables, overlapping),
        "longer_wins": _longer_wins(tables),
        "first_column": _first_column(tables),
    }
    made = {}
    for each in LIMITS:
        count, total, listing, details = sums[each.name]
        most = limit(each.name)
        interval = wilson(count / total, total) if each.measured and total else None
        crossed = count > most * total
        if interval:
            opposite = total - count - details.get("equal", 0)
            crossed = any(wilson(n / total, total)[0] > most for n in (count, opposite))
        made[each.name] = Finding(
            each.of, count, total, most, crossed, listing, each.option, interval, details
        )
    return made


#: count, total, places, details
_Sum = tuple[int, int, Listing | None, dict[str, Any]]


def _simple(tables: Tables) -> dict[str, _Sum]:
    """What one comparison shows by itself."""
    labelled, n = tables.labelled, len(tables.row)
    n_labelled = int(labelled.sum())
    identical = labelled & (tables.better == tables.worse)
    blank = np.array(tables.tally.text_blank) == 1
    empty = blank[tables.better] | blank[tables.worse]
    scored = labelled & ~np.isnan(tables.gap)
    against = scored & (tables.gap <= 0)
    return {
        "ties": (n - n_labelled, n, tables.rows(~labelled), {}),
        "identical": (int(identical.sum()), n_labelled, tables.rows(identical), {}),
        "empty": (int(empty.sum()), n, tables.rows(empty), {}),
        "scores_against_label": (
            int(against.sum()), int(scored.sum()), tables.rows(against),
            {"equal": int((tables.gap[scored] == 0).sum())} if scored.any() else _absent("no scores"),
        ),
    }  # fmt: skip


def _duplicates(tables: Tables) -> _Sum:
    keys = np.array(tables.tally.row_label, np.uint64)
    repeated = _equals(keys)
    return sum(len(group) - 1 for group in repeated), len(keys), tables.listing(repeated), {}


def _equals(keys: NDArray[Any]) -> list[Ints]:
    """Places with one key, two or more together; by their first place."""
    order = np.argsort(keys, kind="stable").astype(np.int64)
    parts = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: int(part[0]))


def _near_prompts(tables: Tables, groups: Ints) -> _Sum:
    found = _equals(groups)
    rows = tables.tally.prompt_row
    listing = tables.listing([rows[prompt] for prompt in group] for group in found)
    return sum(len(group) - 1 for group in found), len(groups), listing, {}


def _near_contents(tables: Tables, prompts: Ints, texts: Ints) -> _Sum:
    """Prompt with prompt and each text with a text: neither a long prompt nor a long answer that two rows
    share makes them near-duplicates.

    Args:
        prompts, texts: the group of each.
    """
    tally, alike = tables.tally, defaultdict[tuple[int, ...], list[int]](list)
    for row in tally.content_row:
        offered = tally.offered[tally.row_end[row - 1] if row else 0 : tally.row_end[row]]
        alike[int(prompts[tally.row_prompt[row]]), *sorted(int(texts[text]) for text in offered)].append(row)
    found = [rows for rows in alike.values() if len(rows) > 1]
    return sum(len(rows) - 1 for rows in found), len(tally.contents), tables.listing(found), {}


def _near_identical(tables: Tables, texts: NDArray[np.uint16], near: float) -> _Sum:
    at = np.flatnonzero(tables.labelled & (tables.better != tables.worse))
    alike = similarity(texts, np.stack([tables.better[at], tables.worse[at]], axis=1)) >= near
    marked = np.zeros(len(tables.row), np.bool_)
    marked[at[alike]] = True
    return int(alike.sum()), int(tables.labelled.sum()), tables.rows(marked), {}


def _contradictions(tables: Tables) -> tuple[NDArray[np.bool_], _Sum]:
    """Comparisons of which another has the opposite label, and their sum.

    wrong_at_least: so many of their labels must be wrong, whichever are.
    """
    at = np.flatnonzero(tables.labelled & (tables.better != tables.worse))
    better, worse = tables.better[at], tables.worse[at]
    keys = np.stack([tables.prompt[at], np.minimum(better, worse), np.maximum(better, worse)])
    pair = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
    up, down = (np.bincount(pair, weights=side).astype(int) for side in (better < worse, better > worse))
    both = (up > 0) & (down > 0)
    opposed = np.zeros(len(tables.row), np.bool_)
    opposed[at[both[pair]]] = True
    listing = tables.listing(tables.row[at[part]] for part in _equals(pair) if both[pair[part[0]]])
    details = {"pairs": int(both.sum()), "wrong_at_least": int(np.minimum(up, down)[both].sum())}
    return opposed, (int(opposed.sum()), int(tables.labelled.sum()), listing, details)


def _cycles(tables: Tables, opposed: NDArray[np.bool_]) -> _Sum:
    """Comparisons inside a strongly connected part of a prompt's graph better → worse, once those
    that are contradicted are left out: each lies on a cycle of three or more."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    at = np.flatnonzero(tables.labelled & ~opposed & (tables.better != tables.worse))
    ends = np.concatenate(
        [np.stack([tables.prompt[at], side[at]]) for side in (tables.better, tables.worse)], axis=1
    )
    nodes, place = np.unique(ends, axis=1, return_inverse=True)
    source, target = place.reshape(2, -1)
    shape = (nodes.shape[1], nodes.shape[1])
    edges = coo_matrix((np.ones(len(at), np.int8), (source, target)), shape=shape)
    part = connected_components(edges, connection="strong")[1]
    inside = part[source] == part[target]
    rows = tables.row[at[inside]]
    order = np.argsort(part[source][inside], kind="stable")
    together = np.split(rows[order], np.flatnonzero(np.diff(part[source][inside][order])) + 1)
    listing = tables.listing(sorted(group.tolist() for group in together if len(group)))
    details = {"prompts": len(np.unique(tables.prompt[at[inside]]))}
    return int(inside.sum()), int(tables.labelled.sum()), listing, details


def _repeated_texts(tables: Tables, most: float) -> _Sum:
    """The prompts of the text that is offered for the most of them; a text is flagged where they are
    more than the share allowed and three or more. Texts of white space only are `empty`."""
    tally = tables.tally
    prompt = np.repeat(np.array(tally.row_prompt), np.diff(np.r_[0, np.array(tally.row_end)]))
    pairs, first = np.unique(np.stack([np.array(tally.offered), prompt]), axis=1, return_index=True)
    counts = np.bincount(pairs[0])
    counts[np.array(tally.text_blank) == 1] = 0
    total = len(tally.prompts)
    ranked = np.argsort(-counts, kind="stable")
    flagged = [int(t) for t in ranked if counts[t] >= REPEATED_PROMPTS and counts[t] > most * total]
    row_of = np.searchsorted(np.array(tally.row_end), first, side="right")
    listing = tables.listing(np.sort(row_of[pairs[0] == text]) for text in flagged)
    shown = [{"prompts": int(counts[t]), "characters": tally.text_chars[t]} for t in flagged[:_PLACES]]
    highest = int(counts.max())
    return highest if highest >= REPEATED_PROMPTS else 0, total, listing, {"texts": shown}


def _overlap(tables: Tables, overlapping: array[int] | None) -> _Sum:
    if overlapping is None:
        return 0, 0, None, _absent("no --eval FILE")
    listing = tables.listing([row] for row in overlapping)
    return len(overlapping), len(tables.tally.places), listing, {}


def _longer_wins(tables: Tables) -> _Sum:
    """Of all labels, in characters; texts of equal length are no win, so that 1 − share is not "shorter
    wins": `equal` is told besides."""
    better, worse = tables.better_chars[tables.labelled], tables.worse_chars[tables.labelled]
    return int((better > worse).sum()), len(better), None, {"equal": int((better == worse).sum())}


def _first_column(tables: Tables) -> _Sum:
    """The share of labels that name the first of two columns, or of two items of a list."""
    first = np.array(tables.tally.pair_first)[tables.labelled]
    ordered = first[first >= 0]
    if not len(ordered):
        return 0, 0, None, _absent("chosen and rejected have no order")
    return int(ordered.sum()), len(ordered), None, {}


def _absent(reason: str) -> dict[str, Any]:
    return {"not_applicable": reason}
