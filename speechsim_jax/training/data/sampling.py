"""Training batches: functions of the seed and the step, and of nothing before it.

Pretraining reads crops: utterances drawn with probabilities proportional to their duration, each
cropped where a frame of the full utterance begins (320 samples apart), so that the crop's cluster
labels are those of the utterance. Fine-tuning reads every utterance once an epoch, in batches of
similar lengths.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from speechsim_jax.audio.batching import Bucket, plan_buckets
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Source
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.training.data.splits import WaveformCache, speaker_of
from speechsim_jax.training.recipe import Crops, Utterances

# Keep the draws of training apart from those of evaluation with the same seed.
_TRAINING, _EVALUATION = 0, 1

Labels = Sequence[Int32[np.ndarray, " _label"]]


class TrainingBatch(NamedTuple):
    """Padded waveforms with their targets.

    Attributes:
        samples: 16 kHz waveforms.
        lengths: Valid samples of each row, 0 for filler rows.
        clusters: Cluster of each frame for masked prediction, -1 where there is none.
        labels: Labels of the transcripts for CTC.
        counts: Number of valid labels of each row.
    """

    samples: Float32[Array | np.ndarray, "batch sample"]
    lengths: Int32[Array | np.ndarray, " batch"]
    clusters: Int32[Array | np.ndarray, "batch frame"] | None = None
    labels: Int32[Array | np.ndarray, "batch label"] | None = None
    counts: Int32[Array | np.ndarray, " batch"] | None = None


class CropSampler:
    """Batches of random crops.

    Args:
        waves: Waveforms of the utterances.
        config: The encoder, which sets the frames.
        crops: Size and number of the crops.
        seed: Of the draws.
        clusters: The cluster of each frame by utterance id; None if they are not needed.
    """

    def __init__(
        self,
        waves: WaveformCache,
        config: EncoderConfig,
        crops: Crops,
        seed: int,
        clusters: Mapping[str, Int[np.ndarray, " _frame"]] | None = None,
    ):
        self._waves, self._config, self._crops, self._seed = waves, config, crops, seed
        self._clusters = clusters
        self._seconds = np.array([source.seconds for source in waves.sources], np.float64)

    def batch_of_step(self, step: int) -> TrainingBatch:
        """The batch of a training step, counted from 0. Raises UserError if nothing is usable."""
        rng = np.random.default_rng([self._seed, _TRAINING, step])
        return self._draw(rng, np.arange(len(self._waves)), self._crops.speed_change)

    def batch_of_speaker(self, speaker: str) -> TrainingBatch:
        """One batch of a speaker for evaluation, always the same and at the original speed."""
        indices = [
            n for n, source in enumerate(self._waves.sources) if speaker_of(source) == speaker
        ]
        rng = np.random.default_rng([self._seed, _EVALUATION, *speaker.encode()])
        return self._draw(rng, np.array(indices))

    def _draw(
        self,
        rng: np.random.Generator,
        among: Int[np.ndarray, " _source"],
        speed_change: float | int = 0.0,
    ) -> TrainingBatch:
        rows, width, config = self._crops.rows, self._crops.frames, self._config
        ends = np.cumsum(self._seconds[among])
        drawn = np.searchsorted(ends, rng.random(rows) * ends[-1], side="right")
        starts = rng.random(rows)
        speeds = 1 + speed_change * rng.uniform(-1, 1, rows)
        size = config.hop_samples * (width - 1) + config.window_samples
        samples = np.zeros((rows, size), np.float32)
        lengths = np.zeros(rows, np.int32)
        clusters: list[np.ndarray] = []
        for row, (index, start, speed) in enumerate(zip(among[drawn].tolist(), starts, speeds)):
            wave = self._waves[index]
            most = math.ceil((size - 1) * speed) + 1
            first = int(start * (max(len(wave) - most, 0) // config.hop_samples + 1))
            crop = _at_speed(wave[config.hop_samples * first :][:most], speed)[:size]
            samples[row, : len(crop)], lengths[row] = crop, len(crop)
            if self._clusters is not None:
                of_utterance = self._clusters.get(
                    self._waves.sources[index].id, np.zeros(0, np.int32)
                )
                frames = first + _original_frames(config, int(config.frames(len(crop))), speed)
                clusters.append(of_utterance[frames[frames < len(of_utterance)]].astype(np.int32))
        _check_not_empty(lengths)
        if self._clusters is None:
            return TrainingBatch(samples, lengths)
        return TrainingBatch(samples, lengths, pad_labels(clusters, rows, width))


def _at_speed(
    wave: Float32[np.ndarray, " _sample"], speed: float
) -> Float32[np.ndarray, " _played"]:
    """Change the speed by reading every `speed`-th sample, with linear interpolation."""
    if speed == 1 or not len(wave):
        return wave
    positions = np.arange(math.floor((len(wave) - 1) / speed) + 1) * speed
    return np.interp(positions, np.arange(len(wave)), wave).astype(np.float32)


def _original_frames(
    config: EncoderConfig, frames: int, speed: float
) -> Int[np.ndarray, " _frame"]:
    """For each frame at the changed speed, the frame of the original with the nearest centre."""
    centre = config.window_samples / 2
    centres = np.arange(frames) * config.hop_samples + centre
    nearest = np.rint((centres * speed - centre) / config.hop_samples)
    return np.maximum(nearest, 0).astype(np.int64)


def pad_labels(
    labels: Iterable[Int32[np.ndarray, " _frame"]], batch: int, frames: int
) -> Int32[np.ndarray, "{batch} {frames}"]:
    """Labels of the first rows of a batch, padded with -1."""
    padded = np.full((batch, frames), -1, np.int32)
    for row, row_labels in zip(padded, labels):
        row[: len(row_labels)] = row_labels
    return padded


class UtteranceSampler:
    """Batches of uncut utterances with their labels, every utterance once an epoch.

    Args:
        waves: Waveforms of the utterances.
        labels: Labels of each utterance.
        buckets: Shapes of the batches (`utterance_buckets`).
        seed: Of the order.
        width: Labels in a row, padding included; default that of the longest.

    Attributes:
        batches_in_order: Indices of the utterances of each batch, in the order of `waves`.
    """

    def __init__(
        self,
        waves: WaveformCache,
        labels: Labels,
        buckets: Sequence[Bucket],
        seed: int,
        width: int | None = None,
    ):
        self._waves, self._labels, self._buckets, self._seed = waves, labels, buckets, seed
        self._width = width or max(map(len, labels))
        samples = np.array([(s.seconds or 0.0) * SAMPLE_RATE_HZ for s in waves.sources])
        # A header may round up by a sample or two; these do not make a frame.
        bucket_of = np.searchsorted([bucket.samples for bucket in buckets], np.round(samples))
        self._bucket_of = np.minimum(bucket_of, len(buckets) - 1)
        self.batches_in_order = self._batches(np.arange(len(waves)))
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def batch_of_step(self, step: int) -> TrainingBatch:
        """The batch of a training step, counted from 0. Raises UserError if nothing is usable."""
        epoch, number = divmod(step, len(self.batches_in_order))
        return self.batch(self._epoch(epoch)[number])

    def _shuffled(self, epoch: int) -> list[tuple[int, ...]]:
        rng = np.random.default_rng([self._seed, _TRAINING, epoch])
        batches = self._batches(rng.permutation(len(self._waves)))
        return [batches[number] for number in rng.permutation(len(batches))]

    def _batches(self, order: Int[np.ndarray, " source"]) -> list[tuple[int, ...]]:
        """Indices of utterances in batches of one shape."""
        batches: list[tuple[int, ...]] = []
        for number, bucket in enumerate(self._buckets):
            fitting = order[self._bucket_of[order] == number].tolist()
            batches += [
                tuple(fitting[k : k + bucket.batch]) for k in range(0, len(fitting), bucket.batch)
            ]
        return batches

    def batch(self, indices: Sequence[int]) -> TrainingBatch:
        """The batch of these utterances, which must be of one bucket.

        Raises:
            UserError: A file is longer or shorter than its manifest or header states, or no file is
                usable.
        """
        bucket: Bucket = self._buckets[self._bucket_of[indices[0]]]
        samples = np.zeros((bucket.batch, bucket.samples), np.float32)
        labels = np.zeros((bucket.batch, self._width), np.int32)
        lengths, counts = np.zeros((2, bucket.batch), np.int32)
        for row, index in enumerate(indices):
            wave, source = self._waves[index], self._waves.sources[index]
            if abs(len(wave) / SAMPLE_RATE_HZ - (source.seconds or 0.0)) > 0.1 and len(wave):
                raise UserError(
                    f"{source.id}: lasts {len(wave) / SAMPLE_RATE_HZ:.2f} s, but its manifest or "
                    f"header states {source.seconds:.2f} s"
                )
            wave = wave[: bucket.samples]
            samples[row, : len(wave)], lengths[row] = wave, len(wave)
            counts[row] = len(self._labels[index])
            labels[row, : counts[row]] = self._labels[index]
        _check_not_empty(lengths)
        return TrainingBatch(samples, lengths, labels=labels, counts=counts)


def utterance_buckets(
    sources: Sequence[Source], settings: Utterances, config: EncoderConfig
) -> tuple[Bucket, ...]:
    """The shapes of batches of these utterances, none of which is cut."""
    return plan_buckets(
        [source.seconds or 0.0 for source in sources],
        hop_samples=config.hop_samples,
        window_samples=config.window_samples,
        count=settings.buckets,
        batch_seconds=settings.batch_seconds,
        max_seconds=settings.max_seconds,
    )


def _check_not_empty(lengths: Int[np.ndarray, " batch"]) -> None:
    if not lengths.any():
        raise UserError("no file of a batch can be used; see the warnings")


def pad_to_multiple(batch: TrainingBatch, multiple: int) -> TrainingBatch:
    """The batch with filler rows up to a multiple of the number of devices that share it."""
    missing = -len(batch.lengths) % multiple
    if not missing:
        return batch
    return jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), batch)
