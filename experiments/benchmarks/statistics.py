"""GFLOP/s of the update of the moments, next to the machine's float32 products in the same run."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.machine import report, report_machine, sgemm_rate
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import ModelShape

_WHAT = "statistics"
_MODELS = {
    "base x base": (ModelShape(13, 768), ModelShape(13, 768)),
    "large": (ModelShape(25, 1024),),
}
_SMALL = {"small": (ModelShape(3, 32), ModelShape(2, 16))}


def run(repeats: int, small: bool = False) -> None:
    """Medians over turns; the share is of the best product of the run."""
    report_machine(_WHAT)
    rows = 256 if small else 4096
    for name, streams in (_SMALL if small else _MODELS).items():
        state = moments.zero(streams)
        rng = np.random.default_rng(0)
        blocks = tuple(
            jnp.asarray(rng.standard_normal((s.layers, rows, s.neurons), np.float32))
            for s in streams
        )
        update = jax.jit(moments.update, donate_argnums=0)
        state = jax.block_until_ready(update(state, blocks, jnp.int32(rows)))
        times, peaks = [], [sgemm_rate(rows)]
        for _ in range(repeats):
            started = time.perf_counter()
            state = jax.block_until_ready(update(state, blocks, jnp.int32(rows)))
            times.append(time.perf_counter() - started)
            peaks.append(sgemm_rate(rows))
        seconds, work = statistics.median(times), flops(streams, rows) / 1e9
        for figure, value, unit in (
            ("products of an update", work, "GFLOP"),
            ("update", seconds, "s"),
            ("rate", work / seconds, "GFLOP/s"),
            ("sgemm, best", max(peaks), "GFLOP/s"),
            ("sgemm, median", statistics.median(peaks), "GFLOP/s"),
            ("share of the best sgemm", work / seconds / max(peaks), "ratio"),
        ):
            report(_WHAT, figure, value, unit, models=name, rows=rows)


def flops(streams: tuple[ModelShape, ...], rows: int) -> float:
    """2 n times the sum over layer pairs l <= m of d_l d_m, and nothing else."""
    widths = [s.neurons for s in streams for _ in range(s.layers)]
    pairs = sum(x * y for i, x in enumerate(widths) for y in widths[i:])
    return 2.0 * rows * pairs
