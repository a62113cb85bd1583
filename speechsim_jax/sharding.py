"""The mesh of devices, and what is laid out on it.

Axis `data`: every device hears its own utterances. Axis `feature`: devices that share one
accumulator, each with its slice of the neurons. Forward passes run on the utterances of a batch
divided over all devices of both axes.
"""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32

from speechsim_jax.array_types import Lengths, Waveforms
from speechsim_jax.errors import UserError
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder, forward
from speechsim_jax.statistics.moments_on_mesh import AXES

_EXPECTED = 'expected for example "data:4" or "data:4,feature:2"'
_COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(?:-start)?\((.*)"
)
_LAYER = re.compile(r"'encoder'\]\['layers'\]\['(\d+)'\]")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


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


class Collective(NamedTuple):
    """What devices do together: `groups` of their places on the mesh, row by row."""

    kind: str
    groups: tuple[tuple[int, ...], ...]


def collectives(program: str) -> set[Collective]:
    """The collectives of a compiled program, from its HLO text (`compiled.as_text()`)."""
    found = (_COLLECTIVE.search(line) for line in program.splitlines())
    return {Collective(match[1], _groups(match[2])) for match in found if match}


def _groups(text: str) -> tuple[tuple[int, ...], ...]:
    """`{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`: the numbers of that shape, turned, regrouped;
    `mesh['a'=2,'b'=2] {'b'}`: along the axes named.
    """
    if listed := _LISTED.search(text):
        groups = re.findall(r"\{([\d,]*)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    if counted := _COUNTED.search(text):
        shape, source, order = (_numbers(part or "") for part in counted.groups())
    elif named := _NAMED.search(text):
        axes = re.findall(r"'(\w+)'", named[1])
        source = _numbers(re.sub(r"'\w+'=", "", named[1]))
        along = [axes.index(axis) for axis in re.findall(r"'(\w+)'", named[2])]
        order = [axis for axis in range(len(axes)) if axis not in along] + along
        shape = [-1, int(np.prod([source[axis] for axis in along]))]
    else:
        return ()
    ids = np.arange(np.prod(source)).reshape(source)
    ids = ids.transpose(order or range(ids.ndim)).reshape(shape)
    return tuple(map(tuple, ids.tolist()))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
