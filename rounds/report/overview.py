"""The sections about all of a report: headline, figures by round, gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rounds.report.charts import Row, by_round, known, number, seconds_by_round
from rounds.report.sections import Card, Section, Table, percent
from rounds.report.shapes import Histogram, PassReport, Report, RoundFigures, RunReport
from rounds.report.tally import SAME, TIES

#: figure of a round → its title; those not named here are shown last, by their own names
FIGURES = {
    "win_rate_first": "Win rate against the first policy, %",
    "win_rate_previous": "Win rate against the previous policy, %",
    "win_rate_first_lc": "Win rate against the first policy at equal length, %",
    "win_rate_previous_lc": "Win rate against the previous policy at equal length, %",
    "length_mean": "Mean length, tokens",
    "length_ratio_first": "Mean length, times the first policy's",
    "cut_off": "Share cut off",
    "cut_off_rise_first": "Share cut off, less the first policy's",
    "kl_first": "KL to the first policy, nats a completion",
    "kl_first_token": "KL to the first policy, nats a token",
    "distinct_1": "Different tokens, share",
    "distinct_2": "Different pairs of tokens, share",
    "distinct_3": "Different runs of three tokens, share",
    "distinct_1_ratio_first": "Different tokens, times the first policy's",
    "distinct_2_ratio_first": "Different pairs of tokens, times the first policy's",
    "distinct_3_ratio_first": "Different runs of three tokens, times the first policy's",
    "self_repetition": "Runs of four tokens that repeat themselves, share",
    "self_repetition_rise_first": "Runs of four that repeat themselves, share, less the first policy's",
    "top_answer": "Share of the most frequent answer",
    "top_answer_rise_first": "Share of the most frequent answer, less the first policy's",
    "gold_accuracy": "Judge's accuracy on gold labels, share",
    "gold_order_agreement": "Judge's order agreement on gold labels, share",
    "flip_rate": "Labels that are probably wrong, share",
    "judge_agreement": "Evaluation judge agrees with the labels, share",
    "chosen_logprob_change": "Log-probability of chosen, change in training, nats",
    "rejected_logprob_change": "Log-probability of rejected, change in training, nats",
    "unusable": "Unusable judgments, share",
}
#: metric of a training → what its headline calls it
_TRAINED = {
    "loss": "loss",
    "mean_token_accuracy": "accuracy, tokens",
    "rewards/accuracies": "accuracy of the implicit reward",
    "accuracy": "accuracy, pairs",
    "objective/scores": "score",
    "objective/kl": "KL to the reference, nats",
}
_HELD_OUT = {
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "length_correlation": "correlation with length",
}
_EVEN = {"win_rate_first": 50, "win_rate_previous": 50, "win_rate_first_lc": 50, "win_rate_previous_lc": 50}


def overall(report: Report) -> list[Section]:
    """The sections about all of a report."""
    made = [_headline(report)]
    if report.rounds:
        made += [_rounds(report.rounds), _gates(report.rounds)]
    if len(report.runs) > 1:
        made.append(_runs(report.runs))
    return [section for section in made if not section.empty()]


# headline


def _headline(report: Report) -> Section:
    cards = _round_cards(report.rounds) if report.rounds else []
    if not report.rounds and report.runs:
        cards = _run_cards(report.runs) + [card for run in report.runs for card in _trained_cards(run)]
    return Section("Headline", "Headline", cards=tuple(cards), notes=report.notes)


def _round_cards(rounds: Sequence[RoundFigures]) -> list[Card]:
    last = rounds[-1]
    best = next((one for one in rounds if one.round == last.best), last)
    tripped = [(one.round, g) for one in rounds for g in one.gates if g.get("tripped")]
    cards = [
        Card("rounds", str(last.round), f"last decision: {(last.decision or 'none').replace('_', ' ')}"),
        Card("best round", "–" if last.best is None else str(last.best), best.model),
    ]
    for name, label in (
        ("win_rate_first", "win rate against first"),
        ("win_rate_first_lc", "at equal length"),
    ):
        figure = best.figures.get(name, {})
        if figure.get("value") is not None:
            low, high = figure.get("interval") or (None, figure["value"])  # bad as a gate has it: all of it
            interval = f"95 %: {low:.1f} to {high:.1f}" if low is not None else ""
            of = f"{figure['n']:,} prompts" if isinstance(figure.get("n"), int) else ""
            cards.append(
                Card(label, f"{figure['value']:.1f} %", ", ".join(filter(None, (interval, of))),
                     high < 50)
            )  # fmt: skip
    for name, label in (
        ("length_ratio_first", "length, times the first's"),
        ("kl_first", "KL to the first, nats"),
    ):
        value = best.figures.get(name, {}).get("value")
        if value is not None:
            cards.append(Card(label, number(value), "of the best round"))
    which = "; ".join(filter(None, (_which(tripped), _unmeasured(rounds))))
    cards.append(Card("gates tripped", str(len(tripped)), which, bool(tripped)))
    seconds = sum(s for one in rounds for s in one.seconds.values())
    if seconds:
        cards.append(Card("time", _duration(seconds), "all rounds"))
    return cards


def _which(tripped: Sequence[tuple[int, dict[str, object]]]) -> str:
    rounds = sorted({number for number, _ in tripped})
    return f"in round {', '.join(map(str, rounds))}" if rounds else "none"


def _unmeasured(rounds: Sequence[RoundFigures]) -> str:
    """How many gates said nothing, since their figures were not measured."""
    gates = [gate for one in rounds for gate in one.gates if not gate.get("tripped")]
    count = sum(not known(gate.get("value")) for gate in gates)
    return f"not measured: {count:,}" if count else ""


def _duration(seconds: float) -> str:
    """
    >>> _duration(42.4), _duration(3700)
    ('42 s', '1 h 02 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )


def _trained_cards(run: RunReport) -> list[Card]:
    """Of a directory that holds nothing but a trained model."""
    if run.texts is not None:
        return []
    curves = {curve.name: curve.points for curve in run.curves}
    steps = run.trained.get("steps") or max((points[-1][0] for points in curves.values()), default=0)
    cards = [Card("steps", f"{steps:,}", "" if run.trained else "so far")]
    for name, label in _TRAINED.items():
        if points := curves.get(name):
            cards.append(Card(label, number(points[-1][1]), f"at first {number(points[0][1])}"))
    held_out = run.trained.get("held_out") or {}
    for name, label in _HELD_OUT.items():
        if known(held_out.get(name)):
            cards.append(Card(label, number(held_out[name]), f"{held_out.get('n', 0):,} held-out pairs"))
    return cards


def _run_cards(runs: Sequence[RunReport]) -> list[Card]:
    texts = [run.texts for run in runs if run.texts is not None]
    cards = []
    if texts:
        completions = sum(t.completions for t in texts)
        cut = sum(t.cut_off for t in texts)
        cards += [
            Card("prompts", f"{sum(t.prompts for t in texts):,}"),
            Card("completions", f"{completions:,}", f"{sum(t.distinct for t in texts):,} different ones"),
            Card("cut off", percent(cut, completions), f"{cut:,} completions", cut > 0.1 * completions),
        ]
    passes = [found for run in runs for found in run.passes]
    if passes:
        judgments, unusable = sum(p.judgments for p in passes), sum(sum(p.unusable.values()) for p in passes)
        cards += [
            Card("judgments", f"{judgments:,}", _passes(len({p.name for p in passes}))),
            Card(
                "unusable",
                percent(unusable, judgments),
                f"{unusable:,} judgments",
                unusable > 0.1 * judgments,
            ),
        ]
        agree, asked = _order_agreement(passes)
        if asked:
            cards.append(Card("order agreement", percent(agree, asked), f"{asked:,} pairs in both orders"))
    sets = [run.pair_sets[-1] for run in runs if run.pair_sets]
    if sets:
        pairs = sum(s.pairs for s in sets)
        longer = sum(s.longer * s.pairs for s in sets)
        cards += [
            Card("pairs", f"{pairs:,}", f"{sum(s.without_pair for s in sets):,} prompts without one"),
            Card("chosen is longer", percent(longer, pairs), "of the pairs"),
        ]
    return cards


def _passes(count: int) -> str:
    return "one judging pass" if count == 1 else f"{count} judging passes"


def _order_agreement(passes: Iterable[PassReport]) -> tuple[int, int]:
    """Pairs whose two orders agree, of those asked in both."""
    found = [order.outcomes for one in passes for order in one.orders]
    return sum(o[SAME] + o[TIES] for o in found), sum(sum(o.values()) for o in found)


# by round


def _rounds(rounds: Sequence[RoundFigures]) -> Section:
    names = list(dict.fromkeys(name for one in rounds for name in one.figures))
    ordered = [n for n in FIGURES if n in names] + [n for n in names if n not in FIGURES]
    drawn = [by_round(n, FIGURES.get(n, n), rounds, even=_EVEN.get(n)) for n in ordered]
    timing = seconds_by_round(rounds)
    table = Table(
        "All figures",
        ("figure", *(f"round {one.round}" for one in rounds)),
        tuple(
            (FIGURES.get(name, name), *(number(one.figures.get(name, {}).get("value")) for one in rounds))
            for name in ordered
        ),
    )
    lead = (
        "On held-out prompts; round 0 is the policy before any training. A dashed line is a gate's limit, a "
        "cross a round that tripped it, a band the 95 % interval."
    )
    charts = (*(c for c in drawn if c is not None), *((timing,) if timing else ()))
    return Section("Figures", "Figures by round", lead, charts=charts, tables=(table,))


def _gates(rounds: Sequence[RoundFigures]) -> Section:
    rows: list[Row] = []
    for one in rounds:
        for gate in one.gates:
            name = str(gate.get("figure"))
            limits = [
                f"{words} {number(gate[end])}"
                for end, words in (("min", "at least"), ("max", "at most"))
                if gate.get(end) is not None
            ]
            tripped = bool(gate.get("tripped"))
            action = str(gate.get("action", "")).replace("_", " ")
            rows.append(
                (one.round, FIGURES.get(name, name), number(gate.get("value")), ", ".join(limits),
                 f"✕ {action}" if tripped else "passed" if known(gate.get("value")) else "not measured",
                 str(gate.get("what", "")))
            )  # fmt: skip
    tripped_first = sorted(rows, key=lambda row: (not str(row[4]).startswith("✕"), row[0]))
    decisions = Table(
        "What was decided",
        ("round", "decision", "trained from", "learning rate", "best so far", "model"),
        tuple(
            (one.round, (one.decision or "–").replace("_", " "), one.start or "–", number(one.learning_rate),
             "–" if one.best is None else one.best, one.model)
            for one in rounds
        ),
    )  # fmt: skip
    tables = [decisions]
    if rows:
        head = ("round", "figure", "value", "limit", "outcome", "what")
        tables.append(Table("Gates, those that tripped first", head, tuple(tripped_first)))
    return Section("Gates", "Gates and decisions", tables=tuple(tables))


def _runs(runs: Sequence[RunReport]) -> Section:
    rows: list[Row] = []
    for run in runs:
        texts, made = run.texts, run.pair_sets[-1] if run.pair_sets else None
        scored = _labelling(run)
        rows.append((
            run.label,
            texts.prompts if texts else None,
            texts.completions if texts else None,
            number(texts.chars.mean) if texts and texts.chars else None,
            percent(texts.cut_off, texts.completions) if texts else None,
            number(scored.mean) if scored else None,
            made.pairs if made else None,
            number(made.margins.mean) if made and made.margins else None,
        ))  # fmt: skip
    head = ("", "prompts", "completions", "mean characters", "cut off", "mean score", "pairs", "mean margin")
    return Section("Rounds", "Round by round", tables=(Table("What each round made", head, tuple(rows)),))


def _labelling(run: RunReport) -> Histogram | None:
    """The scores of the pass that the newest pairs were made of, else of the newest pass."""
    wanted = run.pair_sets[-1].judging if run.pair_sets else None
    found = [one for one in run.passes if one.name == wanted] or run.passes[-1:]
    return found[-1].combined if found else None
