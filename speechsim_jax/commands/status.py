"""Show how far the shards of a job are, from its workdir alone.

    speechsim status runs/hubert_and_mine

prints a line for each shard: done; running or stopped, since when and where; or missing. In a
bucket nobody knows whether a shard that was started still runs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.commands.compare import STATISTICS
from speechsim_jax.commands.workdir import is_complete
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import as_path

if TYPE_CHECKING:
    from speechsim_jax.pipeline.job_folder import ShardStatus

POSITIONAL = ("workdir",)
"""The flags that arguments without a name are for."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Whose progress is shown."""

    workdir: str = flags.own(flags.REQUIRED, "Folder of the job.")


def run(config: Config) -> list[ShardStatus]:
    """How far the shards are.

    Raises:
      UserError: the folder holds no job with statistics, or its plan is damaged.
    """
    workdir = as_path(config.workdir)
    if not (workdir / STATISTICS).exists():
        done = "; its results are complete" if is_complete(workdir) else ""
        raise UserError(f"{workdir} holds no unfinished job and no statistics{done}")

    from speechsim_jax.pipeline.job_folder import job_status

    return job_status(workdir / STATISTICS)


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config)


def main(values: FlagValues) -> None:
    """Print a line for each shard, and one for the results."""
    config = flags.from_flags(values, Config)
    shards = run(config)
    for status in shards:
        read = f"{status.seconds / 60:.1f} min of audio" if status.seconds else ""
        parts = [f"{status.shard!s:>7}  {status.state:8}", read, status.process.rstrip(",")]
        print("  ".join(filter(None, parts)))
    done = sum(status.state == "done" for status in shards)
    results = "complete" if is_complete(as_path(config.workdir)) else "not written"
    print(f"{done} of {len(shards)} shards are done; results: {results}")
