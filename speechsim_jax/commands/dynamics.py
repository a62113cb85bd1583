"""Learning dynamics: the layers of checkpoints along pretraining against the final model.

    python -m experiments.dynamics --run=runs/contrastive_s --audio=speech/ --workdir=runs/dynamics

The first use of SVCCA (Raghu et al. 2017): when does each layer become what it is at the end, from
below or from above? Reads the folders step-NNNNNN of a pretraining's workdir and its final one,
model/ (else --final, else the last step), and compares each checkpoint with the final model on the
same audio. Writes dynamics.csv, figures/dynamics_MEASURE.png and .pdf (layers x steps),
figures/dynamics_MEASURE_layers.* (all layers against all), steps/*.nc, config.json and log.jsonl. A
run that was killed goes on with --resume.
"""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tqdm.auto
from absl import flags

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.analyses import learning_dynamics
from speechsim_jax.audio import open_corpus, selection
from speechsim_jax.audio.corpus import Corpus
from speechsim_jax.commands import compare, resuming
from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError
from speechsim_jax.runtime import provenance

_RUN = flags.DEFINE_string("run", None, "Workdir of a pretraining, with folders step-NNNNNN.")
_FINAL = flags.DEFINE_string("final", None, "The final model (default: model/ in --run).")
_UNTRAINED = flags.DEFINE_bool("random_start", True, "Compare random weights with it, too.")

# Of the flags that `compare` brings along; the others mean nothing here.
_SETTINGS = (
    "last_layer", "batch_seconds", "max_seconds", "rows_per_update", "stats_dtype", "frame_stride",
    "model_dtype", "strict", "rank_tolerance",
)  # fmt: skip
_USED = (*_SETTINGS, "audio", "max_minutes", "measures", "resume", "note", "checkpoint_every")
for _name in _USED:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)

_STEP = re.compile(r"step-(\d+)")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """Whose checkpoints, on what audio, and where to; `settings` are fields of `ss.Settings`."""

    run: str
    audio: str
    workdir: str
    final: str | None = None
    measures: tuple[str, ...] = ("svcca", "lincka")
    random_start: bool = True
    max_minutes: float | int | None = None
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint_every: float | int = 10.0
    note: str = ""
    overwrite: bool = False
    resume: bool = False


def run(config: Config) -> learning_dynamics.LearningDynamics:
    """Compare every checkpoint with the final model, write and draw. Raises UserError."""
    workdir = _flags.new_workdir(config.workdir, config.overwrite or config.resume)
    with _flags.log_to(workdir):
        folders, final = checkpoints(config)
        last = ss.load_encoder(final, name="final")
        corpus = open_corpus.open_corpus(config.audio)
        if config.max_minutes is not None:
            corpus = selection.select(corpus, config.max_minutes, config.seed)
        identity = _identity(config, last, corpus)
        folder = resuming.place(workdir / "steps", identity, config.resume, config.overwrite)
        wanted: list[tuple[str, ss.SpeechEncoder | Path]] = []
        if config.random_start:
            wanted.append(("random", ss.random_like(last, name="random")))
        wanted += [(path.name, path) for path in folders.values()]
        blocks = {}
        for name, source in tqdm.auto.tqdm(
            wanted, desc="checkpoints", unit="checkpoint", disable=_flags.quiet()
        ):
            result = _compared(config, source, name, last, corpus, folder)
            blocks[name] = {m: result.block(m, name, "final").values for m in result.measures}
        untrained = blocks.pop("random", {})
        told = f"{len(corpus.sources)} utterances of {corpus.origin}"
        note = f"{told} · {config.note}" if config.note else told
        layers = range(last.config.num_hidden_layers + 1)
        found = learning_dynamics.LearningDynamics.from_blocks(
            list(folders), layers, list(blocks.values()), untrained, note
        )
        _write(workdir, config, found, last)
    return found


def checkpoints(config: Config) -> tuple[dict[int, Path], Path]:
    """The folders by step, rising, and the final one; raises UserError if there are none."""
    folder = Path(config.run).expanduser()
    if not folder.is_dir():
        raise UserError(f"--run={config.run}: no such folder; expected a pretraining's workdir")
    names = [(path, _STEP.fullmatch(path.name)) for path in folder.iterdir()]
    found = {int(name[1]): path for path, name in names if name and (path / "config.json").exists()}
    if not found:
        raise UserError(f"--run={config.run}: no folders step-NNNNNN with a config.json in it")
    steps = dict(sorted(found.items()))
    if config.final is not None:
        return steps, Path(config.final)
    final = folder / "model"
    if (final / "config.json").exists():
        return steps, final
    if len(steps) < 2:
        raise UserError(f"--run={config.run}: one checkpoint and no model/; nothing to compare")
    return steps, steps[max(steps)]


def _identity(config: Config, last: ss.SpeechEncoder, corpus: Corpus) -> dict[str, Any]:
    """What has a say in the numbers; each checkpoint is looked at for itself."""
    return {
        "version": ss.__version__,
        "final": last.provenance["sha256"],
        "audio": corpus.fingerprint(),
        "measures": config.measures,
        "settings": dict(config.settings),
    }


def _compared(
    config: Config,
    source: ss.SpeechEncoder | Path,
    name: str,
    last: ss.SpeechEncoder,
    corpus: Corpus,
    folder: Path,
) -> ss.SimilarityResult:
    """A checkpoint against the final model, unless that has been done."""
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
        measures=config.measures,
        note=config.note,
        progress=False,
        checkpoint_dir=folder / f"{name}.checkpoints",
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
        **config.settings,
    )
    result.save(path)
    shutil.rmtree(folder / f"{name}.checkpoints", ignore_errors=True)
    return result


def _write(
    workdir: Path, config: Config, found: learning_dynamics.LearningDynamics, last: ss.SpeechEncoder
) -> None:
    """dynamics.csv, the figures, and how they were made."""
    found.write_csv(workdir / "dynamics.csv")
    folder = workdir / "figures"
    shutil.rmtree(folder, ignore_errors=True)
    for measure in found.scores:
        drawn = {
            f"dynamics_{measure}": learning_dynamics.steps_map(found, measure),
            f"dynamics_{measure}_layers": learning_dynamics.layers_maps(found, measure),
        }
        figures.write_figures(drawn, folder, ("png", "pdf"))
    told = provenance.record(config=dataclasses.asdict(config), final=dict(last.provenance))
    (workdir / "config.json").write_text(json.dumps(told, indent=2) + "\n")


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or means nothing here."""
    compare.refuse_flags("learning dynamics", _USED)
    value: dict[str, Any] = {
        name: flags.FLAGS[name].value for name in (*_USED, "workdir", "seed", "overwrite")
    }
    for name, given in (("run", _RUN.value), *((n, value[n]) for n in ("audio", "workdir"))):
        if not given:
            raise UserError(f"--{name} is required; see --help")
    settings = {name: value[name] for name in _SETTINGS if flags.FLAGS[name].present}
    measures = tuple((value["measures"] or "svcca,lincka").split(","))
    names = ("audio", "workdir", "max_minutes", "seed", "note", "overwrite", "resume")
    return Config(
        run=str(_RUN.value),
        final=_FINAL.value,
        measures=measures,
        random_start=_UNTRAINED.value,
        settings=settings,
        checkpoint_every=value["checkpoint_every"],
        **{name: value[name] for name in names},
    )


def main() -> None:
    """Run from the flags and print what came out."""
    config = config_from_flags()
    _flags.use_compilation_cache()
    found = run(config)
    for measure in found.scores:
        print(found.table(measure), end="\n\n")
    print(f"written: {Path(config.workdir, 'dynamics.csv')} and {Path(config.workdir, 'figures')}")
