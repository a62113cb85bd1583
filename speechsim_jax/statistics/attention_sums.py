"""Sums over utterances that compare every attention head with every other, without whole maps.

A *head* is one head of one layer of one model; one axis holds all of them. With A, B the maps
[query, key] of two heads in an utterance of T frames, rows summing to 1, summed over utterances are

    distance      ||A - B||_F              correlation   sum over rows of Pearson's r
    divergence    sum over rows of the Jensen-Shannon divergence, in nats
    gram          sum over cells of (A - 1/T) (B - 1/T)

Everything is a sum over query rows, so the maps of all heads are computed for a block of rows,
reduced, and dropped. Inner products run as one matrix product; entropies need a logarithm per cell
and pair of heads, H((a + b) / 2) - (H(a) + H(b)) / 2 (Lin 1991, equation 4.2), and take each pair
once.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from speechsim_jax._jax_compat import concatenate_in_place
from speechsim_jax.statistics.moments import Values, add

# Cells of each map that exist at once, and of those whose logarithms are taken at once: half of all
# heads' cells should stay in the cache (both by measurement).
CELLS_AT_ONCE = 8192
LOGARITHMS_AT_ONCE = 4096
# Numbers that `update` holds for each head at once (XLA's count of 288 heads: 10 times the cells).
WORKSPACE_PER_HEAD = 11 * CELLS_AT_ONCE
# Below this share of |A|^2 + |B|^2, |A|^2 + |B|^2 - 2 <A, B> has cancelled: sum the differences.
_CANCELLED = 1e-2

# 2/3 as the bits of a float32, and log(1 + y) / y for |y| <= 1/3: highest power first.
_TWO_THIRDS = int(np.float32(2 / 3).view(np.int32))
_NODES = np.cos(np.pi * (np.arange(200) + 0.5) / 200) / 3
_LOG1P_BY_Y = np.polyfit(_NODES, np.log1p(_NODES) / _NODES, 8).astype(np.float32)

BASELINES = ("diagonal", "shift")
"""What a head is compared with: its own mean profile over key - query, and itself half an utterance
later (queries and keys rolled), which has the same habits but attends to other speech."""

Rows = Float[Array, "head row key"]
RowsOf = Callable[[Int[Array, ""], Int[Array, " row"]], Rows]
"""(utterance of the batch, queries) -> rows of all heads' maps, summing to 1 over its frames."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairSums:
    """Sums that compare maps; the axes `_each` are those of the compared pairs.

    Attributes:
      distance: of ||A - B||_F over utterances.
      distance_norm: of ||A - B||_F / sqrt(2 T) over utterances.
      divergence: of the Jensen-Shannon divergence over rows, in nats.
      correlation: of Pearson's r over rows.
      correlation_paper: of (T - 1) / T times r, because the paper divides covariances by T and
        variances by T - 1.
    """

    distance: Float[Values, "*_each"]
    distance_norm: Float[Values, "*_each"]
    divergence: Float[Values, "*_each"]
    correlation: Float[Values, "*_each"]
    correlation_paper: Float[Values, "*_each"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionSums:
    """The running state of groups of utterances, every sum compensated: sum and lost digits.

    The state on the host (float64) has no such first axis, the sums of one utterance no groups.

    Attributes:
      heads: [2, group, head, head], except for the divergence [2, group, head, step]: of heads h
        and h + 1 + step around the circle, which has each pair once.
      gram: sum over cells of (A - 1/T) (B - 1/T), [2, group, head, head].
      baselines: of every head against `BASELINES`, [2, group, baseline, head].
    """

    heads: PairSums
    gram: Float[Values, "*_part head head"]
    baselines: PairSums


# One program: array by array there would be one for each shape.
@functools.partial(jax.jit, static_argnames=("heads", "dtype", "groups"))
def zero(heads: int, dtype: DTypeLike = jnp.float32, groups: int = 1) -> AttentionSums:
    """The state of no utterances."""

    def zeros(*shape: int) -> Array:
        return jnp.zeros((2, groups, *shape), dtype)

    square = (heads, heads)
    return AttentionSums(
        PairSums(zeros(*square), zeros(*square), zeros(heads, steps(heads)), zeros(*square),
                 zeros(*square)),
        zeros(*square),
        PairSums(*(zeros(len(BASELINES), heads) for _ in dataclasses.fields(PairSums))),
    )  # fmt: skip


def numbers(heads: int, groups: int = 1) -> int:
    """How many numbers a state has."""
    leaves = jax.eval_shape(lambda: jax.tree.leaves(zero(heads, groups=groups)))
    return sum(leaf.size for leaf in leaves)


def steps(heads: int) -> int:
    """Steps around the circle of heads that reach every pair (once, or twice half-way around)."""
    return max(heads // 2, 1)


def update(
    state: AttentionSums,
    rows: RowsOf,
    lengths: Int[Array, " batch"],
    frames: int,
    needed: tuple[str, ...] = ("distance", "divergence", "correlation"),
    cells_at_once: int = CELLS_AT_ONCE,
    logarithms_at_once: int = LOGARITHMS_AT_ONCE,
    groups: Int[Array, " batch"] | None = None,
) -> AttentionSums:
    """Add a batch of utterances.

    Args:
      state: the sums so far.
      rows: of the maps.
      lengths: frames of each utterance; 0 for a filler.
      frames: of each utterance, padding included.
      needed: the costly sums to compute, the others stay 0; the Gram matrix is always computed.
      cells_at_once: cells of each map that exist at once.
      logarithms_at_once: of these, cells whose logarithms are taken at once.
      groups: that each utterance is added to; by default the first.
    """

    def add_utterance(b: Int[Array, ""], state: AttentionSums) -> AttentionSums:
        utterance = _Utterance(
            rows=lambda queries: rows(b, queries),
            length=lengths[b],
            size=frames,
            dtype=state.gram.dtype,
            cells_at_once=cells_at_once,
            logarithms_at_once=logarithms_at_once,
        )
        group = 0 if groups is None else groups[b]
        return jax.tree.map(
            lambda total, term: total.at[:, group].set(add(total[:, group], term)),
            state, utterance.sums(state.gram.shape[-1], needed),
        )  # fmt: skip

    return lax.fori_loop(0, len(lengths), add_utterance, state)


@dataclasses.dataclass(frozen=True)
class _Utterance:
    """The maps of one utterance, and the sums over them; `size` frames, `length` of them valid."""

    rows: Callable[[Int[Array, " row"]], Rows]
    length: Int[Array, ""]
    size: int
    dtype: DTypeLike
    cells_at_once: int
    logarithms_at_once: int

    @property
    def block(self) -> int:
        """Rows of a block, the same for all blocks."""
        blocks = -(-self.size // max(1, self.cells_at_once // self.size))
        return -(-self.size // blocks)

    @property
    def count(self) -> Float[Array, ""]:
        """Frames, as a divisor."""
        return jnp.maximum(self.length, 1).astype(self.dtype)

    def over_blocks(self, step: Callable, start):
        """Fold `step(total, first row)` over the blocks with a valid row."""
        blocks = -(-self.length // self.block)
        return lax.fori_loop(0, blocks, lambda i, total: step(total, i * self.block), start)

    def valid(self, first: Int[Array, ""]) -> Bool[Array, "row key"]:
        """Which cells of a block are real."""
        row, key = first + jnp.arange(self.block), jnp.arange(self.size)
        return (row < self.length)[:, None] & (key < self.length)

    def maps(self, first: Int[Array, ""], shift: Int[Array, ""] | int = 0) -> Rows:
        """A block of rows, 0 where not valid, with queries and keys rolled by `shift` frames."""
        last = jnp.maximum(self.length, 1)
        query = (first + jnp.arange(self.block)) % last
        maps = self.rows((query + shift) % last)
        if not isinstance(shift, int):
            maps = jnp.take(maps, (jnp.arange(self.size) + shift) % last, axis=2)
        return jnp.where(self.valid(first), maps.astype(self.dtype), 0)

    def sums(self, heads: int, needed: tuple[str, ...]) -> AttentionSums:
        """The sums of this utterance."""
        empty = jax.tree.map(lambda x: x[0, 0], zero(heads, self.dtype))

        def step(total: tuple, first: Int[Array, ""]) -> tuple:
            gram, correlation, divergence, profile = total
            maps, valid = self.maps(first), self.valid(first)
            gram += products(jnp.where(valid, maps - 1 / self.count, 0))
            if "correlation" in needed:
                correlation += products(self.standardise(maps, valid))
            if "divergence" in needed:
                cells = maps.reshape(heads, -1)
                divergence += divergences(cells, self.logarithms_at_once)
            return gram, correlation, divergence, self.add_profile(profile, maps, first)

        start = (
            empty.gram,
            empty.heads.correlation,
            empty.heads.divergence,
            jnp.zeros((heads, 2 * self.size - 1), self.dtype),
        )
        gram, correlation, divergence, profile = self.over_blocks(step, start)
        squared = empty.heads.distance
        if "distance" in needed:
            squared = self.squared_distances(gram)
        baselines = self.against_baselines(profile, empty.baselines, needed)
        return AttentionSums(self.pair_sums(squared, divergence, correlation), gram, baselines)

    def pair_sums(self, squared: Array, divergence: Array, correlation: Array) -> PairSums:
        """Roots and factors that depend on the utterance's length."""
        distance = jnp.sqrt(squared)
        # An utterance of one frame has no correlation: it is 0, and so is (T - 1) / T.
        paper = correlation * (self.count - 1) / self.count
        norm = distance / jnp.sqrt(2 * self.count)
        return PairSums(distance, norm, divergence, correlation, paper)

    def standardise(self, maps: Rows, valid: Bool[Array, "row key"]) -> Rows:
        """Rows of mean 0 and norm 1 over valid keys; 0 where std < 1e-6 / T."""
        mean = jnp.sum(maps, axis=2, keepdims=True) / self.count
        centred = jnp.where(valid, maps - mean, 0)
        norm = jnp.sqrt(jnp.sum(jnp.square(centred), axis=2, keepdims=True))
        varies = norm > 1e-6 / jnp.sqrt(self.count)
        return jnp.where(varies, centred / jnp.where(varies, norm, 1), 0)

    def squared_distances(self, gram: Float[Array, "head head"]) -> Float[Array, "head head"]:
        """|A - B|^2 from the inner products, or from differences for heads too much alike."""
        heads = len(gram)
        energy = jnp.diagonal(gram)
        both = energy[:, None] + energy
        squared = jnp.maximum(both - 2 * gram, 0)
        diagonal = jnp.eye(heads, dtype=bool)
        close = (squared < _CANCELLED * both) & ~diagonal
        affected = close.any(axis=1)
        order, number = jnp.argsort(~affected), jnp.sum(affected)

        def step(total: Array, first: Int[Array, ""]) -> Array:
            maps = self.maps(first).reshape(heads, -1)

            def add_head(i: Int[Array, ""], total: Array) -> Array:
                head = order[i]
                return total.at[head].add(jnp.sum(jnp.square(maps - maps[head]), axis=1))

            return lax.fori_loop(0, number, add_head, total)

        # No block at all when no head is affected.
        again = dataclasses.replace(self, length=jnp.where(number > 0, self.length, 0))
        exact = again.over_blocks(step, jnp.zeros_like(gram))
        return jnp.where(diagonal, 0, jnp.where(close, exact, squared))

    def add_profile(self, profile: Array, maps: Rows, first: Int[Array, ""]) -> Array:
        """Add rows to sums over the cells of equal key - query [head, distance + size - 1]."""

        def add_row(r: Int[Array, ""], profile: Array) -> Array:
            start = self.size - 1 - jnp.minimum(first + r, self.size - 1)
            old = lax.dynamic_slice_in_dim(profile, start, self.size, axis=1)
            return lax.dynamic_update_slice_in_dim(profile, old + maps[:, r], start, axis=1)

        return lax.fori_loop(0, self.block, add_row, profile)

    def diagonal_maps(self, profile: Array, first: Int[Array, ""]) -> Rows:
        """Rows that depend on key - query only: the mean profile over valid keys, summing to 1."""
        cells = jnp.maximum(self.length - jnp.abs(jnp.arange(1 - self.size, self.size)), 1)
        mean = profile / cells.astype(self.dtype)
        # Each row has the numbers of the row before, one key further. Copies of them one after
        # another, cut into rows that are one longer, start one number later each: this needs no
        # gather, which is slow.
        mean = jnp.pad(mean, ((0, 0), (self.block - 1, 0)))
        width = self.size + self.block - 1
        window = lax.dynamic_slice_in_dim(mean, self.size - 1 - first, width, axis=1)
        copies = jnp.pad(jnp.tile(window, self.block), ((0, 0), (0, self.block)))
        maps = copies.reshape(-1, self.block, width + 1)[:, ::-1, : self.size]
        maps = jnp.where(self.valid(first), maps, 0)
        total = jnp.sum(maps, axis=2, keepdims=True)
        return maps / jnp.where(total > 0, total, 1)

    def against_baselines(
        self, profile: Array, empty: PairSums, needed: tuple[str, ...]
    ) -> PairSums:
        """Each head against its own diagonal profile and against itself half an utterance later."""
        if not needed:
            return empty

        def step(total: tuple, first: Int[Array, ""]) -> tuple:
            maps, valid = self.maps(first), self.valid(first)
            others = self.diagonal_maps(profile, first), self.maps(first, self.length // 2)
            other = concatenate_in_place([rows[None] for rows in others])
            z = self.standardise(maps, valid)
            z_other = jax.vmap(lambda rows: self.standardise(rows, valid))(other)
            cells = (
                jnp.square(maps - other),
                _entropy((maps + other) / 2) - (_entropy(maps) + _entropy(other)) / 2,
                z * z_other,
            )
            return tuple(t + _sum(x.reshape(*t.shape, -1)) for t, x in zip(total, cells))

        start = (empty.distance, empty.divergence, empty.correlation)
        return self.pair_sums(*self.over_blocks(step, start))


def products(maps: Rows) -> Float[Array, "head head"]:
    """Inner products over cells of every pair of heads, in full precision on every device."""
    cells = maps.reshape(len(maps), -1)
    return jnp.matmul(cells, cells.T, precision=lax.Precision.HIGHEST)


def _entropy(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """-p log p, in nats; 0 for 0."""
    return -p * _log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _log(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The natural logarithm of normal positive numbers.

    For float32 e log 2 + log m with x = 2^e m and m in [2/3, 4/3), by a polynomial: as exact as
    XLA's own (1.6e-7 relative), which on a CPU takes twice the time.
    """
    if x.dtype != jnp.float32:
        return jnp.log(x)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - _TWO_THIRDS) >> 23
    y = lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1
    quotient = jnp.full_like(y, _LOG1P_BY_Y[0])
    for coefficient in _LOG1P_BY_Y[1:]:
        quotient = quotient * y + coefficient
    return exponent.astype(jnp.float32) * np.float32(np.log(2)) + quotient * y


def _sum(x: Float[Array, "*each cell"]) -> Float[Array, "*each"]:
    """The sum over the last axis, as a product with ones: on a CPU XLA makes slow loops of sums."""
    return jnp.matmul(x, jnp.ones(x.shape[-1], x.dtype), precision=lax.Precision.HIGHEST)


def divergences(
    maps: Float[Array, "head cell"], logarithms_at_once: int = LOGARITHMS_AT_ONCE
) -> Float[Array, "head step"]:
    """Sum over cells of H((a + b) / 2) - (H(a) + H(b)) / 2, for heads h and h + 1 + step.

    One head against half of the others at a time, over as many cells as the cache holds.

    Args:
      maps: cells of every head.
      logarithms_at_once: cells taken together.
    """
    heads, cells = maps.shape
    around = steps(heads)
    parts = -(-cells // logarithms_at_once)
    size = -(-cells // parts)
    maps = jnp.pad(maps, ((0, 0), (0, parts * size - cells)))

    def of_part(total: Array, maps: Float[Array, "head cell"]) -> tuple[Array, None]:
        entropies = _sum(_entropy(maps)) / 2
        half = maps / 2
        circle = jnp.concatenate([half, half[:around]])
        others = jnp.concatenate([entropies, entropies[:around]])

        def with_others(head: Int[Array, ""]) -> Float[Array, " step"]:
            rest = lax.dynamic_slice_in_dim(circle, head + 1, around)
            mixed = _sum(_entropy(half[head] + rest))
            return mixed - entropies[head] - lax.dynamic_slice_in_dim(others, head + 1, around)

        return total + lax.map(with_others, jnp.arange(heads)), None

    start = jnp.zeros((heads, around), maps.dtype)
    return lax.scan(of_part, start, maps.reshape(heads, parts, size).swapaxes(0, 1))[0]
