"""How products of float32 numbers are computed: the fastest way that is as accurate as float32.

Matrix units round float32 operands. An *algorithm* (`jax.lax.DotAlgorithmPreset`) divides each into
parts that are exact there, and adds up several products: TF32_TF32_F32_X3, for example, three of
two parts. How fast that is, and how accurate, differs from device to device, so that the device is
asked (`measure`): for the time of an update of the moments, its error on rows that are hard for it,
and the error of short products, in which sums lose nothing.
"""

import functools
import itertools
import logging
import math
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from speechsim_jax.array_types import ModelRows
from speechsim_jax.settings import ALGORITHMS, Settings
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState

AUTO, HIGHEST = "auto", "highest"

ERROR_BAR = 2e-7
"""Largest error of a covariance, over its neurons' standard deviations, of what auto may choose.

Or that of "highest", where it is larger.
"""

_CANDIDATES = ("F32_F32_F32", "TF32_TF32_F32_X3", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9")

# Significant bits of operands that are multiplied, as far as the algorithm claims.
_BITS = {
    HIGHEST: 24,
    "F32_F32_F32": 24,
    "TF32_TF32_F32": 11,
    "TF32_TF32_F32_X3": 21,
    "BF16_BF16_F32": 8,
    "BF16_BF16_F32_X3": 15,
    "BF16_BF16_F32_X6": 22,
    "BF16_BF16_F32_X9": 24,
}
# What float32 sums of a short product may add to its error.
_SUMMED = 2.0**-21
_SHORT = 64

MEAN_TO_STD = 1000
"""Of every neuron of the hard rows."""

# Wide and deep enough to keep an accelerator busy; the first neurons of the first layers are hard.
_ACCELERATOR, _CPU, _JUDGED = ModelShape(4, 768), ModelShape(2, 256), ModelShape(2, 64)
_ROWS, _BUFFER = 16_384, 4096
_REPEATS = 5

# What JAX and XLA raise for an algorithm that they, or the device, do not have.
_LACKING = (ValueError, RuntimeError)

_log = logging.getLogger(__name__)

_update = jax.jit(moments.update, donate_argnums=0, static_argnames="precision")

HardRows = Float32[np.ndarray, "_layer _row _neuron"]


class Measured(NamedTuple):
    """What a device does with an algorithm.

    Attributes:
      algorithm: its name, or "highest".
      error: largest error of a covariance of hard rows, over its neurons' standard deviations.
      product_error: largest error of products of 64 numbers, over the norms of both vectors.
      seconds: of an update of the moments with 4096 rows, median of five.
    """

    algorithm: str
    error: float
    product_error: float
    seconds: float

    @property
    def as_claimed(self) -> bool:
        """Whether products have the digits that the algorithm claims."""
        return self.product_error <= 2 * 2.0 ** -_BITS[self.algorithm] + _SUMMED


class Precision(NamedTuple):
    """How products are computed on these devices; each a word of JAX or an algorithm's name.

    Attributes:
      statistics: those of the moments.
      models: those of the encoders.
    """

    statistics: str
    models: str

    @classmethod
    def of(cls, settings: Settings) -> "Precision":
        """What the settings ask for, or "highest" where the device lacks it, with a log line."""
        return cls(
            resolved(settings.stats_precision, settings.stats_dtype),
            resolved(settings.model_precision),
        )


def resolved(precision: str, dtype: str = "float32") -> str:
    """How products are computed on this device, where settings ask for `precision`.

    Args:
      precision: "auto", a word of JAX or an algorithm's name.
      dtype: of what is multiplied; float64 has one precision only.

    Returns:
      Of "auto" the best choice, "highest" on a CPU. "highest" for an algorithm that this device, or
      this release of JAX, does not have.
    """
    if dtype == "float64":
        return HIGHEST
    if precision == AUTO:
        return HIGHEST if jax.default_backend() == "cpu" else _fastest_here()
    if precision in ALGORITHMS and (reason := lacking(precision)):
        _log.warning("products are computed in full precision (highest): %s", reason)
        return HIGHEST
    return precision


def choose(measured: Sequence[Measured]) -> str:
    """The fastest algorithm that is accurate, "highest" if there is none.

    Args:
      measured: of several algorithms, "highest" among them.
    """
    bar = max([ERROR_BAR, *(m.error for m in measured if m.algorithm == HIGHEST)])
    accurate = [m for m in measured if m.error <= bar and m.as_claimed]
    return min(accurate, key=lambda m: m.seconds).algorithm if accurate else HIGHEST


@functools.cache
def _fastest_here() -> str:
    """The choice on this device, measured once; logged."""
    started = time.perf_counter()
    measured = measure_all((HIGHEST, *_CANDIDATES))
    chosen = choose(measured)
    by_name = {m.algorithm: m for m in measured}
    _log.info(
        "products of float32 numbers: %s, covariances within %.2g, %.3g times as fast as highest "
        "(%d ways tried in %.3g s)",
        chosen, by_name[chosen].error, by_name[HIGHEST].seconds / by_name[chosen].seconds,
        len(measured), time.perf_counter() - started,
    )  # fmt: skip
    return chosen


def lacking(algorithm: str) -> str:
    """Why this device or release of JAX does not have an algorithm; "" if it has."""
    try:
        jax.block_until_ready(_product(jnp.ones((_SHORT, _SHORT)), algorithm))
    except _LACKING as error:
        device = jax.devices()[0]
        reason = " ".join(str(error).split())[:150]
        return f"{device.device_kind} ({device.platform}) does not have {algorithm} ({reason})"
    return ""


def measure_all(algorithms: Sequence[str] = (HIGHEST, *ALGORITHMS)) -> list[Measured]:
    """Time and errors of those algorithms that this device has.

    Args:
      algorithms: names, or "highest".
    """
    shape = _CPU if jax.default_backend() == "cpu" else _ACCELERATOR
    (hard,) = hard_rows((_JUDGED,), _ROWS)
    others = jax.random.normal(jax.random.key(0), (shape.layers, _BUFFER, shape.neurons))
    judged = np.s_[: _JUDGED.layers, :, : _JUDGED.neurons]
    blocks = [others.at[judged].set(hard[:, k : k + _BUFFER]) for k in range(0, _ROWS, _BUFFER)]
    measured = []
    for name in algorithms:
        if name == HIGHEST:
            measured.append(_measure(name, blocks, hard))
        elif not lacking(name):
            try:
                measured.append(_measure(name, blocks, hard))
            except _LACKING as error:  # for small products only
                _log.info("no updates by %s: %s", name, error)
    return measured


def _measure(algorithm: str, blocks: Sequence[ModelRows], known: HardRows) -> Measured:
    """Time and errors of an algorithm.

    Args:
      algorithm: its name.
      blocks: rows of one update each.
      known: all rows of the hard neurons, of which the error is computed.
    """
    valid = jnp.int32(_BUFFER)
    state = moments.zero((ModelShape(len(blocks[0]), blocks[0].shape[2]),))
    state = moments.with_reference(state, _reference_mean((blocks[0],), valid))
    for block in blocks:
        state = _update(state, (block,), valid, precision=algorithm)
    error = covariance_error(MomentsState.of(state).finish(), [known])
    taken = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        state = jax.block_until_ready(_update(state, (blocks[0],), valid, precision=algorithm))
        taken.append(time.perf_counter() - started)
    return Measured(algorithm, error, _product_error(algorithm), statistics.median(taken))


_reference_mean = jax.jit(moments.reference_mean)


@functools.partial(jax.jit, static_argnames="precision")
def _product(x: Float[Array, "row term"], precision: str) -> Float[Array, "row row"]:
    return jnp.matmul(x, x.T, precision=precision)


def _product_error(algorithm: str) -> float:
    """Largest error of inner products of 64 numbers, over the norms of both vectors."""
    x = np.random.default_rng(0).standard_normal((2 * _SHORT, _SHORT)).astype(np.float32)
    got = np.asarray(_product(jnp.asarray(x), algorithm), np.float64)
    exact = x.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    return float(np.max(np.abs(got - exact @ exact.T) / np.outer(norms, norms)))


def hard_rows(streams: Sequence[ModelShape], rows: int) -> list[HardRows]:
    """Rows of each model: correlated, with mean / std = 1000, of scales from 0.01 to 100."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((rows, 8))
    made = []
    for stream in streams:
        shape = stream.layers, rows, stream.neurons
        mixed = common @ rng.standard_normal((stream.layers, 8, stream.neurons))
        noisy = mixed + rng.standard_normal(shape)
        scale = 10.0 ** rng.uniform(-2, 2, stream.neurons)
        hard = (noisy / noisy.std(1, keepdims=True) + MEAN_TO_STD) * scale
        made.append(hard.astype(np.float32))
    return made


def covariance_error(finished: FinishedMoments, data: Sequence[HardRows]) -> float:
    """Largest error of a covariance against float64, over its neurons' standard deviations.

    Args:
      finished: moments of all rows.
      data: rows of each model; of all its layers and neurons, or of the first few.
    """
    exact = {
        (model, layer): rows - rows.mean(0)
        for model, layers in enumerate(data)
        for layer, rows in enumerate(np.asarray(x, np.float64) for x in layers)
    }
    of = {r.index: r for r in finished.representations if r.index in exact}
    worst = 0.0
    for x, y in itertools.product(exact, repeat=2):
        count = len(exact[x])
        scatter = finished.scatter(of[x], of[y])[: exact[x].shape[1], : exact[y].shape[1]]
        error = np.abs(scatter - exact[x].T @ exact[y]) / count
        worst = max(worst, float(np.max(error / np.outer(exact[x].std(0), exact[y].std(0)))))
    return worst if math.isfinite(worst) else math.inf
