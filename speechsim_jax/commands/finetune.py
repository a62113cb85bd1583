"""Fine-tune a pretrained speech encoder with CTC, on any audio with transcripts.

    speechsim finetune --config=experiments/zoo/contrastive_s_ctc.toml \\
        --pretrained=runs/contrastive_s/model --corpus=speech/manifest.tsv \\
        --workdir=runs/contrastive_s_ctc --resume

writes model/ (a Hugging Face folder that `speechsim transcribe` and transformers read),
metrics.jsonl, held_out.json (with the transcripts of speakers held out) and log.jsonl into the
workdir. Transcripts come from a manifest's column `transcript` or from LibriSpeech's .trans.txt
files. Start it again with --resume if it was killed. From a notebook: `run(Config(...))`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs, training
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Resources

if TYPE_CHECKING:
    from speechsim_jax.training import trainer
    from speechsim_jax.training.recipe import CTCRecipe


@dataclasses.dataclass(frozen=True)
class Config:
    """What to fine-tune on what.

    Attributes:
      recipe: schedule and regularisation.
      pretrained: hub id or folder of the encoder to start from.
      run: where and for how long.
      revision: branch, tag or commit of a hub model.
      cache_dir: cache of hub models (default: HF_HOME).
      local_files_only: never ask the hub, use its cache only.
      progress: show log lines and progress bars on stderr; False: errors only.
    """

    recipe: CTCRecipe
    pretrained: str
    run: training.Run
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    progress: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flags(training.Changes):
    pretrained: str | None = flags.own(None, "Hub id or folder of the encoder to start from.")
    freeze_feature_encoder: bool | None = flags.own(
        None, "Leave the convolutions as they are (default: the recipe's)."
    )
    revision: str | None = flags.like(Resources, "revision")
    cache_dir: str | None = flags.like(Resources, "cache_dir")
    local_files_only: bool = flags.like(Resources, "local_files_only")


def run(config: Config) -> trainer.Outcome:
    """Fine-tune and write.

    Returns:
      How far the training has come.

    Raises:
      UserError: a bad model, corpus or workdir.
    """
    with training.open_workdir(config.run, config.progress) as workdir:
        inputs.check_models([config.pretrained], config.revision)

        from speechsim_jax.models.checkpoint_files import open_checkpoint
        from speechsim_jax.training import finetuning

        pretrained = open_checkpoint(
            config.pretrained,
            revision=config.revision,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
        )
        job = finetuning.prepare(config.recipe, pretrained, config.run.corpus)
        return training.train(job, workdir, config.run, config.progress)


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(_Flags, training.Run, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    given = flags.from_flags(values, _Flags)
    if not given.pretrained:
        raise UserError("--pretrained is required; see --help")
    run_ = flags.from_flags(values, training.Run)

    from speechsim_jax.training.recipe import CTCRecipe, read_recipe

    recipe = CTCRecipe() if given.config is None else read_recipe(given.config)
    if not isinstance(recipe, CTCRecipe):
        raise UserError(f"{given.config}: is for speechsim pretrain ({recipe.name})")
    if given.freeze_feature_encoder is not None:
        recipe = dataclasses.replace(recipe, freeze_feature_encoder=given.freeze_feature_encoder)
    return Config(
        recipe=training.changed(recipe, given),
        pretrained=given.pretrained,
        run=run_,
        revision=given.revision,
        cache_dir=given.cache_dir,
        local_files_only=given.local_files_only,
        progress=not values["quiet"].value,
    )


def main(values: FlagValues) -> None:
    """Run from the flags and print the metrics."""
    use_compilation_cache(values["compilation_cache"].value)
    config = config_from_flags(values)
    training.print_outcome(run(config), config.run)
