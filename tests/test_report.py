"""What the report says of a run: numbers counted by hand, what is drawn, how large it is, no harm done."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
import tracemalloc
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from judged_runs import build, plain
from report_runs import HOSTILE, figures, hostile, metrics, paired, rounds

from gavel.cli import root
from gavel.errors import RunDirError
from gavel.records import PreferencePair
from gavel.rundir import RunDir
from gavel.scores import Candidate
from rounds.report.charts import lines, number, spread
from rounds.report.collect import collect, collect_run
from rounds.report.details import of_run
from rounds.report.embed import embed
from rounds.report.overview import overall
from rounds.report.page import LIMIT_BYTES, headline
from rounds.report.page import build as build_page
from rounds.report.sample import JUDGES, ORDERS, SHARES, SMALL, PairTally, allot
from rounds.report.shapes import Curve, PassReport, Report, RoundFigures, RunReport, Texts
from rounds.report.tally import BARS, FIRST, LATER, SAME, TIE, TIES, against_length, histogram
from rounds.report.training import MOST_POINTS, read_curves, read_rounds


class Parts(html.parser.HTMLParser):
    """The elements of a page, the texts of its scripts, and every attribute."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        self._open = dict(attrs) if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts.append((self._open, data))

    def data(self, name: str) -> Any:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == name))


def page_of(path: Path, pairs: int = 1000) -> tuple[bytes, Parts]:
    page, _ = build_page(collect(path, pairs))
    return page, Parts(page)


def only(path: Path) -> RunReport:
    return collect_run("run", path).report


# aggregates


def test_texts_are_counted(tmp_path: Path) -> None:
    run = build(
        tmp_path, {"p": [("a", {}), ("a", {}), ("bbb", {})], "q": [(" ", {}), ("cc", {}), ("dd", {})]}
    )
    texts = only(run).texts
    assert texts is not None
    assert (texts.prompts, texts.completions, texts.distinct, texts.empty, texts.cut_off) == (2, 6, 5, 1, 0)
    assert texts.models == {"tiny/policy, weights w1": 6}
    assert texts.tokens is None
    assert texts.chars is not None
    assert [(b.start, b.count) for b in texts.chars.bins] == [(1, 3), (2, 2), (3, 1)]
    assert texts.chars.mean == pytest.approx(10 / 6)


def test_scores_are_counted_by_aspect(tmp_path: Path) -> None:
    answers = {
        "p": [("a", {"x": 1.0, "y": 5.0}), ("bb", {"x": 2.0, "y": None}), ("ccc", {"x": 2.0, "y": 3.0})]
    }
    (found,) = only(build(tmp_path, answers, "j")).passes
    assert {aspect: [(b.start, b.count) for b in s.bins] for aspect, s in found.scores.items()} == {
        "x": [(1, 1), (2, 2)], "y": [(3, 1), (4, 0), (5, 1)],
    }  # fmt: skip
    assert (found.judgments, found.unscored, found.unusable) == (6, 1, {"context too long": 1})
    assert found.combined is not None
    assert (found.combined.n, found.combined.mean) == (2, pytest.approx(2.75))  # (1 + 5) / 2 and (2 + 3) / 2
    assert found.against_length is not None
    assert found.against_length.rho == pytest.approx(-1.0)  # 3 for one character, 2.5 for three
    assert found.finished
    assert found.orders == ()


def test_orders_are_counted(tmp_path: Path) -> None:
    found = next(one for one in only(paired(tmp_path)).passes if one.name == "compared")
    (order,) = found.orders
    # p0 prefers what is shown first in both orders; p1 the lower index, p2 and p3 the higher in both
    assert order.outcomes == {SAME: 3, FIRST: 1, LATER: 0, TIE: 0, TIES: 0}
    assert (order.first, order.tie, order.second, order.unusable) == (2 + 1 + 1 + 1, 0, 3, 0)
    assert not found.scores
    assert found.unscored == 16 - 8  # only the ends of each prompt were compared


def test_ties_and_places(tmp_path: Path) -> None:
    from report_runs import compare

    run = build(tmp_path, plain(5, 2))
    with RunDir.open(run) as opened:
        said: list[tuple[str | None, str | None]] = [
            ("tie", "tie"), ("tie", "first"), ("second", "second"), ("first", None), ("second", "first"),
        ]  # fmt: skip
        compare(opened, "c", {(f"p{p}", 0, 1): verdicts for p, verdicts in enumerate(said)})
    (order,) = next(one for one in only(run).passes if one.name == "c").orders
    assert order.outcomes == {SAME: 1, FIRST: 0, LATER: 1, TIE: 1, TIES: 1}
    assert (order.first, order.tie, order.second, order.unusable) == (3, 3, 3, 1)


def test_pairs_and_agreement(tmp_path: Path) -> None:
    found = collect_run("r", paired(tmp_path))
    report, examples = found.report, found.examples(100)
    (made,) = report.pair_sets
    assert (made.pairs, made.prompts, made.without_pair, len(found.offered), made.longer) == (4, 4, 0, 4, 1.0)
    assert made.margins is not None
    assert made.margins.mean == pytest.approx(4.5)  # (3 + 6) / 2 against 0
    # best is always index 3; the other judge is of two minds about p0 and prefers index 0 of p1
    assert made.doubtful == {JUDGES: 1, ORDERS: 1, SMALL: 1}
    (agreement,) = report.agreements
    assert (agreement.one, agreement.other, agreement.pairs) == ("scored", "compared", 4)
    assert agreement.agree == pytest.approx(2 / 4)
    by_prompt = {one.prompt_id: one for one in examples}
    assert JUDGES in by_prompt["p1"].doubts
    assert ORDERS in by_prompt["p0"].doubts
    assert {said.shown for said in by_prompt["p0"].said} == {
        "chosen", "rejected", "rejected, chosen", "chosen, rejected",
    }  # fmt: skip
    assert {said.raw and said.raw.text for said in by_prompt["p1"].said} == {
        None,
        "I say: first",
        "I say: second",
    }


def test_runs_without_pairs_show_what_they_have(tmp_path: Path) -> None:
    judged, _, _ = page_of(build(tmp_path / "judged", plain(3, 3))), None, None
    pairs = judged[1].data("pairs-data")
    assert [one["kind"] for one in pairs] == ["best and worst"] * 3
    assert [(p["chosen"]["score"], p["rejected"]["score"]) for p in pairs] == [(2, 0)] * 3
    bare = build(
        tmp_path / "bare", {p: [(text, {}) for text, _ in found] for p, found in plain(3, 3).items()}
    )
    pairs = page_of(bare)[1].data("pairs-data")
    assert [one["kind"] for one in pairs] == ["two answers"] * 3
    assert pairs[0]["margin"] is None


def test_a_models_directory_has_its_curves(tmp_path: Path) -> None:
    metrics(tmp_path)
    report = collect(tmp_path)
    assert [curve.name for curve in report.runs[0].curves] == ["loss", "rewards/chosen", "rewards/rejected"]
    (training,) = of_run(report.runs[0])
    assert [chart.title for chart in training.charts] == ["Loss", "Rewards"]
    assert [(card.label, card.value) for card in headline(report)] == [("steps", "29"), ("loss", "0.03333")]
    held_out = {"n": 40, "accuracy": 0.75, "calibration_error": None, "length_correlation": -0.25}
    (tmp_path / "gavel.json").write_text(json.dumps({"summary": {"steps": 30, "held_out": held_out}}))
    shown = {card.label: (card.value, card.note) for card in headline(collect(tmp_path))}
    assert shown["steps"] == ("30", "") and shown["accuracy"] == ("0.75", "40 held-out pairs")
    assert shown["correlation with length"][0] == "-0.25" and "calibration error" not in shown


def test_nothing_to_report_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="gavel generate"):
        collect(tmp_path)


# figures by round


def test_rounds_are_read_with_their_gates(tmp_path: Path) -> None:
    report = collect(rounds(tmp_path))
    assert [one.round for one in report.rounds] == [0, 1, 2]
    assert [run.label for run in report.runs] == ["round 1", "round 2"]
    sections = {section.nav: section for section in overall(report)}
    cards = {card.label: card for card in sections["Headline"].cards}
    assert cards["best round"].value == "1"
    assert cards["win rate against first"].value == "61.2 %"
    assert cards["win rate against first"].note == "95 %: 55.2 to 67.2, 256 prompts"
    assert cards["gates tripped"].value == "1"
    assert cards["gates tripped"].bad
    assert cards["time"].value == "3 min 16 s"
    chart = next(c for c in sections["Figures"].charts if c.title.startswith("Win rate"))
    assert [row[:2] for row in chart.rows] == [(1, "61.2"), (2, "43")]
    assert chart.caption == "Dashed: at least 45, else roll back; round 2 tripped it: roll back."
    gates = sections["Gates"].tables[1].rows
    assert gates[0][4:] == ("✕ roll back", "The policy wins less often than 45 %.")
    assert "distinct_2" not in str([c.title for c in sections["Figures"].charts])  # null is no figure


@pytest.mark.parametrize(("rate", "bad"), [(47.0, False), (40.0, True)])  # of 41 to 53, and of 34 to 46
def test_a_win_rate_is_marked_where_all_of_its_interval_is_below_one_half(
    tmp_path: Path, rate: float, bad: bool
) -> None:
    lines = [figures(0, None), figures(1, rate)]
    (tmp_path / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (headline, *_) = overall(collect(tmp_path))
    assert {card.label: card.bad for card in headline.cards}["win rate against first"] is bad


def test_axes_that_count_have_whole_marks() -> None:
    assert lines("Loss", {"loss": [(10, 0.5), (12, 0.2)]}).spec["encoding"]["x"]["axis"]["tickMinStep"] == 1
    found = histogram(array("d", [1.5, 2.5]))
    assert found is not None
    (bars, _) = spread("Margins", found, "margin").spec["layer"]
    assert bars["encoding"]["y"]["axis"]["tickMinStep"] == 1


def test_a_round_done_again_counts_once_by_its_last_line(tmp_path: Path) -> None:
    lines = [figures(1, 50.0), figures(0, None), figures(1, 70.0)]
    (tmp_path / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_rounds(tmp_path / "figures.jsonl")
    assert [(one.round, one.figures.get("win_rate_first", {}).get("value")) for one in found] == [
        (0, None),
        (1, 70),
    ]


@pytest.mark.parametrize("line", ["[1]", "{", '{"figures": {}}', '{"round": "one"}'])
def test_figures_that_are_none_are_refused_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "figures.jsonl").write_text(json.dumps(figures(0, 1.0)) + "\n" + line + "\n")
    with pytest.raises(RunDirError, match=r"figures\.jsonl:2"):
        read_rounds(tmp_path / "figures.jsonl")


def test_curves_are_thinned_by_means(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(i % 2), "note": "x", "bad": math.inf} for i in range(4 * MOST_POINTS)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = read_curves(tmp_path / "m.jsonl")
    assert len(curve.points) == MOST_POINTS
    assert {value for _, value in curve.points} == {0.5}


# histograms


def test_a_histogram_holds_every_value() -> None:
    values = array("d", [float(i) ** 3 / 7 for i in range(-500, 500)])
    found = histogram(values)
    assert found is not None
    assert len(found.bins) == BARS
    assert sum(b.count for b in found.bins) == 1000
    assert found.below + found.above == 10  # half a per cent at each end
    assert found.quantiles["median"] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(
    "values",
    [[1.5], [1.5] * 9, [0.0, 5e-324], [1e150, -1e150], [1.0, 1.0 + 2**-52], [0.1, math.nan, math.inf],
     [7.0, 900.0]],
)  # fmt: skip
def test_histograms_of_odd_values(values: list[float]) -> None:
    found = histogram(array("d", values))
    assert found is not None
    assert sum(b.count for b in found.bins) == found.n == sum(map(math.isfinite, values))
    assert all(math.isfinite(b.start) and b.start <= b.end for b in found.bins)
    assert against_length(array("d", values), array("I", range(len(values)))) is not None
    assert histogram(array("d", [math.nan])) is None


def test_no_bar_of_whole_numbers_is_narrower_than_its_neighbours() -> None:
    found = histogram(array("d", [float(i) for i in range(100)] * 3))
    assert found is not None
    assert len({b.end - b.start for b in found.bins}) == 1
    assert {b.count for b in found.bins[:-1]} == {9}


def test_a_heat_map_holds_every_completion() -> None:
    scores = array("d", [float(i % 7) for i in range(400)])
    found = against_length(scores, array("I", [i % 50 for i in range(400)]))
    assert found is not None
    assert sum(cell.count for cell in found.cells) == found.n == 400
    assert sum(n for *_, n in found.means) == 400


def test_numbers_for_people() -> None:
    assert [number(x) for x in (None, True, math.nan, 3, 3.0, 0.123456, 12345.6, -0.5)] == [
        "–", "–", "–", "3", "3", "0.1235", "12,346", "-0.5",
    ]  # fmt: skip


# the sample


def a_tally(pairs: int, judges: int, orders: int) -> PairTally:
    """So many pairs with margins 1, 2, …; of the widest, some on which judges or orders disagree."""
    from gavel.standing import standing

    tally = PairTally()
    for i in range(pairs):
        pair = PreferencePair(
            id=str(i), prompt_id="p", chosen_id="b", rejected_id="a", margin=i + 1.0, chosen_score=0,
            rejected_score=0,
        )  # fmt: skip
        passes: list[dict[str, Candidate]] = []
        if i >= pairs - judges:
            passes.append(_candidates(1.0, 0.0))
        elif i >= pairs - judges - orders:
            found = standing(_two_minds())
            passes.append(_candidates(0.0, 0.0, found))
        tally.add(i, [pair], {"a": "aa", "b": "b"}, passes)
    return tally


def _candidates(a: float, b: float, found: Any = None) -> dict[str, Candidate]:
    from judged_runs import completion

    return {
        one: Candidate(completion("p", 0, one), score, standing=found) for one, score in (("a", a), ("b", b))
    }


def _two_minds() -> list[Any]:
    from judged_runs import judgment

    return [
        judgment(
            "p", 0, "x", None, completion_ids=ids, verdict="first", reason=None, measures={"p_first": 1.0}
        )
        for ids in (("a", "b"), ("b", "a"))
    ]


def test_the_sample_is_weighted_to_the_doubtful() -> None:
    tally = a_tally(10_000, judges=600, orders=500)
    assert tally.doubtful() == {JUDGES: 600, ORDERS: 500, SMALL: 1000}
    picks = tally.draw(400)
    assert len({(pick.prompt, pick.pair) for pick in picks}) == 400
    # 30, 25, 25 and 15 %; the widest are those on which judges disagree, so the last 5 % went to the others
    assert Counter(pick.stratum for pick in picks) == {JUDGES: 125, ORDERS: 105, SMALL: 105, "ordinary": 65}
    assert all(pick.doubts == () for pick in picks if pick.stratum == "ordinary")
    assert [pick.stratum for pick in picks] == sorted((p.stratum for p in picks), key=list(SHARES).index)


def test_a_draw_repeats_and_another_seed_differs() -> None:
    tally = a_tally(2000, judges=100, orders=100)
    assert tally.draw(100) == tally.draw(100)
    assert tally.draw(100) != tally.draw(100, seed=1)


def test_a_small_run_is_shown_whole() -> None:
    assert len(a_tally(37, judges=3, orders=2).draw(1000)) == 37
    assert PairTally().draw(10) == []
    assert a_tally(5, 0, 0).draw(0) == []


def test_equal_margins_are_not_all_small() -> None:
    tally = PairTally()
    pair = PreferencePair(
        id="x", prompt_id="p", chosen_id="b", rejected_id="a", margin=1.0, chosen_score=1, rejected_score=0
    )
    for i in range(200):
        tally.add(i, [pair], {}, [])
    assert tally.doubtful()[SMALL] == 20


@pytest.mark.parametrize("available", [[0, 0, 0], [5, 0, 0], [100, 100, 100], [1, 50, 2]])
def test_allotting(available: list[int]) -> None:
    given = allot(60, [0.5, 0.3, 0.2], available)
    assert sum(given) == min(60, sum(available))
    assert all(g <= n for g, n in zip(given, available, strict=True))


# the page


def test_the_command(tmp_path: Path) -> None:
    run = paired(tmp_path / "run")
    done = CliRunner().invoke(root, ["report", str(run), "--pairs", "3", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    page = (run / "report.html").read_bytes()
    assert (said["report"], said["bytes"], said["pairs"], said["offered"]) == (
        str(run / "report.html"), len(page), 3, 4,
    )  # fmt: skip
    assert said["headline"]["pairs"] == "4"
    assert len(Parts(page).data("pairs-data")) == 3
    other = tmp_path / "deep" / "page.html"
    done = CliRunner().invoke(root, ["report", str(run), "--out", str(other)])
    assert done.exit_code == 0
    assert other.read_bytes() == build_page(collect(run))[0]  # the same run gives the same bytes


def test_where_there_is_no_run() -> None:
    done = CliRunner().invoke(root, ["report", "/nowhere"])
    assert isinstance(done.exception, RunDirError)
    assert "no such directory" in str(done.exception)


def test_hostile_texts_stay_data(tmp_path: Path) -> None:
    page, parts = page_of(hostile(tmp_path / "</title><script>x"))
    tame_page, tame = page_of(paired(tmp_path / "tame"))
    # the same elements and attributes as a page of harmless texts: no candidate made one
    assert parts.tags == tame.tags
    assert [name for name, _ in parts.attributes] == [name for name, _ in tame.attributes]
    assert not [name for name, _ in parts.attributes if name.startswith("on")]
    code = [text for attrs, text in parts.scripts if "id" not in attrs]
    assert code == [text for attrs, text in tame.scripts if "id" not in attrs]
    for attrs, text in parts.scripts:
        if "id" in attrs:
            assert attrs["type"] == "application/json"
            assert not re.search("[<>&\u2028\u2029]", text)
    pairs = parts.data("pairs-data")
    assert {text for one in pairs for _, text, _ in one["prompt"]} == set(HOSTILE)  # unharmed, too
    assert {one["said"][0]["raw"][0] for one in pairs} == set(HOSTILE)
    assert b"\x00" not in page
    page.decode("utf-8")
    policy = next(v for v in (v for _, v in parts.attributes) if v and v.startswith("default-src 'none'"))
    assert "unsafe" not in policy
    assert tame_page != page


def test_no_text_can_end_the_element_around_it() -> None:
    value = {text: [text] for text in (*HOSTILE, "\ud800", "\udfff a")}
    made = embed(value)
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", made)
    assert json.loads(made) == value
    assert embed([math.nan, math.inf, 1 / 3]) == "[null,null,0.333333]"


def test_the_page_names_no_address(tmp_path: Path) -> None:
    """Namespaces and an issue that the chart library names are not fetched, since nothing may be."""
    page, parts = page_of(rounds(tmp_path))
    own = re.sub(r"\(\(\) => \{.*?\}\)\(\);</script>", "", page.decode(), count=1, flags=re.DOTALL)
    assert not re.findall(r"https?://[^\s\"']+|//[a-z0-9.]+\.[a-z]{2,}/", own)
    assert not {"link", "img", "iframe", "base", "object"} & set(parts.tags)
    assert not [value for name, value in parts.attributes if name == "src"]


def test_every_chart_is_a_specification_with_a_table(tmp_path: Path) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    report = collect(rounds(tmp_path))
    sections = overall(report) + [section for run in report.runs for section in of_run(run)]
    charts = [chart for section in sections for chart in section.charts]
    assert len(charts) > 15
    for chart in charts:
        compiled = vl_convert.vegalite_to_vega(chart.spec)
        assert compiled["marks"], chart.title
        assert chart.rows
        assert all(len(row) == len(chart.head) for row in chart.rows), chart.title
        assert '"url"' not in json.dumps(chart.spec)


def big_run(path: Path, prompts: int, each: int, text: str) -> Path:
    """Written as text, since records would take most of the test's time."""
    path.mkdir(parents=True)
    files = {name: open(path / f"{name}.jsonl", "w") for name in ("prompts", "completions")}  # noqa: SIM115
    (path / "judgments" / "j").mkdir(parents=True)
    (path / "pairs" / "all").mkdir(parents=True)
    judged = open(path / "judgments" / "j" / "judgments.jsonl", "w")  # noqa: SIM115
    pairs = open(path / "pairs" / "all" / "pairs.jsonl", "w")  # noqa: SIM115
    with files["prompts"] as asked, files["completions"] as answered, judged, pairs:
        for p in range(prompts):
            asked.write(
                f'{{"record":"prompt/1","id":"p{p}","messages":[{{"role":"user","content":"{p} {text}"}}]}}\n'
            )
            for i in range(each):
                answered.write(
                    f'{{"record":"completion/1","id":"p{p}c{i}","prompt_id":"p{p}","index":{i},'
                    f'"text":"{i} {p} {text}"}}\n'
                )
                judged.write(
                    f'{{"record":"judgment/2","id":"j{p}c{i}","prompt_id":"p{p}","completion_ids":["p{p}c{i}"],'
                    f'"method":"m","aspect":"a","judge":"j","weights":"w","template":"t","parser":"1",'
                    f'"raw":"{text}","score":{(p * 31 + i * 17) % 1009 / 100}}}\n'
                )
            pairs.write(
                f'{{"record":"pair/1","id":"q{p}","prompt_id":"p{p}","chosen_id":"p{p}c0","rejected_id":"p{p}c1",'
                f'"margin":{1 + p % 97},"chosen_score":2,"rejected_score":1}}\n'
            )
    return path


@pytest.mark.slow
def test_a_hundred_thousand_rows_stay_under_the_limit(tmp_path: Path) -> None:
    run = big_run(tmp_path / "run", prompts=25_000, each=4, text="<&> " * 60)
    report = collect(run)
    page, summary = build_page(report)
    assert report.runs[0].texts is not None
    assert report.runs[0].texts.completions == 100_000
    assert report.runs[0].passes[0].judgments == 100_000
    assert summary["pairs"] == 1000
    assert len(page) < LIMIT_BYTES


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    peaks = []
    for name, text in (("short", "x"), ("long", "x" * 4000)):
        run = big_run(tmp_path / name, prompts=1500, each=2, text=text)
        collect(run, 0)  # what is loaded once
        tracemalloc.start()
        collect(run, 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 200_000  # the texts of the long one are 30 MB


@pytest.mark.slow
def test_what_does_not_fit_is_cut_then_left_out(tmp_path: Path) -> None:
    run = big_run(tmp_path / "run", prompts=60, each=2, text="<" * 9000)
    whole, summary = build_page(collect(run))
    assert summary["pairs"] == 60
    assert len(whole) < LIMIT_BYTES
    bare = len(build_page(Report("t", "p", collect(run).runs))[0])
    for room, pairs, chars in ((2_000_000, 60, 1000), (400_000, 60, 200), (60_000, 7, 200), (200, 0, 8000)):
        page, summary = build_page(collect(run), bare + 4096 + room)
        assert len(page) <= bare + 4096 + room
        assert (summary["pairs"], summary["text_chars"]) == (pairs, chars), room
        assert f"{pairs} of 60" in Parts(page).data("report-data")["pairs_lead"]


def test_a_cut_text_says_how_long_it_was(tmp_path: Path) -> None:
    _, parts = page_of(big_run(tmp_path / "run", prompts=2, each=2, text="y" * 30_000))
    one = parts.data("pairs-data")[0]
    assert len(one["chosen"]["text"][0]) == 8000
    assert (one["chosen"]["text"][1], one["chosen"]["chars"]) == (30_004, 30_004)
    assert one["prompt"][0][2] == 30_002
    assert one["said"][0]["raw"][1] == 30_000


def test_what_a_round_lacks_of_pairs_goes_to_the_others(tmp_path: Path) -> None:
    home = rounds(tmp_path)
    paired(home / "rounds" / "03", prompts=40)
    for wanted, each in (
        (30, {1: 5, 2: 6, 3: 19}),
        (9, {1: 3, 2: 3, 3: 3}),
        (0, {}),
        (999, {1: 5, 2: 6, 3: 40}),
    ):
        found = collect(home, wanted)
        assert Counter(one.label for one in found.examples) == {
            f"round {n}": count for n, count in each.items()
        }
        assert found.offered == {"pair": 51}


def test_what_stands_in_for_pairs_is_not_called_a_pair(tmp_path: Path) -> None:
    home = rounds(tmp_path)
    build(home / "rounds" / "03", plain(20, 3))
    report = collect(home, 15)
    assert report.offered == {"pair": 11, "best and worst": 20}
    lead = Parts(build_page(report)[0]).data("report-data")["pairs_lead"]
    assert lead.startswith(
        "10 of 11 pairs and 5 of 20 prompts (there are no pairs yet: the best and the worst "
    )


def test_the_gravest_doubts_of_all_rounds_come_first(tmp_path: Path) -> None:
    doubts = [one.doubts[:1] for one in collect(rounds(tmp_path)).examples]
    assert doubts[:4] == [(JUDGES,), (JUDGES,), (ORDERS,), (ORDERS,)]
    assert doubts[-1] == ()


def test_every_gate_of_a_figure_is_drawn_with_its_action(tmp_path: Path) -> None:
    def gate(tripped: bool, action: str, **limits: float) -> dict[str, Any]:
        both = {"min": None, "max": None} | limits
        return {
            "figure": "length_mean",
            "value": 32.0,
            "action": action,
            "tripped": tripped,
            "what": "",
        } | both

    gates = [gate(True, "warn", max=20.0), gate(True, "roll_back", max=30.0), gate(False, "stop", min=9.0)]
    lines = [figures(1, None, gates=[gate(False, "warn", max=1.0)]), figures(2, None, gates=gates)]
    (tmp_path / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = next(s for s in overall(collect(tmp_path)) if s.nav == "Figures")
    chart = next(c for c in section.charts if c.title == "Mean length, tokens")
    assert chart.caption == (
        "Dashed: at most 20, else warn, at most 30, else roll back, at least 9, else stop; "
        "round 2 tripped it: warn, roll back."
    )
    rules = [layer for layer in chart.spec["layer"] if layer["mark"].get("strokeDash")]
    assert [rule["data"]["values"][0]["value"] for rule in rules] == [20.0, 30.0, 9.0]
    texts = [layer["data"]["values"] for layer in chart.spec["layer"] if layer["mark"]["type"] == "text"]
    assert [[one["action"] for one in values] for values in texts] == [
        ["warn"], ["roll back"], ["stop"], ["warn, roll back"],
    ]  # fmt: skip


def test_a_gate_without_its_figure_is_not_passed(tmp_path: Path) -> None:
    gate = {"figure": "kl_first", "value": None, "min": None, "max": 1.0, "action": "warn", "tripped": False,
            "what": "kl first was not measured"}  # fmt: skip
    lines = [figures(1, None, gates=[gate, gate | {"figure": "length_mean", "value": 0.5}])]
    (tmp_path / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sections = {section.nav: section for section in overall(collect(tmp_path))}
    assert [row[4] for row in sections["Gates"].tables[1].rows] == ["not measured", "passed"]
    cards = {card.label: card for card in sections["Headline"].cards}
    assert (cards["gates tripped"].value, cards["gates tripped"].note) == ("0", "none; not measured: 1")


def test_titles_name_the_unit_that_the_figure_has() -> None:
    from rounds.gates import FIGURES as ALL
    from rounds.report.overview import FIGURES as TITLES

    assert set(TITLES) == set(ALL)
    for name, title in TITLES.items():
        assert ("%" in title) is name.startswith("win_rate"), name
        assert "word" not in title, "k-grams are of tokens"


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2, 3])
def test_details_of_any_size_end_under_the_limit(runs: int) -> None:
    """The heaviest section gives first, so that the others are whole."""
    points = tuple((i, i / 7) for i in range(MOST_POINTS))
    curves = tuple(Curve(f"größe {i}", points) for i in range(450 // runs))
    texts = Texts(3, 9, 0, 0, 9, histogram(array("d", [1.0, 2.0])), None, {})
    many = tuple(RunReport(f"round {i}", texts, curves=curves) for i in range(runs))
    page, summary = build_page(Report("t", "p", many))
    assert len(page) < LIMIT_BYTES
    assert summary["runs"] == runs
    for scope in Parts(page).data("report-data")["scopes"]:
        completions, training = scope["sections"]
        assert completions["charts"] and completions["tables"] and not completions["notes"]
        left_out = len(curves) - len(training["charts"])
        assert 0 < left_out < len(curves)
        assert training["notes"] == [f"To keep the page small {left_out:,} charts are left out here."]


def test_figures_of_very_many_rounds_end_under_the_limit() -> None:
    gates = tuple({"figure": f"f{i}", "value": 1.0, "max": 2.0, "action": "warn", "tripped": i == 0,
                   "what": f"a gate says something of figure {i}"} for i in range(20))  # fmt: skip
    values = {f"f{i}": {"value": 1.0 + i / 3, "interval": [0.0, 9.0], "n": 256} for i in range(27)}
    rounds = tuple(
        RoundFigures(n, "m", None, 1e-6, {"train": 1.0}, values, gates, "go_on", n) for n in range(700)
    )
    page, _ = build_page(Report("t", "p", (), rounds))
    assert len(page) < LIMIT_BYTES
    data = Parts(page).data("report-data")
    head, *others = data["overall"]
    assert head["cards"] and others[-1]["tables"][1]["rows"][0][4] == "✕ warn"
    assert any("left out here" in note for section in others for note in section["notes"])


def test_parts_without_end_are_left_out() -> None:
    texts = Texts(3, 9, 0, 0, 9, None, None, {})
    passes = tuple(PassReport(f"{i} " + "j" * 9000, (), (), 1, 0, 0, {"silent": 1}, {}, None, None, (), True)
                   for i in range(600))  # fmt: skip
    page, _ = build_page(Report("t", "p", (RunReport("r", texts, passes),)))
    assert len(page) < LIMIT_BYTES
    (head,) = Parts(page).data("report-data")["overall"]
    assert re.fullmatch(
        r"[\d,]+ parts of the details are left out, to keep the page small\.", head["notes"][0]
    )


@pytest.mark.slow
def test_very_many_rounds_keep_their_figures(tmp_path: Path) -> None:
    report = collect(rounds(tmp_path))
    many = [dataclasses.replace(report.runs[0], label=f"round {i}") for i in range(400)]
    page, summary = build_page(dataclasses.replace(report, runs=tuple(many)))
    assert len(page) < LIMIT_BYTES
    assert 2 <= summary["runs"] < 400
    data = Parts(page).data("report-data")
    assert data["scopes"][-1]["label"] == "round 399"
    assert any("of 400 rounds" in note for section in data["overall"] for note in section["notes"])
