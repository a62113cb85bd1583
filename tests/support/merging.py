"""States merged whole in memory, by what the package does pair by pair."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from speechsim_jax.statistics import moments, moments_merge
from speechsim_jax.statistics.moments import Moments, Reference
from speechsim_jax.statistics.moments_finished import MomentsState


def merge_states(states: Sequence[Moments]) -> Moments:
    """The state over the rows of all, on the host."""
    first, *others = map(MomentsState.of, states)
    merged = first.merge(others)
    cross = tuple(
        np.stack([merged.block(t, k) for k in range(len(tile.pairs))])
        for t, tile in enumerate(merged.tiles)
    )
    small = merged.small
    return dataclasses.replace(small, sums=dataclasses.replace(small.sums, cross=cross))


def rebase(state: Moments, reference: Reference) -> Moments:
    """The state that the same rows would have given about another reference shift."""
    state = moments_merge.on_host(state)
    rebasing = moments_merge.Rebasing(state, reference)
    start = moments.first_representations(state.shapes)
    for tile, cross in zip(state.tiles, state.sums.cross):
        for (l, m), block in zip(tile.pairs, cross):
            block[0][:] = rebasing.pair(start[tile.a] + l, start[tile.b] + m, block[0])
    rest = rebasing.rest()
    return dataclasses.replace(rest, sums=dataclasses.replace(rest.sums, cross=state.sums.cross))
