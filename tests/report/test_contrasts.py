"""What the page says of two cells, computed here as its scripts do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechsim_jax.report import content, write_report
from speechsim_jax.results.result import SimilarityResult
from tests.support.clustered import clustered_result
from tests.support.report_results import Page


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return clustered_result()


def measures_of(result: SimilarityResult, folder: Path) -> dict[str, Any]:
    facts = Page(write_report(result, folder / "report.html")).facts()
    return {measure["name"]: measure for measure in facts["measures"]}


def place(a: int, b: int, count: int) -> int:
    """Of a pair among all (a, b), a < b, in order."""
    a, b = min(a, b), max(a, b)
    return [(i, j) for i in range(count) for j in range(i + 1, count)].index((a, b))


def cell_place(measure: dict[str, Any], x: int, y: int, size: int) -> int:
    cells = [(i, j) for i in range(size) for j in range(size) if measure["directed"] or i <= j]
    return cells.index((x, y) if measure["directed"] else (min(x, y), max(x, y)))


def contrast_half(result: SimilarityResult, name: str, *cells: tuple[int, int]) -> float:
    labels = [str(label) for label in result.representations]
    low, high = result.contrast(name, *[(labels[x], labels[y]) for x, y in cells]).interval()
    return (high - low) / 2


def test_intervals_of_all_differences_are_right_to_two_percent(
    result: SimilarityResult, tmp_path: Path
) -> None:
    measures = measures_of(result, tmp_path)
    rng = np.random.default_rng(0)
    for name, count in (("maxcorr", 64), ("lincka", 36)):
        pairs = measures[name]["pairs"]
        assert pairs["kind"] == "all" and len(pairs["of"]) == count * (count - 1) // 2
        for _ in range(60):
            a, b = rng.integers(0, 8, (2, 2))
            i, j = (cell_place(measures[name], *cell, 8) for cell in (a, b))
            if i == j:
                continue
            shown = np.exp(pairs["of"][place(i, j, count)])
            expected = contrast_half(result, name, tuple(a), tuple(b))
            # Of equal scores, which have the same influences, there is no logarithm.
            expected = np.nan if expected < 1e-9 else expected
            assert shown == pytest.approx(expected, rel=0.021, nan_ok=True)


def test_where_pairs_are_too_many_those_of_rows_and_columns_are_there(
    result: SimilarityResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MOST_PAIRS", 8 * 28 * 3)
    measures = measures_of(result, tmp_path)
    assert measures["lincka"]["pairs"]["columns"] is None
    for name in ("maxcorr", "lincka"):
        pairs = measures[name]["pairs"]
        assert pairs["kind"] == "lines" and pairs["of"].shape == (8, 28)
        shown = np.exp(pairs["of"][2, place(5, 1, 8)])
        assert shown == pytest.approx(contrast_half(result, name, (2, 5), (2, 1)), rel=0.021)
    shown = np.exp(measures["maxcorr"]["pairs"]["columns"][6, place(0, 3, 8)])
    expected = contrast_half(result, "maxcorr", (0, 6), (3, 6))
    assert shown == pytest.approx(expected, rel=0.021)
    monkeypatch.setattr(content, "MOST_PAIRS", 8 * 28 * 3 - 1)
    assert measures_of(result, tmp_path)["maxcorr"]["pairs"] is None


def test_the_difference_of_any_two_cells_is_at_most_about_the_sum_of_their_intervals(
    result: SimilarityResult,
) -> None:
    """What the page says where it lacks the interval of a difference."""
    half = result.half_interval("maxcorr").values
    rng = np.random.default_rng(1)
    for _ in range(100):
        a, b = (tuple(map(int, cell)) for cell in rng.integers(0, 8, (2, 2)))
        of_difference = contrast_half(result, "maxcorr", a, b)
        if np.isfinite(of_difference):
            assert of_difference <= 1.1 * (half[a] + half[b]) + 1e-12


def test_dots_are_the_cells_that_do_not_differ(result: SimilarityResult, tmp_path: Path) -> None:
    measures = measures_of(result, tmp_path)
    found = result.differences("maxcorr")
    expected = ~found.differs.values & np.isfinite(found.difference.values)
    expected |= found.reference.values
    np.testing.assert_array_equal(measures["maxcorr"]["marks"]["cells"], expected)
    assert 0 < expected.sum() < expected.size
    few = clustered_result(speakers=8)
    assert measures_of(few, tmp_path)["maxcorr"]["marks"] is None  # no intervals, no p-values


def test_null_and_calibrated_scores_are_shown_where_there_are_any(
    result: SimilarityResult, tmp_path: Path
) -> None:
    more = result.dataset.assign(
        maxcorr_null=0 * result.dataset["maxcorr"] + 0.25,
        maxcorr_calibrated=(result.dataset["maxcorr"] - 0.25) / 0.75,
    )
    for name in ("maxcorr_null", "maxcorr_calibrated"):
        more[name].attrs = {"kind": "extra"}
    measures = measures_of(SimilarityResult(more), tmp_path)
    further = {entry["name"]: entry["values"] for entry in measures["maxcorr"]["further"]}
    assert list(further) == ["maxcorr_null", "maxcorr_calibrated"]
    np.testing.assert_allclose(further["maxcorr_null"], 0.25)
    assert measures["lincka"]["further"] == []


def test_the_page_says_what_the_errors_rest_on(result: SimilarityResult, tmp_path: Path) -> None:
    page = Page(write_report(result, tmp_path / "report.html"))
    table = result.influence
    assert table is not None
    for name in result.measures:
        effective = table.effective_rows(name)
        assert f"{effective:.4g}" in page.text
    shares = np.mean([table.shares(name) for name in result.measures], axis=0)
    for cluster in np.argsort(-shares)[:10]:
        assert f"{table.shares('lincka')[cluster]:.4g}" in page.text
