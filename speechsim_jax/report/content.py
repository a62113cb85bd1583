"""What the page's figures and tables are made of, read from a result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.colors import to_hex

from speechsim_jax.figures.style import SCORES, colour_limits, line_style
from speechsim_jax.figures.text_layout import short_names
from speechsim_jax.report.alignment import best_match, monotone_path, same_depth
from speechsim_jax.report.packed import Packed
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.results.summary import letter

NEURONS_A_CELL = 20
NEURONS_A_REPRESENTATION = 100
CORRELATIONS_A_CELL = 32
# How plotly calls matplotlib's markers.
_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x",
}  # fmt: skip
_BASELINES = {
    "diagonal": "x's head and its mean over equal distances",
    "shift": "x's head and itself half an utterance away",
}
_LOGARITHMIC = ("condition", "mean_to_std")
_WHOLE = ("width", "rank", "svcca_directions", "dead_neurons")


def page_data(result: SimilarityResult, packed: Packed) -> dict[str, Any]:
    """All that the page's scripts read; the arrays go into `packed`."""
    axes = {"representation": compared(result), "attention": result.attention_representations}
    return {
        "models": _models(result),
        "axes": {name: _axis(result, representations) for name, representations in axes.items()},
        "colours": [to_hex(c) for c in SCORES(np.linspace(0, 1, 33))],
        "measures": [_measure(result, name, packed) for name in result.measures],
        "correlations": _correlations(result.dataset, packed),
        "matches": _matches(result.dataset, packed),
        "neurons": _neurons(result, packed),
        "facts": _facts(result, packed),
        "floors": _floors(result, packed),
    }


def on_layers(result: SimilarityResult) -> bool:
    """Whether a measure compares layers, not only their attention heads."""
    return any(result.matrix(name).dims[0] == "x" for name in result.measures)


def compared(result: SimilarityResult) -> tuple[RepresentationName, ...]:
    """The representations that the measures have: without layer 0 if all of them are of attention."""
    return result.representations if on_layers(result) else result.attention_representations


def representation_facts(result: SimilarityResult) -> dict[str, Float[np.ndarray, " x"]]:
    """The numbers that a result has for every representation, by name; they stand beside scores only."""
    found = result.dataset.data_vars.items() if on_layers(result) else ()
    return {
        str(name): np.asarray(values.values, dtype=np.float64)
        for name, values in found
        if values.dims == ("x",) and values.dtype.kind in "iuf"
    }


def open_ends(declared: Sequence[float | int | None] | None) -> tuple[float | None, float | None]:
    """The ends of a measure's range; None where it has no end."""
    low, high = (
        None if end is None or np.isinf(end) else float(end) for end in declared or (None, None)
    )
    return low, high


def is_whole(fact: str) -> bool:
    """Whether a representation's number counts something."""
    return fact in _WHOLE


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
    deepest = {n.model: n.layer for n in sorted(representations, key=lambda n: n.layer)}
    return {
        "model": [result.models.index(representation.model) for representation in representations],
        "layer": [representation.layer for representation in representations],
        "depth": [
            representation.layer / max(deepest[representation.model], 1)
            for representation in representations
        ],
    }


def _measure(result: SimilarityResult, name: str, packed: Packed) -> dict[str, Any]:
    matrix, definition = result.matrix(name), result.definition(name)
    values = np.asarray(matrix.values, dtype=np.float64)
    on_attention = matrix.dims[0] == "x_attention"
    representations = result.attention_representations if on_attention else result.representations
    declared = definition.get("range")
    limits = colour_limits(values, declared)
    ends = zip(open_ends(declared), limits, strict=True)
    return {
        "name": name,
        "axis": "attention" if on_attention else "representation",
        "summary": definition.get("summary") or "",
        "directed": definition.get("symmetric") is False,
        "distance": name.endswith("_distance"),
        "range": [shown if end is None else end for end, shown in ends],
        "limits": list(limits),
        "values": packed.exact(values),
        "alignment": _alignment(result.models, representations, name, values, packed),
        "heads": _heads(result.dataset, name, packed),
        "baselines": _baselines(result.dataset, name, packed),
    }


def _alignment(
    models: Sequence[str],
    representations: Sequence[RepresentationName],
    measure: str,
    values: Float[np.ndarray, "x x"],
    packed: Packed,
) -> dict[str, Any]:
    """For every representation, and every model y: which representation of y is its best match, and so on.

    Positions on the measure's axis; a model against itself only if it is alone: then the best
    *other* layer and the next one, and no path, since every path matches some layer with itself (a
    map of a chain into itself that keeps the order has a fixed point).
    """
    of_model = np.array([models.index(representation.model) for representation in representations])
    layer = np.array([representation.layer for representation in representations])
    found = {
        kind: np.full((len(models), len(representations)), -1) for kind in ("best", "path", "same")
    }
    for x in np.unique(of_model):
        for y in np.unique(of_model):
            own = bool(x == y)
            if own and len(models) > 1:
                continue
            rows, columns = np.flatnonzero(of_model == x), np.flatnonzero(of_model == y)
            block = values[np.ix_(rows, columns)] * (-1 if measure.endswith("_distance") else 1)
            if own:
                np.fill_diagonal(block, np.nan)
            depths = [layer[part] / max(layer[part].max(), 1) for part in (rows, columns)]
            kinds = {"best": best_match(block)}
            if own:
                kinds["same"] = np.append(np.arange(1, len(rows)), -1)
            else:
                kinds |= {"path": monotone_path(block), "same": same_depth(*depths)}
            for kind, match in kinds.items():
                found[kind][y, rows] = np.where(match < 0, -1, columns[match])
    return {kind: packed.whole(places) for kind, places in found.items()}


def _heads(dataset: xr.Dataset, measure: str, packed: Packed) -> dict[str, Any] | None:
    """The best counterpart of every head in every other layer."""
    if f"{measure}_best" not in dataset:
        return None
    best, match = dataset[f"{measure}_best"], dataset[f"{measure}_match"]
    return {"best": packed.rounded(best.values), "match": packed.whole(match.values)}


def _baselines(dataset: xr.Dataset, measure: str, packed: Packed) -> list[dict[str, Any]]:
    """What attention heads are held against: name, and mean over the heads of each layer."""
    if f"{measure}_baseline" not in dataset:
        return []
    values = dataset[f"{measure}_baseline"].mean("head_x").transpose("baseline", "x_attention")
    kinds = [str(kind) for kind in values["baseline"].values]
    return [
        {"name": _BASELINES.get(kind, kind), "values": packed.exact(of)}
        for kind, of in zip(kinds, values.values, strict=True)
    ]


def _correlations(dataset: xr.Dataset, packed: Packed) -> dict[str, Any] | None:
    """Of every two representations some canonical correlations, evenly from the first to the last."""
    if "svcca_rho" not in dataset:
        return None
    rho = dataset["svcca_rho"].values
    count = np.isfinite(rho).sum(axis=2)
    share = np.linspace(0, 1, min(CORRELATIONS_A_CELL, rho.shape[2]))
    # Halves go up, as they do where the page numbers the correlations.
    places = np.floor(share * np.maximum(count - 1, 0)[:, :, None] + 0.5).astype(np.int64)
    values = np.take_along_axis(rho, places, axis=2)
    return {"count": packed.whole(count), "values": packed.rounded(values)}


def _matches(dataset: xr.Dataset, packed: Packed) -> dict[str, Any] | None:
    """Of every two representations the neurons of x that are found again best in y."""
    if not {"best_corr", "best_match"} <= set(dataset):
        return None
    corr, match = dataset["best_corr"].values, dataset["best_match"].values
    kept = min(NEURONS_A_CELL, corr.shape[2])
    falling = -np.nan_to_num(corr, nan=-1)
    some = np.argpartition(falling, kept - 1, axis=2)[:, :, :kept]
    order = np.argsort(np.take_along_axis(falling, some, axis=2), axis=2, kind="stable")
    neuron = np.take_along_axis(some, order, axis=2)
    best = np.take_along_axis(corr, neuron, axis=2)
    return {
        "neuron": packed.whole(np.where(np.isfinite(best), neuron, -1)),
        "match": packed.whole(np.take_along_axis(match, neuron, axis=2)),
        "corr": packed.rounded(best),
    }


def _neurons(result: SimilarityResult, packed: Packed) -> dict[str, Any] | None:
    """Of every representation the neurons that are found again best in all other models.

    The first of `mincorr`'s ranking: of each, and each other model, its best correlation over the
    model's layers, and the representation and the neuron that have it. A model alone: its other
    layers.
    """
    dataset = result.dataset
    if not {"best_corr", "best_match"} <= set(dataset):
        return None
    corr, match = dataset["best_corr"].values, dataset["best_match"].values
    of_model = np.array(
        [result.models.index(representation.model) for representation in result.representations]
    )
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
    kept = _best_everywhere(value)[:, None]
    chosen = [np.take_along_axis(array, kept, axis=2) for array in (value, place, winner)]
    defined = np.isfinite(chosen[0])
    known = defined.any(axis=1)
    return {
        "neuron": packed.whole(np.where(known, kept[:, 0], -1)),
        "value": packed.rounded(chosen[0]),
        "place": packed.whole(np.where(defined, chosen[1], -1)),
        "winner": packed.whole(np.where(defined, chosen[2], -1)),
    }


def _best_everywhere(value: Float[np.ndarray, "x y neuron"]) -> np.ndarray:
    """The neurons with the greatest smallest value [x, place]; ties keep the neurons' order."""
    smallest = np.fmin.reduce(value, axis=1)
    order = np.argsort(-np.nan_to_num(smallest, nan=-1), axis=1, kind="stable")
    return order[:, :NEURONS_A_REPRESENTATION]


def _facts(result: SimilarityResult, packed: Packed) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "values": packed.exact(values),
            "logarithmic": name in _LOGARITHMIC,
            "whole": is_whole(name),
        }
        for name, values in representation_facts(result).items()
    ]


# A floor, the scores that it belongs to, and how it is brought to their scale.
_FLOORS: Mapping[str, tuple[str, str]] = {
    "lincka_floor": ("lincka", "lincka"),
    "linreg_r2_floor": ("linreg_r2", "linreg_r2"),
    "svcca_rho2_floor": ("svcca_rho", "mean squared svcca_rho"),
}


def _floors(result: SimilarityResult, packed: Packed) -> list[dict[str, Any]]:
    """Scores beside the floors of unrelated representations, both [x, y]; scores may be missing."""
    dataset = result.dataset
    found = []
    for floor, (name, label) in _FLOORS.items():
        if floor not in dataset:
            continue
        values = dataset[floor].values
        score = None
        if name in dataset:
            score = dataset[name]
            score = (score**2).mean("k").values if "k" in score.dims else score.values
        elif floor == "linreg_r2_floor" and "linreg" in dataset:
            label, score, values = "linreg", dataset["linreg"].values, values**0.5
        found.append(
            {
                "name": label,
                "floor": packed.exact(values),
                "values": None if score is None else packed.exact(score),
            }
        )
    return found
