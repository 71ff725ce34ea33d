"""A rating as it is written: "4", "4.5", "4,5", "4/5", "4 out of 5"; not "3-4", "<4", "80%" or "4½"."""

from __future__ import annotations

import math
import re

from judge.reply_text import Doubt

_OUT_OF = r"\s*(?:/|out of|of)\s*(\d+)"
_CLOSES = r"[\])*\"'`]{0,4}[ \t]*"
_TO_ANOTHER = re.compile(rf"{_CLOSES}(?:[-–—~&+×^=]|to\b|or\b|and\b)\s*[\[(*]{{0,3}}\d")
_GIVEN_OUT_OF = re.compile(rf"{_CLOSES}(?:/|out of)\s*[\[(*]{{0,3}}(\d+)")
_MARKS = "*_`\"'()[]<> "


def number(said: str, before: str, after: str, high: int) -> float:
    """The number that was said. before, after: what stands around it; "out of" must agree with `high`.

    Raises Doubt for what is no single number.
    """
    said = said.strip().strip(_MARKS)
    if re.search(r"(?:^|[\s:(\[*=])(?:[<>]=?|[≤≥≠~]|!=)\s*$", before):
        raise Doubt("a bound is no rating")
    if re.search(r"\d[\])*]{0,3}\s*/\s*[\[(*]{0,3}$", before[-40:]):
        raise Doubt("the scale's end is no rating")
    if re.search(r"[-−‐‑–—]$", before):
        raise Doubt(f"'-{_short(said)}' is not clearly a rating")
    if out_of := re.fullmatch(rf"(.+?){_OUT_OF}", said):
        said, after = out_of[1], f"/{out_of[2]}"
    if _TO_ANOTHER.match(after) or re.fullmatch(r"\d+\s*(?:[-–—]|to|or|and)\s*\d+", said):
        raise Doubt("a range is no rating")
    if re.search(
        r"\d[\])*]{0,3}\s*(?:[-–—]|(?:\bto|\bor|\bby)\s*(?:(?i:rating|score)\W{0,3})?)\s*[\[(*]{0,3}$",
        before[-60:],
    ):
        raise Doubt("a range is no rating")
    if re.match(r"\s*%|[A-Za-z]|[²³¹⁰-⁹½¼¾⅓⅔]|[ \t]+\d", after):
        raise Doubt(f"{_short(said + after[:6])} is no rating")
    if (given := _GIVEN_OUT_OF.match(after)) and given[1].lstrip("0") != str(high):
        raise Doubt(f"out of {given[1]}, the scale ends at {high}")
    said = said.rstrip(".,")
    if re.fullmatch(r"[-+]?\d+,\d", said):
        said = said.replace(",", ".")
    if not re.fullmatch(r"[-+]?\d+(?:\.\d+)?", said):
        raise Doubt(f"{_short(said)} is no number")
    return float(said)


def in_range(value: float, low: int, high: int) -> float:
    """The value. Raises Doubt outside the scale."""
    if not math.isfinite(value):
        raise Doubt("the rating is no finite number")
    if not low <= value <= high:
        raise Doubt(f"{value:g} is not from {low} to {high}")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
