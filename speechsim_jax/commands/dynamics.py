"""Learning dynamics: layers of checkpoints along pretraining against the final model.

    speechsim dynamics --run=runs/contrastive_s --audio=speech/ --workdir=runs/dynamics

The first use of SVCCA (Raghu et al. 2017): when does each layer become what it is at the end, from
below or from above? Reads the folders step-NNNNNN of a pretraining's workdir and its final one,
model/ (else --final, else the last step), and compares each checkpoint with the final model on the
same audio. Writes dynamics.csv, figures/dynamics_MEASURE.png and .pdf (layers x steps),
figures/dynamics_MEASURE_layers.* (all layers against all), steps/*.nc, config.json and log.jsonl. A
run that was killed continues with --resume.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import new_workdir, partial_results, write_json
from speechsim_jax.errors import UserError
from speechsim_jax.settings import HOW, Output, Resources, Settings, documented, setting

if TYPE_CHECKING:
    from speechsim_jax.analyses import learning_dynamics
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.models.encoder import SpeechEncoder
    from speechsim_jax.results.result import SimilarityResult

_SETTINGS = (
    "last_layer", "batch_seconds", "max_seconds", "rows_per_update", "stats_dtype", "frame_stride",
    "model_dtype", "strict", "rank_tolerance", "max_minutes", "seed",
    "layout", "speaker_from", "glob", "exclude", "channel",
)  # fmt: skip
_STEP = re.compile(r"step-(\d+)")


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Whose checkpoints are compared on what audio, and where results go."""

    run: str = flags.own(flags.REQUIRED, "Workdir of a pretraining, with folders step-NNNNNN.")
    audio: str = flags.audio()
    workdir: str = flags.workdir()
    final: str | None = flags.own(None, "The final model (default: model/ in --run).")
    measures: tuple[str, ...] = setting(("svcca", "lincka"), "Names of measures.", HOW)
    random_start: bool = flags.own(True, "Compare random weights with it, too.")
    settings: Settings = flags.nested(Settings(), only=_SETTINGS)
    resources: Resources = flags.nested(Resources(), only=("checkpoint_every",))
    output: Output = flags.nested(Output())
    overwrite: bool = flags.overwrite()
    resume: bool = flags.resume()


def run(config: Config) -> learning_dynamics.LearningDynamics:
    """Compare every checkpoint with the final model, write and draw.

    Returns:
      The scores by step and layer.

    Raises:
      UserError: there are no checkpoints, or whatever is wrong with models, audio or workdir.
    """
    workdir = new_workdir(config.workdir, config.overwrite or config.resume)
    with log_to(workdir, config.output.progress):
        folders, final = checkpoints(config)
        corpus = inputs.open_audio(config.audio, config.settings)
        inputs.log_start([str(final), *map(str, folders.values())], corpus)

        import tqdm.auto

        import speechsim_jax as ss
        from speechsim_jax.analyses import learning_dynamics
        from speechsim_jax.audio import selection

        last = ss.load_encoder(final, name="final")
        if config.settings.max_minutes is not None:
            corpus = selection.select(corpus, config.settings.max_minutes, config.settings.seed)
        identity = _identity(config, last, corpus)
        folder = partial_results(workdir / "steps", identity, config.resume, config.overwrite)
        models: list[tuple[str, SpeechEncoder | Path]] = []
        if config.random_start:
            models.append(("random", ss.random_like(last, name="random")))
        models += [(path.name, path) for path in folders.values()]
        blocks = {}
        for name, source in tqdm.auto.tqdm(
            models, desc="checkpoints", unit="checkpoint", disable=not config.output.progress
        ):
            result = _compared(config, source, name, last, corpus, folder)
            blocks[name] = {m: result.block(m, name, "final").values for m in result.measures}
        untrained = blocks.pop("random", {})
        audio = f"{len(corpus.sources)} utterances of {corpus.origin}"
        note = f"{audio} · {config.output.note}" if config.output.note else audio
        layers = range(last.config.num_hidden_layers + 1)
        dynamics = learning_dynamics.LearningDynamics.from_blocks(
            list(folders), layers, list(blocks.values()), untrained, note
        )
        _write(workdir, config, dynamics, last)
    return dynamics


def checkpoints(config: Config) -> tuple[dict[int, Path], Path]:
    """The checkpoints of a pretraining.

    Returns:
      The folders by step, rising, and that of the final model.

    Raises:
      UserError: there are none.
    """
    folder = Path(config.run).expanduser()
    if not folder.is_dir():
        raise UserError(f"--run={config.run}: no such folder; expected a pretraining's workdir")
    names = [(path, _STEP.fullmatch(path.name)) for path in folder.iterdir()]
    by_step = {
        int(name[1]): path for path, name in names if name and (path / "config.json").exists()
    }
    if not by_step:
        raise UserError(f"--run={config.run}: no folders step-NNNNNN with a config.json in it")
    steps = dict(sorted(by_step.items()))
    if config.final is not None:
        return steps, Path(config.final)
    final = folder / "model"
    if (final / "config.json").exists():
        return steps, final
    if len(steps) < 2:
        raise UserError(f"--run={config.run}: one checkpoint and no model/; nothing to compare")
    return steps, steps[max(steps)]


def _identity(config: Config, last: SpeechEncoder, corpus: Corpus) -> dict[str, Any]:
    """Everything that can change a number, except the checkpoints' weights."""
    import speechsim_jax as ss

    return {
        "version": ss.__version__,
        "final": last.provenance["sha256"],
        "audio": corpus.fingerprint(),
        "measures": config.measures,
        "settings": dataclasses.asdict(config.settings),
    }


def _compared(
    config: Config,
    source: SpeechEncoder | Path,
    name: str,
    last: SpeechEncoder,
    corpus: Corpus,
    folder: Path,
) -> SimilarityResult:
    """A checkpoint against the final model: as an earlier run has saved it, or computed."""
    import speechsim_jax as ss

    path = folder / f"{name}.nc"
    encoder = source if isinstance(source, ss.SpeechEncoder) else ss.load_encoder(source)
    encoder = dataclasses.replace(encoder, name=name)
    if encoder.config != last.config:
        raise UserError(f"{source} has another architecture than the final model")
    if path.exists():
        result = ss.SimilarityResult.load(path)
        if result.attributes["models"][name]["sha256"] == encoder.provenance["sha256"]:
            return result
    result = ss.compare(
        [encoder, last],
        corpus,
        config.measures,
        settings=dataclasses.replace(config.settings, max_minutes=None),
        resources=config.resources,
        output=dataclasses.replace(
            config.output,
            progress=False,
            statistics_dir=str(folder / f"{name}.statistics"),
            keep_statistics=False,
        ),
    )
    result.save(path)
    shutil.rmtree(folder / f"{name}.statistics", ignore_errors=True)
    return result


def _write(
    workdir: Path, config: Config, dynamics: learning_dynamics.LearningDynamics, last: SpeechEncoder
) -> None:
    """dynamics.csv, the figures, and how they were made."""
    from speechsim_jax import figures
    from speechsim_jax.analyses import learning_dynamics
    from speechsim_jax.runtime import provenance

    dynamics.write_csv(workdir / "dynamics.csv")
    folder = workdir / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    for measure in dynamics.scores:
        drawn = {
            f"dynamics_{measure}": learning_dynamics.steps_map(dynamics, measure),
            f"dynamics_{measure}_layers": learning_dynamics.layers_maps(dynamics, measure),
        }
        figures.write_figures(drawn, folder, ("png", "pdf"))
    record = provenance.record(config=dataclasses.asdict(config), final=dict(last.provenance))
    write_json(workdir / "config.json", record)


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    return flags.from_flags(values, Config, output=flags.output(values))


def main(values: FlagValues) -> None:
    """Run from the flags and print a table for each measure."""
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    dynamics = run(config)
    for measure in dynamics.scores:
        print(dynamics.table(measure), end="\n\n")
    print(f"written: {Path(config.workdir, 'dynamics.csv')} and {Path(config.workdir, 'figures')}")
