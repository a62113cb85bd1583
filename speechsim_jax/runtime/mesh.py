"""The mesh of devices, and what is laid out on it.

Axis `data`: every device hears its own utterances. Axis `feature`: devices that share one
accumulator, each with its slice of the neurons. Forward passes run on the utterances of a batch
divided over all devices of both axes.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32

from speechsim_jax.array_types import Lengths, Waveforms
from speechsim_jax.errors import UserError

_EXPECTED = 'expected for example "data:4" or "data:4,feature:2"'


def mesh_from(text: str | None) -> Mesh:
    """The mesh that "data:4,feature:2" describes; all devices along `data` for None.

    Of this process's devices: what other processes have is theirs (`processes`).
    An axis that is left out has size 1, devices beyond the product stay idle. Raises UserError for
    another form, and for more devices than there are.
    """
    devices = jax.local_devices()
    sizes = {"data": len(devices), "feature": 1} if text is None else _sizes(text)
    count = sizes["data"] * sizes["feature"]
    if count > len(devices):
        raise UserError(
            f"mesh {text!r} needs {count} devices, but there are {len(devices)}; name fewer"
        )
    shape = sizes["data"], sizes["feature"]
    # Without Auto, products over a divided axis are refused in the newest releases.
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 2, devices=devices[:count])


def _sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"mesh {text!r}: cannot read {part!r}; {_EXPECTED}")
        sizes[name] = int(size)
    return dict.fromkeys(AXES, 1) | sizes


def place_batch(
    samples: Waveforms, lengths: Lengths, mesh: Mesh | None
) -> tuple[Float32[Array | np.ndarray, "_filled sample"], Int32[Array | np.ndarray, " _filled"]]:
    """A batch with its utterances divided over all devices, filled up with ones of length 0.

    As it is for one device.
    """
    if mesh is None or mesh.size == 1:
        return samples, lengths
    fillers = -len(lengths) % mesh.size
    samples = np.pad(np.asarray(samples), ((0, fillers), (0, 0)))
    lengths = np.pad(np.asarray(lengths), (0, fillers))
    over_all = NamedSharding(mesh, P(AXES))
    return jax.device_put(samples, over_all), jax.device_put(lengths, over_all)


# Of every mesh (`sharding`). Batches are divided over both.
AXES = ("data", "feature")
