"""What differs between JAX releases or backends, under one name."""

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def concatenate_in_place(
    arrays: Sequence[Float[Array, "_one *rest"]], out: Float[Array, "_all *rest"] | None = None
) -> Float[Array, "_all *rest"]:
    """Concatenate along the first axis by writing into one array.

    On a CPU, XLA fuses jnp.concatenate into its consumers, as one slow loop that tests for every
    number which array it comes from: for the attention maps of a large encoder a third of the
    forward pass, for the entropies of maps ten times the time of the logarithms.

    Args:
      arrays: arrays that differ in their first axis only.
      out: written over; by default a new array.
    """
    first, length = arrays[0], sum(map(len, arrays))
    result = jnp.zeros((length, *first.shape[1:]), first.dtype) if out is None else out
    start = 0
    for array in arrays:
        result = lax.dynamic_update_slice_in_dim(result, array, start, 0)
        start += len(array)
    return result


def matmul_precision() -> str | None:
    """What `jax.default_matmul_precision` is here."""
    config: Any = jax.config  # whose attributes are made at run time
    return config.jax_default_matmul_precision


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """A context in which JAX keeps 64-bit types, under the name it has in this release."""
    if not enabled:
        return contextlib.nullcontext()
    switch = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return switch.enable_x64(True)
