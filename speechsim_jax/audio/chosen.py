"""Which audio a comparison reads: the corpus, its alignments, and the seeded choice."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from speechsim_jax.audio import alignments, selection
from speechsim_jax.audio.alignments import Segments
from speechsim_jax.audio.corpus import Corpus, Skipped, check_any_exists
from speechsim_jax.audio.open_corpus import AudioInput, open_as, with_durations
from speechsim_jax.settings import Settings


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenAudio:
    """The audio of a comparison.

    Attributes:
      corpus: the utterances that are compared, with their durations.
      attention_corpus: those whose attention is compared.
      segments: of each utterance; None without alignments.
      skipped: utterances left out before anything was decoded.
      alignments: for the result, which alignments these are; empty without.
    """

    corpus: Corpus
    attention_corpus: Corpus
    segments: Mapping[str, Segments] | None = None
    skipped: tuple[Skipped, ...] = ()
    alignments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def choose(audio: AudioInput, settings: Settings) -> ChosenAudio:
    """Open the audio and choose from it as the settings say; nothing is decoded.

    Raises:
      UserError: no audio, or alignments that do not fit it.
    """
    corpus = open_as(audio, settings)
    check_any_exists(corpus)
    segments, skipped, record = None, [], {}
    if settings.alignments is not None:
        aligned = alignments.alignments_of(
            corpus, settings.alignments, settings.alignment_tier, settings.layout
        )
        alignments.check_labels(aligned, settings.drop_labels)
        corpus, segments = alignments.aligned_corpus(
            corpus, aligned, skipped.append, settings.strict
        )
        record = {"alignments": {"tier": aligned.tier, "sha256": aligned.sha256}}
        if aligned.notes:
            facts = {**corpus.facts, "alignments": dict(aligned.notes)}
            corpus = dataclasses.replace(corpus, facts=facts)
    if settings.max_minutes is not None:
        corpus = selection.select(corpus, settings.max_minutes, settings.seed)
    corpus = with_durations(corpus)
    if segments is not None:
        corpus = alignments.without_misfits(corpus, segments, skipped.append, settings.strict)
    attention_corpus = corpus
    if settings.attention_max_seconds is not None:
        minutes = settings.attention_max_seconds / 60
        attention_corpus = selection.select(corpus, minutes, settings.seed)
    return ChosenAudio(corpus, attention_corpus, segments, tuple(skipped), record)
