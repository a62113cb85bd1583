"""The cluster of every frame of a corpus: made once, of MFCCs or of a layer of an encoder."""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int32

from speechsim_jax.audio import selection
from speechsim_jax.audio.corpus import Corpus, Source, log_skipped
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.pipeline.encode_corpus import encode_corpus
from speechsim_jax.runtime.atomic_write import atomic_write, writing
from speechsim_jax.training.data.clusters import Clusters, Features, fit_clusters, mfcc
from speechsim_jax.training.data.splits import WaveformCache, prefetch

_log = logging.getLogger(__name__)

FeaturesOf = Callable[[Sequence[Source]], Iterable[tuple[str, Features]]]
"""Ids and features [frame, number] of the utterances that can be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClusterLabels:
    """The cluster of every frame of a corpus.

    Attributes:
        centres: The centres of the clusters.
        labels: The cluster of each frame by utterance id.
    """

    centres: Float32[np.ndarray, "cluster number"]
    labels: dict[str, Int32[np.ndarray, " _frame"]]

    def counts(self, ids: Iterable[str]) -> Int[np.ndarray, " cluster"]:
        """How often each cluster occurs in these utterances; unknown ids count nothing."""
        labels = (self.labels[name] for name in ids if name in self.labels)
        return Clusters(self.centres).counts(labels)

    def digest(self) -> str:
        """The SHA-256 of centres, ids and labels, in hexadecimal."""
        total = hashlib.sha256(np.ascontiguousarray(self.centres).tobytes())
        for name in sorted(self.labels):
            total.update(f"\0{name}\0".encode("utf-8", "surrogateescape"))
            total.update(self.labels[name].tobytes())
        return total.hexdigest()

    def save(self, path: Path) -> None:
        """Write an .npz file, complete or not at all. Raises UserError."""
        names = list(self.labels)
        ends = np.cumsum([0, *(len(self.labels[name]) for name in names)])
        labels = np.concatenate([self.labels[name] for name in names])

        def write(new: Path) -> None:
            with new.open("wb") as file:  # a name would get the suffix .npz
                np.savez(file, centres=self.centres, labels=labels, ends=ends, ids=np.array(names))

        with writing(path):
            atomic_write(path, write)

    @classmethod
    def load(cls, path: Path) -> "ClusterLabels":
        """Read a file that `save` wrote. Raises UserError if it is not such a file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                ends, labels, names = file["ends"], file["labels"], file["ids"].tolist()
                parts = [labels[a:b] for a, b in itertools.pairwise(ends)]
                return cls(file["centres"], dict(zip(names, parts, strict=True)))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: the clusters cannot be read ({error}); delete it") from error


def cluster_corpus(
    features_of: FeaturesOf,
    training: Sequence[Source],
    held_out: Sequence[Source],
    number: int,
    cluster_minutes: float | int,
    seed: int,
) -> ClusterLabels:
    """Fit clusters to a part of the training audio, and label all audio with them.

    Args:
        features_of: Features of utterances.
        training: Audio to train on, from which the clustered part is drawn.
        held_out: Audio that is labelled, too.
        number: Number of clusters.
        cluster_minutes: Amount of audio to cluster.
        seed: Of the choice of audio and of k-means.

    Raises:
        UserError: Fewer frames than clusters, or no readable file.
    """
    sample = selection.select(Corpus("training", tuple(training)), cluster_minutes, seed).sources
    features = dict(features_of(sample))
    if not features:
        raise UserError("no file of the training audio can be used; see the warnings")
    clusters = fit_clusters(np.concatenate(list(features.values())), number, seed)
    labels = {name: clusters.label(frames) for name, frames in features.items()}
    clustered = {source.id for source in sample}
    rest = [source for source in (*training, *held_out) if source.id not in clustered]
    labels |= {name: clusters.label(frames) for name, frames in features_of(rest)}
    _log.info("%d clusters of %d utterances", number, len(labels))
    return ClusterLabels(clusters.centres, labels)


def mfcc_features(config: EncoderConfig) -> FeaturesOf:
    """MFCCs of the frames of an encoder, as the first iteration of HuBERT clusters them."""

    def features_of(sources: Sequence[Source]) -> Iterator[tuple[str, np.ndarray]]:
        waves = WaveformCache(sources, 0, config.window_samples)  # each is read once

        def features(number: int) -> np.ndarray | None:
            wave = waves[number]
            return mfcc(wave, config) if len(wave) else None

        for source, frames in zip(sources, prefetch(features, range(len(sources)))):
            if frames is not None:
                yield source.id, frames

    return features_of


def layer_features(encoder: SpeechEncoder, layer: int, config: EncoderConfig) -> FeaturesOf:
    """Hidden states of a layer, as later iterations of HuBERT cluster them.

    Args:
        encoder: The encoder whose layer is meant.
        layer: Number of the hidden state.
        config: The encoder to be trained.

    Raises:
        UserError: The two encoders' frames differ.
    """
    if not encoder.config.makes_frames_of(config):
        raise UserError(
            f"{encoder.name}: its frames are {encoder.config.frames_in_words}; those of the "
            f"encoder to be trained {config.frames_in_words}"
        )

    def features_of(sources: Sequence[Source]) -> Iterator[tuple[str, np.ndarray]]:
        corpus = Corpus("training", tuple(sources))
        for name, states in encode_corpus(
            encoder,
            corpus,
            layers=(layer,),
            on_skip=log_skipped,
        ):
            yield name, states[0]

    return features_of
