"""Attention maps on their way into the sums: from queries and keys, or from anybody's arrays."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from speechsim_jax._jax_compat import joined, x64
from speechsim_jax.array_types import Gates, Lengths, PositionBias
from speechsim_jax.errors import UserError
from speechsim_jax.measures import resolve
from speechsim_jax.measures.attention import AttentionMeasure, score_attention
from speechsim_jax.measures.base import Measure
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.attention import attention_rows
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.results.result import NetworkName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.statistics import attention_sums
from speechsim_jax.statistics.attention_accumulator import AttentionStream
from speechsim_jax.statistics.attention_finished import FinishedAttention
from speechsim_jax.statistics.attention_sums import AttentionSums, Rows
from speechsim_jax.statistics.moments import Stream

Key = str | tuple[str, int]

# Maps of other lengths are padded to a multiple of this, so that few shapes are compiled.
_LENGTH_STEP = 64
# How far rows may be from summing to 1 (half precision); they are then divided by their sum.
_ROW_SUM_TOLERANCE = 1e-3
# Frames of the maps on which the rate is measured.
_ESTIMATED_FRAMES = 128


BATCH_AXIS = {"queries": 1, "keys": 1, "gates": 1, "position_bias": None, "lengths": 0}
"""Which axis of the fields of `Projected` runs over the utterances of a batch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projected:
    """What one model's maps are made of, for the blocks that are compared; heads first."""

    queries: Float[Array, "block batch head frame neuron"]
    keys: Float[Array, "block batch head neuron frame"]
    gates: Gates | None
    position_bias: PositionBias | None
    lengths: Lengths


def projected(acts: Activations, blocks: Sequence[int], lengths: Lengths) -> Projected:
    """Queries and keys of transformer layers `blocks` (1 is the first), of `lengths` frames."""
    chosen = np.array(blocks) - 1
    assert acts.queries is not None and acts.keys is not None
    # In this order blocks of rows are matrix products as they lie; transposing the keys for every
    # block anew would take longer than the products.
    return Projected(
        queries=acts.queries[chosen].swapaxes(2, 3),
        keys=acts.keys[chosen].transpose(0, 1, 3, 4, 2),
        gates=None if acts.gates is None else acts.gates[chosen],
        position_bias=acts.position_bias,
        lengths=jnp.asarray(lengths),
    )


def rows_of_projections(
    models: tuple[Projected, ...], utterance: Int[Array, ""], queries: Int[Array, " row"]
) -> Rows:
    """Rows of the maps of all heads of all models; an encoder's layers act as a batch here."""
    rows = []
    for model in models:
        blocks, frames = len(model.queries), model.queries.shape[3]
        mask = jnp.arange(frames) < model.lengths[utterance]
        maps = attention_rows(
            model.queries[:, utterance][:, :, queries],
            model.keys[:, utterance],
            jnp.broadcast_to(mask, (blocks, frames)),
            None if model.gates is None else model.gates[:, utterance][:, :, queries],
            model.position_bias,
            queries,
        )
        rows.append(maps.reshape(-1, *maps.shape[2:]))
    return joined(rows)


def rows_of_maps(
    maps: Float[Array, "batch head query key"],
    utterance: Int[Array, ""],
    queries: Int[Array, " row"],
) -> Rows:
    """Rows of maps that exist."""
    return maps[utterance][:, queries]


def wanted_sums(measures: Sequence[AttentionMeasure]) -> tuple[str, ...]:
    """The sums that these measures read."""
    return tuple(dict.fromkeys(m.needs for m in measures if m.needs))


def memory_bytes(
    configs: Sequence[EncoderConfig], blocks: Sequence[Sequence[int]], frames: int
) -> int:
    """What the attention level takes on a device, for batches of `frames` frames.

    Queries and keys as the encoders give them and as they are laid out anew; the sums; and rows of
    all maps with what is made of them.
    """
    rows = sum(len(found) * config.hidden_size for found, config in zip(blocks, configs))
    heads = sum(len(found) * config.num_attention_heads for found, config in zip(blocks, configs))
    sums = jax.eval_shape(lambda: jax.tree.leaves(attention_sums.zero(heads)))
    numbers = 4 * frames * rows + attention_sums.WORKSPACE_PER_HEAD * heads
    return 4 * (numbers + sum(leaf.size for leaf in sums))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the sums of the attention level will take; making the maps is not counted."""

    head_pairs: int
    cells: int
    operations: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.head_pairs:,} head pairs over {self.cells / 1e6:,.1f} million cells of a map, "
            f"{self.operations:.1e} operations, about {self.seconds / 60:.1f} min"
        )


def estimate(heads: int, cells: int, wanted: Sequence[str]) -> Cost:
    """Time for maps of `cells` cells in all, at the rate that this device shows on small ones."""
    pairs = heads * (heads + 1) // 2
    products = 1 + ("correlation" in wanted)
    # A logarithm counts as ten operations; both kinds of product are made for both orders.
    operations = cells * (products * 2 * heads**2 + 13.0 * pairs * ("divergence" in wanted))
    return Cost(pairs, cells, float(operations), _seconds_per_cell(heads, tuple(wanted)) * cells)


@functools.cache
def _seconds_per_cell(heads: int, wanted: tuple[str, ...]) -> float:
    """Measured once; most of the time is its compilation."""
    shape = 1, heads, _ESTIMATED_FRAMES, _ESTIMATED_FRAMES
    maps = np.random.default_rng(0).random(shape, np.float32)
    maps /= maps.sum(axis=3, keepdims=True)

    @jax.jit
    def add(state: AttentionSums, maps: Array) -> AttentionSums:
        rows = functools.partial(rows_of_maps, maps)
        lengths = jnp.array([_ESTIMATED_FRAMES])
        return attention_sums.update(state, rows, lengths, _ESTIMATED_FRAMES, wanted)

    state = jax.block_until_ready(add(attention_sums.zero(heads), maps))
    started = time.perf_counter()
    jax.block_until_ready(add(state, maps))
    return (time.perf_counter() - started) / _ESTIMATED_FRAMES**2


def attention_result(
    names: Sequence[NetworkName], found: FinishedAttention, measures: Sequence[AttentionMeasure]
) -> dict[str, Any]:
    """What `SimilarityResult.build` is to know of the attention level."""
    matrices, extras = score_attention(found, measures)
    return {
        "matrices": matrices,
        "extras": extras,
        "attention_networks": names,
        "dims": {m.name: ("x_attention", "y_attention") for m in measures},
        "measures": {m.name: describe(m) for m in measures},
    }


def describe(measure: Measure | AttentionMeasure) -> dict[str, Any]:
    """The measure's entry in a result."""
    return {
        "symmetric": measure.symmetric,
        "range": measure.limits,
        "level": measure.level,
        "statistic": measure.statistic,
        "summary": measure.summary,
        "reference": measure.reference,
    }


def compare_attentions(
    attentions: Mapping[Key, Iterable[np.ndarray]],
    measures: str | Sequence[str] = "paper",
    *,
    stats_dtype: Literal["float32", "float64"] | None = None,
    rank_tolerance: float | None = None,
) -> SimilarityResult:
    """How alike are the attention maps of these layers, head by head?

    `attentions`: name -> one array [head, query, key] for each utterance, the same utterances in
    the same order for every name; rows sum to 1. "model/3" or ("model", 3) is attention layer 3 of
    a model; a key without a layer is a model of one layer, 1. Layers of one model need equal
    numbers of heads. Iterables are read one utterance at a time. `measures`: "paper", "all" or
    names. `stats_dtype` defaults to float64 on a CPU and to compensated float32 elsewhere;
    `rank_tolerance` is that of `Settings`, for the measures that take heads as neurons.

    >>> maps = np.random.default_rng(0).dirichlet(np.ones(20), size=(4, 20))  # 4 heads, 20 frames
    >>> result = ss.compare_attentions({"mine/1": [maps], "theirs/1": [maps[::-1]]}, ["attn_js"])
    >>> result.dataset["attn_js_match"].loc["mine/1", "theirs/1"].values
    array([3, 2, 1, 0], dtype=int32)

    Raises:
        UserError: maps that are not square, differ in length, or whose rows do not sum to 1.
    """
    if not attentions:
        raise UserError("no attentions given")
    chosen = resolve(measures, ["attention"]).attention
    names = [_network_name(key) for key in attentions]
    if len(set(names)) < len(names):
        raise UserError("two keys of attentions name the same model and layer")
    if stats_dtype is None:
        stats_dtype = "float64" if jax.default_backend() == "cpu" else "float32"
    stream, streams = None, ()
    iterators = [iter(maps) for maps in attentions.values()]
    seen = 0
    while True:
        utterance = [next(iterator, None) for iterator in iterators]
        missing = [maps is None for maps in utterance]
        if all(missing):
            break
        if any(missing):
            raise UserError(f"{names[missing.index(True)]} has {seen} utterances, others have more")
        maps = [np.asarray(one) for one in utterance if one is not None]
        _check_maps(names, maps, seen)
        if stream is None:
            streams = tuple(Stream(1, len(one)) for one in maps)
            stream = AttentionStream(streams, rows_of_maps, wanted_sums(chosen), stats_dtype)
        if tuple(len(one) for one in maps) != tuple(s.neurons for s in streams):
            raise UserError(f"utterance {seen} has another number of heads than those before it")
        length = maps[0].shape[1]
        frames = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        padded = np.zeros((1, sum(map(len, maps)), frames, frames), stats_dtype)
        joined = np.concatenate(maps).astype(np.float64)
        padded[0, :, :length, :length] = joined / joined.sum(axis=2, keepdims=True)
        with x64(stats_dtype == "float64"):
            stream.append(jnp.asarray(padded), np.array([length]), frames)
        seen += 1
    if stream is None:
        raise UserError("no utterances given")
    found = stream.finish(rank_tolerance)
    attributes = provenance.record(
        attention={"utterances": found.utterances, "frames": found.frames},
        numeric={"stats_dtype": stats_dtype, "rank_tolerance": found.moments.rank_tolerance},
    )
    return SimilarityResult.build(
        names, attributes=attributes, **attention_result(names, found, chosen)
    )


def _network_name(key: Key) -> NetworkName:
    if isinstance(key, tuple):
        return NetworkName(str(key[0]), int(key[1]))
    model, _, layer = key.rpartition("/")
    return NetworkName(model, int(layer)) if model and layer.isdigit() else NetworkName(key, 1)


def _check_maps(names: Sequence[NetworkName], maps: Sequence[np.ndarray], utterance: int) -> None:
    for name, one in zip(names, maps):
        where = f"{name}, utterance {utterance}"
        if one.ndim != 3 or one.shape[1] != one.shape[2] or 0 in one.shape:
            raise UserError(f"{where}: expected an array [head, query, key], got {one.shape}")
        if one.shape[1] != maps[0].shape[1]:
            raise UserError(
                f"{where}: has {one.shape[1]} frames, {names[0]} has {maps[0].shape[1]}"
            )
        off = np.abs(one.sum(axis=2, dtype=np.float64) - 1)
        if not (off <= _ROW_SUM_TOLERANCE).all() or (one < 0).any():
            raise UserError(f"{where}: every row must sum to 1 over the keys, without negatives")
