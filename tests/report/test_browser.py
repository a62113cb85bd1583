"""The report in a browser: headless Chromium, at the width of a desktop and of a phone."""

import csv
import io
import re
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio.alignments import Segments
from speechsim_jax.errors import printable
from speechsim_jax.report import content, write_report
from speechsim_jax.report import exemplars as content_exemplars
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.clustered import clustered_result
from tests.support.hostile import NAMES, SENTINEL, hostile_result
from tests.support.report_results import (
    SMALL,
    Shape,
    heads_alone,
    random_result,
    scores_within,
    with_exemplars,
)

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.support.browser import (
    DESKTOP,
    PHONE,
    Browser,
    needs_browser,
)

pytestmark = needs_browser


@pytest.fixture(params=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, report: Path) -> Browser:
    """Either browser, with the page freshly opened."""
    browser = request.getfixturevalue(request.param)
    browser.open(report)
    assert browser.console_messages() == []
    return browser


def _shown_map(browser: Browser) -> dict[str, Any]:
    return browser.run(
        """const [trace] = document.querySelector("#map .plot").data;
        return {z: trace.z, zmin: trace.zmin, zmax: trace.zmax};"""
    )


@pytest.mark.slow
def test_page_opens_and_fits(browser: Browser) -> None:
    width = browser.run("return document.documentElement.clientWidth")
    assert width == (DESKTOP if width > 400 else PHONE)[0]
    assert browser.run("return document.documentElement.scrollWidth") <= width
    for figure in ("map", "correlations", "trend", "match", "facts"):
        box = browser.element(f"#{figure} .main-svg").rect
        assert box["height"] > 100 and box["x"] >= 0 and box["x"] + box["width"] <= width, figure
    assert browser.console_messages() == []


def test_hover_shows_both_representations_and_the_value(
    desktop: Browser, report: Path, result: SimilarityResult
) -> None:
    desktop.open(report)
    desktop.over("#map", 1, 9).perform()
    hover = "return document.querySelector('#map .hoverlayer').textContent"
    text = desktop.wait(lambda: desktop.run(hover))
    value = result.matrix("maxcorr").values[1, 9]
    assert "first-<b>&small, layer 1" in text and "third-large, layer 2" in text
    assert f"maxcorr: {value:.4f}" in text


@pytest.mark.slow
def test_click_shows_the_pair(browser: Browser, result: SimilarityResult) -> None:
    browser.over("#map", 2, 5).click().perform()
    value = result.matrix("maxcorr").values[2, 5]
    expected = f"x first-<b>&small, layer 2; y second-base, layer 1: maxcorr {value:.4f}"
    browser.wait(lambda: browser.element("#reading").text == expected)
    scores = browser.element("#scores").text
    assert f"maxcorr {value:.4f} {result.matrix('maxcorr').values[5, 2]:.4f}" in scores
    assert f"floor of lincka {result.dataset['lincka_floor'].values[2, 5]:.4f}" in scores
    corr = result.dataset["best_corr"].values[2, 5]
    neuron = int(np.nanargmax(corr))
    match = int(result.dataset["best_match"].values[2, 5, neuron])
    first = browser.element("#matches tbody tr").text.split()
    assert first[:2] == [str(neuron), str(match)]
    assert float(first[2]) == pytest.approx(corr[neuron], abs=6e-5)
    heads = browser.element("#heads").text
    assert "Head matches (attn_frobenius)" in heads
    best = result.dataset["attn_frobenius_best"].values[1, 3, 0]
    row = browser.element("#heads tbody tr").text.split()
    assert float(row[2]) == pytest.approx(best, abs=6e-5)
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#heads tbody tr")) == 3
    rank = result.dataset["rank"].values
    assert f"rank {rank[2]} {rank[5]}" in browser.element("#layers").text
    points = browser.run("return document.querySelector('#correlations .plot').data[0].y")
    rho = result.dataset["svcca_rho"].values[2, 5]
    assert len(points) == np.isfinite(rho).sum() and points[0] == pytest.approx(rho[0], abs=1e-5)
    assert browser.console_messages() == []


@pytest.mark.slow
def test_measure_and_colours_switch(browser: Browser, result: SimilarityResult) -> None:
    for measure in ("lincka", "attn_js", "procrustes_distance"):
        browser.choose("#measure", measure)
        shown = _shown_map(browser)
        np.testing.assert_allclose(shown["z"], result.matrix(measure).values, rtol=1e-6)
        assert measure in browser.element("#map figcaption").text
        assert measure in browser.element("#reading").text
        assert measure in browser.element("#match figcaption").text
    browser.choose("#colours", "range")
    shown = _shown_map(browser)
    assert (shown["zmin"], shown["zmax"]) == (0, 1.5708)
    browser.choose("#colours", "shown")
    shown = _shown_map(browser)
    assert (shown["zmin"], shown["zmax"]) == (np.min(shown["z"]), np.max(shown["z"]))
    assert browser.console_messages() == []


def test_models_can_be_left_out(desktop: Browser, report: Path, result: SimilarityResult) -> None:
    desktop.open(report)
    desktop.element("#models input[value='1']").click()
    shown = [0, 1, 2, 3, *range(7, 13)]
    expected = result.matrix("maxcorr").values[np.ix_(shown, shown)]
    np.testing.assert_allclose(_shown_map(desktop)["z"], expected, rtol=1e-6)
    desktop.over("#map", 0, 4).click().perform()
    desktop.wait(lambda: "y third-large, layer 0" in desktop.element("#reading").text)
    for index in (0, 2):  # the last one stays
        desktop.element(f"#models input[value='{index}']").click()
    assert np.shape(_shown_map(desktop)["z"]) == (6, 6)
    assert "Curves need" in desktop.element("#trend figcaption").text
    assert desktop.console_messages() == []


def test_keyboard_alone(desktop: Browser, report: Path, result: SimilarityResult) -> None:
    desktop.open(report)
    desktop.choose("#x", "0")
    desktop.choose("#y", "0")
    plot = desktop.element("#map .plot")
    plot.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    plot.send_keys(Keys.ARROW_DOWN, Keys.SHIFT, Keys.ARROW_DOWN)
    value = result.matrix("maxcorr").values[4, 2]
    expected = f"x second-base, layer 0; y first-<b>&small, layer 2: maxcorr {value:.4f}"
    assert desktop.element("#reading").text == expected
    assert Select(desktop.element("#x")).first_selected_option.text == "second-base, layer 0"
    outline = desktop.run("return document.querySelector('#map .plot').layout.shapes.at(-1)")
    assert (outline["x0"], outline["y0"]) == (1.5, 3.5)
    heading = desktop.element("#neuron-table th:nth-child(2) button")
    for direction, order in (("descending", -1), ("ascending", 1)):
        heading.send_keys(Keys.ENTER)
        cells = desktop.driver.find_elements(By.CSS_SELECTOR, "#neuron-table td:nth-child(2)")
        neurons = [int(cell.get_attribute("textContent")) for cell in cells]
        assert len(neurons) == 30 and neurons == sorted(neurons, reverse=order < 0)
        sorted_by = desktop.element("#neuron-table th[aria-sort]")
        assert sorted_by.get_attribute("aria-sort") == direction
    reachable = desktop.run(
        "return [...document.querySelectorAll('select, button, input, summary, a, [tabindex]')]"
        ".every((node) => node.tabIndex === 0)"
    )
    assert reachable and desktop.console_messages() == []


def test_alignment_draws_the_path(desktop: Browser, report: Path) -> None:
    desktop.open(report)
    desktop.choose("#align-y", "2")
    shown = desktop.run(
        """const traces = document.querySelector("#match .plot").data;
        const {best, path} = state.measure.alignment;
        return {drawn: traces.slice(1).map((t) => t.x),
                limits: [traces[0].zmin, traces[0].zmax], z: traces[0].z.flat(),
                best: [0, 1, 2, 3].map((i) => best.at(2, i) - 7),
                path: [0, 1, 2, 3].map((i) => path.at(2, i) - 7)};"""
    )
    assert shown["drawn"] == [shown["path"], shown["path"], shown["best"]]
    assert shown["limits"] == [min(shown["z"]), max(shown["z"])]  # limits of its own
    desktop.choose("#align-x", "2")  # not with itself: the other side changes
    assert Select(desktop.element("#align-y")).first_selected_option.text == "first-<b>&small"
    assert desktop.console_messages() == []


@pytest.mark.slow
@pytest.mark.parametrize(("high", "drawn"), [(0.3095, False), (0.3105, True)])
def test_no_path_through_scores_that_are_too_close(
    desktop: Browser, tmp_path: Path, high: float, drawn: bool
) -> None:
    desktop.open(write_report(scores_within(0.3, high), tmp_path / "report.html"))
    traces = desktop.run("return document.querySelector('#match .plot').data.map((t) => t.mode)")
    assert traces == [None, *(["lines", "lines"] if drawn else []), "markers"]
    caption = desktop.element("#match figcaption").text
    assert f"All scores lie between 0.3000 and {high:.4f}" in caption
    assert f"Colours from 0.3 (black) to {high}." in caption
    assert ("no path is drawn" in caption) == (not drawn)
    assert ("Line: the best choice" in caption) == ("along the path" in caption) == drawn
    assert ("path" in desktop.element("#match-table thead").text) == drawn
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_caption_tells_where_the_colours_start(desktop: Browser, tmp_path: Path) -> None:
    desktop.open(write_report(scores_within(0.53, 0.6), tmp_path / "report.html"))
    caption = desktop.element("#map figcaption")
    assert _shown_map(desktop)["zmin"] == pytest.approx(0.5)
    assert "Colours from 0.5 (black) to 1." in caption.text
    desktop.choose("#colours", "range")
    assert "Colours from" not in caption.text  # from 0: black is nothing


def _fact_axes(browser: Browser) -> dict[str, dict[str, Any]]:
    """Of the panels of facts: range and kind of the vertical axis, and its numbers."""
    return browser.run(
        """const plot = document.querySelector("#facts .plot");
        return Object.fromEntries(factPanels().map(({title}, k) => {
          const name = k ? `y${k + 1}` : "y";
          const axis = plot._fullLayout["yaxis" + name.slice(1)];
          const numbers = [...plot.querySelectorAll(`.${name}tick text`)];
          return [title, {type: axis.type, range: axis.range,
                          numbers: numbers.map((node) => node.textContent)}];
        }));"""
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("condition", "kind", "numbers"),
    [
        ((1100, 1700), "linear", ["1200", "1400", "1600"]),
        ((30, 2100), "log", ["50", "100", "200", "500", "1000", "2000"]),
        ((2, 2e7), "log", ["1", "10", "100", "1000", "10k", "100k", "1M", "10M"]),
    ],
)
def test_axes_of_facts_have_numbers(
    desktop: Browser,
    tmp_path: Path,
    condition: tuple[float, float],
    kind: str,
    numbers: list[str],
) -> None:
    result = random_result({"a": Shape(3, 9, 0), "b": Shape(2, 9, 0)})
    result.dataset["condition"].values[:] = np.geomspace(*condition, 5)
    result.dataset["dead_neurons"].values[:] = 0
    result.dataset["outlier_share"].values[:] = 1 + 1e-7 * np.arange(5)  # level but for rounding
    result.dataset["mean_to_std"].values[:] = np.nan
    desktop.open(write_report(result, tmp_path / "report.html"))
    axes = _fact_axes(desktop)
    assert axes["condition"]["type"] == kind and axes["condition"]["numbers"] == numbers
    assert axes["dead_neurons"]["range"] == [0, 1]
    assert axes["dead_neurons"]["numbers"] == ["0", "1"]
    assert {"0.99", "1", "1.01"} <= set(axes["outlier_share"]["numbers"])
    assert min(len(axis["numbers"]) for axis in axes.values()) >= 2
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_a_cell_has_its_interval_and_its_held_out_score(desktop: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    x = rng.standard_normal((20, 6))[groups] + rng.standard_normal((600, 6))
    arrays = {"a/0": x, "a/1": x**3, "b/0": x + 2 * rng.standard_normal((600, 6))}
    result = ss.compare_activations(
        arrays, ["linreg", "linreg_r2", "pwcca"], errors=True, heldout=True, groups=groups
    )
    desktop.open(write_report(result, tmp_path / "report.html"))
    desktop.over("#map", 0, 2).click().perform()
    desktop.wait(lambda: "y b, layer 0" in desktop.element("#reading").text)
    low, high = result.interval("linreg").sel(x="a/0", y="b/0").values
    score = float(result.matrix("linreg").loc["a/0", "b/0"])
    text = f"linreg {score:.4f} ± {(high - low) / 2:.4f}"
    assert desktop.element("#reading").text.endswith(text)
    scores = desktop.element("#scores").text.splitlines()
    assert any(line.startswith(text) for line in scores)
    for name in ("linreg_heldout", "linreg_ridge_heldout", "linreg_r2_heldout", "pwcca_heldout"):
        values = [result.matrix(name).loc[pair] for pair in (("a/0", "b/0"), ("b/0", "a/0"))]
        assert scores.count(f"{name} {values[0]:.4f} {values[1]:.4f}") == 1
    assert not any(line.startswith("pwcca") and "±" in line for line in scores)
    assert "20 groups" in desktop.element("#pair").text
    table = result.influence
    sums = table.cluster_sums("linreg")[:, 0, 2]
    most = np.argsort(-np.abs(sums))[:5]
    shown = desktop.element("#influential table tbody").text.splitlines()
    for line, cluster in zip(shown, most, strict=True):
        sign = "+" if sums[cluster] >= 0 else "\N{MINUS SIGN}"
        assert line == f"{table.clusters.names[cluster]} {sign}{abs(sums[cluster]):.5f}"
    share, counting = table.concentration("linreg")
    assert 0.5 < share < 1 and 2 < counting < 20
    quality = desktop.element("#quality").get_attribute("textContent")
    assert f"{share:.4g}" in quality and f"{counting:.4g}" in quality
    assert desktop.console_messages() == []


@pytest.mark.slow
@pytest.mark.parametrize("most", [3 * 2**20, 8 * 28 * 3])
def test_two_cells_are_compared(
    desktop: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(content, "MOST_PAIRS", most)
    result = clustered_result()
    labels = [str(label) for label in result.representations]
    desktop.open(write_report(result, tmp_path / "report.html"))
    dots = desktop.run("return document.querySelector('#map .plot').data[1].x.length")
    found = result.differences("maxcorr")
    assert dots == int((~found.differs & found.difference.notnull() | found.reference).sum())
    for measure, kept, others in (
        ("maxcorr", (2, 5), [(2, 6), (2, 1), (4, 5), (7, 0)]),
        ("lincka", (1, 6), [(6, 2), (3, 6), (1, 7)]),
    ):
        desktop.choose("#measure", measure)
        desktop.over("#map", *kept).click().perform()
        desktop.wait(lambda: f"layer {kept[1] % 4}: {measure}" in desktop.element("#reading").text)
        desktop.element("#keep").click()
        for other in others:
            # Two clicks in less than 0.3 s are a double click for plotly.
            desktop.over("#map", *other).pause(0.5).click().perform()
            cells = [(labels[x], labels[y]) for x, y in (other, kept)]
            contrast = result.contrast(measure, *cells)
            low, high = contrast.interval()
            sign = "+" if contrast.difference >= 0 else "\N{MINUS SIGN}"
            difference = f"{sign}{abs(contrast.difference):.4f}"
            text = desktop.wait(
                lambda difference=difference: (
                    desktop.element("#difference").text
                    if difference in desktop.element("#difference").text
                    else ""
                )
            )
            if "at most" in text:
                assert other == (7, 0) and most < 2**20
                continue
            half = float(re.search(r"± ([0-9.]+)", text)[1])  # pyright: ignore[reportOptionalSubscript]
            assert half == pytest.approx((high - low) / 2, rel=0.02, abs=6e-5)
            assert ("They differ." in text) == (contrast.p < 0.05)
        desktop.element("#keep").click()
        assert desktop.element("#difference").text == ""
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_page_of_heads_alone_has_no_empty_panels(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(heads_alone(SMALL), tmp_path / "report.html"))
    left_out = "#correlations, #matches, #neurons, #layers, #facts, a[href='#neurons'], .missing"
    nodes = browser.driver.find_elements(By.CSS_SELECTOR, left_out)
    assert [node.get_attribute("id") for node in nodes if node.is_displayed()] == []
    assert len(Select(browser.element("#x")).options) == 10  # layer 0 has no scores
    browser.over("#map", 2, 5).click().perform()
    browser.wait(lambda: "y third-large, layer 1" in browser.element("#reading").text)
    assert browser.console_messages() == []


def test_overview_leads_to_the_skipped_files(browser: Browser) -> None:
    browser.element("#overview a[href='#skipped']").click()
    top = "return document.getElementById('skipped').getBoundingClientRect().top"
    height = browser.run("return innerHeight")
    browser.wait(lambda: 0 < browser.run(top) < height)
    covered = browser.run(
        "return document.querySelector('.toolbar').getBoundingClientRect().bottom"
    )
    assert browser.run(top) >= covered


def _edges(browser: Browser, selector: str) -> tuple[float, float]:
    """How light the left and the right edge of an element are, 0 to 1, between its rules."""
    picture = matplotlib.image.imread(io.BytesIO(browser.element(selector).screenshot_as_png))
    inside = picture[8:-8, :, :3].mean(axis=2)
    return float(np.median(inside[:, 2])), float(np.median(inside[:, -3]))


def test_wide_tables_show_that_they_continue(phone: Browser, report: Path) -> None:
    phone.open(report)
    table = "#measures .wide"
    assert phone.run(f"const t = document.querySelector('{table}'); return t.scrollWidth") > 390
    left, right = _edges(phone, table)
    assert left > 0.98 and right < 0.8
    phone.run(f"document.querySelector('{table}').scrollLeft = 1e4")
    left, right = _edges(phone, table)
    assert left < 0.8 and right > 0.98
    narrow = _edges(phone, "#scores .wide")
    assert min(narrow) > 0.98


@pytest.mark.slow
def test_controls_stay_on_the_screen(browser: Browser) -> None:
    browser.run("document.getElementById('depth').scrollIntoView()")
    box = browser.element(".toolbar").rect
    top = browser.run("return document.querySelector('.toolbar').getBoundingClientRect().top")
    assert top == 0 and box["height"] < 100
    gaps = browser.run(
        """return [...document.querySelectorAll(".toolbar > label")].map((label) => {
          const words = document.createRange();
          words.selectNode(label.firstChild);
          const select = label.querySelector("select").getBoundingClientRect();
          return select.left - words.getBoundingClientRect().right;
        });"""
    )
    assert min(gaps) >= 4


@pytest.mark.slow
def test_figures_and_numbers_are_saved(
    desktop: Browser, report: Path, result: SimilarityResult
) -> None:
    pair = "first-_b_&small_2_second-base_1"  # no file is called <b>
    for place, name, kinds in (
        ("map", "heatmap_lincka", "svg png csv"),
        ("trend", "trend_lincka", "svg png csv"),
        ("match", "alignment_lincka", "svg png csv"),
        ("facts", "facts", "svg png csv"),
        ("correlations", f"svcca_rho_{pair}", "svg png csv"),
        ("matches", f"neurons_{pair}", "csv"),
        ("heads", f"heads_{pair}", "csv"),
        ("neurons", "neurons", "csv"),
    ):
        desktop.open(report)  # Chromium saves ten files of a page, if not all of them are clicked
        desktop.choose("#measure", "lincka")
        saved = desktop.saved(place, name)
        assert list(saved) == kinds.split()
        assert saved["csv"].count(b"\n") > 3
        assert b"<svg" in saved.get("svg", b"<svg")[:200]
        assert saved.get("png", b"\x89PNG")[:4] == b"\x89PNG"
    rows = list(csv.reader((desktop.downloads / "heatmap_lincka.csv").open()))
    names = [str(representation) for representation in result.representations]
    assert rows[0][1:] == names == [row[0] for row in rows[1:]]
    values = np.array([row[1:] for row in rows[1:]], dtype=float)
    np.testing.assert_allclose(values, result.matrix("lincka").values, rtol=1e-6)
    x, y = result.models[:2]
    (trend,) = [
        row
        for row in csv.DictReader((desktop.downloads / "trend_lincka.csv").open())
        if (row["x_model"], row["x_layer"], row["y_model"]) == (x, "3", y)
    ]
    block = result.block("lincka", x, y).values
    assert float(trend["best"]) == pytest.approx(block[3].max(), rel=1e-6)
    assert float(trend["same_depth"]) == pytest.approx(block[3, 2], rel=1e-6)
    assert desktop.console_messages() == []


def test_page_of_scores_alone_states_what_is_missing(desktop: Browser, tmp_path: Path) -> None:
    representations = [RepresentationName("a", 0), RepresentationName("b", 0)]
    holes = SimilarityResult.build(representations, {"mine": np.array([[1.0, np.nan], [0.5, 1.0]])})
    desktop.open(write_report(holes, tmp_path / "report.html"))
    for place, words in (
        ("correlations", "svcca was not measured"),
        ("matches", "maxcorr was not measured"),
        ("heads", "no measure of attention heads"),
        ("neurons", "maxcorr was not measured"),
        ("trend", "Curves need"),
        ("map", "Crosses: not defined"),
    ):
        assert words in desktop.element(f"#{place}").text, place
    assert desktop.element("#reading").text == "x a, layer 0; y b, layer 0: mine \N{EN DASH}"
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_names_from_outside_are_shown_and_not_obeyed(desktop: Browser, tmp_path: Path) -> None:
    result = hostile_result()
    desktop.open(write_report(result, tmp_path / "report.html"))
    for measure in range(len(result.measures)):
        Select(desktop.element("#measure")).select_by_index(measure)
        middle = len(_shown_map(desktop)["z"]) // 2
        desktop.over("#map", middle, middle).click().perform()
    for place in ("#x", "#y", "#align-x", "#align-y", "#neuron-model"):
        for k in (1, 5, 11):
            Select(desktop.element(place)).select_by_index(k)
    for heading in desktop.driver.find_elements(By.CSS_SELECTOR, "th button"):
        desktop.run("arguments[0].click()", heading)
    desktop.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    assert desktop.run("return document.documentElement.scrollWidth") <= DESKTOP[0]
    time.sleep(0.3)  # events of what may have been added

    assert desktop.run(f"return {SENTINEL} ?? null") is None
    # Three of the page and plotly's; the heat map is an <image>, no <img>.
    assert desktop.run("return document.scripts.length") == 4
    foreign = "img, iframe, object, embed, svg[onload], b b, sup, [href^=javascript], [srcdoc]"
    found = "return [...document.querySelectorAll(arguments[0])].map((node) => node.outerHTML)"
    assert desktop.run(found, foreign) == []
    handlers = """return [...document.querySelectorAll("*")].flatMap(
      (node) => [...node.attributes].map((one) => one.name)).filter((name) => /^on/.test(name))"""
    assert desktop.run(handlers) == []

    shown = {printable(name) for name in NAMES}
    cells = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    skipped = desktop.run(cells, "[data-sortable=skipped] tbody td")
    assert set(skipped) == shown and len(skipped) == 2 * len(NAMES)
    names = [printable(name) for name in NAMES]
    models = desktop.run("return page.models.map((model) => model.name)")
    assert models == names
    options = desktop.run(cells, "#align-x option")
    assert options == desktop.run("return page.models.map((model) => model.short)")
    assert all(name.endswith(option) for name, option in zip(names, options, strict=True))
    assert shown <= set(desktop.run(cells, "dt")) and shown <= set(desktop.run(cells, "dd"))
    measures = desktop.run(cells, "#measure option")
    assert measures == [printable(name) for name in result.measures]
    text = desktop.run("return document.body.innerText")
    assert all(printable(c) == c for c in set(text) - set("\n\t"))
    Select(desktop.element("#measure")).select_by_index(0)
    title = desktop.run("return document.querySelector('#map .cbtitle').textContent")
    assert title == result.measures[0]
    desktop.over("#map", 24, 20).perform()
    hover = "return document.querySelector('#map .hoverlayer').textContent"
    said = desktop.wait(lambda: desktop.run(hover))
    assert f"{result.measures[0]}: " in said and f"{options[12]}, layer 0" in said
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_snippets_of_exemplars_play(desktop: Browser, tmp_path: Path) -> None:
    lengths = {f"{k:03}.wav": 24_000 for k in range(40)}
    models = {"first": Shape(13, 768, 12), "second": Shape(13, 768, 12)}
    rng = np.random.default_rng(0)
    audio = {name: rng.standard_normal(n).astype(np.float32) / 4 for name, n in lengths.items()}
    result = with_exemplars(random_result(models), lengths)
    path = write_report(result, tmp_path / "report.html", audio=audio)
    assert path.stat().st_size < 8e6
    desktop.open(path)
    desktop.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    desktop.run("for (const player of document.querySelectorAll('audio')) player.load()")
    desktop.run(
        "for (const player of document.querySelectorAll('audio')) player.preload = 'metadata'"
    )
    durations = "return [...document.querySelectorAll('audio')].map((player) => player.duration)"
    # JSON has no NaN: not yet known.
    desktop.wait(lambda: None not in desktop.run(durations), seconds=60)
    seconds = desktop.run(durations)
    assert len(seconds) == content_exemplars.MOST_SNIPPETS
    assert all(0.45 <= one <= 0.55 for one in seconds)
    desktop.element("h1").click()  # without, a browser plays nothing
    desktop.run("window.player = document.querySelector('audio'); player.play()")
    desktop.wait(lambda: desktop.run("return player.ended"))
    assert desktop.run("return document.documentElement.scrollWidth") <= DESKTOP[0]
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_names_and_labels_of_exemplars_are_shown_and_not_obeyed(
    desktop: Browser, tmp_path: Path
) -> None:
    result = with_exemplars(hostile_result(), dict.fromkeys(NAMES, 16_000))
    ends = np.linspace(0.05, 1.1, len(NAMES))
    heard = Segments(np.concatenate([[0], ends[:-1]]), ends, NAMES)
    audio = {name: np.sin(np.arange(16_000)).astype(np.float32) for name in NAMES}
    path = write_report(
        result, tmp_path / "report.html", audio=audio, segments=dict.fromkeys(NAMES, heard)
    )
    desktop.open(path)
    desktop.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    time.sleep(0.3)
    assert desktop.run(f"return {SENTINEL} ?? null") is None
    found = "return [...document.querySelectorAll(arguments[0])].map((node) => node.outerHTML)"
    foreign = "img, iframe, object, embed, svg[onload], b b, sup, [href^=javascript], [srcdoc]"
    assert desktop.run(found, foreign) == []
    handlers = """return [...document.querySelectorAll("#exemplars *")].flatMap(
      (node) => [...node.attributes].map((one) => one.name)).filter((name) => /^on/.test(name))"""
    assert desktop.run(handlers) == []
    cells = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    names = set(desktop.run(cells, "#exemplars td:nth-child(2)"))
    shown = {printable(name) for name in NAMES}
    assert names <= shown and len(names) > 0.8 * len(shown)
    labels = " ".join(desktop.run(cells, "#exemplars td:nth-child(4)"))
    assert sum(name in labels for name in shown) > 0.8 * len(shown)
    assert desktop.run("return document.documentElement.scrollWidth") <= DESKTOP[0]
    assert desktop.console_messages() == []


@pytest.mark.slow
def test_saved_tables_hold_no_formulas(desktop: Browser, tmp_path: Path) -> None:
    names = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\uff1d1", "a;=1", 'b"c,d']
    representations = [RepresentationName(name, k) for name in names for k in range(2)]
    values = np.linspace(-1, 1, 14 * 14).reshape(14, 14)
    result = SimilarityResult.build(representations, {"mine": values})
    desktop.open(write_report(result, tmp_path / "report.html"))
    saved = desktop.saved("map", "heatmap_mine")["csv"].decode()
    rows = list(csv.reader(io.StringIO(saved)))
    defused = [f"'{name}" if k < 5 else name for k, name in enumerate(names)]
    assert rows[0][1:] == [f"{name}/{k}" for name in defused for k in range(2)]
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], float), values, rtol=1e-6)
    assert '"a;=1/0"' in saved
