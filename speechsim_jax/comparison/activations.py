"""`compare_activations`: the same statistics and scores on anybody's features."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from speechsim_jax._jax_compat import x64
from speechsim_jax.comparison.score import build_result
from speechsim_jax.errors import UserError
from speechsim_jax.measures import resolve
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.settings import Settings
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.finished import Finished
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.sample import SampleAccumulator

Key = str | tuple[str, int]
Rows = np.ndarray | Iterable[np.ndarray]


def compare_activations(
    activations: Mapping[Key, Rows],
    measures: str | list[str] | tuple[str, ...] = "paper",
    *,
    levels: list[str] | tuple[str, ...] | None = None,
    stats_dtype: Literal["float32", "float64"] | None = None,
    rank_tolerance: float | None = None,
    rows_per_update: int = 4096,
    sample_frames: int = 2000,
    seed: int = 0,
    utterances: Sequence[str] | np.ndarray | None = None,
    progress: bool = False,
) -> SimilarityResult:
    """How alike are these representations, on the same rows?

    `activations`: name -> array [rows, neurons] (memory-mapped ones are read in blocks), or an
    iterable of such arrays one after the other. "model/3" or ("model", 3) is layer 3 of a model; a
    key without a layer is a model of one layer, 0. `measures`, `levels`: as of `compare`, but for
    attention. `stats_dtype` defaults to float64 on a CPU and to compensated float32 elsewhere;
    `rank_tolerance` is that of `Settings`; statistics are updated with `rows_per_update` rows at a
    time. Measures on the frame sample read `sample_frames` rows, which `seed` and the row numbers
    choose (all, if there are no more). `utterances` names the utterance of each row; without it,
    `mutual_knn` cannot leave neighbours in time out. `progress`: show a bar on stderr.

    >>> x = np.random.default_rng(0).standard_normal((500, 64))
    >>> result = ss.compare_activations({"mine/0": x, "theirs/3": x[:, ::-1]})
    >>> round(float(result.matrix("maxcorr").loc["mine/0", "theirs/3"]), 6)
    1.0
    >>> result.dataset["best_match"].loc["mine/0", "theirs/3"].values[:3]
    array([63, 62, 61], dtype=int32)

    Raises:
        UserError: arrays that are not [rows, neurons] of the same number of rows; NaN or inf, with
            the row.
    """
    if not activations:
        raise UserError("no activations given")
    Settings(sample_frames=sample_frames, seed=seed, rank_tolerance=rank_tolerance)
    chosen = resolve(measures, levels)
    if chosen.attention:
        raise UserError(f"{chosen.attention[0].name} compares maps; use compare_attentions")
    names = [_representation_name(key) for key in activations]
    if len(set(names)) < len(names):
        raise UserError("two keys of activations name the same model and layer")
    if stats_dtype is None:
        stats_dtype = "float64" if jax.default_backend() == "cpu" else "float32"
    labels = [str(name) for name in names]
    blocks = [_blocks(n, rows, rows_per_update) for n, rows in zip(labels, activations.values())]
    first = [next(block, None) for block in blocks]
    _check_aligned(labels, first, 0)
    widths = [block.shape[1] for block in first if block is not None]
    streams = _streams(widths)
    statistic = MomentsAccumulator(streams, rows_per_update, stats_dtype, rows_dtype=stats_dtype)
    sample = None
    if any(measure.statistic == "sample" for measure in chosen.measures):
        sample = SampleAccumulator(streams, sample_frames, seed, rows_dtype=stats_dtype)
    current: list[np.ndarray | None] = first
    while current[0] is not None:
        blocks_now = [block for block in current if block is not None]
        rows = _rows(statistic.rows, len(blocks_now[0]), utterances)
        hidden = _as_streams(streams, blocks_now, stats_dtype)
        statistic.append(hidden, rows.positions)
        if sample is not None:
            sample.append(hidden, rows)
        current = [next(block, None) for block in blocks]
        _check_aligned(labels, current, statistic.rows)
    if utterances is not None and len(utterances) != statistic.rows:
        raise UserError(f"utterances names {len(utterances)} rows, but there are {statistic.rows}")
    moments = statistic.finish(rank_tolerance)
    attributes = provenance.record(
        frames=moments.rows,
        numeric={"stats_dtype": moments.dtype, "rank_tolerance": moments.rank_tolerance},
        settings={"sample_frames": sample_frames, "seed": seed},
    )
    taken = sample.finish() if sample else None
    return build_result(names, Finished(moments, taken), chosen, attributes, progress)


def _rows(start: int, count: int, utterances: Sequence[str] | np.ndarray | None) -> BatchRows:
    """`count` rows from row `start` on; a row is known by its number, whatever its utterance."""
    names, utterance = np.array([""]), np.zeros(count, np.int64)
    if utterances is not None:
        given = np.asarray(utterances[start : start + count]).astype(str)
        if len(given) < count:
            raise UserError(f"utterances names {len(utterances)} rows, but there are more")
        names, utterance = np.unique(given, return_inverse=True)
    return BatchRows(
        positions=np.arange(count),
        utterance=utterance,
        number=np.arange(start, start + count),
        ids=("",) * len(names),
        wholes=tuple(names.tolist()),
    )


def _representation_name(key: Key) -> RepresentationName:
    if isinstance(key, tuple):
        return RepresentationName(str(key[0]), int(key[1]))
    model, _, layer = key.rpartition("/")
    return (
        RepresentationName(model, int(layer))
        if model and layer.isdigit()
        else RepresentationName(key, 0)
    )


def _blocks(name: str, rows: Rows, size: int) -> Iterator[np.ndarray]:
    """Blocks of exactly `size` rows, but for the last."""
    pending: list[np.ndarray] = []
    held = seen = 0
    for chunk in [rows] if isinstance(rows, np.ndarray) else rows:
        if chunk.ndim != 2 or chunk.shape[1] == 0:
            raise UserError(f"{name}: expected an array [rows, neurons], got shape {chunk.shape}")
        for start in range(0, len(chunk), size):
            part = np.asarray(chunk[start : start + size])
            bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
            if len(bad):
                raise UserError(f"{name}: NaN or inf in row {seen + int(bad[0])}")
            seen += len(part)
            pending.append(part)
            held += len(part)
            while held >= size:
                joined = np.concatenate(pending)
                yield joined[:size]
                pending, held = [joined[size:]], held - size
    if held:
        yield np.concatenate(pending)


def _check_aligned(labels: list[str], blocks: list[np.ndarray | None], before: int) -> None:
    """All representations must have the same rows."""
    lengths = [0 if block is None else len(block) for block in blocks]
    for label, length in zip(labels, lengths):
        if length != lengths[0]:
            raise UserError(
                f"{labels[0]} and {label} differ in rows ({before + lengths[0]} and "
                f"{before + length} so far); every representation needs the same rows"
            )
    if before == 0 and lengths[0] < 2:
        raise UserError(f"at least 2 rows are needed, got {lengths[0]}")


def _streams(widths: list[int]) -> tuple[ModelShape, ...]:
    """Neighbours of one width are one stream."""
    streams: list[ModelShape] = []
    for width in widths:
        if streams and streams[-1].neurons == width:
            streams[-1] = ModelShape(streams[-1].layers + 1, width)
        else:
            streams.append(ModelShape(1, width))
    return tuple(streams)


def _as_streams(
    streams: tuple[ModelShape, ...], blocks: list[np.ndarray], dtype: str
) -> tuple[jax.Array, ...]:
    """The blocks of all representations as [layer, 1, row, neuron], one a stream."""
    hidden: list[jax.Array] = []
    start = 0
    for stream in streams:
        parts = [block.astype(dtype) for block in blocks[start : start + stream.layers]]
        with x64(dtype == "float64"):
            hidden.append(jnp.asarray(np.stack(parts)[:, None]))
        start += stream.layers
    return tuple(hidden)
