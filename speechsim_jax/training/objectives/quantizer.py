"""Product quantization with a straight-through Gumbel softmax (wav2vec 2.0, eq. 1 and 4).

One codeword is chosen in each of G groups of V and the chosen ones are concatenated:

    p_gv = exp((l_gv + n_gv) / tau) / sum_k exp((l_gk + n_gk) / tau),  n = -log(-log(U(0, 1)))   (1)

forward the likeliest v of each group, backward the gradient of p. The diversity loss keeps the
codebooks in use, 1/(G V) sum_g (V - exp(H(p_g))) with p_g the softmax of l, without noise or
temperature, averaged over the masked frames (4, as in fairseq).

Source: Jang et al. 2017; Baevski et al. 2020.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import Hidden
from speechsim_jax.training.model import Quantizer
from speechsim_jax.training.random_keys import Keys

Choices = Float[Array, "batch frame group codeword"]


class Quantized(NamedTuple):
    """Quantized frames.

    Attributes:
        vectors: The chosen codewords, concatenated.
        code: One number for the codewords of a frame.
        soft: The distribution that the diversity loss averages.
        hard: The choice, one-hot.
    """

    vectors: Hidden
    code: Int[Array, "batch frame"]
    soft: Choices
    hard: Choices


def gumbel_noise(keys: Keys, frames: int, groups: int, codewords: int) -> Choices:
    """Gumbel noise for every frame and codeword."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (frames, groups, codewords)))(keys)


def temperature(
    step: int | Int[Array, ""],
    start: float | int = 2.0,
    end: float | int = 0.5,
    decay: float | int = 0.999995,
) -> Float[Array, ""]:
    """max(start * decay^step, end), the annealing of wav2vec 2.0 (Base)."""
    # In float32 `decay` is rounded, and its power would be wrong after many steps.
    return jnp.maximum(start * jnp.exp(step * math.log(decay)), end)


def quantize(
    quantizer: Quantizer,
    features: Hidden,
    groups: int,
    gumbel: Choices | None = None,
    tau: float | int | Float[Array, ""] = 1.0,
) -> Quantized:
    """Quantize every frame.

    Args:
        quantizer: Codebooks and projection.
        features: Frames.
        groups: Number of codebooks.
        gumbel: Noise; None in evaluation, for the likeliest codewords.
        tau: Temperature.
    """
    batch, frames, _ = features.shape
    logits = quantizer.weight_proj(features).reshape(batch, frames, groups, -1)
    noisy = logits if gumbel is None else (logits + gumbel) / tau
    codewords = logits.shape[-1]
    chosen = jnp.argmax(noisy, -1)
    hard = jax.nn.one_hot(chosen, codewords, dtype=logits.dtype)
    choice = hard
    if gumbel is not None:
        relaxed = jax.nn.softmax(noisy)
        # The difference is exactly 0, so that vectors of one code are equal to the last bit.
        choice = hard + (relaxed - jax.lax.stop_gradient(relaxed))
    codebook = quantizer.codevectors.reshape(groups, codewords, -1)
    vectors = jnp.einsum("btgv,gvd->btgd", choice, codebook).reshape(batch, frames, -1)
    code = sum(chosen[..., g] * codewords**g for g in range(groups))
    return Quantized(vectors, jnp.asarray(code), jax.nn.softmax(logits), hard)


def perplexity(usage: Float[Array, "group codeword"], frames: Int[Array, ""]) -> Float[Array, ""]:
    """sum_g exp(H(p_g)), p = usage / frames: the effective number of codewords in use, of G V."""
    p = usage / jnp.maximum(frames, 1)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), -1)
    return jnp.sum(jnp.exp(entropy))
