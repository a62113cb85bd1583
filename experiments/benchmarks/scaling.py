"""The work of each device of a mesh, from compiled programs: nothing is run, nothing allocated.

A process with eight simulated devices compiles, for meshes of 1 to 8 of them,

    update    of the moments of two models, `_ROWS` rows from every device. Planned for a device of
              data:N,feature:F: 2 rows sum d_l d_m operations over layer pairs l <= m (of the rows
              of F devices, each its slice of the neurons), no collective along data, and along
              feature one all-gather of rows, of which those of F - 1 devices are received
    encoder   the forward pass of one of them, `_UTTERANCES` on every device; no collective

    python -m experiments.benchmarks.scaling [small]
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks import compiled, processes
from experiments.benchmarks.encoder import flops as encoder_flops
from experiments.benchmarks.machine import SMALL, report, report_machine
from experiments.benchmarks.statistics import flops as update_flops
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.weight_names import abstract_network
from speechsim_jax.runtime.mesh import mesh_from
from speechsim_jax.statistics import moments, moments_on_mesh
from speechsim_jax.statistics.moments import ModelShape

_WHAT = "scaling"
_DEVICES = (1, 2, 4, 8)
_FEATURE = (1, 2, 4)
_ROWS = 4096
_CORPUS_ROWS = 180_000
"""An hour of speech."""
_UTTERANCES, _SECONDS = 4, 10


def run(small: bool = False) -> None:
    """Compile in a process with eight simulated devices, and print its figures."""
    report_machine(_WHAT)
    devices = f"--xla_force_host_platform_device_count={max(_DEVICES)}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    completed = processes.run_module(
        "experiments.benchmarks.scaling", ["small"] * small, XLA_FLAGS=flags, JAX_PLATFORMS="cpu"
    )
    print(completed.stdout, end="", flush=True)


def main(small: bool) -> None:
    """Print a line of JSON for each figure of each mesh."""
    config = Wav2Vec2Config(family="wav2vec2", **(SMALL if small else {}))
    for devices in _DEVICES[:2] if small else _DEVICES:
        for feature in (size for size in _FEATURE if size <= devices):
            mesh = mesh_from(f"data:{devices // feature},feature:{feature}")
            _update(mesh, config)
            if feature == 1:
                _encoder(mesh, config)


def _update(mesh: Mesh, config: Wav2Vec2Config) -> None:
    streams = (ModelShape(config.num_hidden_layers + 1, config.hidden_size),) * 2
    devices, feature = mesh.size, mesh.shape["feature"]
    names: dict[str, Any] = {"mesh": f"data:{devices // feature},feature:{feature}"}
    names |= {"devices": devices, "feature": feature}
    program = compiled_update(mesh, streams, _ROWS)
    work = compiled.work(_text(program))
    planned = update_flops(streams, _ROWS)
    report(_WHAT, "update, products of a device", work.flops / 1e9, "GFLOP",
           planned=planned / 1e9, **names)  # fmt: skip
    share = _CORPUS_ROWS / (_ROWS * devices) / 1e12
    report(_WHAT, "update, products of a device for an hour", work.flops * share, "TFLOP",
           planned=planned * share, **names)  # fmt: skip
    row_bytes = 4 * sum(s.layers * s.neurons for s in streams)
    report(_WHAT, "update, bytes a device receives", sum(work.received.values()), "bytes",
           planned=(feature - 1) * _ROWS * row_bytes, **names)  # fmt: skip
    along = along_data(_text(program), feature)
    report(_WHAT, "update, collectives along data", along, "count", planned=0, **names)
    memory = program.memory_analysis()
    assert memory is not None
    state_gib = memory.argument_size_in_bytes / 2**30
    report(_WHAT, "update, state and rows of a device", state_gib, "GiB", **names)


def compiled_update(mesh: Mesh, streams: tuple[ModelShape, ...], rows: int) -> jax.stages.Compiled:
    """The update of the moments, compiled as in `MomentsAccumulator` for this mesh."""
    if mesh.size == 1:
        update, valid = moments.update, jax.ShapeDtypeStruct((), np.int32)
        arguments = (lambda: moments.zero(streams)), (lambda: _rows(streams, rows))
    else:
        device = moments_on_mesh.on_mesh(mesh)
        update, valid = device.update, jax.ShapeDtypeStruct((mesh.size,), np.int32)
        arguments = (
            functools.partial(device.zero, streams, None, "float32"),
            functools.partial(device.buffers, streams, rows, "float32"),
        )
    (state, state_tree), (blocks, rows_tree) = map(_abstract, arguments)

    def flat(state: list[Any], blocks: list[Any], valid: Any) -> list[Any]:
        trees = jax.tree.unflatten(state_tree, state), jax.tree.unflatten(rows_tree, blocks)
        return jax.tree.leaves(update(*trees, valid))

    return jax.jit(flat, donate_argnums=0).lower(state, blocks, valid).compile()


def _rows(streams: tuple[ModelShape, ...], rows: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros((s.layers, rows, s.neurons)) for s in streams)


def _abstract(make: Callable[[], Any]) -> tuple[list[jax.ShapeDtypeStruct], Any]:
    """The shapes and shardings of the leaves that `make` would return, and their tree.

    Leaves, because the annotations of the dataclasses refuse abstract arrays where types are
    checked at run time.
    """
    trees = []

    def flattened() -> list[Any]:
        leaves, tree = jax.tree.flatten(make())
        trees.append(tree)
        return leaves

    lowered = jax.jit(flattened).lower()
    shardings = lowered.compile().output_shardings
    shapes = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        for array, sharding in zip(lowered.out_info, shardings)
    ]
    return shapes, trees[0]


def along_data(program: str, feature: int) -> int:
    """How many groups of devices, connected by collectives, are not along `feature` alone."""
    collectives = compiled.collectives(program)
    rows = [{device // feature for device in group} for c in collectives for group in c.groups]
    return sum(not c.groups for c in collectives) + sum(len(row) > 1 for row in rows)


def _encoder(mesh: Mesh, config: Wav2Vec2Config) -> None:
    encoder = SpeechEncoder("wav2vec2-base", config, *abstract_network(config))
    shape = _UTTERANCES * mesh.size, _SECONDS * 16_000 + config.window_samples - config.hop_samples
    program = forward.lower_encode(encoder, shape, Outputs(), "highest", mesh).compile()
    work = compiled.work(_text(program))
    names: dict[str, Any] = {"mesh": f"data:{mesh.size},feature:1", "devices": mesh.size}
    names |= {"feature": 1}
    report(_WHAT, "encoder, products of a device", work.flops / 1e9, "GFLOP",
           planned=_UTTERANCES * encoder_flops(config, shape[1]) / 1e9, **names)  # fmt: skip
    report(_WHAT, "encoder, bytes a device receives", sum(work.received.values()), "bytes",
           planned=0, **names)  # fmt: skip


def _text(program: jax.stages.Compiled) -> str:
    text = program.as_text()
    assert text is not None
    return text


if __name__ == "__main__":
    main(small="small" in sys.argv[1:])
