"""The measures of the paper alone, on 26 representations of width 768: ours, and a plain loop.

The loop over pairs (`plain`) computes what ours does in numpy, from the same moments. It is timed
on some of the pairs, half of them before ours and half after.
"""

import itertools
import statistics
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import threadpoolctl

from experiments.benchmarks import plain
from experiments.benchmarks.machine import report, report_machine, sgemm_rate
from speechsim_jax.measures import resolve
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments, RepresentationMoments

_WHAT = "scores"
_MODELS = 2


class Size(NamedTuple):
    """Sizes of the run; of each model, `layers` representations of `width` neurons."""

    rows: int
    width: int
    layers: int
    shared: int
    loop_pairs: int


_FULL = Size(rows=6000, width=768, layers=13, shared=150, loop_pairs=12)
_SMALL = Size(rows=300, width=24, layers=2, shared=5, loop_pairs=4)


def run(small: bool = False) -> None:
    """Time ours over all pairs, and the plain loop over some."""
    report_machine(_WHAT)
    size = _SMALL if small else _FULL
    report(_WHAT, "sgemm", sgemm_rate(), "GFLOP/s")
    started = time.perf_counter()
    statistic = moments_of_random_representations(size)
    statistic.wait()
    report(_WHAT, "statistics, data included", time.perf_counter() - started, "s", rows=size.rows)
    finished = statistic.result().finish()
    pairs = list(itertools.combinations(range(_MODELS * size.layers), 2))
    chosen = np.random.default_rng(0).choice(len(pairs), size.loop_pairs, replace=False)
    loop_pairs = [pairs[k] for k in chosen]
    loop: dict[int, list[float]] = {1: [], 2: []}
    scores: dict[tuple[int, int], plain.Scores] = {}

    def time_plain(pairs: list[tuple[int, int]]) -> None:
        for threads, (i, j) in itertools.product(loop, pairs):
            with threadpoolctl.threadpool_limits(threads, user_api="blas"):
                started = time.perf_counter()
                scores[i, j] = plain_pair(
                    finished, finished.representations[i], finished.representations[j]
                )
                loop[threads].append(time.perf_counter() - started)

    time_plain(loop_pairs[: size.loop_pairs // 2])
    started = time.perf_counter()
    moments = statistic.result().finish()
    finishing = time.perf_counter() - started
    ours = score_all({"moments": moments}, resolve("paper"))
    seconds = time.perf_counter() - started
    time_plain(loop_pairs[size.loop_pairs // 2 :])

    directions = ours.extras["svcca_directions"][1]
    count = len(pairs) + _MODELS * size.layers
    report(_WHAT, "directions, fewest", int(directions.min()), "count")
    report(_WHAT, "directions, most", int(directions.max()), "count")
    report(_WHAT, "ours, all pairs", seconds, "s", pairs=count)
    report(_WHAT, "ours, finishing", finishing, "s")
    for threads, times in loop.items():
        median = statistics.median(times)
        report(_WHAT, "plain loop, a pair", median, "s", threads=threads, timed=len(times))
        report(_WHAT, "plain loop, all pairs", median * count, "s", threads=threads, pairs=count)
        report(_WHAT, "plain loop : ours", median * count / seconds, "ratio", threads=threads)
    error = max(
        np.abs(np.array([ours.matrices[name][i, j], ours.matrices[name][j, i]]) - values).max()
        for (i, j), both in scores.items()
        for name, values in both.items()
    )
    report(_WHAT, "largest difference between the two", float(error), "absolute")


def moments_of_random_representations(size: Size) -> MomentsAccumulator:
    """Statistics of representations that share directions (at full size 150 of about 650)."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((size.rows, size.shared), np.float32)
    scales = np.linspace(12, 2, size.width, dtype=np.float32)
    statistic = MomentsAccumulator((ModelShape(size.layers, size.width),) * _MODELS, size.rows)
    hidden = tuple(
        np.empty((size.layers, 1, size.rows, size.width), np.float32) for _ in range(_MODELS)
    )
    for representation in itertools.chain.from_iterable(hidden):
        representation[0] = shared @ rng.standard_normal((size.shared, size.width), np.float32)
        representation[0] += rng.standard_normal((size.rows, size.width), np.float32) * scales
    statistic.append(tuple(map(jnp.asarray, hidden)), np.arange(size.rows))
    return statistic


def plain_pair(
    moments: FinishedMoments, x: RepresentationMoments, y: RepresentationMoments
) -> plain.Scores:
    """Every measure of the paper, (x, y) and (y, x), with everything computed for this pair."""
    of_x, of_y = (
        plain.summary(moments.scatter(z, z), moments.rows, moments.rank_tolerance) for z in (x, y)
    )
    return plain.paper(of_x, of_y, moments.scatter(x, y), moments.rows)
