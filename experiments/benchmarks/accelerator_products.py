"""Products of an accelerator: the checks, its peaks, the update of the moments, attention sums."""

import functools

import jax
import jax.numpy as jnp

from experiments.benchmarks.budget import Budget, seconds_of
from experiments.benchmarks.statistics import flops
from speechsim_jax.commands import machine_checks
from speechsim_jax.pipeline import costs
from speechsim_jax.settings import ALGORITHMS
from speechsim_jax.statistics import moments
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.product_precision import HIGHEST, lacking, measure_all, resolved

_ROWS = 4096
_BASE, _SMALL = ModelShape(13, 768), ModelShape(2, 32)
_HEADS = 288
_SUMS = ("distance", "divergence", "correlation")


def selfcheck(budget: Budget) -> None:
    """The figure of each check, and whether it passes."""
    for check in machine_checks.checks():
        try:
            value = check.figure()
        except Exception as error:  # as in `machine_checks.passes`
            budget.skip(f"selfcheck, {check.name}", f"FAILED, {type(error).__name__}: {error}")
            continue
        passes = "yes" if value <= check.bar else "NO"
        budget.report("selfcheck", value, "error", check=check.name, bar=check.bar, passes=passes)


def algorithms() -> list[str]:
    """Those of products that this device has, "highest" first."""
    return [HIGHEST, *(name for name in ALGORITHMS if not lacking(name))]


def peaks(budget: Budget, small: bool) -> float:
    """Rates of square products; returns the best of float32 in full precision, in FLOP/s."""
    cpu = jax.default_backend() == "cpu"
    size = 256 if small else 2048 if cpu else 8192
    known = algorithms()
    ways = [(HIGHEST, jnp.float32), ("default", jnp.bfloat16), ("default", jnp.float32)]
    peak = 0.0
    for precision, dtype in [*ways, *((name, jnp.float32) for name in known[1:])]:
        x = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(
            functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32)
        )
        rate = 2 * size**3 / seconds_of(lambda product=product, x=x: product(x, x))
        if precision in (HIGHEST, "F32_F32_F32"):
            peak = max(peak, rate)
        budget.report(
            "products", rate / 1e12, "TFLOP/s",
            operands=jnp.dtype(dtype).name, precision=precision, size=size,
        )  # fmt: skip
    for name in ALGORITHMS:
        if name not in known:
            budget.skip(f"products by {name}", "this device does not have it")
    return peak


def moments_by_algorithm(budget: Budget, peak: float, small: bool) -> None:
    """The update of all layer pairs of a base-size encoder: rate and error in each algorithm."""
    errors = {one.algorithm: one for one in measure_all()}
    shape = _SMALL if small else _BASE
    rows = jax.random.normal(jax.random.key(0), (shape.layers, _ROWS, shape.neurons))
    work, valid = flops((shape,), _ROWS), jnp.int32(_ROWS)
    update = jax.jit(moments.update, donate_argnums=0, static_argnames="precision")
    seconds: dict[str, float] = {}
    for name, measured in errors.items():
        labels = {"precision": name}
        budget.report("covariance error", measured.error, "absolute", **labels)
        budget.report("error of short products", measured.product_error, "absolute", **labels)
        if not budget.fits(f"update by {name}", 8 * work / peak):
            continue
        state = moments.zero((shape,))

        def again(name: str = name) -> object:
            nonlocal state
            state = update(state, (rows,), valid, precision=name)
            return state

        seconds[name] = seconds_of(again)
        budget.report("update", work / seconds[name] / 1e12, "TFLOP/s", **labels)
        budget.report("update, share of peak", work / seconds[name] / peak, "ratio", **labels)
    chosen = resolved("auto")
    if {HIGHEST, chosen} <= seconds.keys():
        faster = seconds[HIGHEST] / seconds[chosen]
        budget.report("update, highest : what auto takes", faster, "ratio", auto=chosen)


def attention(budget: Budget, small: bool) -> None:
    """The sums of all pairs of heads on maps of 128 frames."""
    heads = 8 if small else _HEADS
    cells = costs.ESTIMATED_FRAMES**2
    operations = costs.estimate(heads, cells, _SUMS).operations
    seconds = cells * costs.attention_seconds_per_cell(heads, _SUMS)
    labels = {"heads": heads, "frames": costs.ESTIMATED_FRAMES}
    budget.report("attention sums", operations / seconds / 1e12, "TFLOP/s", **labels)
    budget.report("attention sums", seconds, "s", **labels)
