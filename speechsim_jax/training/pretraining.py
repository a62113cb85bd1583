"""Prepare a pretraining from a recipe and audio: contrastive, or masked prediction of clusters."""

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
from speechsim_jax.training.data.cluster_labels import (
    ClusterLabels,
    cluster_corpus,
    layer_features,
    mfcc_features,
)
from speechsim_jax.training.data.sampling import CropSampler
from speechsim_jax.training.data.splits import Split, WaveformCache, open_split, speaker_of
from speechsim_jax.training.evaluation import SpeakerEvaluation
from speechsim_jax.training.recipe import ContrastiveRecipe, PredictiveRecipe, Pretraining
from speechsim_jax.training.tasks import ContrastiveTask, PredictiveTask
from speechsim_jax.training.trainer import TrainingRun

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """An encoder whose hidden states are clustered, from the second iteration of HuBERT on.

    Attributes:
        encoder: The encoder.
        layer: Number of the hidden state.
    """

    encoder: SpeechEncoder
    layer: int

    def record(self) -> dict[str, Any]:
        """Layer and provenance, which identify the teacher."""
        return {"layer": self.layer, **self.encoder.provenance}


def prepare(
    recipe: ContrastiveRecipe | PredictiveRecipe,
    corpora: Sequence[AudioInput],
    workdir: Path,
    teacher: Teacher | None = None,
) -> TrainingRun:
    """Open the audio, cluster it if the objective needs it, and draw the initial weights.

    Args:
        recipe: All settings.
        corpora: Audio to train and evaluate on.
        workdir: Folder of the training; clusters are stored in its units.npz, and read from there
            if it exists.
        teacher: Layer to cluster; default MFCCs.

    Raises:
        UserError: Audio, recipe and teacher do not fit together.
    """
    split = open_split(corpora, recipe.audio)
    graph, start = model.initial(recipe.encoder, recipe.head, recipe.seed)
    clusters: ClusterLabels | None = None
    identity: dict[str, Any] = {"audio": split.fingerprint()}
    if isinstance(recipe, ContrastiveRecipe):
        if teacher:
            raise UserError("a contrastive training has no clusters, and so no units_from")
        task = ContrastiveTask.of(recipe)
        write = functools.partial(_write_contrastive, recipe)
    else:
        clusters = _load_or_make_clusters(recipe, split, workdir, teacher)
        identity["units"] = {
            "of": teacher.record() if teacher else "MFCC", "sha256": clusters.digest(),
        }  # fmt: skip
        task = PredictiveTask.of(recipe)
        write = functools.partial(_write_predictive, recipe, clusters)
    return TrainingRun(
        recipe=recipe,
        config=recipe.encoder,
        task=task,
        graph=graph,
        start=start,
        batch_of_step=_sampler(recipe, split.training, recipe.seed, clusters).batch_of_step,
        evaluation=_evaluation(recipe, split, task, clusters),
        write=write,
        identity=identity,
        # Without a gradient the optimiser would let them decay.
        frozen=recipe.feature_grad_mult == 0,
    )


def _write_contrastive(recipe: ContrastiveRecipe, folder: Path, trained: model.Model) -> None:
    export.write_contrastive(folder, recipe.encoder, recipe.head, trained, recipe.dtype)


def _write_predictive(
    recipe: PredictiveRecipe, clusters: ClusterLabels, folder: Path, trained: model.Model
) -> None:
    export.write_predictive(folder, recipe.encoder, trained, clusters, recipe.dtype)


def _load_or_make_clusters(
    recipe: PredictiveRecipe, split: Split, workdir: Path, teacher: Teacher | None
) -> ClusterLabels:
    path = workdir / "units.npz"
    if path.exists():
        clusters = ClusterLabels.load(path)
        if len(clusters.centres) != recipe.head.units:
            raise UserError(
                f"{path}: holds {len(clusters.centres)} clusters, the recipe has head.units = "
                f"{recipe.head.units}; choose another workdir"
            )
        return clusters
    if teacher:
        features_of = layer_features(teacher.encoder, teacher.layer, recipe.encoder)
    else:
        features_of = mfcc_features(recipe.encoder)
    source = "a layer" if teacher else "MFCCs"
    _log.info("clustering %s into %d clusters", source, recipe.head.units)
    clusters = cluster_corpus(
        features_of,
        split.training,
        split.held_out,
        recipe.head.units,
        recipe.cluster_minutes,
        recipe.audio.held_out_seed,
    )
    clusters.save(path)
    return clusters


def _sampler(
    recipe: Pretraining, sources: tuple[Source, ...], seed: int, clusters: ClusterLabels | None
) -> CropSampler:
    waves = WaveformCache(sources, recipe.audio.memory_gb, recipe.encoder.window_samples)
    labels = clusters.labels if clusters else None
    return CropSampler(waves, recipe.encoder, recipe.crops, seed, labels)


def _evaluation(
    recipe: Pretraining,
    split: Split,
    task: ContrastiveTask | PredictiveTask,
    clusters: ClusterLabels | None,
) -> SpeakerEvaluation | None:
    """Evaluation on a random choice of the held-out speakers; None if there are none."""
    speakers = sorted({speaker_of(source) for source in split.held_out})
    if not speakers:
        return None
    seed = recipe.audio.held_out_seed
    drawn = np.random.default_rng(seed).permutation(len(speakers))[: recipe.evaluation_speakers]
    chosen = tuple(sorted(speakers[index] for index in drawn))
    counts = clusters.counts(source.id for source in split.training) if clusters else None
    sampler = _sampler(recipe, split.held_out, seed, clusters)
    return SpeakerEvaluation(sampler, chosen, task, counts)
