"""The sets of models that the replication knows by name."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.models import zoo


@dataclasses.dataclass(frozen=True)
class Preset:
    """Models by source. `finetuned`: fine-tuned, pretrained. `seeds`: another seed, its model.

    `untrained`: those with an untrained counterpart. `published_as`: published model -> model.
    `split`: comparisons of few models each instead of one of all, whose statistics would fill a
    disk. `minutes`, `attention_seconds`: of audio.
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


def preset(name: str, folder: str | None) -> Preset:
    """The preset of this name; raises UserError for a zoo that lacks a model.

    `folder`: where other models of the zoo's names lie.
    """
    return _paper() if name == "paper" else _zoo(Path(folder).expanduser() if folder else None)


def _zoo(folder: Path | None) -> Preset:
    """The small models that were trained for this package."""

    def source(name: str) -> str:
        if folder is None:
            zoo.folder(name)  # which says so if there is none
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
        # For all of them half as much time again: --untrained=all.
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
        # Half a minute of speech in a group: few shapes, and few rows that are only filler.
        settings={"rows_per_update": 1024, "buckets": 2, "batch_seconds": 16},
    )


def _paper() -> Preset:
    """The checkpoints of the paper; which large ones it means is not stated there."""
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
