"""The sections about one run directory."""

from __future__ import annotations

from collections.abc import Sequence

from rounds.report.charts import Chart, Row, heat, lines, number, shares, spread
from rounds.report.sections import Section, Table, percent
from rounds.report.shapes import Curve, PassReport, RunReport
from rounds.report.tally import SAME, TIES

MOST_ASPECTS = 12  # of a pass that have a chart; the rest have a row in its table

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


def of_run(run: RunReport) -> list[Section]:
    """In the order of the work: sampled, judged, paired, trained."""
    made = [
        _texts(run),
        *(_scores(found) for found in run.passes),
        _orders(run),
        _agreement(run),
        _pairs(run),
    ]
    made.append(_training(run.curves))
    return [section for section in made if not section.empty()]


def _texts(run: RunReport) -> Section:
    texts = run.texts
    if texts is None:
        return Section("Completions", "Completions", notes=run.notes)
    facts: list[Row] = [
        ("completions", texts.completions),
        ("prompts", texts.prompts),
        ("different texts, prompt by prompt", texts.distinct),
        ("empty", texts.empty),
        ("cut off", texts.cut_off),
    ]
    if texts.tokens is not None:
        facts.append(("mean sampled tokens", number(texts.tokens)))
    facts += [(f"by {model}", n) for model, n in texts.models.items()]
    charts = [spread("Lengths", texts.chars, "characters", "completions")] if texts.chars else []
    table = Table("What was sampled", ("what", "how many"), tuple(facts))
    return Section("Completions", "Completions", charts=tuple(charts), tables=(table,), notes=run.notes)


def _scores(found: PassReport) -> Section:
    charts = []
    for aspect, scores in list(found.scores.items())[:MOST_ASPECTS]:
        charts.append(spread(aspect, scores, "score", "judgments"))
    if found.combined is not None and len(found.scores) != 1:
        title = "Mean over the aspects" if found.scores else "Strength from comparisons"
        charts.insert(0, spread(title, found.combined, "score", "completions"))
    if found.against_length is not None:
        charts.append(heat("Score against length", found.against_length))
    rows: tuple[Row, ...] = tuple(
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
        notes.append(f"{found.unscored:,} of {found.completions:,} completions have no usable score.")
    lead = f"{', '.join(found.methods)} by {', '.join(found.judges)}: {found.judgments:,} judgments."
    return Section(
        found.name, f"Scores: {found.name}", lead,
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
                (name, answered, percent(order.first + order.tie / 2, answered), order.unusable, asked,
                 percent(order.outcomes[SAME] + order.outcomes[TIES], asked))
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
        return Section("Orders", "")
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
        "Orders", "Order agreement and position bias", charts=tuple(charts[:16]), tables=tables, notes=note
    )


def _agreement(run: RunReport) -> Section:
    rows = tuple(
        (a.one, a.other, a.pairs, "–" if a.agree is None else f"{100 * a.agree:.1f} %", number(a.kappa))
        for a in run.agreements
    )
    if not rows:
        return Section("Agreement", "")
    lead = (
        "Of each two completions of a prompt that both passes scored: how often they are ordered alike. "
        "Kappa takes off what chance would give."
    )
    table = Table("Passes, two by two", ("one", "other", "pairs", "ordered alike", "kappa"), rows)
    return Section("Agreement", "Agreement between judges", lead, tables=(table,))


def _pairs(run: RunReport) -> Section:
    charts: list[Chart] = []
    rows: list[Row] = []
    notes: list[str] = []
    for made in run.pair_sets:
        if made.margins is not None:
            charts.append(
                spread(
                    f"Margins: {made.name}", made.margins, "margin, in the judge's unit", "pairs", "@chosen"
                )
            )
        rows.append(
            (made.name, made.pairs, made.without_pair,
             number(made.margins.mean if made.margins else None),
             number(made.chars[0]), number(made.chars[1]), percent(made.longer, 1), *made.doubtful.values())
        )  # fmt: skip
        notes += [f"{made.name}: {warning}." for warning in made.warnings]
    if not rows:
        return Section("Margins", "")
    head = ("set", "pairs", "prompts without", "mean margin", "chosen, characters", "rejected",
            "chosen longer", *run.pair_sets[0].doubtful)  # fmt: skip
    table = Table("Sets of pairs", head, tuple(rows))
    return Section("Margins", "Pair margins", charts=tuple(charts), tables=(table,), notes=tuple(notes))


def _training(curves: Sequence[Curve]) -> Section:
    """The metrics a person asks for first, then the others by name."""
    left = {curve.name: curve.points for curve in curves}
    charts = []
    for title, names in _TOGETHER:
        found = {name: left.pop(name) for name in names if name in left}
        if found:
            charts.append(lines(title, found, caption=", ".join(found) if len(found) == 1 else ""))
    charts += [lines(name, {name: points}) for name, points in sorted(left.items())]
    return Section("Training", "Training curves", charts=tuple(charts))
