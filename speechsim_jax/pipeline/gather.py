"""What all processes of a job have accumulated, added up on the first.

Each has a pilot of its own, as separate jobs have, and the sums are brought to one on the way
(`merging`): so no process has to wait for another before the end.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime import processes
from speechsim_jax.statistics import attention_finished, moments_merge, sample, store
from speechsim_jax.statistics.attention_finished import HeadSums
from speechsim_jax.statistics.sample import Sample
from speechsim_jax.statistics.store import StoredStatistics

T = TypeVar("T")


def write(found: StoredStatistics, folder: Path | None, facts: dict[str, Any]) -> None:
    """Write what all processes have found together; `folder` is the first one's, None on others.

    Every process must call this. Raises UserError if they are not of the same layer pairs.
    """
    tiles = found.moments.state.tiles if found.moments is not None else ()
    plans = processes.gather_json(repr((found.places, tiles)))
    if plans is not None and any(one != plans[0] for one in plans):
        raise UserError(
            "the processes have divided the layer pairs in different ways; give all of them the "
            "same device_memory_gb"
        )
    whole = StoredStatistics(
        found.places,
        sample=_sample(found.sample) if found.sample is not None else None,
        heads=_heads(found.heads) if found.heads is not None else None,
    )
    if found.moments is None:
        if folder is not None:
            store.write_coming(folder, whole, None, facts)
        return
    part = found.moments
    smalls = _of_all(moments_merge.on_host(moments_merge.without_cross(part.state)))

    def blocks(tile: int, pair: int) -> list[np.ndarray]:
        return processes.gather(store.total(part, tile, pair)) or []

    if smalls is not None and folder is not None:
        store.write_coming(folder, whole, store.merged(smalls, blocks), facts)
        return
    for t, tile in enumerate(part.state.tiles):
        for k in range(len(tile.pairs)):
            blocks(t, k)


def on_all(result: SimilarityResult | None) -> SimilarityResult:
    """The first process's result, on every one."""
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
    return [jax.tree.unflatten(structure, own) for own in zip(*gathered, strict=True)]


def _sample(found: Sample) -> Sample:
    """The sample of all processes; on others than the first their own."""
    arrays = _of_all([found.keys, found.numbers, *found.rows])
    utterances = processes.gather_json(found.utterances.tolist())
    if arrays is None or utterances is None:
        return found
    samples = [
        dataclasses.replace(
            found, keys=keys, numbers=numbers, rows=tuple(rows), utterances=np.array(ids, object)
        )
        for ids, (keys, numbers, *rows) in zip(utterances, arrays, strict=True)
    ]
    return functools.reduce(sample.merge_samples, samples)


def _heads(found: HeadSums) -> HeadSums:
    """The attention sums of all processes; on others than the first their own."""
    sums, lengths = _of_all(found.sums), processes.gather_json(found.lengths)
    if sums is None or lengths is None:
        return found
    parts = [
        dataclasses.replace(found, sums=own, lengths=tuple(counts))
        for own, counts in zip(sums, lengths, strict=True)
    ]
    return functools.reduce(attention_finished.merge_attention, parts)
