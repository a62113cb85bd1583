"""GFLOP/s of the moments' update beside the machine's own float32 products, in the same run."""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.machine import sgemm_rate
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import ModelShape

_ROWS = 4096
_MODELS = {
    "base x base": (ModelShape(13, 768), ModelShape(13, 768)),
    "large": (ModelShape(25, 1024),),
}


def run(repeats: int) -> None:
    """One JSON line for each; shares are medians, of the best product of the run."""
    for name, streams in _MODELS.items():
        state = moments.zero(streams)
        rng = np.random.default_rng(0)
        rows = tuple(
            jnp.asarray(rng.standard_normal((s.layers, _ROWS, s.neurons), np.float32))
            for s in streams
        )
        update = jax.jit(moments.update, donate_argnums=0)
        state = jax.block_until_ready(update(state, rows, jnp.int32(_ROWS)))
        seconds, peaks = [], [sgemm_rate(4096)]
        for _ in range(repeats):
            started = time.perf_counter()
            state = jax.block_until_ready(update(state, rows, jnp.int32(_ROWS)))
            seconds.append(time.perf_counter() - started)
            peaks.append(sgemm_rate(4096))
        rate = flops(streams, _ROWS) / statistics.median(seconds) / 1e9
        figures = {
            "what": "statistics", "models": name, "representations": sum(s.layers for s in streams),
            "rows": _ROWS, "gflop": round(flops(streams, _ROWS) / 1e9),
            "seconds": round(statistics.median(seconds), 3), "gflops": round(rate, 1),
            "sgemm_best": round(max(peaks), 1), "sgemm_median": round(statistics.median(peaks), 1),
            "share_of_best": round(rate / max(peaks), 3),
        }  # fmt: skip
        print(json.dumps(figures), flush=True)


def flops(streams: tuple[ModelShape, ...], rows: int) -> float:
    """2 n times the sum over layer pairs l <= m of d_l d_m, and nothing else."""
    widths = [s.neurons for s in streams for _ in range(s.layers)]
    pairs = sum(x * y for i, x in enumerate(widths) for y in widths[i:])
    return 2.0 * rows * pairs
