"""`compare_attentions`: the attention level on given maps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from speechsim_jax._jax_compat import x64
from speechsim_jax.comparison.arrays import (
    as_array,
    check_finite,
    checked_groups,
    default_stats_dtype,
    representation_names,
)
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.score import scored_result
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import GROUPS, folds
from speechsim_jax.inference.influence_table import Keep
from speechsim_jax.measures.registry import resolve
from speechsim_jax.pipeline.attention_inputs import needed_sums, rows_of_maps
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.settings import Output, Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.store import PassStatistics

# Maps of other lengths are padded to a multiple of this, so that few shapes are compiled.
_LENGTH_STEP = 64
# How far rows may be from summing to 1 (half precision; bfloat16 is coarser); they are then
# divided by their sum.
_ROW_SUM_TOLERANCE = 1e-3


def compare_attentions(
    attentions: Mapping[Any, Iterable[Any]],
    measures: str | Sequence[str] = "paper",
    *,
    stats_dtype: Literal["float32", "float64"] | None = None,
    rank_tolerance: float | None = None,
    errors: bool = False,
    groups: Sequence[Any] | np.ndarray | None = None,
    keep_influence: Keep = Output.keep_influence,
) -> SimilarityResult:
    """Compare the attention maps of layers, head by head.

    >>> maps = np.random.default_rng(0).dirichlet(np.ones(20), size=(4, 20))  # 4 heads, 20 frames
    >>> result = ss.compare_attentions({"mine/1": [maps], "theirs/1": [maps[::-1]]}, ["attn_js"])
    >>> result.dataset["attn_js_match"].loc["mine/1", "theirs/1"].values
    array([3, 2, 1, 0], dtype=int32)

    Args:
      attentions: name -> one array [head, query, key] for each utterance, the same utterances in
        the same order for every name; rows sum to 1. A map may be whatever `compare_activations`
        takes for an array. "model/3" or ("model", 3) is attention layer 3 of a model; a key without
        a layer is layer 1 of a model of one layer. Layers of one model need equal numbers of heads.
        Iterables are read one utterance at a time.
      measures: "paper", "all" or names.
      stats_dtype: float64 on a CPU by default, compensated float32 elsewhere.
      rank_tolerance: as in `Settings`, for the measures that take heads as neurons.
      errors: whether scores get standard errors.
      groups: the cluster of each utterance, such as its speaker, that standard errors are taken
        over (default: utterances).
      keep_influence: as in `Output`.

    Returns:
      All scores, labelled.

    Raises:
      UserError: maps that are not square, differ in length, hold NaN, inf or negatives, or whose
        rows do not sum to 1; groups that do not name one cluster for each utterance.
    """
    if not attentions:
        raise UserError("no attentions given")
    given: dict[str, Any] = {} if stats_dtype is None else {"stats_dtype": stats_dtype}
    Settings(rank_tolerance=rank_tolerance, **given)
    if not isinstance(errors, bool):
        raise UserError(f"errors is {errors!r}; expected True or False (groups names the clusters)")
    output = Output(keep_influence=keep_influence, progress=False)
    group_of = _group_of(groups) if errors else {}
    selection = resolve(measures, ["attention"])._replace(errors=errors)
    names = representation_names(attentions, layer=1, argument="attentions")
    for name, maps in zip(names, attentions.values()):
        if not isinstance(maps, Iterable):
            raise UserError(
                f"{name}: expected an array [head, query, key] for each utterance, got "
                f"{type(maps).__name__}"
            )
    if stats_dtype is None:
        stats_dtype = default_stats_dtype()
    accumulator, shapes = None, ()
    iterators = [iter(maps) for maps in attentions.values()]
    count = 0
    while True:
        of_utterance = [next(iterator, None) for iterator in iterators]
        missing = [array is None for array in of_utterance]
        if all(missing):
            break
        if any(missing):
            raise UserError(
                f"{names[missing.index(True)]} has {count} utterances, others have more"
            )
        maps = [
            as_array(f"{name}, utterance {count}", array)
            for name, array in zip(names, of_utterance)
        ]
        _check_maps(names, maps, count)
        if accumulator is None:
            shapes = tuple(ModelShape(1, len(array)) for array in maps)
            sums = needed_sums(selection.measures)
            accumulator = AttentionAccumulator(
                shapes, rows_of_maps, sums, stats_dtype, group_of=group_of
            )
        if tuple(len(array) for array in maps) != tuple(s.neurons for s in shapes):
            raise UserError(f"utterance {count} has another number of heads than those before it")
        length = maps[0].shape[1]
        frames = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        padded = np.zeros((1, sum(map(len, maps)), frames, frames), stats_dtype)
        heads = np.concatenate(maps).astype(np.float64)
        padded[0, :, :length, :length] = heads / heads.sum(axis=2, keepdims=True)
        with x64(stats_dtype == "float64"):
            group = group_of.get(str(count), count % GROUPS) if errors else 0
            accumulator.append(jnp.asarray(padded), np.array([length]), frames, [group])
        count += 1
    if accumulator is None:
        raise UserError("no utterances given")
    if errors and groups is not None and len(groups) != count:
        raise UserError(f"groups names {len(groups)} utterances, but there are {count}")
    state = accumulator.result()
    finished = store.finish([PassStatistics({state.kind: state})], rank_tolerance)
    over = {"over": "none", "reason": "they were not asked for (errors=True)"}
    if errors:
        over = {"over": "utterance", "reason": "all utterances, as groups were not given"}
        if groups is not None:
            over = {"over": "group", "reason": "groups of utterances, as given"}
    attributes = provenance.record(numeric=finished.numeric, errors=over)
    compared = Representations(tuple(names))
    return scored_result(compared, finished, selection, attributes, output, names)


def _group_of(groups: Sequence[Any] | np.ndarray | None) -> dict[str, int]:
    """The group of sums of each utterance, by its number."""
    if groups is None:
        return {str(k): k for k in range(GROUPS)}
    names, number, counts = np.unique(
        checked_groups(groups), return_inverse=True, return_counts=True
    )
    group = folds(dict(zip(names.tolist(), counts.tolist())), 0, GROUPS)
    return {str(k): group[str(names[n])] for k, n in enumerate(number)}


def _check_maps(
    names: Sequence[RepresentationName], maps: Sequence[np.ndarray], utterance: int
) -> None:
    """Raise UserError unless the maps are square, of one length, and their rows sum to 1."""
    for name, array in zip(names, maps):
        where = f"{name}, utterance {utterance}"
        if array.ndim != 3 or array.shape[1] != array.shape[2] or 0 in array.shape:
            raise UserError(f"{where}: expected an array [head, query, key], got {array.shape}")
        if array.shape[1] != maps[0].shape[1]:
            raise UserError(
                f"{where}: has {array.shape[1]} frames, {names[0]} has {maps[0].shape[1]}"
            )
        check_finite(where, array, ("head", "query"))
        sums = array.sum(axis=2, dtype=np.float64)
        # What rounding to the type of the maps leaves.
        rounding = float(jnp.finfo(array.dtype).eps) if array.dtype.kind in "fV" else 0.0
        wrong = np.abs(sums - 1) > max(_ROW_SUM_TOLERANCE, rounding)
        wrong |= (array < 0).any(axis=2)
        if wrong.any():
            head, query = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise UserError(
                f"{where}: every row must sum to 1 over the keys, without negatives; that of head "
                f"{head}, query {query} has a sum of {sums[head, query]:.4g}, a smallest value of "
                f"{float(array[head, query].min()):.4g}"
            )
