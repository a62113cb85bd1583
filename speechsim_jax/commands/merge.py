"""Add up what several comparisons of the same models have kept, over disjoint audio.

    python -m experiments.compare ... --audio=part1 --keep_statistics --workdir=runs/part1
    python -m experiments.compare ... --audio=part2 --keep_statistics --workdir=runs/part2
    python -m experiments.merge --jobs=runs/part1,runs/part2 --workdir=runs/both

writes config.json, result.nc, report.html, figures/*.png and log.jsonl into the workdir: what one
comparison on all the audio would have given. Of a single job it gives other measures, without
hearing the audio again.
"""

import dataclasses
import shutil
from pathlib import Path

from absl import flags

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.commands import flags as _flags
from speechsim_jax.commands import scoring
from speechsim_jax.errors import UserError

_JOBS = flags.DEFINE_list("jobs", [], "Workdirs of comparisons with --keep_statistics.")
flags.adopt_module_key_flags(_flags)
flags.adopt_module_key_flags(scoring)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to merge and where to put it."""

    jobs: tuple[str, ...]
    workdir: str
    measures: str | None = None
    levels: tuple[str, ...] = ()
    rank_tolerance: float | None = None
    keep_statistics: bool = False
    note: str = ""
    overwrite: bool = False
    figure_formats: tuple[str, ...] = ("png",)
    figure_style: str = "labelled"


def run(config: Config) -> ss.SimilarityResult:
    """Merge, save and draw; returns the result that was saved. Raises UserError."""
    figures.check(config.figure_formats, config.figure_style)
    workdir = _flags.new_workdir(config.workdir, config.overwrite)
    statistics = workdir / "statistics"
    folders = [Path(job) / "statistics" for job in config.jobs]
    for job, folder in zip(config.jobs, folders):
        if not folder.exists() and Path(job, "result.nc").exists():
            raise UserError(f"{job} was made without --keep_statistics; run compare again with it")
    if statistics.exists() and any(statistics.samefile(f) for f in folders if f.exists()):
        raise UserError(f"--workdir={workdir} is one of --jobs; choose another folder")
    shutil.rmtree(statistics, ignore_errors=True)
    with _flags.log_to(workdir):
        result = ss.merge(
            folders,
            measures=config.measures,
            levels=config.levels or None,
            rank_tolerance=config.rank_tolerance,
            keep_statistics=statistics if config.keep_statistics else None,
            note=config.note,
            progress=not _flags.quiet(),
        )
        given = dataclasses.asdict(config)
        _flags.save_result(result, workdir, given, config.figure_formats, config.figure_style)
    return result


def main() -> None:
    """Run from the flags and print what came out."""
    for flag in (_JOBS, _flags.WORKDIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is required; see --help")
    config = Config(
        jobs=tuple(_JOBS.value),
        workdir=str(_flags.WORKDIR.value),
        measures=scoring.MEASURES.value,
        levels=tuple(scoring.LEVELS.value),
        rank_tolerance=scoring.RANK_TOLERANCE.value,
        keep_statistics=scoring.KEEP_STATISTICS.value,
        note=scoring.NOTE.value,
        overwrite=_flags.OVERWRITE.value,
        figure_formats=tuple(scoring.FIGURE_FORMATS.value),
        figure_style=scoring.FIGURE_STYLE.value,
    )
    result = run(config)
    print(result.summary())
    print(f"\nwritten: {Path(config.workdir, 'result.nc')}, report.html and figures beside it")
