"""Files that are checked when they are read back: a flipped bit or a missing end is noticed.

A record is JSON that starts with the CRC-32 of everything after it. Other files are listed in a
record with their `fingerprint`. CRC-32 notices every single flipped bit, and every burst of up to
32.
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import AnyPath, atomic_write

_HEAD = re.compile(rb'\{"checksum": "([0-9a-f]{8})", ')
_CHUNK = 1 << 22


class DamagedFileError(UserError):
    """A file that was written by this program and cannot be read back: named, with the reason."""


def fingerprint(path: AnyPath) -> list[int]:
    """Size in bytes and CRC-32 of a file."""
    size = value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            value = zlib.crc32(chunk, value)
    return [size, value]


def check_file(path: AnyPath, expected: list[int], shown: AnyPath | None = None) -> None:
    """Raise DamagedFileError unless the file is there and has this fingerprint.

    Args:
      path: the file.
      expected: its `fingerprint` when it was written.
      shown: the path in the message, if `path` is a copy.
    """
    shown = shown or path
    try:
        actual = fingerprint(path)
    except OSError as error:
        raise DamagedFileError(
            f"{shown} cannot be read: {error.strerror or type(error).__name__}"
        ) from error
    if actual[0] != expected[0]:
        raise DamagedFileError(f"{shown} is damaged: {actual[0]} of {expected[0]} bytes")
    if actual != expected:
        raise DamagedFileError(f"{shown} is damaged: its checksum does not match")


def write_record(path: AnyPath, format: int, content: Mapping[str, Any]) -> AnyPath:
    """Write a record atomically.

    Args:
      path: the file.
      format: number of the layout of `content`.
      content: what JSON can hold.
    """
    body = json.dumps({"format": format, **content}).encode()[1:]
    text = b'{"checksum": "%08x", ' % zlib.crc32(body) + body
    return atomic_write(path, lambda new: new.write_bytes(text))


def read_record(path: AnyPath, format: int) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
      DamagedFileError: the file is missing or not as it was written.
      UserError: it is of another format.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}"
        ) from error
    head = _HEAD.match(text)
    if head is not None and b"%08x" % zlib.crc32(text[head.end() :]) == head[1]:
        record = json.loads(text)
        if record["format"] == format:
            return record
    elif (other := _format_without_checksum(text)) in (None, format):
        raise DamagedFileError(f"{path} is damaged: its checksum does not match")
    else:
        record = {"format": other}
    raise UserError(
        f"{path} is of format {record['format']}, this version reads {format}; "
        "run the comparison again with this version"
    )


def _format_without_checksum(text: bytes) -> int | None:
    """The format that a record of version 0.1, without a checksum, states."""
    try:
        record = json.loads(text)
    except ValueError:
        return None
    stated = record.get("format") if isinstance(record, dict) else None
    return stated if isinstance(stated, int) and "checksum" not in record else None
