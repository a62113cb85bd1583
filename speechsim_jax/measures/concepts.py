"""What neurons and layers know of labels, as phones or speakers, from finished moments.

A label track is a representation with one column a class, 1 in the rows of that class and 0
elsewhere, so that its cross moments with a layer hold the mean of every neuron in every class. Rows
without a label are rows of zeros: one more class.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.inference.influence_rows import RepresentationRows
from speechsim_jax.inference.standard_errors import (
    LEAST_CLUSTERS,
    ClusterInfluence,
    SampledClusters,
    standard_error,
)
from speechsim_jax.measures.agreement import AgreementErrors, agreement
from speechsim_jax.measures.base import PairRows, RepresentationPair
from speechsim_jax.measures.heldout import HeldOutPair
from speechsim_jax.measures.neuron import ROTATIONS, rotated_axes, winners
from speechsim_jax.measures.regression import (
    coefficients_of,
    linreg_r2_global,
    linreg_r2_global_influence,
    linreg_r2_heldout,
    linreg_r2_influence,
    multiple_correlations,
    on_directions,
    predicted,
)
from speechsim_jax.statistics.clustered_sample import ClusteredSample
from speechsim_jax.statistics.folded_moments import (
    FinishedFolds,
    FoldedMoments,
    UtteranceFolds,
)
from speechsim_jax.statistics.linalg import Vector, map_in_threads
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState

Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]

# Correlations of every neuron with every class are kept up to this size.
_MOST_BYTES = 2**26
# Rows that influences are computed of together.
_ROWS_AT_A_TIME = 1024
# Of two representations.
_OF_TWO = ("concept_agreement", "concept_agreement_chance", "concept_agreement_kappa")
_DIMS = {
    "eta2": ("x", "track"),
    "eta2_global": ("x", "track"),
    "readability": ("x", "class"),
    "localisation": ("x", "class"),
    "localisation_rotated": ("x", "class"),
    "neuron_eta2": ("x", "neuron", "track"),
    "neuron_class": ("x", "neuron", "track"),
    "neuron_class_corr": ("x", "neuron", "track"),
    "class_neuron": ("x", "class"),
    "class_neuron_corr": ("x", "class"),
    "class_corr": ("x", "neuron", "class"),
    **dict.fromkeys(_OF_TWO, ("x", "y", "track")),
}
_ENDINGS = ("_error", "_se", "_heldout")


@dataclasses.dataclass(frozen=True)
class LabelTrack:
    """A label track among the representations.

    Attributes:
      name: as "phone".
      number: of its representation.
      classes: of its columns.
    """

    name: str
    number: int
    classes: tuple[str, ...]


def eta2(pair: RepresentationPair) -> Vector:
    """The share of each neuron's variance that lies between the classes of y; NaN if it is dead.

    eta squared of an analysis of variance, the R^2 of the neuron on the indicators.
    """
    shares = np.full(pair.x.width, np.nan)
    shares[pair.x.live] = np.square(multiple_correlations(pair))
    return shares


def readability(pair: RepresentationPair) -> Vector:
    """The multiple correlation of the indicator of each class of y with all neurons of x."""
    read = np.full(pair.y.width, np.nan)
    read[pair.y.live] = multiple_correlations(pair.swapped)
    return read


def localisation(pair: RepresentationPair) -> Vector:
    """How much of a class one neuron says: its best |correlation| over the readability.

    In (0, 1] for each class of y; 1: one neuron of x says as much as all of them.
    """
    best = np.abs(pair.correlation).max(axis=0, initial=0)
    return _ratio(best, pair.once(readability))


def rotated_localisation(pairs: Sequence[RepresentationPair]) -> list[Vector]:
    """The localisation to expect if x's axes meant nothing: its mean over rotations of x.

    Args:
      pairs: of one x, which is rotated once for all of them, and several label tracks y.
    """
    totals = [np.zeros(int(pair.y.live.sum())) for pair in pairs]
    for draw in range(ROTATIONS):
        axes = rotated_axes(pairs[0].x.whitening, draw) if pairs else None
        for pair, total in zip(pairs, totals):
            total += np.abs(on_directions(pair.swapped) @ axes).max(axis=1, initial=0)
    found = []
    for pair, total in zip(pairs, totals):
        best = np.full(pair.y.width, np.nan)
        best[pair.y.live] = total / ROTATIONS
        found.append(_ratio(best, pair.once(readability)))
    return found


def _ratio(numerator: Vector, denominator: Vector) -> Vector:
    known = denominator > 0
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=known)


def _readability_influence(
    pair: RepresentationPair, rows: PairRows
) -> Float[np.ndarray, "row class"]:
    """x f - r / 2 (x^2 + f^2) of each class, x its z-scored indicator, f its fit of variance 1."""
    return rows.once(_of_readability, pair)


def _of_readability(rows: PairRows, pair: RepresentationPair) -> Float[np.ndarray, "row class"]:
    r = multiple_correlations(pair.swapped)
    x = rows.y.zscored
    fit = rows.x.zscored @ pair.once(_scaled_fit, rows.x.dtype)
    moved = x * fit - rows.x.cast(r / 2) * (np.square(x) + np.square(fit))
    return _all_classes(pair, moved)


def _scaled_fit(pair: RepresentationPair, dtype: np.dtype) -> Float[np.ndarray, "live_x live_y"]:
    """Of x's neurons in the fits of y's indicators, scaled to variance 1.

    Not by way of whitened rows of x, which nothing else here needs.
    """
    r = multiple_correlations(pair.swapped)
    scale = np.divide(1, r, out=np.zeros_like(r), where=r > 0)
    return ((pair.x.whitening.matrix @ on_directions(pair.swapped).T) * scale).astype(dtype)


def _localisation_influence(
    pair: RepresentationPair, rows: PairRows
) -> Float[np.ndarray, "row class"]:
    """s (dc / c - dr / r), c the |correlation| with the best neuron, which is held."""
    best, c = pair.once(_best_neurons)
    z, x = rows.x.zscored[:, best], rows.y.zscored
    cast = rows.x.cast
    of_best = z * x * cast(np.sign(c)) - cast(np.abs(c) / 2) * (np.square(z) + np.square(x))
    read = pair.once(readability)
    share = cast(np.divide(1, np.abs(c), out=np.zeros_like(c), where=c != 0))
    of_read = _readability_influence(pair, rows) / np.where(read > 0, read, np.inf)
    return pair.once(localisation) * (_all_classes(pair, of_best * share) - of_read)


def _best_neurons(pair: RepresentationPair) -> tuple[Int64[np.ndarray, " live_y"], Vector]:
    """The live neuron of x that correlates best with each class of y, and the correlation."""
    correlation = pair.live_correlation
    best = np.abs(correlation).argmax(axis=0)
    return best, correlation[best, np.arange(correlation.shape[1])]


def _all_classes(
    pair: RepresentationPair, live: Float[np.ndarray, "row live"]
) -> Float[np.ndarray, "row class"]:
    """Values of the classes of y that have rows, NaN for the others."""
    values = np.full((len(live), pair.y.width), np.nan)
    values[:, pair.y.live] = live
    return values


_INFLUENCES: Mapping[str, Callable[[RepresentationPair, PairRows], np.ndarray]] = {
    "eta2": linreg_r2_influence,
    "eta2_global": linreg_r2_global_influence,
    "readability": _readability_influence,
    "localisation": _localisation_influence,
}


def _heldout(pair: HeldOutPair) -> dict[str, np.ndarray | float]:
    """Of a layer and a label track, fitted on one fold and evaluated on the other.

    Classes that do not occur in both folds have none.
    """
    classes = pair.swapped
    occurs = classes.fit.x.live & classes.evaluate.x.live
    read = np.full(len(occurs), np.nan)
    read[classes.fit.x.live] = predicted(classes, coefficients_of(classes.fit))
    read[~occurs] = np.nan
    fitted = pair.fit.correlation
    best = np.abs(fitted).argmax(axis=0)
    number = np.arange(len(best))
    held = pair.evaluate.correlation[best, number] * np.sign(fitted[best, number])
    return {
        "eta2_heldout": linreg_r2_heldout(pair),
        "readability_heldout": read,
        "localisation_heldout": _ratio(np.where(occurs, held, np.nan), read),
    }


def concepts(
    finished: Mapping[str, Any], labels: Sequence[LabelTrack], models: Sequence[str | None]
) -> Extras:
    """Everything about label tracks that a result keeps.

    Args:
      finished: statistics by kind: the moments of all representations, label tracks among them;
        those of two folds and the clustered sample, if there are such.
      labels: the label tracks.
      models: of each representation its model; None for a track.

    Returns:
      By name, dimensions and values: `eta2` and `eta2_global` [x, track]; `readability`,
      `localisation` and `localisation_rotated` [x, class]; `concept_agreement` with
      `concept_agreement_chance` and `concept_agreement_kappa` [x, y, track]; of each class
      `class_neuron` and `class_neuron_corr` [x, class]; of each neuron
      `neuron_eta2`, `neuron_class` and `neuron_class_corr` [x, neuron, track]; and if they take
      at most 64 MiB `class_corr` [x, neuron, class]. NAME_heldout of eta2, readability and
      localisation with two folds, NAME_se and NAME_se_error with a clustered sample; those of
      agreement of layers of two models, where there are such. NaN (-1) for label tracks themselves.
    """
    moments: FinishedMoments = finished[MomentsState.kind]
    representations = moments.representations
    of_labels = {track.number for track in labels}
    layers = [k for k in range(len(representations)) if k not in of_labels]
    arrays = _Arrays(moments, labels)
    rows, clusters = _rows(finished)

    def of_layer(k: int) -> list[dict[str, np.ndarray | float]]:
        found = _of_layer(finished, k, labels, rows, clusters)
        if rows:
            rows[k].release()
        return found

    for k, found in zip(layers, map_in_threads(of_layer, layers)):
        for number, values in enumerate(found):
            for name, value in values.items():
                arrays.put(name, k, number, value)
    if rows:
        for track in labels:
            rows[track.number].release()
    _put_agreement(arrays, moments, labels, {k: models[k] for k in layers}, rows, clusters)
    return arrays.extras()


def _put_agreement(
    arrays: "_Arrays",
    moments: FinishedMoments,
    labels: Sequence[LabelTrack],
    model_of: Mapping[int, str | None],
    rows: Sequence[RepresentationRows],
    clusters: SampledClusters | None,
) -> None:
    """Agreement of the classes of best-matched neurons, of all pairs of layers.

    Standard errors are of layers of two models, where such were compared: matching again takes most
    of the time.
    """
    of, layers = moments.representations, list(model_of)

    def compared(i: int, j: int) -> bool:
        return i != j and moments.has(of[i], of[j])

    between = any(
        compared(i, j) and None not in (model_of[i], model_of[j]) and model_of[i] != model_of[j]
        for i in layers for j in layers
    )  # fmt: skip

    def has_errors(i: int, j: int) -> bool:
        return compared(i, j) and (model_of[i] != model_of[j] or not between)

    errors = None
    partners = {j: [i for i in layers if has_errors(i, j)] for j in layers}
    enough = clusters is not None and len(clusters.names) >= LEAST_CLUSTERS
    if clusters is not None and enough and any(partners.values()):
        errors = AgreementErrors(rows, clusters, partners, [track.number for track in labels])

    def winners_in(j: int) -> dict[int, np.ndarray]:
        """The best match in one layer of every neuron of each other one."""
        found, of_chosen = {}, {}
        for i in layers:
            if compared(i, j):
                correlation = _pair(moments, i, j).correlation
                found[i] = winners(correlation)[1].astype(np.int32)
                if errors is not None and has_errors(i, j):
                    of_chosen[i] = errors.of_chosen(i, correlation)
        if errors is not None:
            of_tracks = [_pair(moments, j, track.number).correlation for track in labels]
            errors.add_layer(j, of_tracks, of_chosen)
        return found

    best = dict(zip(layers, map_in_threads(winners_in, layers)))
    of_neuron = arrays.values["neuron_class"]
    for j, found in best.items():
        for i, winner in found.items():
            spread = errors.of_pair(i, j) if errors is not None and has_errors(i, j) else None
            for number in range(len(labels)):
                ours, theirs = of_neuron[i, : len(winner), number], of_neuron[j, :, number]
                values = agreement(ours, theirs, winner)
                for k, (name, value) in enumerate(zip(_OF_TWO, values, strict=True)):
                    arrays.put(name, i, number, value, j)
                    if spread is not None:
                        arrays.put(f"{name}_se", i, number, spread[number, k, 0], j)
                        arrays.put(f"{name}_se_error", i, number, spread[number, k, 1], j)


class _Arrays:
    """The arrays of a result, filled layer by layer.

    Args:
      moments: of all representations.
      labels: the label tracks.
    """

    def __init__(self, moments: FinishedMoments, labels: Sequence[LabelTrack]):
        self._labels = labels
        ends = np.cumsum([len(track.classes) for track in labels]).tolist()
        self._classes = [slice(a, b) for a, b in zip([0, *ends], ends)]
        widths = [representation.width for representation in moments.representations]
        # As long as the same dimension of other arrays of a result.
        self._sizes = {
            "x": len(widths), "y": len(widths), "neuron": max(widths), "track": len(labels),
            "class": ends[-1],
        }  # fmt: skip
        self.values: dict[str, np.ndarray] = {}
        corr = 8 * self._sizes["x"] * self._sizes["neuron"] * self._sizes["class"]
        for name in _DIMS:
            if name != "class_corr" or corr <= _MOST_BYTES:
                number = name in ("neuron_class", "class_neuron")
                self._add(name, -1 if number else float("nan"))

    def _add(self, name: str, missing: float | int) -> None:
        shape = [self._sizes[dim] for dim in _dims(name)]
        dtype = np.float64 if np.isnan(missing) else np.int32
        self.values[name] = np.full(shape, missing, dtype)

    def put(
        self, name: str, layer: int, track: int, value: np.ndarray | float, y: int = -1
    ) -> None:
        """Put what is known of a layer, or two, and a track into its place."""
        value = np.asarray(value)
        if name not in self.values:
            if name in _DIMS:
                return  # too large to be kept
            self._add(name, float("nan"))
        places = {"x": layer, "y": y, "track": track, "class": self._classes[track]}
        if "neuron" in _dims(name):
            places["neuron"] = slice(len(value))
        self.values[name][tuple(places[dim] for dim in _dims(name))] = value

    def extras(self) -> Extras:
        """Names, dimensions and values."""
        counts = [len(track.classes) for track in self._labels]
        names = [f"{track.name}/{name}" for track in self._labels for name in track.classes]
        found: Extras = {
            "track": (("track",), np.array([track.name for track in self._labels])),
            "class": (("class",), np.array(names)),
            "class_track": (("class",), np.repeat(np.arange(len(counts)), counts)),
        }
        return found | {name: (_dims(name), values) for name, values in self.values.items()}


def _dims(name: str) -> tuple[str, ...]:
    """The dimensions of an array; NAME_se and NAME_heldout have those of NAME."""
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return _DIMS[name]


def _rows(
    finished: Mapping[str, Any],
) -> tuple[list[RepresentationRows], SampledClusters | None]:
    """The sampled rows of each representation, and their clusters."""
    sample: ClusteredSample | None = finished.get(ClusteredSample.kind)
    if sample is None:
        return [], None
    representations = finished[MomentsState.kind].representations
    rows = [RepresentationRows(r, x) for r, x in zip(representations, sample.representations)]
    return rows, SampledClusters.of(sample)


def _of_layer(
    finished: Mapping[str, Any],
    layer: int,
    labels: Sequence[LabelTrack],
    rows: Sequence[RepresentationRows],
    clusters: SampledClusters | None,
) -> list[dict[str, np.ndarray | float]]:
    """What is known of a layer and each label track; nothing where one of them is constant."""
    found: list[dict[str, np.ndarray | float]] = [{} for _ in labels]
    pairs = [_pair(finished[MomentsState.kind], layer, track.number) for track in labels]
    known = [k for k, pair in enumerate(pairs) if pair.x.live.any() and pair.y.live.any()]
    for k in known:
        number = labels[k].number
        found[k] = _of_pair(pairs[k]) | _of_folds(finished, layer, number)
        if clusters is not None:
            found[k] |= _errors(pairs[k], rows[layer], rows[number], clusters)
    for k, value in zip(known, rotated_localisation([pairs[k] for k in known])):
        found[k]["localisation_rotated"] = value
    return found


def _of_pair(pair: RepresentationPair) -> dict[str, np.ndarray | float]:
    """What moments say of a layer and a label track."""
    correlation = pair.correlation
    best, of_neuron = winners(correlation)
    of_class = winners(correlation.T)[1]
    shares = eta2(pair)
    return {
        "eta2": float(shares[pair.x.live].mean()),
        "eta2_global": linreg_r2_global(pair),
        "readability": pair.once(readability),
        "localisation": pair.once(localisation),
        "neuron_eta2": shares,
        "neuron_class": of_neuron,
        "neuron_class_corr": correlation[np.arange(len(best)), of_neuron],
        "class_neuron": of_class,
        "class_neuron_corr": correlation[of_class, np.arange(len(of_class))],
        "class_corr": correlation,
    }


def _of_folds(finished: Mapping[str, Any], layer: int, track: int) -> dict[str, np.ndarray | float]:
    """Held-out scores, of the first folds that share a class; none without such folds."""
    for kind in (FoldedMoments.kind, UtteranceFolds.kind):
        folds: FinishedFolds | None = finished.get(kind)
        if folds is None or not folds.folds:
            continue
        pairs = [_pair(fold, layer, track) for fold in folds.folds]
        if _share_a_class(pairs):
            first, second = (
                _heldout(HeldOutPair(fit, other)) for fit, other in (pairs, pairs[::-1])
            )
            return {name: (first[name] + second[name]) / 2 for name in first}
    return {}


def _errors(
    pair: RepresentationPair,
    layer: RepresentationRows,
    track: RepresentationRows,
    clusters: SampledClusters,
) -> dict[str, np.ndarray | float]:
    """Standard errors and their own, of what is known of a layer and a label track.

    A few rows at a time: what is computed of them stays in the processor's cache.
    """
    summaries: dict[str, list[ClusterInfluence]] = {name: [] for name in _INFLUENCES}
    _ = layer.zscored, track.white  # of all rows at once, for all tracks and layers
    for places, some in clusters.parts(_ROWS_AT_A_TIME):
        of_pair = PairRows(layer.part(places), track.part(places))
        for name, influence in _INFLUENCES.items():
            summaries[name].append(some.summarise(influence(pair, of_pair)))
    found: dict[str, np.ndarray | float] = {}
    for name, parts in summaries.items():
        error = standard_error(ClusterInfluence.of_parts(parts), clusters)
        found[f"{name}_se"], found[f"{name}_se_error"] = error
    return found


def _share_a_class(folds: Sequence[RepresentationPair]) -> bool:
    """Whether a class of y occurs in both folds, and neurons of x vary in both."""
    one, other = folds
    if not one.moments.has(one.x, one.y):
        return False  # folds of utterances have labels of speakers only
    return bool((one.y.live & other.y.live).any() and one.x.live.any() and other.x.live.any())


def _pair(moments: FinishedMoments, x: int, y: int) -> RepresentationPair:
    return RepresentationPair(moments, moments.representations[x], moments.representations[y])
