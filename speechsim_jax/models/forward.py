"""TODO."""

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
from speechsim_jax.runtime.mesh import AXES

_LAYER = re.compile(r"'encoder'\]\['layers'\]\['(\d+)'\]")


def on_host(encoder: SpeechEncoder) -> SpeechEncoder:
    """The encoder with its parameters as numpy arrays: on no device until it is needed."""
    return dataclasses.replace(encoder, parameters=jax.device_get(encoder.parameters))


def on_devices(encoder: SpeechEncoder, mesh: Mesh, depth: int | None = None) -> SpeechEncoder:
    """The encoder with its parameters whole on every device of the mesh.

    Those of transformer layers beyond `depth` stay where they are: a forward pass that ends below
    them does not read them, and what a compiled program does not read is not sent.
    """
    layout = None if mesh.size == 1 else NamedSharding(mesh, P())

    def placed(path: tuple, parameter: Any) -> Any:
        layer = layer_of(path)
        needed = depth is None or layer is None or layer < depth
        return jax.device_put(parameter, layout) if needed else parameter

    parameters = jax.tree_util.tree_map_with_path(placed, encoder.parameters)
    return dataclasses.replace(encoder, parameters=parameters)


def layer_of(path: tuple) -> int | None:
    """The transformer layer that the parameter at this path of an encoder's belongs to, from 0."""
    found = _LAYER.search(jax.tree_util.keystr(path))
    return int(found[1]) if found else None


def encode(
    encoder: SpeechEncoder,
    samples: Waveforms,
    lengths: Lengths,
    outputs: Outputs,
    precision: str,
    mesh: Mesh | None,
) -> Activations:
    """`encoder.apply`, every device on its own utterances of a placed batch."""
    if mesh is None or mesh.size == 1:
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
    """The program of `encode` for batches of this shape, to be compiled; `encode` will reuse it."""
    chosen = {"graph": encoder.graph, "outputs": outputs, "precision": precision}
    if mesh.size == 1:
        samples = jax.ShapeDtypeStruct(shape, np.float32)
        lengths = jax.ShapeDtypeStruct(shape[:1], np.int32)
        return forward.lower(encoder.parameters, samples, lengths, **chosen)
    filled = -(-shape[0] // mesh.size) * mesh.size
    over_all = NamedSharding(mesh, P(AXES))
    samples = jax.ShapeDtypeStruct((filled, shape[1]), np.float32, sharding=over_all)
    lengths = jax.ShapeDtypeStruct((filled,), np.int32, sharding=over_all)
    everywhere = NamedSharding(mesh, P())
    parameters = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), encoder.parameters
    )
    return _forward.lower(parameters, samples, lengths, mesh=mesh, **chosen)


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
    """`forward` under shard_map: left to itself, the compiler lets devices gather activations."""

    def own(parameters: Any, samples: Waveforms, lengths: Lengths) -> tuple:
        acts = forward(
            parameters, samples, lengths, graph=graph, outputs=outputs, precision=precision
        )
        by_block = acts.hidden_states, acts.attentions, acts.queries, acts.keys, acts.gates
        return (acts.frame_mask, acts.features), by_block, acts.position_bias

    (mask, features), (states, attentions, queries, keys, gates), bias = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(P(), P(AXES), P(AXES)),
        out_specs=(P(AXES), P(None, AXES), P()),
        check_vma=False,
    )(parameters, samples, lengths)
    return Activations(states, mask, attentions, queries, keys, gates, bias, features)
