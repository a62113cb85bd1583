"""Compare all layers of several speech encoders on the same audio.

    speechsim compare --models=facebook/hubert-base-ls960,runs/mine \\
        --audio=speech/ --workdir=runs/hubert_and_mine

writes config.json, result.nc, report.html, figures/*.png and log.jsonl into the workdir and prints
a table of means. From a notebook: `run(Config(models=(...), audio=..., workdir=...))`.

Machines that share the workdir can share the audio: with --shard=1/4, ... each reads its part, and
whichever completes the set writes the results.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import begin, is_complete, keeping_complete, made, save_result
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import AnyPath, as_path, remove_folder
from speechsim_jax.runtime.lock import LockedError, locked
from speechsim_jax.runtime.shards import WHOLE, Shard, shard_from
from speechsim_jax.settings import (
    HOW,
    Output,
    Resources,
    Settings,
    documented,
    setting,
)

if TYPE_CHECKING:
    from speechsim_jax.audio.alignments import Segments
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.results.result import SimilarityResult

STATISTICS = "statistics"
"""Folder of stored statistics in the workdir."""

_log = logging.getLogger(__name__)


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare, how, and where results go.

    Checkpoints and stored statistics are written into `workdir`.

    Raises:
      UserError: a folder for statistics in `output`; an unknown figure format or style.
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
    figure_reference: str = flags.figure_reference()
    exemplars_audio: str = flags.exemplars_audio()
    exemplars_neurons: tuple[str, ...] = flags.exemplars_neurons()

    def __post_init__(self) -> None:
        flags.check_figures(self.figure_formats, self.figure_style, self.figure_reference)
        flags.check_exemplars(self.exemplars_neurons, self.exemplars_audio)
        if self.exemplars_neurons and not self.settings.exemplars:
            raise UserError("exemplars_neurons is given without exemplars; add exemplars=5")
        if self.output.statistics_dir is not None:
            raise UserError("the command writes statistics into workdir, not output.statistics_dir")


@dataclasses.dataclass(frozen=True)
class _Others:
    """Flags besides the fields of `Config`."""

    help_measures: bool = setting(False, "List the measures and stop.", HOW)


def run(config: Config) -> SimilarityResult | None:
    """Compare, save and draw.

    Returns:
      The result that was saved; None if it is up to other shards.

    Raises:
      UserError: whatever is wrong with the configuration, the models or the audio.
    """
    workdir, shard = made(config.workdir), shard_from(config.resources.shard)
    if shard != WHOLE:
        return _run_shard(config, workdir, shard)
    with locked(workdir), log_to(workdir, config.output.progress):
        if not begin(workdir, workdir / STATISTICS, dataclasses.asdict(config)):
            return _complete_before(workdir)
        with keeping_complete(workdir):
            corpus = _checked_audio(config)

            import speechsim_jax as ss

            result = ss.compare(**_arguments(config, corpus, workdir, config.keep_statistics))
            _save(result, workdir, config, corpus)
        if not config.keep_statistics:
            remove_folder(workdir / STATISTICS)
    return result


def _run_shard(config: Config, workdir: AnyPath, shard: Shard) -> SimilarityResult | None:
    """Read one share of the audio; merge all, if it was the last."""
    folder = workdir / STATISTICS / f"shard-{shard.index}-of-{shard.count}"
    with log_to(workdir, config.output.progress, f"log-{shard.index}-of-{shard.count}.jsonl"):
        if not begin(workdir, folder, dataclasses.asdict(config)):
            return _complete_before(workdir)
        corpus = _checked_audio(config)

        import speechsim_jax as ss

        shards = ss.accumulate(**_arguments(config, corpus, workdir, True))
        waiting = [str(s.shard) for s in shards if s.state != "done"]
        if waiting:
            _log.info("shard %s is complete; still to come: %s", shard, ", ".join(waiting))
            return None
        try:
            with locked(workdir):
                if is_complete(workdir):
                    return _complete_before(workdir)
                merged = workdir / STATISTICS / "merged"
                result = ss.merge(
                    [workdir / STATISTICS],
                    measures=config.measures,
                    levels=config.levels or None,
                    rank_tolerance=config.settings.rank_tolerance,
                    statistics_dir=merged,
                    note=config.output.note,
                    progress=config.output.progress,
                )
                _save(result, workdir, config, corpus)
                remove_folder(merged)
        except LockedError as error:
            _log.info("all shards are complete, and another process merges them: %s", error)
            return None
    return result


def _checked_audio(config: Config) -> Corpus:
    """The audio; it and the models are checked before the libraries that read them are loaded."""
    inputs.check_models(config.models, config.resources.revision)
    corpus = inputs.open_audio(config.audio, config.settings)
    inputs.log_start(config.models, corpus)
    _log.debug("config: %s", json.dumps(dataclasses.asdict(config)))
    return corpus


def _arguments(config: Config, corpus: Corpus, workdir: AnyPath, keep: bool) -> dict[str, Any]:
    """Of `ss.compare` and `ss.accumulate`."""
    output = dataclasses.replace(
        config.output, statistics_dir=str(workdir / STATISTICS), keep_statistics=keep
    )
    return {
        "models": config.models,
        "audio": corpus,
        "measures": config.measures,
        "levels": config.levels or None,
        "settings": config.settings,
        "resources": config.resources,
        "output": output,
    }


def _save(result: SimilarityResult, workdir: AnyPath, config: Config, corpus: Corpus) -> None:
    save_result(
        result,
        workdir,
        dataclasses.asdict(config),
        config.figure_formats,
        config.figure_style,
        config.figure_reference,
        corpus if config.exemplars_audio == "auto" else None,
        _neurons(config.exemplars_neurons, result),
        _segments(corpus, config.settings),
    )


def _neurons(names: Sequence[str], result: SimilarityResult) -> tuple[str, ...]:
    """The named neurons that there are: a name that is none does not end a run that is complete."""
    from speechsim_jax.report.exemplars import parsed

    known = []
    for name in names:
        try:
            parsed(name, result)
        except UserError as error:
            _log.warning("exemplars_neurons: %s; it is left out", error)
        else:
            known.append(name)
    return tuple(known)


def _segments(corpus: Corpus, settings: Settings) -> dict[str, Segments]:
    """What is said in exemplars: the phones, or the first label that is of alignments."""
    if not settings.exemplars:
        return {}
    from speechsim_jax.audio.label_sources import segments_of

    return segments_of(settings.labels, corpus, settings.layout)


def _complete_before(workdir: AnyPath) -> SimilarityResult:
    import speechsim_jax as ss

    _log.info("%s is complete", workdir)
    return ss.SimilarityResult.load(workdir / "result.nc")


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, _Others, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    return flags.from_flags(values, Config, output=flags.output(values))


def main(values: FlagValues) -> None:
    """Run from the flags and print the summary."""
    if values["help_measures"].value:
        import speechsim_jax as ss

        for measure in ss.list_measures():
            print(f"{measure.name:20} {measure.level:9} {measure.summary}  [{measure.reference}]")
        return
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    result = run(config)
    workdir = as_path(config.workdir)
    if result is None:
        print(f"results follow when all shards are complete: speechsim status {workdir}")
        return
    print(result.summary())
    print(f"\nwritten: {workdir / 'result.nc'}, report.html and figures next to it")
