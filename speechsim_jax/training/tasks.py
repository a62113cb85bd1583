"""Tasks: for each objective, the draws, the forward pass and the sums of a batch."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.training.data.sampling import TrainingBatch
from speechsim_jax.training.forward import UNMASKED, Encoded, Masks, encode
from speechsim_jax.training.model import CTC, Contrastive, Model, Predictive
from speechsim_jax.training.objectives import contrastive, ctc, predictive, quantizer
from speechsim_jax.training.objectives.masking import Spans, span_mask
from speechsim_jax.training.random_keys import Dropout, DropoutRates, Keys, key_for
from speechsim_jax.training.recipe import (
    Annealing,
    ContrastiveRecipe,
    CTCRecipe,
    PredictiveRecipe,
)


class BatchOutput(NamedTuple):
    """Output of a task on a batch.

    Attributes:
        sums: `Sums` of the objective's module.
        tokens: Likeliest token of each frame (CTC only).
    """

    sums: Any
    tokens: Int[Array, "batch frame"] | None = None


@runtime_checkable
class Task(Protocol):
    """An objective with its data and noise; hashable, as programs are compiled for it."""

    @property
    def objective(self) -> Any:
        """The settings of the objective."""
        ...

    def forward(
        self,
        graph: nnx.GraphDef,
        model: Model,
        batch: TrainingBatch,
        keys: Keys,
        step: Int[Array, ""],
        training: bool,
    ) -> BatchOutput:
        """Output on a batch, with dropout and noise in training only."""
        ...

    def loss(self, sums: Any) -> Float[Array, ""]:
        """The loss that is minimised."""
        ...

    def metrics(self, sums: Any) -> dict[str, Float[Array, ""]]:
        """Metrics by name, without the loss."""
        ...


@dataclasses.dataclass(frozen=True)
class _Pretraining:
    """The common part of both pretraining tasks: an encoder of partly masked frames."""

    config: Wav2Vec2Config
    spans: Spans
    rates: DropoutRates
    feature_grad_mult: float | int

    def _encode(
        self, graph: nnx.GraphDef, model: Model, batch: TrainingBatch, keys: Keys, training: bool
    ) -> tuple[Encoded, Array]:
        samples, lengths = jnp.asarray(batch.samples), jnp.asarray(batch.lengths)
        width = self.config.frames(samples.shape[1])
        frames = self.config.frames(lengths)
        masked = span_mask(key_for(keys, "masked frames"), frames, width, self.spans)
        dropout = Dropout(self.rates, keys) if training else None
        encoded = encode(
            graph, model, samples, lengths, Masks(masked), dropout, self.feature_grad_mult
        )
        return encoded, masked


@dataclasses.dataclass(frozen=True)
class ContrastiveTask(_Pretraining):
    """wav2vec 2.0: tell the quantized frame from distractors."""

    objective: Contrastive
    temperature: Annealing

    @classmethod
    def of(cls, recipe: ContrastiveRecipe) -> "ContrastiveTask":
        """The task of a recipe."""
        return cls(
            recipe.encoder, recipe.masks, recipe.dropout, recipe.feature_grad_mult,
            recipe.head, recipe.temperature,
        )  # fmt: skip

    def forward(self, graph, model, batch, keys, step, training) -> BatchOutput:
        """Sums over masked frames, without Gumbel noise in evaluation."""
        encoded, masked = self._encode(graph, model, batch, keys, training)
        groups, words = (
            self.objective.num_codevector_groups, self.objective.num_codevectors_per_group,
        )  # fmt: skip
        negatives = contrastive.sample_negatives(
            key_for(keys, "negatives"), masked, self.objective.num_negatives
        )
        gumbel = None
        if training:
            width = masked.shape[1]
            gumbel = quantizer.gumbel_noise(key_for(keys, "gumbel"), width, groups, words)
        tau = quantizer.temperature(step, **dataclasses.asdict(self.temperature))
        return BatchOutput(
            contrastive.sums(model.head, self.objective, encoded, masked, negatives, gumbel, tau)
        )

    def loss(self, sums) -> Float[Array, ""]:
        """The loss of `contrastive`."""
        return contrastive.loss(sums, self.objective)

    def metrics(self, sums) -> dict[str, Float[Array, ""]]:
        """The metrics of `contrastive`."""
        return contrastive.metrics(sums)


@dataclasses.dataclass(frozen=True)
class PredictiveTask(_Pretraining):
    """HuBERT: predict the clusters of masked frames."""

    objective: Predictive

    @classmethod
    def of(cls, recipe: PredictiveRecipe) -> "PredictiveTask":
        """The task of a recipe."""
        return cls(
            recipe.encoder, recipe.masks, recipe.dropout, recipe.feature_grad_mult, recipe.head
        )

    def forward(self, graph, model, batch, keys, step, training) -> BatchOutput:
        """Sums over masked and over other frames."""
        encoded, masked = self._encode(graph, model, batch, keys, training)
        clusters = jnp.asarray(batch.clusters)
        return BatchOutput(predictive.sums(model.head, self.objective, encoded, masked, clusters))

    def loss(self, sums) -> Float[Array, ""]:
        """The loss of `predictive`."""
        return predictive.loss(sums, self.objective)

    def metrics(self, sums) -> dict[str, Float[Array, ""]]:
        """The metrics of `predictive`."""
        return predictive.metrics(sums)


@dataclasses.dataclass(frozen=True)
class CTCTask:
    """CTC on the characters of uncut utterances; masks and dropout in training only."""

    config: Wav2Vec2Config
    objective: CTC
    in_time: Spans
    over_neurons: Spans
    rates: DropoutRates
    frozen: bool

    @classmethod
    def of(cls, recipe: CTCRecipe, config: Wav2Vec2Config, objective: CTC) -> "CTCTask":
        """The task of a recipe for an encoder and an alphabet."""
        return cls(
            config, objective, recipe.masks, recipe.neuron_masks, recipe.dropout,
            recipe.freeze_feature_encoder,
        )  # fmt: skip

    def forward(self, graph, model, batch, keys, step, training) -> BatchOutput:
        """Sums, and the likeliest token of each frame."""
        samples, lengths = jnp.asarray(batch.samples), jnp.asarray(batch.lengths)
        masks, dropout = UNMASKED, None
        if training:
            width, frames = self.config.frames(samples.shape[1]), self.config.frames(lengths)
            masks = ctc.spec_augment(
                keys, frames, width, self.config.hidden_size, self.in_time, self.over_neurons
            )
            dropout = Dropout(self.rates, keys)
        scale = 0.0 if self.frozen else 1.0
        encoded = encode(graph, model, samples, lengths, masks, dropout, scale)
        labels, counts = jnp.asarray(batch.labels), jnp.asarray(batch.counts)
        sums = ctc.sums(model.head, self.objective, encoded, labels, counts)
        tokens = jnp.argmax(ctc.logits(model.head, encoded), -1).astype(jnp.int32)
        return BatchOutput(sums, tokens)

    def loss(self, sums) -> Float[Array, ""]:
        """The loss of `ctc`."""
        return ctc.loss(sums)

    def metrics(self, sums) -> dict[str, Float[Array, ""]]:
        """The metrics of `ctc`."""
        return ctc.metrics(sums)
