"""Add up the statistics of comparisons of the same models over disjoint audio.

    speechsim compare ... --audio=part1 --keep_statistics --workdir=runs/part1
    speechsim compare ... --audio=part2 --keep_statistics --workdir=runs/part2
    speechsim merge --jobs=runs/part1,runs/part2 --workdir=runs/both

writes config.json, result.nc, report.html, figures/*.png and log.jsonl into the workdir: the result
of one comparison on all the audio. Of a single job it computes other measures, without reading the
audio again.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import new_workdir, save_result
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Output, Settings, documented

if TYPE_CHECKING:
    from speechsim_jax.results.result import SimilarityResult


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """What to merge and where results go."""

    jobs: tuple[str, ...] = flags.own(
        flags.REQUIRED, "Workdirs of comparisons with --keep_statistics."
    )
    workdir: str = flags.workdir()
    measures: str | None = flags.measures()
    levels: tuple[str, ...] = flags.levels()
    rank_tolerance: float | None = flags.like(Settings, "rank_tolerance")
    keep_statistics: bool = flags.keep_statistics()
    output: Output = flags.nested(Output())
    overwrite: bool = flags.overwrite()
    figure_formats: tuple[str, ...] = flags.figure_formats()
    figure_style: str = flags.figure_style()

    def __post_init__(self) -> None:
        flags.check_figures(self.figure_formats, self.figure_style)


def run(config: Config) -> SimilarityResult:
    """Merge, save and draw.

    Returns:
      The result that was saved.

    Raises:
      UserError: a job without statistics, jobs that do not belong together, or a bad workdir.
    """
    workdir = new_workdir(config.workdir, config.overwrite)
    statistics = workdir / "statistics"
    folders = [Path(job) / "statistics" for job in config.jobs]
    for job, folder in zip(config.jobs, folders):
        if not folder.exists() and Path(job, "result.nc").exists():
            raise UserError(f"{job} was made without --keep_statistics; run compare again with it")
    if statistics.exists() and any(statistics.samefile(f) for f in folders if f.exists()):
        raise UserError(f"--workdir={workdir} is one of --jobs; choose another folder")
    shutil.rmtree(statistics, ignore_errors=True)
    with log_to(workdir, config.output.progress):
        import speechsim_jax as ss

        result = ss.merge(
            folders,
            measures=config.measures,
            levels=config.levels or None,
            rank_tolerance=config.rank_tolerance,
            keep_statistics=statistics if config.keep_statistics else None,
            note=config.output.note,
            progress=config.output.progress,
        )
        given = dataclasses.asdict(config)
        save_result(result, workdir, given, config.figure_formats, config.figure_style)
    return result


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    return flags.from_flags(values, Config, output=flags.output(values))


def main(values: FlagValues) -> None:
    """Run from the flags and print the summary."""
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    result = run(config)
    print(result.summary())
    print(f"\nwritten: {Path(config.workdir, 'result.nc')}, report.html and figures next to it")
