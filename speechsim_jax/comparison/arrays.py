"""Keys, arrays and precision of the comparisons of arrays."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from speechsim_jax._jax_compat import x64
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.statistics.moments import ModelShape

_SINGLE = ("float32", "float16", "bfloat16")

Key = str | tuple[str, int]
"""Key of a representation: "model/3", ("model", 3), or a name alone."""


def representation_names(
    keys: Iterable[Any], layer: int, argument: str
) -> list[RepresentationName]:
    """The representations that keys name.

    Args:
      keys: in order.
      layer: of a key without one.
      argument: name of the argument, for the error message.

    Raises:
      UserError: two keys name the same representation.
    """
    names = [_name(key, layer) for key in keys]
    if len(set(names)) < len(names):
        raise UserError(f"two keys of {argument} name the same model and layer")
    return names


def _name(key: Any, default: int) -> RepresentationName:
    if isinstance(key, tuple):
        if len(key) != 2 or not isinstance(key[1], int) or isinstance(key[1], bool):
            raise UserError(f"key {key!r}: expected a name, or (model, layer) with a whole number")
        if not str(key[0]):
            raise UserError(f"key {key!r}: names no model")
        return RepresentationName(str(key[0]), key[1])
    key = str(key)
    model, _, layer = key.rpartition("/")
    if model and layer.isdigit():
        return RepresentationName(model, int(layer))
    if not key:
        raise UserError("a key is empty; expected the name of a model")
    return RepresentationName(key, default)


def as_array(name: str, value: Any) -> np.ndarray:
    """Anything that holds an array as numpy's: an array of JAX, a tensor of torch, rows as lists.

    Raises:
      UserError: values that are no real numbers, or that are masked: leaving out the mask or the
        imaginary part would give another result without a word.
    """
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise UserError(f"{name}: is a masked array; leave out the rows with masked values")
        value = value.data
    try:
        # Of torch: the values only, on the host.
        for step in ("detach", "cpu"):
            value = getattr(value, step)() if hasattr(value, step) else value
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: cannot be read as an array ({reason})") from error
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise UserError(f"{name}: has values of type {array.dtype}; expected real numbers")
    return array


def check_finite(
    name: str, values: np.ndarray, axes: Sequence[str] = ("row",), before: int = 0
) -> None:
    """Raise UserError if a row holds NaN or inf, with its place.

    Args:
      name: of the array, for the message.
      values: rows along the last axis.
      axes: what the other axes are called.
      before: number of rows along the first axis that were read before these.
    """
    finite = np.isfinite(values).all(axis=-1)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), finite.shape)
        place = [before + int(first[0]), *map(int, first[1:])]
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place))
        raise UserError(f"{name}: NaN or inf in {where}")


def is_array(value: Any) -> bool:
    """Whether a value is one array, not an iterable of chunks."""
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return True
    # Rows as lists: chunks would have two axes each.
    if not isinstance(value, list | tuple) or not value:
        return False
    first: Any = value[0]
    return not hasattr(first, "__array__") and np.ndim(first) == 1


def default_stats_dtype(arrays: Iterable[Any] = ()) -> Literal["float32", "float64"]:
    """float64 on a CPU, (compensated) float32 elsewhere and where no array has more digits.

    Args:
      arrays: what is compared, if it is known.
    """
    kept = [is_array(x) and _dtype(x) in _SINGLE for x in arrays]
    single = bool(kept) and all(kept)
    return "float64" if jax.default_backend() == "cpu" and not single else "float32"


def _dtype(array: Any) -> str:
    """The name of the type of an array's numbers; of rows as lists, ""."""
    return str(getattr(array, "dtype", "")).removeprefix("torch.")


def checked_groups(groups: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    """The cluster of each row as text; raises UserError for none, or one without a name."""
    if groups is None:
        raise UserError(
            "errors and heldout need groups, the speaker or utterance of each row: rows next to "
            "each other are not independent"
        )
    names = named("groups", groups).astype(str)
    if len(set(names.tolist())) < 2:
        raise UserError("groups: expected one name a row, and at least two groups")
    return names


def named(what: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """One value for each row; raises UserError for rows without one, which are not alike."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise UserError(f"{what}: expected one name a row, got shape {array.shape}")
    listed = array.tolist()
    for row, value in enumerate(listed):
        # NaN differs from itself.
        if value is None or value != value or value == "":
            raise UserError(f"{what}: row {row} has none ({value!r}); leave out such rows")
    return array


def as_models(
    shapes: tuple[ModelShape, ...], blocks: list[np.ndarray], dtype: str
) -> tuple[jax.Array, ...]:
    """The blocks of all representations as [layer, 1, row, neuron] of each model.

    There are more rows than in the blocks, up to one of `few_sizes`, of zeros.

    Args:
      shapes: the models.
      blocks: of each representation, [row, neuron].
      dtype: of the result.
    """
    hidden: list[jax.Array] = []
    start, rows = 0, few_sizes(len(blocks[0]))
    for shape in shapes:
        layers = np.zeros((shape.layers, 1, rows, shape.neurons), dtype)
        for layer, block in zip(layers[:, 0], blocks[start : start + shape.layers], strict=True):
            layer[: len(block)] = block
        with x64(dtype == "float64"):
            hidden.append(jnp.asarray(layers))
        start += shape.layers
    return tuple(hidden)


def few_sizes(rows: int) -> int:
    """The next of few numbers of rows, so that arrays of other lengths need no other programs.

    Eighths between powers of two, from 64 on: at most an eighth more.
    """
    step = max(8, 1 << max(0, (rows - 1).bit_length() - 4))
    return max(64, -(-rows // step) * step)
