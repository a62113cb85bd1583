"""Batches: utterances of any length in a few fixed shapes, decoded ahead by threads."""

import logging
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from speechsim_jax.audio.corpus import (
    MIN_SAMPLES,
    SAMPLE_RATE_HZ,
    AudioError,
    Corpus,
    Skipped,
    Source,
    Utterance,
    read,
)
from speechsim_jax.errors import UserError

_GRID_SAMPLES = SAMPLE_RATE_HZ // 2
# A wav2vec2-style encoder turns 320 T + 80 samples into exactly T frames.
_HOP_SAMPLES, _OVERHANG_SAMPLES = 320, 80

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bucket:
    """One compiled shape: `batch` rows of `samples` samples."""

    batch: int
    samples: int


CropPosition = tuple[int, int]
"""A piece of an utterance: index of its source, and which of the pieces it is."""


@dataclass(frozen=True)
class Cursor:
    """Where a stream of batches stands: with it, `batches` goes on with the next one.

    `sources` have been begun. Of these, the pieces at `waiting` (bucket by bucket) and `rest` (of
    the last source) are in no batch yet.
    """

    sources: int = 0
    waiting: tuple[tuple[CropPosition, ...], ...] = ()
    rest: tuple[CropPosition, ...] = ()

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Cursor":
        """From `dataclasses.asdict`, by way of JSON, where tuples are lists."""

        def places(found: Any) -> tuple[CropPosition, ...]:
            return tuple((number, piece) for number, piece in found)

        waiting = tuple(places(bucket) for bucket in saved["waiting"])
        return cls(saved["sources"], waiting, places(saved["rest"]))


@dataclass(frozen=True, eq=False)
class Batch:
    """Zero-padded rows; `lengths` counts valid samples, 0 in the filler rows at the end."""

    samples: Float32[np.ndarray, "batch samples"]
    lengths: Int32[np.ndarray, "batch"]
    ids: tuple[str, ...]  # of the real rows
    after: Cursor = Cursor()  # where the stream stands behind this batch

    @property
    def seconds(self) -> float:
        """Speech in the batch, in seconds, padding left out."""
        return int(self.lengths.sum()) / SAMPLE_RATE_HZ


def plan_buckets(
    seconds: Sequence[float | int] | np.ndarray,
    *,
    count: int = 4,
    batch_seconds: float | int = 40.0,
    max_seconds: float | int = 60.0,
) -> tuple[Bucket, ...]:
    """At most `count` lengths 320 T + 80 that minimise the padding of these durations.

    The optimum is exact for durations rounded up to 0.5 s. An utterance longer than `max_seconds`
    counts as the equal pieces `batches` cuts it into; none of at most `max_seconds` is ever cut
    (the last bucket may exceed it by less than 20 ms to hold whole frames). A bucket has
    max(1, int(batch_seconds / its seconds)) rows. Raises `UserError` for unusable settings.
    """
    if count < 1 or not batch_seconds > 0 or not 0.5 <= max_seconds < math.inf:
        raise UserError(
            f"count={count}, batch_seconds={batch_seconds:g}, max_seconds={max_seconds:g}: "
            "expected count >= 1, batch_seconds > 0, max_seconds >= 0.5"
        )
    durations = np.asarray(seconds, np.float64)
    if not durations.size or not (np.isfinite(durations) & (durations >= 0)).all():
        raise UserError("buckets need at least one duration, every one a finite number >= 0")
    # The small steps down keep what exceeds a limit by a rounding error below it.
    pieces = np.maximum(np.ceil(durations / max_seconds - 1e-6), 1).astype(np.int64)
    cells = np.ceil(durations / pieces * SAMPLE_RATE_HZ / _GRID_SAMPLES - 1e-6).astype(np.int64)
    grid = np.minimum(np.maximum(cells, 1) * _GRID_SAMPLES, math.ceil(max_seconds * SAMPLE_RATE_HZ))
    lengths, inverse = np.unique(_whole_frames(grid), return_inverse=True)
    uses = np.bincount(inverse, weights=pieces).astype(np.int64)
    return tuple(
        Bucket(max(1, int(batch_seconds / (samples / SAMPLE_RATE_HZ))), samples)
        for samples in _best_lengths(lengths, uses, min(count, len(lengths)))
    )


def batches(
    corpus: Corpus,
    buckets: Sequence[Bucket],
    *,
    strict: bool = False,
    workers: int = 2,
    lookahead: int = 8,
    on_skip: Callable[[Skipped], None],
    start: Cursor = Cursor(),
) -> Generator[Batch, None, None]:
    """Decode `corpus` in order, `lookahead` sources ahead, into batches of the given shapes.

    An utterance goes to the smallest bucket that holds it; one too long for all is cut into equal
    pieces `id#0`, `id#1`, ... The batches are the same whatever `workers` and `lookahead`. Unusable
    sources go to `on_skip`, or raise `UserError` if `strict`. `start` is the `after` of an earlier
    batch of the same corpus and buckets: the batches behind it follow, and of the sources before
    it only those that wait are decoded again. Closing the generator stops the threads. Raises
    `UserError` for unusable settings.
    """
    shapes = sorted(set(buckets), key=lambda bucket: bucket.samples)
    # Equal pieces of something longer than the largest bucket are longer than half of it.
    if not shapes or shapes[-1].samples < 2 * MIN_SAMPLES:
        raise UserError(
            f"buckets={shapes}: the largest must hold {2 * MIN_SAMPLES} samples or more"
        )
    if workers < 1 or lookahead < 1:
        raise UserError(f"workers={workers}, lookahead={lookahead}: expected at least 1 of each")
    return _generate(corpus, shapes, strict, workers, lookahead, on_skip, start)


def pad_to_multiple(batch: Batch, multiple: int) -> Batch:
    """The batch with filler rows up to a multiple of the devices that share it."""
    missing = -len(batch.lengths) % multiple
    if not missing:
        return batch
    samples = np.pad(batch.samples, ((0, missing), (0, 0)))
    return replace(batch, samples=samples, lengths=np.pad(batch.lengths, (0, missing)))


def _generate(
    corpus: Corpus,
    buckets: Sequence[Bucket],
    strict: bool,
    workers: int,
    lookahead: int,
    on_skip: Callable[[Skipped], None],
    start: Cursor,
) -> Generator[Batch, None, None]:
    lengths = [bucket.samples for bucket in buckets]
    pool = ThreadPoolExecutor(workers, thread_name_prefix="speechsim-audio")
    try:
        pieces = _read_again(pool, corpus, start, lengths[-1])
        waiting = [[(at, pieces[at]) for at in places] for places in start.waiting]
        waiting += [[] for _ in buckets[len(waiting) :]]
        queue = deque((at, pieces[at]) for at in start.rest)
        begun = start.sources

        def batch_of(index: int) -> Batch:
            rows, waiting[index] = waiting[index], []
            places = tuple(tuple(at for at, _ in bucket) for bucket in waiting)
            after = Cursor(begun, places, tuple(at for at, _ in queue))
            return _assemble([piece for _, piece in rows], buckets[index], after)

        coming = _ahead(pool, corpus.sources[begun:], lookahead)
        while True:
            while queue:
                at, piece = queue.popleft()
                index = bisect_left(lengths, len(piece.samples))
                waiting[index].append((at, piece))
                if len(waiting[index]) == buckets[index].batch:
                    yield batch_of(index)
            source, pending = next(coming, (None, None))
            if source is None or pending is None:
                break
            begun += 1
            try:
                cut = _cut(pending.result(), lengths[-1])
            except AudioError as error:
                if strict:
                    raise UserError(
                        f"audio: {source.id} {error}; repair or remove it, or allow skipping"
                    ) from error
                on_skip(Skipped(source.id, str(error)))
                continue
            queue.extend(((begun - 1, number), piece) for number, piece in enumerate(cut))
        for index, rows in enumerate(waiting):
            if rows:
                yield batch_of(index)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_again(
    pool: ThreadPoolExecutor, corpus: Corpus, start: Cursor, max_samples: int
) -> dict[CropPosition, Utterance]:
    """The pieces that a cursor names; raises UserError if their files are not what they were."""
    places = [at for bucket in (*start.waiting, start.rest) for at in bucket]
    numbers = sorted({number for number, _ in places})
    found: dict[CropPosition, Utterance] = {}
    try:
        for number, utterance in zip(
            numbers, pool.map(read, (corpus.sources[n] for n in numbers)), strict=True
        ):
            for piece, cut in enumerate(_cut(utterance, max_samples)):
                found[number, piece] = cut
        return {at: found[at] for at in places}
    except (AudioError, LookupError) as error:
        raise UserError(f"the audio has changed since it was read first: {error}") from error


def _ahead(
    pool: ThreadPoolExecutor, sources: Sequence[Source], lookahead: int
) -> Iterator[tuple[Source, Future[Utterance]]]:
    """Sources in order with their decoding under way, never more than `lookahead` undelivered."""
    queue: deque[tuple[Source, Future[Utterance]]] = deque()
    for source in sources:
        if len(queue) == lookahead:
            yield queue.popleft()
        queue.append((source, pool.submit(read, source)))
    while queue:
        yield queue.popleft()


def _cut(utterance: Utterance, max_samples: int) -> list[Utterance]:
    """The utterance, or the fewest pieces of equal length (to one sample) that fit."""
    count = -(-len(utterance.samples) // max_samples)
    if count == 1:
        return [utterance]
    log.info("cut %s of %.1f s into %d pieces", utterance.id, utterance.seconds, count)
    return [
        Utterance(f"{utterance.id}#{index}", samples, utterance.speaker)
        for index, samples in enumerate(np.array_split(utterance.samples, count))
    ]


def _assemble(rows: Sequence[Utterance], bucket: Bucket, after: Cursor) -> Batch:
    samples = np.zeros((bucket.batch, bucket.samples), np.float32)
    lengths = np.zeros(bucket.batch, np.int32)
    for row, utterance in enumerate(rows):
        lengths[row] = len(utterance.samples)
        samples[row, : lengths[row]] = utterance.samples
    return Batch(samples, lengths, tuple(row.id for row in rows), after)


def _whole_frames(samples: Int64[np.ndarray, "durations"]) -> Int64[np.ndarray, "durations"]:
    """The smallest 320 T + 80 that holds each."""
    return -(-(samples - _OVERHANG_SAMPLES) // _HOP_SAMPLES) * _HOP_SAMPLES + _OVERHANG_SAMPLES


def _best_lengths(
    lengths: Int64[np.ndarray, "lengths"], uses: Int64[np.ndarray, "lengths"], count: int
) -> list[int]:
    """The `count` of the sorted `lengths`, the last among them, that pad `uses` rows least.

    cost_k(j) = min_{i<j} cost_{k-1}(i) + length_j * (rows in i+1..j): the total padded length,
    which differs from the padding by a constant.
    """
    size = len(lengths)
    rows = np.concatenate([[0], np.cumsum(uses)])
    cost = np.concatenate([[0.0], np.full(size, np.inf)])
    came_from = np.zeros((count, size + 1), np.int64)
    for bucket in range(count):
        new = np.full(size + 1, np.inf)
        for end in range(1, size + 1):
            options = cost[:end] + lengths[end - 1] * (rows[end] - rows[:end])
            came_from[bucket, end] = start = int(np.argmin(options))
            new[end] = options[start]
        cost = new
    chosen, end = [], size
    for bucket in reversed(range(count)):
        chosen.append(int(lengths[end - 1]))
        end = int(came_from[bucket, end])
    return chosen[::-1]
