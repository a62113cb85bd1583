"""Fine-tune a pretrained speech encoder with CTC, on any audio with transcripts.

    python -m experiments.finetune --config=experiments/zoo/contrastive_s_ctc.toml \\
        --pretrained=runs/contrastive_s/model --corpus=speech/manifest.tsv \\
        --workdir=runs/contrastive_s_ctc --resume

writes model/ (a Hugging Face folder that `experiments.transcribe` and transformers read),
metrics.jsonl, held_out.json (with the transcripts of speakers held out) and log.jsonl into the
workdir. Transcripts come from a manifest's column `transcript` or from LibriSpeech's .trans.txt
files. Start it again with --resume if it was killed. From a notebook: `run(Config(...))`.
"""

import dataclasses
from typing import Any

from absl import flags

from speechsim_jax.commands import flags as _flags
from speechsim_jax.commands import training
from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import open_checkpoint
from speechsim_jax.training import finetuning, trainer
from speechsim_jax.training.recipe import CTCRecipe, read_recipe

_PRETRAINED = flags.DEFINE_string("pretrained", None, "Hub id or folder of the encoder to start.")
_FREEZE = flags.DEFINE_bool(
    "freeze_feature_encoder", None, "Leave the convolutions as they are (default: the recipe's)."
)
_HUB = ("revision", "cache_dir", "local_files_only")
for _name in _HUB:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)  # for --help
flags.adopt_module_key_flags(training)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to fine-tune on what."""

    recipe: CTCRecipe
    pretrained: str
    run: training.Run
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    progress: bool = True


def run(config: Config) -> trainer.Outcome:
    """Fine-tune and write; returns how far it came. Raises UserError."""
    with training.workdir_of(config.run) as workdir:
        pretrained = open_checkpoint(
            config.pretrained,
            revision=config.revision,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
        )
        job = finetuning.prepare(config.recipe, pretrained, config.run.corpus)
        return training.train(job, workdir, config.run, config.progress)


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or means nothing here."""
    training.refuse_flags("fine-tuning", *_HUB)
    if not _PRETRAINED.value:
        raise UserError("--pretrained is required; see --help")
    recipe = CTCRecipe() if training.CONFIG.value is None else read_recipe(training.CONFIG.value)
    if not isinstance(recipe, CTCRecipe):
        raise UserError(f"{training.CONFIG.value}: is for experiments.pretrain ({recipe.name})")
    if _FREEZE.value is not None:
        recipe = dataclasses.replace(recipe, freeze_feature_encoder=_FREEZE.value)
    hub: dict[str, Any] = {name: flags.FLAGS[name].value for name in _HUB}
    run_ = training.run_from_flags()
    return Config(training.with_flags(recipe), _PRETRAINED.value, run_, **hub)


def main() -> None:
    """Run from the flags and say what came out."""
    config = config_from_flags()
    _flags.use_compilation_cache()
    training.say(run(config), config.run)
