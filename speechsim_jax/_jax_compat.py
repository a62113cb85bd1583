"""Arrays put one after the other into one that is then there, whole, for whoever reads it."""

import contextlib
import importlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def joined(
    arrays: Sequence[Float[Array, "_one *rest"]], out: Float[Array, "_all *rest"] | None = None
) -> Float[Array, "_all *rest"]:
    """jnp.concatenate over the first axis, written in place: into `out` if that is given.

    On a CPU XLA makes one slow loop of a concatenation and everything that is done to it, which
    asks of every number where it comes from: for the attention maps of a large encoder a third of
    the whole forward pass, for the entropies of maps ten times the time of the logarithms.
    """
    first, places = arrays[0], sum(map(len, arrays))
    whole = jnp.zeros((places, *first.shape[1:]), first.dtype) if out is None else out
    start = 0
    for array in arrays:
        whole = lax.dynamic_update_slice_in_dim(whole, array, start, 0)
        start += len(array)
    return whole


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """A context in which JAX keeps 64-bit types, under the name it has in this release."""
    if not enabled:
        return contextlib.nullcontext()
    switch = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return switch.enable_x64(True)
