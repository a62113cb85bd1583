"""What devices have, and what a model takes of it: the figures that a plan is made of."""

import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from speechsim_jax.audio.batching import Bucket
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.errors import UserError
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.plan import ModelCost

# Of an accelerator's memory, and of a machine's for its CPU devices together.
_ACCELERATOR_SHARE, _CPU_SHARE = 0.9, 0.75

# A product large enough to run at full speed, small enough to take no time.
_TIMED = 1024


def budget_bytes(device_memory_gb: float | int | None, mesh: Mesh) -> int:
    """Bytes that a pass may take on each device.

    What the device says it has unless given; on a CPU a share of the machine's memory.
    """
    if device_memory_gb is not None:
        if not device_memory_gb > 0:
            raise UserError(f"device_memory_gb is {device_memory_gb}; expected a positive number")
        return round(device_memory_gb * 1e9)
    device = mesh.devices.flat[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return round(_ACCELERATOR_SHARE * limit)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return round(_CPU_SHARE * machine / len(mesh.local_devices))


def rate(mesh: Mesh) -> float:
    """FLOP/s of float32 products on all devices of the mesh, by one device's."""
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    matrix = jax.block_until_ready(jnp.ones((_TIMED, _TIMED)))
    jax.block_until_ready(product(matrix))
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix))
        taken.append(time.perf_counter() - started)
    return mesh.size * 2 * _TIMED**3 / min(taken)


def frames_of(bucket: Bucket, config: EncoderConfig, devices: int) -> int:
    """Frames of a batch on each device, padding and fillers included."""
    return -(-bucket.batch // devices) * int(config.frames(bucket.samples))


def model_cost(
    encoder: SpeechEncoder,
    layers: Sequence[int],
    outputs: Outputs,
    precision: str,
    bucket: Bucket,
    seconds: float | int,
    mesh: Mesh,
) -> ModelCost:
    """What a model takes that reads batches of this shape for so many seconds of audio in all.

    Workspace and FLOPs are XLA's own count, of the program that the first pass will run.
    """
    compiled = forward.lower_encode(
        encoder, (bucket.batch, bucket.samples), outputs, precision, mesh
    ).compile()
    depth = encoder.config.num_hidden_layers
    front, transformer = parameter_bytes(encoder)
    layer_bytes = -(-transformer // depth)
    # What a device reads of the corpus, in its shares of full batches.
    batches = seconds * SAMPLE_RATE_HZ / (bucket.samples * -(-bucket.batch // mesh.size))
    frames = batches * frames_of(bucket, encoder.config, mesh.size)
    layer_flops = 2 * frames * layer_bytes / np.dtype(np.float32).itemsize
    flops = batches * _flops(compiled)
    found = compiled.memory_analysis()
    return ModelCost(
        name=encoder.name,
        depths=tuple(layers),
        front_bytes=front,
        layer_bytes=layer_bytes,
        workspace_bytes=found.temp_size_in_bytes if found else 0,
        front_flops=max(flops - max(layers) * layer_flops, 0),
        layer_flops=layer_flops,
    )


def parameter_bytes(encoder: SpeechEncoder) -> tuple[int, int]:
    """Of all that makes hidden state 0, and of the transformer layers."""
    front = transformer = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(encoder.parameters)[0]:
        size = leaf.size * leaf.dtype.itemsize
        if forward.layer_of(path) is None:
            front += size
        else:
            transformer += size
    return front, transformer


def _flops(compiled: jax.stages.Compiled) -> float:
    """Of one run on one device; 0 where XLA does not say."""
    found = compiled.cost_analysis() or {}
    return float(found.get("flops", 0.0))
