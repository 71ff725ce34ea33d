"""What the page says, in which order: cards, charts, tables and notes, made of a `Report`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rounds.report.charts import Chart, Row, by_round, heat, lines, number, seconds_by_round, shares, spread
from rounds.report.shapes import Curve, PassReport, Report, RoundFigures, RunReport
from rounds.report.tally import SAME, TIES

MOST_ASPECTS = 12  # of a pass that have a chart; the rest have a row in its table

#: figure of a round → its title; those not named here are shown last, by their own names
FIGURES = {
    "win_rate_first": "Win rate against the first policy, %",
    "win_rate_previous": "Win rate against the previous policy, %",
    "win_rate_first_lc": "Win rate against the first policy at equal length, %",
    "win_rate_previous_lc": "Win rate against the previous policy at equal length, %",
    "length_mean": "Mean length, tokens",
    "length_ratio_first": "Mean length, times the first policy's",
    "cut_off": "Share cut off",
    "kl_first": "KL to the first policy, nats a completion",
    "kl_first_token": "KL to the first policy, nats a token",
    "distinct_1": "Distinct words",
    "distinct_2": "Distinct pairs of words",
    "distinct_3": "Distinct runs of three words",
    "distinct_1_ratio_first": "Distinct words, times the first policy's",
    "distinct_2_ratio_first": "Distinct pairs of words, times the first policy's",
    "distinct_3_ratio_first": "Distinct runs of three, times the first policy's",
    "self_repetition": "Share that repeats itself",
    "top_answer": "Share of the most frequent answer",
    "gold_accuracy": "Judge's accuracy on gold labels, %",
    "gold_order_agreement": "Judge's order agreement on gold labels, %",
    "flip_rate": "Labels that are probably wrong",
    "judge_agreement": "Evaluation judge agrees with the labels",
    "chosen_logprob_change": "Log-probability of chosen, change in training",
    "rejected_logprob_change": "Log-probability of rejected, change in training",
    "unusable": "Unusable judgments, share",
}
_EVEN = {"win_rate_first": 50, "win_rate_previous": 50, "win_rate_first_lc": 50, "win_rate_previous_lc": 50}

#: training metrics drawn together, in this order; any other has a chart of its own
_TOGETHER = (
    ("Loss", ("loss",)),
    ("Rewards", ("rewards/chosen", "rewards/rejected")),
    ("Reward margin", ("rewards/margins",)),
    ("Accuracy of the implicit reward", ("rewards/accuracies",)),
    ("Log-probabilities", ("logps/chosen", "logps/rejected")),
    ("Score", ("objective/scores", "objective/rlhf_reward")),
    ("KL to the reference", ("objective/kl",)),
    ("Gradient norm", ("grad_norm",)),
    ("Learning rate", ("learning_rate", "lr")),
)


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure. note: what it is measured by, or its interval. bad: something to look at."""

    label: str
    value: str
    note: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """id: its anchor. lead: one or two sentences under the heading."""

    id: str
    title: str
    lead: str = ""
    cards: tuple[Card, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def empty(self) -> bool:
        return not (self.cards or self.charts or self.tables or self.notes)


def overall(report: Report) -> list[Section]:
    """The sections about all of a report."""
    made = [_headline(report)]
    if report.rounds:
        made += [_rounds(report.rounds), _gates(report.rounds)]
    if len(report.runs) > 1:
        made.append(_runs(report.runs))
    return [section for section in made if not section.empty()]


def of_run(run: RunReport) -> list[Section]:
    """The sections about one run directory."""
    made = [
        _texts(run),
        *(_scores(found) for found in run.passes),
        _orders(run),
        _agreement(run),
        _pairs(run),
    ]
    made.append(_training(run.curves))
    return [section for section in made if not section.empty()]


# headline


def _headline(report: Report) -> Section:
    cards = _round_cards(report.rounds) if report.rounds else []
    if not report.rounds and report.runs:
        cards = _run_cards(report.runs[-1] if len(report.runs) == 1 else report.runs)
    return Section("headline", "Headline", cards=tuple(cards), notes=report.notes)


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
            low, high = figure.get("interval") or (None, None)
            interval = f"95 %: {number(low)} to {number(high)}" if low is not None else ""
            of = f"{figure['n']:,} prompts" if isinstance(figure.get("n"), int) else ""
            cards.append(
                Card(label, f"{figure['value']:.1f} %", ", ".join(filter(None, (interval, of))),
                     figure["value"] < 50)
            )  # fmt: skip
    for name, label in (
        ("length_ratio_first", "length, times the first's"),
        ("kl_first", "KL to the first, nats"),
    ):
        value = best.figures.get(name, {}).get("value")
        if value is not None:
            cards.append(Card(label, number(value), "of the best round"))
    cards.append(Card("gates tripped", str(len(tripped)), _which(tripped), bool(tripped)))
    seconds = sum(s for one in rounds for s in one.seconds.values())
    if seconds:
        cards.append(Card("time", _duration(seconds), "all rounds"))
    return cards


def _which(tripped: Sequence[tuple[int, dict[str, object]]]) -> str:
    rounds = sorted({number for number, _ in tripped})
    return f"in round {', '.join(map(str, rounds))}" if rounds else "none"


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


def _run_cards(of: RunReport | Sequence[RunReport]) -> list[Card]:
    runs = [of] if isinstance(of, RunReport) else list(of)
    texts = [run.texts for run in runs if run.texts is not None]
    cards = []
    if texts:
        completions = sum(t.completions for t in texts)
        cut = sum(t.cut_off for t in texts)
        cards += [
            Card("prompts", f"{sum(t.prompts for t in texts):,}"),
            Card("completions", f"{completions:,}", f"{sum(t.distinct for t in texts):,} different ones"),
            Card("cut off", _percent(cut, completions), f"{cut:,} completions", cut > 0.1 * completions),
        ]
    passes = [found for run in runs for found in run.passes]
    if passes:
        judgments, unusable = sum(p.judgments for p in passes), sum(sum(p.unusable.values()) for p in passes)
        cards += [
            Card("judgments", f"{judgments:,}", f"{len({p.name for p in passes})} judging passes"),
            Card(
                "unusable",
                _percent(unusable, judgments),
                f"{unusable:,} judgments",
                unusable > 0.1 * judgments,
            ),
        ]
        agree, asked = _order_agreement(passes)
        if asked:
            cards.append(Card("order agreement", _percent(agree, asked), f"{asked:,} pairs in both orders"))
    sets = [run.pair_sets[-1] for run in runs if run.pair_sets]
    if sets:
        pairs = sum(s.pairs for s in sets)
        longer = sum(s.longer * s.pairs for s in sets)
        cards += [
            Card("pairs", f"{pairs:,}", f"{sum(s.without_pair for s in sets):,} prompts without one"),
            Card("chosen is longer", _percent(longer, pairs), "of the pairs"),
        ]
    return cards


def _order_agreement(passes: Iterable[PassReport]) -> tuple[int, int]:
    """Pairs whose two orders agree, of those asked in both."""
    found = [order.outcomes for one in passes for order in one.orders]
    return sum(o[SAME] + o[TIES] for o in found), sum(sum(o.values()) for o in found)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


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
        "On held-out prompts; round 0 is the policy before any training. A dashed line is a gate's limit, a cross a "
        "round that tripped it, a band the 95 % interval."
    )
    charts = (*(c for c in drawn if c is not None), *((timing,) if timing else ()))
    return Section("rounds", "Figures by round", lead, charts=charts, tables=(table,))


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
                 f"✕ {action}" if tripped else "passed", str(gate.get("what", "")))
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
    return Section("gates", "Gates and decisions", tables=tuple(tables))


def _runs(runs: Sequence[RunReport]) -> Section:
    rows: list[Row] = []
    for run in runs:
        texts, made = run.texts, run.pair_sets[-1] if run.pair_sets else None
        scored = run.passes[-1].combined if run.passes else None
        rows.append((
            run.label,
            texts.prompts if texts else None,
            texts.completions if texts else None,
            number(texts.chars.mean) if texts and texts.chars else None,
            _percent(texts.cut_off, texts.completions) if texts else None,
            number(scored.mean) if scored else None,
            made.pairs if made else None,
            number(made.margins.mean) if made and made.margins else None,
        ))  # fmt: skip
    head = ("", "prompts", "completions", "mean characters", "cut off", "mean score", "pairs", "mean margin")
    return Section("runs", "Round by round", tables=(Table("What each round made", head, tuple(rows)),))


# of one run


def _texts(run: RunReport) -> Section:
    texts = run.texts
    if texts is None:
        return Section("texts", "Completions", notes=run.notes)
    facts: list[Row] = [
        ("completions", texts.completions), ("prompts", texts.prompts),
        ("different texts, prompt by prompt", texts.distinct), ("empty", texts.empty), ("cut off", texts.cut_off),
    ]  # fmt: skip
    if texts.tokens is not None:
        facts.append(("mean sampled tokens", number(texts.tokens)))
    facts += [(f"by {model}", n) for model, n in texts.models.items()]
    charts = [spread("Lengths", texts.chars, "characters", "completions")] if texts.chars else []
    table = Table("What was sampled", ("what", "how many"), tuple(facts))
    return Section("texts", "Completions", charts=tuple(charts), tables=(table,), notes=run.notes)


def _scores(found: PassReport) -> Section:
    charts = []
    for aspect, scores in list(found.scores.items())[:MOST_ASPECTS]:
        charts.append(spread(aspect, scores, "score", "judgments"))
    if found.combined is not None and len(found.scores) != 1:
        title = "Mean over the aspects" if found.scores else "Strength from comparisons"
        charts.insert(0, spread(title, found.combined, "score", "completions"))
    if found.against_length is not None:
        charts.append(heat("Score against length", found.against_length))
    rows = tuple(
        (
            aspect,
            s.n,
            number(s.mean),
            number(s.sd),
            *(number(s.quantiles[q]) for q in ("q05", "median", "q95")),
        )
        for aspect, s in found.scores.items()
    )
    tables = []
    if rows:
        head = ("aspect", "judgments", "mean", "sd", "5 %", "median", "95 %")
        tables.append(Table("Scores by aspect", head, rows))
    if found.unusable:
        tables.append(Table("Unusable judgments", ("why", "judgments"), tuple(found.unusable.items())))
    notes = [] if found.finished else ["This pass is not finished."]
    if found.unscored:
        notes.append(
            f"{found.unscored:,} of {found.completions:,} completions have no score in every aspect."
        )
    lead = f"{', '.join(found.methods)} by {', '.join(found.judges)}: {found.judgments:,} judgments."
    return Section(
        f"scores-{found.name}", f"Scores: {found.name}", lead,
        charts=tuple(charts), tables=tuple(tables), notes=tuple(notes),
    )  # fmt: skip


def _orders(run: RunReport) -> Section:
    charts, rows = [], []
    for found in run.passes:
        for order in found.orders:
            name = f"{found.name}, {order.aspect}"
            asked = sum(order.outcomes.values())
            answered = order.first + order.tie + order.second
            rows.append(
                (name, answered, _percent(order.first + order.tie / 2, answered), order.unusable, asked,
                 _percent(order.outcomes[SAME] + order.outcomes[TIES], asked))
            )  # fmt: skip
            if asked:
                caption = f"{asked:,} pairs that were shown in both orders: which one is preferred."
                charts.append(shares(f"Both orders: {name}", order.outcomes, "pairs", caption))
            if answered:
                places = {
                    "the first shown": order.first,
                    "neither": order.tie,
                    "the second shown": order.second,
                }
                caption = (
                    f"{answered:,} comparisons. A judge that does not mind places is near half and half."
                )
                charts.append(shares(f"Place: {name}", places, "comparisons", caption))
    if not rows and not run.passes:
        return Section("orders", "")
    head = (
        "pass, aspect",
        "comparisons",
        "first shown preferred",
        "unusable",
        "in both orders",
        "orders agree",
    )
    tables = (Table("Orders and places", head, tuple(rows)),) if rows else ()
    note = () if rows else ("Completions were scored one at a time: there is no order that could matter.",)
    return Section(
        "orders", "Order agreement and position bias", charts=tuple(charts[:16]), tables=tables, notes=note
    )


def _agreement(run: RunReport) -> Section:
    rows = tuple(
        (a.one, a.other, a.pairs, "–" if a.agree is None else f"{100 * a.agree:.1f} %", number(a.kappa))
        for a in run.agreements
    )
    if not rows:
        return Section("agreement", "")
    lead = (
        "Of each two completions of a prompt that both passes scored: how often they are ordered alike. Kappa takes "
        "off what chance would give."
    )
    table = Table("Passes, two by two", ("one", "other", "pairs", "ordered alike", "kappa"), rows)
    return Section("agreement", "Agreement between judges", lead, tables=(table,))


def _pairs(run: RunReport) -> Section:
    charts, rows, notes = [], [], []
    for made in run.pair_sets:
        if made.margins is not None:
            charts.append(
                spread(
                    f"Margins: {made.name}", made.margins, "margin, in the judge's unit", "pairs", "@chosen"
                )
            )
        rows.append(
            (made.name, made.pairs, made.without_pair, number(made.margins.mean if made.margins else None),
             number(made.chars[0]), number(made.chars[1]), f"{100 * made.longer:.1f} %", *made.doubtful.values())
        )  # fmt: skip
        notes += [f"{made.name}: {warning}." for warning in made.warnings]
    if not rows:
        return Section("pairs-made", "")
    head = ("set", "pairs", "prompts without", "mean margin", "chosen, characters", "rejected", "chosen longer",
            *run.pair_sets[0].doubtful)  # fmt: skip
    table = Table("Sets of pairs", head, tuple(rows))
    return Section("pairs-made", "Pair margins", charts=tuple(charts), tables=(table,), notes=tuple(notes))


def _training(curves: Sequence[Curve]) -> Section:
    """The metrics a person asks for first, then the others by name."""
    left = {curve.name: curve.points for curve in curves}
    charts = []
    for title, names in _TOGETHER:
        found = {name: left.pop(name) for name in names if name in left}
        if found:
            charts.append(lines(title, found, caption=", ".join(found)))
    charts += [lines(name, {name: points}) for name, points in sorted(left.items())]
    return Section("training", "Training curves", charts=tuple(charts))
