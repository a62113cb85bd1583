"""Layers of two models by depth: which belong together, and what their scores are compared with."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

Columns = Int[np.ndarray, " x"]

# Floor of unrelated representations: the variable of its scores, and what these are called.
_FLOORS: Mapping[str, tuple[str, str]] = {
    "lincka_floor": ("lincka", "lincka"),
    "linreg_r2_floor": ("linreg_r2", "linreg_r2"),
    "svcca_rho2_floor": ("svcca_rho", "mean squared svcca_rho"),
}
_BASELINE_NAMES = {
    "diagonal": "x's head and its mean over equal distances",
    "shift": "x's head and itself half an utterance away",
}


class LayerMatches(NamedTuple):
    """For every layer of x, the position of its counterpart in y by three rules; -1 where none is.

    Attributes:
        best: the layer of y with the closest score.
        same: the layer of y at the nearest relative depth; within one model, the next layer.
        path: the layer of y on the monotone path of the greatest sum; None within one model.
    """

    best: Columns
    same: Columns
    path: Columns | None


class Floor(NamedTuple):
    """Scores, and what unrelated representations with independent rows would score.

    Attributes:
        name: what the scores are called.
        floor: the scores of unrelated representations of the same widths, [x, y].
        scores: the scores on the same scale, [x, y]; None if the result lacks them.
    """

    name: str
    floor: xr.DataArray
    scores: xr.DataArray | None


class Baseline(NamedTuple):
    """What the scores of attention heads are compared with.

    Attributes:
        name: which heads are compared, in words.
        scores: the mean over the heads of each layer, [x_attention].
    """

    name: str
    scores: xr.DataArray


def relative_depth(
    layers: Sequence[int] | np.ndarray, transformer_layers: int
) -> Float[np.ndarray, " layer"]:
    """Layers of one model over the number of its transformer layers: 0 to 1."""
    return np.asarray(layers, dtype=np.float64) / max(transformer_layers, 1)


def block_depths(
    block: xr.DataArray,
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " y"]]:
    """The relative depths of the rows and of the columns of `SimilarityResult.block`."""
    rows, columns = (block[f"{dim}_depth"].values for dim in block.dims)
    return rows, columns


def nearest_depth(
    x_depth: Float[np.ndarray, " x"], y_depth: Float[np.ndarray, " y"]
) -> Int[np.ndarray, " x"]:
    """For each depth of x the position of the nearest one of y, the first of equals."""
    # Rounded: 3 of 24 layers is as near to 1 as to 2 of 12, and not by the last bit of thirds.
    return np.abs(x_depth[:, None] - y_depth).round(9).argmin(axis=1)


def best_match(similarity: Float[np.ndarray, "x y"]) -> Columns:
    """The most similar column of each row, the first of equals; -1 where none is defined."""
    best = np.nan_to_num(similarity, nan=-np.inf).argmax(axis=1)
    return np.where(np.isnan(similarity).all(axis=1), -1, best)


def monotone_path(similarity: Float[np.ndarray, "x y"]) -> Columns:
    """A column for each row, never falling from row to row, of the greatest summed similarity.

    argmax over j_0 <= j_1 <= ... of sum_i s[i, j_i]: layers are matched as if both models went
    through the same stages in one order, at any pace. By dynamic programming, in O(x y): t[i, j],
    the best sum of the rows up to i that ends in column j, is
    s[i, j] + max_{k <= j} t[i - 1, k].

    Args:
        similarity: scores, the greater the more similar. A path through a cell that is not defined
            (NaN) is taken only if there is no other; of equals the leftmost end wins.

    Returns:
        The column of each row; -1 everywhere if no cell is defined.
    """
    defined = np.isfinite(similarity)
    if not defined.any():
        return np.full(len(similarity), -1)
    low, high = similarity[defined].min(), similarity[defined].max()
    # One such cell costs more than all the rest of a path can gain.
    total = np.where(defined, similarity, low - (high - low + 1) * len(similarity))
    for i in range(1, len(total)):
        total[i] += np.maximum.accumulate(total[i - 1])
    path, stop = np.empty(len(total), dtype=np.int64), total.shape[1]
    for i in reversed(range(len(total))):
        path[i] = total[i, :stop].argmax()
        stop = path[i] + 1
    return path


def match_layers(
    values: Float[np.ndarray, "x y"],
    x_depth: Float[np.ndarray, " x"],
    y_depth: Float[np.ndarray, " y"],
    *,
    same_model: bool = False,
    higher_is_closer: bool = True,
) -> LayerMatches:
    """Match every layer of x with layers of y: by score, by depth, and along a monotone path.

    Args:
        values: the scores of the layers of x (rows) with those of y.
        x_depth: relative depths of the rows.
        y_depth: relative depths of the columns.
        same_model: x and y are one model; then no layer is matched with itself, and there is no
            path, since every path matches some layer with itself (a map of a chain into itself
            that keeps the order has a fixed point).
        higher_is_closer: whether a greater score means more alike; False for distances.

    Returns:
        The columns that match each row.
    """
    similarity = np.array(values if higher_is_closer else -values, dtype=np.float64)
    if same_model:
        np.fill_diagonal(similarity, np.nan)
        return LayerMatches(best_match(similarity), np.append(np.arange(1, len(values)), -1), None)
    same = nearest_depth(x_depth, y_depth)
    return LayerMatches(best_match(similarity), same, monotone_path(similarity))


def matched_scores(values: Float[np.ndarray, "x y"], columns: Columns) -> Float[np.ndarray, " x"]:
    """The score of each row with the column that matches it; NaN where none does (-1)."""
    return np.where(columns < 0, np.nan, values[np.arange(len(values)), columns])


def floors(dataset: xr.Dataset) -> list[Floor]:
    """The floors that a result's dataset holds, each next to the scores that it belongs to."""
    present = []
    for variable, (score, name) in _FLOORS.items():
        if variable not in dataset:
            continue
        floor, scores = dataset[variable], None
        if score in dataset:
            scores = dataset[score]
            scores = (scores**2).mean("k") if "k" in scores.dims else scores
        elif variable == "linreg_r2_floor" and "linreg" in dataset:
            # linreg is the root of r², so its floor is the root of that of r².
            name, scores, floor = "linreg", dataset["linreg"], floor**0.5
        present.append(Floor(name, floor, scores))
    return present


def head_baselines(dataset: xr.Dataset, measure: str) -> list[Baseline]:
    """The baselines of a measure of attention heads in a result's dataset; empty without them."""
    variable = f"{measure}_baseline"
    if variable not in dataset:
        return []
    values = dataset[variable].mean("head_x").transpose("baseline", "x_attention")
    kinds = [str(kind) for kind in values["baseline"].values]
    return [
        Baseline(_BASELINE_NAMES.get(kind, kind), of_kind)
        for kind, of_kind in zip(kinds, values, strict=True)
    ]
