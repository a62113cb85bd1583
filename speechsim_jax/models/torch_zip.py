"""Reads ``pytorch_model.bin`` (the ZIP that ``torch.save`` writes) without torch or ``pickle``.

The ZIP holds ``<top>/data.pkl``, a protocol 2 pickle that describes the tensors, and one raw
storage ``<top>/data/<key>`` for each memory block. Nothing of the pickle is ever executed: its
opcodes are walked one by one, those that a state dict does not need are refused, and the few
globals it names become inert stand-ins. Work and memory are bounded by the size of the file.

Formats: PyTorch ``torch/serialization.py`` and ``torch/_utils.py``; PKWARE APPNOTE 6.3.10.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models.torch_archive import (
    Archive,
    Refused,
    damaged,
    open_archive,
    shown,
    unsafe,
)
from speechsim_jax.models.torch_pickle import (
    STORAGES,
    UNTYPED,
    UNTYPED_DTYPES,
    Machine,
    global_name,
    is_ordered_dict,
)

_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 32
# Tied weights are counted once each and a transposed tensor is copied, so honest files need
# about one file size; the slack keeps tiny honest files out of the way.
_MAX_EXPANSION = 4
_SLACK_BYTES = 2**20
_ARRAY_OVERHEAD = 256


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
        archive = open_archive(path)
        tensors = _Tensors(archive)
        machine = Machine(tensors.storage, tensors.rebuild)
        return _state_dict(machine.run(archive.read("data.pkl", _MAX_PICKLE_BYTES)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Refused as error:
        raise UserError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype | None  # None: untyped bytes, whose element type comes with the tensor
    start: int
    size: int


class _Tensors:
    """Makes what a pickle says of storages and tensors into arrays over the mapped file."""

    def __init__(self, archive: Archive):
        self.archive = archive
        self.budget = _MAX_EXPANSION * len(archive.data) + _SLACK_BYTES

    def storage(self, name: str, key: str, numel: int) -> _Storage:
        """The entry of a storage of type `name`, which must hold exactly `numel` elements."""
        if name != UNTYPED and name not in STORAGES:
            raise damaged(f"its data.pkl has a storage of type {name}")
        start, size = self.archive.span(f"data/{key}")
        dtype = STORAGES.get(name)
        if numel * (dtype.itemsize if dtype else 1) != size:
            raise damaged(
                f"its storage {shown(key)} has {size} bytes, but data.pkl says "
                f"{shown(str(numel))} elements of {name}"
            )
        return _Storage(key, dtype, start, size)

    def rebuild(self, call: str, *arguments: Any) -> np.ndarray:
        """The result of one of torch's ``_rebuild_*`` functions, with arguments of any type."""
        if call == "torch._utils._rebuild_parameter":
            return _parameter(*arguments)
        return self._tensor(call, *arguments)

    def _tensor(
        self, call: str, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
    ) -> np.ndarray:
        grad, hooks, *extra = rest
        dtype = storage.dtype if type(storage) is _Storage else None
        if call.endswith("v3"):
            kind, *extra = extra
            dtype = UNTYPED_DTYPES.get(global_name(kind)) if dtype is None else None
        if type(storage) is not _Storage or dtype is None:
            raise damaged("its data.pkl has a tensor without a storage of known type")
        _check_rest(grad, hooks, *extra)
        _check_layout(offset, size, stride)
        # Empty dimensions count as one: numpy multiplies the others and would overflow.
        self.budget -= math.prod(max(n, 1) for n in size) * dtype.itemsize + _ARRAY_OVERHEAD
        if self.budget < 0:
            raise unsafe(f"its tensors expand to over {_MAX_EXPANSION} times the file")
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
            raise damaged(f"a tensor reaches past the end of its storage {shown(storage.key)}")
        start = storage.start + offset * dtype.itemsize
        steps = [step * dtype.itemsize for step in steps]
        return np.ndarray(size, dtype, self.archive.data, start, steps)


def _parameter(data: Any, grad: Any, hooks: Any) -> np.ndarray:
    _check_rest(grad, hooks)
    if type(data) is not np.ndarray:
        raise damaged("its data.pkl has a Parameter that is no tensor")
    return data


def _check_rest(grad: Any, hooks: Any, extra: Any = None) -> None:
    """The arguments of a tensor that carry no numbers must be as inert as torch writes them."""
    if type(grad) is not bool or not is_ordered_dict(hooks) or hooks:
        raise unsafe("its data.pkl has a tensor with hooks")
    if extra is not None and (type(extra) is not dict or extra):
        raise unsafe("its data.pkl has a conjugate, negated or annotated tensor")


def _check_layout(offset: Any, size: Any, stride: Any) -> None:
    if (
        type(size) is not tuple
        or type(stride) is not tuple
        or len(size) != len(stride)
        or len(size) > _MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in (offset, *size, *stride))
    ):
        raise damaged("a tensor has an impossible offset, size or stride")


def _byteswapped(array: np.ndarray) -> np.ndarray:
    part = array.itemsize // (2 if array.dtype.kind == "c" else 1)
    words = array.reshape(-1).view(f"u{part}").byteswap()
    return words.view(array.dtype).reshape(array.shape)


def _state_dict(top: Any) -> dict[str, np.ndarray]:
    if not isinstance(top, dict):
        raise unsafe(f"holds a {type(top).__name__}, not a state dict")
    for name, value in top.items():
        if not name.isprintable():
            raise damaged(f"has a tensor with the unprintable name {shown(name)}")
        if isinstance(value, dict):
            raise unsafe(
                f"is a training checkpoint: {shown(name)} is itself a mapping; save the state "
                "dict alone"
            )
        if type(value) is not np.ndarray:
            raise unsafe(f"its {shown(name)} is a {type(value).__name__}, no tensor")
    return dict(top)
