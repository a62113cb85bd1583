"""What the cells of a map are compared with: other cells of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int64

from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.results.depth import nearest_depth

CLOSEST = "closest"
CLOSEST_OF_ROW = "closest_of_row"

Positions = Int64[np.ndarray, "x y"]


def reference_cells(
    matrix: xr.DataArray,
    reference: Any,
    higher_is_closer: bool,
    transformer_layers: Mapping[str, int],
) -> tuple[Positions, Positions]:
    """The position of the reference of every cell; -1 where there is none.

    Args:
        matrix: scores, labelled.
        reference: "closest", of each row and model the closest layer; "closest_of_row"; the name of
            a model: its layer at the same relative depth, within half a layer, in the same row; or
            a cell (x, y).
        higher_is_closer: whether the measure is one of similarity.
        transformer_layers: of each model.

    Raises:
        UserError: another reference.
    """
    rows, columns = matrix.shape
    x, y = np.indices(matrix.shape)
    y_dim = matrix.dims[1]
    models, layers = (matrix[f"{y_dim}_{what}"].values for what in ("model", "layer"))
    if not isinstance(reference, str):
        labels = [list(map(str, matrix[dim].values)) for dim in matrix.dims]
        cell = [str(label) for label in reference] if isinstance(reference, Sequence) else []
        if len(cell) != 2 or not all(c in known for c, known in zip(cell, labels, strict=True)):
            raise UserError(
                f"reference {reference!r}: expected a cell (x, y) of labels such as 'model/3'"
            )
        at = [known.index(c) for c, known in zip(cell, labels, strict=True)]
        return np.full_like(x, at[0]), np.full_like(y, at[1])
    if reference == CLOSEST_OF_ROW:
        models = np.zeros(columns, dtype=int)
    elif reference in set(map(str, models)):
        counts = np.array([max(transformer_layers[str(model)], 1) for model in models])
        depths, of_model = layers / counts, np.flatnonzero(models == reference)
        nearest = of_model[nearest_depth(depths, depths[of_model])]
        # A little more than half: 5 of 10 layers lies between 1 and 2 of 3.
        there = np.abs(depths[nearest] - depths) * counts[nearest] <= 0.5 + 1e-9
        y = np.tile(np.where(there, nearest, -1), (rows, 1))
        return np.where(y < 0, -1, x), y
    elif reference != CLOSEST:
        words = [CLOSEST, CLOSEST_OF_ROW, "floor", *map(str, dict.fromkeys(models.tolist()))]
        raise UserError(
            f"no reference {reference!r}{did_you_mean(reference, words)}; expected "
            f"{CLOSEST!r}, {CLOSEST_OF_ROW!r}, 'floor', a model, a cell (x, y), a number or a "
            "matrix of numbers"
        )
    closeness = _without_selves(matrix) * (1 if higher_is_closer else -1)
    y = np.full_like(y, -1)
    for model in dict.fromkeys(models.tolist()):
        of_model = np.flatnonzero(models == model)
        block = closeness[:, of_model]
        known = np.isfinite(block).any(axis=1)
        best = of_model[np.where(np.isfinite(block), block, -np.inf).argmax(axis=1)]
        y[np.ix_(known, of_model)] = best[known, None]
    return np.where(y < 0, -1, x), y


def _without_selves(matrix: xr.DataArray) -> Float[np.ndarray, "x y"]:
    """The scores; NaN of a layer with itself."""
    selves = np.equal.outer(matrix[matrix.dims[0]].values, matrix[matrix.dims[1]].values)
    return np.where(selves, np.nan, np.asarray(matrix.values, dtype=np.float64))
