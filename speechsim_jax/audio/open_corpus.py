"""Open folders, manifests, lists, arrays and datasets as a `Corpus`."""

import csv
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile

from speechsim_jax.audio import hub_datasets
from speechsim_jax.audio.corpus import (
    AUDIO_SUFFIXES,
    DATASET,
    DECODE_ERRORS,
    SAMPLE_RATE_HZ,
    AudioError,
    Corpus,
    Source,
)
from speechsim_jax.errors import UserError

log = logging.getLogger(__name__)

AudioInput: TypeAlias = Corpus | str | os.PathLike[str] | Mapping[Any, Any] | Sequence[Any]


def open_corpus(audio: AudioInput) -> Corpus:
    """List the audio in a folder, manifest, list, file, dataset or sequence.

    Nothing is decoded: a missing file in a manifest, list or sequence is an error only when it is
    read (`corpus.read`). An id is the path relative to the root (the folder, or the manifest's
    folder), the manifest's or dataset's `id`, or the position in a dataset or a sequence of arrays.

    Args:
        audio: A folder; a manifest (.tsv, .csv); a list of files (.txt); an audio file; a dataset
            of the Hugging Face hub or a folder, "hf:NAME/CONFIG/SPLIT" (`hub_datasets`); a sequence
            of paths, or of 1-D arrays at 16 kHz (float, or int16 PCM); a mapping from ids to such
            arrays; or a corpus, which is returned as it is.

    Returns:
        The corpus, with speakers and transcripts as far as they are known.

    Raises:
        UserError: audio of another kind, or that cannot be listed; an id that occurs twice.
    """
    if isinstance(audio, Corpus):
        return audio
    if isinstance(audio, str) and audio.startswith(DATASET):
        corpus = hub_datasets.open_dataset(audio)
        origin, sources = corpus.origin, corpus.sources
    elif isinstance(audio, str | os.PathLike):
        path = Path(audio).expanduser()
        origin, sources = str(path), _open_path(path)
    elif isinstance(audio, Mapping):
        origin = "arrays"
        sources = [_array_source(str(key), array) for key, array in audio.items()]
    elif isinstance(audio, Sequence):
        origin, sources = "sequence", _open_sequence(audio)
    else:
        raise UserError(
            f"audio: got {type(audio).__name__}; pass a folder, a manifest, hf:NAME/CONFIG/SPLIT, "
            "a list of paths, or a list or mapping of 1-D arrays"
        )
    if not sources:
        raise UserError(f"audio: {origin} names no audio; expected at least one file or array")
    id_, uses = Counter(source.id for source in sources).most_common(1)[0]
    if uses > 1:
        raise UserError(f"audio: id {id_!r} appears {uses} times in {origin}; make ids unique")
    return Corpus(origin, tuple(sources))


def _open_path(path: Path) -> list[Source]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(
            f"audio: {path} does not exist; pass a folder, manifest, list, file or "
            "hf:NAME/CONFIG/SPLIT"
        )
    if suffix in (".tsv", ".csv"):
        return _open_manifest(path)
    if suffix == ".txt":
        lines = (line.strip() for line in _text_lines(path))
        return [_listed_source(line, path.parent) for line in lines if line and line[0] != "#"]
    if suffix in AUDIO_SUFFIXES:
        return [_file_source(path.name, path.parent)]
    raise UserError(
        f"audio: {path} has an unknown suffix; expected a folder, a manifest (.tsv .csv), "
        f"a list (.txt) or audio ({' '.join(AUDIO_SUFFIXES)})"
    )


def _open_folder(root: Path) -> list[Source]:
    """Every audio file below `root`, sorted by id, with transcripts in LibriSpeech's layout."""
    sources: list[Source] = []
    for folder, names in _walk(root):
        transcripts: dict[str, str] = {}
        for name in names:
            if name.endswith(".trans.txt"):
                pairs = (line.strip().partition(" ") for line in _text_lines(folder / name))
                transcripts.update({stem: text.strip() for stem, _, text in pairs})
            elif Path(name).suffix.lower() not in AUDIO_SUFFIXES:
                log.debug("ignored %s: not audio", folder / name)
        for name in names:
            if Path(name).suffix.lower() in AUDIO_SUFFIXES:
                relative = (folder / name).relative_to(root)
                source = _file_source(str(relative), root)
                sources.append(replace(source, transcript=transcripts.get(relative.stem, "")))
    if not sources:
        raise UserError(
            f"audio: no audio below {root}; expected files ending in {' '.join(AUDIO_SUFFIXES)}"
        )
    return sorted(sources, key=lambda source: source.id)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `root` with their visible files; follows links, each folder once."""

    def fail(error: OSError) -> None:
        raise UserError(f"audio: cannot read folder {error.filename}: {error.strerror}") from error

    visited: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link to a parent would never end
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        yield Path(folder), [name for name in names if name[0] != "."]


def _open_manifest(path: Path) -> list[Source]:
    tab_separated = path.suffix.lower() == ".tsv"
    reader = csv.DictReader(
        _text_lines(path),
        delimiter="\t" if tab_separated else ",",
        quoting=csv.QUOTE_NONE if tab_separated else csv.QUOTE_MINIMAL,
    )
    try:
        if "path" not in (reader.fieldnames or ()):
            raise UserError(
                f"audio: {path} has no column 'path', only {list(reader.fieldnames or ())}; "
                "a manifest starts with a header line"
            )
        return [_row_source(row, path, reader.line_num) for row in reader]
    except csv.Error as error:
        raise UserError(f"audio: {path} line {reader.line_num}: {error}") from error


def _row_source(row: dict[Any, Any], manifest: Path, line: int) -> Source:
    where = f"audio: {manifest} line {line}"
    if None in row:
        raise UserError(f"{where}: more fields than the header has columns; check the separators")
    if not (name := (row["path"] or "").strip()):
        raise UserError(f"{where}: 'path' is empty; expected a path relative to the manifest")
    source = _listed_source(name, manifest.parent)
    seconds = None
    if text := (row.get("seconds") or "").strip():
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise UserError(f"{where}: seconds={text!r}; expected a number of seconds, or nothing")
    return replace(
        source,
        id=row.get("id") or source.id,
        seconds=seconds,
        speaker=(row["speaker"] or "") if "speaker" in row else source.speaker,
        transcript=row.get("transcript") or "",
    )


def _open_sequence(items: Sequence[Any]) -> list[Source]:
    digits = len(str(len(items) - 1))
    sources: list[Source] = []
    for position, item in enumerate(items):
        if isinstance(item, str) and item.startswith(DATASET):
            raise UserError(f"audio: {item} is a dataset; a list holds files, or pass it alone")
        if isinstance(item, str | os.PathLike):
            path = Path(item).expanduser()
            if path.is_dir():
                raise UserError(f"audio: {path} is a folder; a list holds files, or pass it alone")
            # Without a root, the name of a folder is no evidence of the speaker.
            sources.append(Source(path.as_posix(), path, speaker=_librispeech_speaker(path)))
        else:
            sources.append(_array_source(f"{position:0{digits}d}", item))
    return sources


def _listed_source(name: str, root: Path) -> Source:
    return replace(_file_source(name, root), listed=not Path(name).is_absolute())


def _file_source(name: str, root: Path) -> Source:
    """A file by its path, relative to `root` or absolute; the speaker is taken from the path."""
    path = root / name
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    speaker = _librispeech_speaker(path)
    inside = not relative.is_absolute() and relative.parts[0] != ".."
    if not speaker and inside and len(relative.parts) > 1:
        speaker = relative.parts[0]
    return Source(relative.as_posix(), path, speaker=speaker)


def _librispeech_speaker(path: Path) -> str:
    """The speaker in .../<speaker>/<chapter>/<speaker>-<chapter>-<nnnn>.flac, else ''."""
    folders, numbers = path.absolute().parts[-3:-1], path.stem.split("-")
    matches = len(numbers) == 3 and all(part.isdigit() for part in numbers)
    return numbers[0] if matches and list(folders) == numbers[:2] else ""


def _array_source(id_: str, array: Any) -> Source:
    if not hasattr(array, "__array__"):
        raise UserError(
            f"audio: item {id_!r} is a {type(array).__name__}; expected a 1-D array or a path"
        )
    samples = np.asarray(array)
    pcm = samples.dtype.kind == "i" and samples.dtype.itemsize == 2
    if samples.ndim != 1 or not (pcm or samples.dtype.kind == "f"):
        raise UserError(
            f"audio: array {id_!r} is {samples.dtype} of shape {samples.shape}; expected 1-D float "
            "or int16 samples at 16 kHz, so mix channels first"
        )
    return Source(id_, seconds=len(samples) / SAMPLE_RATE_HZ, samples=samples)


def _text_lines(path: Path) -> list[str]:
    """Lines with their line ends, which the csv module needs."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"audio: cannot read {path} as UTF-8 text: {error}") from error


def with_durations(corpus: Corpus, workers: int = 4) -> Corpus:
    """The corpus with every unknown duration filled in from the header of the file.

    Rows of a dataset are fetched first.

    Args:
        corpus: What to fill in; known durations stay.
        workers: Threads that read headers.

    Returns:
        The corpus; `seconds` is None where there is no readable header.

    Raises:
        UserError: rows of a dataset cannot be fetched.
    """
    hub_datasets.fetch(source for source in corpus.sources if source.seconds is None)
    with ThreadPoolExecutor(workers) as pool:
        return replace(corpus, sources=tuple(pool.map(_with_seconds, corpus.sources)))


def _with_seconds(source: Source) -> Source:
    if source.seconds is not None:
        return source
    try:
        if (file := source.file()) is None:
            return source
        return replace(source, seconds=float(soundfile.info(file).duration))
    except (*DECODE_ERRORS, AudioError) as error:
        log.debug("no readable header in %s: %s", source.id, error)
        return source
