"""Datasets of the Hugging Face hub as audio: `hf:NAME/CONFIG/SPLIT`, or `...@REVISION`.

The `datasets` library lists the files of a split. Parquet stores columns separately, so rows are
listed without downloading their audio. Audio is fetched on demand, a row group at a time, and
cached, still encoded, among huggingface_hub's assets. From then on a row is read like a file.
"""

import hashlib
import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from speechsim_jax.audio.columns import GENDER, GENDER_NAMES, columns_of, gender_of
from speechsim_jax.audio.corpus import DATASET, AudioError, Corpus, Source
from speechsim_jax.audio.paths import looked_up
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import atomic_write

# Usual names of columns, the most reliable first; for ids, the path of the audio comes last.
_IDS = ("id", "utt_id", "utterance_id", "uid", "segment_id", "key", "file")
_SPEAKERS = ("speaker_id", "speaker", "client_id", "spk_id", "speaker_name")
_TRANSCRIPTS = ("text", "transcript", "transcription", "sentence", "normalized_text")
_PATH = "path of the audio"  # no column has this name
# A column that takes more, compressed, is no label: long texts are not fetched.
_LABEL_BYTES_A_ROW, _PAGE_BYTES = 64, 4096
_USUAL = (*_IDS, *_SPEAKERS, *_TRANSCRIPTS, _PATH)

_WORKERS = 4  # each holds a row group in memory

log = logging.getLogger(__name__)


class Address(NamedTuple):
    """The address of a split.

    Attributes:
        name: A dataset of the hub, or a folder.
        config: Its configuration; `default` if it has none.
        split: E.g. train.
        revision: Branch, tag or commit; None for the default branch, and for folders.
    """

    name: str
    config: str
    split: str
    revision: str | None

    @classmethod
    def of(cls, text: str) -> "Address":
        """Parse hf:NAME/CONFIG/SPLIT, with or without @REVISION. Raises UserError."""
        location, at, revision = text.removeprefix(DATASET).partition("@")
        parts = location.rsplit("/", 2)
        if len(parts) < 3 or not all(parts) or (at and not revision):
            raise UserError(
                f"audio: {text}: expected hf:NAME/CONFIG/SPLIT, e.g. "
                "hf:openslr/librispeech_asr/clean/validation, where NAME is a dataset of the hub "
                "or a folder, and CONFIG is `default` if it has none; @REVISION may follow"
            )
        folder = looked_up(parts[0], "audio")
        if folder.is_dir():
            if at:
                raise UserError(
                    f"audio: {text}: {folder} is a folder, and a folder has no revision"
                )
            parts[0] = str(folder)
        return cls(parts[0], parts[1], parts[2], revision or None)

    def __str__(self) -> str:
        text = f"{DATASET}{self.name}/{self.config}/{self.split}"
        return text if self.revision is None else f"{text}@{self.revision}"


@dataclass(frozen=True)
class RowGroup:
    """The audio of one row group of a Parquet file.

    Attributes:
        url: The file.
        index: Which row group of it.
        column: The column that holds the audio.
        key: Identifies the content.
        cached: The local file, once the group is fetched.
    """

    url: str
    index: int
    column: str
    key: str
    cached: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def fetch(self) -> None:
        """Download it unless it is cached. Raises UserError if that fails."""
        with self._lock:
            if self.cached.exists():
                return
            try:
                _write(_audio_of(self.url, self.index, self.column), self.cached)
            except Exception as error:  # of several libraries; types differ between versions
                raise UserError(
                    f"audio: {self.url}: row group {self.index} cannot be fetched "
                    f"({_reason(error)}); check the connection and the free space in "
                    f"{self.cached.parent}, and start again: what is cached is not fetched twice"
                ) from error

    def audio(self, row: int) -> bytes | None:
        """The bytes of one row's audio file; the group is fetched if necessary."""
        import pyarrow as pa

        self.fetch()
        with pa.memory_map(str(self.cached)) as file:
            return pa.ipc.open_file(file).read_all().column(0)[row].as_py()


class Row(NamedTuple):
    """One utterance of a dataset: a row of a row group."""

    group: RowGroup
    number: int

    @property
    def key(self) -> str:
        """Identifies the content: file, commit (or size, in a folder) and row."""
        return f"{self.group.key}#{self.number}"

    def encoded(self) -> bytes:
        """The bytes of an audio file.

        Raises:
            AudioError: the row is empty.
            UserError: it cannot be fetched.
        """
        if not (encoded := self.group.audio(self.number)):
            raise AudioError("has no audio in its row")
        return encoded


def open_dataset(text: str) -> Corpus:
    """List a split in its order, without fetching its audio.

    Ids, speakers and transcripts come from columns of the usual names. Where no such column has
    unique ids, an id is the path of the audio, or else the row's number.

    Args:
        text: An address, hf:NAME/CONFIG/SPLIT[@REVISION].

    Returns:
        The corpus; its origin names the commit.

    Raises:
        UserError: an address, dataset or file that cannot be used, or no connection.
    """
    address = Address.of(text)
    urls, features = _files_of(address)
    try:
        with ThreadPoolExecutor(_WORKERS) as pool:
            files = list(pool.map(lambda url: _list(url, address, features), urls))
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(
            f"audio: {address} cannot be listed ({_reason(error)}); check the connection"
        ) from error
    rows = [row for rows_of_file, _ in files for row in rows_of_file]
    shared = set.intersection(*(set(columns) for _, columns in files))
    columns = {name: [text for _, c in files for text in c[name]] for name in shared}
    names = _ids(columns, len(rows))
    speakers, transcripts = _first(columns, _SPEAKERS), _first(columns, _TRANSCRIPTS)
    sources = [
        Source(
            name,
            row=row,
            speaker=speakers[number] if speakers else "",
            transcript=transcripts[number] if transcripts else "",
            columns=_columns(columns, number),
        )
        for number, (name, row) in enumerate(zip(names, rows))
    ]
    return Corpus(str(address._replace(revision=_commit(urls))), tuple(sources))


def fetch(sources: Iterable[Source]) -> None:
    """Fetch the audio of these sources, several row groups at a time. Raises UserError."""
    groups = dict.fromkeys(s.row.group for s in sources if isinstance(s.row, Row))
    missing = [group for group in groups if not group.cached.exists()]
    if missing:
        log.info("fetching %d row groups, the first of %s", len(missing), missing[0].url)
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="speechsim-fetch")
    try:
        for _ in pool.map(RowGroup.fetch, missing):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _files_of(address: Address) -> tuple[Sequence[str], Mapping[str, Any]]:
    """Paths or URLs of a split's Parquet files, and the declared types of its columns."""
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
            "`default` where there is none, and a connection to the hub"
        ) from error
    files = {str(split): list(urls) for split, urls in (builder.config.data_files or {}).items()}
    if address.split not in files:
        raise UserError(
            f"audio: {address} has no split {address.split!r}; it has {', '.join(files)}"
        )
    urls = files[address.split]
    if other := [url for url in urls if not url.endswith(".parquet")]:
        raise UserError(
            f"audio: {address} has its audio in files such as {other[0].rpartition('/')[2]}, and "
            "only Parquet is read from the hub; download it and pass its folder: hf download "
            f"{address.name} --repo-type dataset --local-dir FOLDER"
        )
    return urls, builder.info.features or {}


def _list(
    url: str, address: Address, features: Mapping[str, Any]
) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows of one file, and its columns of text by name; no audio is fetched."""
    import pyarrow.parquet as pq

    with _opened(url) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        audio = _audio_column(schema, features, address)
        short = _short_columns(metadata)
        names = [
            name
            for name in schema.names
            if _is_text(schema.field(name)) and (name in _USUAL or name in short)
        ]
        declared = _declared(schema, features)
        has_path = "path" in _subfields(schema.field(audio))
        table = parquet.read(columns=[*names, *([f"{audio}.path"] if has_path else [])])
    columns = {name: _texts(table.column(name), declared[name]) for name in names}
    if has_path:
        structs = table.column(audio).to_pylist()
        columns[_PATH] = [(struct or {}).get("path") or "" for struct in structs]
    key, folder = _content_key(url), _cache_folder(url, address)
    groups = [
        RowGroup(url, index, audio, f"{key}/{index}", folder / f"{index}.arrow")
        for index in range(metadata.num_row_groups)
    ]
    rows = [
        Row(group, number)
        for group in groups
        for number in range(metadata.row_group(group.index).num_rows)
    ]
    return rows, columns


def _audio_column(schema: Any, features: Mapping[str, Any], address: Address) -> str:
    """A column of type Audio, or else of bytes in a struct; preferably one called audio."""
    import datasets

    declared = _declared(schema, features)
    candidates = [column.name for column in schema if "bytes" in _subfields(column)]
    for type_ in (datasets.Audio, dict):  # a dict is a struct of no declared type
        names = [name for name in candidates if isinstance(declared[name], type_)]
        if names:
            return "audio" if "audio" in names else names[0]
    raise UserError(
        f"audio: {address} has no column of audio, only {', '.join(schema.names)}; expected one of "
        "type Audio that holds bytes"
    )


def _declared(schema: Any, features: Mapping[str, Any]) -> dict[str, Any]:
    """The types of a file's columns as `datasets` knows them."""
    import datasets

    return {**datasets.Features.from_arrow_schema(schema), **features}


def _short_columns(metadata: Any) -> set[str]:
    """The columns of a file that take little room."""
    sizes: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            name = column.path_in_schema
            sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    most = _LABEL_BYTES_A_ROW * metadata.num_rows + _PAGE_BYTES * metadata.num_row_groups
    return {name for name, size in sizes.items() if size <= most}


def _columns(columns: Mapping[str, list[str]], number: int) -> Mapping[str, str]:
    """What a row says besides its id, speaker and transcript."""
    others = {name: texts[number] for name, texts in columns.items() if name not in _USUAL}
    gender = next((others.pop(name) for name in GENDER_NAMES if others.get(name)), "")
    return columns_of(others | {GENDER: gender_of(gender)})


def _audio_of(url: str, group: int, column: str) -> Any:
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


def _write(table: Any, path: Path) -> None:
    """Write a table atomically, as several threads and processes may fetch the same group."""
    import pyarrow as pa

    def write(new: Path) -> None:
        with pa.OSFile(str(new), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    atomic_write(path, write)


def _opened(url: str) -> Any:
    """A local file or one of the hub, opened without read-ahead.

    The default read-ahead would fetch the audio that lies between the columns that are read.
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
    """Where the audio of a file is cached; a local file that has changed is another file."""
    from huggingface_hub import cached_assets_path

    dataset, identity = address.name, url
    if "://" not in url:
        status = Path(url).stat()
        dataset = Path(dataset).resolve().name
        identity = f"{url}:{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:24]
    return cached_assets_path("speechsim_jax", namespace=dataset, subfolder=digest)


def _commit(urls: Sequence[str]) -> str | None:
    """The commit of the files; None in a folder."""
    match = re.search(r"^hf://[^@]+@([^/]+)/", urls[0])
    return match[1] if match else None


def _ids(columns: Mapping[str, list[str]], count: int) -> list[str]:
    for name in (*_IDS, _PATH):
        texts = columns.get(name, [])
        if texts and all(texts) and len(set(texts)) == count:
            return texts
    digits = len(str(count - 1))
    return [f"{number:0{digits}d}" for number in range(count)]


def _first(columns: Mapping[str, list[str]], names: Sequence[str]) -> list[str]:
    return next((columns[name] for name in names if name in columns), [])


def _texts(column: Any, declared: Any) -> list[str]:
    """Values as text; of a class its name."""
    names = getattr(declared, "names", None)  # of a ClassLabel

    def text(value: Any) -> str:
        if value is None:
            return ""
        if names:
            return names[value] if 0 <= value < len(names) else ""
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [text(value) for value in column.to_pylist()]


def _is_text(field_: Any) -> bool:
    """Whether a column's values can be read as text."""
    import pyarrow as pa

    is_text_type = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean,
    )  # fmt: skip
    return any(test(field_.type) for test in is_text_type)


def _subfields(field_: Any) -> list[str]:
    import pyarrow as pa

    return [subfield.name for subfield in field_.type] if pa.types.is_struct(field_.type) else []


def _reason(error: Exception) -> str:
    """The first line of the message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].rstrip(".")
