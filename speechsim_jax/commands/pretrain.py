"""Pretrain a speech encoder on any audio: wav2vec 2.0's contrastive objective, or HuBERT's.

    python -m experiments.pretrain --config=experiments/zoo/contrastive_s.toml \\
        --corpus=speech/manifest.tsv --workdir=runs/contrastive_s --resume

writes model/ (a Hugging Face folder), metrics.jsonl, held_out.json, snapshots and log.jsonl into
the workdir. Without --config, --objective trains Base. The units of the predictive objective are
clusters of MFCCs, or of a layer: --units_from=runs/predictive_s/model --units_layer=3. Start it
again with --resume if it was killed. From a notebook: `run(Config(...))`.
"""

import dataclasses

from absl import flags

import speechsim_jax as ss
from speechsim_jax.commands import flags as _flags
from speechsim_jax.commands import training
from speechsim_jax.errors import UserError
from speechsim_jax.training import pretraining, trainer
from speechsim_jax.training.recipe import (
    RECIPES,
    ContrastiveRecipe,
    PredictiveRecipe,
    read_recipe,
)

_OBJECTIVE = flags.DEFINE_enum(
    "objective", None, ["contrastive", "predictive"], "Train Base, where there is no --config."
)
_UNITS_FROM = flags.DEFINE_string(
    "units_from", None, "Hub id or folder of an encoder whose layer is clustered into units."
)
_UNITS_LAYER = flags.DEFINE_integer("units_layer", None, "Which layer of --units_from.")
flags.adopt_module_key_flags(_flags)  # for --help
flags.adopt_module_key_flags(training)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train on what."""

    recipe: ContrastiveRecipe | PredictiveRecipe
    run: training.Run
    units_from: str | None = None
    units_layer: int | None = None
    progress: bool = True


def run(config: Config) -> trainer.Outcome:
    """Train and write; returns how far it came. Raises UserError."""
    if (config.units_from is None) != (config.units_layer is None):
        raise UserError("units_from and units_layer go together; give both, or none for MFCCs")
    with training.workdir_of(config.run) as workdir:
        teacher = None
        if config.units_from is not None and config.units_layer is not None:
            encoder = ss.load_encoder(config.units_from)
            teacher = pretraining.Teacher(encoder, config.units_layer)
        job = pretraining.prepare(config.recipe, config.run.corpus, workdir, teacher)
        return training.train(job, workdir, config.run, config.progress)


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or means nothing here."""
    training.refuse_flags("pretraining")
    path, objective = training.CONFIG.value, _OBJECTIVE.value
    if (path is None) == (objective is None):
        raise UserError("expected --config=FILE, or --objective alone to train Base; see --help")
    recipe = read_recipe(path) if path is not None else RECIPES[str(objective)]()
    if not isinstance(recipe, ContrastiveRecipe | PredictiveRecipe):
        raise UserError(f"{path}: is for experiments.finetune ({recipe.name})")
    return Config(
        recipe=training.with_flags(recipe),
        run=training.run_from_flags(),
        units_from=_UNITS_FROM.value,
        units_layer=_UNITS_LAYER.value,
    )


def main() -> None:
    """Run from the flags and say what came out."""
    config = config_from_flags()
    _flags.use_compilation_cache()
    training.say(run(config), config.run)
