"""States with different pilots, those of separate jobs: brought to one pilot, then added.

On the host in float64. With another pilot the rows of a network move from x to x - a, a being the
new pilot less the old one, and those of another from y to y - b. Over n rows, with the sums of
`moments`, the old ones on the right,

    s_x <- s_x - n a                     s = first
    C <- C - s_x b' - a s_y' + n a b'    C = cross
    q_x <- q_x - 2 a.s_x + n |a|^2       q = energy
    g = v_y - 2 C'a + |a|^2 s_y          the new |x|^2 times the old y; v_y = energy_first(x, y)
    v_y <- g - b q_x                     with the new q_x
    p <- p - 2 a.v_x + |a|^2 q_y - 2 b.g + |b|^2 q_x    p = energy_cross, with the new q_x

Shifts much larger than the neurons' spread cost digits, the square of their ratio in C.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import Compensated, Moments, Pilot, Sums, Values

Block = Float[np.ndarray, "x y"]


def on_host(state: Moments) -> Moments:
    """The same sums in float64, lost digits added in: one part each. The pilot is as it was."""
    sums = state.sums
    merged = Sums(
        first=tuple(map(_total, sums.first)),
        cross=tuple(_total(cross, axis=1) for cross in sums.cross),
        energy=_total(sums.energy),
        energy_cross=_total(sums.energy_cross),
        energy_first=tuple(map(_total, sums.energy_first)),
    )
    return dataclasses.replace(
        state,
        count=np.asarray(state.count),
        pilot=tuple(map(np.asarray, state.pilot)),
        sums=merged,
    )


def _total(parts: Compensated, axis: int = 0) -> np.ndarray:
    return np.asarray(parts).sum(axis=axis, dtype=np.float64, keepdims=True)


def rebase(state: Moments, pilot: Pilot) -> Moments:
    """The state that the same rows would have given with `pilot`; on the host.

    The energies of two networks whose pair is in no tile become NaN: without their C they cannot
    move, and without it no measure reads them.
    """
    state, rows = on_host(state), moments.count_of(state)
    pilot = tuple(np.asarray(new, old.dtype) for new, old in zip(pilot, state.pilot))
    old = state.sums
    moves = [_total(new.astype(np.float64) - now)[0] for new, now in zip(pilot, state.pilot)]
    a = _networks(moves)
    first = _networks(stream[0] for stream in old.first)
    square = np.array([shift @ shift for shift in a])
    energy = old.energy[0] - 2 * np.array([x @ s for x, s in zip(a, first)]) + rows * square
    cross = np.full_like(old.energy_cross, np.nan)
    energy_first = tuple(np.full_like(v, np.nan) for v in old.energy_first)
    of_old, of_new = (_energies_of_networks(v) for v in (old.energy_first, energy_first))
    for i, j, block in _blocks(state):
        g = of_old[j][i] - 2 * a[i] @ block + square[i] * first[j]
        mirrored = of_old[i][j] - 2 * block @ a[j] + square[j] * first[i]
        of_new[j][i][:] = g - a[j] * energy[i]
        of_new[i][j][:] = mirrored - a[i] * energy[j]
        cross[0, [i, j], [j, i]] = (
            old.energy_cross[0, i, j] - 2 * a[i] @ of_old[i][j] + square[i] * old.energy[0, j]
            - 2 * a[j] @ g + square[j] * energy[i]
        )  # fmt: skip
        block -= np.outer(first[i], a[j]) + np.outer(a[i], first[j] - rows * a[j])
    for shift, total in zip(a, first):
        total -= rows * shift
    sums = Sums(old.first, old.cross, energy[None], cross, energy_first)
    return dataclasses.replace(state, pilot=pilot, sums=sums)


def _networks(streams: Iterable[Values]) -> list[np.ndarray]:
    """[layer, ...] of each stream -> [...] of each network; views of what is on the host."""
    return [layer for stream in streams for layer in np.asarray(stream)]


def _energies_of_networks(energy_first: Iterable[Values]) -> list[np.ndarray]:
    """[part, network, layer, neuron] of each stream -> [network, neuron] of each network; views."""
    return _networks(np.moveaxis(np.asarray(stream)[0], 1, 0) for stream in energy_first)


def _blocks(state: Moments) -> Iterator[tuple[int, int, Block]]:
    """Networks i and j of every pair that a tile holds, and C (a view)."""
    start = [0, *itertools.accumulate(stream.layers for stream in state.streams)]
    for tile, cross in zip(state.tiles, state.sums.cross):
        for (l, m), block in zip(tile.pairs, cross):
            yield start[tile.a] + l, start[tile.b] + m, np.asarray(block)[0]


def merge_states(states: Sequence[Moments]) -> Moments:
    """The state over the rows of all, on the host, with the pilot of the first that has rows.

    A state without rows changes nothing, whatever its pilot. Raises UserError for states that are
    not of the same models and layers, or not of one precision.
    """
    if not states:
        raise UserError("no states to merge")
    for number, state in enumerate(states[1:], start=2):
        _check_alike(states[0], state, number)
    filled = [state for state in states if moments.count_of(state)] or states[:1]
    merged = on_host(filled[0])
    for state in filled[1:]:
        moved = rebase(state, merged.pilot)
        for total, term in zip(jax.tree.leaves(merged.sums), jax.tree.leaves(moved.sums)):
            total += term
    rows = sum(map(moments.count_of, filled))
    return dataclasses.replace(merged, count=moments.as_count(rows))


def _check_alike(first: Moments, other: Moments, number: int) -> None:
    for what, expected, found in (
        ("models", first.streams, other.streams),
        ("layer pairs", first.tiles, other.tiles),
        ("precision", str(first.pilot[0].dtype), str(other.pilot[0].dtype)),
    ):
        if found != expected:
            raise UserError(
                f"states 1 and {number} differ in their {what} ({expected} and {found}); only "
                "states of the same models, layers and stats_dtype can be merged"
            )
