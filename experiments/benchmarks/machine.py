"""This machine, encoders with random weights, and figures as lines of JSON."""

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
"""Sizes of the encoders of --small."""


def report(
    what: str, figure: str, value: float | int, unit: str, **labels: str | float | int | None
) -> None:
    """Print one figure as a line of JSON, with four digits; `plots` reads it."""
    line = {"what": what, "figure": figure, "value": value, "unit": unit, **labels}
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
    print(json.dumps(rounded), flush=True)


def report_machine(what: str, **facts: str) -> None:
    """Print the machine, with further facts, and the versions of libraries as a line of JSON."""
    about = {"cores": cores(), "cpu": _cpu(), "memory_gib": _memory_gib(), **facts}
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    line = {"what": what, "machine": about, "python": platform.python_version(), **versions}
    print(json.dumps(line), flush=True)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def sgemm_rate(size: int = 2048) -> float:
    """GFLOP/s of one float32 matrix product, compiled beforehand."""
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    matrix = jnp.ones((size, size))
    product(matrix).block_until_ready()
    started = time.perf_counter()
    product(matrix).block_until_ready()
    return 2 * size**3 / (time.perf_counter() - started) / 1e9


def write_encoders(folder: Path, **sizes: Any) -> list[Path]:
    """A wav2vec2 and a HuBERT folder with random weights; of base size by default."""
    paths = []
    for seed, family in enumerate(("wav2vec2", "hubert")):
        config = Wav2Vec2Config(family=family, **sizes)
        paths.append(save_folder(folder / f"{family}-base", config, random_tensors(config, seed)))
    return paths
