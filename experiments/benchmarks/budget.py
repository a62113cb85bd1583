"""Figures that are measured within a time limit, and a table of them."""

import json
import statistics
import time
from collections.abc import Callable

import jax

from experiments.benchmarks import machine

_REPEATS = 5
# Of one figure, after it was compiled.
_MOST_SECONDS = 3.0


class Budget:
    """The figures of a benchmark, and the time that is left for more.

    Args:
        what: name of the benchmark.
        minutes: in all.
    """

    def __init__(self, what: str, minutes: float):
        self.what = what
        self._ends = time.monotonic() + 60 * minutes
        self._rows: list[tuple[str, str, str]] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def report(
        self, figure: str, value: float | int, unit: str, **labels: str | float | int | None
    ) -> None:
        """Print a figure as a line of JSON, and keep it for the table."""
        machine.report(self.what, figure, value, unit, **labels)
        conditions = ", ".join(f"{name} {label}" for name, label in labels.items())
        self._rows.append(
            (f"{figure}: {conditions}" if conditions else figure, f"{value:.4g}", unit)
        )

    def skip(self, part: str, why: str) -> None:
        """Say that a part was left out, as a line of JSON and in the table."""
        why = " ".join(why.split())[:200]
        print(json.dumps({"what": self.what, "skipped": part, "why": why}), flush=True)
        self._rows.append((part, "skipped", why))

    def fits(self, part: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, that is said."""
        if self.left >= seconds:
            return True
        self.skip(part, f"takes about {seconds:.3g} s, and {max(self.left, 0):.3g} s are left")
        return False

    def attempt(self, part: str, measure: Callable[[], None], seconds: float = 1.0) -> None:
        """Measure a part if so many seconds are left; where it fails, the rest goes on."""
        if not self.fits(part, seconds):
            return
        try:
            measure()
        except Exception as error:  # whatever a device or a library cannot do
            self.skip(part, f"{type(error).__name__}: {error}")

    def table(self) -> str:
        """All figures, and what was skipped, as lines of text."""
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        return "\n".join(
            f"{figure:<{widths[0]}}  {value:>{widths[1]}}  {unit}"
            for figure, value, unit in self._rows
        )


def seconds_of(call: Callable[[], object]) -> float:
    """Median seconds of a call that is compiled beforehand; as many as fit into three seconds."""
    jax.block_until_ready(call())
    taken: list[float] = []
    while len(taken) < _REPEATS and sum(taken) < _MOST_SECONDS:
        started = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
