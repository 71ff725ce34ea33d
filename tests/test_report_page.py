"""The report's page in a browser: what a person clicks and types, and that nothing of a run ever runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, Page, browse
from report_runs import HOSTILE, hostile, rounds

from rounds.report.collect import collect
from rounds.report.page import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)"),
]

WHERE = "document.querySelector('#detail .where').textContent"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a run, made once."""
    folder = tmp_path_factory.mktemp("pages")

    def page(name: str) -> Path:
        file = folder / f"{name}.html"
        if not file.exists():
            run = {"rounds": rounds, "hostile": hostile}[name](folder / name)
            file.write_bytes(build(collect(run))[0])
        return file

    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browse() as running:
        yield running


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    with browser.tab() as page:
        page.size(1280, 900)
        page.prefer("light")
        yield page
        assert page.errors == []
        assert {url.split(":")[0] for url in page.requests} <= {"file"}, page.requests
        assert len(page.requests) == 1


def scroll_through(tab: Page) -> None:
    """Down the whole page, so that every chart is drawn."""
    for fold in range(tab.js("document.querySelectorAll('details.more').length")):
        tab.js(f"document.querySelectorAll('details.more')[{fold}].open = true")
    height = tab.js("document.documentElement.scrollHeight")
    for y in range(0, int(height) + 800, 400):
        tab.js(f"window.scrollTo({{top: {y}, behavior: 'instant'}})")
        tab.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    tab.until("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))")


def test_every_chart_is_drawn_and_has_its_table(tab: Page, files: Callable[[str], Path]) -> None:
    tab.open(files("rounds"))
    scroll_through(tab)
    assert tab.js("document.querySelectorAll('.plot svg').length") > 10
    assert not tab.js("document.querySelector('main').innerText.includes('could not be drawn')")
    tab.click(".chart details summary")
    tab.until("document.querySelector('.chart details table tbody tr') !== null")
    assert tab.js("[...document.querySelectorAll('.plot')].every((plot) => plot.getAttribute('aria-label'))")
    # bars and cells have a size: a chart of wrong marks draws lines of no height
    tall = "Math.max(...[...plot.querySelectorAll('.mark-rect path')].map((bar) => bar.getBBox().height))"
    bars = "[...document.querySelectorAll('.plot')].filter((plot) => plot.ariaLabel.includes('; mean '))"
    heights = tab.js(f"{bars}.map((plot) => {tall})")
    assert len(heights) > 4
    assert min(heights) > 100


def test_filters_and_search(tab: Page, files: Callable[[str], Path]) -> None:
    tab.open(files("rounds"))
    assert tab.js(COUNT) == "11 of 11 shown"  # five prompts in the first round and six in the second

    def choose(name: str, value: str) -> str:
        tab.js(
            f"(() => {{ const one = document.getElementById('{name}'); one.value = '{value}'; "
            "one.dispatchEvent(new Event('change')); })()"
        )
        said: str = tab.js(COUNT)
        return said

    assert choose("by-round", "round 1") == "5 of 11 shown"
    assert choose("by-doubt", "judges disagree") == "1 of 11 shown"
    assert "p1" in tab.js("document.querySelector('#detail .turn .text').textContent")
    assert choose("by-round", "") == "2 of 11 shown"
    assert choose("by-doubt", "orders disagree") == "2 of 11 shown"
    assert choose("by-length", "shorter") == "0 of 11 shown"
    assert "No pair is left" in tab.js("document.getElementById('detail').textContent")
    tab.click("#clear")
    tab.until(f"{COUNT} === '11 of 11 shown'")
    tab.press("/")
    assert tab.js("document.activeElement.id") == "search"
    tab.type("P4 answer")
    tab.until(f"{COUNT} === '2 of 11 shown'")
    tab.press("j")  # is typed, not obeyed
    assert tab.js(WHERE).startswith("1 of 2")
    tab.press("Escape")
    assert tab.js("document.activeElement.id") != "search"


def test_next_and_previous(tab: Page, files: Callable[[str], Path]) -> None:
    tab.open(files("rounds"))
    assert tab.js(WHERE).startswith("1 of 11")
    tab.press("j")
    tab.press("ArrowRight")
    assert tab.js(WHERE).startswith("3 of 11")
    assert tab.js("[...document.querySelectorAll('#list button')].findIndex((one) => one.ariaCurrent)") == 2
    tab.press("k")
    assert tab.js(WHERE).startswith("2 of 11")
    tab.press("ArrowLeft")
    tab.press("ArrowLeft")
    assert tab.js(WHERE).startswith("1 of 11")
    tab.click("#detail .go button:last-child")
    assert tab.js(WHERE).startswith("2 of 11")
    tab.click("#list li:nth-child(7) button")
    assert tab.js(WHERE).startswith("7 of 11")
    tab.press("ArrowDown")  # in the list
    assert tab.js(WHERE).startswith("8 of 11")


def test_differences_are_marked(tab: Page, files: Callable[[str], Path]) -> None:
    tab.open(files("rounds"))
    sides = {
        which: tab.js(f"[...document.querySelectorAll('.side.{which} mark')].map((one) => one.textContent)")
        for which in ("chosen", "rejected")
    }
    # "answer 0 3 word word word " against "answer 0 0 "
    assert "".join(sides["rejected"]).split() == ["0"]
    assert "".join(sides["chosen"]).split() == ["3", "word", "word", "word"]
    tab.press("d")
    assert tab.js("document.querySelectorAll('mark').length") == 0
    tab.click("#differences")
    assert tab.js("document.querySelectorAll('mark').length") > 0


def test_the_theme_follows_the_system_and_the_switch(tab: Page, files: Callable[[str], Path]) -> None:
    shown = "getComputedStyle(document.body).backgroundColor"
    tab.open(files("rounds"))
    light = tab.js(shown)
    tab.prefer("dark")
    tab.until(f"{shown} !== '{light}'")
    dark = tab.js(shown)
    tab.click("#theme")
    assert tab.js(shown) == light
    assert tab.js("document.getElementById('theme').textContent") == "Theme: light"
    tab.press("t")
    assert tab.js(shown) == dark
    scroll_through(tab)
    color = tab.js("document.querySelector('.plot svg .role-axis-label text').getAttribute('fill')")
    assert color == tab.js("getComputedStyle(document.documentElement).getPropertyValue('--muted').trim()")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(tab: Page, files: Callable[[str], Path], theme: str) -> None:
    """WCAG 2 AA: 4.5 to 1, of the ratio of relative luminances."""
    tab.prefer(theme)
    tab.open(files("rounds"))
    ratio = """(front, back) => {
      const light = (name) => {
        const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim().slice(1);
        const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
        const [r, g, b] = parts.map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const [one, other] = [light(front), light(back)].sort((a, b) => b - a);
      return (one + 0.05) / (other + 0.05);
    }"""
    on = "text/card text/bg muted/card muted/bg chosen/card rejected/card bad/card".split()
    on += "text/chosen-bg text/rejected-bg text/bad-bg".split()
    found = {pair: tab.js(f"({ratio})(...'{pair}'.split('/'))") for pair in on}
    assert not {pair: value for pair, value in found.items() if value < 4.5}


@pytest.mark.parametrize("name", ["rounds", "hostile"])
def test_a_phone_scrolls_one_way(tab: Page, files: Callable[[str], Path], name: str) -> None:
    tab.size(360, 740, phone=True)
    tab.open(files(name))
    scroll_through(tab)
    assert tab.js("document.documentElement.scrollWidth") <= 360
    tab.js("window.scrollTo({left: 50, behavior: 'instant'})")
    assert tab.js("window.scrollX") == 0


def test_on_a_phone_the_list_shows_the_pair_that_is_open(tab: Page, files: Callable[[str], Path]) -> None:
    tab.size(360, 740, phone=True)
    tab.open(files("rounds"))
    assert tab.js("document.querySelector('#list').scrollTop") == 0
    for _ in range(5):
        tab.press("j")
    inside = (
        "(() => { const list = document.querySelector('#list').getBoundingClientRect(), "
        "one = document.querySelector('#list [aria-current]').getBoundingClientRect(); "
        "return one.top >= list.top - 1 && one.bottom <= list.bottom + 1; })()"
    )
    assert tab.js(WHERE).startswith("6 of 11") and tab.js(inside)


def test_nothing_of_a_run_runs(tab: Page, files: Callable[[str], Path]) -> None:
    tab.open(files("hostile"))
    scroll_through(tab)
    shown = set()
    for _ in range(len(HOSTILE)):
        shown.add(tab.js("document.querySelector('#detail .turn .text').textContent"))
        for fold in range(tab.js("document.querySelectorAll('#detail details').length")):
            tab.js(f"document.querySelectorAll('#detail details')[{fold}].open = true")
        tab.press("j")
    assert tab.js("window.pwned") is None
    made = "main img, main iframe, main svg a, main script, main style"
    assert tab.js(f"document.querySelectorAll('{made}').length") == 0
    assert "<script>window.pwned = 1</script>" in shown  # as text
    assert "U+202EevilU+202C U+2066isolate" in shown  # no character that turns the text is left to do so
    assert "nul U+0000 bell U+0007" in shown
    marks = tab.js("document.body.innerText.match(/[\\u202a-\\u202e\\u2066-\\u2069\\0]/g)")
    assert marks is None or "pairs" not in str(marks)


def test_the_policy_would_stop_a_script(browser: Browser, files: Callable[[str], Path]) -> None:
    """The second wall: where a text did become markup, the page's policy would still hold."""
    with browser.tab() as tab:
        tab.open(files("rounds"))
        tab.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 1\">')")
        tab.js("(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 2'; "
               "document.body.append(s); })()")  # fmt: skip
        stopped = "(() => { try { new Function('return 1')(); return false; } catch { return true; } })()"
        assert tab.js(stopped)
        assert tab.js("window.pwned") is None
        assert tab.errors
        assert [url for url in tab.requests if not url.startswith("file:")] == []
