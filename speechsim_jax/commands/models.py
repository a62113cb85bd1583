"""List the families of encoders that are read, with example checkpoints.

    speechsim models

prints, for each model_type of config.json, what goes in, how many frames come out and how long
their windows are (of the default configuration), which heads are read, and checkpoints of the hub
with their layers and neurons. --markdown prints the table of the documentation. `speechsim inspect`
says the same of one checkpoint.
"""

from __future__ import annotations

import dataclasses

from absl.flags import FlagValues

from speechsim_jax.commands import flags


@dataclasses.dataclass(frozen=True)
class Config:
    """How the table is printed."""

    markdown: bool = flags.own(False, "Print the table in Markdown.")


def run(config: Config) -> str:
    """The table."""
    from speechsim_jax.models import catalogue

    return catalogue.markdown() if config.markdown else catalogue.text()


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config)


def main(values: FlagValues) -> None:
    """Print the table."""
    print(run(flags.from_flags(values, Config)))
