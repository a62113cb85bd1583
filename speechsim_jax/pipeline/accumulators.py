"""The accumulators of one pass, and the registry of statistics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from speechsim_jax.array_types import Lengths
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import Clustering
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.external import Encoder
from speechsim_jax.pipeline import attention_inputs
from speechsim_jax.pipeline.frame_grid import FrameGrid
from speechsim_jax.settings import Settings
from speechsim_jax.statistics.accumulator import (
    Accumulator,
    BatchRows,
    EncodedBatch,
    LayerIndex,
)
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.attention_finished import AttentionState
from speechsim_jax.statistics.clustered_sample import (
    ClusterChoice,
    ClusteredSample,
    ClusteredSampleAccumulator,
)
from speechsim_jax.statistics.exemplars import Exemplars, ExemplarsAccumulator
from speechsim_jax.statistics.folded_moments import (
    FoldedMoments,
    FoldedMomentsAccumulator,
    FoldNumbers,
    UtteranceFolds,
    tiles_with,
)
from speechsim_jax.statistics.moments import ModelShape, Tile
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.null_moments import (
    NullMoments,
    NullMomentsAccumulator,
    ShiftedMomentsAccumulator,
    SwappedMomentsAccumulator,
    paired_layers,
    paired_shapes,
    paired_tiles,
)
from speechsim_jax.statistics.null_rows import shift_pairs
from speechsim_jax.statistics.sample import ClusterNames, Sample, SampleAccumulator
from speechsim_jax.statistics.store import STATES, PassStatistics
from speechsim_jax.statistics.swapped_moments import SwapPlan


@dataclasses.dataclass(frozen=True, eq=False)
class PassSetup:
    """What the accumulators of a pass are constructed from.

    Attributes:
      selection: the measures that read them.
      encoders: the models of this pass.
      layers: hidden states that are compared, by model; attention layer l makes hidden state l.
      tracks: width of each track, which follow the models.
      grid: the frames that are compared.
      indices: of each representation among those of all passes, ascending.
      tiles: the layer pairs of this pass.
      settings: of the comparison.
      attention_ids: the utterances whose attention is compared.
      mesh: the devices.
      clustering: what standard errors are taken over.
      cluster_choice: the clusters and rows that they are estimated from.
      clustering_of_folds: what folds are made of.
      folds: the fold of each utterance, 0 or 1, for held-out scores; empty without these.
      utterance_folds: the fold of each utterance in folds that divide each speaker's; empty without
        labels that are speakers.
      speaker_tracks: positions of these among the models of this pass.
      attention_groups: the group of each utterance whose attention is compared, for standard
        errors; empty without these.
      swap: the utterances that the null "swap" pairs; None without it.
      utterances: ids of all that may be read, in any pass or shard.
      stats_precision: of the products of the moments.
    """

    selection: MeasureSelection
    encoders: tuple[Encoder, ...]
    layers: tuple[tuple[int, ...], ...]
    tracks: tuple[int, ...]
    grid: FrameGrid
    indices: tuple[LayerIndex, ...]
    tiles: tuple[Tile, ...]
    settings: Settings
    attention_ids: frozenset[str]
    mesh: Mesh
    clustering: Clustering
    cluster_choice: ClusterChoice
    clustering_of_folds: Clustering
    folds: Mapping[str, int]
    utterance_folds: Mapping[str, int]
    speaker_tracks: tuple[int, ...]
    attention_groups: Mapping[str, int]
    swap: SwapPlan | None
    utterances: tuple[str, ...]
    stats_precision: str

    @property
    def shapes(self) -> tuple[ModelShape, ...]:
        """Layers and width of each model, and then of each track."""
        return (
            *(
                ModelShape(len(layers), encoder.config.hidden_size)
                for encoder, layers in zip(self.encoders, self.layers)
            ),
            *(ModelShape(1, width) for width in self.tracks),
        )

    @property
    def attention_layers(self) -> list[tuple[int, ...]]:
        """Transformer layers whose attention is compared, by model."""
        return attention_layers(self.encoders, self.layers)

    @property
    def attention_sums(self) -> tuple[str, ...]:
        """The attention sums that the measures read."""
        return attention_inputs.needed_sums(self.selection.on("attention"))


def attention_layers(
    encoders: Sequence[Encoder], layers: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Transformer layers whose attention is compared; raises UserError for a model with none."""
    transformer_layers = [tuple(l for l in of_model if l > 0) for of_model in layers]
    for encoder, of_model in zip(encoders, transformer_layers):
        if not of_model:
            raise UserError(f"{encoder.name}: layer 0 has no attention; `layers` needs another")
    return transformer_layers


def _moments(setup: PassSetup) -> MomentsAccumulator:
    return MomentsAccumulator(
        setup.shapes,
        setup.settings.rows_per_update,
        setup.settings.stats_dtype,
        mesh=setup.mesh,
        tiles=setup.tiles,
        layers=setup.indices,
        precision=setup.stats_precision,
    )


def _folded_moments(setup: PassSetup) -> FoldedMomentsAccumulator:
    of = setup.clustering_of_folds.of
    fold_of = {of[utterance]: fold for utterance, fold in setup.folds.items()}
    return FoldedMomentsAccumulator(_halves(setup), _fold_numbers(setup.folds), fold_of)


def _utterance_folds(setup: PassSetup) -> FoldedMomentsAccumulator:
    few = dataclasses.replace(setup, tiles=tiles_with(setup.tiles, setup.speaker_tracks))
    fold_of = setup.utterance_folds
    return FoldedMomentsAccumulator(_halves(few), _fold_numbers(fold_of), fold_of, UtteranceFolds)


def _halves(setup: PassSetup) -> tuple[MomentsAccumulator, MomentsAccumulator]:
    """An accumulator for each fold; buffers of half the size, so both take what one would."""
    settings = dataclasses.replace(
        setup.settings, rows_per_update=max(setup.settings.rows_per_update // 2, 1)
    )
    halved = dataclasses.replace(setup, settings=settings)
    return _moments(halved), _moments(halved)


def _fold_numbers(folds: Mapping[str, int]) -> FoldNumbers:
    """The fold of each row of a batch, from that of each utterance."""

    def numbers(rows: BatchRows) -> np.ndarray:
        return np.array([folds[u] for u in rows.utterances], np.int64)[rows.utterance]

    return numbers


def _null_moments(setup: PassSetup) -> NullMomentsAccumulator:
    settings = setup.settings

    def one(draw: int) -> MomentsAccumulator:
        # Rolling changes no own products.
        own = "xy" if setup.swap else "" if draw else "x"
        return MomentsAccumulator(
            paired_shapes(setup.shapes),
            max(settings.rows_per_update // 2, 1),  # of twice the models
            settings.stats_dtype,
            mesh=setup.mesh,
            tiles=paired_tiles(setup.tiles, len(setup.shapes), own),
            layers=paired_layers(setup.indices),
            precision=setup.stats_precision,
        )

    draws = [one(draw) for draw in range(settings.null_draws)]
    if setup.swap:
        return SwappedMomentsAccumulator(draws, setup.swap)
    return ShiftedMomentsAccumulator(draws, lambda r, draw: shift_pairs(r, draw, settings.seed))


def _sample(setup: PassSetup) -> SampleAccumulator:
    settings = setup.settings
    return SampleAccumulator(
        setup.shapes,
        settings.sample_frames,
        settings.seed,
        layers=setup.indices,
        names=_names_of(setup.clustering) if setup.selection.errors else None,
    )


def _clustered_sample(setup: PassSetup) -> ClusteredSampleAccumulator:
    return ClusteredSampleAccumulator(
        setup.shapes, setup.cluster_choice, _names_of(setup.clustering), layers=setup.indices
    )


def _names_of(clustering: Clustering) -> ClusterNames:
    """The cluster of each row of a batch."""

    def names(rows: BatchRows) -> np.ndarray:
        of_ids = [clustering.of[utterance] for utterance in rows.utterances]
        return np.array(of_ids, object)[rows.utterance]

    return names


def _exemplars(setup: PassSetup) -> ExemplarsAccumulator:
    # Of models, which are first; tracks have none.
    return ExemplarsAccumulator(
        setup.shapes[: len(setup.encoders)],
        setup.settings.exemplars,
        setup.utterances,
        setup.grid.hop_samples,
        round(setup.grid.first_centre_samples),
        setup.mesh,
        setup.indices[: sum(map(len, setup.layers))],
    )


def _attention(setup: PassSetup) -> AttentionAccumulator:
    heads = tuple(
        ModelShape(len(layers), encoder.config.num_attention_heads)
        for encoder, layers in zip(setup.encoders, setup.attention_layers)
    )
    return AttentionAccumulator(
        heads,
        attention_inputs.rows_of_projections,
        setup.attention_sums,
        setup.settings.stats_dtype,
        setup.mesh,
        attention_inputs.BATCH_AXIS,
        setup.attention_groups,
    )


Factory = Callable[[PassSetup], Accumulator]

_FACTORIES: dict[str, Factory] = {
    MomentsState.kind: _moments,
    FoldedMoments.kind: _folded_moments,
    UtteranceFolds.kind: _utterance_folds,
    NullMoments.kind: _null_moments,
    Sample.kind: _sample,
    ClusteredSample.kind: _clustered_sample,
    AttentionState.kind: _attention,
    Exemplars.kind: _exemplars,
}


def register_statistic(state: type[Any], accumulator: Factory) -> None:
    """Add a statistic; measures whose `statistic` is its kind read it.

    Args:
      state: class of the `State` that is stored, merged and finished; its `kind` names the
        statistic.
      accumulator: `PassSetup` of a pass -> its accumulator.

    Raises:
      UserError: there is a statistic of this kind.
    """
    if state.kind in _FACTORIES:
        raise UserError(f"there is a statistic {state.kind!r} already; choose another kind")
    STATES[state.kind] = state
    _FACTORIES[state.kind] = accumulator


def check_registered(selection: MeasureSelection) -> None:
    """Raise UserError for a measure that reads a statistic which is not registered."""
    for measure in selection.measures:
        if measure.statistic not in _FACTORIES:
            raise UserError(
                f"{measure.name} reads the statistic {measure.statistic!r}, which is not "
                "registered (register_statistic)"
            )


class Accumulators:
    """Everything that the measures of a pass read, accumulated batch by batch.

    Args:
      setup: of the pass.
    """

    def __init__(self, setup: PassSetup):
        kinds = setup.selection.accumulated
        self._setup = setup
        self._by_kind = {kind: _FACTORIES[kind](setup) for kind in kinds}
        self._reads_attention = AttentionState.kind in kinds

    def append(self, activations: Sequence[Activations], lengths: Lengths, rows: BatchRows) -> None:
        """Add a batch.

        Args:
          activations: of every model and track, hidden states pooled.
          lengths: samples of each utterance.
          rows: the frames that are rows.
        """
        attention, frames = None, None
        if self._reads_attention:
            frames = np.asarray(self._setup.grid.frames(lengths), np.int32)
            for row, utterance in enumerate(rows.utterances):
                frames[row] *= utterance in self._setup.attention_ids
            if frames.any():
                attention = tuple(
                    attention_inputs.projected(model, layers, frames)
                    for model, layers in zip(activations, self._setup.attention_layers)
                )
        hidden = tuple(model.hidden_states for model in activations)
        batch = EncodedBatch(hidden, rows, attention, frames)
        for accumulator in self._by_kind.values():
            accumulator.update(batch)

    def snapshot(self) -> dict[str, Any]:
        """All accumulators as arrays on the host, with what is still in buffers."""
        return {kind: accumulator.snapshot() for kind, accumulator in self._by_kind.items()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Resume from a snapshot of the same statistics."""
        for kind, accumulator in self._by_kind.items():
            accumulator.restore(snapshot[kind])

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        for accumulator in self._by_kind.values():
            accumulator.wait()

    def result(self) -> PassStatistics:
        """The states after everything that was added; nothing can be added any more."""
        return PassStatistics({k: accumulator.result() for k, accumulator in self._by_kind.items()})
