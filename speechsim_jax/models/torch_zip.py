"""Reads ``pytorch_model.bin`` (the ZIP that ``torch.save`` writes) without torch or ``pickle``.

The ZIP holds ``<top>/data.pkl``, a protocol 2 pickle that describes the tensors, and one raw
storage ``<top>/data/<key>`` for each memory block. Nothing of the pickle is ever executed: its
opcodes are walked one by one, those that a state dict does not need are refused, and the few
globals it names become inert stand-ins. Work and memory are bounded by the size of the file.

Formats: PyTorch ``torch/serialization.py`` and ``torch/_utils.py``; PKWARE APPNOTE 6.3.10.
"""

import math
import mmap
import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from speechsim_jax.errors import UserError

_MAX_ENTRIES = 65_536
_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_PICKLE_OPS = 1_000_000
_MAX_DIMENSIONS = 32
# Tied weights are counted once each and a transposed tensor is copied, so honest files need
# about one file size; the slack keeps tiny honest files out of the way.
_MAX_EXPANSION = 4
_SLACK_BYTES = 2**20
_ARRAY_OVERHEAD = 256

_STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
}
_UNTYPED = "torch.storage.UntypedStorage"
# Element types without a storage class of their own: torch saves them as untyped bytes.
_UNTYPED_DTYPES = {
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
}


class _Refused(Exception):
    """Why a file is not read; `read_torch_zip` adds the file's name."""


def _damaged(reason: str) -> _Refused:
    return _Refused(f"{reason}; the file is damaged or was altered: download it again")


def _unsafe(reason: str) -> _Refused:
    return _Refused(
        f"{reason}; if you trust it, load it where torch is installed and write it anew with "
        "save_pretrained(folder), which makes model.safetensors"
    )


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict saved by ``torch.save``, by name.

    The arrays are read-only, C-contiguous and of the element type in the file (bfloat16 as
    `ml_dtypes.bfloat16`). Where the file allows it they are views of the mapped file, so the
    file must not be overwritten while they live.

    Raises:
      UserError: the file is not a ZIP of ``torch.save``, is damaged, or holds anything but a
        flat mapping of names to tensors.
    """
    try:
        archive = _Archive(_map(path))
        return _state_dict(_Machine(archive).run(archive.read("data.pkl", _MAX_PICKLE_BYTES)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _Refused as error:
        raise UserError(f"{path}: {error}") from error


def _map(path: Path) -> mmap.mmap:
    if not path.is_file():  # a pipe would block
        raise _Refused("is not a file")
    with path.open("rb") as file:
        head = file.read(512)
        _check_magic(head)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_magic(head: bytes) -> None:
    if head.startswith(b"PK\x03\x04"):
        return
    if not head:
        raise _damaged("is empty")
    if head.startswith(b"version https://git-lfs"):
        raise _Refused("is a git-lfs pointer, not the weights: run `git lfs pull` in its folder")
    if b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:16] or head[257:262] == b"ustar":
        raise _unsafe("is a torch file older than torch 1.6, not a ZIP, and is not read")
    raise _damaged("is not a torch ZIP file (wrong first bytes)")


def _shown(text: object) -> str:
    """One short line of ASCII, whatever the file says."""
    return ascii(text[:80] if isinstance(text, str) else text)[:100]


# --- the ZIP ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    raw_name: bytes
    stored: bool
    size: int
    header: int


class _Archive:
    """The entries of the ZIP, found through its central directory."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        try:
            count, start, size = self._end_record()
            self.entries = self._directory(count, start, size)
        except struct.error as error:
            raise _damaged("its ZIP directory is cut off") from error
        self.directory_start = start
        pickles = [name for name in self.entries if name.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise _Refused("is a ZIP, but not one of torch.save: it has no single data.pkl")
        self.top = pickles[0].partition("/")[0]
        if any(name.partition("/")[0] != self.top for name in self.entries):
            raise _damaged("its ZIP entries are not all in one folder")
        if f"{self.top}/constants.pkl" in self.entries:
            raise _unsafe("is a TorchScript program, not a state dict")
        self.swapped = self._byteorder() == b"big"

    def _end_record(self) -> tuple[int, int, int]:
        """The number of entries, and the start and size of the central directory."""
        at = self.data.rfind(b"PK\x05\x06", max(0, len(self.data) - 65_557))
        if at < 0:
            raise _damaged("is cut off: the ZIP directory at its end is missing")
        count, size, start, comment = struct.unpack_from("<10xH2LH", self.data, at)
        if at + 22 + comment != len(self.data):
            raise _damaged("has bytes after the end of its ZIP directory")
        end = at
        if at >= 20 and self.data[at - 20 : at - 16] == b"PK\x06\x07":
            (end,) = struct.unpack_from("<8xQ4x", self.data, at - 20)
            if self.data[end : end + 4] != b"PK\x06\x06":
                raise _damaged("its ZIP64 directory is not where it should be")
            count, size, start = struct.unpack_from("<32x3Q", self.data, end)
        if start + size > end or count > _MAX_ENTRIES:
            raise _damaged(f"its ZIP directory is impossible ({count} entries)")
        return count, start, size

    def _directory(self, count: int, start: int, size: int) -> dict[str, _Entry]:
        entries, at = {}, start
        for _ in range(count):
            name, entry, at = self._central_header(at)
            if name in entries:
                raise _Refused(f"has two ZIP entries named {_shown(name)}")
            entries[name] = entry
        if at != start + size:
            raise _damaged("its ZIP directory has the wrong size")
        return entries

    def _central_header(self, at: int) -> tuple[str, _Entry, int]:
        if self.data[at : at + 4] != b"PK\x01\x02":
            raise _damaged("its ZIP directory is garbled")
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
            raise _damaged(f"has no ZIP entry {_shown(name)}")
        if not entry.stored:
            raise _unsafe(f"its ZIP entry {_shown(name)} is compressed or encrypted")
        head = self.data[entry.header : min(entry.header + 30, self.directory_start)]
        if len(head) < 30 or not head.startswith(b"PK\x03\x04"):
            raise _damaged(f"its ZIP entry {_shown(name)} has no header")
        name_n, extra_n = struct.unpack_from("<26x2H", head)
        start = entry.header + 30 + name_n + extra_n
        if self.data[entry.header + 30 : entry.header + 30 + name_n] != entry.raw_name:
            raise _damaged(f"its ZIP entry {_shown(name)} has two different names")
        if start + entry.size > self.directory_start:
            raise _damaged(f"its ZIP entry {_shown(name)} reaches past the data")
        return start, entry.size

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a small entry."""
        start, size = self.span(name)
        if size > most:
            raise _Refused(f"its {name} has {size} bytes; at most {most} are read")
        return self.data[start : start + size]

    def _byteorder(self) -> bytes:
        if f"{self.top}/byteorder" not in self.entries:
            return b"little"  # torch < 2.1 did not say, and ran on little-endian machines
        order = self.read("byteorder", 6)
        if order not in (b"little", b"big"):
            raise _damaged(f"its byteorder is {_shown(order)}, not little or big")
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
        raise _Refused(f"has a ZIP entry whose name is not UTF-8: {_shown(raw)}") from error
    parts = name.split("/")
    if len(parts) < 2 or not name.isprintable() or "\\" in name or {"", ".", ".."} & set(parts):
        raise _Refused(f"has a ZIP entry with the unsafe name {_shown(name)}")
    return name


# --- the pickle ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    """A name that the pickle imports: only ever compared, never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype | None  # None: untyped bytes, whose element type comes with the tensor
    start: int
    size: int


class _OrderedDict(dict):
    """Stand-in for `collections.OrderedDict`, which a state dict is: the only target of BUILD."""

    __slots__ = ()


# What REDUCE may call, and with how many arguments.
_CALLS = {
    "collections.OrderedDict": (0,),
    "torch.Size": (1,),
    "torch._utils._rebuild_tensor_v2": (6, 7),
    "torch._utils._rebuild_tensor_v3": (7, 8),
    "torch._utils._rebuild_parameter": (3,),
}
_GLOBALS = {*_CALLS, *_STORAGES, _UNTYPED, *_UNTYPED_DTYPES}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Walks the opcodes that `torch.save` writes for a state dict; every other is refused."""

    def __init__(self, archive: _Archive):
        self.archive = archive
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open MARK
        self.memo: dict[int, Any] = {}
        self.budget = _MAX_EXPANSION * len(archive.data) + _SLACK_BYTES

    def run(self, pickled: bytes) -> Any:
        """Returns the object that the pickle describes, made of stand-ins and arrays."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
                if count == _MAX_PICKLE_OPS:
                    raise _Refused(f"its data.pkl has more than {_MAX_PICKLE_OPS} opcodes")
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError) as error:
            # genops meets cut-off or unknown opcodes, the stacks and the memo lack what is asked
            raise _damaged(f"its data.pkl is garbled ({_shown(str(error))})") from error
        if len(self.stack) != 1 or self.below:
            raise _damaged("its data.pkl is garbled (values left over)")
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name == "TUPLE":
            self._close_mark()
            self.stack.append(tuple(stack))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            self._close_mark()
            _set_items(self.stack[-1], stack)
        else:
            self._rare_step(name, argument)

    def _rare_step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(self._global(argument))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            # The state is the attribute _metadata (module versions), which nobody needs here.
            state, target = stack.pop(), stack[-1]
            if type(target) is not _OrderedDict or type(state) is not dict:
                raise _unsafe("its data.pkl sets the state of an object (BUILD)")
        elif name == "PROTO" and argument != 2:
            raise _unsafe(f"its data.pkl has pickle protocol {argument}, not 2")
        elif name not in ("PROTO", "STOP"):
            what = f"{name} {_shown(argument)}" if type(argument) is str else name
            raise _unsafe(f"its data.pkl uses {what}, which a state dict does not need")

    def _close_mark(self) -> None:
        self.stack = self.below.pop()

    def _global(self, argument: str) -> _Global:
        name = argument.replace(" ", ".", 1)
        if name not in _GLOBALS:
            raise _unsafe(
                f"its data.pkl names {_shown(name)}, which could run code and is not loaded"
            )
        return _Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if type(function) is _Global else type(function).__name__
        if name not in _CALLS or type(arguments) is not tuple:
            raise _unsafe(f"its data.pkl calls {_shown(name)} (REDUCE)")
        if len(arguments) not in _CALLS[name]:
            raise _damaged(f"its data.pkl calls {name} with {len(arguments)} arguments")
        if name == "collections.OrderedDict":
            return _OrderedDict()
        if name == "torch.Size":
            return arguments[0]
        if name == "torch._utils._rebuild_parameter":
            return _parameter(*arguments)
        return self._tensor(name, *arguments)

    def _storage(self, identity: Any) -> _Storage:
        # Types first: `==` and `hash` of anything else could be made expensive.
        types = [type(part) for part in identity] if type(identity) is tuple else []
        if types != [str, _Global, str, str, int] or identity[0] != "storage":
            raise _damaged("its data.pkl has a persistent id that is no storage")
        name, key, numel = identity[1].name, identity[2], identity[4]
        if name != _UNTYPED and name not in _STORAGES:
            raise _damaged(f"its data.pkl has a storage of type {name}")
        start, size = self.archive.span(f"data/{key}")
        dtype = _STORAGES.get(name)
        if numel * (dtype.itemsize if dtype else 1) != size:
            raise _damaged(
                f"its storage {_shown(key)} has {size} bytes, but data.pkl says "
                f"{_shown(str(numel))} elements of {name}"
            )
        return _Storage(key, dtype, start, size)

    def _tensor(
        self, call: str, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
    ) -> np.ndarray:
        grad, hooks, *extra = rest
        dtype = storage.dtype if type(storage) is _Storage else None
        if call.endswith("v3"):
            kind, *extra = extra
            typed = dtype is not None or type(kind) is not _Global
            dtype = None if typed else _UNTYPED_DTYPES.get(kind.name)
        if type(storage) is not _Storage or dtype is None:
            raise _damaged("its data.pkl has a tensor without a storage of known type")
        _check_rest(grad, hooks, *extra)
        _check_layout(offset, size, stride)
        # Empty dimensions count as one: numpy multiplies the others and would overflow.
        self.budget -= math.prod(max(n, 1) for n in size) * dtype.itemsize + _ARRAY_OVERHEAD
        if self.budget < 0:
            raise _unsafe(f"its tensors expand to over {_MAX_EXPANSION} times the file")
        array = self._strided(storage, dtype, offset, size, stride)
        array = np.require(array, requirements=["C", "A"])
        if self.archive.swapped:
            array = _byteswapped(array)
        array.flags.writeable = False
        return array

    def _strided(
        self,
        storage: _Storage,
        dtype: np.dtype,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> np.ndarray:
        """The elements that offset, size and stride pick, as a view of the file."""
        if 0 in size:
            return np.empty(size, dtype)
        # The step of a dimension of one is never taken, and may be any number.
        steps = [step if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        last = offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
        if (last + 1) * dtype.itemsize > storage.size:
            raise _damaged(f"a tensor reaches past the end of its storage {_shown(storage.key)}")
        start = storage.start + offset * dtype.itemsize
        steps = [step * dtype.itemsize for step in steps]
        return np.ndarray(size, dtype, self.archive.data, start, steps)


def _parameter(data: Any, grad: Any, hooks: Any) -> np.ndarray:
    _check_rest(grad, hooks)
    if type(data) is not np.ndarray:
        raise _damaged("its data.pkl has a Parameter that is no tensor")
    return data


def _check_rest(grad: Any, hooks: Any, extra: Any = None) -> None:
    """The arguments of a tensor that carry no numbers must be as inert as torch writes them."""
    if type(grad) is not bool or type(hooks) is not _OrderedDict or hooks:
        raise _unsafe("its data.pkl has a tensor with hooks")
    if extra is not None and (type(extra) is not dict or extra):
        raise _unsafe("its data.pkl has a conjugate, negated or annotated tensor")


def _check_layout(offset: Any, size: Any, stride: Any) -> None:
    if (
        type(size) is not tuple
        or type(stride) is not tuple
        or len(size) != len(stride)
        or len(size) > _MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in (offset, *size, *stride))
    ):
        raise _damaged("a tensor has an impossible offset, size or stride")


def _byteswapped(array: np.ndarray) -> np.ndarray:
    part = array.itemsize // (2 if array.dtype.kind == "c" else 1)
    words = array.reshape(-1).view(f"u{part}").byteswap()
    return words.view(array.dtype).reshape(array.shape)


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise _damaged("its data.pkl is garbled (SETITEMS)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            raise _unsafe(f"its data.pkl has a key of type {type(key).__name__}")
        if key in target:
            raise _damaged(f"its data.pkl has the key {_shown(key)} twice")
        target[key] = value


def _state_dict(top: Any) -> dict[str, np.ndarray]:
    if not isinstance(top, dict):
        raise _unsafe(f"holds a {type(top).__name__}, not a state dict")
    for name, value in top.items():
        if not name.isprintable():
            raise _damaged(f"has a tensor with the unprintable name {_shown(name)}")
        if isinstance(value, dict):
            raise _unsafe(
                f"is a training checkpoint: {_shown(name)} is itself a mapping; save the state "
                "dict alone"
            )
        if type(value) is not np.ndarray:
            raise _unsafe(f"its {_shown(name)} is a {type(value).__name__}, no tensor")
    return dict(top)
