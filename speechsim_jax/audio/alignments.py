"""Alignments: labelled segments of utterances, from TSV, Praat TextGrid or NIST CTM files."""

import array
import csv
import dataclasses
import hashlib
import io
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from speechsim_jax.audio.corpus import AUDIO_SUFFIXES, Corpus, Skipped
from speechsim_jax.errors import UserError

# Segments may overlap by this much, as start + duration is rounded.
_OVERLAP_SECONDS = 1e-4

_COLUMNS = ("path", "start", "end", "label")  # of a TSV file


class MissingTier(UserError):
    """Several tiers, and no choice among them."""


class _Segment(NamedTuple):
    """One labelled stretch of an utterance; an empty label marks a gap."""

    utterance: str
    tier: str
    start_seconds: float
    end_seconds: float
    label: str


_Reader = Callable[[bytes, Path, str], Iterator[_Segment]]


@dataclass(frozen=True)
class _SegmentList:
    """The segments of one utterance and tier in the order of the file, compactly stored."""

    starts: array.array = field(default_factory=lambda: array.array("d"))
    ends: array.array = field(default_factory=lambda: array.array("d"))
    labels: list[str] = field(default_factory=list)

    def add(self, segment: _Segment) -> None:
        if segment.label:
            self.starts.append(segment.start_seconds)
            self.ends.append(segment.end_seconds)
            self.labels.append(sys.intern(segment.label))


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of one utterance, sorted by start; a segment is [start, end).

    Attributes:
        starts: In seconds.
        ends: In seconds.
        labels: Of each segment.
    """

    starts: Float64[np.ndarray, " segment"]
    ends: Float64[np.ndarray, " segment"]
    labels: tuple[str, ...]

    def at(self, seconds: Float64[np.ndarray, " time"]) -> Int64[np.ndarray, " time"]:
        """The index of the segment that contains each time; -1 where none does."""
        index = np.searchsorted(self.starts, seconds, side="right") - 1
        inside = (index >= 0) & (seconds < self.ends[np.maximum(index, 0)])
        return np.where(inside, index, -1)


@dataclass(frozen=True)
class Alignments:
    """One tier of a file or folder.

    Attributes:
        origin: The file or folder.
        tier: Its name; empty in a format without names.
        sha256: Of the contents of all files.
        utterances: Segments by utterance.
    """

    origin: str
    tier: str
    sha256: str
    utterances: Mapping[str, Segments]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, sorted."""
        return tuple(sorted({label for s in self.utterances.values() for label in s.labels}))

    def match(self, ids: Iterable[str]) -> dict[str, Segments]:
        """The segments of those of these utterances that have any, by id.

        Names are compared without the suffixes of audio files. An id without an equal name is
        matched by its last part (`b` of `a/b.flac`), where that is unique on both sides.
        """
        aligned = {_without_suffix(name): segments for name, segments in self.utterances.items()}
        aligned_stems = _unique_stems(aligned)
        names = {id_: _without_suffix(id_) for id_ in ids}
        stems = _unique_stems(names.values())
        matches = {}
        for id_, name in names.items():
            stem = PurePosixPath(name).name
            if name in aligned:
                matches[id_] = aligned[name]
            elif stem in stems and stem in aligned_stems:
                matches[id_] = aligned[aligned_stems[stem]]
        return matches


def read_alignments(path: str | Path, tier: str | None = None) -> Alignments:
    """Read a .tsv, .ctm or .TextGrid file, or a folder of TextGrid files.

    TSV: a header line with the columns path, start, end, label and, if there is more than one tier,
    tier; times in seconds, no quoting. CTM: file, channel, start, duration, label[, confidence] on
    a line; `;;` starts a comment. TextGrid: Praat's text files, long or short, interval tiers only,
    UTF-8 or UTF-16; the utterance is the file's name, within a folder its path. An empty label
    marks a gap, not a segment.

    Args:
        path: The file or folder.
        tier: Which tier; may be left out where there is only one.

    Returns:
        The segments of the tier, of every utterance that has any.

    Raises:
        UserError: a malformed file, with its line; segments of one utterance that overlap; an
            unknown tier, or none where there are several.
    """
    root = Path(path).expanduser()
    files = sorted(_text_grids_below(root)) if root.is_dir() else [root]
    if not files:
        raise UserError(f"alignments: no .TextGrid file below {root}")
    digest = hashlib.sha256()
    tiers: dict[str, dict[str, _SegmentList]] = {}
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"alignments: cannot read {file}: {error.strerror}") from error
        digest.update(data)
        name = file.relative_to(root) if root.is_dir() else Path(file.name)
        for segment in _reader(file)(data, file, name.with_suffix("").as_posix()):
            utterances = tiers.setdefault(segment.tier, {})
            utterances.setdefault(segment.utterance, _SegmentList()).add(segment)
    known = ", ".join(name or "(unnamed)" for name in tiers) or "none"
    if tier is None and len(tiers) > 1:
        raise MissingTier(f"alignments: {root} has the tiers {known}; choose one (alignment_tier)")
    if tier is not None and tier not in tiers:
        raise UserError(f"alignments: {root} has no tier {tier!r}; its tiers: {known}")
    chosen = next(iter(tiers), "") if tier is None else tier
    lists = {name: list_ for name, list_ in tiers.get(chosen, {}).items() if list_.labels}
    if not lists:
        raise UserError(f"alignments: {root} has no labelled segment")
    return Alignments(
        origin=str(root),
        tier=chosen,
        sha256=digest.hexdigest(),
        utterances={name: _sorted(list_, name, root) for name, list_ in lists.items()},
    )


def _reader(file: Path) -> _Reader:
    if file.suffix.lower() not in _READERS:
        raise UserError(
            f"alignments: {file} has an unknown suffix; expected .tsv, .ctm, .TextGrid or a folder "
            "of TextGrid files"
        )
    return _READERS[file.suffix.lower()]


def _text_grids_below(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.suffix.lower() == ".textgrid")


def _sorted(segments: _SegmentList, name: str, root: Path) -> Segments:
    """One utterance's segments by start; raises UserError if two overlap."""
    starts, ends = np.array(segments.starts), np.array(segments.ends)
    order = np.lexsort([ends, starts])
    starts, ends = starts[order], ends[order]
    labels = tuple(segments.labels[index] for index in order)
    overlapping = np.flatnonzero(starts[1:] < ends[:-1] - _OVERLAP_SECONDS)
    if overlapping.size:
        at = overlapping[0]
        raise UserError(
            f"alignments: {root}: in {name!r}, {labels[at + 1]!r} starts at {starts[at + 1]:g} s, "
            f"before {labels[at]!r} ends at {ends[at]:g} s; segments may not overlap"
        )
    return Segments(starts, ends, labels)


def _segment(
    utterance: str, tier: str, start: str, end: str, label: str, where: str, is_end: bool = True
) -> _Segment:
    """A segment from the texts of a file; `end` is a duration unless `is_end`."""
    try:
        first, last = float(start), float(end)
    except ValueError:
        raise UserError(f"{where}: times {start!r}, {end!r}; expected numbers of seconds") from None
    last = last if is_end else first + last
    if not 0 <= first <= last < math.inf:
        raise UserError(f"{where}: from {first:g} s to {last:g} s; expected 0 <= start <= end")
    return _Segment(utterance, tier, first, last, label.strip())


def _read_tsv(data: bytes, file: Path, _: str) -> Iterator[_Segment]:
    lines = io.StringIO(_text(data, file), newline="")
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        columns = reader.fieldnames or ()
        if missing := [name for name in _COLUMNS if name not in columns]:
            raise UserError(
                f"alignments: {file} has no column {missing[0]!r}, only {list(columns)}; expected "
                f"{', '.join(_COLUMNS)} and, if there are several tiers, tier"
            )
        for row in reader:
            where = f"alignments: {file} line {reader.line_num}"
            if None in row or None in row.values() or not row["path"]:
                raise UserError(f"{where}: expected {len(columns)} fields and a path")
            yield _segment(
                row["path"], row.get("tier", ""), row["start"], row["end"], row["label"], where
            )
    except csv.Error as error:
        raise UserError(f"alignments: {file} line {reader.line_num}: {error}") from error


def _read_ctm(data: bytes, file: Path, _: str) -> Iterator[_Segment]:
    channels: dict[str, str] = {}
    for number, line in enumerate(_text(data, file).split("\n"), 1):
        words = line.split(";;")[0].split()
        if not words:
            continue
        where = f"alignments: {file} line {number}"
        if len(words) not in (5, 6):
            raise UserError(
                f"{where}: {len(words)} fields; expected file, channel, start, duration, label and "
                "perhaps confidence"
            )
        name, channel, start, duration, label = words[:5]
        if channels.setdefault(name, channel) != channel:
            raise UserError(
                f"{where}: {name} has the channels {channels[name]} and {channel}; expected one"
            )
        yield _segment(name, "", start, duration, label, where, is_end=False)


# Praat reads only free-standing quoted texts, flags and numbers, and nothing after "!".
_VALUE = re.compile(
    r"""(?<!\S) (?: "(?P<text>(?:[^"]|"")*)" | <(?P<flag>\w+)>
    | (?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?) | (?P<comment>!.*) ) (?!\S)""",
    re.VERBOSE,
)


def _read_text_grid(data: bytes, file: Path, name: str) -> Iterator[_Segment]:
    where = f"alignments: {file}"
    if data.startswith(b"ooBinaryFile"):
        raise UserError(f"{where} is a binary TextGrid; save it as a text file in Praat")
    values = iter([m for m in _VALUE.finditer(_text(data, file)) if m.lastgroup != "comment"])

    def take(kind: str) -> str:
        match = next(values, None)
        if match is None or match.lastgroup != kind:
            actual = "its end" if match is None else repr(match.group())
            raise UserError(f"{where} is not a valid TextGrid: expected a {kind}, found {actual}")
        return match[kind].replace('""', '"')

    def count() -> int:
        number = take("number")
        if not number.isdigit():
            raise UserError(f"{where} is not a valid TextGrid: expected a count, found {number}")
        return int(number)

    def skip_times() -> None:
        for _ in ("xmin", "xmax"):
            take("number")

    if take("text") != "ooTextFile" or take("text") != "TextGrid":
        raise UserError(f"{where} is not a TextGrid; expected 'ooTextFile' and 'TextGrid'")
    skip_times()
    for _ in range(count() if take("flag") == "exists" else 0):
        kind, tier = take("text"), take("text")
        skip_times()
        for index in range(1, count() + 1):
            start = take("number")
            if kind == "IntervalTier":
                at = f"{where} tier {tier!r} interval {index}"
                yield _segment(name, tier, start, take("number"), take("text"), at)
            else:  # a point of a TextTier
                take("text")


# By suffix; each takes the content, the file, and the name of the utterance if the file is of one.
_READERS: dict[str, _Reader] = {
    ".tsv": _read_tsv,
    ".ctm": _read_ctm,
    ".textgrid": _read_text_grid,
}


def _text(data: bytes, file: Path) -> str:
    """Decode UTF-8, or UTF-16 if there is a byte order mark."""
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"alignments: cannot read {file} as UTF-8 or UTF-16: {error}") from error


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in AUDIO_SUFFIXES else str(path)


def _unique_stems(names: Iterable[str]) -> dict[str, str]:
    """The names by their last part, where only one name has it."""
    names = list(names)
    uses = Counter(PurePosixPath(name).name for name in names)
    stems = ((PurePosixPath(name).name, name) for name in names)
    return {stem: name for stem, name in stems if uses[stem] == 1}


def aligned_corpus(
    corpus: Corpus, alignments: Alignments, on_skip: Callable[[Skipped], None], strict: bool
) -> tuple[Corpus, dict[str, Segments]]:
    """The utterances of a corpus that have an alignment, and their segments.

    Args:
        corpus: What to filter.
        alignments: Matched to the corpus by `Alignments.match`.
        on_skip: Called with every utterance that has no alignment.
        strict: Raise for such an utterance instead.

    Returns:
        The remaining corpus, and its segments by id.

    Raises:
        UserError: no utterance has an alignment; with `strict`, one has none.
    """
    segments = alignments.match(source.id for source in corpus.sources)
    missing = [source.id for source in corpus.sources if source.id not in segments]
    if len(missing) == len(corpus.sources):
        raise UserError(
            f"alignments: {alignments.origin} names no utterance of {corpus.origin}: it has "
            f"{next(iter(alignments.utterances))!r}, the audio {missing[0]!r}"
        )
    if missing and strict:
        raise UserError(
            f"audio: {missing[0]} has no alignment in {alignments.origin}; add one, or allow "
            "skipping"
        )
    for id_ in missing:
        on_skip(Skipped(id_, f"has no alignment in {alignments.origin}"))
    aligned = tuple(source for source in corpus.sources if source.id in segments)
    return dataclasses.replace(corpus, sources=aligned), segments


def check_labels(alignments: Alignments, drop_labels: tuple[str, ...]) -> None:
    """Raise UserError for a label to drop that never occurs."""
    known = alignments.labels
    for label in drop_labels:
        if label not in known:
            some = ", ".join(known[:50]) + (", ..." if len(known) > 50 else "")
            raise UserError(
                f"drop_labels: {label!r} is not a label in {alignments.origin}; its labels: {some}"
            )
