"""Manifests: tables and folders that name audio, as people have them.

| kind | recognised by |
|---|---|
| table (.tsv, .csv) | a header line; tab, comma, semicolon or bar between fields |
| fairseq (.tsv) | a first line that is a folder, then path and number of samples |
| JSON lines (.json, .jsonl, .ndjson) | an object a line: NeMo, or Lhotse's cuts and supervisions |
| Kaldi | a folder with wav.scp |
| Hugging Face | a folder with metadata.csv or metadata.jsonl that has a column file_name |

Columns go by a table of known names. Text is UTF-8, or UTF-16 with or without a byte order mark.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechsim_jax.audio import text_files
from speechsim_jax.errors import UserError

_NAMES = {
    "path": (
        "path", "file", "file_name", "filename", "filepath", "file_path", "audio", "audio_path",
        "audio_file", "audio_filepath", "wav", "wav_path", "wav_filename", "location",
    ),
    "id": ("id", "utt_id", "utterance_id", "utterance", "utt", "segment_id", "name"),
    "seconds": ("seconds", "duration", "dur", "duration_seconds", "length_seconds"),
    "offset": ("offset", "start", "begin", "start_time", "offset_seconds"),
    "end": ("end", "end_time", "stop"),
    "speaker": (
        "speaker", "speaker_id", "spk_id", "spk", "spkid", "client_id", "reader", "user_id",
    ),
    "transcript": (
        "transcript", "text", "sentence", "transcription", "wrd", "words", "normalized_text",
        "raw_transcription",
    ),
}  # fmt: skip
_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl", ".ndjson")
_SEPARATORS = "\t;,|"


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
    """

    where: str
    path: str
    id: str = ""
    seconds: float | None = None
    offset_seconds: float | None = None
    speaker: str | None = None
    transcript: str = ""


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
    return _text(path).splitlines(keepends=True)


# --- tables ---


def _table(path: Path) -> Iterator[Entry]:
    lines = text_lines(path)
    if not lines:
        raise UserError(f"audio: {path} is empty; a manifest starts with a header line")
    if _is_fairseq(lines):
        yield from _fairseq(path, lines)
        return
    separator = _separator(lines[0], path)
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=separator, quoting=quoting)
    try:
        header = [name.strip() for name in next(reader)]
        columns = _columns(header, path)
        for fields in reader:
            where = f"audio: {path} line {reader.line_num}"
            if len(fields) > len(header):
                raise UserError(
                    f"{where}: more fields than the header has columns; check the separators"
                )
            if any(field.strip() for field in fields):
                row = {k: fields[n].strip() for k, n in columns.items() if n < len(fields)}
                yield _entry(row, where)
    except csv.Error as error:
        raise UserError(f"audio: {path} line {reader.line_num}: {error}") from error


def _separator(header: str, path: Path) -> str:
    """The one that divides the header into the most fields; by the suffix among equals."""
    preferred = "\t" if path.suffix.lower() == ".tsv" else ","
    return max(_SEPARATORS, key=lambda mark: (header.count(mark), mark == preferred))


def _columns(header: Sequence[str], path: Path) -> dict[str, int]:
    """Which column is what."""
    lower = [name.lower() for name in header]
    found = {
        what: next((lower.index(name) for name in names if name in lower), -1)
        for what, names in _NAMES.items()
    }
    columns = {what: index for what, index in found.items() if index >= 0}
    if "path" not in columns:
        raise UserError(
            f"audio: {path} has no column 'path' (or {', '.join(_NAMES['path'][1:4])}, ...), only "
            f"{list(header)}; a manifest starts with a header line"
        )
    return columns


def _is_fairseq(lines: Sequence[str]) -> bool:
    """Whether the first line is a folder, and the others are paths with numbers of samples."""
    first, second = lines[0].strip(), lines[1].split("\t") if len(lines) > 1 else []
    return "\t" not in first and "/" in first and len(second) == 2 and second[1].strip().isdigit()


def _fairseq(path: Path, lines: Sequence[str]) -> Iterator[Entry]:
    root = Path(lines[0].strip())
    for number, line in enumerate(lines[1:], start=2):
        name, _, samples = line.strip().partition("\t")
        if not name:
            continue
        where = f"audio: {path} line {number}"
        if not samples.isdigit():
            raise UserError(f"{where}: {samples!r}; expected a number of samples")
        # Their number is at the file's own rate, which is not stated: the header tells it.
        yield Entry(where, str(root / name), id=name)


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
        for number, line in enumerate(text.splitlines(), start=1):
            where = f"audio: {path} line {number}"
            if line.strip():
                try:
                    records.append((where, _parsed(line)))
                except ValueError as error:
                    raise UserError(f"{where}: no JSON ({error}); expected an object a line") from (
                        error
                    )
    for where, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{where}: {type(record).__name__}; expected an object")
        known = _of_lhotse(record, where) if "recording" in record else _known(record)
        yield _entry(known, where)


def _parsed(text: str) -> Any:
    """A value of JSON; raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    lower = {str(name).lower(): value for name, value in record.items()}
    found = {
        what: next((lower[name] for name in names if lower.get(name) is not None), None)
        for what, names in _NAMES.items()
    }
    return {what: value for what, value in found.items() if value is not None}


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
        "speaker": next((s["speaker"] for s in said if s.get("speaker")), None),
        "transcript": " ".join(str(s["text"]) for s in said if s.get("text")),
    }
    return {what: value for what, value in row.items() if value is not None}


def _objects(record: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """A field that is a list of objects; empty if it is missing."""
    value = record.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{where}: {name!r} is no list of objects")
    return value


def _entry(row: Mapping[str, Any], where: str) -> Entry:
    """An utterance of values that may be text or of JSON."""
    path = row.get("path")
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{where}: 'path' is empty; expected a path relative to the manifest")
    offset, seconds, end = (_seconds(row, name, where) for name in ("offset", "seconds", "end"))
    if end is not None and seconds is None:
        seconds = end - (offset or 0.0)
        if seconds < 0:
            raise UserError(f"{where}: ends at {end:g} s, before it starts")
    speaker = row.get("speaker")
    return Entry(
        where=where,
        path=path.strip(),
        id=str(row.get("id") or "").strip(),
        seconds=seconds,
        offset_seconds=offset,
        speaker=None if speaker is None else str(speaker).strip(),
        transcript=str(row.get("transcript") or ""),
    )


def _seconds(row: Mapping[str, Any], name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf or isinstance(value, bool):
        raise UserError(f"{where}: {name}={value!r}; expected a number of seconds, or nothing")
    return seconds


# --- Kaldi ---


def _kaldi(folder: Path) -> Iterator[Entry]:
    """wav.scp, and utt2spk, segments and text if they are there."""
    speakers, texts = (_pairs(folder / name) for name in ("utt2spk", "text"))
    known = (folder / "utt2spk").is_file()
    paths = _pairs(folder / "wav.scp")
    segments = folder / "segments"
    if not segments.is_file():
        for number, (id_, path) in enumerate(paths.items(), start=1):
            speaker = speakers.get(id_, "") if known else None
            where = f"audio: {folder / 'wav.scp'} line {number}"
            yield Entry(where, path, id_, None, None, speaker, texts.get(id_, ""))
        return
    for number, (id_, rest) in enumerate(_pairs(segments).items(), start=1):
        where = f"audio: {segments} line {number}"
        fields = rest.split()
        if len(fields) < 3 or fields[0] not in paths:
            raise UserError(f"{where}: expected a recording of wav.scp, start and end")
        row = {
            "path": paths[fields[0]], "id": id_, "offset": fields[1], "end": fields[2],
            "transcript": texts.get(id_, ""),
        }  # fmt: skip
        if known:
            row["speaker"] = speakers.get(id_, "")
        yield _entry(row, where)


def _pairs(path: Path) -> dict[str, str]:
    """First word of each line -> the rest; empty if there is no such file."""
    if not path.is_file():
        return {}
    pairs = (line.strip().partition(" ") for line in _text(path).replace("\t", " ").splitlines())
    return {name: rest.strip() for name, _, rest in pairs if name}


# --- text ---


def _text(path: Path) -> str:
    try:
        return text_files.decode(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"audio: cannot read {path} as UTF-8 or UTF-16 text: {error}") from error
