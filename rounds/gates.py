"""Gates: a threshold on a figure, and what is done when it is passed over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gavel.command import nearest
from gavel.errors import InputError
from rounds.figures import Figure

if TYPE_CHECKING:
    from rounds.standing import Line

#: What became of a round, in words.
DECIDED = {"go_on": "it goes on", "roll_back": "it is rolled back", "stop": "it is the last"}
ACTIONS = ("warn", "roll_back", "stop")  # from mild to strong
#: All figures of a round.
FIGURES = (
    "win_rate_previous", "win_rate_first", "win_rate_previous_lc", "win_rate_first_lc", "kl_first",
    "kl_first_token", "length_mean", "length_ratio_first", "cut_off", "cut_off_rise_first", "distinct_1",
    "distinct_2", "distinct_3", "distinct_1_ratio_first", "distinct_2_ratio_first", "distinct_3_ratio_first",
    "self_repetition", "self_repetition_rise_first", "top_answer", "top_answer_rise_first",
    "gold_accuracy", "gold_order_agreement", "flip_rate", "judge_agreement",
    "chosen_logprob_change", "rejected_logprob_change", "unusable",
)  # fmt: skip
_SHARES = {
    "cut_off", "distinct_1", "distinct_2", "distinct_3", "self_repetition", "top_answer", "gold_accuracy",
    "gold_order_agreement", "flip_rate", "judge_agreement", "unusable",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Trips where a figure is under `least` or over `most`. A figure that has an interval trips only when
    all of its interval is beyond the threshold, so that noise alone seldom does."""

    figure: str
    least: float | None = None
    most: float | None = None
    action: str = "warn"


#: What the judge must pass before it labels; the test's own thresholds are options of [judge].
_TESTED_BEFORE = {"gold_accuracy": "min_accuracy", "gold_order_agreement": "min_order_agreement"}
#: Why each, and why the other figures have none: docs/rounds.md.
DEFAULTS = (
    Gate(figure="win_rate_previous", least=48, action="roll_back"),
    Gate(figure="win_rate_first", least=48, action="roll_back"),
    Gate(figure="win_rate_previous_lc", least=48, action="warn"),
    Gate(figure="win_rate_first_lc", least=48, action="warn"),
    Gate(figure="kl_first_token", most=1.0, action="warn"),
    Gate(figure="kl_first_token", most=5.0, action="roll_back"),
    Gate(figure="length_ratio_first", most=1.5, action="warn"),
    Gate(figure="length_ratio_first", most=3.0, action="roll_back"),
    Gate(figure="length_ratio_first", least=0.33, action="warn"),
    Gate(figure="cut_off_rise_first", most=0.1, action="warn"),
    Gate(figure="cut_off_rise_first", most=0.3, action="roll_back"),
    Gate(figure="distinct_2_ratio_first", least=0.5, action="warn"),
    Gate(figure="distinct_2_ratio_first", least=0.2, action="roll_back"),
    Gate(figure="self_repetition_rise_first", most=0.2, action="warn"),
    Gate(figure="top_answer_rise_first", most=0.3, action="roll_back"),
    Gate(figure="judge_agreement", least=0.5, action="stop"),
    Gate(figure="judge_agreement", least=0.6, action="warn"),
    Gate(figure="flip_rate", most=0.4, action="warn"),
    Gate(figure="unusable", most=0.2, action="warn"),
    Gate(figure="chosen_logprob_change", least=-50.0, action="warn"),
)


@dataclass(frozen=True)
class Outcome:
    """What a gate said. value: None where the figure was not measured: it does not trip then. what: in
    words."""

    figure: str
    value: float | None
    min: float | None
    max: float | None
    action: str
    tripped: bool
    what: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_gates(table: Mapping[str, Any], where: str) -> tuple[Gate, ...]:
    """The gates of a TOML table beside the defaults: FIGURE = {min, max, action}, a list of such, or false
    for none. What a table says of a figure takes the place of its defaults; `defaults = false` drops them
    all.

    Raises InputError for an unknown figure, key or action, for a threshold that is no number, and for false
    where there is no gate to be turned off but a test.
    """
    own = dict(table)
    defaults = own.pop("defaults", True)
    if not isinstance(defaults, bool):
        raise InputError(f"{defaults!r} is neither true nor false", where=f"{where}, defaults")
    found: list[Gate] = []
    for figure, entry in own.items():
        place = f"{where}, {figure}"
        if figure not in FIGURES:
            raise InputError(f'there is no figure "{figure}"', where=where, hint=nearest(figure, FIGURES))
        if entry is False:
            if figure in _TESTED_BEFORE:
                raise InputError("has no gate to turn off: the judge is tested before it labels", where=place,
                                 hint=f"Set {_TESTED_BEFORE[figure]} = 0 in [judge].")  # fmt: skip
            continue
        for one in entry if isinstance(entry, list) else [entry]:
            found.append(_gate(figure, one, place))
    kept = [gate for gate in DEFAULTS if defaults and gate.figure not in own]
    return (*kept, *found)


def _gate(figure: str, entry: Any, where: str) -> Gate:
    if not isinstance(entry, dict):
        raise InputError(
            f"{entry!r} is no gate", where=where, hint='For example {max = 1.5, action = "stop"}.'
        )
    for key in entry:
        if key not in ("min", "max", "action"):
            raise InputError(f'unknown key "{key}"', where=where, hint=nearest(key, ("min", "max", "action")))
    action = entry.get("action", "warn")
    if action not in ACTIONS:
        raise InputError(f"unknown action {action!r}", where=where, hint=f"Known: {', '.join(ACTIONS)}.")
    limits: dict[str, Any] = {key: entry.get(key) for key in ("min", "max")}
    for key, value in limits.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise InputError(f"{value!r} is no number", where=f"{where}, {key}")
        if value is not None:
            _check_bound(figure, value, f"{where}, {key}")
    if limits["min"] is None and limits["max"] is None:
        raise InputError("has neither min nor max", where=where)
    if None not in limits.values() and limits["min"] > limits["max"]:
        raise InputError("min is above max, so that it always trips", where=where, hint="Swap them.")
    return Gate(figure=figure, least=limits["min"], most=limits["max"], action=action)


def _check_bound(figure: str, value: float, where: str) -> None:
    """Raises InputError for a threshold that no figure could pass over: its gate would guard nothing."""
    if figure.startswith("win_rate"):
        fits, said = value == 0 or 1 < value <= 100, "a win rate is in percent, one half is 50"
    elif figure in _SHARES:
        fits, said = 0 <= value <= 1, "it is a share from 0 to 1"
    else:
        fits, said = not figure.endswith("_rise_first") or -1 <= value <= 1, "it is a difference of shares"
    if not fits:
        raise InputError(f"{value:g} is beyond what the figure can be: {said}", where=where)


def check(gates: Sequence[Gate], figures: Mapping[str, Figure]) -> list[Outcome]:
    """What each gate says."""
    return [_outcome(gate, figures.get(gate.figure, Figure(None))) for gate in gates]


def _outcome(gate: Gate, figure: Figure) -> Outcome:
    name = gate.figure.replace("_", " ")
    value, low_high = figure.value, figure.interval
    if value is None or math.isnan(value):
        what = f"{name} was not measured" + (f": {figure.why}" if figure.why else "")
        return Outcome(gate.figure, None, gate.least, gate.most, gate.action, False, what)
    low, high = low_high if low_high and all(map(math.isfinite, low_high)) else (value, value)
    within = f" (95 %: {low:.4g} to {high:.4g})" if low_high else ""
    said = f"{name} {value:.4g}{within}"
    if gate.least is not None and high < gate.least:
        return Outcome(
            gate.figure, value, gate.least, gate.most, gate.action, True, f"{said} is under {gate.least:g}"
        )
    if gate.most is not None and low > gate.most:
        return Outcome(
            gate.figure, value, gate.least, gate.most, gate.action, True, f"{said} is over {gate.most:g}"
        )
    return Outcome(gate.figure, value, gate.least, gate.most, gate.action, False, said)


def decide(outcomes: Sequence[Outcome]) -> str:
    """ "go_on", "roll_back" or "stop": the strongest action of a gate that tripped."""
    tripped = {outcome.action for outcome in outcomes if outcome.tripped}
    return "stop" if "stop" in tripped else "roll_back" if "roll_back" in tripped else "go_on"


def best(lines: Sequence[Line]) -> int:
    """The round whose policy is best: of those that no gate stopped or rolled back the one with the highest
    win rate against the first policy, which has 50 against itself; of equals the earlier. A round without a
    win rate is not better than the first policy as far as is known, and no candidate; only where no round at
    all has one, a rolled back one neither, the last one counts as the best."""
    passed = [line for line in lines if line.round == 0 or line.decision == "go_on"]
    if not _measured(lines):
        return passed[-1].round
    rates = {line.round: rate for line in passed if (rate := _rate(line)) is not None}
    return max(rates, key=lambda number: (rates[number], -number))


def _measured(lines: Sequence[Line]) -> bool:
    """Whether any round has a win rate."""
    return any(line.round and _rate(line) is not None for line in lines)


def _rate(line: Line) -> float | None:
    if line.round == 0:
        return 50.0
    value: float | None = line.figures.get("win_rate_first", {}).get("value")
    return value


def tripped(line: Line) -> list[dict[str, Any]]:
    """The gates that tripped in a round."""
    return [gate for gate in line.gates if gate["tripped"]]


def unmeasured(line: Line) -> list[str]:
    """Once for each figure that was not measured, why: its gates guarded nothing."""
    found = {gate["figure"]: gate["what"] for gate in line.gates
             if gate["value"] is None and not gate["tripped"]}  # fmt: skip
    return list(found.values())


def sayings(line: Line) -> list[str]:
    """What a round's gates say to a person, as it ends."""
    silent = [f"round {line.round}, no gate: {what}" for what in unmeasured(line)]
    if not tripped(line):
        measured = any(gate["value"] is not None for gate in line.gates)
        passed = ", its gates are passed" if measured else ""
        return [f"round {line.round} is over{passed}", *silent]
    action = {"warn": "warning", "roll_back": "roll back", "stop": "stop"}
    loud = [f"round {line.round}, {action[gate['action']]}: {gate['what']}" for gate in tripped(line)]
    return loud + silent


def last_words(lines: Sequence[Line], root: Path) -> str:
    """Which checkpoint to use, and why. root: of the run."""
    last = lines[-1]
    chosen = lines[last.best]
    model = chosen.path(root)
    rounds = [line for line in lines if line.round]
    measured = {line.round: line.figures.get("win_rate_first", {}) for line in rounds}
    unknown = [n for n, figure in measured.items() if figure.get("value") is None]
    if chosen.round == 0:
        failed = "; ".join(f"round {line.round}: {_why(line)}" for line in rounds)
        no_better = "no round is known to be better" if any(
            lines[n].decision == "go_on" for n in unknown) else "no round was better"  # fmt: skip
        return f"Use {model}, as it was before the rounds: {no_better}. {failed}"
    figure = measured[chosen.round]
    if figure.get("value") is None:
        reason = "it is the last round that no gate stopped or rolled back; win rates were not measured"
    else:
        low, high = figure.get("interval") or (math.nan, math.nan)
        reason = f"it wins {figure['value']:.1f} % (95 %: {low:.1f} to {high:.1f}) against the first policy"
        reason += " on held-out prompts by the second judge"
        reason += ", which may be chance" if low <= 50 <= high else ""
        others = [f"round {n} " + ("was not measured" if n in unknown else f"{f['value']:.1f} %")
                  for n, f in measured.items() if n != chosen.round]  # fmt: skip
        reason += f"; {', '.join(others)}" if others else ""
    what = {"stop": "stopped", "roll_back": "rolled back"}
    others_failed = [
        f"Round {line.round} was {what[line.decision]}: {_why(line)}."
        for line in rounds
        if line.decision != "go_on"
    ]
    return " ".join([f"Use {model} (round {chosen.round}): {reason}.", *others_failed])


def _why(line: Line) -> str:
    reasons = [gate["what"] for gate in tripped(line) if gate["action"] != "warn"]
    if reasons:
        return "; ".join(reasons)
    value = line.figures.get("win_rate_first", {}).get("value")
    return "win rate against the first policy " + (f"{value:.1f} %" if value is not None else "not measured")
