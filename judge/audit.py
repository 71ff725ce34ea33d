"""What is wrong with a preference file: one pass over its rows, then the findings."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gavel.errors import InputError, RowError
from gavel.progress import Progress
from gavel.rows import BadRows
from judge.audit_findings import Finding, Listing, Tables, findings
from judge.audit_limits import CONTAINMENT, LIMITS, LISTED, NEAR, NGRAM
from judge.audit_rows import read_entries
from judge.audit_tally import Tally
from judge.near_duplicates import BAND, BANDS, HASHES, LEAST, SHINGLE
from judge.overlap import Overlap
from judge.pair_statistics import describe


@dataclass(frozen=True)
class AuditConfig:
    """How to look.

    near: similarity from which two texts are near-duplicates, in [0.7, 1]. ngram: words.
    containment: share of an evaluation prompt's n-grams, in (0, 1]. listed: places named of each finding.
    limits: name of `LIMITS` → largest share allowed, where it is not the default.
    max_bad_rows: as `BadRows`.

    Raises:
        InputError: a value out of its range, or a limit that does not exist.
    """

    near: float = NEAR
    ngram: int = NGRAM
    containment: float = CONTAINMENT
    listed: int = LISTED
    limits: Mapping[str, float] = field(default_factory=dict)
    max_bad_rows: float = 0.01

    def __post_init__(self) -> None:
        unknown = self.limits.keys() - {limit.name for limit in LIMITS}
        if unknown:
            raise InputError(f"there is no limit {min(unknown)!r}")
        ranges = {"near": (LEAST, 1), "ngram": (1, 100), "containment": (0.01, 1), "listed": (0, 1000)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{getattr(self, name)} is not from {least} to {most}", where=f"--{name}")

    def limit(self, name: str) -> float:
        default = next(limit.most for limit in LIMITS if limit.name == name)
        return self.limits.get(name, default)


def audit(
    src: str, config: AuditConfig, mapping: Mapping[str, str] | None = None, evals: Iterable[str] = ()
) -> dict[str, Any]:
    """Reads a preference file and says what it holds and what is wrong with it.

    Args:
        mapping: meaning → column (`--map`). evals: files whose prompts should not be in it.

    Returns:
        The report, as `--json` prints it; "crossed" names the limits that were crossed.

    Raises:
        InputError: a file that cannot be read, or in which no row can be used.
    """
    mapping = mapping or {}
    overlap = Overlap(config.ngram, config.containment)
    for path in evals:
        overlap.read(path, mapping)
    unusable: list[RowError] = []
    bad = BadRows.quiet(lambda error: unusable.append(error) if len(unusable) < config.listed else None)
    tally, overlapping = Tally(), array("q")
    with Progress("reading rows", None) as progress:
        for entry in read_entries(src, mapping, bad):
            if overlap.files and overlap.look(entry.turns):
                overlapping.append(len(tally.places))
            tally.add(entry)
            progress.advance()
    if not tally.places:
        bad.check()
        raise InputError("holds no comparisons", where=src)
    tables = Tables.of(tally)
    found = findings(tables, overlapping if overlap.files else None, config.near, config.limit)
    found = {"unusable": _unusable(bad, unusable, config), **found}
    return {
        "source": src,
        "rows": bad.total,
        "comparisons": len(tally.pair_row),
        "labelled": int(tables.labelled.sum()),
        "prompts": len(tally.prompts),
        "repeated_prompts": len(tally.places) - len(tally.prompts),
        "contents": len(tally.contents),
        "layouts": dict(tally.layouts),
        "findings": {name: finding.report(config.listed) for name, finding in found.items()},
        "special_tokens": _tokens(tally),
        "eval_files": [file.summary() for file in overlap.files],
        "lengths": _lengths(tables),
        "scores": _scores(tables),
        "method": _method(config),
        "crossed": [name for name, finding in found.items() if finding.crossed],
    }


def _method(config: AuditConfig) -> dict[str, Any]:
    return {
        "near_duplicates": f"MinHash of runs of {SHINGLE} characters, {HASHES} hashes in {BANDS} bands of "
        f"{BAND}; estimated Jaccard similarity of at least {config.near:g}",
        "near": config.near,
        "ngram": config.ngram,
        "containment": config.containment,
        "length": "characters; of equal lengths neither is longer",
    }


def _unusable(bad: BadRows, first: list[RowError], config: AuditConfig) -> Finding:
    listing = Listing([[error.where or ""] for error in first], bad.count)
    allowed = BadRows(config.max_bad_rows).limit(bad.total)
    return Finding(
        "rows", bad.count, bad.total, config.max_bad_rows, bad.count > allowed, listing,
        option="--max-bad-rows", details={"reasons": dict(bad.reasons)},
    )  # fmt: skip


def _tokens(tally: Tally) -> dict[str, Any]:
    """Family → token → times and rows, the most frequent first."""
    made: dict[str, dict[str, dict[str, int]]] = {}
    for (family, token), times in sorted(tally.tokens.items(), key=lambda item: (-item[1], item[0])):
        rows = tally.token_rows[family, token]
        made.setdefault(family, {})[token] = {"times": times, "rows": rows}
    return made


def _lengths(tables: Tables) -> dict[str, Any]:
    """Characters of chosen and rejected, ties left out, and of the distinct prompts."""
    tally, labelled = tables.tally, tables.labelled
    chosen, rejected = tables.better_chars[labelled], tables.worse_chars[labelled]
    return {
        "chosen": _described(chosen.astype(float)),
        "rejected": _described(rejected.astype(float)),
        "prompts": describe(tally.prompt_chars),
    }


def _scores(tables: Tables) -> dict[str, Any]:
    """Of chosen and rejected, of all texts, and of margins; nothing where the file states none."""
    tally, labelled = tables.tally, tables.labelled
    found = {
        "chosen": _described(np.asarray(tally.better_score)[labelled]),
        "rejected": _described(np.asarray(tally.worse_score)[labelled]),
        "all": describe(tally.scores),
        "margin": _described(tables.gap[labelled]),
        "p_chosen": describe(tally.p_chosen),
    }
    return {name: values for name, values in found.items() if values}


def _described(values: NDArray[np.float64]) -> dict[str, float]:
    return describe(array("d", values[~np.isnan(values)].tolist()))


def crossed_message(report: Mapping[str, Any]) -> str:
    """Which limits were crossed, with what was found and what was allowed."""
    said = []
    for name in report["crossed"]:
        finding = report["findings"][name]
        limit = finding["limit"]
        allowed = f"{limit:,.0f} rows" if limit >= 1 else f"{limit:.1%}"
        if "least" in finding:
            allowed = f"{finding['least']:.1%} to {allowed}"
        said.append(f"{name.replace('_', ' ')} {finding['share']:.1%} (limit {allowed}, {finding['option']})")
    return "; ".join(said)
