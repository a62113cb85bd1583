"""MP3 files whose header states no length, or that of a part: their frames are counted.

Without a Xing, Info or VBRI header libsndfile guesses the length by the first frame, and reads no
further; of files that were joined it reads the first. It is given a header that is right instead.
"""

import io
import struct
from pathlib import Path

# kbit/s of Layer III by index, and Hz by index, of the versions (3: MPEG 1, 2: MPEG 2, 0: 2.5).
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_HEADERS = (b"Xing", b"Info", b"VBRI")
# A header is believed if it states so much of the file.
_ALL_OF_IT = 0.98


def after_tags(head: bytes) -> int:
    """Where the first frame begins, by the first ten bytes of a file."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    a, b, c, d = head[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def stated_bytes(frame: bytes) -> int | None:
    """Bytes of all frames by the first 256 bytes of the first one; None if it does not say."""
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[46:50])
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark, 4, 64)
        if at >= 0 and int.from_bytes(frame[at + 4 : at + 8]) & 2:
            at += 8 + 4 * (frame[at + 7] & 1)  # behind the number of frames
            return int.from_bytes(frame[at : at + 4])
    return None


def with_length(file: Path | io.BytesIO) -> io.BytesIO | None:
    """The file with a header that states its length; None if it needs none."""
    if isinstance(file, io.BytesIO):
        return _completed(file.getvalue())
    with file.open("rb") as opened:
        head = opened.read(10)
        if head[:3] != b"ID3" and not _frame_bytes(head):
            return None
        start = after_tags(head)
        opened.seek(start)
        if _is_right(opened.read(256), file.stat().st_size - start):
            return None
        opened.seek(0)
        return _completed(opened.read())


def _completed(data: bytes) -> io.BytesIO | None:
    start = after_tags(data[:10])
    length = _frame_bytes(data[start : start + 4])
    if not length:
        return None
    first = data[start : start + 256]
    if _is_right(first, len(data) - start):
        return None
    if any(mark in first[4:64] for mark in _HEADERS):
        start += length
    frames = _count(data, start, first)
    if not frames:
        return None
    return io.BytesIO(_header_frame(first, frames, len(data) - start) + data[start:])


def _is_right(frame: bytes, size: int) -> bool:
    """Whether the header in the first frame is one that libsndfile knows, of all `size` bytes."""
    stated = stated_bytes(frame)
    return stated is not None and b"VBRI" not in frame[:64] and stated > _ALL_OF_IT * size


def _count(data: bytes, position: int, like: bytes) -> int:
    """Frames from `position` on; what is between them is passed over."""
    frames = 0
    while 0 <= position < len(data) - 4:
        header = data[position : position + 4]
        # Version and rate never change within a recording.
        same = header[1] & 0xFE == like[1] & 0xFE and header[2] & 0x0C == like[2] & 0x0C
        length = _frame_bytes(header) if same else 0
        frames += bool(length)
        position = position + length if length else data.find(b"\xff", position + 1)
    return frames


def _frame_bytes(header: bytes) -> int:
    """The length of a frame of Layer III by its first four bytes; 0 if these are none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    if version not in _RATES_HZ or rate == 3:
        return 0
    kbps = (_KBPS_1 if version == 3 else _KBPS_2)[header[2] >> 4]
    samples = 1152 if version == 3 else 576
    padding = header[2] >> 1 & 1
    return samples // 8 * 1000 * kbps // _RATES_HZ[version][rate] + padding if kbps else 0


def _header_frame(like: bytes, frames: int, length: int) -> bytes:
    """A frame that states the length, of the highest bit rate, so that there is room."""
    header = bytes([0xFF, like[1] | 1, like[2] & 0x0D | 0xE0, like[3]])
    mono, first_version = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    side_information = (17 if mono else 32) if first_version else (9 if mono else 17)
    size = _frame_bytes(header)
    stated = struct.pack(">4sIII", b"Xing", 3, frames, min(length + size, 2**32 - 1))
    return (header + bytes(side_information) + stated).ljust(size, b"\0")
