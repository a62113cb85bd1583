"""Datasets of the Hugging Face hub as audio: `hf:NAME/CONFIG/SPLIT`, or `...@REVISION`.

The `datasets` library says which files a split has. Parquet keeps columns apart, so rows are listed
without their sound; sound is fetched when it is asked for, a row group at a time, and kept, still
encoded, among huggingface_hub's assets. From then on a row is read as a file is.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from speechsim_jax.audio.corpus import DATASET, AudioError, Corpus, Source
from speechsim_jax.errors import UserError

# The usual names, the surest first; the path of the sound itself is the last that may be an id.
_IDS = ("id", "utt_id", "utterance_id", "uid", "segment_id", "key", "file")
_SPEAKERS = ("speaker_id", "speaker", "client_id", "spk_id", "speaker_name")
_TRANSCRIPTS = ("text", "transcript", "transcription", "sentence", "normalized_text")
_PATH = "the path of the sound"

_WORKERS = 4  # each holds a row group in memory

log = logging.getLogger(__name__)


class Address(NamedTuple):
    """Where a split is: hub name or folder, configuration, split, and branch, tag or commit."""

    name: str
    config: str
    split: str
    revision: str | None

    @classmethod
    def of(cls, text: str) -> "Address":
        """From hf:NAME/CONFIG/SPLIT, with or without @REVISION. Raises UserError."""
        place, at, revision = text.removeprefix(DATASET).partition("@")
        parts = place.rsplit("/", 2)
        if len(parts) < 3 or not all(parts) or (at and not revision):
            raise UserError(
                f"audio: {text}: expected hf:NAME/CONFIG/SPLIT, e.g. "
                "hf:openslr/librispeech_asr/clean/validation, where NAME is a dataset of the hub "
                "or a folder, and CONFIG is `default` if it has none; @REVISION may follow"
            )
        folder = Path(parts[0]).expanduser()
        if folder.is_dir():
            if at:
                raise UserError(
                    f"audio: {text}: {folder} is a folder, and a folder has no revision"
                )
            parts[0] = str(folder)
        return cls(parts[0], parts[1], parts[2], revision or None)

    def __str__(self) -> str:
        place = f"{DATASET}{self.name}/{self.config}/{self.split}"
        return place if self.revision is None else f"{place}@{self.revision}"


@dataclass(frozen=True)
class RowGroup:
    """The sound of one row group of a Parquet file; `kept` is where it is once fetched.

    `key` tells its content from others'.
    """

    url: str
    group: int
    column: str
    key: str
    kept: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def fetch(self) -> None:
        """Bring it here, unless it is here already. Raises UserError if that fails."""
        with self._lock:
            if self.kept.exists():
                return
            try:
                _keep(_sound_of(self.url, self.group, self.column), self.kept)
            except Exception as error:  # of several libraries, which change with their versions
                raise UserError(
                    f"audio: {self.url}: row group {self.group} cannot be fetched "
                    f"({_reason(error)}); check the connection and the room in {self.kept.parent}, "
                    "and start again: what is here is not fetched twice"
                ) from error

    def sound(self, row: int) -> bytes | None:
        """One row, fetched if need be: a sound file's bytes."""
        import pyarrow as pa

        self.fetch()
        with pa.memory_map(str(self.kept)) as file:
            return pa.ipc.open_file(file).read_all().column(0)[row].as_py()


class Row(NamedTuple):
    """One utterance of a dataset: which row of which block."""

    block: RowGroup
    number: int

    @property
    def key(self) -> str:
        """What tells its content from others': file, commit (or size, in a folder) and row."""
        return f"{self.block.key}#{self.number}"

    def encoded(self) -> bytes:
        """A sound file's bytes; raises AudioError for an empty row, UserError if out of reach."""
        if not (sound := self.block.sound(self.number)):
            raise AudioError("has no sound in its row")
        return sound


def open_dataset(text: str) -> Corpus:
    """List a split, in its own order, without fetching its sound.

    Ids, speakers and transcripts are the columns of the usual names; an id is the path of the sound
    or else the row's number where no column tells all rows apart. The origin names the commit.
    Raises UserError.
    """
    address = Address.of(text)
    urls, features = _files_of(address)
    try:
        with ThreadPoolExecutor(_WORKERS) as pool:
            listed = list(pool.map(lambda url: _list(url, address, features), urls))
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(
            f"audio: {address} cannot be listed ({_reason(error)}); check the connection"
        ) from error
    rows = [row for one, _ in listed for row in one]
    shared = set.intersection(*(set(columns) for _, columns in listed))
    columns = {name: [text for _, c in listed for text in c[name]] for name in shared}
    names = _ids(columns, len(rows))
    speakers, transcripts = _first(columns, _SPEAKERS), _first(columns, _TRANSCRIPTS)
    sources = [
        Source(
            name,
            row=row,
            speaker=speakers[number] if speakers else "",
            transcript=transcripts[number] if transcripts else "",
        )
        for number, (name, row) in enumerate(zip(names, rows))
    ]
    return Corpus(str(address._replace(revision=_commit(urls))), tuple(sources))


def fetch(sources: Iterable[Source]) -> None:
    """Bring the sound of these sources here, several row groups at a time. Raises UserError."""
    blocks = dict.fromkeys(s.row.block for s in sources if isinstance(s.row, Row))
    missing = [block for block in blocks if not block.kept.exists()]
    if missing:
        log.info("fetching %d row groups, the first of %s", len(missing), missing[0].url)
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="speechsim-fetch")
    try:
        for _ in pool.map(RowGroup.fetch, missing):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _files_of(address: Address) -> tuple[Sequence[str], Mapping[str, Any]]:
    """Paths or URLs of a split's Parquet files, and what the dataset declares of its columns."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"audio: {address} needs the library datasets; install it with: pip install datasets"
        ) from None
    try:
        builder = datasets.load_dataset_builder(
            address.name, address.config, revision=address.revision
        )
    except Exception as error:  # as above
        raise UserError(
            f"audio: {address}: {_reason(error)}; expected hf:NAME/CONFIG/SPLIT, CONFIG being "
            "`default` where there is none, and the hub within reach"
        ) from error
    files = {str(split): list(urls) for split, urls in (builder.config.data_files or {}).items()}
    if address.split not in files:
        raise UserError(
            f"audio: {address} has no split {address.split!r}; it has {', '.join(files)}"
        )
    urls = files[address.split]
    if other := [url for url in urls if not url.endswith(".parquet")]:
        raise UserError(
            f"audio: {address} keeps its sound in files such as {other[0].rpartition('/')[2]}, and "
            "only Parquet is read from the hub; download it and give its folder: hf download "
            f"{address.name} --repo-type dataset --local-dir FOLDER"
        )
    return urls, builder.info.features or {}


def _list(
    url: str, address: Address, features: Mapping[str, Any]
) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows of one file, and what its columns say of them; no sound is fetched."""
    import pyarrow.parquet as pq

    with _opened(url) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        schema, groups = parquet.schema_arrow, parquet.metadata
        sound = _sound_column(schema, features, address)
        usual = (*_IDS, *_SPEAKERS, *_TRANSCRIPTS)
        wanted = [name for name in schema.names if name in usual and _is_text(schema.field(name))]
        has_path = "path" in _subfields(schema.field(sound))
        table = parquet.read(columns=[*wanted, *([f"{sound}.path"] if has_path else [])])
    columns = {name: _texts(table.column(name)) for name in wanted}
    if has_path:
        paths = [(each or {}).get("path") or "" for each in table.column(sound).to_pylist()]
        columns[_PATH] = paths
    key, folder = _content_key(url), _cache_folder(url, address)
    rows = [
        Row(block, number)
        for group in range(groups.num_row_groups)
        for block in [RowGroup(url, group, sound, f"{key}/{group}", folder / f"{group}.arrow")]
        for number in range(groups.row_group(group).num_rows)
    ]
    return rows, columns


def _sound_column(schema: Any, features: Mapping[str, Any], address: Address) -> str:
    """The column of type Audio, or else of bytes in a struct; one called audio before others."""
    import datasets

    declared = {**datasets.Features.from_arrow_schema(schema), **features}
    holders = [each.name for each in schema if "bytes" in _subfields(each)]
    for kind in (datasets.Audio, dict):  # a dict is a struct that nothing is said of
        found = [name for name in holders if isinstance(declared[name], kind)]
        if found:
            return "audio" if "audio" in found else found[0]
    raise UserError(
        f"audio: {address} has no column of sound, only {', '.join(schema.names)}; expected one of "
        "type Audio that holds bytes"
    )


def _sound_of(url: str, group: int, column: str) -> Any:
    """A row group's column of bytes, as a pyarrow table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _opened(url) as file:
        table = pq.ParquetFile(file, pre_buffer=True).read_row_group(
            group, columns=[f"{column}.bytes"]
        )
    bytes_of = pc.struct_field  # pyright: ignore[reportAttributeAccessIssue]
    return pa.table({"bytes": bytes_of(table.column(column), "bytes")})


def _keep(table: Any, path: Path) -> None:
    """Write a table; a reader sees all of it or nothing."""
    import pyarrow as pa

    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _opened(url: str) -> Any:
    """A file, here or on the hub, that is read where it is asked to be and nowhere else.

    Reading ahead, as file systems are set to, would fetch the sound that lies between the columns.
    """
    import fsspec.core

    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem.open(path, "rb", cache_type="none")


def _content_key(url: str) -> str:
    """The URL, which names the commit; of a file in a folder its name and size."""
    if "://" in url:
        return url
    path = Path(url)
    return f"{path.name}:{path.stat().st_size}"


def _cache_folder(url: str, address: Address) -> Path:
    """Where the sound of a file is kept; a file in a folder that has changed is another file."""
    from huggingface_hub import cached_assets_path

    dataset, told = address.name, url
    if "://" not in url:
        status = Path(url).stat()
        dataset, told = Path(dataset).resolve().name, f"{url}:{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:24]
    return cached_assets_path("speechsim_jax", namespace=dataset, subfolder=digest)


def _commit(urls: Sequence[str]) -> str | None:
    """The commit that the files are of; None in a folder."""
    found = re.search(r"^hf://[^@]+@([^/]+)/", urls[0])
    return found[1] if found else None


def _ids(columns: Mapping[str, list[str]], count: int) -> list[str]:
    for name in (*_IDS, _PATH):
        texts = columns.get(name, [])
        if texts and all(texts) and len(set(texts)) == count:
            return texts
    digits = len(str(count - 1))
    return [f"{number:0{digits}d}" for number in range(count)]


def _first(columns: Mapping[str, list[str]], names: Sequence[str]) -> list[str]:
    return next((columns[name] for name in names if name in columns), [])


def _texts(column: Any) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _is_text(field_: Any) -> bool:
    """Whether a column's values can be told as text."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    return any(is_one(field_.type) for is_one in kinds)


def _subfields(field_: Any) -> list[str]:
    import pyarrow as pa

    return [each.name for each in field_.type] if pa.types.is_struct(field_.type) else []


def _reason(error: Exception) -> str:
    """What went wrong, in the first line of its own words."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].rstrip(".")
