"""Labels of a corpus as tracks: of alignments, speakers, and columns of manifests.

| label | frames have |
|---|---|
| NAME:ALIGNMENTS, NAME:ALIGNMENTS:TIER | the label of the segment that their centre lies in |
| speaker | who speaks |
| gender | of the speaker, by a manifest or the published tables of a corpus |
| COLUMN | what the manifest's column, or the dataset's, says of the utterance |

Classes and their order depend on the whole corpus only, so every shard has the same.
"""

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32

from speechsim_jax.audio.alignments import (
    AUTO,
    Alignments,
    MissingTier,
    Segments,
    aligned_corpus,
    alignments_of,
    without_misfits,
)
from speechsim_jax.audio.columns import GENDER
from speechsim_jax.audio.corpus import Corpus, Skipped, Source
from speechsim_jax.audio.corpus_layouts import recognise
from speechsim_jax.audio.label_classes import classes_of
from speechsim_jax.audio.paths import looked_up
from speechsim_jax.audio.tracks import Piece, Track
from speechsim_jax.errors import UserError, counted, did_you_mean

SPEAKER = "speaker"
_TIERS_OF = {"phone": ("phn",), "word": ("wrd",)}  # as TIMIT calls them

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class _Labels:
    """What all label tracks have.

    Attributes:
      name: of the track.
      classes: those that cover most audio first.
      record: which labels and classes.
    """

    name: str
    classes: tuple[str, ...]
    record: dict[str, Any]

    @property
    def width(self) -> int:
        """How many classes."""
        return len(self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentLabels(_Labels):
    """The labels of segments, as phones.

    Attributes:
      segments: of every utterance, with the number of each segment's class; None without.
    """

    segments: Mapping[str, tuple[Segments, Int32[np.ndarray, " _segment"]] | None]

    def rows(
        self, piece: Piece, centres: Float64[np.ndarray, " frame"]
    ) -> Int32[np.ndarray, " frame"]:
        """The class of the segment that each centre lies in, -1 for none.

        Args:
          piece: of an utterance of the corpus.
          centres: of the frames, in seconds from the start of the piece.
        """
        known = self.segments[piece.utterance]
        if known is None:
            return np.full(len(centres), -1, np.int32)
        segments, numbers = known
        index = segments.at(piece.start_seconds + centres)
        return np.where(index >= 0, numbers[index], np.int32(-1))


@dataclasses.dataclass(frozen=True, eq=False)
class UtteranceLabels(_Labels):
    """One label for all frames of an utterance, as its speaker.

    Attributes:
      numbers: of the class of every utterance, -1 for none.
    """

    numbers: Mapping[str, int]

    def rows(
        self, piece: Piece, centres: Float64[np.ndarray, " frame"]
    ) -> Int32[np.ndarray, " frame"]:
        """The number of the utterance's class, for every frame."""
        return np.full(len(centres), self.numbers[piece.utterance], np.int32)


def label_tracks(
    specs: Sequence[str],
    corpus: Corpus,
    min_share: float | int = 0.0,
    layout: str | None = None,
    strict: bool = False,
) -> tuple[Track, ...]:
    """The label tracks of a corpus.

    Args:
      specs: each `NAME:ALIGNMENTS` or `NAME:ALIGNMENTS:TIER`, where ALIGNMENTS is a file, a folder
        or "auto"; "speaker", "gender", or a column. Of several tiers and none named, that counts
        which is called NAME or NAMEs, or for phone and word phn and wrd.
      corpus: all utterances of the comparison, with durations.
      min_share: labels of a smaller share of the labelled time are no label.
      layout: name of the only layout that "auto" and "gender" know; None for any.
      strict: whether alignments that do not fit their audio are an error; else they count as none.

    Raises:
      UserError: a label that nobody has, or that is there twice; alignments that cannot be read or
        are of no utterance; more than 2,000 classes.
    """
    tracks: dict[str, Track] = {}
    for spec in specs:
        name, colon, where = spec.strip().partition(":")
        if not name or (colon and not where):
            raise UserError(
                f"labels: {spec!r}; expected NAME:ALIGNMENTS, NAME:ALIGNMENTS:TIER, speaker, "
                "gender or a column"
            )
        if name in tracks:
            raise UserError(f"labels: {name} is there twice; give each another name")
        if colon:
            alignments = _alignments(name, where, corpus, layout)
            tracks[name] = _segment_labels(name, alignments, corpus, min_share, strict)
        else:
            tracks[name] = _utterance_labels(name, corpus, min_share, layout)
    return tuple(tracks.values())


def segments_of(
    specs: Sequence[str], corpus: Corpus, layout: str | None = None
) -> dict[str, Segments]:
    """The segments of the first label that is of alignments, as phones, by utterance.

    Args:
      specs: as in `label_tracks`.
      corpus: the utterances.
      layout: as in `label_tracks`.
    """
    for spec in specs:
        name, colon, where = spec.strip().partition(":")
        if colon:
            alignments = _alignments(name, where, corpus, layout)
            return aligned_corpus(corpus, alignments, lambda _: None, strict=False)[1]
    return {}


def _alignments(name: str, where: str, corpus: Corpus, layout: str | None) -> Alignments:
    """The alignments that a label names, with or without a tier."""
    tier = None
    if not _exists(where):
        before, colon, after = where.rpartition(":")
        if colon and _exists(before):
            where, tier = before, after
    try:
        return alignments_of(
            corpus, where, tier, layout, (name, f"{name}s", *_TIERS_OF.get(name, ()))
        )
    except MissingTier as error:
        raise UserError(
            f"labels: {where} has the tiers {', '.join(error.tiers)}; choose one: "
            f"{name}:{where}:{error.tiers[0]}"
        ) from None


def _exists(where: str) -> bool:
    return where == AUTO or looked_up(where, "labels").exists()


def _segment_labels(
    name: str, alignments: Alignments, corpus: Corpus, min_share: float | int, strict: bool
) -> SegmentLabels:
    without: list[Skipped] = []
    misfits: list[Skipped] = []
    aligned, segments = aligned_corpus(corpus, alignments, without.append, strict=False)
    aligned = without_misfits(aligned, segments, misfits.append, strict)
    for skipped, level in ((without, logging.INFO), (misfits, logging.WARNING)):
        if skipped:
            log.log(
                level, "labels %s: the frames of %s have none, the first: %s %s", name,
                counted(len(skipped), "utterance"), skipped[0].id, skipped[0].reason,
            )  # fmt: skip
    # Whole microseconds: sums do not depend on the order of utterances.
    amounts: collections.Counter[str] = collections.Counter()
    for source in aligned.sources:
        known = segments[source.id]
        lengths = np.rint(1e6 * (known.ends - known.starts)).astype(np.int64)
        for label, length in zip(known.labels, lengths.tolist()):
            amounts[label] += length
    classes = classes_of(name, +amounts, min_share)
    position = {label: number for number, label in enumerate(classes)}
    numbered: dict[str, Any] = dict.fromkeys(source.id for source in corpus.sources)
    for source in aligned.sources:
        known = segments[source.id]
        numbers = [position.get(label, -1) for label in known.labels]
        numbered[source.id] = known, np.array(numbers, np.int32)
    record = {
        "kind": "alignments",
        "tier": alignments.tier,
        "sha256": alignments.sha256,
        "utterances": len(aligned.sources),
        **_facts(classes, min_share),
    }
    return SegmentLabels(name, classes, record, numbered)


def _utterance_labels(
    name: str, corpus: Corpus, min_share: float | int, layout: str | None
) -> UtteranceLabels:
    labels = _values(name, corpus, layout)
    if missing := [id_ for id_, label in labels.items() if not label]:
        log.info(
            "labels %s: not known of %s, the first: %s",
            name, counted(len(missing), "utterance"), missing[0],
        )  # fmt: skip
    amounts: collections.Counter[str] = collections.Counter()
    for source in corpus.sources:
        if labels[source.id] and not source.unusable:
            amounts[labels[source.id]] += round(1e6 * (source.seconds or 1.0))
    classes = classes_of(name, amounts, min_share)
    position = {label: number for number, label in enumerate(classes)}
    numbers = {id_: position.get(label, -1) for id_, label in labels.items()}
    record = {
        "kind": name if name in (SPEAKER, GENDER) else "column",
        "sha256": _digest(sorted(labels.items())),
        "utterances": len(labels) - len(missing),
        **_facts(classes, min_share),
    }
    return UtteranceLabels(name, classes, record, numbers)


def _values(name: str, corpus: Corpus, layout: str | None) -> dict[str, str]:
    """What each utterance has of a label, "" for nothing; raises UserError if none has any."""
    values = _known(name, corpus.sources, layout)
    if not any(values.values()):
        columns = dict.fromkeys(column for source in corpus.sources for column in source.columns)
        # As people write them: "Native Language" for native_language does not differ.
        alike = [column for column in columns if _plain(column) == _plain(name)]
        if len(alike) == 1:
            return _known(alike[0], corpus.sources, layout)
        known = [
            some
            for some in dict.fromkeys((SPEAKER, GENDER, *columns))
            if any(_known(some, corpus.sources, layout).values())
        ]
        what = f"there are: {', '.join(known)}" if known else "it has no columns"
        raise UserError(
            f"labels: no utterance of {corpus.origin} has a {name!r}{did_you_mean(name, known)}; "
            f"{what}; phones and words are of alignments, as in phone:ALIGNMENTS"
        )
    return values


def _plain(name: str) -> str:
    return name.casefold().replace(" ", "_").replace("-", "_")


def _known(name: str, sources: Sequence[Source], layout: str | None) -> dict[str, str]:
    """A label of each utterance by id."""
    if name == SPEAKER:
        return {source.id: source.speaker for source in sources}
    if name == GENDER:
        return {source.id: _gender(source, layout) for source in sources}
    return {source.id: source.columns.get(name, "") for source in sources}


def _gender(source: Source, layout: str | None) -> str:
    """By the manifest, else by the tables of the corpus that the path is of."""
    if (known := source.columns.get(GENDER)) or source.path is None or source.unusable:
        return known or ""
    path = source.path.absolute()
    recognised = recognise(path, layout)
    if recognised.layout is None or recognised.layout.gender is None or not recognised.speaker:
        return ""
    return recognised.layout.gender(path, recognised.speaker)


def _facts(classes: tuple[str, ...], min_share: float | int) -> dict[str, Any]:
    return {"min_share": min_share, "classes_sha256": _digest(classes)}


def _digest(value: Any) -> str:
    """SHA-256 of a value of JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
