"""Merges moments about different reference shifts, as separate jobs have.

They are re-expressed about one reference shift and then added, on the host in float64. With another
reference shift the rows of a representation change from x to x - a, with a the new reference shift
less the old one, and those of another from y to y - b. Over n rows, with the sums of `moments`, the
old ones on the right,

    s_x <- s_x - n a                     s = first
    C <- C - s_x b' - a s_y' + n a b'    C = cross
    q_x <- q_x - 2 a.s_x + n |a|^2       q = energy
    g = v_y - 2 C'a + |a|^2 s_y          the new |x|^2 times the old y; v_y = energy_first(x, y)
    v_y <- g - b q_x                     with the new q_x
    p <- p - 2 a.v_x + |a|^2 q_y - 2 b.g + |b|^2 q_x    p = energy_cross, with the new q_x

Shifts much larger than the neurons' spread cost digits, the square of their ratio in C.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import Moments, Reference, Sums, Values

CrossMoments = Float[np.ndarray, "x y"]


def on_host(state: Moments) -> Moments:
    """The sums in float64 with lost digits added, in one part; the reference shift is the same."""
    sums = state.sums
    merged = Sums(
        first=tuple(moments.total(first)[None] for first in sums.first),
        cross=tuple(moments.total(cross, axis=1)[:, None] for cross in sums.cross),
        energy=moments.total(sums.energy)[None],
        energy_cross=moments.total(sums.energy_cross)[None],
        energy_first=tuple(moments.total(first)[None] for first in sums.energy_first),
    )
    return dataclasses.replace(
        state,
        count=np.asarray(state.count),
        reference=tuple(map(np.asarray, state.reference)),
        sums=merged,
    )


class Rebasing:
    """Moments re-expressed about another reference shift: pair by pair, each once, then the rest.

    The energies of two representations whose pair is in no tile become NaN: they cannot be
    re-expressed without their C, and without it no measure reads them.

    Args:
      small: a state on the host; its cross moments are not read.
      reference: the new reference shift.
    """

    def __init__(self, small: Moments, reference: Reference):
        old = small.sums
        reference = tuple(
            np.asarray(new, now.dtype) for new, now in zip(reference, small.reference)
        )
        shifts = [
            moments.total(new.astype(np.float64) - now)
            for new, now in zip(reference, small.reference)
        ]
        self._rows = moments.count_of(small)
        self._shift = _representations(shifts)
        self._first = _representations(model[0] for model in old.first)
        self._square = np.array([shift @ shift for shift in self._shift])
        moved = [x @ s for x, s in zip(self._shift, self._first)]
        self._old = old
        self._energy = old.energy[0] - 2 * np.array(moved) + self._rows * self._square
        self._cross = np.full_like(old.energy_cross, np.nan)
        energy_first = tuple(np.full_like(v, np.nan) for v in old.energy_first)
        self._of_old, self._of_new = map(
            _energies_of_representations, (old.energy_first, energy_first)
        )
        sums = Sums(
            first=tuple(np.array(model) for model in old.first),
            cross=(),
            energy=self._energy[None],
            energy_cross=self._cross,
            energy_first=energy_first,
        )
        for shift, total in zip(self._shift, _representations(model[0] for model in sums.first)):
            total -= self._rows * shift
        self._moved = dataclasses.replace(small, reference=reference, sums=sums)

    def pair(self, i: int, j: int, block: CrossMoments) -> CrossMoments:
        """C of representations i and j about the new reference shift; updates their energies."""
        a, first, square = self._shift, self._first, self._square
        v, p = self._of_old, self._old.energy_cross[0]
        g = v[j][i] - 2 * a[i] @ block + square[i] * first[j]
        mirrored = v[i][j] - 2 * block @ a[j] + square[j] * first[i]
        self._of_new[j][i][:] = g - a[j] * self._energy[i]
        self._of_new[i][j][:] = mirrored - a[i] * self._energy[j]
        self._cross[0, [i, j], [j, i]] = (
            p[i, j] - 2 * a[i] @ v[i][j] + square[i] * self._old.energy[0, j]
            - 2 * a[j] @ g + square[j] * self._energy[i]
        )  # fmt: skip
        return block - np.outer(first[i], a[j]) - np.outer(a[i], first[j] - self._rows * a[j])

    def rest(self) -> Moments:
        """The state without its cross moments, once all pairs are re-expressed."""
        return self._moved


def _representations(models: Iterable[Values]) -> list[np.ndarray]:
    """[layer, ...] of each model -> [...] of each representation; views of host arrays."""
    return [layer for model in models for layer in np.asarray(model)]


def _energies_of_representations(energy_first: Iterable[Values]) -> list[np.ndarray]:
    """[part, of, layer, neuron] of each model -> [of, neuron] of each representation; views."""
    return _representations(np.moveaxis(np.asarray(model)[0], 1, 0) for model in energy_first)


class Merging:
    """The state over the rows of several, pair by pair: none needs to be in memory entirely.

    A state without rows adds nothing.

    Args:
      smalls: the states; their cross moments are not read but passed to `block`.
      reference: the reference shift; by default that of the first state with rows.

    Raises:
      UserError: states of other models, layers or precision.
    """

    def __init__(self, smalls: Sequence[Moments], reference: Reference | None = None):
        for number, small in enumerate(smalls[1:], start=2):
            _check_alike(smalls[0], small, number)
        self._filled = [k for k, small in enumerate(smalls) if moments.count_of(small)] or [0]
        self._smalls = [on_host(without_cross(smalls[k])) for k in self._filled]
        given = reference is not None
        target = self._smalls[0].reference if reference is None else reference
        # None for a state that has it already.
        self._rebasing = [
            Rebasing(small, target) if given or k else None for k, small in enumerate(self._smalls)
        ]
        self._start = moments.first_representations(smalls[0].shapes)
        self.shapes, self.tiles = smalls[0].shapes, smalls[0].tiles

    def block(self, tile: int, pair: int, blocks: Sequence[CrossMoments]) -> CrossMoments:
        """C of one pair of a tile; to be called once for each pair.

        Args:
          tile, pair: the pair.
          blocks: its C of each state.
        """
        a, b, (l, m) = self.tiles[tile].a, self.tiles[tile].b, self.tiles[tile].pairs[pair]
        i, j = self._start[a] + l, self._start[b] + m
        total = np.zeros(blocks[0].shape)
        for rebasing, k in zip(self._rebasing, self._filled):
            total += blocks[k] if rebasing is None else rebasing.pair(i, j, blocks[k])
        return total

    def rest(self) -> Moments:
        """The state without its cross moments, once all pairs are merged."""
        first, *others = (
            small if rebasing is None else rebasing.rest()
            for rebasing, small in zip(self._rebasing, self._smalls)
        )
        sums = jax.tree.map(lambda *terms: sum(terms), first.sums, *(o.sums for o in others))
        rows = sum(map(moments.count_of, self._smalls))
        return dataclasses.replace(first, count=moments.as_count(rows), sums=sums, tiles=self.tiles)


def without_cross(state: Moments) -> Moments:
    """The state without its cross moments."""
    return dataclasses.replace(state, sums=dataclasses.replace(state.sums, cross=()))


def _check_alike(first: Moments, other: Moments, number: int) -> None:
    for field, expected, actual in (
        ("models", first.shapes, other.shapes),
        ("layer pairs", first.tiles, other.tiles),
        ("precision", str(first.reference[0].dtype), str(other.reference[0].dtype)),
    ):
        if actual != expected:
            raise UserError(
                f"states 1 and {number} differ in their {field} ({expected} and {actual}); only "
                "states of the same models, layers and stats_dtype can be merged"
            )
