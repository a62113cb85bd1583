"""The page in a browser: what is seen first, links to cells, the keyboard, and the printed page."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import matplotlib.image
import numpy as np
import pytest

from speechsim_jax.figures.style import SCORES, colour_limits
from speechsim_jax.report import write_report
from speechsim_jax.results.result import SimilarityResult
from tests.support.hostile import NAMES, SENTINEL, hostile_result
from tests.support.report_results import SMALL, Shape, random_result

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.browser import (
    DESKTOP,
    Browser,
    needs_browser,
)

pytestmark = [needs_browser, pytest.mark.slow]

# Twelve base models: 156 representations.
TWELVE = {f"org/model-{k}": Shape(13, 64, 0) for k in range(12)}


@pytest.fixture(params=["desktop", "phone"])
def unread(request: pytest.FixtureRequest, report: Path) -> Iterator[Browser]:
    """A browser with the page open, in which packed data can never be read."""
    browser: Browser = request.getfixturevalue(request.param)
    never = "window.DecompressionStream = class { constructor() { throw Error('not read'); } }"
    added = browser.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": never}
    )
    try:
        browser.driver.get(report.resolve().as_uri())
        yield browser
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        browser.console_messages()


def test_map_is_seen_without_the_data(unread: Browser, result: SimilarityResult) -> None:
    """Its cells have the colours of the scores."""
    unread.wait(lambda: unread.element("#failure").is_displayed())
    unread.run("document.querySelector('#still').scrollIntoView({block: 'center'})")
    assert not unread.run("return document.body.dataset.ready ?? null")
    assert unread.run("return document.documentElement.scrollWidth <= innerWidth")
    picture = unread.element("#still").screenshot_as_png
    pixels = matplotlib.image.imread(io.BytesIO(picture))[:, :, :3]
    values = result.matrix("maxcorr").values
    low, high = colour_limits(values, (0, 1))
    scale = pixels.shape[1] / 722
    cell = 580 * scale / len(values)
    for row, column in ((0, 0), (1, 9), (12, 3), (7, 7), (5, 11)):
        place = [int(8 * scale + cell * (row + 0.4)), int(68 * scale + cell * (column + 0.4))]
        expected = SCORES((values[row, column] - low) / (high - low))[:3]
        np.testing.assert_allclose(pixels[tuple(place)], expected, atol=0.03)
    assert "maxcorr" in unread.element("#map figcaption").text
    label = unread.element("#still").get_attribute("aria-label")
    assert label and "maxcorr" in label


@pytest.mark.parametrize(("frames", "share"), [(None, 0.75), (200, 0.85)])
@pytest.mark.parametrize("models", [SMALL, TWELVE])
def test_map_begins_on_the_first_screen(
    desktop: Browser,
    tmp_path: Path,
    models: dict[str, Shape],
    frames: int | None,
    share: float,
) -> None:
    """Within this share of it; few frames bring a warning, which takes a tenth."""
    result = random_result(models)
    if frames is not None:
        result = result.with_attributes(frames=frames, rows=frames)
    assert bool(result.few_frames_warning()) == (frames is not None)
    desktop.open(write_report(result, tmp_path / "report.html"))
    places = "return ['#summary', '#map'].map((one) => document.querySelector(one)"
    summary, figure = desktop.run(places + ".getBoundingClientRect().top)")
    assert 0 < summary < figure < share * desktop.run("return innerHeight")


def test_what_is_folded_of_the_summary_is_opened_by_key(desktop: Browser, report: Path) -> None:
    desktop.open(report)
    more = desktop.element("#summary summary")
    hidden = desktop.element("#summary li")
    assert re.fullmatch(r"[1-9]\d* more", more.text) and not hidden.is_displayed()
    more.send_keys(Keys.ENTER)
    assert hidden.is_displayed() and hidden.text
    count = len(desktop.driver.find_elements(By.CSS_SELECTOR, "#summary details[open] li"))
    assert more.text == f"{count} more"


@pytest.mark.parametrize("models", [SMALL, TWELVE])
def test_map_is_painted_before_the_data_is_read(
    desktop: Browser, tmp_path: Path, models: dict[str, Shape]
) -> None:
    path = write_report(random_result(models), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    # The browser's clock of when this image is first on the screen.
    path.write_text(page.replace("<image ", '<image elementtiming="map" ', 1), encoding="utf-8")
    observed = """new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) window.mapPainted ??= entry.renderTime;
    }).observe({type: "element", buffered: true});"""
    added = desktop.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": observed}
    )
    try:
        desktop.driver.set_window_size(DESKTOP[0], 1800)
        desktop.open(path)
        painted, read = desktop.run(
            "return [window.mapPainted, performance.getEntriesByName('data-read')[0].startTime]"
        )
    finally:
        desktop.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        desktop.driver.set_window_size(*DESKTOP)
    assert 0 < painted < read
    assert desktop.run("return document.getElementById('still')") is None
    assert desktop.console_messages() == []


def test_map_takes_the_place_of_its_picture(desktop: Browser, report: Path) -> None:
    """Nothing below moves much when the scripts draw the map: same sides, same place."""
    page = report.read_text(encoding="utf-8")
    still = report.with_name("still.html")
    still.write_text(page.replace("start().catch", "(async () => {})().catch"), encoding="utf-8")
    desktop.driver.get(still.resolve().as_uri())
    box = "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
    box += "return [box.left, box.width, box.height]"
    before = desktop.run(box, "#still")
    desktop.open(report)
    after = desktop.run(box, "#map .main-svg")
    np.testing.assert_allclose(before, after, atol=25)


def _link(x: str, y: str) -> str:
    return "#" + ",".join(quote(label, safe="/") for label in (x, y))


def _pair(browser: Browser) -> tuple[str, str]:
    """The labels of the selected cell."""
    return tuple(browser.run("return [state.x, state.y].map(nameOf)"))


def test_a_link_opens_a_cell(desktop: Browser, report: Path, result: SimilarityResult) -> None:
    x, y = (str(result.representations[k]) for k in (2, 11))
    for link in (_link(x, y), f"#{x},{y}"):
        desktop.driver.get("about:blank")
        desktop.driver.get(report.resolve().as_uri() + link)
        desktop.wait(lambda: desktop.run("return document.body.dataset.ready"))
        assert _pair(desktop) == (x, y)
        value = float(result.matrix("maxcorr").loc[x, y])
        assert desktop.element("#reading").text.endswith(f"{value:.4f}")
        top = desktop.run("return document.querySelector('#reading').getBoundingClientRect().top")
        assert 0 < top < DESKTOP[1]
        outline = desktop.run("return document.querySelector('#map .plot').layout.shapes.at(-1)")
        assert (outline["x0"], outline["y0"]) == (10.5, 1.5)
    assert desktop.console_messages() == []


def test_selected_cells_are_in_the_address_and_can_be_gone_back_to(
    desktop: Browser, report: Path, result: SimilarityResult
) -> None:
    desktop.driver.get("about:blank")
    desktop.open(report)
    labels = [str(name) for name in result.representations]
    first = _pair(desktop)
    assert "#" not in desktop.driver.current_url  # nothing is selected yet

    desktop.over("#map", 2, 5).click().perform()
    desktop.wait(lambda: _pair(desktop) == (labels[2], labels[5]))
    assert desktop.driver.current_url.endswith(_link(labels[2], labels[5]))
    desktop.choose("#y", "9")
    assert desktop.driver.current_url.endswith(_link(labels[2], labels[9]))
    link = desktop.element("#link").get_attribute("href")
    assert link and link.endswith(_link(labels[2], labels[9]))
    # A walk is one step, whatever its length.
    plot = desktop.element("#map .plot")
    plot.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert _pair(desktop) == (labels[4], labels[8])
    desktop.wait(lambda: desktop.driver.current_url.endswith(_link(labels[4], labels[8])))

    desktop.driver.back()
    desktop.wait(lambda: _pair(desktop) == (labels[2], labels[5]))
    assert _value(desktop, "#x") == "2" and _value(desktop, "#y") == "5"
    desktop.driver.back()
    desktop.wait(lambda: _pair(desktop) == first)
    desktop.driver.forward()
    desktop.wait(lambda: _pair(desktop) == (labels[2], labels[5]))
    desktop.run("document.querySelector('nav a[href=\"#depth\"]').click()")
    desktop.wait(lambda: desktop.driver.current_url.endswith("#depth"))
    assert _pair(desktop) == (labels[2], labels[5])
    assert desktop.console_messages() == []


def _value(browser: Browser, selector: str) -> str:
    return browser.run("return document.querySelector(arguments[0]).value", selector)


def test_sentences_show_their_cells(desktop: Browser, report: Path) -> None:
    desktop.open(report)
    link = desktop.element("#summary a")
    href = link.get_attribute("href") or ""
    for _ in range(2):  # also where it is selected already
        desktop.run("scrollTo(0, 0)")
        link.send_keys(Keys.ENTER)
        desktop.wait(lambda: desktop.driver.current_url == href)
        shown = "const box = document.querySelector('#reading').getBoundingClientRect();"
        desktop.wait(lambda: desktop.run(shown + "return box.top > 0 && box.top < innerHeight"))
    assert _link(*_pair(desktop)) == "#" + href.split("#")[1]
    assert desktop.console_messages() == []


def test_addresses_from_outside_are_not_obeyed(desktop: Browser, report: Path) -> None:
    desktop.open(report)
    before = _pair(desktop)
    hostile = [
        *(quote(name.encode("utf-8", "replace"), safe="") for name in NAMES),
        *(f"<img src=x onerror={SENTINEL}=1>,{name}" for name in ("a/1", "")),
        "%,%", "%E0%A4%A,x/1", ",", "a/1,b/2,c/3", "constructor,__proto__", "0,0", "x" * 10_000,
        f"javascript:{SENTINEL}=1,javascript:{SENTINEL}=2",
    ]  # fmt: skip
    for link in hostile:
        desktop.run("location.hash = arguments[0]", link)
        desktop.run("location.hash = arguments[0] + ',' + arguments[0]", link)
    desktop.wait(lambda: desktop.run("return location.hash.length > 1"))
    assert _pair(desktop) == before
    desktop.driver.get(report.resolve().as_uri() + f"#<img src=x onerror={SENTINEL}=1>,a/0")
    desktop.wait(lambda: desktop.run("return document.body.dataset.ready"))
    assert _pair(desktop) == before
    assert desktop.run(f"return {SENTINEL} ?? null") is None
    assert desktop.run("return document.querySelectorAll('img').length") == 0
    assert desktop.console_messages() == []


def test_hostile_names_have_links_too(desktop: Browser, tmp_path: Path) -> None:
    result = hostile_result()
    desktop.open(write_report(result, tmp_path / "report.html"))
    names = [str(name) for name in result.representations]
    count = desktop.run("return page.axes.representation.model.length")
    assert count == len(names)
    for k in range(0, count, 3):
        desktop.choose("#x", str(k))
        link = desktop.run("return location.hash")
        desktop.choose("#x", str((k + 1) % count))
        desktop.run("location.hash = arguments[0]", link)
        desktop.wait(lambda k=k: _pair(desktop)[0] == names[k])
    # What runs would be there by now.
    assert desktop.run(f"return {SENTINEL} ?? null") is None
    assert desktop.console_messages() == []


def test_keys_on_the_map(desktop: Browser, report: Path, result: SimilarityResult) -> None:
    desktop.open(report)
    labels = [str(name) for name in result.representations]
    desktop.choose("#x", "3")
    plot = desktop.element("#map .plot")
    plot.send_keys(Keys.END)
    assert _pair(desktop) == (labels[3], labels[-1])
    plot.send_keys(Keys.HOME)
    assert _pair(desktop) == (labels[3], labels[0])
    plot.send_keys(Keys.ENTER)
    assert desktop.run("return document.activeElement.id") == "link"
    assert desktop.driver.current_url.endswith(_link(labels[3], labels[0]))
    # From the top of the page, the keyboard comes to the map.
    desktop.run("document.activeElement.blur(); scrollTo(0, 0)")
    body = desktop.element("body")
    body.click()
    for _ in range(60):
        desktop.driver.switch_to.active_element.send_keys(Keys.TAB)
        if desktop.run("return document.activeElement.closest('#map .plot') !== null"):
            break
    assert desktop.run("return document.activeElement.matches('#map .plot')")
    assert desktop.console_messages() == []


def test_map_has_a_table(desktop: Browser, report: Path, result: SimilarityResult) -> None:
    desktop.open(report)
    assert desktop.driver.find_elements(By.CSS_SELECTOR, "#map-table td") == []
    desktop.element("#map-table summary").send_keys(Keys.ENTER)
    read = """return [...document.querySelectorAll("#map-table tr")].map(
      (row) => [...row.cells].map((cell) => cell.textContent))"""
    rows = desktop.wait(lambda: desktop.run(read))
    labels = [str(name) for name in result.representations]
    assert rows[0][1:] == labels == [row[0] for row in rows[1:]]
    shown = np.array([row[1:] for row in rows[1:]], float)
    np.testing.assert_allclose(shown, result.matrix("maxcorr").values, atol=6e-5)
    assert len(desktop.driver.find_elements(By.CSS_SELECTOR, "#map-table th[scope=row]")) == 13
    desktop.choose("#measure", "lincka")
    shown = np.array([row[1:] for row in desktop.run(read)[1:]], float)
    np.testing.assert_allclose(shown, result.matrix("lincka").values, atol=6e-5)
    assert desktop.console_messages() == []


def test_everything_that_is_used_has_a_name(desktop: Browser, report: Path) -> None:
    """As assistive technology gets it: the names and roles of the accessibility tree."""
    desktop.open(report)
    nodes = desktop.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            role = node.get("role", {}).get("value", "")
            found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "link", "checkbox", "comboBoxMenuButton", "application", "image"):
        names = found.get(role, [])
        assert all(name.strip() for name in names), (role, names)
    for role in ("button", "link", "checkbox", "image", "application", "main", "navigation"):
        assert found.get(role), (role, sorted(found))
    # Canonical correlations, curves, alignment, facts; the map is the application.
    assert len(found["image"]) >= 4
    levels = desktop.run("return [...document.querySelectorAll('h1,h2,h3')].map((h) => h.tagName)")
    assert levels[0] == "H1" and levels.count("H1") == 1
    assert all(b <= a + 1 for a, b in zip(map(_level, levels), map(_level, levels[1:])))


def _level(tag: str) -> int:
    return int(tag[1])


def _printed(browser: Browser) -> bytes:
    options = {"printBackground": True, "preferCSSPageSize": True}
    return base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", options)["data"])


def test_printing_changes_nothing_on_the_screen(desktop: Browser, report: Path) -> None:
    """What was folded is unfolded on paper, and folded afterwards; the rest stays unfolded."""
    desktop.open(report)
    desktop.run("document.querySelector('#quality details').open = true")
    opened = "return [...document.querySelectorAll('details')].map((one) => one.open)"
    before = desktop.run(opened)
    assert any(before) and not all(before)
    width = desktop.run("return document.querySelector('#map .main-svg').clientWidth")
    desktop.run(
        """window.seen = [];
        addEventListener("beforeprint", () => seen.push(
          [...document.querySelectorAll("details:not(.screen)")].every((one) => one.open)));"""
    )
    pdf = _printed(desktop)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    assert desktop.run("return seen") == [True]
    desktop.wait(lambda: desktop.run(opened) == before)
    assert desktop.run("return document.querySelector('#map .main-svg').clientWidth") == width
    assert desktop.console_messages() == []


def test_print_leaves_out_what_only_a_screen_can_use(desktop: Browser, report: Path) -> None:
    desktop.open(report)
    desktop.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = json.loads(
            desktop.run(
                """return JSON.stringify(Object.fromEntries(
                  ["nav", ".toolbar", ".downloads", "#map-table", "#link", "#keep",
                   "#summary p", "#map .main-svg", "#reading", "#scores table"].map(
                  (one) => [one, document.querySelector(one).checkVisibility()])))"""
            )
        )
        more = "const more = document.querySelector('#summary details');"
        counts = desktop.run(
            more
            + """const summary = more.querySelector("summary"), seen = [];
            for (more.open of [false, true]) seen.push(summary.checkVisibility());
            return seen"""
        )
    finally:
        desktop.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert counts == [True, False]  # what stays folded is said
    kept = {"#summary p", "#map .main-svg", "#reading", "#scores table"}
    assert {name for name, is_shown in shown.items() if is_shown} == kept
