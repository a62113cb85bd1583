"""Files that are shorter than their headers say: cut off while they were copied or downloaded.

libsndfile takes the length of the file for that of such audio. A header that states no length (0,
or all ones, as programs write to a pipe) is not judged.
"""

import io
import struct
from pathlib import Path

# Sizes that writers to a pipe leave in the header.
_UNKNOWN = (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Writers may forget the padding byte, and round.
_TOLERANCE = 8


def truncated(file: Path | io.BytesIO) -> str | None:
    """Says what is missing at the end of a file, None if nothing is or nobody knows."""
    try:
        if isinstance(file, io.BytesIO):
            return _of(io.BytesIO(file.getbuffer()), len(file.getbuffer()))
        with file.open("rb") as opened:
            return _of(opened, file.stat().st_size)
    except (OSError, struct.error, ValueError):
        return None  # opening it to read says why


def _of(file: io.BufferedIOBase, size: int) -> str | None:
    head = file.read(12)
    end = None
    if head[:4] in (b"RIFF", b"RIFX") and head[8:] == b"WAVE":
        end = _of_chunks(file, size, "<" if head[:4] == b"RIFF" else ">", b"data")
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        end = _of_chunks(file, size, ">", b"SSND")
    elif head[:4] in (b".snd", b"dns."):
        offset, length = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:])
        end = None if length in _UNKNOWN else offset + length
    elif head[:3] == b"ID3" or head[:1] == b"\xff":
        end = _of_mp3(file, head)
    if end is None or end <= size + _TOLERANCE or end >= 2**31 - 4096 > size:
        return None
    return f"the file has {size} of {end} bytes"


def _of_chunks(file: io.BufferedIOBase, size: int, order: str, name: bytes) -> int | None:
    """Where the chunk of the samples ends, by its header."""
    position = 12
    while position + 8 <= size:
        file.seek(position)
        head = file.read(8)
        (length,) = struct.unpack(f"{order}I", head[4:])
        if head[:4] == name:
            return None if length in _UNKNOWN else position + 8 + length
        position += 8 + length + length % 2
    return None


def _of_mp3(file: io.BufferedIOBase, head: bytes) -> int | None:
    """Where the frames end, by the Xing or Info header of the first one."""
    start = 0
    if head[:3] == b"ID3":
        file.seek(6)
        a, b, c, d = file.read(4)
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    file.seek(start)
    frame = file.read(256)
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark, 4, 64)
        if at < 0:
            continue
        (flags,) = struct.unpack(">I", frame[at + 4 : at + 8])
        if flags & 2:  # the number of bytes is there, after that of frames
            at += 8 + 4 * (flags & 1)
            (length,) = struct.unpack(">I", frame[at : at + 4])
            return start + length
    return None
