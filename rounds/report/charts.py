"""Charts as Vega-Lite specifications, each with the table that says the same.

A colour is named, "@chosen": the page puts in what its theme has. Titles and labels are texts, never
expressions, and no field is named by data, so nothing that a run holds is read as code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rounds.report.shapes import AgainstLength, Histogram, RoundFigures

_CROSS = "M-1,-1L1,1M-1,1L1,-1"
Row = tuple[str | float | int | None, ...]
Spec = dict[str, Any]
_WHOLE: Spec = {"tickMinStep": 1}  # of an axis that counts: no mark between 10 and 11


@dataclass(frozen=True, slots=True)
class Chart:
    """title: says what is drawn. caption: what to see in it. head, rows: its table. wide: a whole row."""

    title: str
    spec: Spec
    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    wide: bool = False


def spread(title: str, found: Histogram, what: str, unit: str = "values", color: str = "@accent") -> Chart:
    """A histogram. what: title of its axis. unit: what is counted."""
    single = all(b.start == b.end for b in found.bins)
    half = 0.4 if single else 0.0
    values = [{"from": b.start - half, "to": b.end + half, "n": b.count} for b in found.bins]
    x: Spec = {
        "field": "from",
        "type": "quantitative",
        "title": what,
        "scale": {"zero": False, "nice": False},
    }
    if single:
        x["axis"] = {"values": [b.start for b in found.bins], "format": "d"}
    spec = _spec(
        values,
        {
            "mark": {"type": "rect", "color": color, "stroke": "@card", "strokeWidth": 0.5},
            "encoding": {
                "x": x,
                "x2": {"field": "to"},
                "y": {"field": "n", "type": "quantitative", "title": unit, "axis": _WHOLE},
                "y2": {"datum": 0},
                "tooltip": _tooltip(from_=what, to="to", n=unit),
            },
        },
        rule={"x": {"datum": found.mean, "type": "quantitative"}},
    )
    q = found.quantiles
    caption = (
        f"{found.n:,} {unit}; mean {number(found.mean)} (dashed), standard deviation {number(found.sd)}; "
        f"5 %, median and 95 % {number(q['q05'])}, {number(q['median'])}, {number(q['q95'])}; "
        f"from {number(q['min'])} to {number(q['max'])}."
    )
    if found.below or found.above:
        caption += f" The outermost bars also hold {found.below + found.above:,} values beyond."
    rows = tuple((number(b.start), number(b.end), b.count) for b in found.bins)
    return Chart(title, spec, caption, ("from", "to", unit), rows)


def heat(title: str, found: AgainstLength) -> Chart:
    """Scores against lengths, with the mean score by range of lengths as a line."""
    cells = [{"x": c.x, "x2": c.x2, "y": c.y, "y2": c.y2, "n": c.count} for c in found.cells]
    means = [{"x": (a + b) / 2, "y": mean, "n": n} for a, b, mean, n in found.means]
    quantitative = {"type": "quantitative", "scale": {"zero": False, "nice": False}}
    x = {"field": "x", "title": "characters", **quantitative}
    y = {"field": "y", "title": "score", **quantitative}
    count = {
        "field": "n", "type": "quantitative", "title": "completions",
        "scale": {"type": "sqrt", "range": ["@cold", "@hot"]},
        "legend": {"gradientLength": 100, "tickCount": 3},
    }  # fmt: skip
    spec: Spec = {
        "width": "container", "height": 240,
        "layer": [
            {
                "data": {"values": cells},
                "mark": {"type": "rect"},
                "encoding": {
                    "x": x, "x2": {"field": "x2"}, "y": y, "y2": {"field": "y2"}, "color": count,
                    "tooltip": _tooltip(
                        x="characters from", x2="to", y="score from", y2="to", n="completions"
                    ),
                },
            },
            {
                "data": {"values": means},
                "mark": {"type": "line", "color": "@rejected", "point": {"color": "@rejected", "size": 22}},
                "encoding": {
                    "x": x, "y": y,
                    "tooltip": _tooltip(x="characters", y="mean score", n="completions"),
                },
            },
        ],
    }  # fmt: skip
    rho = "does not vary with length" if found.rho is None else f"{found.rho:+.2f}"
    caption = (
        f"{found.n:,} completions; the line is the mean score by range of lengths. Spearman's rank "
        f"correlation of score with characters: {rho}. A judge that loves length has one near 1."
    )
    rows = tuple((number(a), number(b), number(mean), n) for a, b, mean, n in found.means)
    return Chart(title, spec, caption, ("characters from", "to", "mean score", "completions"), rows)


def shares(title: str, counts: Mapping[str, int], unit: str, caption: str) -> Chart:
    """Counts as horizontal bars with their share of all."""
    total = max(1, sum(counts.values()))
    values: list[dict[str, Any]] = [
        {"what": name, "n": n, "share": n / total, "label": f"{100 * n / total:.1f} %"}
        for name, n in counts.items()
    ]
    y = {"field": "what", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 190}}
    x = {"field": "share", "type": "quantitative", "title": f"share of {unit}", "axis": {"format": "%"}}
    room = {
        "scale": {"domainMax": 1.3 * max(0.1, *(v["share"] for v in values)), "nice": False}
    }  # for labels
    spec: Spec = {
        "width": "container",
        "height": 45 + 30 * len(values),
        "data": {"values": values},
        "encoding": {"y": y, "x": x | room, "tooltip": _tooltip(what="what", n=unit, label="share")},
        "layer": [
            {"mark": {"type": "bar", "color": "@accent"}},
            {
                "mark": {"type": "text", "align": "left", "dx": 5, "color": "@text"},
                "encoding": {"text": {"field": "label"}},
            },
        ],
    }
    rows = tuple((name, n, f"{100 * n / total:.1f} %") for name, n in counts.items())
    return Chart(title, spec, caption, ("what", unit, "share"), rows)


def lines(
    title: str, series: Mapping[str, Sequence[tuple[int, float]]], x: str = "step", caption: str = ""
) -> Chart:
    """Curves in one picture, told apart by colour and dash."""
    values = [
        {"x": step, "y": value, "name": name} for name, points in series.items() for step, value in points
    ]
    encoding: Spec = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": x,
            "axis": _WHOLE,
            "scale": {"zero": False, "nice": False},
        },
        "y": {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}},
        "tooltip": _tooltip(x=x, y="value", name="metric"),
    }
    if len(series) > 1:
        told = {"field": "name", "type": "nominal", "sort": None, "title": None}
        encoding |= {
            "color": told | {"legend": {"orient": "top", "symbolType": "stroke", "symbolSize": 300}},
            "strokeDash": told,
        }
    spec = _spec(values, {"mark": {"type": "line", "point": len(values) < 80}, "encoding": encoding})
    steps = sorted({step for points in series.values() for step, _ in points})
    by_step = {name: dict(points) for name, points in series.items()}
    rows: tuple[Row, ...] = tuple(
        (step, *(number(by_step[name].get(step)) for name in series))
        for step in steps[:: len(steps) // 60 + 1]
    )
    return Chart(title, spec, caption, (x, *series), rows)


def by_round(
    name: str, title: str, rounds: Sequence[RoundFigures], *, even: float | None = None
) -> Chart | None:
    """A figure by round with its interval; a gate's limits are dashed, a round that tripped one is marked.

    even: a value that says "no difference", drawn as a thin line. None where no round has a value.
    """
    values, tripped = [], []
    for one in rounds:
        figure = one.figures.get(name, {})
        value = figure.get("value")
        if not known(value):
            continue
        low, high = figure.get("interval") or (None, None)
        values.append({"round": one.round, "value": value, "low": low, "high": high, "n": figure.get("n")})
        if actions := [_action(g) for g in one.gates if g.get("figure") == name and g.get("tripped")]:
            tripped.append({"round": one.round, "value": value, "action": ", ".join(dict.fromkeys(actions))})
    if not values:
        return None
    limits = _limits(name, rounds)
    named = [one.round for one in rounds][:: len(rounds) // 12 + 1]
    x = {
        "field": "round", "type": "quantitative", "title": "round",
        "axis": {"format": "d", "values": named},
        "scale": {"domain": [rounds[0].round - 0.3, rounds[-1].round + 0.3]},
    }  # fmt: skip
    y = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False, "padding": 16}}
    layer: list[Spec] = []
    if any(v["low"] is not None for v in values):
        banded = [v for v in values if v["low"] is not None]
        ends = {"y": y | {"field": "low"}, "y2": {"field": "high"}, "x": x}
        mark = {"type": "area", "color": "@accent", "opacity": 0.16}
        layer.append({"data": {"values": banded}, "mark": mark, "encoding": ends})
        bar = {"type": "rule", "color": "@accent", "opacity": 0.6}
        layer.append({"data": {"values": banded}, "mark": bar, "encoding": ends})
    if even is not None:
        mark = {"type": "rule", "color": "@muted", "opacity": 0.6}
        layer.append({"data": {"values": [{"value": even}]}, "mark": mark, "encoding": {"y": y}})
    for limit in limits:
        mark = {"type": "rule", "color": "@bad", "strokeDash": [5, 4]}
        layer.append({"data": {"values": [limit]}, "mark": mark, "encoding": {"y": y}})
        mark = {"type": "text", "align": "right", "dx": -3, "dy": limit["side"], "color": "@bad"}
        at = {"x": {"value": "width"}, "y": y, "text": {"field": "action"}}
        layer.append({"data": {"values": [limit]}, "mark": mark, "encoding": at})
    tooltip = _tooltip(round="round", value=title, low="95 % from", high="to", n="of")
    layer.append(
        {
            "data": {"values": values},
            "mark": {"type": "line", "color": "@accent", "point": {"color": "@accent", "size": 45}},
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        }
    )
    if tripped:
        at = {"x": x, "y": y}
        mark = {"type": "point", "shape": _CROSS, "size": 260, "strokeWidth": 3, "stroke": "@bad"}
        layer.append({"data": {"values": tripped}, "mark": mark, "encoding": at})
        text = {"type": "text", "dy": -15, "color": "@bad", "fontWeight": 600}
        layer.append(
            {"data": {"values": tripped}, "mark": text, "encoding": at | {"text": {"field": "action"}}}
        )
    said = [f"dashed: {', '.join(limit['what'] for limit in limits)}"] if limits else []
    said += [f"round {t['round']} tripped it: {t['action']}" for t in tripped]
    caption = "; ".join(said)
    rows = tuple(
        (v["round"], number(v["value"]), number(v["low"]), number(v["high"]), v["n"]) for v in values
    )
    return Chart(
        title, {"width": "container", "height": 170, "layer": layer},
        caption[:1].upper() + caption[1:] + "." if caption else "",
        ("round", "value", "95 % from", "to", "of"), rows,
    )  # fmt: skip


def _limits(name: str, rounds: Sequence[RoundFigures]) -> list[Spec]:
    """The limits that the last round with gates on this figure was held to."""
    held = [[g for g in one.gates if g.get("figure") == name] for one in rounds]
    found = []
    for gate in next((gates for gates in reversed(held) if gates), []):
        for end, words, side in (("min", "at least", 8), ("max", "at most", -6)):  # beyond its line
            if known(gate.get(end)):
                what = f"{words} {number(gate[end])}, else {_action(gate)}"
                found.append({"value": gate[end], "action": _action(gate), "what": what, "side": side})
    return found


def _action(gate: Mapping[str, Any]) -> str:
    return str(gate.get("action", "tripped")).replace("_", " ")


def seconds_by_round(rounds: Sequence[RoundFigures]) -> Chart | None:
    """Where the time of each round went."""
    values: list[dict[str, Any]] = [
        {"round": str(one.round), "stage": stage, "seconds": seconds, "place": place}
        for one in rounds
        for place, (stage, seconds) in enumerate(one.seconds.items())
    ]
    if not values:
        return None
    stages = list(dict.fromkeys(v["stage"] for v in values))
    spec = _spec(
        values,
        {
            "mark": {"type": "bar"},
            "encoding": {
                "y": {"field": "round", "type": "nominal", "sort": None, "title": "round"},
                "x": {"field": "seconds", "type": "quantitative", "title": "seconds"},
                "color": {
                    "field": "stage", "type": "nominal", "sort": None, "title": None,
                    "legend": {"orient": "top", "columns": 4},
                },
                "order": {"field": "place", "type": "quantitative"},
                "tooltip": _tooltip(round="round", stage="stage", seconds="seconds"),
            },
        },
    )  # fmt: skip
    spec["height"] = 75 + 30 * len(rounds)
    rows: tuple[Row, ...] = tuple(
        (one.round, *(number(one.seconds.get(stage)) for stage in stages)) for one in rounds
    )
    return Chart(
        "Where the time went", spec, "Seconds of each round by stage.", ("round", *stages), rows, True
    )


def _spec(values: Sequence[Mapping[str, Any]], unit: Spec, rule: Spec | None = None) -> Spec:
    layers = [unit]
    if rule is not None:
        layers.append({"mark": {"type": "rule", "color": "@text", "strokeDash": [4, 3]}, "encoding": rule})
    made: Spec = {"width": "container", "height": 190, "data": {"values": list(values)}}
    return made | ({"layer": layers} if rule is not None else unit)


def _tooltip(**fields: str) -> list[Spec]:
    """field=title; a trailing underscore keeps a field's name from being Python's."""
    return [{"field": field.rstrip("_"), "title": title} for field, title in fields.items()]


def known(value: Any) -> bool:
    """Whether a figure was had: a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """Four significant digits, or a dash for what is no finite number.

    >>> number(0.123456), number(12345.6), number(None)
    ('0.1235', '12,346', '–')
    """
    if not known(value):
        return "–"
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
