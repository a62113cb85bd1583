"""Pretrain a speech encoder on any audio with wav2vec 2.0's or HuBERT's objective.

    speechsim pretrain --config=experiments/zoo/contrastive_s.toml \\
        --corpus=speech/manifest.tsv --workdir=runs/contrastive_s --resume

writes model/ (a Hugging Face folder), metrics.jsonl, held_out.json, snapshots and log.jsonl into
the workdir. Without --config, --objective trains Base. The units of the predictive objective are
clusters of MFCCs, or of a layer: --units_from=runs/predictive_s/model --units_layer=3. Start it
again with --resume if it was killed. From a notebook: `run(Config(...))`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from absl.flags import FlagValues

from speechsim_jax.commands import flags, training
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.errors import UserError

if TYPE_CHECKING:
    from speechsim_jax.training import trainer
    from speechsim_jax.training.recipe import ContrastiveRecipe, PredictiveRecipe


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train on what.

    Attributes:
      recipe: architecture, objective and schedule.
      run: where and for how long.
      units_from: hub id or folder of an encoder whose layer is clustered into units (default:
        units are clusters of MFCCs).
      units_layer: which layer of it.
      progress: show log lines and progress bars on stderr; False: errors only.
    """

    recipe: ContrastiveRecipe | PredictiveRecipe
    run: training.Run
    units_from: str | None = None
    units_layer: int | None = None
    progress: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flags(training.Changes):
    objective: Literal["contrastive", "predictive"] | None = flags.own(
        None, "Train Base, where there is no --config."
    )
    units_from: str | None = flags.own(
        None, "Hub id or folder of an encoder whose layer is clustered into units."
    )
    units_layer: int | None = flags.own(None, "Which layer of --units_from.")


def run(config: Config) -> trainer.Outcome:
    """Train and write.

    Returns:
      How far the training has come.

    Raises:
      UserError: settings that contradict each other, or a bad corpus, model or workdir.
    """
    if (config.units_from is None) != (config.units_layer is None):
        raise UserError("units_from and units_layer go together; give both, or none for MFCCs")
    with training.open_workdir(config.run, config.progress) as workdir:
        import speechsim_jax as ss
        from speechsim_jax.training import pretraining

        teacher = None
        if config.units_from is not None and config.units_layer is not None:
            encoder = ss.load_encoder(config.units_from)
            teacher = pretraining.Teacher(encoder, config.units_layer)
        job = pretraining.prepare(config.recipe, config.run.corpus, workdir, teacher)
        return training.train(job, workdir, config.run, config.progress)


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(_Flags, training.Run, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    given = flags.from_flags(values, _Flags)
    if (given.config is None) == (given.objective is None):
        raise UserError("expected --config=FILE, or --objective alone to train Base; see --help")
    run_ = flags.from_flags(values, training.Run)

    from speechsim_jax.training.recipe import (
        RECIPES,
        ContrastiveRecipe,
        PredictiveRecipe,
        read_recipe,
    )

    recipe = RECIPES[str(given.objective)]() if given.config is None else read_recipe(given.config)
    if not isinstance(recipe, ContrastiveRecipe | PredictiveRecipe):
        raise UserError(f"{given.config}: is for speechsim finetune ({recipe.name})")
    return Config(
        recipe=training.changed(recipe, given),
        run=run_,
        units_from=given.units_from,
        units_layer=given.units_layer,
        progress=not values["quiet"].value,
    )


def main(values: FlagValues) -> None:
    """Run from the flags and print the metrics."""
    use_compilation_cache(values["compilation_cache"].value)
    config = config_from_flags(values)
    training.print_outcome(run(config), config.run)
