"""The frames whose phone is known, and what is known of them: MFCCs, and layers of encoders."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

import speechsim_jax as ss
from speechsim_jax.analyses.probing.classifier import Frames
from speechsim_jax.audio import batching
from speechsim_jax.audio.alignments import Alignments, aligned_corpus
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Corpus, Skipped
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.training.data.clusters import mfcc
from speechsim_jax.training.data.splits import Waves, ahead

# What aligners write where nobody speaks, or what is spoken is unknown.
SILENCES = ("SIL", "sil", "sp", "spn", "SPN", "NSN", "<sil>", "+SPN+", "+NSN+", "+NOISE+")
MFCC, STACKED = "mfcc", "mfcc_stacked"
_CONTEXT_FRAMES = 5  # on either side: 0.22 s in all

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class PhoneFrames:
    """Some frames of each utterance of a corpus, rising, and the phone of each."""

    corpus: Corpus
    places: Mapping[str, np.ndarray]
    phones: Mapping[str, tuple[str, ...]]

    def only(self, kept: Mapping[str, np.ndarray]) -> "PhoneFrames":
        """The utterances that `kept` names, and of each the frames where it is true."""
        named = [source for source in self.corpus.sources if source.id in kept]
        phones = {
            source.id: tuple(np.array(self.phones[source.id], object)[kept[source.id]])
            for source in named
        }
        return PhoneFrames(
            dataclasses.replace(self.corpus, sources=tuple(named)),
            {source.id: self.places[source.id][kept[source.id]] for source in named},
            phones,
        )


def choose(
    corpus: Corpus,
    alignments: Alignments,
    config: EncoderConfig,
    dropped: Collection[str],
    most: int,
    seed: int,
) -> PhoneFrames:
    """At most `most` frames that have a phone, as many of each speaker as there are and fit.

    A frame belongs to the segment that its centre lies in. Raises UserError for audio without
    speakers, and if no frame has a phone.
    """
    skipped: list[Skipped] = []
    corpus, segments = aligned_corpus(corpus, alignments, skipped.append, strict=False)
    if skipped:
        _log.info("left out %d utterances without an alignment", len(skipped))
    corpus = with_durations(corpus)
    if nobody := [source.id for source in corpus.sources if not source.speaker]:
        raise UserError(
            f"{nobody[0]}: its speaker is not known; expected a manifest with a column 'speaker'"
        )
    places, phones = {}, {}
    for source in corpus.sources:
        count = config.frames(round((source.seconds or 0.0) * SAMPLE_RATE_HZ))
        starts = np.arange(count) * config.hop_samples
        own = segments[source.id]
        found = own.at((starts + config.window_samples / 2) / SAMPLE_RATE_HZ)
        labels = [own.labels[number] if number >= 0 else "" for number in found]
        kept = [t for t, label in enumerate(labels) if label and label not in dropped]
        places[source.id] = np.array(kept, np.int64)
        phones[source.id] = tuple(labels[t] for t in kept)
    if not any(map(len, places.values())):
        raise UserError(f"{alignments.origin}: no frame of {corpus.origin} has a phone")
    return _fewer(PhoneFrames(corpus, places, phones), most, seed)


def _fewer(chosen: PhoneFrames, most: int, seed: int) -> PhoneFrames:
    sources = chosen.corpus.sources
    totals: dict[str, int] = {}
    for source in sources:
        totals[source.speaker] = totals.get(source.speaker, 0) + len(chosen.places[source.id])
    quota = _quota(sorted(totals.values()), most)
    if quota < 1:
        raise UserError(
            f"max_frames={most}: expected one or more for each of {len(totals)} speakers"
        )
    kept = {}
    for speaker, total in totals.items():
        own = [source for source in sources if source.speaker == speaker]
        rng = np.random.default_rng([seed, *speaker.encode("utf-8", "surrogateescape")])
        taken = np.zeros(total, bool)
        taken[rng.permutation(total)[:quota]] = True
        ends = np.cumsum([len(chosen.places[source.id]) for source in own])
        kept |= dict(zip((source.id for source in own), np.split(taken, ends[:-1])))
    return chosen.only(kept)


def _quota(totals: Sequence[int], most: int) -> int:
    """The largest q with sum min(total, q) <= most; totals rise."""
    left = most
    for place, total in enumerate(totals):
        share = left // (len(totals) - place)
        if share < total:
            return share
        left -= total
    return max(totals)


def cepstra(
    chosen: PhoneFrames, config: EncoderConfig
) -> tuple[PhoneFrames, dict[str, np.ndarray]]:
    """MFCCs of the frames, alone and with five frames on either side (ends repeated).

    The utterance's mean is taken out. Files that cannot be read are left out, and so are frames
    that a file's header promised. Raises UserError for other frames than 25 ms every 20 ms.
    """
    sources = chosen.corpus.sources
    waves = Waves(sources, 0, config.window_samples)  # each is heard once

    def rows(number: int) -> np.ndarray | None:
        wave = waves[number]
        return mfcc(wave, config) if len(wave) else None

    kept, alone, stacked = {}, [], []
    for source, found in zip(sources, ahead(rows, range(len(sources)))):
        if found is not None:
            places = chosen.places[source.id]
            kept[source.id] = places < len(found)
            places = places[kept[source.id]]
            around = places[:, None] + np.arange(-_CONTEXT_FRAMES, _CONTEXT_FRAMES + 1)
            alone.append(found[places])
            near = found[np.clip(around, 0, len(found) - 1)]
            stacked.append(near.reshape(len(places), -1))
    if not kept:
        raise UserError(f"{chosen.corpus.origin}: no file can be used; see the warnings")
    return chosen.only(kept), {MFCC: np.concatenate(alone), STACKED: np.concatenate(stacked)}


def states(
    encoder: ss.SpeechEncoder,
    chosen: PhoneFrames,
    batch_seconds: float,
    on_batch: Callable[[float], object],
) -> dict[str, np.ndarray]:
    """Each layer of an encoder in the frames, by the kind's name; `on_batch` is told seconds."""
    sources = chosen.corpus.sources
    seconds = [source.seconds or 0.0 for source in sources]
    # Whole utterances: the pieces of a cut one would lose frames between them.
    buckets = batching.plan_buckets(
        seconds,
        hop_samples=encoder.config.hop_samples,
        window_samples=encoder.config.window_samples,
        count=3,
        batch_seconds=batch_seconds,
        max_seconds=max(0.5, *seconds) + 0.1,
    )
    counts = [len(chosen.places[source.id]) for source in sources]
    start = dict(zip((source.id for source in sources), np.cumsum([0, *counts])))
    depth = encoder.config.num_hidden_layers + 1
    rows = np.empty((depth, sum(counts), encoder.config.hidden_size), np.float32)

    def refuse(skipped: Skipped) -> None:
        raise UserError(f"{skipped.id} {skipped.reason}: the audio has changed while it was read")

    least = encoder.config.window_samples
    for batch in batching.batches(chosen.corpus, buckets, min_samples=least, on_skip=refuse):
        found = np.asarray(encoder.apply(batch.samples, batch.lengths).hidden_states)
        for row, name in enumerate(batch.ids):
            places = chosen.places[name]
            rows[:, start[name] : start[name] + len(places)] = found[:, row, places]
        on_batch(batch.seconds)
    return dict(zip(kinds(encoder), rows))


def kinds(encoder: ss.SpeechEncoder) -> tuple[str, ...]:
    """The names of an encoder's layers as kinds of features."""
    return tuple(f"{encoder.name}/{l}" for l in range(encoder.config.num_hidden_layers + 1))


def gathered(chosen: PhoneFrames, rows: Mapping[str, np.ndarray]) -> Frames:
    """All that is known of the frames."""
    sources = chosen.corpus.sources
    spoken = [phone for source in sources for phone in chosen.phones[source.id]]
    speakers = [source.speaker for source in sources for _ in chosen.phones[source.id]]
    phone_names, phones = np.unique(spoken, return_inverse=True)
    speaker_names, places = np.unique(speakers, return_inverse=True)
    return Frames(
        rows=rows,
        phones=phones.astype(np.int64),
        speakers=places.astype(np.int64),
        phone_names=tuple(map(str, phone_names)),
        speaker_names=tuple(map(str, speaker_names)),
    )
