"""What neurons and layers know of labels, as phones or speakers, from finished moments.

A label track is a representation with one column a class, 1 in the rows of that class and 0
elsewhere, so that its cross moments with a layer hold the mean of every neuron in every class. Rows
without a label are rows of zeros: one more class.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from speechsim_jax.measures.base import RepresentationPair, divide
from speechsim_jax.measures.neuron import ROTATIONS, rotated, winners
from speechsim_jax.measures.regression import linreg_r2_global, multiple_correlations
from speechsim_jax.statistics.linalg import Matrix, Vector, map_in_threads
from speechsim_jax.statistics.moments_finished import FinishedMoments

Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]

# Correlations of every neuron with every class are kept up to this size.
_MOST_BYTES = 2**26


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
    return _ratio(best, readability(pair))


def rotated_localisation(pair: RepresentationPair) -> Vector:
    """The localisation to expect if x's axes meant nothing: its mean over rotations of x."""
    best = np.full(pair.y.width, np.nan)
    draws = [
        np.abs(rotated(pair.swapped, draw)[0]).max(axis=1, initial=0) for draw in range(ROTATIONS)
    ]
    best[pair.y.live] = np.mean(draws, axis=0)
    return _ratio(best, readability(pair))


def _ratio(numerator: Vector, denominator: Vector) -> Vector:
    known = denominator > 0
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=known)


def agreement(
    x: Int[np.ndarray, " x"], y: Int[np.ndarray, " y"], winner: Int[np.ndarray, " x"]
) -> tuple[float, float, float]:
    """How often a neuron of x and its best match in y are of one class.

    Args:
      x, y: the class of each neuron, -1 for none.
      winner: for each neuron of x the neuron of y that correlates with it best, -1 for none.

    Returns:
      The share of x's neurons with a class; the share that chance would give, sum_k p_k q_k over
      the classes of these and of their winners; Cohen's kappa.
    """
    used = (x >= 0) & (winner >= 0)
    ours, theirs = x[used], y[winner[used]]
    if not len(ours):
        return (float("nan"),) * 3
    count = max(int(x.max()), int(y.max())) + 1
    known = theirs >= 0
    shares = [np.bincount(of, minlength=count) / len(ours) for of in (ours, theirs[known])]
    observed, chance = float(np.mean(ours == theirs)), float(shares[0] @ shares[1])
    return observed, chance, divide(observed - chance, 1 - chance)


def concepts(moments: FinishedMoments, labels: Sequence[LabelTrack]) -> Extras:
    """Everything about label tracks that a result keeps.

    Args:
      moments: of all representations, label tracks among them.
      labels: the label tracks.

    Returns:
      By name, dimensions and values: `eta2` and `eta2_global` [x, track]; `readability`,
      `localisation` and `localisation_rotated` [x, class]; `concept_agreement` with
      `concept_agreement_chance` and `concept_agreement_kappa` [x, y, track]; of each neuron
      `neuron_eta2`, `neuron_class` and `neuron_class_corr` [x, neuron, track]; and if they take
      at most 64 MiB `class_corr` [x, neuron, class]. NaN (-1) for label tracks themselves.
    """
    representations = moments.representations
    layers = [k for k in range(len(representations)) if k not in {t.number for t in labels}]
    count, tracks = len(representations), len(labels)
    widest = max((representations[k].width for k in layers), default=1)
    starts = np.cumsum([0, *(len(track.classes) for track in labels)])
    extras: Extras = {
        "track": (("track",), np.array([track.name for track in labels])),
        "class": (("class",), np.array([f"{t.name}/{name}" for t in labels for name in t.classes])),
    }

    def empty(*dims: tuple[str, int], dtype: str = "f8") -> np.ndarray:
        return np.full([size for _, size in dims], -1 if dtype == "i4" else np.nan, dtype)

    x, y, neuron = ("x", count), ("y", count), ("neuron", widest)
    track, classes = ("track", tracks), ("class", int(starts[-1]))
    shapes = {
        "eta2": (x, track), "eta2_global": (x, track),
        "readability": (x, classes), "localisation": (x, classes),
        "localisation_rotated": (x, classes),
        "concept_agreement": (x, y, track), "concept_agreement_chance": (x, y, track),
        "concept_agreement_kappa": (x, y, track),
        "neuron_eta2": (x, neuron, track), "neuron_class_corr": (x, neuron, track),
        "class_corr": (x, neuron, classes),
    }  # fmt: skip
    if 8 * count * widest * classes[1] > _MOST_BYTES:
        del shapes["class_corr"]
    for name, dims in shapes.items():
        extras[name] = tuple(dim for dim, _ in dims), empty(*dims)
    extras["neuron_class"] = ("x", "neuron", "track"), empty(x, neuron, track, dtype="i4")

    def of_layer(k: int) -> tuple[int, list[Mapping[str, np.ndarray | float]]]:
        return k, [_of_pair(moments, k, of) for of in labels]

    for k, found in map_in_threads(of_layer, layers):
        width = representations[k].width
        for number, values in enumerate(found):
            where = slice(starts[number], starts[number + 1])
            for name, value in values.items():
                if name not in extras:
                    continue
                array = extras[name][1]
                if name == "class_corr":
                    array[k, :width, where] = value
                elif name.startswith("neuron"):
                    array[k, :width, number] = value
                elif name.startswith("eta2"):
                    array[k, number] = value
                else:
                    array[k, where] = value
    of_neuron = extras["neuron_class"][1]

    def of_pair(pair: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
        return pair, _winner(moments, *pair)

    pairs = [(i, j) for i in layers for j in layers if i != j]
    names = ("concept_agreement", "concept_agreement_chance", "concept_agreement_kappa")
    for (i, j), winner in map_in_threads(of_pair, pairs):
        for number in range(tracks):
            ours, theirs = of_neuron[i, :, number], of_neuron[j, :, number]
            found = agreement(ours[: len(winner)], theirs, winner)
            for name, value in zip(names, found, strict=True):
                extras[name][1][i, j, number] = value
    return extras


def _of_pair(
    moments: FinishedMoments, layer: int, track: LabelTrack
) -> dict[str, np.ndarray | float]:
    """A layer and a label track."""
    representations = moments.representations
    pair = RepresentationPair(moments, representations[layer], representations[track.number])
    correlation = pair.correlation
    best, of_neuron = winners(correlation)
    shares = eta2(pair)
    return {
        "eta2": float(shares[pair.x.live].mean()) if pair.x.live.any() else float("nan"),
        "eta2_global": linreg_r2_global(pair) if pair.x.live.any() else float("nan"),
        "readability": readability(pair),
        "localisation": localisation(pair),
        "localisation_rotated": rotated_localisation(pair),
        "neuron_eta2": shares,
        "neuron_class": of_neuron,
        "neuron_class_corr": correlation[np.arange(len(best)), of_neuron],
        "class_corr": correlation,
    }


def _winner(moments: FinishedMoments, i: int, j: int) -> Int[np.ndarray, " x"]:
    """The neuron of representation j that correlates best with each of i."""
    x, y = moments.representations[i], moments.representations[j]
    pair = RepresentationPair(moments, x, y)
    correlation: Matrix = pair.correlation
    return winners(correlation)[1]
