"""Batches: utterances of any length in a few fixed shapes, decoded ahead of use by threads."""

import functools
import logging
import math
import operator
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from speechsim_jax.audio.corpus import (
    SAMPLE_RATE_HZ,
    AudioError,
    Corpus,
    Skipped,
    Source,
    Utterance,
    read,
)
from speechsim_jax.audio.tracks import Piece
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Settings

# Durations are rounded up to this, so that the search for bucket lengths stays small.
_GRID_SAMPLES = SAMPLE_RATE_HZ // 2
# Of buckets, where their number is chosen.
_MOST_BUCKETS = 12

PROGRAM_SECONDS = 10.0
"""Audio that a base-size encoder reads on a CPU while a program of it is compiled, about."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bucket:
    """One compiled shape.

    Attributes:
        batch: Rows of a batch.
        samples: Samples of a row, padding included.
    """

    batch: int
    samples: int


CropPosition = tuple[int, int]
"""A piece of an utterance: the index of its source, and of the piece in it."""


@dataclass(frozen=True)
class Cursor:
    """A position in a stream of batches, from which `batches` can resume.

    Attributes:
        sources: How many sources have been decoded and queued.
        waiting: Per bucket, the pieces of these sources that wait for a batch to fill up.
        rest: The pieces of the last of these sources that are in no bucket yet.
    """

    sources: int = 0
    waiting: tuple[tuple[CropPosition, ...], ...] = ()
    rest: tuple[CropPosition, ...] = ()

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Cursor":
        """From `dataclasses.asdict`, also after JSON, which turns tuples into lists."""

        def positions(pairs: Any) -> tuple[CropPosition, ...]:
            return tuple((source, piece) for source, piece in pairs)

        waiting = tuple(positions(bucket) for bucket in saved["waiting"])
        return cls(saved["sources"], waiting, positions(saved["rest"]))


@dataclass(frozen=True, eq=False)
class Batch:
    """Zero-padded rows.

    Attributes:
        samples: 16 kHz mono, `[batch, samples]`.
        lengths: Valid samples of each row; 0 in the filler rows at the end.
        ids: Of the rows that are not filler.
        after: The position in the stream right after this batch.
        attached: Of each of these rows, what `attach` has made of it; empty without.
    """

    samples: Float32[np.ndarray, "batch samples"]
    lengths: Int32[np.ndarray, "batch"]
    ids: tuple[str, ...]
    after: Cursor = Cursor()
    attached: tuple[Any, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of speech in the batch, without padding."""
        return int(self.lengths.sum()) / SAMPLE_RATE_HZ


def plan_buckets(
    seconds: Sequence[float | int] | np.ndarray,
    *,
    hop_samples: int,
    window_samples: int,
    count: int | None = Settings.buckets,
    batch_seconds: float | int = Settings.batch_seconds,
    max_seconds: float | int = Settings.max_seconds,
    least_row_seconds: float | int = 0,
    utterances: int | None = None,
    program_seconds: float | int = PROGRAM_SECONDS,
) -> tuple[Bucket, ...]:
    """The few row lengths that minimise the padding of utterances of these durations.

    A row has `hop_samples` T + `window_samples` - `hop_samples` samples, which an encoder turns
    into exactly T frames. The optimum is exact for durations rounded up to 0.5 s. An utterance
    longer than `max_seconds` counts as the equal pieces that `batches` cuts it into; none of at
    most `max_seconds` is ever cut (the last bucket may exceed it by less than a hop, to hold whole
    frames).

    Args:
        seconds: Durations of the utterances.
        hop_samples: Samples between the starts of two frames of the encoder.
        window_samples: Samples that one frame covers.
        count: The largest number of buckets (the setting `buckets`). None: at most 12, each of
            which saves more padding than a program is worth; and a bucket has no more rows than
            its utterances fill, so that little audio takes few programs and hardly any fillers.
        batch_seconds: Audio in a batch, padding included: a bucket has at most
            max(1, int(batch_seconds / seconds of a row)) rows.
        max_seconds: Longer utterances are cut; at least 0.5.
        least_row_seconds: What a row counts at least in a batch, where an encoder pads it further.
        utterances: How many there are, with those of unknown duration (default: none is unknown).
        program_seconds: Padded audio that takes as long as compiling the programs of a bucket.

    Returns:
        At most `count` buckets, from the shortest to the longest.

    Raises:
        UserError: a setting or duration out of range, or no duration at all.
    """
    few = count is not None and count < 1
    if few or not batch_seconds > 0 or not 0.5 <= max_seconds < math.inf:
        raise UserError(
            f"buckets={count}, batch_seconds={batch_seconds:g}, max_seconds={max_seconds:g}: "
            "expected buckets >= 1, batch_seconds > 0, max_seconds >= 0.5"
        )
    durations = np.asarray(seconds, np.float64)
    if not durations.size or not (np.isfinite(durations) & (durations >= 0)).all():
        raise UserError("buckets need at least one duration, every one a finite number >= 0")
    # Subtracting 1e-6 keeps a duration that exceeds a limit by a rounding error below it.
    pieces = np.maximum(np.ceil(durations / max_seconds - 1e-6), 1).astype(np.int64)
    steps = np.ceil(durations / pieces * SAMPLE_RATE_HZ / _GRID_SAMPLES - 1e-6).astype(np.int64)
    grid = np.minimum(np.maximum(steps, 1) * _GRID_SAMPLES, math.ceil(max_seconds * SAMPLE_RATE_HZ))
    overlap = window_samples - hop_samples
    whole_frames = -(-(grid - overlap) // hop_samples) * hop_samples + overlap
    lengths, inverse = np.unique(whole_frames, return_inverse=True)
    uses = np.bincount(inverse, weights=pieces).astype(np.int64)

    def seconds_of(samples: int) -> float:
        return max(samples / SAMPLE_RATE_HZ, least_row_seconds)

    def rows(samples: int) -> int:
        return max(1, int(batch_seconds / seconds_of(samples)))

    plans = _best_lengths(lengths, uses, min(count or _MOST_BUCKETS, len(lengths)))
    if count is not None:
        return tuple(Bucket(rows(samples), samples) for samples in plans[-1])
    of_each = (utterances or len(durations)) / len(durations)
    known = np.concatenate([[0], np.cumsum(uses)])

    def filled(plan: list[int]) -> tuple[float, tuple[Bucket, ...]]:
        """Seconds that are computed, with what the programs are worth, and the buckets."""
        ends = known[np.searchsorted(lengths, plan) + 1]
        total, buckets = program_seconds * len(plan), []
        for samples, used in zip(plan, (np.diff(ends, prepend=0) * of_each).tolist()):
            batches = math.ceil(used / rows(samples))
            buckets.append(Bucket(math.ceil(used / batches), samples))
            total += batches * buckets[-1].batch * seconds_of(samples)
        return total, tuple(buckets)

    return min(map(filled, plans), key=operator.itemgetter(0))[1]


def share_buckets(corpora: Sequence[Corpus], buckets: Sequence[Bucket]) -> tuple[Corpus, ...]:
    """The corpora with durations rounded up to those of `buckets`, planned for all of them.

    `plan_buckets` on any of the results then chooses among these buckets, so that comparisons of
    several corpora share compiled programs. What is longer than all buckets keeps its duration. The
    audio itself is not touched.
    """
    # Down to the grid, which `plan_buckets` rounds up from.
    lengths = [bucket.samples // _GRID_SAMPLES * _GRID_SAMPLES for bucket in buckets]
    steps = sorted({samples / SAMPLE_RATE_HZ for samples in lengths})

    def rounded(source: Source) -> Source:
        longer = [step for step in steps if source.seconds is not None and step >= source.seconds]
        return replace(source, seconds=longer[0]) if longer else source

    return tuple(replace(c, sources=tuple(map(rounded, c.sources))) for c in corpora)


def batches(
    corpus: Corpus,
    buckets: Sequence[Bucket],
    *,
    min_samples: int,
    strict: bool = False,
    workers: int = 2,
    lookahead: int = 8,
    on_skip: Callable[[Skipped], None],
    on_note: Callable[[str], None] = lambda _: None,
    attach: Callable[[Piece], Any] | None = None,
    start: Cursor = Cursor(),
) -> Generator[Batch, None, None]:
    """Decode a corpus in order into batches of the given shapes.

    An utterance goes to the smallest bucket that holds it; one too long for all is cut into equal
    pieces `id#0`, `id#1`, ... The batches are the same whatever `workers` and `lookahead`. Closing
    the generator stops the threads.

    Args:
        corpus: What to read.
        buckets: The shapes of the batches.
        min_samples: Shorter utterances cannot be used: the window of the encoder.
        strict: Raise for a source that cannot be used, instead of skipping it.
        workers: Threads that decode.
        lookahead: Sources that are decoded ahead of use, at most.
        on_skip: Called with every source that cannot be used.
        on_note: Called with every note of an utterance, what was guessed or changed in reading it.
        attach: Called with every row, on the threads that decode; what it returns is in the batch.
        start: `after` of an earlier batch of the same corpus and buckets, to resume after it: of
            the sources before it, only those that wait are decoded again.

    Returns:
        The batches; partly filled ones come last.

    Raises:
        UserError: unusable settings; with `strict`, a source that cannot be used.
    """
    shapes = sorted(set(buckets), key=lambda bucket: bucket.samples)
    # Equal pieces of something longer than the largest bucket are longer than half of it.
    if not shapes or shapes[-1].samples < 2 * min_samples:
        raise UserError(
            f"buckets={shapes}: the largest must hold {2 * min_samples} samples or more"
        )
    if workers < 1 or lookahead < 1:
        raise UserError(f"workers={workers}, lookahead={lookahead}: expected at least 1 of each")
    decode = functools.partial(_decode, min_samples, shapes[-1].samples, attach)
    return _generate(corpus, shapes, decode, strict, workers, lookahead, on_skip, on_note, start)


def pieces(source: Source, max_samples: int, min_samples: int = 1) -> list[Utterance]:
    """Decode a source and cut it as `batches` does.

    Args:
        source: What to read.
        max_samples: Samples of the largest bucket.
        min_samples: The shortest utterance that can be used.

    Raises:
        AudioError: It cannot be used.
    """
    return _cut(read(source, min_samples), max_samples)


@dataclass(frozen=True, eq=False)
class _Row:
    """An utterance that fits into a row, or a piece of a longer one; and what is attached to it."""

    utterance: Utterance
    attached: Any


@dataclass(frozen=True, eq=False)
class _Decoded:
    """An utterance as the rows that it is cut into, and the notes of reading it."""

    rows: list[_Row]
    notes: tuple[str, ...]


def _decode(
    min_samples: int, max_samples: int, attach: Callable[[Piece], Any] | None, source: Source
) -> _Decoded:
    """Decode and cut one source, and attach what belongs to its rows; on any thread."""
    whole = read(source, min_samples)
    rows, start = [], 0
    for part in _cut(whole, max_samples):
        piece = Piece(whole.id, start / SAMPLE_RATE_HZ, part.samples)
        rows.append(_Row(part, attach(piece) if attach else None))
        start += len(part.samples)
    return _Decoded(rows, whole.notes)


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
    decode: Callable[[Source], _Decoded],
    strict: bool,
    workers: int,
    lookahead: int,
    on_skip: Callable[[Skipped], None],
    on_note: Callable[[str], None],
    start: Cursor,
) -> Generator[Batch, None, None]:
    lengths = [bucket.samples for bucket in buckets]
    pool = ThreadPoolExecutor(workers, thread_name_prefix="speechsim-audio")
    try:
        rows_at = _rows_at(start, corpus, decode, pool)
        waiting = [[(at, rows_at[at]) for at in positions] for positions in start.waiting]
        waiting += [[] for _ in buckets[len(waiting) :]]
        queue = deque((at, rows_at[at]) for at in start.rest)
        decoded = start.sources

        def take_batch(index: int) -> Batch:
            rows, waiting[index] = waiting[index], []
            positions = tuple(tuple(at for at, _ in bucket) for bucket in waiting)
            after = Cursor(decoded, positions, tuple(at for at, _ in queue))
            return _assemble([row for _, row in rows], buckets[index], after)

        upcoming = _decode_ahead(pool, decode, corpus.sources[decoded:], lookahead)
        while True:
            while queue:
                at, row = queue.popleft()
                index = bisect_left(lengths, len(row.utterance.samples))
                waiting[index].append((at, row))
                if len(waiting[index]) == buckets[index].batch:
                    yield take_batch(index)
            source, pending = next(upcoming, (None, None))
            if source is None or pending is None:
                break
            decoded += 1
            try:
                found = pending.result()
            except AudioError as error:
                if strict:
                    raise UserError(
                        f"audio: {source.id} {error}; repair or remove it, or allow skipping"
                    ) from error
                on_skip(Skipped(source.id, str(error)))
                continue
            for note in found.notes:
                on_note(note)
            queue.extend(((decoded - 1, number), row) for number, row in enumerate(found.rows))
        for index, rows in enumerate(waiting):
            if rows:
                yield take_batch(index)
    finally:
        pool.shutdown(cancel_futures=True)


def _rows_at(
    start: Cursor,
    corpus: Corpus,
    decode: Callable[[Source], _Decoded],
    pool: ThreadPoolExecutor,
) -> dict[CropPosition, _Row]:
    """The rows that a cursor names; raises UserError if their files have changed since."""
    positions = [at for bucket in (*start.waiting, start.rest) for at in bucket]
    numbers = sorted({number for number, _ in positions})
    try:
        decoded = list(pool.map(decode, [corpus.sources[number] for number in numbers]))
        rows = {
            (number, index): row
            for number, of_source in zip(numbers, decoded, strict=True)
            for index, row in enumerate(of_source.rows)
        }
        return {at: rows[at] for at in positions}
    except (AudioError, LookupError) as error:
        raise UserError(f"the audio has changed since it was read first: {error}") from error


def _decode_ahead(
    pool: ThreadPoolExecutor,
    decode: Callable[[Source], _Decoded],
    sources: Sequence[Source],
    lookahead: int,
) -> Iterator[tuple[Source, Future[_Decoded]]]:
    """Sources in order with their decoding under way, never more than `lookahead` undelivered."""
    queue: deque[tuple[Source, Future[_Decoded]]] = deque()
    for source in sources:
        if len(queue) == lookahead:
            yield queue.popleft()
        queue.append((source, pool.submit(decode, source)))
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


def _assemble(rows: Sequence[_Row], bucket: Bucket, after: Cursor) -> Batch:
    samples = np.zeros((bucket.batch, bucket.samples), np.float32)
    lengths = np.zeros(bucket.batch, np.int32)
    for number, row in enumerate(rows):
        lengths[number] = len(row.utterance.samples)
        samples[number, : lengths[number]] = row.utterance.samples
    ids = tuple(row.utterance.id for row in rows)
    return Batch(samples, lengths, ids, after, tuple(row.attached for row in rows))


def _best_lengths(
    lengths: Int64[np.ndarray, "lengths"], uses: Int64[np.ndarray, "lengths"], most: int
) -> list[list[int]]:
    """For 1 to `most`: as many of the sorted `lengths`, the longest among them, with least padding.

    `uses`: rows that need each length. Dynamic programming over
    cost_k(j) = min_{i<j} cost_{k-1}(i) + length_j * (rows in i+1..j): the total padded length,
    which differs from the padding by a constant.
    """
    size = len(lengths)
    rows = np.concatenate([[0], np.cumsum(uses)])
    cost = np.concatenate([[0.0], np.full(size, np.inf)])
    came_from = np.zeros((most, size + 1), np.int64)
    for bucket in range(most):
        next_cost = np.full(size + 1, np.inf)
        for end in range(1, size + 1):
            options = cost[:end] + lengths[end - 1] * (rows[end] - rows[:end])
            came_from[bucket, end] = start = int(np.argmin(options))
            next_cost[end] = options[start]
        cost = next_cost

    def chosen(count: int) -> list[int]:
        found, end = [], size
        for bucket in reversed(range(count)):
            found.append(int(lengths[end - 1]))
            end = int(came_from[bucket, end])
        return found[::-1]

    return [chosen(count) for count in range(1, most + 1)]
