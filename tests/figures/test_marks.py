"""Outlines on heat maps: the cells that are not found to differ from a reference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.errors import UserError
from speechsim_jax.figures import style
from speechsim_jax.results.result import SimilarityResult
from tests.support.clustered import clustered_result
from tests.support.drawn import assert_readable, axes_of, drawn_texts, result_of


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return clustered_result()


def edges(figure: Figure, colour: str = "black") -> set[tuple[float, ...]]:
    """The edges of cells with a line, (x, y) of their middles."""
    found = [
        c for c in axes_of(figure, "map").collections if c.get_gid() == f"not different, {colour}"
    ]
    assert len(found) <= 1 and all(isinstance(c, LineCollection) for c in found)
    return {tuple(s.mean(axis=0)) for c in found for s in c.get_segments()}  # pyright: ignore


def outline(cells: np.ndarray, borders: Sequence[int]) -> set[tuple[float, ...]]:
    """The edges between a marked cell and one that is not, or one of another block."""
    found = set()
    for row, column in np.argwhere(cells):
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            y, x = row + down, column + right
            inside = 0 <= y < len(cells) and 0 <= x < len(cells)
            block = [[np.searchsorted(borders, k, "right") for k in at]
                     for at in ((row, column), (y, x))]  # fmt: skip
            if not inside or not cells[y, x] or block[0] != block[1]:
                found.add((column + right / 2, row + down / 2))
    return found


@pytest.mark.parametrize("reference", ["auto", "closest_of_row", ("a/1", "b/2"), 0.9])
def test_outlined_are_the_cells_that_do_not_differ(result: SimilarityResult, reference) -> None:
    figure = ss.plot(result, "maxcorr", reference=reference)
    found = result.differences("maxcorr", "closest" if reference == "auto" else reference)
    same = ~found.differs.values & np.isfinite(found.difference.values)
    same |= found.reference.values
    assert edges(figure) == edges(figure, "white") == outline(same, [4])
    assert 0 < same.sum() < same.size
    texts = [text.get_text().replace("\n", " ") for text in drawn_texts(figure)]
    assert any("rate 5 %" in text for text in texts)


def test_outlines_are_seen_on_every_colour(result: SimilarityResult) -> None:
    """The black line is thinner than the white one below it."""
    black, white = (
        next(c for c in axes_of(ss.plot(result, "maxcorr"), "map").collections
             if c.get_gid() == f"not different, {colour}")
        for colour in ("black", "white")
    )  # fmt: skip
    assert 2 * black.get_linewidths()[0] <= white.get_linewidths()[0]  # pyright: ignore


def test_difference_from_a_reference(result: SimilarityResult) -> None:
    for reference in ("closest", "a", 0.9):
        figure = figures.difference_from(result, "lincka", reference)
        assert_readable(figure)
        (image,) = axes_of(figure, "map").images
        low, high = image.get_clim()
        assert low == -high and image.get_cmap() == style.DIFFERENCES
        found = result.differences("lincka", reference)
        expected = np.where(found.reference, 0.0, found.difference)
        shown = np.ma.filled(image.get_array(), np.nan)
        np.testing.assert_array_equal(shown, expected)
        same = np.isfinite(found.difference.values) & ~found.differs.values
        assert edges(figure) == outline(same | found.reference.values, [4])
        # A dash tells the signs apart, where there are both.
        dashes = [c for c in axes_of(figure, "map").collections if c.get_gid() == "below zero"]
        assert bool(dashes) == bool((expected < 0).any() and (expected > 0).any())
    with pytest.raises(UserError, match="no reference 'c'"):
        figures.difference_from(result, "lincka", "c")
    with pytest.raises(UserError):
        figures.difference_from(result_of({"a": 3, "b": 3}), "lincka")


def test_maps_without_outlines(result: SimilarityResult, tmp_path: Path) -> None:
    without_errors = result_of({"a": 3, "b": 3})
    assert not edges(ss.plot(without_errors, "maxcorr"))
    assert not edges(ss.plot(result, "maxcorr", reference="none"))
    assert not edges(ss.plot(result, "maxcorr", style="paper"))  # as published
    sums = result.keeping_influence("clusters")
    assert not edges(ss.plot(sums, "maxcorr"))
    for lacking in (without_errors, sums):
        with pytest.raises(UserError):
            ss.plot(lacking, "maxcorr", reference="closest")
    # Figures of measures without errors are drawn all the same.
    assert ss.save_figures(without_errors, tmp_path, reference="closest")


def test_sums_of_clusters_say_the_same_of_clusters(result: SimilarityResult) -> None:
    sums = result.keeping_influence("clusters")
    assert sums.influence is not None and result.influence is not None
    np.testing.assert_allclose(
        sums.influence.cluster_sums("lincka"), result.influence.cluster_sums("lincka"), rtol=1e-6
    )
    assert result.keeping_influence("rows") is result
    assert result.keeping_influence("none").influence is None
