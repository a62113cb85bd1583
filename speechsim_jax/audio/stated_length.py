"""Files that are shorter than their headers say: cut off while they were copied or downloaded.

Where a format has no length in its header, its end says that it is the end, or is missing.
libsndfile takes the length of the file for that of such audio. A header that states no length (0,
or all ones, as programs write to a pipe) is not judged.
"""

import io
import re
import struct
from pathlib import Path
from typing import NamedTuple

from speechsim_jax.audio import mp3_frames

# Sizes of 32 bits from here on are what a pipe has left (0x7FFFFFFF, 0xFFFFFFFF, ...), or wrap.
_LARGEST_IN_32_BITS = 2**31 - 4096
# Writers may forget the padding byte, and round.
_TOLERANCE = 8
# Real files have a few; zeros read as chunks that are empty.
_MOST_CHUNKS = 1000
_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255


def fault(file: Path | io.BytesIO) -> str | None:
    """Why a file would not be read to its end, None if it would or nobody knows."""
    try:
        if isinstance(file, io.BytesIO):
            return _of(io.BytesIO(file.getbuffer()), len(file.getbuffer()))
        with file.open("rb") as opened:
            return _of(opened, file.stat().st_size)
    except (OSError, struct.error, ValueError):
        return None  # opening it to read says why


class _Chunks(NamedTuple):
    """How a format divides a file into chunks.

    Attributes:
        first: Where the first chunk begins.
        name_bytes: Of the name of a chunk, of which the first four are compared.
        size: The format of the size that follows it, for `struct`.
        samples: Name of the chunk of the samples.
        aligned: Chunks begin at multiples of so many bytes.
        inclusive: Whether the size counts name and size.
        all_needed: Whether samples cannot be read without the chunks behind them.
    """

    first: int
    name_bytes: int
    size: str
    samples: bytes
    aligned: int = 2
    inclusive: bool = False
    all_needed: bool = False


_RIFF = _Chunks(12, 4, "<I", b"data")
_RIFX = _RIFF._replace(size=">I")
_AIFF = _Chunks(12, 4, ">I", b"SSND")
_W64 = _Chunks(40, 16, "<Q", b"data", aligned=8, inclusive=True)
_CAF = _Chunks(8, 4, ">Q", b"data", aligned=1, all_needed=True)


def _of(file: io.BufferedIOBase, size: int) -> str | None:
    head = file.read(28)
    form, kind = head[:4], head[8:12]
    end = None
    if form in (b"RIFF", b"RIFX", b"RF64", b"BW64") and kind == b"WAVE":
        end = _of_chunks(file, size, _RIFX if form == b"RIFX" else _RIFF)
    elif form == b"FORM" and kind in (b"AIFF", b"AIFC"):
        end = _of_chunks(file, size, _AIFF)
    elif form == b"riff" and head[24:28] == b"wave":
        end = _of_chunks(file, size, _W64)
    elif form == b"caff":
        end = _of_chunks(file, size, _CAF)
    elif form in (b".snd", b"dns."):
        offset, length = struct.unpack(">II" if form == b".snd" else "<II", head[4:12])
        end = offset + length if _is_stated(length, size) else None
    elif head[:8] == b"NIST_1A\n":
        end = _of_sphere(file)
    elif form == b"OggS":
        return _fault_of_ogg(file, size, serial=head[14:18])
    elif head[:3] == b"ID3" or head[:1] == b"\xff":
        end = _of_mp3(file, head)
    if end is None or end <= size + _TOLERANCE:
        return None
    return f"is damaged: the file has {size} of {end} bytes"


def _is_stated(length: int, size: int, bits: int = 32) -> bool:
    """Whether a length in the header of a file of `size` bytes is one."""
    if bits == 64:
        return 0 < length < 2**63
    return 0 < length < _LARGEST_IN_32_BITS or size >= _LARGEST_IN_32_BITS


def _of_chunks(file: io.BufferedIOBase, size: int, chunks: _Chunks) -> int | None:
    """Where the chunk of the samples ends, by its header."""
    position, header = chunks.first, chunks.name_bytes + struct.calcsize(chunks.size)
    bits = 8 * struct.calcsize(chunks.size)
    in_64_bits = end = None
    for _ in range(_MOST_CHUNKS):
        if position + header > size:
            end = position if end is None and position > size else end
            break
        file.seek(position)
        head = file.read(header)
        name = head[:4]
        (length,) = struct.unpack(chunks.size, head[chunks.name_bytes :])
        if name == b"ds64":  # RF64: the sizes of the file and of the samples
            in_64_bits = struct.unpack("<QQ", file.read(16))[1]
        if name == chunks.samples:
            if in_64_bits is not None and length == 0xFFFFFFFF:
                length, bits = in_64_bits, 64
            if not _is_stated(length, size, bits):
                return None
        if chunks.inclusive:
            length -= header
        if length < 0:
            break
        if name == chunks.samples or (chunks.all_needed and end is not None):
            end = position + header + length
            if not chunks.all_needed or end > size:
                break
        position += header + length
        position += -position % chunks.aligned
    return end


def _of_sphere(file: io.BufferedIOBase) -> int | None:
    """NIST: where the samples end, by the lines of the header; None if they are compressed."""
    file.seek(0)
    header = file.read(4096)
    start = int(header[8:16])
    fields = dict(re.findall(rb"^(\w+) -(?:i|s\d+) (\S+)", header[:start], re.MULTILINE))
    if fields.get(b"sample_coding", b"pcm") not in (b"pcm", b"ulaw", b"alaw", b"mu-law"):
        return None
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    count, channels, width = (int(fields.get(name, b"0")) for name in names)
    return start + count * channels * width


def _fault_of_ogg(file: io.BufferedIOBase, size: int, serial: bytes) -> str | None:
    """The last page must be complete, say that it is the last, and be of the first stream."""
    file.seek(max(0, size - _LARGEST_OGG_PAGE))
    end = file.read()
    page = end[max(0, end.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 27 else b""
    if not segments or len(page) < 27 + page[26] + sum(segments) or not page[5] & 4:
        return "is damaged: its end is missing"
    if page[14:18] != serial:
        return "holds several recordings, of which libsndfile reads the first; split it"
    return None


def _of_mp3(file: io.BufferedIOBase, head: bytes) -> int | None:
    """Where the frames end, by the header in the first one."""
    start = mp3_frames.after_tags(head)
    file.seek(start)
    stated = mp3_frames.stated_bytes(file.read(256))
    return None if stated is None else start + stated
