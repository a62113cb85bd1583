"""Memory and speed of the devices, and what models and attention take of them."""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from speechsim_jax.audio.batching import Bucket
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.external import Encoder, ExternalEncoder
from speechsim_jax.pipeline.attention_inputs import rows_of_maps
from speechsim_jax.pipeline.frame_grid import FrameGrid
from speechsim_jax.pipeline.pass_memory import ModelCost
from speechsim_jax.statistics import attention_sums
from speechsim_jax.statistics.attention_sums import AttentionSums
from speechsim_jax.statistics.moments_finished import MomentsState

# Of an accelerator's memory, and of a machine's for its CPU devices together.
_ACCELERATOR_SHARE, _CPU_SHARE = 0.9, 0.75

# A product large enough to run at full speed, small enough to take no time.
_TIMED = 1024
# What a pair takes, in products of its widths and the longer of them: where matrices are
# decomposed, and where they are multiplied only. Products with sampled rows for each influence.
_DECOMPOSED, _MULTIPLIED, _INFLUENCES = 31, 4, 1.9
# Seconds in which a core compiles a forward pass: for it, and for each of its layers. Weights of
# layers times seconds of audio that it reads in a second.
_COMPILED, _COMPILED_LAYER, _WEIGHTS_A_SECOND = 0.5, 0.07, 4.7e8
# Frames of the maps on which the rate of the attention sums is measured. It compiles a program, so
# it is not done for fewer operations than these, which take some 20 s on two busy cores; a cell
# takes as long as so many, however few the heads.
ESTIMATED_FRAMES = 128
_FEW_OPERATIONS, _OPERATIONS_OF_A_CELL = 1e10, 1000


def budget_bytes(device_memory_gb: float | int | None, mesh: Mesh) -> int:
    """Bytes that a pass may take on each device.

    Args:
      device_memory_gb: limit; by default nearly all that an accelerator has, and on a CPU a share
        of the memory of the machine, or of the container if that has less.
      mesh: the devices.
    """
    if device_memory_gb is not None:
        return round(device_memory_gb * 1e9)
    device = mesh.devices.flat[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return round(_ACCELERATOR_SHARE * limit)
    return round(host_budget_bytes() / len(mesh.local_devices))


def host_budget_bytes() -> int:
    """Bytes of this machine's memory, or its container's, that a comparison may take."""
    return round(_CPU_SHARE * _host_memory_bytes())


def _host_memory_bytes(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of the machine, or of the control group (version 2) if that is limited to less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(limit.read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return machine


def rate(mesh: Mesh) -> float:
    """FLOP/s of float32 products on all devices of the mesh, as measured on one."""
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    matrix = jax.block_until_ready(jnp.ones((_TIMED, _TIMED)))
    jax.block_until_ready(product(matrix))
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix))
        taken.append(time.perf_counter() - started)
    return mesh.size * 2 * _TIMED**3 / min(taken)


def host_rate() -> float:
    """FLOP/s of float32 products on the host."""
    matrix = np.ones((_TIMED, _TIMED), np.float32)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        np.matmul(matrix, matrix)
        taken.append(time.perf_counter() - started)
    return 2 * _TIMED**3 / min(taken)


def scoring_flops(
    widths: Sequence[int],
    pairs: Collection[tuple[int, int]] | None,
    selection: MeasureSelection,
    sampled_rows: int,
) -> float:
    """Work of scoring the measures on moments, in products of float32 that take as long.

    Measured with the paper's measures on base-size encoders (docs/design/memory-and-devices.md).

    Args:
      widths: neurons of each representation.
      pairs: numbers of those that are compared, the smaller first; None for all.
      selection: the measures.
      sampled_rows: of which influences are computed.
    """
    if not selection.on(MomentsState.kind):
        return 0.0
    if pairs is None:
        pairs = list(itertools.combinations_with_replacement(range(len(widths)), 2))
    products = [widths[i] * widths[j] for i, j in pairs]
    longer = [max(widths[i], widths[j]) for i, j in pairs]
    decomposed = _DECOMPOSED if selection.whitens else _MULTIPLIED
    flops = float(decomposed * np.dot(products, longer))
    if selection.errors:
        flops += _INFLUENCES * len(selection.with_influence) * 2 * sampled_rows * sum(products)
    return flops


def frames_of(bucket: Bucket, frames: EncoderConfig | FrameGrid, devices: int) -> int:
    """Frames of a batch on each device, padding and fillers included."""
    return -(-bucket.batch // devices) * int(frames.frames(bucket.samples))


def model_cost(
    encoder: Encoder,
    layers: Sequence[int],
    outputs: Outputs,
    precision: str,
    bucket: Bucket,
    seconds: float | int,
    mesh: Mesh,
) -> ModelCost:
    """Memory and work of a model's forward passes.

    Workspace and FLOPs are XLA's own count, of the program that the first pass will run. Of an
    object that is not compiled here, only the hidden states that it returns are known.

    Args:
      encoder: the model.
      layers: the hidden states that are compared.
      outputs: what the forward pass returns.
      precision: of its products.
      bucket: shape of the batches.
      seconds: of audio in all.
      mesh: the devices.
    """
    if isinstance(encoder, ExternalEncoder):
        config = encoder.config
        numbers = (config.num_hidden_layers + 1) * config.hidden_size
        frames = frames_of(bucket, config, mesh.size)
        itemsize = np.dtype(np.float32).itemsize
        return ModelCost(encoder.name, tuple(layers), 0, 0, frames * numbers * itemsize)
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
    memory = compiled.memory_analysis()
    return ModelCost(
        name=encoder.name,
        depths=tuple(layers),
        front_bytes=front,
        layer_bytes=layer_bytes,
        workspace_bytes=memory.temp_size_in_bytes if memory else 0,
        front_flops=max(flops - max(layers) * layer_flops, 0),
        layer_flops=layer_flops,
    )


def program_seconds(encoders: Sequence[Encoder]) -> float:
    """Audio that all models read while the programs for one more length of it are compiled.

    On a CPU, of any number of cores: both have work for all of them. Accelerators read more, but
    batches have to be the same everywhere for a run to go on elsewhere.

    Args:
      encoders: the models; those of one architecture share a program.
    """
    compiled = [encoder for encoder in encoders if isinstance(encoder, SpeechEncoder)]
    depths = {encoder.graph: encoder.config.num_hidden_layers for encoder in compiled}
    compiling = sum(_COMPILED + _COMPILED_LAYER * depth for depth in depths.values())
    weights = sum(
        leaf.size
        for encoder in compiled
        for path, leaf in jax.tree_util.tree_leaves_with_path(encoder.parameters)
        if forward.layer_of(path) is not None
    )
    return compiling * _WEIGHTS_A_SECOND / weights if weights else 0.0


def parameter_bytes(encoder: Encoder) -> tuple[int, int]:
    """Bytes of the parameters up to hidden state 0, and of the transformer layers; 0 if unknown."""
    front = transformer = 0
    if isinstance(encoder, ExternalEncoder):
        return front, transformer
    for path, leaf in jax.tree_util.tree_flatten_with_path(encoder.parameters)[0]:
        size = leaf.size * leaf.dtype.itemsize
        if forward.layer_of(path) is None:
            front += size
        else:
            transformer += size
    return front, transformer


def _flops(compiled: jax.stages.Compiled) -> float:
    """Of one run on one device; 0 where XLA does not count them."""
    cost = compiled.cost_analysis() or {}
    return float(cost.get("flops", 0.0))


def memory_bytes(
    configs: Sequence[EncoderConfig],
    blocks: Sequence[Sequence[int]],
    frames: int,
    groups: int,
    itemsize: int,
) -> int:
    """Bytes that the attention level takes on a device.

    Queries and keys as the encoders return them and in the layout of `attention_inputs`; the sums;
    rows of all maps and the temporaries of their reduction.

    Args:
      configs: of the models.
      blocks: transformer layers whose attention is compared, by model.
      frames: of a batch.
      groups: of utterances, each with sums of its own.
      itemsize: bytes of a number of the sums.
    """
    rows = sum(len(of_model) * c.hidden_size for of_model, c in zip(blocks, configs))
    heads = sum(len(of_model) * c.num_attention_heads for of_model, c in zip(blocks, configs))
    numbers = 4 * frames * rows + attention_sums.WORKSPACE_PER_HEAD * heads
    return 4 * numbers + itemsize * attention_sums.numbers(heads, groups)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the sums of the attention level will take; computing the maps is not counted.

    Attributes:
      head_pairs: pairs of heads, a head with itself included.
      cells: of one head's maps.
      operations: floating-point operations.
      seconds: expected time; None for so few operations that it was not measured.
    """

    head_pairs: int
    cells: int
    operations: float
    seconds: float | None

    def __str__(self) -> str:
        duration = "under a minute"
        if self.seconds is not None:
            duration = f"about {self.seconds / 60:.1f} min"
        return (
            f"{self.head_pairs:,} head pairs over {self.cells / 1e6:,.1f} million cells of a map, "
            f"{self.operations:.1e} operations, {duration}"
        )


def estimate(heads: int, cells: int, needed: Sequence[str]) -> Cost:
    """The cost of the attention sums; time at the rate measured on small maps, unless they are few.

    Args:
      heads: of all models.
      cells: of one head's maps in all.
      needed: names of the sums (`attention_sums.update`).
    """
    pairs = heads * (heads + 1) // 2
    products = 1 + ("correlation" in needed)
    # A logarithm counts as ten operations; both kinds of product are made for both orders.
    operations = cells * (products * 2 * heads**2 + 13.0 * pairs * ("divergence" in needed))
    few = operations + _OPERATIONS_OF_A_CELL * cells < _FEW_OPERATIONS
    seconds = None if few else attention_seconds_per_cell(heads, tuple(needed)) * cells
    return Cost(pairs, cells, float(operations), seconds)


@functools.cache
def attention_seconds_per_cell(heads: int, needed: tuple[str, ...]) -> float:
    """What a cell of all heads' maps takes; measured once, most of the time to compile.

    Args:
      heads: of all models.
      needed: names of the sums (`attention_sums.update`).
    """
    shape = 1, heads, ESTIMATED_FRAMES, ESTIMATED_FRAMES
    maps = np.random.default_rng(0).random(shape, np.float32)
    maps /= maps.sum(axis=3, keepdims=True)

    @jax.jit
    def add(state: AttentionSums, maps: Array) -> AttentionSums:
        rows = functools.partial(rows_of_maps, maps)
        lengths = jnp.array([ESTIMATED_FRAMES])
        return attention_sums.update(state, rows, lengths, ESTIMATED_FRAMES, needed)

    state = jax.block_until_ready(add(attention_sums.zero(heads), maps))
    started = time.perf_counter()
    jax.block_until_ready(add(state, maps))
    return (time.perf_counter() - started) / ESTIMATED_FRAMES**2
