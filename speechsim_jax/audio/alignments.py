"""Alignments: labelled segments of utterances.

| file | |
|---|---|
| .tsv | a header line with path, start, end, label and, if there are several, tier |
| .ctm | NIST: file, channel, start, duration, label and up to four more fields |
| .TextGrid | Praat: long, short or chronological; interval tiers |
| .phn .wrd | TIMIT: first and last sample at 16 kHz, label |
| .lab | HTK (units of 100 ns), ESPS (a header, then end, colour, label), or start, end, label |
| .phones .words | Buckeye: as ESPS, the label up to the first semicolon |
"""

import array
import csv
import dataclasses
import hashlib
import io
import logging
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from speechsim_jax.audio import text_files
from speechsim_jax.audio.corpus import (
    AUDIO_SUFFIXES,
    SAMPLE_RATE_HZ,
    AudioError,
    Corpus,
    Skipped,
    Source,
    stated_seconds,
)
from speechsim_jax.audio.corpus_layouts import layout_called, recognise
from speechsim_jax.audio.paths import looked_up
from speechsim_jax.errors import UserError, counted

# Segments that overlap by no more are cut in the middle: aligners round, or smooth.
_OVERLAP_SECONDS = 0.05
# An alignment that ends later than the audio by more than both is not of this audio, or in another
# unit; so is one that ends within a share of it that no speech fills.
_LATE_SECONDS, _LATE_SHARE = 0.5, 0.1
_LEAST_SHARE = 1 / 500
# Folders that say what kind of file is in them, not whose.
_KINDS_OF_FILES = {
    "wav", "wavs", "wav48", "wav48_silence_trimmed", "audio", "flac", "clips", "sph", "textgrid",
    "textgrids", "annotation", "annotations", "alignment", "alignments", "aligned", "lab", "labels",
    "phones", "words", "transcript",
}  # fmt: skip

log = logging.getLogger(__name__)

_COLUMNS = ("path", "start", "end", "label")  # of a TSV file


AUTO = "auto"
"""Alignments at the place that the layout of the corpus names."""


class MissingTier(UserError):
    """Several tiers, and no choice among them.

    Attributes:
        tiers: Their names.
    """

    def __init__(self, message: str, tiers: tuple[str, ...]) -> None:
        super().__init__(message)
        self.tiers = tiers


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
        unusable: Utterances whose segments cannot be used, with the reason.
        notes: What was guessed or changed in reading, with the number of files or utterances.
    """

    origin: str
    tier: str
    sha256: str
    utterances: Mapping[str, Segments]
    unusable: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, sorted."""
        return tuple(sorted({label for s in self.utterances.values() for label in s.labels}))

    def match(self, ids: Iterable[str]) -> dict[str, Segments]:
        """The segments of those of these utterances that have any, by id.

        Names are compared without the suffixes of audio files and folders like "wav" or "textgrid".
        All folders that both names have must agree, from the last on: `001` and `b/001` may be one
        utterance, `a/001` and `b/001` are not. A match must be the only one on both sides.
        """
        found = self._names(ids)
        return {
            id_: self.utterances[name] for id_, name in found.items() if name in self.utterances
        }

    def reasons(self, ids: Iterable[str]) -> dict[str, str]:
        """Why the segments of some of these utterances cannot be used, by id."""
        found = self._names(ids)
        return {id_: self.unusable[name] for id_, name in found.items() if name in self.unusable}

    def ambiguous(self, ids: Iterable[str]) -> dict[str, str]:
        """Why none of the alignments that fit some of these utterances is theirs, by id."""
        ids = tuple(ids)
        exact, partly = self._fitting(ids)
        found = self._names(ids)
        reasons = {}
        for id_ in ids:
            names = exact.get(id_) or partly.get(id_, [])
            if id_ in found or not names:
                continue
            others = [other for other in partly if other != id_ and names[0] in partly[other]]
            if len(names) > 1:
                reasons[id_] = f"fits several alignments: {', '.join(map(repr, names[:3]))}"
            else:
                reasons[id_] = f"fits the alignment {names[0]!r}, as does {others[0]!r}"
        return reasons

    def _names(self, ids: Iterable[str]) -> dict[str, str]:
        """The name here of each of these utterances that has one."""
        exact, partly = self._fitting(ids)
        # A name with fewer folders may fit utterances of several speakers, and is then none's.
        uses = Counter(name for names in partly.values() for name in names)
        found = {id_: names[0] for id_, names in exact.items() if len(names) == 1}
        for id_, names in partly.items():
            if id_ not in exact and len(names) == 1 and uses[names[0]] == 1:
                found[id_] = names[0]
        return found

    def _fitting(self, ids: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The names here that fit each of these utterances: with as many folders, and others."""
        by_stem: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for name in (*self.utterances, *self.unusable):
            parts = _parts(name)
            by_stem.setdefault(parts[-1], []).append((parts, name))
        exact: dict[str, list[str]] = {}
        partly: dict[str, list[str]] = {}
        for id_ in ids:
            parts = _parts(id_)
            for other, name in by_stem.get(parts[-1], ()):
                if _agree(parts, other):
                    kind = exact if len(other) == len(parts) else partly
                    kind.setdefault(id_, []).append(name)
        return exact, partly


def read_alignments(
    path: str | Path, tier: str | None = None, preferred: Sequence[str] = ()
) -> Alignments:
    """Read a file of alignments, or a folder of files of one utterance each.

    The utterance of a TextGrid, .phn, .wrd, .lab, .phones or .words file is the file's name, within
    a folder its path. An empty label marks a gap, not a segment.

    Args:
        path: The file or folder; hidden files and those of __MACOSX are passed over.
        tier: Which tier; may be left out where there is only one.
        preferred: Of several tiers and none chosen, the first of these that there is, in any case.

    Returns:
        The segments of the tier, of every utterance that has any. Segments that overlap by at most
        50 ms are cut in the middle; utterances with more are unusable.

    Raises:
        UserError: a malformed file, with its line; an unknown tier, or none where there are
            several.
    """
    root = looked_up(path, "alignments")
    files = sorted(_files_below(root)) if root.is_dir() else [root]
    if not files:
        raise UserError(f"alignments: no {', '.join(_OF_ONE_UTTERANCE)} file below {root}")
    within = root if root.is_dir() else root.parent
    named = [(file, file.relative_to(within).with_suffix("").as_posix()) for file in files]
    return _read_files(named, str(root), tier, preferred)


def alignments_of(
    corpus: Corpus,
    where: str,
    tier: str | None = None,
    layout: str | None = None,
    preferred: Sequence[str] = (),
) -> Alignments:
    """The alignments of a corpus.

    Args:
        corpus: Whose utterances are aligned.
        where: The file or folder, as for `read_alignments`; or "auto", for those that are published
            with the audio, at the place that its layout names (`corpus_layouts`).
        tier: As for `read_alignments`.
        layout: Name of the only layout that counts for "auto"; None for any.
        preferred: Of several tiers and none chosen, the first of these that there is, in any case.

    Raises:
        UserError: as `read_alignments`; the layout is not known, has no alignments, or they are not
            there.
    """
    if where != AUTO:
        return read_alignments(where, tier, preferred)
    places: Counter[str] = Counter()
    without: Counter[str] = Counter()
    named = []
    for source in corpus.sources:
        if source.path is None or source.part or source.unusable:
            continue
        path = source.path.absolute()
        if (known := recognise(path, layout).layout) is None:
            continue
        found = known.aligned(path)
        named += [(file, source.id) for file in found]
        if found:
            places[f"{' and '.join(known.alignments)} of {known.name}"] += 1
        else:
            without[known.name] += 1
    if not named:
        raise _none_published(corpus, without)
    for place, count in places.items():
        log.info("alignments: %s for %s", place, counted(count, "file"))
    return _read_files(named, f"{corpus.origin} ({', '.join(places)})", tier, preferred)


def _none_published(corpus: Corpus, layouts: Mapping[str, int]) -> UserError:
    """The error for a corpus without alignments beside it, of the layouts of so many files."""
    reason = f"the layout of {corpus.origin} is not known"
    if layouts:
        name = max(layouts, key=lambda layout: layouts[layout])
        places = layout_called(name).alignments
        reason = f"{name} is published without alignments"
        if places:
            reason = f"{corpus.origin} is of {name}, but {' and '.join(places)} are not there"
    return UserError(f"alignments=auto: {reason}; name a file or folder of alignments")


def _read_files(
    named: Iterable[tuple[Path, str]], origin: str, tier: str | None, preferred: Sequence[str]
) -> Alignments:
    """The alignments of files, each with the name of its utterance, if it is of one."""
    digest = hashlib.sha256()
    tiers: dict[str, dict[str, _SegmentList]] = {}
    for file, utterance in named:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"alignments: cannot read {file}: {error.strerror}") from error
        digest.update(data)
        for segment in _reader(file)(data, file, utterance):
            utterances = tiers.setdefault(segment.tier, {})
            utterances.setdefault(segment.utterance, _SegmentList()).add(segment)
    known = ", ".join(name or "(unnamed)" for name in tiers) or "none"
    if tier is None and len(tiers) > 1:
        spelled = {name.casefold(): name for name in tiers}
        names = (name.casefold() for name in preferred)
        tier = next((spelled[name] for name in names if name in spelled), None)
    if tier is None and len(tiers) > 1:
        raise MissingTier(
            f"alignments: {origin} has the tiers {known}; choose one (alignment_tier)", tuple(tiers)
        )
    if tier is not None and tier not in tiers:
        raise UserError(f"alignments: {origin} has no tier {tier!r}; its tiers: {known}")
    chosen = next(iter(tiers), "") if tier is None else tier
    lists = {name: list_ for name, list_ in tiers.get(chosen, {}).items() if list_.labels}
    if not lists:
        raise UserError(f"alignments: {origin} has no labelled segment")
    notes: Counter[str] = Counter()
    usable, unusable = {}, {}
    for name, list_ in lists.items():
        try:
            usable[name], cut = _sorted(list_)
        except _Overlap as error:
            unusable[name] = str(error)
        else:
            if cut:
                notes["alignment with overlapping segments, cut in the middle"] += 1
    for name, reason in list(unusable.items())[:3]:
        log.warning("alignments: %s: %s: %s", origin, name, reason)
    if not usable:
        name, reason = next(iter(unusable.items()))
        raise UserError(f"alignments: {origin}: in {name!r}, {reason}")
    return Alignments(origin, chosen, digest.hexdigest(), usable, unusable, dict(notes))


class _Overlap(Exception):
    """Segments of an utterance overlap too much."""


def _reader(file: Path) -> _Reader:
    if file.suffix.lower() not in _READERS:
        raise UserError(
            f"alignments: {file} has an unknown suffix; expected {', '.join(_READERS)}, or a "
            "folder of files of one utterance each"
        )
    return _READERS[file.suffix.lower()]


def _files_below(root: Path) -> Iterator[Path]:
    """Files of one utterance each, none hidden."""
    for path in root.rglob("*"):
        names = path.relative_to(root).parts
        hidden = any(name.startswith(".") or name == "__MACOSX" for name in names)
        if path.suffix.lower() in _OF_ONE_UTTERANCE and not hidden:
            yield path


def _sorted(segments: _SegmentList) -> tuple[Segments, bool]:
    """One utterance's segments by start, and whether any were cut; raises _Overlap."""
    starts, ends = np.array(segments.starts), np.array(segments.ends)
    order = np.lexsort([ends, starts])
    starts, ends = starts[order], ends[order]
    labels = tuple(segments.labels[index] for index in order)
    overlaps = ends[:-1] - starts[1:]
    # A shorter segment inside another is no rounding.
    inside = (overlaps > 1e-4) & (ends[1:] <= ends[:-1])
    far = np.flatnonzero((overlaps > _OVERLAP_SECONDS + 1e-9) | inside)
    if far.size:
        at = far[0]
        raise _Overlap(
            f"{labels[at + 1]!r} starts at {starts[at + 1]:g} s, before {labels[at]!r} ends at "
            f"{ends[at]:g} s; segments may overlap by at most {_OVERLAP_SECONDS:g} s"
        )
    cut = np.flatnonzero(overlaps > 0)
    middles = (ends[cut] + starts[cut + 1]) / 2
    ends[cut] = starts[cut + 1] = middles
    return Segments(starts, ends, labels), bool((overlaps > 1e-4).any())


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
    rows: list[tuple[str, str, str, str, str, str]] = []
    alternative = False
    for number, line in enumerate(_text(data, file).split("\n"), 1):
        words = line.split(";;")[0].split()
        if not words:
            continue
        where = f"alignments: {file} line {number}"
        if not 5 <= len(words) <= 9:
            raise UserError(
                f"{where}: {len(words)} fields; expected file, channel, start, duration, label and "
                "perhaps confidence, type and speaker"
            )
        if words[4].startswith("<ALT"):  # of several alternatives the first is taken
            alternative = words[4] == "<ALT>"
        elif not alternative:
            name, channel, start, duration, label = words[:5]
            rows.append((name, channel, start, duration, label, where))
    channels: dict[str, list[str]] = {}
    for name, channel, *_rest in rows:
        if channel not in channels.setdefault(name, []):
            channels[name].append(channel)
    for name, channel, start, duration, label, where in rows:
        several = sorted(channels[name])
        # As `open_corpus` calls each channel of a file.
        utterance = f"{name}:{several.index(channel) + 1}" if len(several) > 1 else name
        yield _segment(utterance, "", start, duration, label, where, is_end=False)


def _read_timit(data: bytes, file: Path, name: str) -> Iterator[_Segment]:
    for number, line in enumerate(_text(data, file).splitlines(), 1):
        words = line.split(maxsplit=2)
        where = f"alignments: {file} line {number}"
        if not words:
            continue
        if len(words) < 3 or not (_is_count(words[0]) and _is_count(words[1])):
            raise UserError(f"{where}: expected first sample, last sample and label")
        start, end = (str(int(word) / SAMPLE_RATE_HZ) for word in words[:2])
        yield _segment(name, file.suffix[1:].lower(), start, end, words[2], where)


def _read_lab(data: bytes, file: Path, name: str) -> Iterator[_Segment]:
    """HTK, ESPS or Buckeye, or start, end and label in seconds."""
    lines = _text(data, file).splitlines()
    tier = file.suffix[1:].lower() if file.suffix.lower() != ".lab" else ""
    marks = [number for number, line in enumerate(lines) if line.strip() == "#"]
    if marks:
        before = "0"
        for number, line in enumerate(lines[marks[0] + 1 :], marks[0] + 2):
            words = line.split(maxsplit=2)
            if len(words) < 2:
                continue
            where = f"alignments: {file} line {number}"
            label = words[2].split(";")[0] if len(words) > 2 else ""
            # Some files begin a little before 0.
            yield _segment(name, tier, before, _at_least(words[0], before), label, where)
            before = _at_least(words[0], before)
        return
    rows = [(number, line.split(maxsplit=2)) for number, line in enumerate(lines, 1)]
    rows = [(number, words) for number, words in rows if words]
    in_htk = all(_is_count(word) for _, words in rows for word in words[:2])
    for number, words in rows:
        where = f"alignments: {file} line {number}"
        if len(words) < 3:
            raise UserError(f"{where}: expected start, end and label")
        start, end, label = words
        if in_htk:
            start, end = str(int(start) / 1e7), str(int(end) / 1e7)
        yield _segment(name, tier, start, end, label, where)


def _is_count(text: str) -> bool:
    """Whether a text is a number of samples, tiers or 100 ns."""
    return text.isascii() and text.isdigit() and len(text) < 18


def _at_least(text: str, before: str) -> str:
    """The later of two times, as text; what is no number stays, and is reported."""
    try:
        return text if float(text) >= float(before) else before
    except ValueError:
        return text


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
        if not _is_count(number):
            raise UserError(f"{where} is not a valid TextGrid: expected a count, found {number}")
        return int(number)

    def skip_times() -> None:
        for _ in ("xmin", "xmax"):
            take("number")

    kind = take("text")
    if kind == "Praat chronological TextGrid text file":
        yield from _chronological(take, count, skip_times, lambda: next(values, None), name, where)
        return
    if kind not in ("ooTextFile", "ooTextFile short") or take("text") != "TextGrid":
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


def _chronological(
    take: Callable[[str], str],
    count: Callable[[], int],
    skip_times: Callable[[], None],
    following: Callable[[], re.Match[str] | None],
    name: str,
    where: str,
) -> Iterator[_Segment]:
    """All tiers first, then their intervals and points in the order of time."""
    skip_times()
    tiers = []
    for _ in range(count()):
        tiers.append((take("text"), take("text")))
        skip_times()
    number = 0
    while (match := following()) is not None:
        number += 1
        index = match["number"] if match.lastgroup == "number" else ""
        if not _is_count(index or "") or not 1 <= int(index) <= len(tiers):
            raise UserError(f"{where} is not a valid TextGrid: there is no tier {match.group()!r}")
        kind, tier = tiers[int(index) - 1]
        start = take("number")
        if kind == "IntervalTier":
            at = f"{where} tier {tier!r} interval {number}"
            yield _segment(name, tier, start, take("number"), take("text"), at)
        else:
            take("text")


# By suffix; each takes the content, the file, and the name of the utterance if the file is of one.
_READERS: dict[str, _Reader] = {
    ".tsv": _read_tsv,
    ".ctm": _read_ctm,
    ".textgrid": _read_text_grid,
    ".phn": _read_timit,
    ".wrd": _read_timit,
    ".lab": _read_lab,
    ".phones": _read_lab,
    ".words": _read_lab,
}
_OF_ONE_UTTERANCE = (".textgrid", ".phn", ".wrd", ".lab", ".phones", ".words")


def _text(data: bytes, file: Path) -> str:
    """UTF-8 or UTF-16; a TextGrid that is neither is in Latin-1, as Praat reads it."""
    try:
        return text_files.decode(data)
    except UnicodeDecodeError as error:
        if file.suffix.lower() == ".textgrid" and b"\0" not in data:
            log.warning("alignments: %s is not UTF-8 and is read as Latin-1", file)
            return data.decode("latin-1")
        raise UserError(f"alignments: cannot read {file} as UTF-8 or UTF-16: {error}") from error


def _parts(name: str) -> tuple[str, ...]:
    """Folders and stem of a name, composed accents, without folders that say nothing."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    stem, colon, channel = path.name.rpartition(":")
    if not (colon and channel.isdigit()):
        stem, colon, channel = path.name, "", ""
    while PurePosixPath(stem).suffix.lower() in AUDIO_SUFFIXES:
        stem = PurePosixPath(stem).stem
    folders = (part for part in path.parts[:-1] if part.lower() not in _KINDS_OF_FILES)
    return (*folders, f"{stem}{colon}{channel}")


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether all parts that both have are equal, from the last on."""
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]


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
    ids = [source.id for source in corpus.sources]
    segments = alignments.match(ids)
    missing = [id_ for id_ in ids if id_ not in segments]
    reasons = alignments.ambiguous(ids) | {
        id_: f"has an alignment that cannot be used: {reason}"
        for id_, reason in alignments.reasons(ids).items()
    }
    if len(missing) == len(ids):
        if clear := next(((id_, reasons[id_]) for id_ in missing if id_ in reasons), None):
            raise UserError(
                f"alignments: {alignments.origin}: no utterance can be used: {clear[0]} {clear[1]}"
            )
        raise UserError(
            f"alignments: {alignments.origin} names no utterance of {corpus.origin}: it has "
            f"{next(iter(alignments.utterances))!r}, the audio {missing[0]!r}"
        )
    for id_ in missing:
        reason = reasons.get(id_, f"has no alignment in {alignments.origin}")
        if strict:
            raise UserError(f"audio: {id_} {reason}; mend the alignments, or allow skipping")
        on_skip(Skipped(id_, reason))
    aligned = tuple(source for source in corpus.sources if source.id in segments)
    return dataclasses.replace(corpus, sources=aligned), segments


def without_misfits(
    corpus: Corpus,
    segments: Mapping[str, Segments],
    on_skip: Callable[[Skipped], None],
    strict: bool,
) -> Corpus:
    """The utterances of a corpus whose segments end about where the audio does, or before.

    Args:
        corpus: With durations (`open_corpus.with_durations`).
        segments: Of each utterance.
        on_skip: Called with every utterance whose segments cannot be of this audio.
        strict: Raise for such an utterance instead.

    Raises:
        UserError: none is left; with `strict`, one does not fit.
    """
    fitting, misfits = [], []
    for source in corpus.sources:
        if not (reason := _misfit(source, segments[source.id])):
            fitting.append(source)
            continue
        if strict:
            raise UserError(f"audio: {source.id} {reason}; mend the alignments, or allow skipping")
        misfits.append(Skipped(source.id, reason))
    if misfits and not fitting:
        raise UserError(
            f"alignments: none fits the audio of {corpus.origin}: {misfits[0].id} "
            f"{misfits[0].reason}"
        )
    for skipped in misfits:
        on_skip(skipped)
    return dataclasses.replace(corpus, sources=tuple(fitting)) if misfits else corpus


def _misfit(source: Source, segments: Segments) -> str:
    """Why segments cannot be of the audio, by both lengths; "" if they can."""
    end = float(segments.ends.max())

    def fits(seconds: float) -> bool:
        late = end - seconds > max(_LATE_SECONDS, _LATE_SHARE * seconds)
        return not late and end >= _LEAST_SHARE * seconds

    seconds = source.seconds
    if seconds is None or fits(seconds):
        return ""
    if source.path is not None and source.row is None and not source.part:
        try:
            seconds = stated_seconds(source.path)  # a manifest may be wrong about it
        except (OSError, ValueError, AudioError):  # reading it says why
            return ""
    if seconds is None or fits(seconds):
        return ""
    return (
        f"has an alignment that ends at {end:.4g} s, and audio of {seconds:.4g} s; are its times "
        "in another unit, or of another file?"
    )


def check_labels(alignments: Alignments, drop_labels: tuple[str, ...]) -> None:
    """Raise UserError for a label to drop that never occurs."""
    known = alignments.labels
    for label in drop_labels:
        if label not in known:
            some = ", ".join(known[:50]) + (", ..." if len(known) > 50 else "")
            raise UserError(
                f"drop_labels: {label!r} is not a label in {alignments.origin}; its labels: {some}"
            )
