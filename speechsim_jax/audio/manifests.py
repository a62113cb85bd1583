"""Manifests: tables and folders that name audio, as people have them.

| kind | recognised by |
|---|---|
| table (.tsv, .csv) | a header line; tab, comma, semicolon or bar between fields |
| fairseq (.tsv) | a first line that is a folder, then path and number of samples |
| JSON lines (.json, .jsonl, .ndjson) | an object a line: NeMo, or Lhotse's cuts and supervisions |
| Kaldi | a folder with wav.scp |
| Hugging Face | a folder with metadata.csv or metadata.jsonl that has a column file_name |

Columns go by a table of known names; times may have a unit in their name (`start_ms`). Of several
columns of one meaning, the first that is filled counts. Text is UTF-8, or UTF-16 with or without a
byte order mark.
"""

import csv
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechsim_jax.audio import text_files
from speechsim_jax.audio.columns import (
    GENDER,
    GENDER_NAMES,
    MISSING,
    Columns,
    columns_of,
    gender_of,
    stated,
)
from speechsim_jax.audio.corpus import ROUNDED_PART_SECONDS
from speechsim_jax.audio.paths import looked_up
from speechsim_jax.errors import UserError, printable

log = logging.getLogger(__name__)

_NAMES = {
    "path": (
        "path", "file", "file_name", "filename", "filepath", "file_path", "audio", "audio_path",
        "audio_file", "audio_filepath", "wav", "wav_path", "wav_filename", "location",
    ),
    "id": ("id", "utt_id", "utterance_id", "utterance", "utt", "segment_id", "name"),
    "seconds": ("seconds", "duration", "dur", "length_seconds"),
    "offset": ("offset", "onset", "start", "begin", "start_time", "begin_time"),
    "end": ("end", "end_time", "stop", "stop_time"),
    "speaker": (
        "speaker", "speaker_id", "spk_id", "spk", "spkid", "client_id", "reader", "user_id",
    ),
    "transcript": (
        "transcript", "text", "sentence", "transcription", "wrd", "words", "normalized_text",
        "raw_transcription",
    ),
    GENDER: GENDER_NAMES,
}  # fmt: skip
_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".ndjson")
_SEPARATORS = "\t;,|"
_TIMES = ("offset", "end", "seconds")
_PER_SECOND = {
    "": 1, "_s": 1, "_sec": 1, "_secs": 1, "_second": 1, "_seconds": 1,
    "_ms": 1000, "_msec": 1000, "_millis": 1000, "_milliseconds": 1000,
}  # fmt: skip
_MEANINGS = {
    name: (what, 1) for what, names in _NAMES.items() if what not in _TIMES for name in names
} | {
    name + unit: (what, per_second)
    for what in _TIMES
    for name in _NAMES[what]
    for unit, per_second in _PER_SECOND.items()
}
_RANKS = {name: rank for rank, name in enumerate(_MEANINGS)}
_LIKE_A_TIME = re.compile(r"(start|end|stop)_|onset|offset|begin")
_IN_SAMPLES = re.compile(r"_(samples?|frames?)$")
_TO_THE_END = -1.0


@dataclass(frozen=True)
class Entry:
    """One utterance of a manifest.

    Attributes:
        where: The manifest and the line, for messages.
        path: Of the audio file, as it is written there.
        id: "" if the manifest has none.
        seconds: Duration; None if not stated.
        offset_seconds: Where the utterance begins in the file; None if it is the whole file.
        speaker: None if the manifest has no speakers, "" if it does not know this one.
        transcript: "" if not stated.
        from_start: Whether the duration counts from the start of the file, which it may not fill:
            the manifest is of a kind that has offsets, and states none here.
        unusable: Why it cannot be read, if the manifest contradicts itself.
        columns: The gender, and whatever else the manifest says.
    """

    where: str
    path: str
    id: str = ""
    seconds: float | None = None
    offset_seconds: float | None = None
    speaker: str | None = None
    transcript: str = ""
    from_start: bool = False
    unusable: str = ""
    columns: Mapping[str, str] = field(default_factory=Columns)


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest by its suffix."""
    return path.suffix.lower() in _SUFFIXES


def table_in(folder: Path) -> Path | None:
    """The table of a folder in the layout of Kaldi or Hugging Face; None if there is none."""
    if (folder / "wav.scp").is_file():
        return folder / "wav.scp"
    for name in ("metadata.csv", "metadata.jsonl"):
        if (folder / name).is_file() and "file_name" in _text(folder / name)[:4096]:
            return folder / name
    return None


def entries(path: Path) -> Iterator[Entry]:
    """The utterances that a manifest names, in order.

    Args:
        path: A table, JSON lines, or wav.scp of a Kaldi folder.

    Raises:
        UserError: it cannot be read or understood, with the line.
    """
    if path.name == "wav.scp":
        yield from _kaldi(path.parent)
    elif path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        yield from _json_lines(path)
    else:
        yield from _table(path)


def text_lines(path: Path) -> list[str]:
    """Lines of a text file with their line ends, which the csv module needs."""
    # `str.splitlines` would also divide at separators that occur within a transcript.
    return io.StringIO(_text(path), newline="").readlines()


# --- tables ---


def _table(path: Path) -> Iterator[Entry]:
    lines = text_lines(path)
    if not lines:
        raise UserError(f"audio: {path} is empty; a manifest starts with a header line")
    if _is_fairseq(lines):
        yield from _fairseq(path, lines)
        return
    separator = _separator(lines[0], path)
    reader = _reader(lines, separator)
    try:
        header = next(reader)
        columns = _Columns(header, path)
        if "path" not in columns.known:
            raise UserError(
                f"audio: {path} has no column 'path' (or {', '.join(_NAMES['path'][1:4])}, ...), "
                f"only {header}; a manifest starts with a header line"
            )
        for fields in reader:
            where = f"audio: {path} line {reader.line_num}"
            if len(fields) > len(header):
                raise UserError(
                    f"{where}: more fields than the header has columns; check the separators"
                )
            if any(field.strip() for field in fields):
                row = columns.row([field.strip() for field in fields], where)
                yield _entry(row, where, bool({"offset", "end"} & columns.known))
    except csv.Error as error:
        raise UserError(f"audio: {path} line {reader.line_num}: {error}") from error


def _reader(lines: Sequence[str], separator: str) -> Any:
    """Of the rows. With tabs, quotes delimit fields only where that makes a whole table."""
    if separator != "\t" or _is_quoted(lines):
        return csv.reader(lines, delimiter=separator)
    return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)


def _is_quoted(lines: Sequence[str]) -> bool:
    """Whether fields between tabs are quoted: as many in each row, and not without quoting."""
    if not any(re.search(r'(^|\t)"', line) for line in lines):
        return False
    try:
        quoted = list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error:
        return False
    plain = [line.split("\t") for line in lines]
    return _is_even(quoted) and (len(quoted) == len(plain) or not _is_even(plain))


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all rows but empty ones have as many fields as the first."""
    return all(len(row) == len(rows[0]) for row in rows if any(text.strip() for text in row))


def _separator(header: str, path: Path) -> str:
    """The one that divides the header into the most fields; by the suffix among equals."""
    preferred = "\t" if path.suffix.lower() == ".tsv" else ","
    return max(_SEPARATORS, key=lambda mark: (header.count(mark), mark == preferred))


def _plain(name: str) -> str:
    """The name of a column in lower case with underscores: "Start (ms)" is start_ms."""
    return re.sub(r"[\s\-\[\]()]+", "_", name.strip().lower()).strip("_")


@dataclass
class _Columns:
    """What the columns of a manifest, or the fields of its objects, mean.

    Attributes:
        names: Of the columns; of JSON lines, those of the object that was read last.
        path: The manifest, for messages.
        known: What there are columns for.
        warned: What was warned of, once each.
    """

    names: list[str]
    path: Path
    known: set[str] = field(default_factory=set)
    warned: set[str] = field(default_factory=set)
    _found: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _others: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rename(self.names)

    def rename(self, names: list[str]) -> None:
        """Take the names of another object."""
        if (self._found or self._others) and names == self.names:
            return
        self.names = names
        plain = [_plain(name) for name in names]
        ends_at_offset = any(name.startswith("onset") for name in plain)
        self._found, self._others = {}, []
        ignored = []
        for index, name in enumerate(plain):
            what, per_second = _MEANINGS.get(name, ("", 1))
            if what == "offset" and name.startswith("offset") and ends_at_offset:
                what = "end"  # onset and offset are the first and the last moment
            if what:
                self._found.setdefault(what, []).append((index, per_second))
            elif _LIKE_A_TIME.match(name):
                ignored.append(index)
            else:
                self._others.append(index)
        for found in self._found.values():
            found.sort(key=lambda one: _RANKS[plain[one[0]]])
        self.known = set(self._found)
        in_samples = [names[index] for index in ignored if _IN_SAMPLES.search(plain[index])]
        if in_samples and not {"offset", "end"} & self.known:
            raise UserError(
                f"audio: {self.path}: {', '.join(in_samples)}: times in samples are not read; "
                "give start and end, or offset and duration, in seconds"
            )
        if ignored:
            listed = ", ".join(names[index] for index in ignored)
            self._warn(f"columns that look like times are not known, and are ignored: {listed}")

    def row(self, values: Sequence[Any], where: str) -> dict[str, Any]:
        """What is known of an utterance; of several columns, by the first that is filled."""
        row: dict[str, Any] = {}
        for what, found in self._found.items():
            filled = []
            for index, per_second in found:
                name, value = self.names[index], values[index] if index < len(values) else None
                if what in _TIMES:
                    value = _seconds(value, what, name, per_second, where)
                if value is None:
                    continue
                row.setdefault(what, "")
                if str(value).strip() and (what not in ("speaker", GENDER) or stated(value)):
                    filled.append((name, value))
            if filled:
                row[what] = filled[0][1]
            for other in filled[1:]:
                self._compare(row, what, filled[0], other)
        others: dict[str, Any] = {}
        for index in self._others:
            if index < len(values) and stated(values[index]):
                others.setdefault(self.names[index], values[index])
        return row | {"columns": others}

    def _compare(
        self, row: dict[str, Any], what: str, used: tuple[str, Any], other: tuple[str, Any]
    ) -> None:
        """Warn of two columns of one meaning that differ; two starts or ends make it unusable."""
        one, two = used[1], other[1]
        if what in _TIMES:
            differ = not math.isclose(one, two, abs_tol=ROUNDED_PART_SECONDS) and two != _TO_THE_END
            if differ and what != "seconds":
                side = "start" if what == "offset" else "end"
                row["unusable"] = (
                    f"has {used[0]}={one:g} s and {other[0]}={two:g} s in its manifest; which is "
                    f"its {side} is not clear"
                )
                return
        else:
            differ = str(one).strip() != str(two).strip()
        if differ:
            self._warn(f"columns {used[0]} and {other[0]} differ; {used[0]} is used")

    def _warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning("audio: %s: %s", self.path, printable(message))


def _is_fairseq(lines: Sequence[str]) -> bool:
    """Whether the first line is a folder, and the others are paths with numbers of samples."""
    first, second = lines[0].strip(), lines[1].split("\t") if len(lines) > 1 else []
    if not first or "\t" in first or _plain(first) in _MEANINGS:
        return False
    return len(second) == 2 and second[1].strip().isdigit()


def _fairseq(path: Path, lines: Sequence[str]) -> Iterator[Entry]:
    root = _fairseq_root(path, lines[0].strip())
    for number, line in enumerate(lines[1:], start=2):
        name, _, samples = line.strip().partition("\t")
        if not name:
            continue
        where = f"audio: {path} line {number}"
        if not samples.isdigit():
            raise UserError(f"{where}: {samples!r}; expected a number of samples")
        # Their number is at the file's own rate, which is not stated: the header tells it.
        yield Entry(where, str(root / name), id=name)


def _fairseq_root(path: Path, name: str) -> Path:
    """The folder in the first line: absolute, or from the manifest's or the working folder."""
    if Path(name).is_absolute():
        return Path(name)
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        for folder in (path.parent.absolute(), Path.cwd()):
            if (root := looked_up(folder / written, "audio")).is_dir():
                return root
    raise UserError(
        f"audio: {path} line 1: no folder {printable(name)!r} on this machine; write there where "
        "the audio is"
    )


# --- JSON lines ---


def _json_lines(path: Path) -> Iterator[Entry]:
    text = _text(path)
    try:
        whole = _parsed(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and "\n" in text.strip():
        whole = [whole]
    if isinstance(whole, list):
        records = [(f"audio: {path} entry {k}", r) for k, r in enumerate(whole, start=1)]
    else:
        records = []
        for number, line in enumerate(text_lines(path), start=1):
            where = f"audio: {path} line {number}"
            if line.strip():
                try:
                    records.append((where, _parsed(line)))
                except ValueError as error:
                    raise UserError(f"{where}: no JSON ({error}); expected an object a line") from (
                        error
                    )
    columns = _Columns([], path)
    for where, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{where}: {type(record).__name__}; expected an object")
        if "recording" in record:
            record = _of_lhotse(record, where)
        columns.rename([str(name) for name in record])
        yield _entry(columns.row(list(record.values()), where), where, from_start=True)


def _parsed(text: str) -> Any:
    """A value of JSON; raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _of_lhotse(cut: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A cut: a stretch of a recording with its supervisions."""
    recording = cut["recording"] if isinstance(cut["recording"], dict) else {}
    sources = _objects(recording, "sources", where)
    said = _objects(cut, "supervisions", where)
    row = {
        "path": sources[0].get("source") if sources else None,
        "id": cut.get("id"),
        "offset": cut.get("start"),
        "seconds": cut.get("duration"),
        "speaker": _first(said, "speaker"),
        "transcript": " ".join(str(s["text"]) for s in said if s.get("text")),
        GENDER: _first(said, GENDER),
        "language": _first(said, "language"),
    }
    custom = _first(said, "custom")
    others = custom if isinstance(custom, dict) else {}
    return others | {what: value for what, value in row.items() if value is not None}


def _first(records: Sequence[Mapping[str, Any]], name: str) -> Any:
    """What the first of these that has a field says in it; None if none has."""
    return next((record[name] for record in records if record.get(name)), None)


def _objects(record: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """A field that is a list of objects; empty if it is missing."""
    value = record.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{where}: {name!r} is no list of objects")
    return value


def _entry(row: Mapping[str, Any], where: str, from_start: bool) -> Entry:
    """An utterance of values that may be text or of JSON."""
    path = row.get("path")
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{where}: 'path' is empty; expected a path relative to the manifest")
    times = (row.get(name) for name in ("offset", "seconds", "end"))
    offset, seconds, end = (None if time == _TO_THE_END else time for time in times)
    unusable = row.get("unusable", "")
    if end is not None:
        length = end - (offset or 0.0)
        if length < 0 and not unusable:
            raise UserError(f"{where}: ends at {end:g} s, before it starts")
        # A longer duration is that of the file.
        if (
            not unusable
            and seconds is not None
            and not (
                abs(seconds - length) <= ROUNDED_PART_SECONDS
                or seconds >= end - ROUNDED_PART_SECONDS
            )
        ):
            unusable = (
                f"has a start of {offset or 0:g} s, an end of {end:g} s and a duration of "
                f"{seconds:g} s in its manifest, which contradict each other; are all in seconds?"
            )
        offset, seconds = offset or 0.0, max(0.0, length)
    return Entry(
        where=where,
        path=path.strip(),
        id=str(row.get("id") or "").strip(),
        seconds=seconds,
        offset_seconds=offset,
        speaker=_speaker(row.get("speaker")),
        transcript=str(row.get("transcript") or ""),
        from_start=from_start and offset is None and seconds is not None,
        unusable=unusable,
        columns=columns_of({**row.get("columns", {}), GENDER: gender_of(row.get(GENDER))}),
    )


def _speaker(value: Any) -> str | None:
    """A speaker as it is written; "" if that says that it is not known."""
    return None if value is None else stated(value)


def _seconds(value: Any, what: str, name: str, per_second: int, where: str) -> float | None:
    """A time; -1 (the end of the file) stays, except of a start."""
    if value is None or str(value).strip().lower() in MISSING:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if seconds == _TO_THE_END and what != "offset":
        return _TO_THE_END
    if not 0 <= seconds < math.inf or isinstance(value, bool):
        raise UserError(f"{where}: {name}={value!r}; expected a number of seconds, or nothing")
    return seconds / per_second


# --- Kaldi ---


def _kaldi(folder: Path) -> Iterator[Entry]:
    """wav.scp, and utt2spk, spk2gender, segments and text if they are there."""
    speakers, texts, genders = (_pairs(folder / name) for name in ("utt2spk", "text", "spk2gender"))
    known = (folder / "utt2spk").is_file()
    paths = _pairs(folder / "wav.scp")
    segments = folder / "segments"
    if not segments.is_file():
        for number, (id_, path) in enumerate(paths.items(), start=1):
            speaker = _speaker(speakers.get(id_, "")) if known else None
            where = f"audio: {folder / 'wav.scp'} line {number}"
            columns = columns_of({GENDER: gender_of(genders.get(speaker or ""))})
            text = texts.get(id_, "")
            yield Entry(where, path, id_, None, None, speaker, text, columns=columns)
        return
    for number, (id_, rest) in enumerate(_pairs(segments).items(), start=1):
        where = f"audio: {segments} line {number}"
        fields = rest.split()
        if len(fields) < 3 or fields[0] not in paths:
            raise UserError(f"{where}: expected a recording of wav.scp, start and end")
        row = {
            "path": paths[fields[0]], "id": id_, "transcript": texts.get(id_, ""),
            "offset": _seconds(fields[1], "offset", "start", 1, where),
            "end": _seconds(fields[2], "end", "end", 1, where),
        }  # fmt: skip
        if known:
            row["speaker"] = speakers.get(id_, "")
            row[GENDER] = genders.get(speakers.get(id_, ""))
        yield _entry({k: v for k, v in row.items() if v is not None}, where, from_start=False)


def _pairs(path: Path) -> dict[str, str]:
    """First word of each line -> the rest; empty if there is no such file."""
    if not path.is_file():
        return {}
    pairs = (line.replace("\t", " ").strip().partition(" ") for line in text_lines(path))
    return {name: rest.strip() for name, _, rest in pairs if name}


# --- text ---


def _text(path: Path) -> str:
    try:
        return text_files.decode(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"audio: cannot read {path} as UTF-8 or UTF-16 text: {error}") from error
