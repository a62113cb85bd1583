"""`experiments.compare`, ending with a line of JSON that tells when its parts ended.

    python -m experiments.benchmarks.timed_compare FLAG...

Times are seconds since the epoch: `reading` when audio is asked for first, `read` after the last
pass, `scored` after the last score. `compiling_seconds` is a sum over threads.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
from absl.flags import FlagValues

from speechsim_jax.audio import batching
from speechsim_jax.commands import compare
from speechsim_jax.commands.entry import run_module
from speechsim_jax.comparison import encoders, reading, steps

_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def define_flags() -> FlagValues:
    """The flags of the comparison."""
    return compare.define_flags()


def main(values: FlagValues) -> None:
    """Run the comparison that the flags ask for, and print when its parts ended."""
    times: dict[str, float] = {}
    compiling: list[float] = []

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event in _COMPILE_EVENTS:
            compiling.append(duration_secs)

    def timed(
        function: Callable, before: str | None = None, after: str | None = None
    ) -> Callable[..., Any]:
        """The function, noting the time of its first call or of its last return."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if before:
                times.setdefault(before, time.time())
            result = function(*args, **kwargs)
            if after:
                times[after] = time.time()
            return result

        return wrapper

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    with (
        mock.patch.object(batching, "batches", timed(batching.batches, before="reading")),
        mock.patch.object(reading, "run_passes", timed(reading.run_passes, after="read")),
        mock.patch.object(encoders, "scored_result", timed(encoders.scored_result, after="scored")),
        mock.patch.object(steps, "scored_result", timed(steps.scored_result, after="scored")),
    ):
        compare.main(values)
    print(json.dumps(times | {"compiling_seconds": sum(compiling)}))


if __name__ == "__main__":
    run_module(sys.modules[__name__])
