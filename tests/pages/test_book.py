"""The whole book as a reader meets it: every page in Chromium, without network, on a wide and on a
narrow window, in light and in dark.

Needs the extra `browser`, which `make test-all` installs, and a Chromium; the variable
TRANSFUSION_BOOK names a book that is already built.
"""

import io
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import PIL.Image
import pytest
from transfusion.experiments import claims, plan
from transfusion.pages import build
from transfusion.studies import params, render

from ..conftest import transfusion

pytestmark = pytest.mark.slow
WIDTHS, MODES = (1280, 390), ("light", "dark")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# What a page says of itself, in its own script.
FACTS = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const text = document.querySelector("article.bd-article")?.cloneNode(true);
  text?.querySelectorAll("table, pre, script, style, .math, .provenance, .figure-save, " +
    ".headerlink, .cell_input, details.hide").forEach((one) => one.remove());
  return {
    ids: all("[id]").map((one) => one.id),
    links: all("a[href]").map((one) => one.href),
    images: all("article img").map((one) => [decodeURI(one.src), one.alt, one.naturalWidth]),
    verdicts: all(".verdict b").map((one) => one.textContent),
    again: all(".again code").map((one) => one.textContent),
    claims: all(".claims tbody tr").map((row) => [row.querySelector("th").textContent,
      [...row.querySelectorAll("a")].map((one) => one.href)]),
    words: text ? text.textContent.split(/\\s+/).length : 0,
  };
}"""
# A picture or widget beyond the right edge of the page's text, a page beyond its window, tables and
# code that have to be scrolled, and plots whose labels leave no room for the marks.
CUT = """() => {
  const edge = document.querySelector("article.bd-article")?.getBoundingClientRect().right;
  const within = (root) => [...root.querySelectorAll("*")].flatMap((one) =>
    [one, ...(one.shadowRoot ? within(one.shadowRoot) : [])]);
  const seen = [...document.querySelectorAll("figure")].flatMap(within)
    .filter((one) => one.matches("img, select, .bk-Figure, .noUi-target"));
  const wide = seen.filter((one) => one.getBoundingClientRect().right > edge + 1);
  const boxes = ".output > .table-wrap, .pst-scrollable-table-container, .highlight pre";
  const long = [...document.querySelectorAll(boxes)]
    .filter((one) => !one.closest("details") && one.scrollWidth > one.clientWidth + 1);
  const narrow = (window.Bokeh?.index?.query((view) => view.model.type === "Figure") ?? [])
    .filter((plot) => plot.frame.bbox.width < 0.4 * plot.bbox.width);
  const page = document.documentElement;
  return [
    ...[...wide, ...long].map((one) => one.className || one.tagName + one.textContent.slice(0, 40)),
    ...narrow.map((plot) => `${plot.frame.bbox.width} px for the marks`),
    ...(page.scrollWidth > window.innerWidth ? [`page of ${page.scrollWidth} px`] : []),
  ];
}"""
TO_COME = 100  # words, fewer than which has only a page whose trainings are still to come
DRAWN = """() => [...document.querySelectorAll("figure:has([data-root-id])")]
  .every((figure) => figure.querySelector(".figure-save"))"""
AXE = """async (rules) => {
  const found = await axe.run({runOnly: rules, preload: false});
  return found.violations.flatMap((rule) =>
    rule.nodes.map((node) => `${rule.id}: ${node.target.join(" ")}`));
}"""


@pytest.fixture(scope="module")
def html(request, no_torch):
    """The folder of the whole book, the smallest study on its main pages."""
    if "TRANSFUSION_BOOK" in os.environ:
        return Path(os.environ["TRANSFUSION_BOOK"]).resolve()
    smoke = request.getfixturevalue("smoke")
    found = transfusion(smoke | no_torch, "book", "--study", "smoke")
    assert found.returncode == 0, found.stderr
    return render.BUILD / "html"


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-all installs it")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium here: install one, on Debian `apt install chromium`")
    with playwright.sync_playwright() as started:
        closed = ["--host-resolver-rules=MAP * ~NOTFOUND"]
        browser = started.chromium.launch(executable_path=found, args=closed)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(html, chromium):
    """(page, width): what was found there, and by mode."""
    names = [path.relative_to(html).as_posix() for path in sorted(html.rglob("*.html"))]
    names = [name for name in names if not name.startswith(("_", "genindex", "search"))]
    return {(name, width): read(chromium, html / name, width) for width in WIDTHS for name in names}


def read(browser, path, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, faults = context.new_page(), []
    page.on("console", lambda said: said.type == "error" and faults.append(said.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    page.on("request", lambda r: r.url.startswith("http") and faults.append(f"outside: {r.url}"))
    page.goto(path.as_uri())
    page.wait_for_function(DRAWN)
    found = page.evaluate(FACTS) | {"modes": {}, "still": []}
    for mode in MODES:
        switch(page, mode)
        found["modes"][mode] = {"cut": page.evaluate(CUT), "blank": blank(page), "axe": axe(page)}
    found["unnamed"] = [at for at, plot in plots(page) if not named(plot)]
    if width == max(WIDTHS):
        found["still"] = [at for at, figure in enumerate(figures(page)) if still(figure)]
    context.close()
    return found | {"faults": faults}


def switch(page, mode):
    """As a reader does, by the button."""
    for _ in range(3):
        if page.evaluate("document.documentElement.dataset.theme") == mode:
            break
        page.evaluate("document.querySelector('.theme-switch-button').click()")
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    page.evaluate("document.getAnimations().forEach((one) => one.finish())")  # colours that fade


def axe(page):
    import axe_playwright_python

    page.add_script_tag(path=Path(axe_playwright_python.__file__).with_name("axe.min.js"))
    return page.evaluate(AXE, RULES)


def figures(page):
    return page.locator("figure:has([data-root-id])").all()


def plots(page):
    return [(i, figure.locator(".bk-Figure").first) for i, figure in enumerate(figures(page))]


def named(plot):
    return plot.get_attribute("role") == "img" and len(plot.get_attribute("aria-label") or "") > 40


def picture(plot):
    return np.asarray(PIL.Image.open(io.BytesIO(plot.screenshot())).convert("RGB"))


def blank(page):
    """Plots without marks: fewer than three colours, or narrower than a finger is long."""
    shown = [(at, picture(plot)) for at, plot in plots(page)]
    return [
        at
        for at, pixels in shown
        if len(np.unique(pixels.reshape(-1, 3), axis=0)) < 3 or pixels.shape[1] < 200
    ]


def still(figure):
    """Whether some widget of a figure changes nothing, whatever it is set to."""
    plot = figure.locator(".bk-Figure").first
    chosen = [(select, choose) for select in figure.locator("select").all()]
    chosen += [(handle, slide) for handle in figure.locator(".noUi-handle").all()]
    return not all(act(widget, plot) for widget, act in chosen)


def choose(select, plot):
    """Whether another choice draws another picture; the first one is restored."""
    before, first = picture(plot), select.input_value()
    others = [one.get_attribute("value") for one in select.locator("option").all()]
    changed = False
    for other in [one for one in others if one != first]:
        select.select_option(other)
        changed = changed or becomes_another(plot, before)
    select.select_option(first)
    return changed


def slide(handle, plot):
    before = picture(plot)
    handle.press("ArrowRight")
    return becomes_another(plot, before)


def becomes_another(plot, before):
    for _ in range(20):
        now = picture(plot)
        if now.shape != before.shape or (now != before).any():
            return True
        plot.page.wait_for_timeout(50)
    return False


def by_mode(pages, fact):
    return {
        (*key, mode): found[fact]
        for key, page in pages.items()
        for mode, found in page["modes"].items()
        if found[fact]
    }


def test_no_request_fails_and_none_goes_out(pages):
    assert len(pages) > 60
    assert {key: page["faults"] for key, page in pages.items() if page["faults"]} == {}


def test_nothing_is_cut_off(pages):
    assert by_mode(pages, "cut") == {}


def test_every_figure_is_drawn(pages):
    assert by_mode(pages, "blank") == {}


def test_what_is_shown_has_a_name_for_those_who_do_not_see_it(pages):
    assert {key: page["unnamed"] for key, page in pages.items() if page["unnamed"]} == {}
    for key, page in pages.items():
        for source, alt, width in page["images"]:
            assert width and len(alt) > 10 and Path(source).stem not in alt, (key, source)


def test_contrast_and_the_rest_of_wcag_aa(pages):
    assert by_mode(pages, "axe") == {}


def test_every_widget_changes_the_picture(pages):
    assert {key: page["still"] for key, page in pages.items() if page["still"]} == {}


def test_every_link_within_the_book_leads_somewhere(pages, html):
    ids = {html / name: set(page["ids"]) for (name, _), page in pages.items()}
    for key, page in pages.items():
        for link in page["links"]:
            address, anchor = urldefrag(unquote(link))
            path = Path(address.removeprefix("file://"))
            if address.startswith("file:"):
                assert path.exists(), (key, link)
                assert not anchor or anchor in ids.get(path, {anchor}), (key, link)


def test_every_answer_and_its_command_are_two_clicks_away(pages, html):
    """One on a verdict of the front page, where the effect stands too; none further, as the chapter
    says both again: claim, verdict, interval, and how to compute it."""
    told = pages["intro.html", 1280]["claims"]
    assert [says for says, _ in told] == [claim.says for claim in claims.CLAIMS.values()]
    asked = {chapter for study in ("cells", "chest") for chapter in params.chapters(study)}
    nobody = {c.says for n, c in claims.CLAIMS.items() if n == "findings" or c.chapter not in asked}
    for says, links in told:
        assert links or says in nobody, says
        for link in links:
            page = pages[Path(link).relative_to(html.as_uri()).as_posix(), 1280]
            if page["words"] < TO_COME:
                continue
            assert f"{says}." in page["verdicts"], (says, link)
            assert re.fullmatch(r"transfusion run \w+ --chapter \w+", page["again"][0]), link


def test_the_search_finds_mean_var(chromium, html):
    page = chromium.new_page()
    page.goto((html / "search.html").as_uri() + "?q=Mean+Var")
    page.wait_for_selector("#search-results li")
    links = [one.get_attribute("href") for one in page.locator("#search-results a").all()]
    assert any("weight_scaling" in link for link in links), links
    page.close()


def test_a_chapter_is_as_long_as_one_reads(pages):
    words = {
        name: page["words"]
        for (name, width), page in pages.items()
        if Path(name).stem in plan.CHAPTERS and width == 1280 and page["words"] >= TO_COME
    }
    assert len(words) >= sum(name in plan.CHAPTERS for name in build._pages("smoke"))
    assert {name: count for name, count in words.items() if not 300 <= count <= 700} == {}


def test_no_page_is_heavy(pages, html):
    for (name, _), page in pages.items():
        pictures = [Path(unquote(source).removeprefix("file://")) for source, *_ in page["images"]]
        assert sum(path.stat().st_size for path in [html / name, *pictures]) < 1_500_000, name


def test_a_figure_is_saved_as_picture_and_as_numbers(chromium, html):
    page = chromium.new_page()
    page.goto((html / "performance.html").as_uri())
    page.wait_for_function(DRAWN)
    kinds = {}
    for kind in ("PNG", "SVG", "CSV"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind).first.click()
        assert waiting.value.suggested_filename == f"fig-performance.{kind.lower()}"
        kinds[kind] = waiting.value.path().read_bytes()
    assert kinds["PNG"][:4] == b"\x89PNG" and kinds["SVG"][:4] == b"<svg"
    lines = kinds["CSV"].decode().splitlines()
    assert lines[0] == '"series","AUC (%)","row","model","fold","seed"'
    assert sum(line.startswith('"transfer"') for line in lines) == 2 * 2  # networks, seeds
    page.close()
