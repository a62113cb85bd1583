"""The ZIP of ``torch.save`` as a directory of stored entries; nothing is unpacked.

Every name, size and offset is checked against the file before it is used.
Format: PKWARE APPNOTE 6.3.10.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_MAX_ENTRIES = 65_536


class Refused(Exception):
    """Why a file is not read; `torch_zip.read_torch_zip` adds the file's name."""


def damaged(reason: str) -> Refused:
    """A refusal of a file that no honest writer made."""
    return Refused(f"{reason}; the file is damaged or was altered: download it again")


def unsafe(reason: str) -> Refused:
    """A refusal of a file that only torch itself can load."""
    return Refused(
        f"{reason}; if you trust it, load it where torch is installed and write it anew with "
        "save_pretrained(folder), which makes model.safetensors"
    )


def open_archive(path: Path) -> "Archive":
    """Map the file and read its directory; raises `Refused` or OSError."""
    return Archive(_map(path))


def _map(path: Path) -> mmap.mmap:
    if not path.is_file():  # a pipe would block
        raise Refused("is not a file")
    with path.open("rb") as file:
        head = file.read(512)
        _check_magic(head)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_magic(head: bytes) -> None:
    if head.startswith(b"PK\x03\x04"):
        return
    if not head:
        raise damaged("is empty")
    if head.startswith(b"version https://git-lfs"):
        raise Refused("is a git-lfs pointer, not the weights: run `git lfs pull` in its folder")
    if b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:16] or head[257:262] == b"ustar":
        raise unsafe("is a torch file older than torch 1.6, not a ZIP, and is not read")
    raise damaged("is not a torch ZIP file (wrong first bytes)")


def shown(text: object) -> str:
    """One short line of ASCII, whatever the file says."""
    return ascii(text[:80] if isinstance(text, str) else text)[:100]


@dataclass(frozen=True)
class _Entry:
    raw_name: bytes
    stored: bool
    size: int
    header: int


class Archive:
    """The entries of the ZIP, found through its central directory."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        try:
            count, start, size = self._end_record()
            self.entries = self._directory(count, start, size)
        except struct.error as error:
            raise damaged("its ZIP directory is cut off") from error
        self.directory_start = start
        pickles = [name for name in self.entries if name.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Refused("is a ZIP, but not one of torch.save: it has no single data.pkl")
        self.top = pickles[0].partition("/")[0]
        if any(name.partition("/")[0] != self.top for name in self.entries):
            raise damaged("its ZIP entries are not all in one folder")
        if f"{self.top}/constants.pkl" in self.entries:
            raise unsafe("is a TorchScript program, not a state dict")
        self.swapped = self._byteorder() == b"big"

    def _end_record(self) -> tuple[int, int, int]:
        """The number of entries, and the start and size of the central directory."""
        at = self.data.rfind(b"PK\x05\x06", max(0, len(self.data) - 65_557))
        if at < 0:
            raise damaged("is cut off: the ZIP directory at its end is missing")
        count, size, start, comment = struct.unpack_from("<10xH2LH", self.data, at)
        if at + 22 + comment != len(self.data):
            raise damaged("has bytes after the end of its ZIP directory")
        end = at
        if at >= 20 and self.data[at - 20 : at - 16] == b"PK\x06\x07":
            (end,) = struct.unpack_from("<8xQ4x", self.data, at - 20)
            if self.data[end : end + 4] != b"PK\x06\x06":
                raise damaged("its ZIP64 directory is not where it should be")
            count, size, start = struct.unpack_from("<32x3Q", self.data, end)
        if start + size > end or count > _MAX_ENTRIES:
            raise damaged(f"its ZIP directory is impossible ({count} entries)")
        return count, start, size

    def _directory(self, count: int, start: int, size: int) -> dict[str, _Entry]:
        entries, at = {}, start
        for _ in range(count):
            name, entry, at = self._central_header(at)
            if name in entries:
                raise Refused(f"has two ZIP entries named {shown(name)}")
            entries[name] = entry
        if at != start + size:
            raise damaged("its ZIP directory has the wrong size")
        return entries

    def _central_header(self, at: int) -> tuple[str, _Entry, int]:
        if self.data[at : at + 4] != b"PK\x01\x02":
            raise damaged("its ZIP directory is garbled")
        flags, method, packed, size, name_n, extra_n, comment_n, header = struct.unpack_from(
            "<8x2H8x2L3H8xL", self.data, at
        )
        raw = self.data[at + 46 : at + 46 + name_n]
        extra = self.data[at + 46 + name_n : at + 46 + name_n + extra_n]
        size, packed, header = _zip64_values(extra, (size, packed, header))
        stored = method == 0 and packed == size and not flags & 1
        return (
            _safe_name(raw),
            _Entry(raw, stored, size, header),
            at + 46 + sum((name_n, extra_n, comment_n)),
        )

    def span(self, name: str) -> tuple[int, int]:
        """Where the bytes of `<top>/name` start in the file, and how many they are."""
        entry = self.entries.get(f"{self.top}/{name}")
        if entry is None:
            raise damaged(f"has no ZIP entry {shown(name)}")
        if not entry.stored:
            raise unsafe(f"its ZIP entry {shown(name)} is compressed or encrypted")
        head = self.data[entry.header : min(entry.header + 30, self.directory_start)]
        if len(head) < 30 or not head.startswith(b"PK\x03\x04"):
            raise damaged(f"its ZIP entry {shown(name)} has no header")
        name_n, extra_n = struct.unpack_from("<26x2H", head)
        start = entry.header + 30 + name_n + extra_n
        if self.data[entry.header + 30 : entry.header + 30 + name_n] != entry.raw_name:
            raise damaged(f"its ZIP entry {shown(name)} has two different names")
        if start + entry.size > self.directory_start:
            raise damaged(f"its ZIP entry {shown(name)} reaches past the data")
        return start, entry.size

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a small entry."""
        start, size = self.span(name)
        if size > most:
            raise Refused(f"its {name} has {size} bytes; at most {most} are read")
        return self.data[start : start + size]

    def _byteorder(self) -> bytes:
        if f"{self.top}/byteorder" not in self.entries:
            return b"little"  # torch < 2.1 did not say, and ran on little-endian machines
        order = self.read("byteorder", 6)
        if order not in (b"little", b"big"):
            raise damaged(f"its byteorder is {shown(order)}, not little or big")
        return order


def _zip64_values(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replaces the 32-bit values that say "too large" by those of the ZIP64 extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + size]
        extra = extra[4 + size :]
    found = []
    for value in values:
        if value == 0xFFFFFFFF:
            (value,) = struct.unpack_from("<Q", wide)
            wide = wide[8:]
        found.append(value)
    return found[0], found[1], found[2]


def _safe_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"has a ZIP entry whose name is not UTF-8: {shown(raw)}") from error
    parts = name.split("/")
    if len(parts) < 2 or not name.isprintable() or "\\" in name or {"", ".", ".."} & set(parts):
        raise Refused(f"has a ZIP entry with the unsafe name {shown(name)}")
    return name
