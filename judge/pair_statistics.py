"""What a set of pairs is like: scores, lengths, where it came from, and what looks wrong with it."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gavel.correlation import rank_correlation
from gavel.records import Completion
from gavel.rundir import read_records
from gavel.scores import Candidate
from judge.select import Proposal, margin

#: A text offered for this share of the prompts, and for so many at least, is flagged.
REPEATED_SHARE, REPEATED_PROMPTS = 0.05, 3
_LISTED = 10  # how many flagged texts and policies a summary names
_UNSCORED_SHARE = 0.1  # above it a warning


class Tally:
    """Counts while pairs are made: 20 bytes a completion and 8 a pair, no texts."""

    def __init__(self) -> None:
        self.prompts = self.without_pair = self.pairs = self.swapped = self.completions = 0
        self._scores, self._lengths = array("d"), array("I")  # of the scored completions
        self._texts = array("Q")  # one hash for each text that a prompt is offered
        self._margins = array("d")
        self._chars = [0, 0]  # of all chosen, of all rejected
        self._longer = 0
        self._orders = [0, 0, 0]  # pairs answered in both orders; of those disputed; opposed
        self._policies: Counter[tuple[str, str, str]] = Counter()

    def add_prompt(self, candidates: Sequence[Candidate], pairs: Sequence[Proposal]) -> None:
        self.prompts += 1
        self.without_pair += not pairs
        for candidate in candidates:
            self.completions += 1
            made = candidate.completion
            sampling = msgspec.json.encode(made.sampling).decode() if made.sampling else "{}"
            policy = (made.model or "unknown", made.weights or "unknown", sampling)
            self._policies[
                policy if policy in self._policies or len(self._policies) < _LISTED else ("others", "", "{}")
            ] += 1
            if candidate.score is not None:
                self._scores.append(candidate.score)
                self._lengths.append(len(made.text))
        compared = next((c.standing for c in candidates if c.standing is not None), None)
        if compared is not None:
            self._orders[0] += compared.asked_both
            self._orders[1] += len(compared.disputed)
            self._orders[2] += compared.opposed
        texts = {c.completion.text for c in candidates if c.completion.text.strip()}
        self._texts.extend(_hash(text) for text in texts)

    def add_pair(self, pair: Proposal, swapped: bool) -> None:
        """swapped: its labels were swapped by the shuffle control."""
        self.pairs += 1
        self.swapped += swapped
        self._margins.append(margin(pair))
        chosen, rejected = (len(c.completion.text) for c in (reversed(pair) if swapped else pair))
        self._chars[0] += chosen
        self._chars[1] += rejected
        self._longer += chosen > rejected

    def counts(self) -> dict[str, int]:
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "prompts_without_pair": self.without_pair,
            "completions": self.completions,
            "scored": len(self._scores),
        }

    def statistics(self) -> dict[str, Any]:
        """Of scores and margins; mean characters of both sides; the share of pairs whose chosen text is
        the longer one; Spearman's rank correlation of score with characters over all completions."""
        n = max(self.pairs, 1)
        return {
            "scores": describe(self._scores),
            "margins": describe(self._margins),
            "mean_chars": {"chosen": self._chars[0] / n, "rejected": self._chars[1] / n},
            "chosen_longer": self._longer / n,
            "length_correlation": rank_correlation(self._scores, self._lengths),
        }

    def orders(self, gate: Mapping[str, Any] | None, disputed: str) -> dict[str, Any]:
        """How often the two orders of a pair disagree, and the flip rate: how often a label is wrong.

        From a gate's gold labels where the pass has one: wrong labels of those that would be made. Else
        from the orders: if each errs on its own with rate ε, they oppose each other with 2ε(1 − ε). A
        label that both must support is wrong with ε² / (ε² + (1 − ε)²); where opposed pairs are kept, and
        are right half the time, with ε² + ε(1 − ε) = ε. A judge that errs in both orders alike is not
        caught by that. None where nothing was asked in both orders; never 0.5 or more.
        """
        both, differ, opposed = self._orders
        flip = from_what = None
        if gate is not None and gate.get("flip_rate", {}).get(disputed) is not None:
            flip, from_what = float(gate["flip_rate"][disputed]), "gold"
        elif both:
            error = (1 - math.sqrt(max(0.0, 1 - 2 * opposed / both))) / 2
            flip, from_what = error, "orders"
            if disputed == "drop":
                flip = error**2 / (error**2 + (1 - error) ** 2)
        return {
            "order_disagreement": differ / both if both else None,
            "flip_rate": None if flip is None else min(flip, 0.49),
            "flip_rate_from": from_what,
        }

    def policies(self) -> list[dict[str, Any]]:
        """Model, weights version and sampling of the completions, the most frequent first."""
        ranked = sorted(self._policies.items(), key=lambda item: (-item[1], item[0]))
        return [
            {"model": model, "weights": weights, "sampling": msgspec.json.decode(sampling), "completions": n}
            for (model, weights, sampling), n in ranked
        ]

    def repeated_texts(self, completions: Path) -> list[dict[str, Any]]:
        """Texts offered for many prompts: what a policy that games the judge says to everything.

        completions: the file, read again up to the last of them, only if there are any.
        """
        hashes, counts = np.unique(np.asarray(self._texts), return_counts=True)
        many = counts >= suspicious(self.prompts)
        found = sorted(zip(counts[many].tolist(), hashes[many].tolist(), strict=True), reverse=True)[:_LISTED]
        texts: dict[int, str] = {}
        wanted = {key for _, key in found}
        for completion in read_records(completions, Completion) if wanted else ():
            key = _hash(completion.text)
            if key in wanted:
                texts[key] = completion.text
                wanted.discard(key)
                if not wanted:
                    break
        return [{"text": excerpt(texts[key]), "prompts": count} for count, key in found]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def suspicious(prompts: int) -> float:
    """For how many of so many prompts one text must be offered to be named."""
    return max(REPEATED_PROMPTS, REPEATED_SHARE * prompts)


def excerpt(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def describe(values: array[float]) -> dict[str, float]:
    """Mean, sample standard deviation and quantiles; empty when there is nothing to describe."""
    if not values:
        return {}
    numbers = np.asarray(values)
    quantiles = np.quantile(numbers, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)).tolist()
    names = ("min", "q05", "q25", "median", "q75", "q95", "max")
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return {"mean": float(numbers.mean()), "sd": sd, **dict(zip(names, quantiles, strict=True))}


def warnings_of(summary: dict[str, Any]) -> list[str]:
    """What a person should know before training on these pairs."""
    found = []
    pairs, prompts, completions = summary["pairs"], summary["prompts"], summary["completions"]
    if summary["labels_shuffled"]:
        found.append(
            f"CONTROL: labels shuffled, chosen and rejected swapped in {summary['labels_swapped']} of "
            f"{pairs} pairs; there must be nothing to learn from them"
        )
    if not summary["judging_finished"]:
        found.append(f"the judging pass {summary['judgments']!r} is not finished; run gavel judge again")
    unscored = completions - summary["scored"]
    if unscored > _UNSCORED_SHARE * completions:
        found.append(
            f"{unscored} of {completions} completions have no usable score in every aspect asked for"
        )
    repeated = summary["repeated_texts"]
    if repeated:
        more = f", and {len(repeated) - 1} more such texts" if len(repeated) > 1 else ""
        first, times = json.dumps(repeated[0]["text"], ensure_ascii=False), repeated[0]["prompts"]
        found.append(f"the same text is offered for many prompts: {first} for {times} of {prompts}{more}")
    return found
