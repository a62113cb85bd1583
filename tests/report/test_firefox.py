"""The page in Firefox: what is seen first, links to cells, keys, hostile names, and paper."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechsim_jax.report import write_report
from speechsim_jax.results.result import SimilarityResult
from tests.support.firefox import Firefox, needs_firefox
from tests.support.hostile import SENTINEL, hostile_result
from tests.support.report_results import SMALL, random_result

pytestmark = [needs_firefox, pytest.mark.slow]

# As WebDriver writes keys.
DOWN, RIGHT, ENTER, END = "\ue015", "\ue014", "\ue007", "\ue010"
PLOTS = ("map", "correlations", "trend", "match", "facts")


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return random_result(SMALL)


@pytest.fixture(scope="module")
def address(result: SimilarityResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(result, folder / "report.html").resolve().as_uri()


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    browser = Firefox(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()


def _selected(firefox: Firefox) -> list[int]:
    value = "return ['x', 'y'].map((id) => Number(document.getElementById(id).value))"
    return firefox.run(value)


def test_page_opens_and_draws_everything(firefox: Firefox, address: str) -> None:
    firefox.open(address)
    assert firefox.run("return document.getElementById('failure').hidden")
    height = "return document.querySelector(arguments[0])?.getBoundingClientRect().height ?? 0"
    for figure in PLOTS:
        assert firefox.run(height, f"#{figure} .main-svg") > 100, figure
    assert firefox.run("return document.documentElement.scrollWidth <= innerWidth")
    assert firefox.run("return document.getElementById('still')") is None


def test_map_is_painted_before_the_data_is_read(firefox: Firefox, address: str) -> None:
    firefox.open(address)
    painted, read = firefox.run(
        """const at = (name) => performance.getEntriesByName(name)[0].startTime;
        return [at("first-contentful-paint"), at("data-read")];"""
    )
    assert 0 < painted < read


def test_links_keys_and_the_way_back(
    firefox: Firefox, address: str, result: SimilarityResult
) -> None:
    labels = [str(name) for name in result.representations]
    firefox.command("WebDriver:Navigate", url="about:blank")
    firefox.open(f"{address}#{labels[2]},{labels[11]}")
    assert _selected(firefox) == [2, 11]
    value = result.matrix("maxcorr").values[2, 11]
    reading = "return document.getElementById('reading').textContent"
    assert firefox.run(reading).endswith(f"{value:.4f}")
    firefox.send_keys("#map .plot", DOWN, DOWN, RIGHT)
    assert _selected(firefox) == [4, 12]
    firefox.send_keys("#map .plot", ENTER)
    assert firefox.run("return document.activeElement.id") == "link"
    hash_ = firefox.run("return decodeURIComponent(location.hash)")
    assert hash_ == f"#{labels[4]},{labels[12]}"
    firefox.run("location.hash = '#depth'")
    firefox.run("location.hash = arguments[0]", f"#{labels[0]},{labels[7]}")
    firefox.wait(lambda: _selected(firefox) == [0, 7])
    firefox.command("WebDriver:Back")
    firefox.command("WebDriver:Back")
    firefox.wait(lambda: _selected(firefox) == [4, 12])


def test_names_from_outside_are_not_obeyed(firefox: Firefox, tmp_path: Path) -> None:
    path = write_report(hostile_result(), tmp_path / "report.html")
    firefox.open(f"{path.resolve().as_uri()}#<img src=x onerror={SENTINEL}=1>,a/0")
    firefox.run("for (const closed of document.querySelectorAll('details')) closed.open = true")
    firefox.run("for (const head of document.querySelectorAll('th button')) head.click()")
    seen = f"return {SENTINEL} ?? null"
    assert firefox.run(seen) is None
    foreign = "img, iframe, object, embed, svg[onload], b b, sup, [href^=javascript], [srcdoc]"
    assert firefox.run("return document.querySelectorAll(arguments[0]).length", foreign) == 0
    run = "const one = document.createElement('script'); one.textContent = arguments[0];"
    firefox.run(run + "document.body.append(one)", f"{SENTINEL} = 1")
    assert firefox.run(seen) == 1  # what runs is seen


def test_page_prints(firefox: Firefox, address: str) -> None:
    firefox.open(address)
    found = firefox.command("WebDriver:Print", background=True)
    pdf = base64.b64decode(found["value"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
