"""Influences of rows on the scores of a pair of representations, by several measures."""

from collections.abc import Sequence

import numpy as np

from speechsim_jax.inference.influence_rows import Influence
from speechsim_jax.measures.base import Measure, PairRows, RepresentationPair


def influences_of_rows(
    measures: Sequence[Measure], pair: RepresentationPair, rows: PairRows
) -> dict[str, Influence]:
    """The influence of every row on each score of (x, y), by measure; 0 on those of (x, x).

    A few rows at a time: what is computed of them stays in the processor's cache.

    Args:
      measures: on moments; those without influence are left out.
      pair: the representations.
      rows: of them.
    """
    names = {m.name: m.influence for m in measures if m.influence is not None}
    if not (pair.x.live.any() and pair.y.live.any()):
        return {name: np.full(rows.x.count, np.nan) for name in names}
    if pair.same:
        return {name: np.zeros(rows.x.count) for name in names}
    parts = [
        {name: influence(pair, part) for name, influence in names.items()} for part in rows.parts
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
