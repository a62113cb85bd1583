"""Reader of ``torch.save``'s ZIP files, state dicts and training checkpoints; it needs no torch.

The ZIP holds ``<top>/data.pkl``, a protocol 2 pickle that describes the tensors, and one
uncompressed entry ``<top>/data/<key>`` for each storage (memory block). `zipfile` reads the
directory and `pickle.Unpickler` the pickle, under these restrictions:

* Only the opcodes that such a file needs are accepted, in a first pass that bounds every length
  and index before the unpickler allocates for it (`_checked`).
* Every global is replaced by an inert stand-in: nothing is imported, so nothing can be run. In a
  state dict an unknown global is refused; in a training checkpoint, which holds objects of the
  program that wrote it, it makes a `Record`, which keeps what the pickle says of the object.
* Work and memory are bounded by the size of the file.

Source: PyTorch, ``torch/serialization.py`` and ``torch/_utils.py``.
"""

import contextlib
import functools
import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # names bfloat16 and float8 to numpy
import numpy as np

from speechsim_jax.errors import UserError

_MAX_DIRECTORY_BYTES = 4 * 2**20
_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_PICKLE_OPS = 1_000_000
_MAX_DIMENSIONS = 32
# A tensor that shares its storage is counted in full, and a transposed one is copied: honest files
# need about their own size. The slack admits tiny files.
_MAX_EXPANSION = 4
_SLACK_BYTES = 2**20
_ARRAY_OVERHEAD = 256

_FLOATS = {"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bfloat16"}
_COMPLEX = {"ComplexDouble": "c16", "ComplexFloat": "c8"}
_INTEGERS = {"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
_STORAGES: dict[str, np.dtype | None] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in (_FLOATS | _COMPLEX | _INTEGERS).items()
}
_STORAGES["torch.storage.UntypedStorage"] = None  # the tensor names its type, one of these
_UNTYPED = {
    f"torch.{name}": np.dtype(name)
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")
}
_OPCODES = frozenset(
    "PROTO GLOBAL BINPERSID REDUCE BUILD STOP MARK TUPLE TUPLE1 TUPLE2 TUPLE3 "  # noqa: SIM905
    "EMPTY_TUPLE EMPTY_DICT SETITEM SETITEMS BINUNICODE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "NONE NEWTRUE NEWFALSE BINPUT LONG_BINPUT BINGET LONG_BINGET".split()
)
# A training checkpoint also has lists, and objects of classes.
_TRAINING_OPCODES = _OPCODES | {"EMPTY_LIST", "APPEND", "APPENDS", "NEWOBJ"}
# Arguments of a constructor are copied whenever it is called: honest ones are few.
_MAX_ARGUMENTS = 16
_PARSE_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, NotImplementedError, EOFError),
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError),
)


class _Refused(Exception):
    """Why a file is not read; the readers add the name of the file and the remedy."""


class _Damaged(_Refused):
    pass


class _Unsafe(_Refused):
    pass


_REMEDIES = {
    _Refused: "",
    _Damaged: "; the file is damaged or was altered: download it again",
    _Unsafe: (
        "; if you trust it, load it where torch is installed and save it again with "
        "save_pretrained(folder), which converts it to model.safetensors"
    ),
}
_TRAINING_REMEDIES = _REMEDIES | {
    _Unsafe: (
        "; if you trust it, load it where torch 1.6 or newer and the program that wrote it are "
        "installed, and save it again with torch.save"
    ),
}


def _quoted(text: object) -> str:
    """Text from the file as one short line of ASCII."""
    return ascii(text[:80] if isinstance(text, str) else text)[:100]


def read_torch_bin(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict saved by ``torch.save``.

    Args:
      path: the file; it must not be overwritten while the arrays are in use.

    Returns:
      The tensors by name: read-only, C-contiguous, with the element type in the file (bfloat16 as
      `ml_dtypes.bfloat16`). They are views of the memory-mapped file where its layout allows it.

    Raises:
      UserError: the file is not a ZIP of ``torch.save``, is damaged, or contains anything but a
        flat mapping of names to tensors.
    """
    with _refusing(path, _REMEDIES):
        return _state_dict(_load(path, training=False))


def read_training_bin(path: Path) -> dict[str, Any]:
    """Read the entries of a training checkpoint saved by ``torch.save``.

    Args:
      path: the file; it must not be overwritten while the arrays are in use.

    Returns:
      The entries by name. Values, nested to any depth, are dict, list, tuple, str, int, float,
      bool, None, `Tensor`, and `Record` for an object of any class. They may contain one another
      in a cycle, so they are to be looked up, not walked.

    Raises:
      UserError: the file is not a ZIP of ``torch.save``, is damaged, or does not contain a
        dictionary with names as keys.
    """
    with _refusing(path, _TRAINING_REMEDIES):
        content = _load(path, training=True)
        if not isinstance(content, _Dict):
            raise _Refused(f"contains a {type(content).__name__}, not the entries of a checkpoint")
        for name in content:
            if type(name) is not str or not name.isprintable():
                raise _Refused(f"has an entry {_quoted(name)}, which is not a printable name")
        return content


@contextlib.contextmanager
def _refusing(path: Path, remedies: Mapping[type, str]) -> Iterator[None]:
    """Turn what goes wrong with a file into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _Refused as error:
        raise UserError(f"{path}: {error}{remedies[type(error)]}") from error


def _load(path: Path, training: bool) -> Any:
    archive = _Archive(path)
    pickled = archive.read("data.pkl", _MAX_PICKLE_BYTES)
    try:
        return _Unpickler(_checked(pickled, training), archive, training).load()
    except _PARSE_ERRORS as error:
        raise _Damaged(f"its data.pkl is garbled ({_quoted(str(error))})") from error


def _state_dict(content: Any) -> dict[str, np.ndarray]:
    if type(content) is not _Dict:
        raise _Unsafe(f"contains a {type(content).__name__}, not a state dict")
    for name, value in content.items():
        if not name.isprintable():
            raise _Damaged(f"has a tensor with the unprintable name {_quoted(name)}")
        if type(value) is _Dict:
            raise _Unsafe(f"is a training checkpoint: {_quoted(name)} is itself a mapping")
        if type(value) is not Tensor:
            raise _Unsafe(f"its {_quoted(name)} is a {type(value).__name__}, not a tensor")
    return {name: tensor.array for name, tensor in content.items()}


class _DirectoryFile(io.FileIO):
    """The file for `zipfile`, which reads the directory in one piece; bounds the size of that."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise _Damaged(f"its ZIP directory has {size} bytes; at most {_MAX_DIRECTORY_BYTES}")
        return super().read(size)


class _Archive:
    """The memory-mapped ZIP: `entries` by name, all in the folder `top`, before the byte `end`."""

    def __init__(self, path: Path):
        if not path.is_file():  # a pipe would block
            raise _Refused("is not a file")
        with _DirectoryFile(path) as file:
            _check_first_bytes(file.read(512))
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self.data[-22:-18] != b"PK\x05\x06":  # torch writes no comment after it
                raise _Damaged("is cut off, or has bytes after the end of its ZIP directory")
            try:
                archive = zipfile.ZipFile(file, metadata_encoding="utf-8")
            except _PARSE_ERRORS as error:
                raise _Damaged(f"its ZIP directory is garbled ({_quoted(str(error))})") from error
        self.end = archive.start_dir
        infos = archive.infolist()
        self.entries = {info.orig_filename: info for info in infos}
        count = self.data[-12:-10]
        if count not in (struct.pack("<H", len(infos)), b"\xff\xff"):  # the latter: ZIP64
            raise _Damaged("its ZIP directory has the wrong number of entries")
        if len(self.entries) < len(infos):
            raise _Damaged("has two ZIP entries of one name")
        pickles = [name for name in self.entries if name.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise _Refused("is a ZIP, but not one of torch.save: it has no single data.pkl")
        self.top = pickles[0].partition("/")[0]
        for name in self.entries:
            parts = name.split("/")
            unsafe = {"", ".", ".."} & {*parts} or "\\" in name or not name.isprintable()
            if parts[0] != self.top or unsafe:
                raise _Damaged(f"has a ZIP entry with the unsafe name {_quoted(name)}")
        if f"{self.top}/constants.pkl" in self.entries:
            raise _Unsafe("is a TorchScript program, not a state dict")
        # torch < 2.1 wrote no byteorder, and ran on little-endian machines.
        known = f"{self.top}/byteorder" in self.entries
        order = self.read("byteorder", 6) if known else b"little"
        if order not in (b"little", b"big"):
            raise _Damaged(f"its byteorder is {_quoted(order)}, not little or big")
        self.big_endian = order == b"big"

    def span(self, name: str) -> tuple[int, int]:
        """The offset in the file and the size of the uncompressed entry `<top>/name`."""
        entry = self.entries.get(f"{self.top}/{name}")
        if entry is None:
            raise _Damaged(f"has no ZIP entry {_quoted(name)}")
        size, start = entry.file_size, entry.header_offset + 30
        if entry.compress_type or entry.compress_size != size or entry.flag_bits & 1:
            raise _Unsafe(f"its ZIP entry {_quoted(name)} is compressed or encrypted")
        if 30 <= start <= self.end and self.data[start - 30 : start - 26] == b"PK\x03\x04":
            name_size, extra_size = struct.unpack("<2H", self.data[start - 4 : start])
            local_name = self.data[start : start + name_size]
            start += name_size + extra_size
            if local_name == entry.orig_filename.encode() and start + size <= self.end:
                return start, size
        raise _Damaged(f"its ZIP entry {_quoted(name)} is not where the ZIP directory has it")

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a small entry."""
        start, size = self.span(name)
        if size > most:
            raise _Refused(f"its {name} has {size} bytes; at most {most} are read")
        return self.data[start : start + size]


def _check_first_bytes(head: bytes) -> None:
    if not head:
        raise _Damaged("is empty")
    if head.startswith(b"version https://git-lfs"):
        raise _Refused("is a git-lfs pointer, not the weights: run `git lfs pull` in its folder")
    if b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:16] or head[257:262] == b"ustar":
        raise _Unsafe("is a torch file older than torch 1.6, not a ZIP, and is not read")
    if not head.startswith(b"PK\x03\x04"):
        raise _Damaged("is not a torch ZIP file (wrong first bytes)")


def _checked(pickled: bytes, training: bool) -> bytes:
    """The pickle, once its opcodes and their arguments are allowed, with every dict as a `_Dict`.

    A plain dict would hash its keys unchecked: nested tuples can make that exponentially slow.
    An object is made as by a call (REDUCE), since the stand-in of its class is not a type.
    """
    pieces, start = [], 0
    opcodes = _TRAINING_OPCODES if training else _OPCODES
    replaced = {"EMPTY_DICT": b"ccollections\nOrderedDict\n)R", "NEWOBJ": b"R"}
    for count, (opcode, argument, position) in enumerate(pickletools.genops(pickled)):
        at = position or 0
        if count == _MAX_PICKLE_OPS:
            raise _Refused(f"its data.pkl has more than {_MAX_PICKLE_OPS} opcodes")
        if opcode.name not in opcodes or (opcode.name == "PROTO" and argument != 2):
            uses = f"protocol {argument}" if opcode.name == "PROTO" else opcode.name
            kind = "training checkpoint" if training else "state dict"
            raise _Unsafe(f"its data.pkl uses {uses}, which a {kind} does not need")
        # The unpickler allocates a memo of the size of the index; honest ones count objects.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > at:
            raise _Damaged(f"its data.pkl is garbled (memo index {argument})")
        if opcode.name in replaced:
            pieces += [pickled[start:at], replaced[opcode.name]]
            start = at + 1
    return b"".join([*pieces, pickled[start:]])


class _Inert:
    """A stand-in whose state cannot be set (BUILD)."""

    def __setstate__(self, state: Any) -> None:
        raise _Unsafe("its data.pkl sets the state of an object (BUILD)")


@dataclass(frozen=True, eq=False)
class _Global(_Inert):
    """A name that the pickle imports, and what REDUCE may call for it, if anything."""

    name: str
    function: Callable[..., Any] | None

    def __call__(self, *arguments: Any) -> Any:
        if self.function is None:
            raise _Unsafe(f"its data.pkl calls {self.name} (REDUCE)")
        return self.function(*arguments)


@dataclass(frozen=True, eq=False)
class _Storage(_Inert):
    """A memory block of the file; the tensor names its type if that is None."""

    dtype: np.dtype | None
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class Tensor(_Inert):
    """A tensor of the file.

    Attributes:
      array: read-only, C-contiguous.
    """

    array: np.ndarray


class Record:
    """What a pickle says of an object of a class that is not known here; it does nothing.

    Attributes:
      name: of the class or function, with its module.
      arguments: of the call that makes the object.
      state: what pickle would set as the attributes; None if it says nothing.
      entries: what pickle would set under keys.
      elements: what pickle would append.
    """

    __slots__ = ("arguments", "elements", "entries", "name", "state")

    def __init__(self, name: str, *arguments: Any):
        if len(arguments) > _MAX_ARGUMENTS:
            raise _Unsafe(f"its data.pkl makes a {_quoted(name)} of {len(arguments)} arguments")
        self.name, self.arguments, self.state = name, arguments, None
        self.entries: dict[Any, Any] | None = None
        self.elements: list[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries = _Dict(True) if self.entries is None else self.entries
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Called by pickle."""
        self.extend([value])

    def extend(self, values: list[Any]) -> None:
        """Called by pickle."""
        self.elements = [] if self.elements is None else self.elements
        self.elements.extend(values)


# Hashing them takes no time; a tuple may be a tree of tuples in which that is exponential.
_KEYS = (str, int, float, bool, type(None), Record, _Global)


class _Dict(dict):
    """Stand-in for `dict` and `collections.OrderedDict`.

    Only names are keys, in a training checkpoint also numbers, objects and flat tuples of them.
    """

    __slots__ = ("training",)

    def __init__(self, training: bool):
        super().__init__()
        self.training = training

    def __setitem__(self, key: Any, value: Any) -> None:
        if not (type(key) is str or (self.training and self._is_simple(key))) or key in self:
            raise _Damaged(f"its data.pkl has a key that is a {type(key).__name__}, or is repeated")
        super().__setitem__(key, value)

    @staticmethod
    def _is_simple(key: Any) -> bool:
        parts = key if type(key) is tuple and len(key) <= _MAX_ARGUMENTS else (key,)
        return all(type(part) in _KEYS for part in parts)

    def __setstate__(self, state: Any) -> None:
        """Drop the state: it is the attribute _metadata (versions of modules)."""


class _Unpickler(pickle.Unpickler):
    """Reads a checked pickle; its globals, storages and tensors become stand-ins."""

    def __init__(self, pickled: bytes, archive: _Archive, training: bool):
        super().__init__(io.BytesIO(pickled))
        self.archive = archive
        self.training = training
        self.budget = _MAX_EXPANSION * len(archive.data) + _SLACK_BYTES
        self.globals = dict.fromkeys([*_STORAGES, *_UNTYPED]) | {
            "collections.OrderedDict": functools.partial(_Dict, training),
            "torch.Size": lambda dimensions: dimensions,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.tensor,
            "torch._utils._rebuild_parameter": _parameter,
        }

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full not in self.globals:
            if self.training:
                return _Global(full, functools.partial(Record, full))
            raise _Unsafe(f"its data.pkl names {_quoted(full)}, which could run code")
        return _Global(full, self.globals[full])

    def persistent_load(self, pid: Any, /) -> Any:
        types = [type(part) for part in pid] if type(pid) is tuple else []
        if types != [str, _Global, str, str, int] or pid[0] != "storage":
            raise _Damaged("its data.pkl has a persistent id that is not a storage")
        kind, key, numel = pid[1].name, pid[2], pid[4]
        if kind not in _STORAGES:
            raise _Damaged(f"its data.pkl has a storage of type {kind}")
        dtype, (start, size) = _STORAGES[kind], self.archive.span(f"data/{key}")
        if numel * (dtype.itemsize if dtype else 1) != size:
            declared = f"{_quoted(numel)} elements of {kind}"
            raise _Damaged(f"its storage {_quoted(key)} has {size} bytes, not {declared}")
        return _Storage(dtype, start, size)

    def tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, *rest: Any
    ) -> Tensor:
        dtype = storage.dtype if type(storage) is _Storage else None
        if dtype is None and type(storage) is _Storage and rest and type(rest[0]) is _Global:
            dtype, rest = _UNTYPED.get(rest[0].name), rest[1:]
        if dtype is None:
            raise _Damaged("its data.pkl has a tensor without a storage of known type")
        _check_inert(grad, hooks, *rest)
        if (
            (type(size), type(stride)) != (tuple, tuple)
            or len(size) != len(stride)
            or len(size) > _MAX_DIMENSIONS
            or any(type(n) is not int or n < 0 for n in (offset, *size, *stride))
        ):
            raise _Damaged("a tensor has an impossible offset, size or stride")
        # Empty dimensions count as one: numpy multiplies the others and would overflow.
        self.budget -= math.prod(max(n, 1) for n in size) * dtype.itemsize + _ARRAY_OVERHEAD
        if self.budget < 0:
            raise _Unsafe(f"its tensors expand to over {_MAX_EXPANSION} times the file")
        # The step of a dimension of one is never taken, and may be any number.
        steps = [step if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        last = offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
        if 0 in size:
            array = np.empty(size, dtype)
        elif (last + 1) * dtype.itemsize > storage.size:
            raise _Damaged("a tensor reaches past the end of its storage")
        else:
            start = storage.start + offset * dtype.itemsize
            steps = [step * dtype.itemsize for step in steps]
            array = np.ndarray(size, dtype, self.archive.data, start, steps)
        array = np.require(array, requirements=["C", "A"])
        if self.archive.big_endian:
            word = f"u{dtype.itemsize // (2 if array.dtype.kind == 'c' else 1)}"
            array = array.reshape(-1).view(word).byteswap().view(dtype).reshape(size)
        array.flags.writeable = False
        return Tensor(array)


def _parameter(data: Any, grad: Any, hooks: Any) -> Tensor:
    _check_inert(grad, hooks)
    if type(data) is not Tensor:
        raise _Damaged("its data.pkl has a Parameter that is not a tensor")
    return data


def _check_inert(grad: Any, *rest: Any) -> None:
    """Refuse hooks and annotations of a tensor: torch writes None or an empty mapping."""
    empty = all(x is None or (isinstance(x, _Dict) and not x) for x in rest)
    if type(grad) is not bool or not empty:
        raise _Unsafe("its data.pkl has a tensor with hooks or annotations (e.g. conjugate)")
