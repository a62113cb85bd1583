"""Writes torch's ZIP format: pickle fragments, and a ZIP with every field in reach."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD_V2 = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def row(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def storage(kind: str, key: str, numel: int) -> bytes:
    module, _, name = kind.rpartition(".")
    place = b"c" + f"{module or 'torch'}\n{name}\n".encode()
    return row(text("storage"), place, text(key), text("cpu"), number(numel)) + b"Q"


def tensor(
    block: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, more: bytes = b""
) -> bytes:
    shape = row(*map(number, size)) + row(*map(number, stride))
    return REBUILD_V2 + row(block, number(offset), shape, b"\x89", ORDERED_DICT, more) + b"R"


def state_dict(tensors: dict[str, bytes], after: bytes = b"") -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u" + after + b"."


METADATA = (
    b"}" + text("_metadata") + ORDERED_DICT + b"(" + text("") + b"}" + text("version")
) + b"K\x01susb"


@dataclass
class Member:
    """One ZIP entry; what is None is derived from the data."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0x0808
    size: int | None = None
    packed: int | None = None
    local_name: str | None = None
    header: int | None = None
    zip64: bool = False


def zip_file(members: list[Member], *, zip64: bool = False, count: int | None = None) -> bytes:
    """A ZIP as torch writes it: stored entries, aligned to 64 bytes, sizes in the directory."""
    body, directory = b"", b""
    for member in members:
        name = member.name.encode()
        local = (member.local_name or member.name).encode()
        header = len(body) if member.header is None else member.header
        pad = -(len(body) + 34 + len(local)) % 64
        body += struct.pack(
            "<L5H3L2H", 0x04034B50, 0, member.flags, 0, 0, 0, 0, 0, 0, len(local), 4 + pad
        )
        body += local + b"FB" + struct.pack("<H", pad) + b"Z" * pad + member.data
        crc = zlib.crc32(member.data)
        size = len(member.data) if member.size is None else member.size
        packed = size if member.packed is None else member.packed
        extra, shown = b"", (packed, size, header)
        if member.zip64:
            extra = struct.pack("<2HL2H3Q", 0x4642, 4, 0, 1, 24, size, packed, header)
            shown = (0xFFFFFFFF,) * 3
        directory += struct.pack("<L6H", 0x02014B50, 0, 0, member.flags, member.method, 0, 0)
        directory += struct.pack(
            "<3L5H2L", crc, *shown[:2], len(name), len(extra), 0, 0, 0, 0, shown[2]
        )
        directory += name + extra
    count = len(members) if count is None else count
    start, size = len(body), len(directory)
    tail = b""
    if zip64:
        tail += struct.pack("<LQ2H2L4Q", 0x06064B50, 44, 0, 0, 0, 0, count, count, size, start)
        tail += struct.pack("<LLQL", 0x07064B50, 0, start + size, 1)
        count, size, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    tail += struct.pack("<L4H2LH", 0x06054B50, 0, 0, count, count, size, start, 0)
    return body + directory + tail


def members(pickled: bytes, blocks: dict[str, bytes], byteorder: bytes = b"little") -> list[Member]:
    small = {"data.pkl": pickled, "byteorder": byteorder, "version": b"3\n"}
    stored = {f"data/{key}": block for key, block in blocks.items()}
    return [Member(f"archive/{name}", data) for name, data in (small | stored).items()]


SIX = np.arange(6, dtype="<f4")
FLOATS = storage("FloatStorage", "0", 6)
PLAIN = tensor(FLOATS, (2, 3), (3, 1))


def file_of(pickled: bytes, block: bytes = SIX.tobytes(), **options) -> bytes:
    return zip_file(members(pickled, {"0": block}), **options)


def file_of_tensor(value: bytes, block: bytes = SIX.tobytes()) -> bytes:
    return file_of(state_dict({"w": value}), block)
