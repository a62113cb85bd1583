"""Attention maps on their way into the sums: from queries and keys, or from anybody's arrays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from speechsim_jax._jax_compat import x64
from speechsim_jax.errors import UserError
from speechsim_jax.measures import resolve
from speechsim_jax.measures.scoring import attention_result
from speechsim_jax.pipeline.attention_inputs import rows_of_maps, wanted_sums
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.moments import ModelShape

Key = str | tuple[str, int]

# Maps of other lengths are padded to a multiple of this, so that few shapes are compiled.
_LENGTH_STEP = 64
# How far rows may be from summing to 1 (half precision); they are then divided by their sum.
_ROW_SUM_TOLERANCE = 1e-3


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
    names = [_representation_name(key) for key in attentions]
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
            streams = tuple(ModelShape(1, len(one)) for one in maps)
            stream = AttentionAccumulator(streams, rows_of_maps, wanted_sums(chosen), stats_dtype)
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


def _representation_name(key: Key) -> RepresentationName:
    if isinstance(key, tuple):
        return RepresentationName(str(key[0]), int(key[1]))
    model, _, layer = key.rpartition("/")
    return (
        RepresentationName(model, int(layer))
        if model and layer.isdigit()
        else RepresentationName(key, 1)
    )


def _check_maps(
    names: Sequence[RepresentationName], maps: Sequence[np.ndarray], utterance: int
) -> None:
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
