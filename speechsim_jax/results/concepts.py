"""Content, localisation and agreement over depth, read off a result with tracks.

- *content* of a track in a layer: the mean multiple correlation of the track's columns (the
  indicators of phones, the bands of log-mel) with all neurons of the layer: `linreg` of the track
  with the layer. Its held-out score is fitted on half of the speakers or utterances;
- *localisation* of a label: the mean over its classes of the best neuron's |correlation| over the
  readability, and that of rotated layers, which is what axes without a meaning would have;
- *agreement* of two layers on a label: Cohen's kappa of the classes of best-matched neurons.
"""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from speechsim_jax.errors import UserError
from speechsim_jax.results.depth import nearest_depth, relative_depth
from speechsim_jax.results.result import SimilarityResult

CONTENT = "linreg"
"""The measure that content is read off."""


@dataclasses.dataclass(frozen=True, eq=False)
class DepthCurve:
    """Values of the layers of a model.

    Attributes:
        model: The model.
        track: Of which they are.
        layers: Numbers of the layers.
        depth: Relative depth of each layer.
        values: Of each layer.
        half: Half the width of the 95 % interval of each, NaN where there is none.
        other: Held-out values, or those of rotated layers; NaN where there are none.
    """

    model: str
    track: str
    layers: Int[np.ndarray, " layer"]
    depth: Float[np.ndarray, " layer"]
    values: Float[np.ndarray, " layer"]
    half: Float[np.ndarray, " layer"]
    other: Float[np.ndarray, " layer"]

    @property
    def best(self) -> int | None:
        """Where the largest value is; None where none is known."""
        known = np.isfinite(self.values)
        return int(np.nanargmax(self.values)) if known.any() else None


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """How far best-matched neurons of two models encode the same classes, layer by layer.

    Each layer of x stands with the layer of y at the nearest relative depth.

    Attributes:
        x, y: The models.
        track: The label.
        layers: Of x and of y.
        depth: Relative depth of the layers of x.
        observed: The share of x's neurons whose class is that of their match.
        chance: The share that chance would give.
        kappa: Cohen's kappa.
        kappa_error: Its standard error; NaN where it is not known.
    """

    x: str
    y: str
    track: str
    layers: tuple[tuple[int, int], ...]
    depth: Float[np.ndarray, " layer"]
    observed: Float[np.ndarray, " layer"]
    chance: Float[np.ndarray, " layer"]
    kappa: Float[np.ndarray, " layer"]
    kappa_error: Float[np.ndarray, " layer"]


@dataclasses.dataclass(frozen=True, eq=False)
class Concepts:
    """What models encode, read off one result.

    Attributes:
        models: The models, without tracks.
        labels: The label tracks.
        features: The other tracks.
        content: Of every model and track.
        localisation: Of every model and label.
        agreement: Of every ordered pair of models and label.
    """

    models: tuple[str, ...]
    labels: tuple[str, ...]
    features: tuple[str, ...]
    content: tuple[DepthCurve, ...]
    localisation: tuple[DepthCurve, ...]
    agreement: tuple[Agreement, ...]


def read_concepts(result: SimilarityResult) -> Concepts:
    """Read content, localisation and agreement off a result.

    Args:
        result: With label tracks or features, and the measure linreg.

    Raises:
        UserError: No tracks, or no linreg.
    """
    if CONTENT not in result.measures:
        raise UserError(f"content is read off {CONTENT}, which this result lacks")
    labels, features = result.label_tracks, result.feature_tracks
    if not labels and not features:
        raise UserError("this result has no tracks; name some (--tracks, --labels)")
    models = result.compared_models
    tracks = (*labels, *features)
    return Concepts(
        models,
        labels,
        features,
        tuple(_content(result, model, track) for track in tracks for model in models),
        tuple(_localisation(result, model, track) for track in labels for model in models),
        tuple(
            _agreement(result, x, y, track)
            for track in labels
            for x in models
            for y in models
            if x != y
        ),
    )


def _layers(result: SimilarityResult, model: str) -> list[int]:
    return [name.layer for name in result.representations if name.model == model]


def _depths(result: SimilarityResult, model: str) -> Float[np.ndarray, " layer"]:
    return relative_depth(_layers(result, model), result.transformer_layers[model])


def _content(result: SimilarityResult, model: str, track: str) -> DepthCurve:
    layers = _layers(result, model)
    cells = {"x": f"{track}/0", "y": [f"{model}/{layer}" for layer in layers]}

    def of(name: str) -> np.ndarray:
        if name not in result.dataset:
            return np.full(len(layers), np.nan)
        return result.dataset[name].sel(cells).values

    half = np.full(len(layers), np.nan)
    if f"{CONTENT}_se" in result.dataset:
        half = result.half_interval(CONTENT).sel(cells).values
    heldout = of(f"{CONTENT}_heldout")
    if "readability_heldout" in result.dataset and track in result.dataset["track"].values:
        # Without classes that are in one fold only.
        held = of_classes(result, "readability_heldout", track)
        heldout = held.sel(x=cells["y"]).mean("class").values
    depth = _depths(result, model)
    return DepthCurve(model, track, np.array(layers), depth, of(CONTENT), half, heldout)


def of_classes(result: SimilarityResult, name: str, track: str) -> xr.DataArray:
    """The values [x, class] of one label track.

    Args:
        result: With label tracks.
        name: Of the values, as "readability".
        track: The label.

    Raises:
        UserError: The result lacks them.
    """
    number = list(map(str, result.dataset["track"].values)).index(track)
    classes = np.flatnonzero(result.dataset["class_track"].values == number)
    return result.matrix(name).isel({"class": classes})


def _localisation(result: SimilarityResult, model: str, track: str) -> DepthCurve:
    layers = _layers(result, model)
    names = [f"{model}/{layer}" for layer in layers]

    def mean(name: str) -> np.ndarray:
        return of_classes(result, name, track).sel(x=names).mean("class").values

    values, rotated = mean("localisation"), mean("localisation_rotated")
    depth, unknown = _depths(result, model), np.full(len(layers), np.nan)
    return DepthCurve(model, track, np.array(layers), depth, values, unknown, rotated)


def _agreement(result: SimilarityResult, x: str, y: str, track: str) -> Agreement:
    of_x, of_y = (np.array(_layers(result, model)) for model in (x, y))
    depth = _depths(result, x)
    columns = of_y[nearest_depth(depth, _depths(result, y))]
    pairs = tuple(zip(of_x.tolist(), columns.tolist()))
    rows = xr.DataArray([f"{x}/{l}" for l, _ in pairs], dims="layer")
    matches = xr.DataArray([f"{y}/{m}" for _, m in pairs], dims="layer")

    def of(ending: str) -> np.ndarray:
        name = f"concept_agreement{ending}"
        if name not in result.dataset:
            return np.full(len(pairs), np.nan)
        return result.dataset[name].sel(x=rows, y=matches, track=track).values

    found = (of(ending) for ending in ("", "_chance", "_kappa", "_kappa_se"))
    return Agreement(x, y, track, pairs, depth, *found)


NEURON_COLUMNS = (
    "model", "layer", "track", "class", "neuron", "correlation", "eta2", "readability",
    "localisation", "localisation_rotated",
)  # fmt: skip
"""Of `neuron_rows`."""


def neuron_rows(result: SimilarityResult, models: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """For every layer and class the neuron that encodes it best, as `NEURON_COLUMNS`.

    Args:
        result: With label tracks.
        models: Whose layers.
    """
    data = result.dataset
    tracks = [str(track) for track in data["track"].values]
    names = [str(name) for name in data["class"].values]
    of_class = data["class_track"].values.tolist()
    neuron, correlation = data["class_neuron"].values, data["class_neuron_corr"].values
    further = [data[name].values for name in NEURON_COLUMNS[-3:]]
    shares = data["neuron_eta2"].values
    for row, name in enumerate(result.representations):
        if name.model not in models:
            continue
        for column, class_ in enumerate(names):
            number, best = of_class[column], int(neuron[row, column])
            if best < 0:
                continue
            track, share = tracks[number], shares[row, best, number]
            label = class_[len(track) + 1 :]
            yield (
                name.model, name.layer, track, label, best, correlation[row, column], share,
                *(values[row, column] for values in further),
            )  # fmt: skip


def neuron_table(result: SimilarityResult, models: Sequence[str]) -> str:
    """`neuron_rows` as CSV text with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(NEURON_COLUMNS)
    for row in neuron_rows(result, models):
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    return text.getvalue()


def rank_correlation(curve: DepthCurve, accuracies: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation over layers of content with a probe's accuracies.

    Args:
        curve: Content of the layers; held-out content where it is known.
        accuracies: Of the same layers, all of the model's from 0 on.

    Raises:
        UserError: The probe was of fewer layers.
    """
    if curve.layers.max() >= len(accuracies):
        raise UserError(
            f"{curve.model}: the probe has {len(accuracies)} layers, and layer "
            f"{curve.layers.max()} is compared"
        )
    import scipy.stats  # takes half a second

    values = curve.other if np.isfinite(curve.other).all() else curve.values
    ranks, _ = scipy.stats.spearmanr(values, np.asarray(accuracies)[curve.layers])
    return float(np.asarray(ranks))
