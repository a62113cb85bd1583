"""Open folders, manifests, lists, arrays and datasets as a `Corpus`."""

import fnmatch
import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from speechsim_jax.audio import hub_datasets, manifests
from speechsim_jax.audio.corpus import (
    AUDIO_SUFFIXES,
    DATASET,
    ROUNDED_PART_SECONDS,
    SAMPLE_RATE_HZ,
    AudioError,
    Corpus,
    Source,
    channels_of,
    stated_seconds,
)
from speechsim_jax.audio.corpus_layouts import (
    Layout,
    layout_called,
    recognise,
    repeated,
    speaker_by,
    speaker_pattern,
    summary,
)
from speechsim_jax.audio.paths import is_file, looked_up
from speechsim_jax.errors import UserError, counted
from speechsim_jax.settings import Settings

# Of formats that libsndfile does not read.
_OTHER_AUDIO = (
    ".m4a", ".mp4", ".aac", ".mka", ".mkv", ".webm", ".wma", ".amr", ".ac3", ".ra", ".ape", ".wv",
    ".shn",
)  # fmt: skip

log = logging.getLogger(__name__)

AudioInput: TypeAlias = Corpus | str | os.PathLike[str] | Mapping[Any, Any] | Sequence[Any]


def open_corpus(
    audio: AudioInput,
    *,
    layout: str | None = None,
    speaker_from: str | None = None,
    glob: Sequence[str] = (),
    exclude: Sequence[str] = (),
    channel: str = "mean",
    transcripts: bool = True,
) -> Corpus:
    """List the audio in a folder, manifest, list, file, dataset or sequence.

    Nothing is decoded: a missing file in a manifest, list or sequence is an error only when it is
    read (`corpus.read`). An id is the path relative to the root (the folder, or the manifest's
    folder), the manifest's or dataset's `id`, or the position in a dataset or a sequence of arrays.

    A manifest says who speaks, or the path does, where it is of a known corpus (`corpus_layouts`);
    else the speaker is unknown.

    Args:
        audio: A folder (also Kaldi's, or with Hugging Face's metadata.csv); a manifest (.tsv, .csv,
            .jsonl; see `manifests`); a list of files (.txt); an audio file; a dataset of the
            Hugging Face hub or a folder, "hf:NAME/CONFIG/SPLIT" (`hub_datasets`); a sequence of
            paths, or of 1-D arrays at 16 kHz (float, or int16 PCM); a mapping from ids to such
            arrays; or a corpus, which is returned as it is.
        layout: Name of the corpus whose layout is used; by default each path says which it is.
        speaker_from: Regular expression whose group in an id is the speaker.
        glob: Patterns, one of which an id must match, as in `fnmatch`.
        exclude: Patterns that no id may match.
        channel: Of files with several: "mean", "left", "right", a number from 1 on, or "each" as
            an utterance of its own, `id:1`, `id:2`, ...
        transcripts: Whether transcripts that are in files next to the audio are read.

    Returns:
        The corpus, with speakers and transcripts as far as they are known.

    Raises:
        UserError: audio of another kind, or that cannot be listed; an id that occurs twice;
            patterns that match nothing.
    """
    if isinstance(audio, Corpus):
        return audio
    naming = _Naming(
        None if layout is None else layout_called(layout).name,
        None if speaker_from is None else speaker_pattern(speaker_from),
    )
    facts: dict[str, Any] = {}
    if isinstance(audio, str) and audio.startswith(DATASET):
        corpus = hub_datasets.open_dataset(audio)
        origin, sources = corpus.origin, list(corpus.sources)
    elif isinstance(audio, str | os.PathLike):
        path = looked_up(audio, "audio")
        origin, sources = str(path), _open_path(path, naming, facts)
    elif isinstance(audio, Mapping):
        origin = "arrays"
        sources = [_array_source(str(key), array) for key, array in audio.items()]
    elif isinstance(audio, Sequence):
        origin, sources = "sequence", _open_sequence(audio, naming)
    else:
        raise UserError(
            f"audio: got {type(audio).__name__}; pass a folder, a manifest, hf:NAME/CONFIG/SPLIT, "
            "a list of paths, or a list or mapping of 1-D arrays"
        )
    if not sources:
        raise UserError(f"audio: {origin} names no audio; expected at least one file or array")
    sources = _matching(sources, glob, exclude, origin)
    id_, uses = Counter(source.id for source in sources).most_common(1)[0]
    if uses > 1:
        raise UserError(f"audio: id {id_!r} appears {uses} times in {origin}; make ids unique")
    sources, layouts = _of_layouts(sources, naming, transcripts)
    if channel != "mean":
        chosen = _of_channel(sources, channel)
        layouts = [layouts[index] for index, _ in chosen]
        sources = [source for _, source in chosen]
    facts |= _facts(sources, layouts)
    _log_facts(origin, facts, of_files=any(source.path is not None for source in sources))
    return Corpus(origin, tuple(sources), facts)


def open_as(audio: AudioInput, settings: Settings, transcripts: bool = False) -> Corpus:
    """`open_corpus` as the settings say."""
    return open_corpus(
        audio,
        layout=settings.layout,
        speaker_from=settings.speaker_from,
        glob=settings.glob,
        exclude=settings.exclude,
        channel=settings.channel,
        transcripts=transcripts,
    )


class _Naming(NamedTuple):
    """How a path says who speaks.

    Attributes:
        layout: Name of the only layout; None for any.
        pattern: Whose group is the speaker, before any layout.
    """

    layout: str | None = None
    pattern: re.Pattern[str] | None = None

    def speaker(self, path: Path, id_: str) -> str:
        """The speaker of a file; "" if its path does not say."""
        if self.pattern is not None:
            return speaker_by(self.pattern, id_)
        return recognise(path.absolute(), self.layout).speaker


def _matching(
    sources: Sequence[Source], glob: Sequence[str], exclude: Sequence[str], origin: str
) -> list[Source]:
    """The sources whose ids match a pattern of `glob`, and none of `exclude`."""

    def matches(id_: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(id_, pattern) for pattern in patterns)

    chosen = [
        source
        for source in sources
        if (not glob or matches(source.id, glob)) and not matches(source.id, exclude)
    ]
    if not chosen:
        raise UserError(
            f"audio: nothing is left of {origin} with glob={','.join(glob) or '*'} exclude="
            f"{','.join(exclude)}; an id is for example {sources[0].id!r}"
        )
    return chosen


_CHANNELS = {"left": 0, "right": 1}


def _of_channel(sources: Sequence[Source], channel: str) -> list[tuple[int, Source]]:
    """The sources with their channel, each with the index of what it was; raises UserError."""
    if channel != "each":
        number = _CHANNELS.get(channel, int(channel) - 1 if channel.isdecimal() else -1)
        if number < 0:
            raise UserError(
                f"channel is {channel!r}; expected mean, left, right, each or a number from 1 on"
            )
        return [(k, replace(source, channel=number)) for k, source in enumerate(sources)]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(channels_of, sources))
    return [
        (k, replace(source, id=f"{source.id}:{c + 1}", channel=c) if count > 1 else source)
        for k, (source, count) in enumerate(zip(sources, counts))
        for c in range(count)
    ]


def _of_layouts(
    sources: Sequence[Source], naming: _Naming, transcripts: bool
) -> tuple[list[Source], list[Layout | None]]:
    """The files with what their layouts know besides the path, and these layouts."""
    completed, layouts = [], []
    for source in sources:
        layout = None
        if source.path is not None and not source.unusable:
            layout = recognise(source.path.absolute(), naming.layout).layout
        if layout is not None and source.path is not None:
            speaker, text, columns = source.speaker, source.transcript, source.columns
            if layout.tables and not (speaker and text):
                known = _of_table(source.path, layout.tables)
                if known is not None:
                    speaker, text = speaker or known.speaker or "", text or known.transcript
                    columns = columns or known.columns
            if transcripts and not text and layout.transcript is not None:
                text = layout.transcript(source.path, Path(source.path.anchor))
            source = replace(source, speaker=speaker, transcript=text, columns=columns)
        completed.append(source)
        layouts.append(layout)
    return completed, layouts


def _of_table(file: Path, names: tuple[str, ...]) -> manifests.Entry | None:
    """What the first of these manifests that names a file says of it."""
    for path in (file.parent / name for name in names):
        if is_file(path):
            known = _read_table(path, path.stat().st_mtime_ns).get(file.name)
            if known is not None:
                return known
    return None


@functools.lru_cache(maxsize=8)
def _read_table(path: Path, changed: int) -> dict[str, manifests.Entry]:
    """A manifest once; `changed` is part of the key, so an edited one is read again."""
    return {Path(entry.path).name: entry for entry in manifests.entries(path)}


def _facts(sources: Sequence[Source], layouts: Sequence[Layout | None]) -> dict[str, Any]:
    """What is known of the files, for the result."""
    facts: dict[str, Any] = {}
    if any(layouts):
        facts["layouts"] = summary(layouts)
    unknown = sum(not source.speaker for source in sources)
    facts["speakers"] = len({source.speaker for source in sources} - {""})
    if unknown:
        facts["speaker_unknown"] = unknown
    if pairs := repeated(source.id for source in sources if source.path is not None):
        facts["repeated"] = {"utterances": len(pairs), "for example": list(pairs[0])}
    return facts


def _log_facts(origin: str, facts: Mapping[str, Any], of_files: bool) -> None:
    if "layouts" in facts:
        files = ", ".join(f"{counted(n, 'file')} of {name}" for name, n in facts["layouts"].items())
        log.info("%s: %s; %s", origin, files, counted(facts["speakers"], "speaker"))
    if unknown := facts.get("speaker_unknown") if of_files else 0:
        log.info(
            "%s: the speaker of %s is not known, and errors over utterances may be too small; a "
            "manifest can say it, or, where folders are speakers, --speaker_from='^([^/]+)/'",
            origin, counted(unknown, "utterance"),
        )  # fmt: skip
    if "passed_over" in facts:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in facts["passed_over"].items())
        log.warning(
            "%s: passed over %s: libsndfile does not read them; convert them, for example with "
            "ffmpeg -i x.m4a x.flac", origin, kinds,
        )  # fmt: skip
    if "repeated" in facts:
        one, other = facts["repeated"]["for example"]
        log.warning(
            "%s: %s may be there twice, for example %s and %s; choose with glob or exclude",
            origin, counted(facts["repeated"]["utterances"], "utterance"), one, other,
        )  # fmt: skip


def _open_path(path: Path, naming: _Naming, facts: dict[str, Any]) -> list[Source]:
    suffix = path.suffix.lower()
    if path.is_dir():
        if table := manifests.table_in(path):
            facts["manifest"] = table.name
            return _open_manifest(table, naming)
        return _open_folder(path, naming, facts)
    if not path.exists():
        raise UserError(
            f"audio: {path} does not exist; pass a folder, manifest, list, file or "
            "hf:NAME/CONFIG/SPLIT"
        )
    if manifests.is_manifest(path):
        return _open_manifest(path, naming)
    if suffix == ".txt":
        lines = (line.strip() for line in manifests.text_lines(path))
        names = (line for line in lines if line and line[0] != "#")
        return [_listed_source(name, path.parent, naming) for name in names]
    if suffix in AUDIO_SUFFIXES:
        return [_file_source(path.name, path.parent, naming)]
    raise UserError(
        f"audio: {path} has an unknown suffix; expected a folder, a manifest (.tsv .csv .jsonl), "
        f"a list (.txt) or audio ({' '.join(AUDIO_SUFFIXES)})"
    )


def _open_folder(root: Path, naming: _Naming, facts: dict[str, Any]) -> list[Source]:
    """Every audio file below `root`, sorted by id."""
    sources: list[Source] = []
    passed_over: Counter[str] = Counter()
    for folder, names in _walk(root):
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in AUDIO_SUFFIXES:
                relative = (folder / name).relative_to(root)
                sources.append(_file_source(str(relative), root, naming))
            elif suffix in _OTHER_AUDIO:
                passed_over[suffix] += 1
            else:
                log.debug("ignored %s: not audio", folder / name)
    if not sources:
        raise UserError(
            f"audio: no audio below {root}; expected files ending in {' '.join(AUDIO_SUFFIXES)}"
        )
    if passed_over:
        facts["passed_over"] = dict(sorted(passed_over.items(), key=lambda item: (-item[1], item)))
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


def _open_manifest(path: Path, naming: _Naming) -> list[Source]:
    root, suffix = path.parent, ""
    sources, from_start = [], []
    for number, entry in enumerate(manifests.entries(path)):
        if number == 0:
            root, suffix = _root_of(entry.path, path.parent)
        sources.append(_entry_source(entry, root, suffix, naming))
        from_start.append(entry.from_start)
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_from_start, sources, from_start))


def _from_start(source: Source, from_start: bool) -> Source:
    """The first part of a file, if a duration from the start does not fill it."""
    if not from_start or source.seconds is None or source.unusable or source.path is None:
        return source
    try:
        of_file = stated_seconds(source.path)
    except (OSError, ValueError, AudioError):  # reading it says why
        return source
    is_part = of_file is not None and source.seconds < of_file - ROUNDED_PART_SECONDS
    return replace(source, part=True) if is_part else source


def _root_of(name: str, folder: Path) -> tuple[Path, str]:
    """What the first path of a manifest is relative to, and the suffix that it lacks."""
    if not Path(name).is_absolute():
        for inner in ("", "clips", "wavs", "wav", "audio", "data"):
            for suffix in ("", *AUDIO_SUFFIXES):
                if is_file(folder / inner / _on_this_system(f"{name}{suffix}", folder / inner)):
                    return folder / inner, suffix
    return folder, ""


def _entry_source(entry: manifests.Entry, root: Path, suffix: str, naming: _Naming) -> Source:
    source = _listed_source(entry.path + suffix, root, naming)
    if entry.unusable and not source.unusable:
        source = replace(source, unusable=entry.unusable)
    part, offset = entry.offset_seconds is not None, entry.offset_seconds or 0.0
    id_ = entry.id or (f"{source.id}@{offset:g}" if offset else source.id)
    return replace(
        source,
        id=id_,
        seconds=entry.seconds,
        offset_seconds=offset,
        part=part,
        speaker=source.speaker if entry.speaker is None else entry.speaker,
        transcript=entry.transcript,
        columns=entry.columns,
    )


def _open_sequence(items: Sequence[Any], naming: _Naming) -> list[Source]:
    digits = len(str(len(items) - 1))
    sources: list[Source] = []
    for position, item in enumerate(items):
        if isinstance(item, str) and item.startswith(DATASET):
            raise UserError(f"audio: {item} is a dataset; a list holds files, or pass it alone")
        if isinstance(item, str | os.PathLike):
            path = looked_up(item, "audio")
            if path.is_dir():
                raise UserError(f"audio: {path} is a folder; a list holds files, or pass it alone")
            name = path.as_posix()
            sources.append(Source(name, path, speaker=naming.speaker(path, name)))
        else:
            sources.append(_array_source(f"{position:0{digits}d}", item))
    return sources


def _listed_source(name: str, root: Path, naming: _Naming) -> Source:
    """A file that a list or manifest names; what is no path on this machine cannot be used."""
    unusable = ""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|file:", name):
        unusable = "is an address, which is not fetched; name a file"
    elif "\0" in name:
        unusable = "is no name of a file: it has a null character"
    elif name.endswith("|"):
        unusable = "is a command, which is not run; name a file"
    if unusable:
        return Source(name, Path(name), unusable=unusable)
    name = _on_this_system(name, root)
    return replace(_file_source(name, root, naming), listed=not Path(name).is_absolute())


def _on_this_system(name: str, root: Path) -> str:
    """A path with backslashes, as Windows writes it, with slashes if that is then a file."""
    if "\\" in name and not is_file(root / name):
        slashed = name.replace("\\", "/")
        if is_file(root / slashed):
            return slashed
    return name


def _file_source(name: str, root: Path, naming: _Naming) -> Source:
    """A file by its path, relative to `root` or absolute."""
    path = root / name
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    id_ = relative.as_posix()
    return Source(id_, path, speaker=naming.speaker(path, id_))


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
    if source.seconds is not None or source.unusable:
        return source
    try:
        if (file := source.file()) is None:
            return source
        return replace(source, seconds=stated_seconds(file))
    except (OSError, AudioError) as error:
        log.debug("no readable header in %s: %s", source.id, error)
        return source
