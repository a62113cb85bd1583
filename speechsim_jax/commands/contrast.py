"""Say how sure a difference between scores of one measure is, from a finished result.

    speechsim contrast runs/mine lincka --cells=mine/3,theirs/1 --others=mine/3,theirs/5

prints the difference, its 95 % interval, its p-value and its standard error over speakers or
utterances. Several cells are averaged; without --others it is the cells' own mean. Scores of the
same audio move together, so a difference is surer than the intervals of the two make it look.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.commands.inputs import load_result
from speechsim_jax.errors import UserError
from speechsim_jax.settings import check_fields, documented

if TYPE_CHECKING:
    from speechsim_jax.inference.contrast import Contrast

POSITIONAL = ("result", "measure")
"""The flags that arguments without a name are for."""


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Which scores are subtracted from which."""

    result: str = flags.own(flags.REQUIRED, "A result.nc, or the workdir that has one.")
    measure: str = flags.own(flags.REQUIRED, "Name of the measure, e.g. lincka.")
    cells: tuple[str, ...] = flags.own(
        flags.REQUIRED, "Labels X,Y of a cell, e.g. mine/3,theirs/1; X,Y,X,Y,... of several."
    )
    others: tuple[str, ...] = flags.own((), "Those that are subtracted, likewise.")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("cells", "others"):
            labels = getattr(self, name)
            if len(labels) % 2:
                raise UserError(
                    f"--{name}={','.join(labels)}: expected pairs of labels X,Y, as in "
                    "mine/3,theirs/1"
                )


def run(config: Config) -> Contrast:
    """The contrast.

    Raises:
      UserError: there is no such result, measure or cell, or it has no standard errors.
    """
    result = load_result(config.result)
    return result.contrast(config.measure, _pairs(config.cells), _pairs(config.others))


def _pairs(labels: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(labels[::2], labels[1::2], strict=True))


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config)


def main(values: FlagValues) -> None:
    """Print what is compared, and the contrast."""
    config = flags.from_flags(values, Config)
    found = run(config)
    cells, others = (
        ", ".join(" with ".join(pair) for pair in _pairs(labels))
        for labels in (config.cells, config.others)
    )
    print(f"{config.measure} of {cells}" + (f"\nless that of {others}" if others else ""))
    print(found)
