"""The measures of the paper alone, on 26 representations of width 768: ours, and a plain loop over pairs.

The plain loop computes what ours does, pair by pair in numpy, from the same moments. It is timed on
some of the pairs, half of them before ours and half after.
"""

import itertools
import statistics
import time

import jax.numpy as jnp
import numpy as np
import threadpoolctl

from experiments.benchmarks import plain
from experiments.benchmarks.machine import sgemm_rate
from speechsim_jax.measures import resolve
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments, RepresentationMoments

_ROWS, _WIDTH, _MODELS, _LAYERS = 6000, 768, 2, 13
_PLAIN_PAIRS = 12


def run() -> None:
    """Time ours over all pairs, and the plain loop over some."""
    peak = sgemm_rate()
    started = time.perf_counter()
    statistic = moments_of_random_representations()
    statistic.wait()
    print(f"sgemm {peak:.0f} GFLOP/s; statistics over {_ROWS} rows "
          f"{time.perf_counter() - started:.1f} s, representations made included")  # fmt: skip
    reading = statistic.result().finish()
    pairs = list(itertools.combinations(range(_MODELS * _LAYERS), 2))
    some = np.random.default_rng(0).choice(len(pairs), _PLAIN_PAIRS, replace=False)
    some = [pairs[k] for k in some]
    loop: dict[int, list[float]] = {1: [], 2: []}
    scores: dict[tuple[int, int], plain.Scores] = {}

    def time_plain(chosen: list[tuple[int, int]]) -> None:
        for threads, (i, j) in itertools.product(loop, chosen):
            with threadpoolctl.threadpool_limits(threads, user_api="blas"):
                started = time.perf_counter()
                scores[i, j] = plain_pair(
                    reading, reading.representations[i], reading.representations[j]
                )
                loop[threads].append(time.perf_counter() - started)

    time_plain(some[: _PLAIN_PAIRS // 2])
    started = time.perf_counter()
    moments = statistic.result().finish()
    whitened = time.perf_counter() - started
    ours = score_all({"moments": moments}, resolve("paper"))
    seconds = time.perf_counter() - started
    time_plain(some[_PLAIN_PAIRS // 2 :])

    kept = ours.extras["svcca_directions"][1]
    count = len(pairs) + _MODELS * _LAYERS
    print(f"{count} pairs, {kept.min()}-{kept.max()} directions kept")
    print(f"ours: {seconds:.1f} s, of it {whitened:.1f} s for the whitenings")
    for threads, times in loop.items():
        median = statistics.median(times)
        print(f"plain loop, {threads} BLAS thread(s): {median:.2f} s a pair (median of "
              f"{_PLAIN_PAIRS}), {median * count:.0f} s for all, "
              f"{median * count / seconds:.1f} times ours")  # fmt: skip
    error = max(
        np.abs(np.array([ours.matrices[name][i, j], ours.matrices[name][j, i]]) - values).max()
        for (i, j), both in scores.items()
        for name, values in both.items()
    )
    print(f"largest difference between the two: {error:.1e}")


def moments_of_random_representations() -> MomentsAccumulator:
    """Statistics of representations that share 150 directions and keep about 650."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((_ROWS, 150), np.float32)
    scales = np.linspace(12, 2, _WIDTH, dtype=np.float32)
    statistic = MomentsAccumulator((ModelShape(_LAYERS, _WIDTH),) * _MODELS, _ROWS)
    hidden = tuple(np.empty((_LAYERS, 1, _ROWS, _WIDTH), np.float32) for _ in range(_MODELS))
    for representation in itertools.chain.from_iterable(hidden):
        representation[0] = shared @ rng.standard_normal((150, _WIDTH), np.float32)
        representation[0] += rng.standard_normal((_ROWS, _WIDTH), np.float32) * scales
    statistic.append(tuple(map(jnp.asarray, hidden)), np.arange(_ROWS))
    return statistic


def plain_pair(
    moments: FinishedMoments, x: RepresentationMoments, y: RepresentationMoments
) -> plain.Scores:
    """Every measure of the paper, (x, y) and (y, x), with everything worked out for this pair."""
    of_x, of_y = (
        plain.own(moments.scatter(z, z), moments.rows, moments.rank_tolerance) for z in (x, y)
    )
    return plain.pair(of_x, of_y, moments.scatter(x, y), moments.rows)
