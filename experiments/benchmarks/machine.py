"""What the figures are held against: this machine, and encoders to try things on."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp

from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.random_weights import random_tensors
from speechsim_jax.models.saving import save_folder


def sgemm_rate(size: int = 2048) -> float:
    """GFLOP/s of one float32 matrix product, compiled beforehand."""
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    matrix = jnp.ones((size, size))
    product(matrix).block_until_ready()
    started = time.perf_counter()
    product(matrix).block_until_ready()
    return 2 * size**3 / (time.perf_counter() - started) / 1e9


def write_encoders(folder: Path, **sizes) -> list[Path]:
    """A wav2vec2 and a HuBERT folder with random weights; base size unless told."""
    paths = []
    for seed, family in enumerate(("wav2vec2", "hubert")):
        config = EncoderConfig(family=family, **sizes)
        paths.append(save_folder(folder / f"{family}-base", config, random_tensors(config, seed)))
    return paths
