"""Say how much audio standard errors need to be below a target, from a finished result.

    speechsim plan runs/first/result.nc --target_se=0.01

prints, for the largest and the median standard error of each measure, the minutes and hours of
audio, and the hours of encoding on the machine that made the result. Standard errors fall with the
root of the number of speakers or utterances, with as much audio of each. What few frames add to a
score is not part of it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.commands.inputs import load_result
from speechsim_jax.settings import check_fields, documented

if TYPE_CHECKING:
    from speechsim_jax.inference.planning import AudioNeeded

POSITIONAL = ("result",)
"""The flags that arguments without a name are for."""


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Which result is extrapolated, and to what."""

    result: str = flags.own(flags.REQUIRED, "A result.nc, or the workdir that has one.")
    target_se: float | int = flags.own(
        flags.REQUIRED, "The standard error that is to be reached, e.g. 0.01.", above=0
    )

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> tuple[AudioNeeded, ...]:
    """What each measure needs.

    Raises:
      UserError: there is no such result, or it has no standard errors.
    """
    return load_result(config.result).audio_needed(config.target_se)


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config)


def main(values: FlagValues) -> None:
    """Print a line for each measure."""
    config = flags.from_flags(values, Config)
    rows = run(config)
    width = max(len("measure"), *(len(row.measure) for row in rows))
    print(f"for a standard error of {config.target_se:g}, with more speakers or utterances:\n")
    print(
        f"{'measure':{width}}  {'of pairs':8}  {'now':>8}  {'minutes':>9}  {'hours':>8}  encoding"
    )
    for row in rows:
        hours = "" if math.isnan(row.compute_hours) else f"{row.compute_hours:6.2f} h"
        print(
            f"{row.measure:{width}}  {row.of:8}  {row.standard_error:8.2g}  {row.minutes:9.1f}  "
            f"{row.minutes / 60:8.2f}  {hours}".rstrip()
        )
