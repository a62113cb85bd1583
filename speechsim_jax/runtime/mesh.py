"""The mesh of devices, and how a batch is divided over it.

Axis `data`: every device reads other utterances. Axis `feature`: devices that share one
accumulator, each with its slice of the neurons. Forward passes run on the utterances of a batch
divided over all devices of both axes.
"""

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from speechsim_jax.array_types import Lengths, Waveforms
from speechsim_jax.errors import UserError

AXES = ("data", "feature")
"""The axes of every mesh; batches are divided over both."""

_EXPECTED = 'expected for example "data:4" or "data:4,feature:2"'


def mesh_from(text: str | None) -> Mesh:
    """The mesh that "data:4,feature:2" describes, of this process's devices.

    Args:
      text: size of each axis; 1 for one that is left out, and devices beyond the product stay idle.
        By default all devices are along `data`.

    Raises:
      UserError: another form, or more devices than there are.
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


def place_batch(samples: Waveforms, lengths: Lengths, mesh: Mesh) -> tuple[Waveforms, Lengths]:
    """A batch with its utterances divided over all devices; unchanged on a single one.

    Args:
      samples: of as many utterances as the devices divide evenly (`batching.pad_to_multiple`).
      lengths: samples of each utterance.
      mesh: the devices.
    """
    if mesh.size == 1:
        return samples, lengths
    over_all = NamedSharding(mesh, P(AXES))
    return jax.device_put(samples, over_all), jax.device_put(lengths, over_all)


def place_frames(rows: np.ndarray, mesh: Mesh) -> Array:
    """What belongs to the frames of a batch, [_, batch, frame, ...], divided as hidden states are.

    Args:
      rows: on the host.
      mesh: the devices.
    """
    if mesh.size == 1:
        return jax.numpy.asarray(rows)
    return jax.device_put(rows, NamedSharding(mesh, P(None, AXES)))
