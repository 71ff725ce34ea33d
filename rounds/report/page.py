"""A `Report` as one HTML file that needs no network, stays under a size and runs nothing that a run holds.

Texts of a run stand in JSON, in which no character can end the element around it, and reach the page by
`textContent`. The page's own policy lets only its three scripts run, named by their hashes; no fetch.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gavel.rundir import write_atomic
from rounds.report.collect import BEST_WORST, PAIR, TWO, collect
from rounds.report.details import of_run
from rounds.report.embed import HALF, embed
from rounds.report.examples import MOST_CHARS
from rounds.report.lighten import Weighed, lighten
from rounds.report.overview import overall
from rounds.report.sections import Card
from rounds.report.shapes import Example, Excerpt, Report, Side

LIMIT_BYTES = 10_000_000
_OVERALL_BYTES, _DETAILS_BYTES = 2_000_000, 4_000_000  # of that at most; pairs have what is left
_TEXT_CHARS = (8000, 4000, 2000, 1000, 500, 200)  # tried in this order until the pairs fit
_MOST_TURNS = 12  # of a prompt's conversation, the last ones
_ID_CHARS = 200
_HERE = Path(__file__).parent


def write_page(run: str | Path, target: Path, pairs: int = 1000) -> dict[str, Any]:
    """Writes the page about a run or its rounds.

    Returns: what `build` says of it, how many pairs were offered, and the headline figures by label.
    """
    found = collect(run, pairs)
    page, summary = build(found)
    write_atomic(target, page)
    figures = {card.label: card.value for card in headline(found)}
    return summary | {"offered": sum(found.offered.values()), "headline": figures}


def build(report: Report, limit_bytes: int = LIMIT_BYTES) -> tuple[bytes, dict[str, Any]]:
    """The page, and what is in it: `bytes`, `pairs`, `text_chars` (where longer texts are cut), `runs`.

    What does not fit is left out in this order: the ends of long texts, then pairs.
    """
    parts = _fixed(report.title)
    sections, shown = _sections(report)
    parts["report"] = embed(sections)[:-1]  # its end is what can only be said at the end
    left = limit_bytes - sum(len(part.encode()) for part in parts.values()) - 4096
    pairs, chars, kept = _pairs(report.examples, left)
    parts["report"] += f',"pairs_lead":{embed(_lead(report.offered, kept, chars))}}}'
    parts["pairs"] = pairs
    page = _fill((_HERE / "page.html").read_text("utf-8"), parts).encode()
    return page, {"bytes": len(page), "pairs": len(kept), "text_chars": chars, "runs": shown}


def headline(report: Report) -> list[Card]:
    """The cards that the page begins with."""
    return [card for section in overall(report)[:1] for card in section.cards]


def _fixed(title: str) -> dict[str, str]:
    """The parts that do not depend on the run, its title aside."""
    notice = (_HERE / "vega.txt").read_text("utf-8")
    bundle = _bundle()
    scripts = {  # the bundle in a function, or its names would be ours too
        "vega": f"/*\n{notice}*/\n(() => {{{bundle}}})();",
        "page_js": (_HERE / "page.js").read_text("utf-8"),
        "pairs_js": (_HERE / "pairs.js").read_text("utf-8"),
    }
    for name, script in scripts.items():
        assert not re.search("</script|<!--", script, re.IGNORECASE), name
    css = (_HERE / "page.css").read_text("utf-8")
    scripted = " ".join(_hash(script) for script in scripts.values())
    allowed = f"default-src 'none'; script-src {scripted}; style-src {_hash(css)}"
    policy = f"{allowed}; base-uri 'none'; form-action 'none'"
    shown = html.escape(HALF.sub("\ufffd", title).replace("\0", "\ufffd"))
    return {"title": shown, "css": css, "policy": policy, **scripts}


@functools.cache
def _bundle() -> str:
    """Vega-Lite and what it stands on as one script; takes two seconds."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script or style that may stand in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _fill(page: str, parts: dict[str, str]) -> str:
    """Puts the parts in in one pass, so that no part is searched for the name of another."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found.group(1)], page)


def _sections(report: Report) -> tuple[dict[str, Any], int]:
    """All but the pairs, and of how many runs there are details. Of very many rounds those in the middle lose
    theirs; where the others' are still too large, the heaviest sections are lightened."""
    scopes = [(run.label, [Weighed(section) for section in of_run(run)]) for run in report.runs]
    while len(scopes) > 3 and sum(one.bytes for _, found in scopes for one in found) > _DETAILS_BYTES:
        scopes = [*scopes[: len(scopes) - 2 : 2], *scopes[-2:]]
    details, left_out = lighten([found for _, found in scopes], _DETAILS_BYTES)
    notes = list(report.notes)
    if len(scopes) < len(report.runs):
        shown = f"{len(scopes)} of {len(report.runs)} rounds"
        notes.append(f"Details are shown of {shown}, to keep the page small.")
    if left_out:
        notes.append(f"{left_out:,} parts of the details are left out, to keep the page small.")
    about_all = [Weighed(section) for section in overall(replace(report, notes=tuple(notes)))]
    ((overview,), _) = lighten([about_all], _OVERALL_BYTES)
    made = {
        "overall": overview,
        "scopes": [{"label": _cut(label, _ID_CHARS), "sections": sections}
                   for (label, _), sections in zip(scopes, details, strict=True)],
        "first": max(0, len(scopes) - 1),
        "foot": f"gavel {version('gavel')}, from {_cut(report.path, _ID_CHARS)}. Charts by Vega-Lite.",
    }  # fmt: skip
    return made, len(scopes)


# pairs


def _pairs(examples: Sequence[Example], room: int) -> tuple[str, int, list[Example]]:
    """The pairs as JSON of at most `room` bytes, where their texts are cut, and which they are."""
    kept = list(examples)
    while True:
        for chars in _TEXT_CHARS:
            made = "[" + ",".join(embed(_shown(one, chars)) for one in kept) + "]"
            if len(made.encode()) <= room or not kept:
                return made, chars, kept
        kept = kept[1::2]  # every second, so that each stratum and round keeps its part


def _shown(one: Example, chars: int) -> dict[str, Any]:
    """An example as the page's script reads it; a cut text says how long it was."""
    turns = one.prompt[-_MOST_TURNS:]
    return {
        "label": one.label,
        "kind": one.kind,
        "id": _cut(one.id, _ID_CHARS),
        "prompt_id": _cut(one.prompt_id, _ID_CHARS),
        "prompt": [[_cut(role, 40), *_text(text, chars)] for role, text in turns],
        "earlier": len(one.prompt) - len(turns),
        "references": [_text(text, chars) for text in one.references[:4]],
        "chosen": _side(one.chosen, chars),
        "rejected": _side(one.rejected, chars),
        "margin": one.margin,
        "p": one.p_chosen,
        "doubts": one.doubts,
        "said": [
            {
                "judging": _cut(said.judging, _ID_CHARS),
                "aspect": _cut(said.aspect, _ID_CHARS),
                "shown": said.shown,
                "answer": _cut(said.answer, _ID_CHARS),
                "raw": said.raw and _text(said.raw, chars // 2),
                "thinking": said.thinking and _text(said.thinking, chars // 2),
            }
            for said in one.said
        ],
    }


def _side(side: Side, chars: int) -> dict[str, Any]:
    return {
        "id": _cut(side.id, _ID_CHARS),
        "text": _text(side.text, chars),
        "chars": side.text.chars,
        "tokens": side.tokens,
        "score": side.score,
        "finish": side.finish,
        "thinking": side.thinking and _text(side.thinking, chars),
    }


def _text(text: Excerpt, chars: int) -> list[Any]:
    """What is shown of a text, and how long it was where that is not all, else 0."""
    shorter = text.shorter(chars)
    return [shorter.text, shorter.chars if shorter.is_cut else 0]


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"


#: what an example is → how it is said
_KINDS = {
    PAIR: "pairs",
    BEST_WORST: "prompts (there are no pairs yet: the best and the worst answer of each are shown)",
    TWO: "prompts (nothing was judged yet: two answers of each are shown)",
}


def _lead(offered: Mapping[str, int], kept: Sequence[Example], chars: int) -> str:
    """What is shown, and how it was drawn."""
    shown = Counter(one.kind for one in kept)
    counts = [f"{shown[kind]:,} of {n:,} {_KINDS[kind]}" for kind, n in offered.items() if n]
    drawn = (
        "all of them"
        if len(kept) >= sum(offered.values())
        else "weighted to the doubtful ones: small margins, orders that disagree, judges that disagree"
    )
    cut = f" Texts longer than {chars:,} characters are cut." if chars < MOST_CHARS else ""
    what = " and ".join(counts) or "0 pairs"
    return f"{what}, {drawn}.{cut} Marked are the words of one answer only."
