"""The units of a corpus: made once, of MFCCs or of a layer of an encoder, and kept in a file."""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int32

from speechsim_jax.audio import batching, selection
from speechsim_jax.audio.corpus import Corpus, Source
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.training.data.clusters import Clusters, cluster, hidden_rows, mfcc
from speechsim_jax.training.data.splits import Waves, ahead

_log = logging.getLogger(__name__)

RowsOf = Callable[[Sequence[Source]], Iterable[tuple[str, Float32[np.ndarray, "frame number"]]]]
"""The id of each utterance, and what is clustered: a row a frame of the encoder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The unit of every frame by utterance, and the centres that they come from."""

    centres: Float32[np.ndarray, "unit number"]
    of: dict[str, Int32[np.ndarray, " _frame"]]

    def counts(self, ids: Iterable[str]) -> Int[np.ndarray, " unit"]:
        """How often each unit occurs in these utterances."""
        return Clusters(self.centres).counts(self.of[name] for name in ids if name in self.of)

    def digest(self) -> str:
        """The SHA-256 of all of it in hexadecimal."""
        total = hashlib.sha256(np.ascontiguousarray(self.centres).tobytes())
        for name in sorted(self.of):
            total.update(f"\0{name}\0".encode("utf-8", "surrogateescape"))
            total.update(self.of[name].tobytes())
        return total.hexdigest()

    def save(self, path: Path) -> None:
        """Write them as .npz, the file complete or not there. Raises UserError."""
        names = list(self.of)
        ends = np.cumsum([0, *(len(self.of[name]) for name in names)])
        labels = np.concatenate([self.of[name] for name in names])
        half = path.with_suffix(".part.npz")
        try:
            np.savez(half, centres=self.centres, labels=labels, ends=ends, ids=np.array(names))
            half.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error})") from error

    @classmethod
    def load(cls, path: Path) -> "Units":
        """Read them back. Raises UserError if the file cannot be read as units."""
        try:
            with np.load(path, allow_pickle=False) as file:
                ends, labels, names = file["ends"], file["labels"], file["ids"].tolist()
                parts = [labels[a:b] for a, b in itertools.pairwise(ends)]
                return cls(file["centres"], dict(zip(names, parts, strict=True)))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: the units cannot be read ({error}); delete it") from error


def make_units(
    rows_of: RowsOf,
    training: Sequence[Source],
    held_out: Sequence[Source],
    number: int,
    cluster_minutes: float | int,
    seed: int,
) -> Units:
    """Cluster `cluster_minutes` of the training audio, and label all audio with the centres.

    Raises UserError for fewer frames than units.
    """
    sample = selection.select(Corpus("training", tuple(training)), cluster_minutes, seed).sources
    rows = dict(rows_of(sample))
    if not rows:
        raise UserError("no file of the training audio can be used; see the warnings")
    clusters = cluster(np.concatenate(list(rows.values())), number, seed)
    found = {name: clusters.label(own) for name, own in rows.items()}
    clustered = {source.id for source in sample}
    rest = [source for source in (*training, *held_out) if source.id not in clustered]
    found |= {name: clusters.label(own) for name, own in rows_of(rest)}
    _log.info("%d units of %d utterances", number, len(found))
    return Units(clusters.centres, found)


def of_mfcc(config: EncoderConfig) -> RowsOf:
    """Rows of MFCCs, as the first iteration of HuBERT clusters them."""

    def rows_of(sources: Sequence[Source]) -> Iterator[tuple[str, np.ndarray]]:
        waves = Waves(sources, 0, config.window_samples)  # each is heard once

        def rows(number: int) -> np.ndarray | None:
            wave = waves[number]
            return mfcc(wave, config) if len(wave) else None

        for source, found in zip(sources, ahead(rows, range(len(sources)))):
            if found is not None:
                yield source.id, found

    return rows_of


def of_layer(encoder: SpeechEncoder, layer: int, config: EncoderConfig) -> RowsOf:
    """Rows of hidden states, as later iterations cluster them.

    Raises UserError if the frames of `encoder` are not those of `config`.
    """
    frames = [(c.window_samples, c.hop_samples) for c in (encoder.config, config)]
    if frames[0] != frames[1]:
        raise UserError(
            f"{encoder.name}: its frames are {frames[0][0]} samples every {frames[0][1]}, those of "
            f"the encoder to be trained {frames[1][0]} every {frames[1][1]}"
        )

    def rows_of(sources: Sequence[Source]) -> Iterator[tuple[str, np.ndarray]]:
        if not sources:
            return
        seconds = [source.seconds or 0.0 for source in sources]
        # Whole utterances: the pieces of a cut one would lose frames between them.
        longest = max(0.5, *seconds) + 0.1
        buckets = batching.plan_buckets(
            seconds,
            hop_samples=config.hop_samples,
            window_samples=config.window_samples,
            max_seconds=longest,
        )
        batches = batching.batches(
            Corpus("training", tuple(sources)),
            buckets,
            min_samples=config.window_samples,
            on_skip=lambda skipped: _log.warning("skipped %s: %s", skipped.id, skipped.reason),
        )
        yield from hidden_rows(encoder, batches, layer)

    return rows_of
