"""Which audio a step hears: a function of the seed and the step, and of nothing before it.

Pretraining hears crops: utterances drawn with probabilities proportional to their duration, each
cut at a place where a frame of the whole utterance begins (320 samples apart), so that its units
are those of the whole. Fine-tuning hears every utterance once an epoch, in batches of similar
lengths.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from speechsim_jax.audio.batching import Bucket, plan_buckets
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Source
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.training.data.clusters import padded
from speechsim_jax.training.data.splits import Waves, speaker_of
from speechsim_jax.training.recipe import Crops, Utterances

# What keeps the draws of one purpose apart from those of another with the same seed.
_TRAINING, _EVALUATION = 0, 1

Labels = Sequence[Int32[np.ndarray, " _label"]]


class Rows(NamedTuple):
    """A batch; length 0 marks a filler row.

    `units` (masked prediction) is -1 where there is none; of `labels` (CTC) the first `counts` of
    each row are read.
    """

    samples: Float32[Array | np.ndarray, "batch sample"]
    lengths: Int32[Array | np.ndarray, " batch"]
    units: Int32[Array | np.ndarray, "batch frame"] | None = None
    labels: Int32[Array | np.ndarray, "batch label"] | None = None
    counts: Int32[Array | np.ndarray, " batch"] | None = None


class CropSampler:
    """Crops of `waves`; with `units`, those of each utterance by its id, their units too."""

    def __init__(
        self,
        waves: Waves,
        config: EncoderConfig,
        crops: Crops,
        seed: int,
        units: Mapping[str, Int[np.ndarray, " _frame"]] | None = None,
    ):
        self._waves, self._config, self._crops, self._seed = waves, config, crops, seed
        self._units = units
        self._seconds = np.array([source.seconds for source in waves.sources], np.float64)

    def step(self, step: int) -> Rows:
        """What a step of training hears, counted from 0. Raises UserError if nothing is usable."""
        rng = np.random.default_rng([self._seed, _TRAINING, step])
        return self._draw(rng, np.arange(len(self._waves)), self._crops.speed_change)

    def of_speaker(self, speaker: str) -> Rows:
        """One batch of a speaker, always the same."""
        own = [n for n, source in enumerate(self._waves.sources) if speaker_of(source) == speaker]
        rng = np.random.default_rng([self._seed, _EVALUATION, *speaker.encode()])
        return self._draw(rng, np.array(own))

    def _draw(
        self,
        rng: np.random.Generator,
        among: Int[np.ndarray, " _source"],
        change: float | int = 0.0,
    ) -> Rows:
        rows, width, config = self._crops.rows, self._crops.frames, self._config
        ends = np.cumsum(self._seconds[among])
        places = np.searchsorted(ends, rng.random(rows) * ends[-1], side="right")
        starts = rng.random(rows)
        speeds = 1 + change * rng.uniform(-1, 1, rows)
        size = config.hop_samples * (width - 1) + config.window_samples
        samples = np.zeros((rows, size), np.float32)
        lengths = np.zeros(rows, np.int32)
        units: list[np.ndarray] = []
        for row, (number, where, speed) in enumerate(zip(among[places].tolist(), starts, speeds)):
            wave = self._waves[number]
            most = math.ceil((size - 1) * speed) + 1
            first = int(where * (max(len(wave) - most, 0) // config.hop_samples + 1))
            cut = _played(wave[config.hop_samples * first :][:most], speed)[:size]
            samples[row, : len(cut)], lengths[row] = cut, len(cut)
            if self._units is not None:
                of_all = self._units.get(self._waves.sources[number].id, np.zeros(0, np.int32))
                heard = first + _heard_at(config, int(config.frames(len(cut))), speed)
                units.append(of_all[heard[heard < len(of_all)]].astype(np.int32))
        _check_heard(lengths)
        found = None if self._units is None else padded(units, rows, width)
        return Rows(samples, lengths, found)


def _played(wave: Float32[np.ndarray, " _sample"], speed: float) -> Float32[np.ndarray, " _played"]:
    """The samples that fall every `speed` samples, by linear interpolation."""
    if speed == 1 or not len(wave):
        return wave
    places = np.arange(math.floor((len(wave) - 1) / speed) + 1) * speed
    return np.interp(places, np.arange(len(wave)), wave).astype(np.float32)


def _heard_at(config: EncoderConfig, frames: int, speed: float) -> Int[np.ndarray, " _frame"]:
    """The frames of a wave whose middles are nearest to those of frames of it as it is played."""
    middle = config.window_samples / 2
    played = np.arange(frames) * config.hop_samples + middle
    return np.maximum(np.rint((played * speed - middle) / config.hop_samples), 0).astype(np.int64)


class UtteranceSampler:
    """Whole utterances of `waves` with their labels, in the shapes of `buckets` (`plan`).

    Labels are padded to `width`, which is that of the longest if None.
    """

    def __init__(
        self,
        waves: Waves,
        labels: Labels,
        buckets: Sequence[Bucket],
        seed: int,
        width: int | None = None,
    ):
        self._waves, self._labels, self._buckets, self._seed = waves, labels, buckets, seed
        self._width = width or max(map(len, labels))
        samples = np.array([(s.seconds or 0.0) * SAMPLE_RATE_HZ for s in waves.sources])
        # What a header rounds up may not fit by a sample or two, which do not make a frame.
        found = np.searchsorted([bucket.samples for bucket in buckets], np.round(samples))
        self._bucket_of = np.minimum(found, len(buckets) - 1)
        self.in_order = self._chunks(np.arange(len(waves)))
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def step(self, step: int) -> Rows:
        """What a step of training hears, counted from 0. Raises UserError if nothing is usable."""
        epoch, place = divmod(step, len(self.in_order))
        return self.rows(self._epoch(epoch)[place])

    def _shuffled(self, epoch: int) -> list[tuple[int, ...]]:
        rng = np.random.default_rng([self._seed, _TRAINING, epoch])
        chunks = self._chunks(rng.permutation(len(self._waves)))
        return [chunks[place] for place in rng.permutation(len(chunks))]

    def _chunks(self, order: Int[np.ndarray, " source"]) -> list[tuple[int, ...]]:
        """The utterances by number in batches of one shape."""
        chunks: list[tuple[int, ...]] = []
        for index, bucket in enumerate(self._buckets):
            own = order[self._bucket_of[order] == index].tolist()
            chunks += [tuple(own[k : k + bucket.batch]) for k in range(0, len(own), bucket.batch)]
        return chunks

    def rows(self, numbers: Sequence[int]) -> Rows:
        """The utterances of these numbers, all of one bucket, as a batch."""
        bucket: Bucket = self._buckets[self._bucket_of[numbers[0]]]
        samples = np.zeros((bucket.batch, bucket.samples), np.float32)
        labels = np.zeros((bucket.batch, self._width), np.int32)
        lengths, counts = np.zeros((2, bucket.batch), np.int32)
        for row, number in enumerate(numbers):
            wave, source = self._waves[number], self._waves.sources[number]
            if abs(len(wave) / SAMPLE_RATE_HZ - (source.seconds or 0.0)) > 0.1 and len(wave):
                raise UserError(
                    f"{source.id}: lasts {len(wave) / SAMPLE_RATE_HZ:.2f} s, but its manifest or "
                    f"header says {source.seconds:.2f} s"
                )
            wave = wave[: bucket.samples]
            samples[row, : len(wave)], lengths[row] = wave, len(wave)
            counts[row] = len(self._labels[number])
            labels[row, : counts[row]] = self._labels[number]
        _check_heard(lengths)
        return Rows(samples, lengths, labels=labels, counts=counts)


def plan(
    sources: Sequence[Source], settings: Utterances, config: EncoderConfig
) -> tuple[Bucket, ...]:
    """The shapes that batches of these whole utterances have."""
    return plan_buckets(
        [source.seconds or 0.0 for source in sources],
        hop_samples=config.hop_samples,
        window_samples=config.window_samples,
        count=settings.buckets,
        batch_seconds=settings.batch_seconds,
        max_seconds=settings.max_seconds,
    )


def _check_heard(lengths: Int[np.ndarray, " batch"]) -> None:
    if not lengths.any():
        raise UserError("no file of a whole batch can be used; see the warnings")


def filled(rows: Rows, multiple: int) -> Rows:
    """The batch with filler rows up to a multiple of the devices that share it."""
    missing = -len(rows.lengths) % multiple
    if not missing:
        return rows
    return jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), rows)
