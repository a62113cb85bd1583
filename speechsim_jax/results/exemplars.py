"""Exemplars in a result: the frames that excite each neuron most."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool

from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.statistics.exemplars import Exemplars

_DIMS = ("x", "exemplar", "neuron")
_NAMES = "exemplar_names"


class Exemplar(NamedTuple):
    """A frame that excites a neuron.

    Attributes:
        neuron: its number.
        rank: 1 for the frame with the largest activation.
        value: the activation.
        utterance: id of the utterance.
        seconds: the centre of the frame, from the start of the utterance.
    """

    neuron: int
    rank: int
    value: float
    utterance: str
    seconds: float


def exemplar_variables(
    found: Exemplars, live: Sequence[Bool[np.ndarray, " _neuron"]]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The variables of a result that hold exemplars: 12 bytes each, and names once.

    Args:
        found: of the first representations; others have none.
        live: of each representation of the result, which neurons are not dead; dead ones get none.

    Returns:
        By name dims and array: activations, falling (NaN: no more), numbers of utterances (-1),
        centres of frames in samples at 16 kHz; and the utterances' names, as JSON because netCDF
        holds no text that is not UTF-8.
    """
    shape = len(live), found.count, max(map(len, live))
    value = np.full(shape, np.nan, np.float32)
    utterance, sample = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for k, of_one in enumerate(found.representations):
        at = np.flatnonzero(live[k])
        value[k][:, at] = of_one.value[:, at]
        utterance[k][:, at] = of_one.utterance[:, at]
        sample[k][:, at] = of_one.sample[:, at]
    names = np.array([json.dumps(name) for name in found.utterances], object)
    return {
        "exemplar_value": (_DIMS, value),
        "exemplar_utterance": (_DIMS, utterance),
        "exemplar_sample": (_DIMS, sample),
        _NAMES: (("utterance",), names),
    }


def has_exemplars(dataset: xr.Dataset) -> bool:
    """Whether a result has exemplars."""
    return _NAMES in dataset


def exemplar_records(
    dataset: xr.Dataset, label: str, neuron: int | None = None
) -> tuple[Exemplar, ...]:
    """The exemplars of a representation: see `SimilarityResult.exemplars`."""
    if not has_exemplars(dataset):
        raise UserError("this result has no exemplars; run the comparison with exemplars=5")
    labels = dataset["x"].values.tolist()
    if label not in labels:
        raise UserError(f"no representation {label!r}{did_you_mean(label, labels)}")
    at = labels.index(label)
    width = int(dataset["width"].values[at])
    if neuron is not None and not 0 <= neuron < width:
        raise UserError(f"{label} has no neuron {neuron}; it has neurons 0 to {width - 1}")
    value, utterance, sample = (
        dataset[f"exemplar_{name}"].values[at, :, :width]
        for name in ("value", "utterance", "sample")
    )
    names = list(map(json.loads, dataset[_NAMES].values))
    numbers = range(width) if neuron is None else (neuron,)
    return tuple(
        Exemplar(
            int(number),
            rank + 1,
            float(value[rank, number]),
            names[utterance[rank, number]],
            float(sample[rank, number] / SAMPLE_RATE_HZ),
        )
        for number in numbers
        for rank in np.flatnonzero(utterance[:, number] >= 0).tolist()
    )
