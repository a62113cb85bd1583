"""Named sets of models for the replication."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.models import zoo


@dataclasses.dataclass(frozen=True)
class Preset:
    """A set of models, given by their sources, with settings that suit them.

    Attributes:
        models: Pretrained models.
        finetuned: Each fine-tuned model with its pretrained model.
        seeds: Each model of another seed with the model of the same recipe.
        untrained: Those of `models` that get a counterpart with random weights.
        published_as: Name of the model that corresponds to each published model.
        split: Compare few models at a time, as the statistics of all together would fill a disk.
        minutes: Audio to compare on.
        attention_seconds: Audio to compare attention on.
        settings: Fields of `ss.Settings`.
    """

    models: tuple[str, ...]
    finetuned: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, str], ...]
    untrained: tuple[str, ...]
    published_as: Mapping[str, str]
    split: bool
    minutes: float | int
    attention_seconds: float | int
    settings: Mapping[str, Any]


def load_preset(name: str, folder: str | None) -> Preset:
    """The preset of a name.

    Args:
        name: "zoo", the models that come with the package, or "paper", those of the paper.
        folder: For "zoo", a folder with other models under the same names.

    Raises:
        UserError: A model is missing from the zoo.
    """
    return _paper() if name == "paper" else _zoo(Path(folder).expanduser() if folder else None)


def _zoo(folder: Path | None) -> Preset:
    """The small models that come with the package."""

    def source(name: str) -> str:
        if folder is None:
            zoo.folder(name)  # raises if there is none
            return zoo.PREFIX + name
        if not (folder / name / "config.json").is_file():
            raise UserError(
                f"{folder} has no model {name}; --zoo names another folder, --models other models"
            )
        return str(folder / name)

    models = ("contrastive_s", "predictive_s", "contrastive_b", "predictive_b")
    finetuned = tuple((f"{name}_ctc", name) for name in models[:2])
    seeds = (("contrastive_s_seed1", "contrastive_s"),)
    return Preset(
        models=tuple(map(source, models)),
        finetuned=tuple((source(tuned), source(before)) for tuned, before in finetuned),
        seeds=tuple((source(other), source(model)) for other, model in seeds),
        # All of them (--untrained=all) would take half as much time again.
        untrained=tuple(map(source, models[:2])),
        published_as={
            "hubert-base": "predictive_s",
            "hubert-large": "predictive_b",
            "wav2vec2-base": "contrastive_s",
            "wav2vec2-large": "contrastive_b",
        },
        split=False,
        minutes=4,
        attention_seconds=120,
        # A group has half a minute of speech: few shapes, and few filler rows.
        settings={"rows_per_update": 1024, "buckets": 2, "batch_seconds": 16},
    )


def _paper() -> Preset:
    """The checkpoints of the paper, which does not state which large ones it used."""
    finetuned = (
        ("facebook/wav2vec2-large-960h-lv60", "facebook/wav2vec2-large-lv60"),
        ("facebook/hubert-large-ls960-ft", "facebook/hubert-large-ll60k"),
    )
    models = (
        "facebook/wav2vec2-base",
        "facebook/wav2vec2-large-lv60",
        "facebook/hubert-base-ls960",
        "facebook/hubert-large-ll60k",
    )
    published_as = {
        "hubert-base": "hubert-base-ls960",
        "hubert-large": "hubert-large-ll60k",
        "wav2vec2-base": "wav2vec2-base",
        "wav2vec2-large": "wav2vec2-large-lv60",
    }
    return Preset(models, finetuned, (), models, published_as, True, 60, 600, {})
