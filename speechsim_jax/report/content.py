"""The data of the page's figures and tables, read from a result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.colors import to_hex

from speechsim_jax.errors import printable
from speechsim_jax.figures.marks import not_different
from speechsim_jax.figures.style import SCORES, colour_limits, line_style
from speechsim_jax.figures.text_layout import short_names
from speechsim_jax.inference.differences import half_intervals
from speechsim_jax.report.packed import PackedArrays
from speechsim_jax.results.depth import (
    LayerMatches,
    floors,
    head_baselines,
    match_layers,
)
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.results.summary import letter

NEURONS_PER_PAIR = 20
NEURONS_PER_REPRESENTATION = 100
CORRELATIONS_PER_PAIR = 32
MOST_INFLUENTIAL = 5
MOST_PAIRS = 3 * 2**20
"""Pairs of cells with an interval of their difference, of all measures: a byte each."""

# Further matrices of a measure that the view of a cell has.
_FURTHER = ("_heldout", "_ridge_heldout", "_null", "_calibrated", "_p")
# Plotly's names of matplotlib's markers.
_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x",
}  # fmt: skip
_LOGARITHMIC = ("condition", "mean_to_std")
_INTEGER = ("width", "rank", "svcca_directions", "dead_neurons")


def page_data(result: SimilarityResult, arrays: PackedArrays) -> dict[str, Any]:
    """Everything that the page's scripts read.

    Args:
        result: what the page shows.
        arrays: the page's arrays, which are added to.

    Returns:
        What goes into the page as JSON; instead of an array, its entry in `arrays`.
    """
    axes = {
        "representation": compared_representations(result),
        "attention": result.attention_representations,
    }
    pairs = _pair_kinds(result)
    return {
        "models": _models(result),
        "axes": {name: _axis(result, representations) for name, representations in axes.items()},
        "colours": [to_hex(c) for c in SCORES(np.linspace(0, 1, 33))],
        "measures": [_measure(result, name, pairs.get(name), arrays) for name in result.measures],
        "correlations": _correlations(result.dataset, arrays),
        "matches": _matches(result.dataset, arrays),
        "neurons": _neurons(result, arrays),
        "facts": _facts(result, arrays),
        "floors": _floors(result, arrays),
        "influential": _influential(result, arrays),
    }


def has_layer_measures(result: SimilarityResult) -> bool:
    """Whether some measure compares layers as a whole, not their attention heads."""
    return any(result.matrix(name).dims[0] == "x" for name in result.measures)


def compared_representations(result: SimilarityResult) -> tuple[RepresentationName, ...]:
    """The representations that have scores: without layer 0 if all measures are of attention."""
    if has_layer_measures(result):
        return result.representations
    return result.attention_representations


def representation_facts(result: SimilarityResult) -> dict[str, Float[np.ndarray, " x"]]:
    """By name, the numbers that a result has for every representation; none without its scores."""
    variables = result.dataset.data_vars.items() if has_layer_measures(result) else ()
    return {
        str(name): np.asarray(values.values, dtype=np.float64)
        for name, values in variables
        if values.dims == ("x",) and values.dtype.kind in "iuf"
    }


def open_ends(declared: Sequence[float | int | None] | None) -> tuple[float | None, float | None]:
    """The ends of a measure's range; None where it has no end."""
    low, high = (
        None if end is None or np.isinf(end) else float(end) for end in declared or (None, None)
    )
    return low, high


def is_integer(fact: str) -> bool:
    """Whether a number of `representation_facts` is a count."""
    return fact in _INTEGER


def _models(result: SimilarityResult) -> list[dict[str, Any]]:
    styles = [line_style(index, 8) for index in range(len(result.models))]
    return [
        {
            "name": name,
            "short": short,
            "letter": letter(index),
            "colour": style["color"],
            "symbol": _SYMBOLS[style["marker"]],
        }
        for index, (name, short, style) in enumerate(
            zip(result.models, short_names(result.models), styles, strict=True)
        )
    ]


def _axis(
    result: SimilarityResult, representations: Sequence[RepresentationName]
) -> dict[str, Any]:
    models = np.array([result.models.index(name.model) for name in representations], dtype=int)
    layers = np.array([name.layer for name in representations], dtype=int)
    depths = result.relative_depths(representations) if representations else np.zeros(0)
    return {"model": models.tolist(), "layer": layers.tolist(), "depth": depths.tolist()}


def _measure(
    result: SimilarityResult, name: str, pairs: str | None, arrays: PackedArrays
) -> dict[str, Any]:
    matrix, definition = result.matrix(name), result.definition(name)
    values = np.asarray(matrix.values, dtype=np.float64)
    on_attention = matrix.dims[0] == "x_attention"
    representations = result.attention_representations if on_attention else result.representations
    declared = definition.get("range")
    limits = colour_limits(values, declared)
    closer = definition.get("higher_is_closer", True)
    ends = zip(open_ends(declared), limits, strict=True)
    return {
        "name": printable(name),
        "axis": "attention" if on_attention else "representation",
        "summary": printable(definition.get("summary") or ""),
        "directed": definition.get("symmetric") is False,
        "range": [limit if end is None else end for end, limit in ends],
        "limits": list(limits),
        "values": arrays.exact(values),
        "half": _half_interval(result, name, arrays),
        "pairs": _pairs(result, name, pairs, arrays) if pairs else None,
        "marks": _marks(result, name, arrays),
        "further": [
            {"name": printable(further), "values": arrays.exact(result.matrix(further).values)}
            for further in (f"{name}{ending}" for ending in _FURTHER)
            if further in result.dataset
        ],
        "alignment": _alignment(result, representations, values, closer, arrays),
        "heads": _heads(result.dataset, name, arrays),
        "baselines": [
            {"name": printable(baseline.name), "values": arrays.exact(baseline.scores.values)}
            for baseline in head_baselines(result.dataset, name)
        ],
    }


def _influential(result: SimilarityResult, arrays: PackedArrays) -> dict[str, Any] | None:
    """The clusters that move each score most, and by how much; None without influences.

    By measure, [place, x, y], most first.
    """
    table = result.known_influence
    if table is None:
        return None
    at = [table.labels.index(str(name)) for name in result.representations]
    measures = {}
    for name in table.values:
        if name not in result.measures:
            continue
        sums = table.cluster_sums(name)[:, at][:, :, at]
        order = np.argsort(-np.abs(sums), axis=0)[:MOST_INFLUENTIAL]
        moved = np.take_along_axis(sums, order, axis=0)
        measures[printable(name)] = {
            "cluster": arrays.integers(order),
            "moved": arrays.exact(moved),
        }
    kind = result.attributes["errors"]["over"]
    return {"kind": kind, "names": list(map(printable, table.clusters.names)), "of": measures}


def _half_interval(
    result: SimilarityResult, name: str, arrays: PackedArrays
) -> dict[str, Any] | None:
    """Half the width of the 95 % interval of every score; None without standard errors."""
    if f"{name}_se" not in result.dataset:
        return None
    return arrays.exact(result.half_interval(name).values)


def _marks(result: SimilarityResult, name: str, arrays: PackedArrays) -> dict[str, Any] | None:
    """The cells that get a dot, as on the figures for print; None where there are none."""
    marks = not_different(result, name) if f"{name}_se" in result.dataset else None
    if marks is None:
        return None
    return {"cells": arrays.integers(marks.cells.astype(int)), "text": marks.text}


def _pair_kinds(result: SimilarityResult) -> dict[str, str]:
    """By measure, of which pairs of cells the page has the interval of the difference.

    "all"; or, where these are too many for the page, "lines", those of one row or column; none.
    """
    names = [name for name in result.measures if result.matrix(name).dims == ("x", "y")]
    names = [name for name in names if result.influence_of_rows(name) is not None]
    size = len(result.representations)
    cells = {name: len(_cells(result, name)[0]) for name in names}
    lines = {name: size * (1 + _directed(result, name)) * size * (size - 1) // 2 for name in names}
    if sum(count * (count - 1) // 2 for count in cells.values()) <= MOST_PAIRS:
        return dict.fromkeys(names, "all")
    return dict.fromkeys(names, "lines") if sum(lines.values()) <= MOST_PAIRS else {}


def _directed(result: SimilarityResult, name: str) -> bool:
    return result.definition(name).get("symmetric") is not True


def _cells(result: SimilarityResult, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (x, y) of all cells; of a symmetric measure those with x <= y."""
    size = len(result.representations)
    if _directed(result, name):
        x, y = np.indices((size, size))
        return x.ravel(), y.ravel()
    return np.triu_indices(size)


def _pairs(result: SimilarityResult, name: str, kind: str, arrays: PackedArrays) -> dict[str, Any]:
    """Half the 95 % interval of the difference of every two cells, as logarithms.

    Of N cells those (a, b) with a < b, one after the other. "all": of all cells. "lines": by row
    [x, pair of y], and, of a directed measure, by column [y, pair of x].
    """
    table = result.influence_of_rows(name)
    assert table is not None
    at = np.array([table.labels.index(str(label)) for label in result.representations])

    def halves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        half = half_intervals(table, name, at[x], at[y])
        return half[np.triu_indices(len(half), 1)]

    if kind == "all":
        return {"kind": kind, "of": arrays.logarithms(halves(*_cells(result, name)))}
    every = np.arange(len(at))
    rows = np.stack([halves(np.full_like(every, k), every) for k in every])
    lines = {"kind": kind, "of": arrays.logarithms(rows), "columns": None}
    if _directed(result, name):
        columns = np.stack([halves(every, np.full_like(every, k)) for k in every])
        lines["columns"] = arrays.logarithms(columns)
    return lines


def _alignment(
    result: SimilarityResult,
    representations: Sequence[RepresentationName],
    values: Float[np.ndarray, "x x"],
    higher_is_closer: bool,
    arrays: PackedArrays,
) -> dict[str, Any]:
    """By rule ("best", "same", "path"): for every model y [y, x], the layer of y that matches x.

    Positions on the measure's axis; -1 where there is none. A model is matched with itself only if
    it is alone. See `results.depth.match_layers`.
    """
    models, depths = result.models, result.relative_depths(representations)
    of_model = np.array([models.index(representation.model) for representation in representations])
    positions = {
        rule: np.full((len(models), len(representations)), -1) for rule in LayerMatches._fields
    }
    for x in np.unique(of_model):
        for y in np.unique(of_model):
            if x == y and len(models) > 1:
                continue
            rows, columns = np.flatnonzero(of_model == x), np.flatnonzero(of_model == y)
            matches = match_layers(
                values[np.ix_(rows, columns)],
                depths[rows],
                depths[columns],
                same_model=bool(x == y),
                higher_is_closer=higher_is_closer,
            )
            for rule, match in matches._asdict().items():
                if match is not None:
                    positions[rule][y, rows] = np.where(match < 0, -1, columns[match])
    return {rule: arrays.integers(matched) for rule, matched in positions.items()}


def _heads(dataset: xr.Dataset, measure: str, arrays: PackedArrays) -> dict[str, Any] | None:
    """The best match of every head in every other layer."""
    if f"{measure}_best" not in dataset:
        return None
    best, match = dataset[f"{measure}_best"], dataset[f"{measure}_match"]
    return {"best": arrays.rounded(best.values), "match": arrays.integers(match.values)}


def _correlations(dataset: xr.Dataset, arrays: PackedArrays) -> dict[str, Any] | None:
    """For every pair some canonical correlations, evenly spaced from the first to the last."""
    if "svcca_rho" not in dataset:
        return None
    rho = dataset["svcca_rho"].values
    count = np.isfinite(rho).sum(axis=2)
    share = np.linspace(0, 1, min(CORRELATIONS_PER_PAIR, rho.shape[2]))
    # Halves are rounded up, as by the page's script, which numbers the correlations.
    indices = np.floor(share * np.maximum(count - 1, 0)[:, :, None] + 0.5).astype(np.int64)
    values = np.take_along_axis(rho, indices, axis=2)
    return {"count": arrays.integers(count), "values": arrays.rounded(values)}


def _matches(dataset: xr.Dataset, arrays: PackedArrays) -> dict[str, Any] | None:
    """For every pair the neurons of x with the best matches in y."""
    if not {"best_corr", "best_match"} <= set(dataset):
        return None
    corr, match = dataset["best_corr"].values, dataset["best_match"].values
    count = min(NEURONS_PER_PAIR, corr.shape[2])
    falling = -np.nan_to_num(corr, nan=-1)
    first = np.argpartition(falling, count - 1, axis=2)[:, :, :count]
    order = np.argsort(np.take_along_axis(falling, first, axis=2), axis=2, kind="stable")
    neuron = np.take_along_axis(first, order, axis=2)
    best = np.take_along_axis(corr, neuron, axis=2)
    return {
        "neuron": arrays.integers(np.where(np.isfinite(best), neuron, -1)),
        "match": arrays.integers(np.take_along_axis(match, neuron, axis=2)),
        "corr": arrays.rounded(best),
    }


def _neurons(result: SimilarityResult, arrays: PackedArrays) -> dict[str, Any] | None:
    """For every representation the neurons with the best matches in all other models.

    The first neurons of `mincorr`'s ranking, each with its best correlation over the layers of each
    other model, and the representation and the neuron that have it. A model alone is compared with
    its own other layers.
    """
    dataset = result.dataset
    if not {"best_corr", "best_match"} <= set(dataset):
        return None
    corr, match = dataset["best_corr"].values, dataset["best_match"].values
    of_model = np.array([result.models.index(name.model) for name in result.representations])
    alone = len(result.models) == 1
    shape = len(of_model), len(result.models), corr.shape[2]
    value = np.full(shape, np.nan, np.float32)
    place, winner = np.full(shape, -1), np.full(shape, -1)
    for y in range(len(result.models)):
        columns = np.flatnonzero(of_model == y)
        block = corr[:, columns]
        hidden = of_model == y
        if alone:  # only the same layer is left out
            block[columns, np.arange(len(columns))] = np.nan
            hidden = np.zeros(len(of_model), dtype=bool)
        best = np.nan_to_num(block, nan=-1).argmax(axis=1)
        value[:, y] = np.take_along_axis(block, best[:, None], axis=1)[:, 0]
        value[hidden, y] = np.nan
        place[:, y] = columns[best]
        winner[:, y] = np.take_along_axis(match[:, columns], best[:, None], axis=1)[:, 0]
    first = _best_everywhere(value)[:, None]
    value, place, winner = (
        np.take_along_axis(array, first, axis=2) for array in (value, place, winner)
    )
    defined = np.isfinite(value)
    return {
        "neuron": arrays.integers(np.where(defined.any(axis=1), first[:, 0], -1)),
        "value": arrays.rounded(value),
        "place": arrays.integers(np.where(defined, place, -1)),
        "winner": arrays.integers(np.where(defined, winner, -1)),
    }


def _best_everywhere(value: Float[np.ndarray, "x y neuron"]) -> np.ndarray:
    """The neurons with the greatest smallest value, best first; ties keep the neurons' order."""
    smallest = np.fmin.reduce(value, axis=1)
    order = np.argsort(-np.nan_to_num(smallest, nan=-1), axis=1, kind="stable")
    return order[:, :NEURONS_PER_REPRESENTATION]


def _facts(result: SimilarityResult, arrays: PackedArrays) -> list[dict[str, Any]]:
    return [
        {
            "name": printable(name),
            "values": arrays.exact(values),
            "logarithmic": name in _LOGARITHMIC,
            "integer": is_integer(name),
        }
        for name, values in representation_facts(result).items()
    ]


def _floors(result: SimilarityResult, arrays: PackedArrays) -> list[dict[str, Any]]:
    return [
        {
            "name": printable(name),
            "floor": arrays.exact(floor.values),
            "values": None if scores is None else arrays.exact(scores.values),
        }
        for name, floor, scores in floors(result.dataset)
    ]
