"""Frames with a known phone, and their features: MFCCs and the layers of encoders."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from speechsim_jax.analyses.probing.classifier import LabelledFrames
from speechsim_jax.audio.alignments import Alignments, aligned_corpus, without_misfits
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Corpus, Skipped, Source
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.audio.selection import log_unknown_speakers
from speechsim_jax.errors import UserError, counted
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.external import Encoder
from speechsim_jax.pipeline.encode_corpus import encode_corpus
from speechsim_jax.training.data import cluster_labels
from speechsim_jax.training.data.splits import speaker_of

# Labels that aligners write for silence, noise and unknown speech.
SILENCES = ("SIL", "sil", "sp", "spn", "SPN", "NSN", "<sil>", "+SPN+", "+NSN+", "+NOISE+")
MFCC, STACKED = "mfcc", "mfcc_stacked"
_CONTEXT_FRAMES = 5  # on either side: 0.22 s in all

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class PhoneFrames:
    """A choice of frames of a corpus, with the phone of each.

    Attributes:
        corpus: The utterances.
        frames: Indices of the chosen frames by utterance id, ascending.
        phones: The phone of each chosen frame by utterance id.
    """

    corpus: Corpus
    frames: Mapping[str, np.ndarray]
    phones: Mapping[str, tuple[str, ...]]

    def select(self, masks: Mapping[str, np.ndarray]) -> "PhoneFrames":
        """The utterances that `masks` names, and of each the frames where its mask is true."""
        sources = [source for source in self.corpus.sources if source.id in masks]
        phones = {
            source.id: tuple(np.array(self.phones[source.id], object)[masks[source.id]])
            for source in sources
        }
        return PhoneFrames(
            dataclasses.replace(self.corpus, sources=tuple(sources)),
            {source.id: self.frames[source.id][masks[source.id]] for source in sources},
            phones,
        )


def choose_frames(
    corpus: Corpus,
    alignments: Alignments,
    config: EncoderConfig,
    dropped: Collection[str],
    max_frames: int,
    seed: int,
) -> PhoneFrames:
    """Choose frames that have a phone, balanced over speakers.

    A frame has the label of the segment that its centre lies in.

    Args:
        corpus: Utterances; those without an alignment are left out. One of unknown speaker counts
            as a speaker, which is logged.
        alignments: Phone segments.
        config: The encoder whose frames are meant.
        dropped: Labels that are not phones, such as silence.
        max_frames: At most so many frames in all; speakers get equal numbers as far as they have
            them.
        seed: Of the choice within a speaker.

    Raises:
        UserError: No frame with a phone, or `max_frames` below the number of speakers.
    """
    skipped: list[Skipped] = []
    corpus, segments = aligned_corpus(corpus, alignments, skipped.append, strict=False)
    corpus = without_misfits(with_durations(corpus), segments, skipped.append, strict=False)
    if skipped:
        _log.info(
            "left out %s without an alignment that can be used, the first: %s %s",
            counted(len(skipped), "utterance"), skipped[0].id, skipped[0].reason,
        )  # fmt: skip
    log_unknown_speakers(corpus.sources, "the split of probes into training and test")
    frames, phones = {}, {}
    for source in corpus.sources:
        count = config.frames(round((source.seconds or 0.0) * SAMPLE_RATE_HZ))
        aligned = segments[source.id]
        numbers = aligned.at(config.frame_centres_seconds(count))
        labels = [aligned.labels[number] if number >= 0 else "" for number in numbers]
        chosen = [t for t, label in enumerate(labels) if label and label not in dropped]
        frames[source.id] = np.array(chosen, np.int64)
        phones[source.id] = tuple(labels[t] for t in chosen)
    if not any(map(len, frames.values())):
        raise UserError(f"{alignments.origin}: no frame of {corpus.origin} has a phone")
    return _balanced(PhoneFrames(corpus, frames, phones), max_frames, seed)


def units_of(sources: Sequence[Source]) -> str:
    """What probes are tested over: "speakers"; "utterances", where none is known; or both."""
    known = [bool(source.speaker) for source in sources]
    if all(known):
        return "speakers"
    return "speakers and utterances of unknown speaker" if any(known) else "utterances"


def _balanced(available: PhoneFrames, max_frames: int, seed: int) -> PhoneFrames:
    """A seeded choice of at most `max_frames` frames, equally many of each speaker if possible."""
    sources = available.corpus.sources
    totals: dict[str, int] = {}
    for source in sources:
        speaker = speaker_of(source)
        totals[speaker] = totals.get(speaker, 0) + len(available.frames[source.id])
    quota = _quota(sorted(totals.values()), max_frames)
    if quota < 1:
        raise UserError(
            f"max_frames={max_frames}: expected one or more for each of {len(totals)} "
            f"{units_of(sources)}"
        )
    masks = {}
    for speaker, total in totals.items():
        of_speaker = [source for source in sources if speaker_of(source) == speaker]
        rng = np.random.default_rng([seed, *speaker.encode("utf-8", "surrogateescape")])
        chosen = np.zeros(total, bool)
        chosen[rng.permutation(total)[:quota]] = True
        ends = np.cumsum([len(available.frames[source.id]) for source in of_speaker])
        masks |= dict(zip((source.id for source in of_speaker), np.split(chosen, ends[:-1])))
    return available.select(masks)


def _quota(totals: Sequence[int], most: int) -> int:
    """The largest q with sum min(total, q) <= most; totals ascend."""
    left = most
    for index, total in enumerate(totals):
        share = left // (len(totals) - index)
        if share < total:
            return share
        left -= total
    return max(totals)


def mfcc_features(
    chosen: PhoneFrames, config: EncoderConfig
) -> tuple[PhoneFrames, dict[str, np.ndarray]]:
    """MFCCs of the chosen frames, alone and stacked with five frames on either side.

    The mean of each utterance is subtracted; at the ends of an utterance its first and last frame
    are repeated.

    Args:
        chosen: Frames of utterances.
        config: The encoder whose frames are meant: 25 ms every 20 ms.

    Returns:
        The frames that exist (without files that cannot be read, and without frames that a file's
        header stated but the file lacks), and their features by kind, `MFCC` and `STACKED`.

    Raises:
        UserError: Frames of another size, or no readable file.
    """
    masks, alone, stacked = {}, [], []
    for name, coefficients in cluster_labels.mfcc_features(config)(chosen.corpus.sources):
        frames = chosen.frames[name]
        masks[name] = frames < len(coefficients)
        frames = frames[masks[name]]
        context = frames[:, None] + np.arange(-_CONTEXT_FRAMES, _CONTEXT_FRAMES + 1)
        alone.append(coefficients[frames])
        neighbours = coefficients[np.clip(context, 0, len(coefficients) - 1)]
        # Also without frames, of an utterance of which none was chosen.
        stacked.append(neighbours.reshape(len(frames), context.shape[1] * coefficients.shape[1]))
    if not masks:
        raise UserError(f"{chosen.corpus.origin}: no file can be used; see the warnings")
    return chosen.select(masks), {MFCC: np.concatenate(alone), STACKED: np.concatenate(stacked)}


def layer_features(
    encoder: Encoder,
    chosen: PhoneFrames,
    batch_seconds: float,
    on_batch: Callable[[float], object],
) -> dict[str, np.ndarray]:
    """Hidden states of every layer in the chosen frames.

    Args:
        encoder: The encoder.
        chosen: Frames of utterances that can all be read.
        batch_seconds: Audio in a batch, padding included.
        on_batch: Called with the seconds of speech in each batch.

    Returns:
        [frame, neuron] by `layer_names`.

    Raises:
        UserError: A file that can no longer be read.
    """
    sources = chosen.corpus.sources
    counts = [len(chosen.frames[source.id]) for source in sources]
    start = dict(zip((source.id for source in sources), np.cumsum([0, *counts])))
    depth = encoder.config.num_hidden_layers + 1
    features = np.empty((depth, sum(counts), encoder.config.hidden_size), np.float32)

    def refuse(skipped: Skipped) -> None:
        raise UserError(f"{skipped.id} {skipped.reason}: the audio has changed while it was read")

    for name, states in encode_corpus(
        encoder,
        chosen.corpus,
        batch_seconds=batch_seconds,
        on_skip=refuse,
        on_batch=on_batch,
    ):
        frames = chosen.frames[name]
        features[:, start[name] : start[name] + len(frames)] = states[:, frames]
    return dict(zip(layer_names(encoder), features))


def layer_names(encoder: Encoder) -> tuple[str, ...]:
    """The names of an encoder's layers as kinds of features."""
    return tuple(f"{encoder.name}/{l}" for l in range(encoder.config.num_hidden_layers + 1))


def labelled_frames(chosen: PhoneFrames, features: Mapping[str, np.ndarray]) -> LabelledFrames:
    """Features with the phone and speaker (or utterance, see `units_of`) of each chosen frame.

    Args:
        chosen: Frames of utterances.
        features: [frame, neuron] by kind, frames in the order of `chosen`.
    """
    sources = chosen.corpus.sources
    phone_of = [phone for source in sources for phone in chosen.phones[source.id]]
    spoken_by = [speaker_of(source) for source in sources for _ in chosen.phones[source.id]]
    phone_names, phones = np.unique(phone_of, return_inverse=True)
    speaker_names, speakers = np.unique(spoken_by, return_inverse=True)
    return LabelledFrames(
        features=features,
        phones=phones.astype(np.int64),
        speakers=speakers.astype(np.int64),
        phone_names=tuple(map(str, phone_names)),
        speaker_names=tuple(map(str, speaker_names)),
    )
