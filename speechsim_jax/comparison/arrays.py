"""Keys and precision of the comparisons of arrays."""

from collections.abc import Iterable
from typing import Literal

import jax

from speechsim_jax.errors import UserError
from speechsim_jax.results.result import RepresentationName

Key = str | tuple[str, int]
"""Key of a representation: "model/3", ("model", 3), or a name alone."""


def representation_names(
    keys: Iterable[Key], layer: int, argument: str
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


def _name(key: Key, default: int) -> RepresentationName:
    if isinstance(key, tuple):
        return RepresentationName(str(key[0]), int(key[1]))
    model, _, layer = key.rpartition("/")
    if model and layer.isdigit():
        return RepresentationName(model, int(layer))
    return RepresentationName(key, default)


def default_stats_dtype() -> Literal["float32", "float64"]:
    """float64 on a CPU, (compensated) float32 elsewhere."""
    return "float64" if jax.default_backend() == "cpu" else "float32"
