"""Compare all layers of several speech encoders on the same audio.

    speechsim compare --models=facebook/hubert-base-ls960,runs/mine \\
        --audio=speech/ --workdir=runs/hubert_and_mine

writes config.json, result.nc, report.html, figures/*.png and log.jsonl into the workdir and prints
a table of means. From a notebook: `run(Config(models=(...), audio=..., workdir=...))`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to, process_index
from speechsim_jax.commands.workdir import checkpoint_folder, new_workdir, save_result
from speechsim_jax.errors import UserError
from speechsim_jax.settings import (
    DEVICES,
    HOW,
    Output,
    Resources,
    Settings,
    documented,
    setting,
)

if TYPE_CHECKING:
    from speechsim_jax.results.result import SimilarityResult

_log = logging.getLogger(__name__)


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare, how, and where results go.

    Checkpoints and stored statistics are written into `workdir`.

    Raises:
      UserError: a folder for checkpoints in `resources` or for statistics in `output`; an unknown
        figure format or style.
    """

    models: tuple[str, ...] = flags.models()
    audio: str = flags.audio()
    workdir: str = flags.workdir()
    measures: str = flags.measures("paper")
    levels: tuple[str, ...] = flags.levels()
    settings: Settings = flags.nested(Settings())
    resources: Resources = flags.nested(Resources())
    output: Output = flags.nested(Output())
    keep_statistics: bool = flags.keep_statistics()
    overwrite: bool = flags.overwrite()
    resume: bool = flags.resume()
    figure_formats: tuple[str, ...] = flags.figure_formats()
    figure_style: str = flags.figure_style()

    def __post_init__(self) -> None:
        flags.check_figures(self.figure_formats, self.figure_style)
        if self.resources.checkpoint_dir is not None or self.output.keep_statistics is not None:
            raise UserError(
                "the command writes checkpoints and statistics into workdir; set "
                "Config.keep_statistics, not output.keep_statistics or resources.checkpoint_dir"
            )


@dataclasses.dataclass(frozen=True)
class _Others:
    """Flags besides the fields of `Config`."""

    help_measures: bool = setting(False, "List the measures and stop.", HOW)
    coordinator: str | None = setting(
        None,
        "Address of process 0 of several, HOST:PORT; auto on a TPU pod, under SLURM or Open MPI.",
        DEVICES,
    )
    processes: int | None = setting(None, "How many processes share the job.", DEVICES)
    process: int | None = setting(None, "Which of them this is, from 0 on.", DEVICES)
    process_timeout: float | int = setting(
        60.0, "Seconds of silence after which a process counts as lost.", DEVICES, at_least=1
    )


def run(config: Config) -> SimilarityResult:
    """Compare, save and draw.

    Returns:
      The result that was saved.

    Raises:
      UserError: whatever is wrong with the configuration, the models or the audio.
    """
    # What is left of a run that was killed at its very end may be written over.
    unfinished = config.resume and Path(config.workdir, "checkpoints").exists()
    workdir = new_workdir(config.workdir, config.overwrite or unfinished)
    checkpoints = checkpoint_folder(workdir, config.resume, config.overwrite)
    statistics = workdir / "statistics"
    if not unfinished:
        shutil.rmtree(statistics, ignore_errors=True)
    with log_to(workdir, config.output.progress):
        inputs.check_models(config.models, config.resources.revision)
        corpus = inputs.open_audio(config.audio)
        inputs.log_start(config.models, corpus)
        _log.debug("config: %s", json.dumps(dataclasses.asdict(config)))
        if config.resume and not checkpoints.exists():
            _log.warning("no checkpoint in %s: starting from the beginning", workdir)

        import speechsim_jax as ss

        result = ss.compare(
            config.models,
            corpus,
            config.measures,
            levels=config.levels or None,
            settings=config.settings,
            resources=dataclasses.replace(config.resources, checkpoint_dir=str(checkpoints)),
            output=dataclasses.replace(
                config.output, keep_statistics=str(statistics) if config.keep_statistics else None
            ),
        )
        if process_index() == 0:
            given = dataclasses.asdict(config)
            save_result(result, workdir, given, config.figure_formats, config.figure_style)
            shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, _Others, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    return flags.from_flags(values, Config, output=flags.output(values))


@contextlib.contextmanager
def _in_job(others: _Others) -> Iterator[None]:
    """Be one process of several, if the flags name a job."""
    place = others.coordinator, others.processes, others.process
    if place == (None, None, None):
        yield
        return
    from speechsim_jax.runtime import processes

    with processes.joined(*place, silence_seconds=others.process_timeout):
        yield


def main(values: FlagValues) -> None:
    """Run from the flags and print the summary."""
    if values["help_measures"].value:
        import speechsim_jax as ss

        for measure in ss.list_measures():
            print(f"{measure.name:20} {measure.level:9} {measure.summary}  [{measure.reference}]")
        return
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    with _in_job(flags.from_flags(values, _Others)):
        result = run(config)
        if process_index() != 0:
            return
    print(result.summary())
    print(f"\nwritten: {Path(config.workdir, 'result.nc')}, report.html and figures next to it")
