"""Add up the statistics of shards, or of the same models over disjoint audio.

    speechsim compare ... --audio=part1 --keep_statistics --workdir=runs/part1
    speechsim compare ... --audio=part2 --keep_statistics --workdir=runs/part2
    speechsim merge --jobs=runs/part1,runs/part2 --workdir=runs/both

writes config.json, result.nc, report.html, figures/*.png and log.jsonl into the workdir: the result
of one comparison on all the audio. Of a single job it computes other measures, without reading the
audio again. Without --jobs it merges the shards of the job in --workdir.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.commands.compare import STATISTICS
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import begin, keeping_complete, made, save_result
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import AnyPath, as_path, in_bucket, remove_folder
from speechsim_jax.runtime.lock import locked
from speechsim_jax.settings import Output, Settings, documented

if TYPE_CHECKING:
    from speechsim_jax.results.result import SimilarityResult


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """What to merge and where results go."""

    workdir: str = flags.workdir()
    jobs: tuple[str, ...] = flags.own(
        (), "Workdirs of comparisons with --keep_statistics or --shard (default: --workdir)."
    )
    audio: str | None = flags.own(
        None, "Audio of the jobs, for the sound of exemplars in the report (default: no sound)."
    )
    measures: str | None = flags.measures()
    levels: tuple[str, ...] = flags.levels()
    rank_tolerance: float | None = flags.like(Settings, "rank_tolerance")
    keep_statistics: bool = flags.keep_statistics()
    output: Output = flags.nested(Output())
    overwrite: bool = flags.overwrite()
    resume: bool = flags.resume()
    figure_formats: tuple[str, ...] = flags.figure_formats()
    figure_style: str = flags.figure_style()
    figure_reference: str = flags.figure_reference()
    exemplars_audio: str = flags.exemplars_audio()
    exemplars_neurons: tuple[str, ...] = flags.exemplars_neurons()

    def __post_init__(self) -> None:
        flags.check_figures(self.figure_formats, self.figure_style, self.figure_reference)
        flags.check_exemplars(self.exemplars_neurons, self.exemplars_audio)


def run(config: Config) -> SimilarityResult:
    """Merge, save and draw.

    Returns:
      The result that was saved.

    Raises:
      UserError: a job without statistics, jobs that do not belong together, or a bad workdir.
    """
    workdir = made(config.workdir)
    statistics = workdir / STATISTICS
    jobs = [as_path(job) for job in config.jobs or (config.workdir,)]
    for job in jobs:
        if not (job / STATISTICS).exists() and (job / "result.nc").exists():
            raise UserError(f"{job} was made without --keep_statistics; run compare again with it")
    if config.jobs and _location(workdir) in map(_location, jobs):
        raise UserError(f"--workdir={workdir} is one of --jobs; choose another folder")
    # Those of the job itself stay.
    target = statistics if config.jobs else statistics / "merged"
    with locked(workdir), log_to(workdir, config.output.progress):
        given = dataclasses.asdict(config)
        unfinished = begin(workdir, target, given)

        import speechsim_jax as ss

        if not unfinished:
            return ss.SimilarityResult.load(workdir / "result.nc")
        with keeping_complete(workdir):
            result = ss.merge(
                [job / STATISTICS for job in jobs],
                measures=config.measures,
                levels=config.levels or None,
                rank_tolerance=config.rank_tolerance,
                statistics_dir=target,
                note=config.output.note,
                progress=config.output.progress,
            )
            save_result(
                result,
                workdir,
                given,
                config.figure_formats,
                config.figure_style,
                config.figure_reference,
                None if config.exemplars_audio == "none" else config.audio,
                config.exemplars_neurons,
            )
        if not (config.keep_statistics and config.jobs):
            remove_folder(target)
    return result


def _location(path: AnyPath) -> str:
    """The same for all names of a folder."""
    return os.fspath(path if in_bucket(path) else path.resolve())


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
    written = as_path(config.workdir) / "result.nc"
    print(f"\nwritten: {written}, report.html and figures next to it")
