"""Products whose kernels may be rounded: the one place where an encoder loses precision."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def sums_of(kernel: Float[Array, "..."]) -> DTypeLike:
    """What products of a kernel are summed in: float32, or its own type if that is wider."""
    return jnp.promote_types(kernel.dtype, jnp.float32)


def product(
    x: Float[Array, "... fan_in"], kernel: Float[Array, "... fan_in fan_out"]
) -> Float[Array, "... fan_out"]:
    """x @ kernel, or one kernel for each x of a batch.

    x is rounded to the kernel's type, the sums are in float32.
    """
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=sums_of(kernel))


class Linear(nnx.Module):
    """A linear map by `product`, and a bias."""

    def __init__(self, size_in: int, size_out: int, rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (size_in, size_out)))
        self.bias = nnx.Param(jnp.zeros(size_out))

    def __call__(self, x: Float[Array, "*batch fan_in"]) -> Float[Array, "*batch fan_out"]:
        """x @ kernel + bias."""
        return product(x, self.kernel[...]) + self.bias[...]
