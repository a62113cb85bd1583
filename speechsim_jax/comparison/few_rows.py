"""Arrays of few rows, whose Gram matrices take less work than the moments of all pairs."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from speechsim_jax.comparison.arrays import is_array
from speechsim_jax.statistics.grams import FinishedGrams, fewer_products

# Of the rows of all representations, which Gram matrices need in memory at once.
_MOST_BYTES = 2**30


def few_rows(
    arrays: Sequence[Any],
    widths: Sequence[int],
    dtype: str,
    pairs: Collection[tuple[int, int]] | None = None,
) -> bool:
    """Whether to use Gram matrices: on a CPU, where the devices are no faster than it.

    Args:
      arrays: of each representation; of iterables of chunks it is not known how many rows they are.
      widths: neurons of each.
      dtype: in which rows are multiplied.
      pairs: of representations that are compared; None for all.
    """
    if jax.default_backend() != "cpu" or not all(is_array(rows) for rows in arrays):
        return False
    rows = len(arrays[0])
    fits = rows * sum(widths) * np.dtype(dtype).itemsize <= _MOST_BYTES
    return fits and fewer_products(rows, widths, pairs)


def grams_of(
    blocks: Iterable[Sequence[np.ndarray]],
    arrays: Sequence[Any],
    widths: Sequence[int],
    dtype: str,
    rank_tolerance: float | None,
) -> FinishedGrams:
    """The norms of the cross moments of all pairs.

    Args:
      blocks: rows of all representations.
      arrays: all of them.
      widths: neurons of each representation.
      dtype: in which rows are multiplied.
      rank_tolerance: as in `Settings`; for the result's record.
    """
    count = len(arrays[0])
    rows = [np.empty((count, width), dtype) for width in widths]
    filled = 0
    for block in blocks:
        for of_one, values in zip(rows, block):
            of_one[filled : filled + len(values)] = values
        filled += len(block[0])
    return FinishedGrams(rows, rank_tolerance)
