"""Forward passes of encoders on the devices of a mesh, and where their parameters are kept.

Each device encodes its own utterances of a batch, with a copy of the parameters that the pass
reads; parameters of layers above the last one requested are not sent.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from speechsim_jax.array_types import Lengths, Waveforms
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder, forward
from speechsim_jax.models.external import Encoder, ExternalEncoder
from speechsim_jax.runtime.mesh import AXES

# How the fields of activations are divided that do not have blocks first and utterances second.
_OTHER_SPECS = {
    "frame_mask": P(AXES),
    "features": P(AXES),
    "position_bias": P(),
    "position_keys": P(),
}
_LAYER = re.compile(r"^(?:\['encoder'\])?\['layers'\]\['(\d+)'\]")


def on_host(encoder: Encoder) -> Encoder:
    """The encoder with its parameters as numpy arrays, which take no memory on a device."""
    if isinstance(encoder, ExternalEncoder):  # where these are is its own business
        return encoder
    return dataclasses.replace(encoder, parameters=jax.device_get(encoder.parameters))


def on_devices(encoder: Encoder, mesh: Mesh, depth: int | None = None) -> Encoder:
    """The encoder with a copy of its parameters on every device of the mesh.

    Args:
        encoder: the encoder.
        mesh: the devices.
        depth: transformer layers that will be computed (default: all). The parameters of those
            above stay where they are: a compiled program does not send what it does not read.
    """
    if isinstance(encoder, ExternalEncoder):
        return encoder
    layout = None if mesh.size == 1 else NamedSharding(mesh, P())

    def placed(path: tuple, parameter: Any) -> Any:
        layer = layer_of(path)
        needed = depth is None or layer is None or layer < depth
        return jax.device_put(parameter, layout) if needed else parameter

    parameters = jax.tree_util.tree_map_with_path(placed, encoder.parameters)
    return dataclasses.replace(encoder, parameters=parameters)


def layer_of(path: tuple) -> int | None:
    """The number, from 0, of the transformer layer that a parameter belongs to.

    Args:
        path: of the parameter in `SpeechEncoder.parameters`.

    Returns:
        None for parameters outside the transformer layers.
    """
    match = _LAYER.search(jax.tree_util.keystr(path))
    return int(match[1]) if match else None


def encode(
    encoder: SpeechEncoder,
    samples: Waveforms,
    lengths: Lengths,
    outputs: Outputs,
    precision: str,
    mesh: Mesh,
) -> Activations:
    """`encoder.apply`, with each device encoding its own utterances.

    Args:
        encoder: its parameters are on the devices already (`on_devices`).
        samples: a batch divided over the devices (`runtime.mesh.place_batch`).
        lengths: samples of each utterance.
        outputs: what to return.
        precision: of matrix products, in JAX's words or an algorithm's name.
        mesh: the devices.
    """
    if mesh.size == 1:
        return encoder.apply(samples, lengths, outputs, precision)
    return _forward(
        encoder.parameters,
        samples,
        lengths,
        graph=encoder.graph,
        outputs=outputs,
        precision=precision,
        mesh=mesh,
    )


def lower_encode(
    encoder: SpeechEncoder,
    shape: tuple[int, int],
    outputs: Outputs,
    precision: str,
    mesh: Mesh,
) -> jax.stages.Lowered:
    """The lowered program of `encode` for batches of one shape; once compiled, `encode` reuses it.

    Args:
        encoder: the encoder; its parameters may be anywhere.
        shape: utterances and samples of a batch, before it is padded for the mesh.
        outputs: what to return.
        precision: of matrix products, in JAX's words or an algorithm's name.
        mesh: the devices.
    """
    options = {"graph": encoder.graph, "outputs": outputs, "precision": precision}
    if mesh.size == 1:
        samples = jax.ShapeDtypeStruct(shape, np.float32)
        lengths = jax.ShapeDtypeStruct(shape[:1], np.int32)
        # With `out`, as `SpeechEncoder.apply` passes it: another call is another program.
        return forward.lower(encoder.parameters, samples, lengths, None, **options)
    batch = -(-shape[0] // mesh.size) * mesh.size
    over_all = NamedSharding(mesh, P(AXES))
    samples = jax.ShapeDtypeStruct((batch, shape[1]), np.float32, sharding=over_all)
    lengths = jax.ShapeDtypeStruct((batch,), np.int32, sharding=over_all)
    everywhere = NamedSharding(mesh, P())
    parameters = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), encoder.parameters
    )
    return _forward.lower(parameters, samples, lengths, mesh=mesh, **options)


@functools.partial(jax.jit, static_argnames=("graph", "outputs", "precision", "mesh"))
def _forward(
    parameters: Any,
    samples: Waveforms,
    lengths: Lengths,
    *,
    graph: nnx.GraphDef,
    outputs: Outputs,
    precision: str,
    mesh: Mesh,
) -> Activations:
    """`forward` under shard_map; without it the compiler gathers activations across devices."""
    names = [field.name for field in dataclasses.fields(Activations)]

    def of_one_device(parameters: Any, samples: Waveforms, lengths: Lengths) -> dict[str, Any]:
        acts = forward(
            parameters, samples, lengths, graph=graph, outputs=outputs, precision=precision
        )
        return {name: getattr(acts, name) for name in names}

    fields = jax.shard_map(
        of_one_device,
        mesh=mesh,
        in_specs=(P(), P(AXES), P(AXES)),
        out_specs=dict.fromkeys(names, P(None, AXES)) | _OTHER_SPECS,
        check_vma=False,
    )(parameters, samples, lengths)
    return Activations(**fields)
