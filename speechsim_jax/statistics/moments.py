"""First, second and cross moments of every layer pair of every model, in one pass.

Rows (frames) of one model are [layer, row, neuron]. With the reference shift p, a first guess at
the mean that never changes, and x = row - p for each representation (layer of a model),

    first = sum x              cross(l, m) = sum x_l x_m'                e_l = |x_l|^2
    energy = sum e             energy_cross = sum e e'                   energy_first = sum e x'

is everything that the measures on moments read. The layer pairs of two models are a *tile*; within
one model a tile holds l <= m only.

Subtracting the reference shift keeps squares small (E[ab] - E[a]E[b] is never formed on raw data;
Chan, Golub & LeVeque 1983), and every sum carries what its rounding lost (TwoSum: Knuth 1969,
section 4.2.2, theorem B), so float32 sums keep nearly twice their digits over any number of rows.

The reference shift has two parts, x = (row - mean) - rest. Rows far from 0 are whole multiples of
their last place, and so are their differences from a mean of their own precision; the squares of
such numbers round upwards more often than not (by 1e-7 of the variance where mean / std = 1000).
The rest, a fraction of the last place, takes them off that grid.

`zero` is the state of no rows. States about different reference shifts are merged by
`moments_merge`. On a mesh every device keeps two parts of each sum (`moments_on_mesh`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32

from speechsim_jax.array_types import ModelRows

# A count is kept as (multiples of this, remainder): int32 alone ends at 2^31 rows.
_COUNT_BASE = 2**30

# A buffer of at least so many rows is multiplied by quarters of it.
_LEAST_TO_DIVIDE, _QUARTERS = 512, 4

# (3 - sqrt 5) / 2: no number is further from all simple fractions, which would be a finer grid.
_OFF_GRID = 0.3819660112501051

Values = Array | np.ndarray
"""On the device, or (float64) on the host."""

Compensated = Float[Values, "_part ..."]
"""A sum, followed by what its rounding has lost so far; their sum is the value.

Two parts on each device; on the host one part in float64 (`moments_merge.on_host`).
"""

_Product = Callable[[str, Array, Array], Array]
"""einsum of two arrays."""

Reference = tuple[Float[Values, "2 _layer _neuron"], ...]
"""The reference shift of each model, in two parts."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The shape of one model's rows.

    Attributes:
      layers: number of layers.
      neurons: of each layer.
    """

    layers: int
    neurons: int


def first_representations(shapes: Sequence[ModelShape]) -> list[int]:
    """The number of each model's first representation, those of all models counted through."""
    return [0, *itertools.accumulate(shape.layers for shape in shapes[:-1])]


@dataclasses.dataclass(frozen=True)
class Tile:
    """Layer pairs of two models.

    Attributes:
      a, b: the models.
      pairs: (l, m), a layer of each.
    """

    a: int
    b: int
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def from_json(cls, record: Sequence[Any]) -> "Tile":
        """The inverse of `dataclasses.astuple`, through JSON."""
        a, b, pairs = record
        return cls(a, b, tuple((l, m) for l, m in pairs))


def all_tiles(shapes: tuple[ModelShape, ...]) -> tuple[Tile, ...]:
    """Every layer pair once: all of a with all of b for a < b, l <= m within a model."""
    tiles = []
    for a, b in itertools.combinations_with_replacement(range(len(shapes)), 2):
        pairs = itertools.product(range(shapes[a].layers), range(shapes[b].layers))
        tiles.append(Tile(a, b, tuple((l, m) for l, m in pairs if a < b or l <= m)))
    return tuple(tiles)


def tiles_of(shapes: tuple[ModelShape, ...], pairs: Iterable[tuple[int, int]]) -> tuple[Tile, ...]:
    """Pairs of representations as tiles, in the order of `all_tiles`.

    Args:
      shapes: layers and width of each model.
      pairs: numbers of two representations, the smaller first.
    """
    indices = [(a, l) for a, shape in enumerate(shapes) for l in range(shape.layers)]
    layer_pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, j in sorted(pairs):
        (a, l), (b, m) = indices[i], indices[j]
        layer_pairs.setdefault((a, b), []).append((l, m))
    return tuple(Tile(a, b, tuple(layer_pairs[a, b])) for a, b in sorted(layer_pairs))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """The compensated sums of the module's docstring.

    Attributes:
      first: of each model.
      cross: of each tile.
      energy: of all representations.
      energy_cross: of all pairs of representations.
      energy_first: of each model's rows, weighted by the energies of every representation.
    """

    first: tuple[Float[Values, "_part _layer _neuron"], ...]
    cross: tuple[Float[Values, "_pair _part _x _y"], ...]
    energy: Float[Values, "_part representation"]
    energy_cross: Float[Values, "_part representation representation"]
    energy_first: tuple[Float[Values, "_part representation _layer _neuron"], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """The running state.

    Attributes:
      count: rows, as multiples of 2^30 and the remainder, for each device along `data`.
      reference: the reference shift of each model, in two parts; its dtype is that of the sums.
      sums: over rows.
      shapes: layers and width of each model.
      tiles: the layer pairs of `sums.cross`.
    """

    count: Int32[Values, "_two"]
    reference: Reference
    sums: Sums
    shapes: tuple[ModelShape, ...] = dataclasses.field(metadata={"static": True})
    tiles: tuple[Tile, ...] = dataclasses.field(metadata={"static": True})


# One program: array by array there would be one for each shape.
@functools.partial(jax.jit, static_argnames=("shapes", "tiles", "dtype", "slices"))
def zero(
    shapes: tuple[ModelShape, ...],
    tiles: tuple[Tile, ...] | None = None,
    dtype: DTypeLike = jnp.float32,
    slices: int = 1,
) -> Moments:
    """The state of no rows, with a reference shift of 0.

    Args:
      shapes: layers and width of each model.
      tiles: layer pairs; all of them by default.
      dtype: of the sums.
      slices: `cross` has room for one of so many equal slices of the x-neurons.
    """
    tiles = all_tiles(shapes) if tiles is None else tiles
    representations = sum(shape.layers for shape in shapes)

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, dtype)

    sums = Sums(
        first=tuple(zeros(2, s.layers, s.neurons) for s in shapes),
        cross=tuple(
            zeros(len(t.pairs), 2, shapes[t.a].neurons // slices, shapes[t.b].neurons)
            for t in tiles
        ),
        energy=zeros(2, representations),
        energy_cross=zeros(2, representations, representations),
        energy_first=tuple(zeros(2, representations, s.layers, s.neurons) for s in shapes),
    )
    reference = tuple(zeros(2, s.layers, s.neurons) for s in shapes)
    return Moments(jnp.zeros(2, jnp.int32), reference, sums, shapes, tiles)


def with_reference(state: Moments, reference: Reference) -> Moments:
    """The state, which must be of no rows, about another reference shift."""
    reference = tuple(new.astype(old.dtype) for new, old in zip(reference, state.reference))
    return dataclasses.replace(state, reference=reference)


def reference_mean(
    rows: tuple[ModelRows, ...],
    valid: Int[Array, "*buffer"],
    everywhere: Callable[[Array], Array] = lambda x: x,
    leads: Bool[Array, ""] | bool = True,
) -> Reference:
    """The mean of the first `valid` rows, and the rest that takes rows off the grid.

    A neuron that is constant there gets exactly its value, and no rest.

    Args:
      rows: of each model, [layer, row, neuron].
      valid: number of valid rows of each buffer.
      everywhere: sums an array over all devices.
      leads: whether the base of all devices is the first row of this one, which must be valid.
    """

    def mean(x: ModelRows) -> Float[Array, "2 _layer _neuron"]:
        base = everywhere(jnp.where(leads, x[:, :1], 0))
        deviation = jnp.where(_inside(x, valid), x - base, 0)
        total = everywhere(jnp.sum(deviation, axis=1))
        count = everywhere(jnp.sum(valid))
        mean = base[:, 0] + total / jnp.maximum(count, 1).astype(x.dtype)
        last_place = jnp.nextafter(mean, jnp.inf) - mean
        varies = everywhere(jnp.any(deviation, axis=1).astype(x.dtype)) > 0
        return jnp.stack([mean, varies * _OFF_GRID * last_place])

    return tuple(mean(x) for x in rows)


def update(
    state: Moments,
    rows: tuple[ModelRows, ...],
    valid: Int[Array, "*buffer"],
    part: Int[Array, ""] | int = 0,
    precision: str = "highest",
) -> Moments:
    """Add the first `valid` rows of each model, the same frames in all; others are ignored.

    Args:
      state: the sums so far; callers donate it.
      rows: of each model, [layer, row, neuron]: one or several buffers of equal size.
      valid: number of valid rows of each buffer.
      part: which slice of the x-neurons `cross` holds.
      precision: of products of float32 numbers (`product_precision`).
    """
    product = functools.partial(_einsum, precision)
    shifted = [_shift(x, reference, valid) for x, reference in zip(rows, state.reference)]
    energies = jnp.concatenate([product("lrd,lrd->lr", x, x) for x in shifted])
    old = state.sums
    sums = Sums(
        first=tuple(add(s, jnp.sum(x, axis=1)) for s, x in zip(old.first, shifted)),
        cross=tuple(
            _add_products(acc, tile, shifted[tile.a], shifted[tile.b], valid, part, product)
            for acc, tile in zip(old.cross, state.tiles)
        ),
        energy=add(old.energy, jnp.sum(energies, axis=1)),
        energy_cross=add(old.energy_cross, product("nr,mr->nm", energies, energies)),
        energy_first=tuple(
            add(s, _weighted_sums(energies, x, product)) for s, x in zip(old.energy_first, shifted)
        ),
    )
    count = _carry(state.count + jnp.array([0, 1], jnp.int32) * jnp.sum(valid).astype(jnp.int32))
    return dataclasses.replace(state, count=count, sums=sums)


def _shift(
    x: ModelRows, reference: Float[Values, "2 _layer _neuron"], valid: Int[Array, "*buffer"]
) -> ModelRows:
    mean, rest = reference[0][:, None], reference[1][:, None]
    return jnp.where(_inside(x, valid), (x.astype(reference.dtype) - mean) - rest, 0)


def _inside(x: ModelRows, valid: Int[Array, "*buffer"]) -> Bool[Array, "row 1"]:
    """Which rows are among the first `valid` of their buffer."""
    row = jnp.arange(x.shape[1] // valid.size)
    return (row < valid.reshape(-1, 1)).reshape(-1, 1)


def _einsum(precision: str, formula: str, a: Array, b: Array) -> Array:
    """A product that says how it is computed; TPU and recent GPUs would round float32 operands."""
    return jnp.einsum(formula, a, b, precision=precision)


def _weighted_sums(
    weights: Float[Array, "representation row"], rows: ModelRows, product: _Product
) -> Float[Array, "representation _layer _neuron"]:
    """Sums over rows; layer by layer, because one product would copy all rows."""
    return lax.map(lambda x: product("nr,rd->nd", weights, x), rows).swapaxes(0, 1)


def _add_products(
    acc: Float[Values, "_pair 2 _x _y"],
    tile: Tile,
    a: ModelRows,
    b: ModelRows,
    valid: Int[Array, "*buffer"],
    part: Int[Array, ""] | int,
    product: _Product,
) -> Float[Array, "_pair 2 _x _y"]:
    """acc[k] += a[l]' b[m] for each pair (l, m) of the tile, for the x-neurons that acc has.

    Rows that are not valid must be 0.

    A loop, so that the compiler holds one product at a time. Sum and lost digits are in one array
    because two would each be copied entirely at every step (both are read before either is
    written).
    """
    l_of, m_of = np.array(tile.pairs, np.int32).T

    def step(k: Int[Array, ""], acc: Array) -> Array:
        x = lax.dynamic_index_in_dim(a, jnp.asarray(l_of)[k], keepdims=False)
        x = lax.dynamic_slice_in_dim(x, part * acc.shape[2], acc.shape[2], axis=1)
        y = lax.dynamic_index_in_dim(b, jnp.asarray(m_of)[k], keepdims=False)
        old = lax.dynamic_index_in_dim(acc, k, keepdims=False)
        term = _of_valid_rows(functools.partial(product, "rx,ry->xy"), x, y, valid)
        return lax.dynamic_update_index_in_dim(acc, add(old, term), k, 0)

    return lax.fori_loop(0, len(tile.pairs), step, acc)


def _of_valid_rows(
    product: Callable[[Array, Array], Array],
    x: Float[Array, "row _x"],
    y: Float[Array, "row _y"],
    valid: Int[Array, "*buffer"],
) -> Float[Array, "_x _y"]:
    """x' y of a buffer whose last rows are 0, of the quarters that have valid rows.

    A pass ends with a buffer that is half full on average. On a CPU only: an accelerator waits for
    the host to choose a branch.
    """
    rows = len(x)
    if valid.size > 1 or rows < _LEAST_TO_DIVIDE or rows % _QUARTERS:
        return product(x, y)
    quarter = rows // _QUARTERS

    def of_first(rows: int) -> Callable[[Array, Array], Array]:
        return lambda x, y: product(x[:rows], y[:rows])

    def chosen(x: Array, y: Array) -> Array:
        filled = jnp.clip((valid.reshape(()) - 1) // quarter, 0, _QUARTERS - 1)
        return lax.switch(filled, [of_first((k + 1) * quarter) for k in range(_QUARTERS)], x, y)

    return lax.platform_dependent(x, y, cpu=chosen, default=product)


def add(total: Compensated, term: Array) -> Compensated:
    """Add a term to a compensated sum."""
    high, lost = two_sum(total[0], term)
    return jnp.stack([high, total[1] + lost])


def two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    """a + b rounded, and what rounding lost: the two add up to a + b exactly."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def _carry(count: Int32[Values, "2"]) -> Int32[Array, "2"]:
    return jnp.stack([count[0] + count[1] // _COUNT_BASE, count[1] % _COUNT_BASE])


def total(parts: Compensated, axis: int = 0) -> np.ndarray:
    """Sum and lost digits, along an axis -> float64 on the host, without that axis."""
    return np.asarray(np.asarray(parts).sum(axis=axis, dtype=np.float64))


def count_of(state: Moments) -> int:
    """Rows added so far."""
    high, low = np.asarray(state.count).reshape(-1, 2).sum(axis=0, dtype=np.int64).tolist()
    return high * _COUNT_BASE + low


def as_count(rows: int) -> Int32[np.ndarray, "2"]:
    """The inverse of `count_of`."""
    return np.array(divmod(rows, _COUNT_BASE), np.int32)
