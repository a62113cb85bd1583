"""Walks the pickle of a state dict opcode by opcode; nothing it names is ever looked up or run.

Opcodes that ``torch.save`` does not need for a state dict are refused, and the few globals it
names become inert stand-ins. What tensors are made of is left to the caller (`Machine`).
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from speechsim_jax.models.torch_archive import Refused, damaged, shown, unsafe

_MAX_PICKLE_OPS = 1_000_000
# What GLOBAL may name, here and in _CALLS.
STORAGES = {
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
UNTYPED = "torch.storage.UntypedStorage"
# Element types without a storage class of their own: torch saves them as untyped bytes.
UNTYPED_DTYPES = {
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
}


@dataclass(frozen=True)
class _Global:
    """A name that the pickle imports: only ever compared, never looked up."""

    name: str


class _OrderedDict(dict):
    """Stand-in for `collections.OrderedDict`, which a state dict is: the only target of BUILD."""

    __slots__ = ()


def global_name(value: Any) -> str:
    """The name that `value` stands in for; empty if it is no global."""
    return value.name if type(value) is _Global else ""


def is_ordered_dict(value: Any) -> bool:
    """Whether `value` stands in for an `OrderedDict`."""
    return type(value) is _OrderedDict


# What REDUCE may call, and with how many arguments.
_CALLS = {
    "collections.OrderedDict": (0,),
    "torch.Size": (1,),
    "torch._utils._rebuild_tensor_v2": (6, 7),
    "torch._utils._rebuild_tensor_v3": (7, 8),
    "torch._utils._rebuild_parameter": (3,),
}
_GLOBALS = {*_CALLS, *STORAGES, UNTYPED, *UNTYPED_DTYPES}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Walks the opcodes that `torch.save` writes for a state dict; every other is refused.

    `storage(kind, key, elements)` makes a memory block, `rebuild(call, *arguments)` a tensor or
    parameter; the arguments of the latter may be of any type.
    """

    def __init__(self, storage: Callable[..., Any], rebuild: Callable[..., Any]):
        self.storage = storage
        self.rebuild = rebuild
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open MARK
        self.memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """Returns the object that the pickle describes, made of stand-ins and arrays."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
                if count == _MAX_PICKLE_OPS:
                    raise Refused(f"its data.pkl has more than {_MAX_PICKLE_OPS} opcodes")
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError) as error:
            # genops meets cut-off or unknown opcodes, the stacks and the memo lack what is asked
            raise damaged(f"its data.pkl is garbled ({shown(str(error))})") from error
        if len(self.stack) != 1 or self.below:
            raise damaged("its data.pkl is garbled (values left over)")
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
            stack.append(self._persistent(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            # The state is the attribute _metadata (module versions), which nobody needs here.
            state, target = stack.pop(), stack[-1]
            if type(target) is not _OrderedDict or type(state) is not dict:
                raise unsafe("its data.pkl sets the state of an object (BUILD)")
        elif name == "PROTO" and argument != 2:
            raise unsafe(f"its data.pkl has pickle protocol {argument}, not 2")
        elif name not in ("PROTO", "STOP"):
            what = f"{name} {shown(argument)}" if type(argument) is str else name
            raise unsafe(f"its data.pkl uses {what}, which a state dict does not need")

    def _close_mark(self) -> None:
        self.stack = self.below.pop()

    def _global(self, argument: str) -> _Global:
        name = argument.replace(" ", ".", 1)
        if name not in _GLOBALS:
            raise unsafe(
                f"its data.pkl names {shown(name)}, which could run code and is not loaded"
            )
        return _Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if type(function) is _Global else type(function).__name__
        if name not in _CALLS or type(arguments) is not tuple:
            raise unsafe(f"its data.pkl calls {shown(name)} (REDUCE)")
        if len(arguments) not in _CALLS[name]:
            raise damaged(f"its data.pkl calls {name} with {len(arguments)} arguments")
        if name == "collections.OrderedDict":
            return _OrderedDict()
        if name == "torch.Size":
            return arguments[0]
        return self.rebuild(name, *arguments)

    def _persistent(self, identity: Any) -> Any:
        # Types first: `==` and `hash` of anything else could be made expensive.
        types = [type(part) for part in identity] if type(identity) is tuple else []
        if types != [str, _Global, str, str, int] or identity[0] != "storage":
            raise damaged("its data.pkl has a persistent id that is no storage")
        return self.storage(identity[1].name, identity[2], identity[4])


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise damaged("its data.pkl is garbled (SETITEMS)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            raise unsafe(f"its data.pkl has a key of type {type(key).__name__}")
        if key in target:
            raise damaged(f"its data.pkl has the key {shown(key)} twice")
        target[key] = value
