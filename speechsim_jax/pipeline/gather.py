"""The statistics of all processes of a run, merged on the first.

Each process has its own reference shift, as separate jobs have, and the sums are re-expressed about
one on the way (`statistics.moments_merge`), so no process waits for another before the end.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime import processes
from speechsim_jax.statistics import moments_merge, store
from speechsim_jax.statistics.accumulator import State
from speechsim_jax.statistics.attention_finished import AttentionState
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.sample import Sample
from speechsim_jax.statistics.store import PassStatistics

T = TypeVar("T")


def check_supported(selection: MeasureSelection) -> None:
    """Raise UserError for a measure whose statistic several processes cannot share."""
    for measure in selection.measures:
        if processes.count() > 1 and measure.statistic not in _GATHERERS:
            raise UserError(
                f"{measure.name} reads the statistic {measure.statistic!r}, which cannot be shared "
                "by several processes; use one"
            )


def write(statistics: PassStatistics, folder: Path | None, metadata: Mapping[str, Any]) -> None:
    """Write the statistics of all processes, which must all call this.

    Args:
      statistics: of this process.
      folder: where the first process writes; None on the others.
      metadata: written with them.

    Raises:
      UserError: they are not of the same layer pairs.
    """
    layout = {kind: getattr(state, "tiles", ()) for kind, state in statistics.states.items()}
    layouts = processes.gather_json(repr(layout))
    if layouts is not None and any(other != layouts[0] for other in layouts):
        raise UserError(
            "the processes have divided the layer pairs in different ways; give all of them the "
            "same device_memory_gb"
        )
    gathered = dict(statistics.states)
    if processes.count() > 1:
        gathered = {kind: _GATHERERS[kind](state) for kind, state in gathered.items()}
    if folder is not None:
        store.write(folder, PassStatistics(gathered), metadata)
        return
    for state in gathered.values():
        if isinstance(state, MomentsState):
            for t, tile in enumerate(state.tiles):
                for k in range(len(tile.pairs)):
                    state.block(t, k)


def _moments(state: MomentsState) -> MomentsState:
    smalls = _of_all(moments_merge.on_host(state.small))
    merging = None if smalls is None else moments_merge.Merging(smalls)

    def block(tile: int, pair: int) -> np.ndarray:
        blocks = processes.gather(np.asarray(state.cross(tile, pair)))
        if merging is None or blocks is None:
            return np.zeros((1, 0, 0))
        return merging.block(tile, pair, blocks)[None]

    rest = state.rest if merging is None else merging.rest
    return dataclasses.replace(state, block=block, rest=rest)


def on_all(result: SimilarityResult | None) -> SimilarityResult:
    """The result of the first process, on every process; `result` is None on the others."""
    if result is not None and processes.count() == 1:
        return result
    with tempfile.TemporaryDirectory(prefix="speechsim-") as scratch:
        path = Path(scratch, "result.nc")
        data = np.zeros(0, np.uint8)
        if result is not None:
            data = np.frombuffer(result.save(path).read_bytes(), np.uint8)
        (size,) = processes.broadcast([np.array(len(data))])
        (data,) = processes.broadcast([data if result else np.zeros(int(size), np.uint8)])
        if result is None:
            path.write_bytes(data.tobytes())
            result = SimilarityResult.load(path)
    return result


def _of_all(tree: T) -> list[T] | None:
    """The trees of arrays of all processes, on the first."""
    leaves, structure = jax.tree.flatten(tree)
    gathered = [processes.gather(leaf) for leaf in leaves]
    if not processes.is_first():
        return None
    return [jax.tree.unflatten(structure, arrays) for arrays in zip(*gathered, strict=True)]


def _sample(state: Sample) -> Sample:
    arrays = _of_all([state.keys, state.numbers, *state.rows])
    utterances = processes.gather_json(state.utterances.tolist())
    if arrays is None or utterances is None:
        return state
    first, *others = (
        dataclasses.replace(
            state, keys=keys, numbers=numbers, rows=tuple(rows), utterances=np.array(ids, object)
        )
        for ids, (keys, numbers, *rows) in zip(utterances, arrays, strict=True)
    )
    return first.merge(others)


def _attention(state: AttentionState) -> AttentionState:
    sums, lengths = _of_all(state.sums), processes.gather_json(state.lengths)
    if sums is None or lengths is None:
        return state
    first, *others = (
        dataclasses.replace(state, sums=of_process, lengths=tuple(counts))
        for of_process, counts in zip(sums, lengths, strict=True)
    )
    return first.merge(others)


_GATHERERS: dict[str, Callable[[Any], State]] = {
    MomentsState.kind: _moments,
    Sample.kind: _sample,
    AttentionState.kind: _attention,
}
