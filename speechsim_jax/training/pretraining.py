"""Pretraining, from a recipe and audio to a job: contrastive, or predictive on units."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.audio.corpus import Source
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.errors import UserError
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.training import export, model
from speechsim_jax.training.data.cluster_labels import Units, make_units, of_layer, of_mfcc
from speechsim_jax.training.data.sampling import CropSampler
from speechsim_jax.training.data.splits import Split, Waves, open_split, speaker_of
from speechsim_jax.training.evaluation import OfSpeakers
from speechsim_jax.training.recipe import ContrastiveRecipe, PredictiveRecipe, Pretraining
from speechsim_jax.training.tasks import ContrastiveTask, PredictiveTask
from speechsim_jax.training.trainer import TrainingRun

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """The layer of an encoder whose hidden states are clustered (the second iteration on)."""

    encoder: SpeechEncoder
    layer: int

    def facts(self) -> dict[str, Any]:
        """What tells it from another."""
        return {"layer": self.layer, **self.encoder.provenance}


def prepare(
    recipe: ContrastiveRecipe | PredictiveRecipe,
    corpora: Sequence[AudioInput],
    workdir: Path,
    teacher: Teacher | None = None,
) -> TrainingRun:
    """Open the audio, make the units if there are to be some, and draw the first weights.

    Units are kept in `workdir`/units.npz and read from there if they are there already. Raises
    UserError for anything wrong with what was given.
    """
    split = open_split(corpora, recipe.audio)
    graph, start = model.initial(recipe.encoder, recipe.head, recipe.seed)
    units: Units | None = None
    identity: dict[str, Any] = {"audio": split.fingerprint()}
    if isinstance(recipe, ContrastiveRecipe):
        if teacher:
            raise UserError("a contrastive training has no units; it takes no units_from")
        task = ContrastiveTask.of(recipe)
        write = functools.partial(_write_contrastive, recipe)
    else:
        units = _units(recipe, split, workdir, teacher)
        identity["units"] = {
            "of": teacher.facts() if teacher else "MFCC", "sha256": units.digest(),
        }  # fmt: skip
        task = PredictiveTask.of(recipe)
        write = functools.partial(_write_predictive, recipe, units)
    return TrainingRun(
        recipe=recipe,
        config=recipe.encoder,
        task=task,
        graph=graph,
        start=start,
        rows=_sampler(recipe, split.training, recipe.seed, units).step,
        examination=_examination(recipe, split, task, units),
        write=write,
        identity=identity,
        # Without a gradient the optimiser would let them decay.
        frozen=recipe.feature_grad_mult == 0,
    )


def _write_contrastive(recipe: ContrastiveRecipe, folder: Path, trained: model.Model) -> None:
    export.write_contrastive(folder, recipe.encoder, recipe.head, trained, recipe.dtype)


def _write_predictive(
    recipe: PredictiveRecipe, units: Units, folder: Path, trained: model.Model
) -> None:
    export.write_predictive(folder, recipe.encoder, trained, units, recipe.dtype)


def _units(recipe: PredictiveRecipe, split: Split, workdir: Path, teacher: Teacher | None) -> Units:
    path = workdir / "units.npz"
    if path.exists():
        units = Units.load(path)
        if len(units.centres) != recipe.head.units:
            raise UserError(
                f"{path}: holds {len(units.centres)} units, the recipe has {recipe.head.units}; "
                "choose another workdir"
            )
        return units
    if teacher:
        rows_of = of_layer(teacher.encoder, teacher.layer, recipe.encoder)
    else:
        rows_of = of_mfcc(recipe.encoder)
    _log.info("clustering %s into %d units", "a layer" if teacher else "MFCCs", recipe.head.units)
    units = make_units(
        rows_of,
        split.training,
        split.held_out,
        recipe.head.units,
        recipe.cluster_minutes,
        recipe.audio.held_out_seed,
    )
    units.save(path)
    return units


def _sampler(
    recipe: Pretraining, sources: tuple[Source, ...], seed: int, units: Units | None
) -> CropSampler:
    waves = Waves(sources, recipe.audio.memory_gb, recipe.encoder.window_samples)
    of = units.of if units else None
    return CropSampler(waves, recipe.encoder, recipe.crops, seed, of)


def _examination(
    recipe: Pretraining,
    split: Split,
    task: ContrastiveTask | PredictiveTask,
    units: Units | None,
) -> OfSpeakers | None:
    """Speakers in a drawn order, so that a few of many are any of them."""
    speakers = sorted({speaker_of(source) for source in split.held_out})
    if not speakers:
        return None
    seed = recipe.audio.held_out_seed
    order = np.random.default_rng(seed).permutation(len(speakers))[: recipe.evaluation_speakers]
    chosen = tuple(sorted(speakers[place] for place in order))
    counts = units.counts(source.id for source in split.training) if units else None
    return OfSpeakers(_sampler(recipe, split.held_out, seed, units), chosen, task, counts)
