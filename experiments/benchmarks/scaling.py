"""What each device of a mesh has to do, from compiled programs: nothing is run, nothing allocated.

A process with eight simulated devices compiles, for meshes of 1 to 8 of them,

    update    of the moments of two base-size models, `_ROWS` rows from every device. Planned for a
              device of data:N,feature:F: 2 rows sum d_l d_m operations over layer pairs l <= m (of
              the rows of F devices, each its slice of the neurons), no collective along data, and
              along feature one gathering of rows, of which those of F - 1 devices are received
    encoder   the forward pass of one of them, `_UTTERANCES` on every device; no collective
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks import compiled, processes
from experiments.benchmarks.encoder import flops as encoder_flops
from experiments.benchmarks.machine import say, say_machine
from experiments.benchmarks.statistics import flops as update_flops
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.weight_names import abstract_network
from speechsim_jax.runtime.mesh import mesh_from
from speechsim_jax.statistics import moments, moments_on_mesh
from speechsim_jax.statistics.moments import ModelShape

_WHAT = "scaling"
_DEVICES = (1, 2, 4, 8)
_FEATURE = (1, 2, 4)
_STREAMS = (ModelShape(13, 768), ModelShape(13, 768))
_ROWS = 4096
_CORPUS_ROWS = 180_000
"""An hour of speech."""
_UTTERANCES, _SECONDS = 4, 10


def run() -> None:
    """Compile in a process that shows eight devices, and print what it prints."""
    say_machine(_WHAT)
    devices = f"--xla_force_host_platform_device_count={max(_DEVICES)}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    ended = processes.python(
        "experiments.benchmarks.scaling", [], XLA_FLAGS=flags, JAX_PLATFORMS="cpu"
    )
    print(ended.out, end="", flush=True)


def main() -> None:
    """A line of JSON for each figure of each mesh."""
    for devices in _DEVICES:
        for feature in (size for size in _FEATURE if size <= devices):
            mesh = mesh_from(f"data:{devices // feature},feature:{feature}")
            _update(mesh)
            if feature == 1:
                _encoder(mesh)


def _update(mesh: Mesh) -> None:
    devices, feature = mesh.size, mesh.shape["feature"]
    names: dict[str, Any] = {"mesh": f"data:{devices // feature},feature:{feature}"}
    names |= {"devices": devices, "feature": feature}
    program = compiled_update(mesh, _STREAMS, _ROWS)
    found = compiled.work(_text(program))
    planned = update_flops(_STREAMS, _ROWS)
    say(_WHAT, "update, products of a device", found.flops / 1e9, "GFLOP",
        planned=planned / 1e9, **names)  # fmt: skip
    share = _CORPUS_ROWS / (_ROWS * devices) / 1e12
    say(_WHAT, "update, products of a device for an hour", found.flops * share, "TFLOP",
        planned=planned * share, **names)  # fmt: skip
    row_bytes = 4 * sum(s.layers * s.neurons for s in _STREAMS)
    say(_WHAT, "update, bytes a device receives", sum(found.received.values()), "bytes",
        planned=(feature - 1) * _ROWS * row_bytes, **names)  # fmt: skip
    along = along_data(_text(program), feature)
    say(_WHAT, "update, collectives along data", along, "count", planned=0, **names)
    memory = program.memory_analysis()
    assert memory is not None
    say(_WHAT, "update, state and rows of a device", memory.argument_size_in_bytes / 2**30, "GiB",
        **names)  # fmt: skip


def compiled_update(mesh: Mesh, streams: tuple[ModelShape, ...], rows: int) -> jax.stages.Compiled:
    """The update of the moments, as `MomentsStream` has it compiled for this mesh."""
    if mesh.size == 1:
        update, valid = moments.update, jax.ShapeDtypeStruct((), np.int32)
        make = (lambda: moments.zero(streams)), (lambda: _rows(streams, rows))
    else:
        device = moments_on_mesh.on_mesh(mesh)
        update, valid = device.update, jax.ShapeDtypeStruct((mesh.size,), np.int32)
        make = (
            functools.partial(device.zero, streams, None, "float32"),
            functools.partial(device.buffers, streams, rows, "float32"),
        )
    (state, state_tree), (given, rows_tree) = map(_laid_out, make)

    def flat(state: list[Any], given: list[Any], valid: Any) -> list[Any]:
        whole = jax.tree.unflatten(state_tree, state), jax.tree.unflatten(rows_tree, given)
        return jax.tree.leaves(update(*whole, valid))

    return jax.jit(flat, donate_argnums=0).lower(state, given, valid).compile()


def _rows(streams: tuple[ModelShape, ...], rows: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros((s.layers, rows, s.neurons)) for s in streams)


def _laid_out(make: Callable[[], Any]) -> tuple[list[jax.ShapeDtypeStruct], Any]:
    """What `make` would return: the shapes of its leaves, how they lie on the mesh, and its tree.

    Leaves, because the dataclasses' own annotations refuse mere shapes where they are checked.
    """
    trees = []

    def leaves() -> list[Any]:
        found, tree = jax.tree.flatten(make())
        trees.append(tree)
        return found

    lowered = jax.jit(leaves).lower()
    layouts = lowered.compile().output_shardings
    shapes = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=layout)
        for array, layout in zip(lowered.out_info, layouts)
    ]
    return shapes, trees[0]


def along_data(program: str, feature: int) -> int:
    """How many groups of devices that collectives connect do not lie along `feature` alone."""
    found = compiled.collectives(program)
    rows = [{place // feature for place in group} for c in found for group in c.groups]
    return sum(not c.groups for c in found) + sum(len(row) > 1 for row in rows)


def _encoder(mesh: Mesh) -> None:
    config = EncoderConfig(family="wav2vec2")
    encoder = SpeechEncoder("wav2vec2-base", config, *abstract_network(config))
    shape = _UTTERANCES * mesh.size, _SECONDS * 16_000 + 80
    program = forward.lower_encode(encoder, shape, Outputs(), "highest", mesh).compile()
    found = compiled.work(_text(program))
    names: dict[str, Any] = {"mesh": f"data:{mesh.size},feature:1", "devices": mesh.size}
    names |= {"feature": 1}
    say(_WHAT, "encoder, products of a device", found.flops / 1e9, "GFLOP",
        planned=_UTTERANCES * encoder_flops(config, shape[1]) / 1e9, **names)  # fmt: skip
    say(_WHAT, "encoder, bytes a device receives", sum(found.received.values()), "bytes",
        planned=0, **names)  # fmt: skip


def _text(program: jax.stages.Compiled) -> str:
    text = program.as_text()
    assert text is not None
    return text


if __name__ == "__main__":
    main()
