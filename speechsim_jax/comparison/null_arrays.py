"""The moments of arrays whose rows do not belong together; each draw reads them once more."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from speechsim_jax.comparison.arrays import as_models
from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import BatchRows, all_layers
from speechsim_jax.statistics.moments import ModelShape, all_tiles
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.null_moments import (
    NullMoments,
    paired_layers,
    paired_shapes,
    paired_tiles,
)
from speechsim_jax.statistics.null_rows import by_utterance, shift_pairs, swap_partners, swap_ring

Null = Literal["none", "shift", "swap"]

Pairs = Callable[[int], Int64[np.ndarray, "2 row"]]
"""Draw -> the rows of x, and those of y that they are paired with."""


def row_pairs(
    null: Null,
    utterances: np.ndarray | None,
    groups: np.ndarray | None,
    draws: int,
    seed: int,
) -> Pairs:
    """The pairs of rows of each draw.

    Args:
      null: "shift" or "swap".
      utterances: of each row; by default `groups`.
      groups: the speaker of each row, for "swap"; by default each utterance has one of its own.
      draws: their number.
      seed: of the draws.

    Raises:
      UserError: neither is given; an utterance of several groups, or too few for "swap".
    """
    if utterances is None and groups is None:
        raise UserError(f"null={null!r} needs utterances, the utterance of each row")
    if utterances is not None and groups is not None and len(utterances) != len(groups):
        raise UserError(f"utterances names {len(utterances)} rows, and groups {len(groups)}")
    named = np.asarray(groups if utterances is None else utterances).astype(str)
    names, index = np.unique(named, return_inverse=True)
    every = np.arange(len(named))
    rows = BatchRows(every, index, every, tuple(names.tolist()), tuple(names.tolist()))
    if null == "shift":
        return lambda draw: shift_pairs(rows, draw, seed)
    positions = dict(by_utterance(rows))
    speakers = _speakers(named, groups)
    ring = swap_ring(speakers, seed, draws)

    def swapped(draw: int) -> np.ndarray:
        pairs = [np.zeros((2, 0), np.int64)]
        for name, other in swap_partners(ring, speakers, draw).items():
            common = min(len(positions[name]), len(positions[other]))
            pairs.append(np.stack([positions[name][:common], positions[other][:common]]))
        return np.concatenate(pairs, axis=1)

    return swapped


def _speakers(utterances: np.ndarray, groups: np.ndarray | None) -> dict[str, str]:
    """The speaker of each utterance."""
    if groups is None:
        return {name: "" for name in dict.fromkeys(utterances.tolist())}
    pairs = dict.fromkeys(zip(utterances.tolist(), groups.astype(str).tolist(), strict=True))
    speakers = dict(pairs.keys())
    if len(speakers) < len(pairs):
        raise UserError("groups: some utterance is in several of them; null='swap' needs one")
    return speakers


def null_moments(
    arrays: Sequence[np.ndarray],
    shapes: tuple[ModelShape, ...],
    pairs: Pairs,
    draws: int,
    rows_per_update: int,
    dtype: str,
    precision: str,
) -> NullMoments:
    """The moments of all draws.

    Args:
      arrays: of each representation, [row, neuron]; only rows that are read are in memory.
      shapes: the models that they are layers of.
      pairs: the rows that belong together in a draw.
      draws: their number.
      rows_per_update: rows that are read together.
      dtype: of rows and sums.
      precision: of products.
    """

    def block(rows: np.ndarray) -> tuple[Any, ...]:
        return as_models(shapes, [array[rows] for array in arrays], dtype)

    states = []
    for draw in range(draws):
        accumulator = MomentsAccumulator(
            paired_shapes(shapes),
            rows_per_update,
            dtype,
            rows_dtype=dtype,
            tiles=paired_tiles(all_tiles(shapes), len(shapes), own="xy"),
            layers=paired_layers(all_layers(shapes)),
            precision=precision,
        )
        paired = pairs(draw)
        for start in range(0, paired.shape[1], rows_per_update):
            x, y = paired[:, start : start + rows_per_update]
            accumulator.append(block(x) + block(y), np.arange(len(x)))
        states.append(accumulator.result())
    return NullMoments(tuple(states))
