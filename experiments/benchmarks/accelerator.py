"""What this device does, from one command and within a time limit, on any device.

Nothing is read but this repository: the speech is synthetic, the weights are random. Parts come in
the order of their importance, and what does not fit into the limit is left out, and said. Peaks of
products are those of this run, and shares are of the float32 peak.

`selfcheck`     its checks and their errors
products        peaks of float32 products, of each algorithm that the device has, and of bfloat16
moments         the update in each algorithm: rate, share, error against float64
comparison      two base-size encoders, then two large ones more, on ten minutes (fewer where that
                would not fit): what its parts take one after the other, and how long the device
                waits when they overlap (`accelerator_comparison`)
encoders        base and large, against torch on the same device if it is there
attention sums  of the 288 heads of two base-size encoders
scaling         the comparison on more and more of the devices
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from experiments.benchmarks.accelerator_comparison import Comparison, scaling
from experiments.benchmarks.accelerator_encoders import Sizes, encoders
from experiments.benchmarks.accelerator_products import (
    attention,
    moments_by_algorithm,
    peaks,
    selfcheck,
)
from experiments.benchmarks.budget import Budget
from experiments.benchmarks.machine import report_machine

_WHAT = "accelerator"
_MINUTES = 10.0


def run(minutes_limit: float, small: bool = False) -> None:
    """Measure all parts that fit into so many minutes, and print a table of them."""
    device = jax.devices()[0]
    report_machine(_WHAT, device=f"{jax.device_count()} x {device.device_kind} ({device.platform})")
    budget, sizes = Budget(_WHAT, minutes_limit), Sizes(small)
    budget.attempt("selfcheck", functools.partial(selfcheck, budget))
    peak = peaks(budget, small)
    attempt = functools.partial(_attempt, budget)
    attempt("moments", moments_by_algorithm, peak, small)
    with tempfile.TemporaryDirectory() as scratch:
        minutes = 0.2 if small else _MINUTES
        comparison = Comparison(Path(scratch), sizes, minutes, peak)
        attempt("comparison of two base", comparison.measure, ("base", "base"))
        attempt("encoders", encoders, Path(scratch), sizes, peak)
        attempt("comparison of two base and two large", comparison.measure,
                ("base", "base", "large", "large"))  # fmt: skip
        attempt("attention sums", attention, small)
        attempt("scaling", scaling, comparison)
    budget.report("time left", max(budget.left, 0.0), "s", minutes_limit=minutes_limit)
    print(f"\n{budget.table()}", flush=True)


def _attempt(budget: Budget, part: str, measure: Callable[..., None], *arguments: object) -> None:
    budget.attempt(part, functools.partial(measure, budget, *arguments))
