"""Dots on heat maps: the cells that are not found to differ from a reference."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import SimilarityResult
from tests.support.clustered import clustered_result
from tests.support.drawn import axes_of, drawn_texts, result_of


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return clustered_result()


def dots(figure: Figure) -> PathCollection | None:
    found = [c for c in axes_of(figure, "map").collections if c.get_gid() == "not different"]
    assert len(found) <= 1 and all(isinstance(c, PathCollection) for c in found)
    return found[0] if found else None  # pyright: ignore[reportReturnType]


def dotted(figure: Figure) -> set[tuple[int, int]]:
    """The cells with a dot, (row, column)."""
    drawn = dots(figure)
    assert drawn is not None
    return {(int(y), int(x)) for x, y in np.asarray(drawn.get_offsets())}


@pytest.mark.parametrize("reference", ["auto", "closest_of_row", ("a/1", "b/2"), 0.9])
def test_dots_are_on_the_cells_that_do_not_differ(result: SimilarityResult, reference) -> None:
    figure = ss.plot(result, "maxcorr", reference=reference)
    found = result.differences("maxcorr", "closest" if reference == "auto" else reference)
    same = ~found.differs.values & np.isfinite(found.difference.values)
    same |= found.reference.values
    assert dotted(figure) == {(int(x), int(y)) for x, y in np.argwhere(same)}
    assert 0 < same.sum() < same.size
    texts = [text.get_text().replace("\n", " ") for text in drawn_texts(figure)]
    assert any("rate 5 %" in text for text in texts)


def test_dots_can_be_read_on_every_colour(result: SimilarityResult) -> None:
    figure = ss.plot(result, "maxcorr", limits=(0, 1.5))
    drawn = dots(figure)
    assert drawn is not None
    (image,) = axes_of(figure, "map").images
    for (x, y), dot in zip(np.asarray(drawn.get_offsets()), drawn.get_facecolors(), strict=True):  # pyright: ignore
        below = image.to_rgba(result.matrix("maxcorr").values[int(y), int(x)])
        assert abs(np.mean(dot[:3]) - np.dot([0.299, 0.587, 0.114], np.asarray(below)[:3])) > 0.4


def test_maps_without_dots(result: SimilarityResult, tmp_path: Path) -> None:
    without_errors = result_of({"a": 3, "b": 3})
    assert dots(ss.plot(without_errors, "maxcorr")) is None
    assert dots(ss.plot(result, "maxcorr", reference="none")) is None
    assert dots(ss.plot(result, "maxcorr", style="paper")) is None  # as published
    sums = result.keeping_influence("clusters")
    assert dots(ss.plot(sums, "maxcorr")) is None
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
