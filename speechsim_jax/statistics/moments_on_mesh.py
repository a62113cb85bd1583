"""The programs of `MomentsAccumulator` on the devices of a mesh.

Every device has its own row buffer, and every row of devices along the axis `feature` its own
accumulator. They are divided along an existing axis, so that each device runs the program of a
single device:

    buffers   [layer, row, neuron]   rows of all devices
    sums      [part, ...]            two parts for each device along `data`; `count` likewise
    cross     [pair, part, x, y]     and x divided along `feature`
    reference shift                  the same everywhere

The sums over parts are the values, as on one device. An update needs nothing from the devices along
`data`; along `feature` it gathers their rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Int32, Shaped

from speechsim_jax.array_types import HiddenStates, ModelRows
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.mesh import AXES
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import ModelShape, Moments, Reference, Tile

Buffers = tuple[ModelRows, ...]
Source = Int32[Array | np.ndarray, " row"]
Valid = Int[Array | np.ndarray, " device"]
ShardedMoments = tuple[Moments, Any, Any]
"""A state without cross moments and reference shift, and these two: each has its own layout."""

_ROWS = P(None, AXES)
_PARTS = (P("data"), P(None, "data", "feature"), P())


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled programs; `pack` and `update` write over their first argument.

    Attributes:
      devices: number of devices.
      zero: (shapes, tiles, dtype) -> state of no rows.
      buffers: (shapes, rows of each device, dtype) -> empty row buffers.
      pack: (buffers, hidden states, sources) -> buffers (`pack`).
      reference_mean: (buffers, valid rows of each device) -> reference shift.
      update: (state, buffers, valid rows of each device, precision=) -> state.
      place_state: state on the host -> state on the devices.
      place_rows: rows on the host -> rows on the devices.
    """

    devices: int
    zero: Callable[[tuple[ModelShape, ...], tuple[Tile, ...] | None, str], Moments]
    buffers: Callable[[tuple[ModelShape, ...], int, str], Buffers]
    pack: Callable[[Buffers, tuple[HiddenStates, ...], tuple[Source, ...]], Buffers]
    reference_mean: Callable[[Buffers, Valid], Reference]
    update: Callable[..., Moments]
    place_state: Callable[[Moments], Moments]
    place_rows: Callable[[tuple[np.ndarray, ...]], tuple[Array, ...]]


def pack(
    buffers: Buffers, hidden: tuple[HiddenStates, ...], sources: tuple[Source, ...]
) -> Buffers:
    """Copy frames into the buffers: buffer[:, r] = frame source[r], unchanged where that is -1.

    Args:
      buffers: of each model.
      hidden: of each model.
      sources: of each model, indices into the flattened [batch * frame] axis.
    """

    def fill(buffer: ModelRows, states: HiddenStates, indices: Source) -> ModelRows:
        source = jnp.asarray(indices)
        frames = states.reshape(states.shape[0], -1, states.shape[-1])
        chosen = jnp.take(frames, jnp.maximum(source, 0), axis=1)
        return jnp.where((source >= 0)[:, None], chosen.astype(buffer.dtype), buffer)

    return tuple(map(fill, buffers, hidden, sources))


@functools.cache
def on_mesh(mesh: Mesh) -> Programs:
    """The programs of a mesh; compiled once for all accumulators of the same shapes."""
    feature = mesh.shape["feature"]
    mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    packed = mapped(pack, in_specs=(_ROWS, _ROWS, P(AXES)), out_specs=_ROWS)
    reference = jax.jit(mapped(_reference_mean, in_specs=(_ROWS, P(AXES), P(AXES)), out_specs=P()))

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="precision")
    def updated(
        parts: ShardedMoments, buffers: Buffers, valid: Int[Array, " buffer"], precision: str
    ) -> ShardedMoments:
        on_device = functools.partial(_update, feature, precision)
        specs = _PARTS, _ROWS, P("data")
        return mapped(on_device, in_specs=specs, out_specs=_PARTS)(parts, buffers, valid)

    @functools.partial(jax.jit, static_argnames=("shapes", "tiles", "dtype"))
    def zero_parts(
        shapes: tuple[ModelShape, ...], tiles: tuple[Tile, ...] | None, dtype: str
    ) -> ShardedMoments:
        def on_device() -> ShardedMoments:
            return _parts(moments.zero(shapes, tiles, dtype, feature))

        return mapped(on_device, in_specs=(), out_specs=_PARTS)()

    def zero(shapes: tuple[ModelShape, ...], tiles: tuple[Tile, ...] | None, dtype: str) -> Moments:
        _check_widths(shapes, feature)
        return _joined(zero_parts(shapes, tiles, dtype))

    @functools.partial(jax.jit, static_argnames=("shapes", "size", "dtype"))
    def buffers(shapes: tuple[ModelShape, ...], size: int, dtype: str) -> Buffers:
        def on_device() -> Buffers:
            return tuple(jnp.zeros((s.layers, size, s.neurons), dtype) for s in shapes)

        return mapped(on_device, in_specs=(), out_specs=_ROWS)()

    def reference_mean(buffers: Buffers, valid: Valid) -> Reference:
        leads = np.arange(mesh.size) == np.argmax(np.asarray(valid) > 0)
        return reference(buffers, valid, leads)

    def update(
        state: Moments, buffers: Buffers, valid: Valid, precision: str = "highest"
    ) -> Moments:
        return _joined(updated(_parts(state), buffers, jnp.asarray(valid), precision=precision))

    def place_state(state: Moments) -> Moments:
        def place(part: Any, spec: P) -> Any:
            layout = NamedSharding(mesh, spec)
            return jax.tree.map(lambda x: jax.device_put(x, layout), part)

        rest, cross, reference = map(place, _parts(state), _PARTS)
        return _joined((rest, cross, reference))

    def place_rows(rows: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
        return jax.device_put(rows, NamedSharding(mesh, _ROWS))

    return Programs(
        devices=mesh.size,
        zero=zero,
        buffers=buffers,
        pack=jax.jit(packed, donate_argnums=0),
        reference_mean=reference_mean,
        update=update,
        place_state=place_state,
        place_rows=place_rows,
    )


def _update(
    feature: int,
    precision: str,
    parts: ShardedMoments,
    buffers: Buffers,
    valid: Int[Array, " buffer"],
) -> ShardedMoments:
    """One device's part: rows of all devices along `feature`, one slice of the x-neurons."""
    slice_ = 0
    if feature > 1:
        buffers = tuple(lax.all_gather(x, "feature", axis=1, tiled=True) for x in buffers)
        slice_ = lax.axis_index("feature")
    return _parts(moments.update(_joined(parts), buffers, valid, slice_, precision))


def _reference_mean(buffers: Buffers, valid: Array, leads: Array) -> Reference:
    everywhere = functools.partial(lax.psum, axis_name=AXES)
    return moments.reference_mean(buffers, valid, everywhere, leads[0])


def _parts(state: Moments) -> ShardedMoments:
    rest = dataclasses.replace(state.sums, cross=())
    return dataclasses.replace(state, reference=(), sums=rest), state.sums.cross, state.reference


def _joined(parts: ShardedMoments) -> Moments:
    rest, cross, reference = parts
    sums = dataclasses.replace(rest.sums, cross=cross)
    return dataclasses.replace(rest, reference=reference, sums=sums)


def _check_widths(shapes: tuple[ModelShape, ...], feature: int) -> None:
    for shape in shapes:
        if shape.neurons % feature:
            raise UserError(
                f"mesh: {shape.neurons} neurons cannot be divided over feature:{feature}; name a "
                "size that divides the width of every model"
            )


def of_one_device(state: Moments, devices: int) -> Moments:
    """A state on the host with all its sums in the parts of the first of `devices` devices."""
    rest, cross, reference = _parts(state)
    sums = jax.tree.map(lambda x: first_of(x, devices), rest.sums)
    cross = tuple(np.moveaxis(first_of(np.moveaxis(x, 1, 0), devices), 0, 1) for x in cross)
    count = np.zeros((devices, 2), np.int32)
    count[0] = moments.as_count(moments.count_of(state))
    rest = dataclasses.replace(rest, count=count.reshape(-1), sums=sums)
    return _joined((rest, cross, reference))


def first_of(
    parts: Shaped[np.ndarray, "_part *each"], devices: int
) -> Shaped[np.ndarray, "_parts *each"]:
    """Compensated sums of any number of devices, added up into the first of `devices` devices."""
    placed = np.zeros((2 * devices, *parts.shape[1:]), parts.dtype)
    high, lost = parts[0], parts[1]
    for term, rest in zip(parts[2::2], parts[3::2]):
        high, new = moments.two_sum(high, term)
        lost = lost + new + rest
    placed[0], placed[1] = high, lost
    return placed
