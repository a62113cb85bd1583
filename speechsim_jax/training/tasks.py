"""What a step does with a batch, one class an objective: all that is drawn, encoded and summed."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.training.data.sampling import Rows
from speechsim_jax.training.forward import UNMASKED, Encoded, Masks, encode
from speechsim_jax.training.model import CTC, Contrastive, Model, Predictive
from speechsim_jax.training.objectives import contrastive, ctc, predictive, quantizer
from speechsim_jax.training.objectives.masking import Spans, span_mask
from speechsim_jax.training.random_keys import Dropout, Keys, Rates, key_for
from speechsim_jax.training.recipe import (
    Annealing,
    ContrastiveRecipe,
    CTCRecipe,
    PredictiveRecipe,
)


class Found(NamedTuple):
    """What a batch gives: sums of the objective's module and, of CTC, each frame's best token."""

    sums: Any
    tokens: Int[Array, "batch frame"] | None = None


@runtime_checkable
class Task(Protocol):
    """An objective and what goes with it; hashable, as programs are compiled for it."""

    @property
    def objective(self) -> Any:
        """The settings of the objective."""
        ...

    def found(
        self,
        graph: nnx.GraphDef,
        model: Model,
        rows: Rows,
        keys: Keys,
        step: Int[Array, ""],
        training: bool,
    ) -> Found:
        """The sums of a batch, with dropout and noise if it is for training."""
        ...

    def loss(self, sums: Any) -> Float[Array, ""]:
        """What is minimised."""
        ...

    def report(self, sums: Any) -> dict[str, Float[Array, ""]]:
        """What is worth a look."""
        ...


@dataclasses.dataclass(frozen=True)
class _Pretraining:
    """What both ways of pretraining share: an encoder that does not see masked frames."""

    config: EncoderConfig
    spans: Spans
    rates: Rates
    feature_grad_mult: float | int

    def _encode(
        self, graph: nnx.GraphDef, model: Model, rows: Rows, keys: Keys, training: bool
    ) -> tuple[Encoded, Array]:
        samples, lengths = jnp.asarray(rows.samples), jnp.asarray(rows.lengths)
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
    """wav2vec 2.0: the quantized frame among distractors."""

    objective: Contrastive
    temperature: Annealing

    @classmethod
    def of(cls, recipe: ContrastiveRecipe) -> "ContrastiveTask":
        """The task of a recipe."""
        return cls(
            recipe.encoder, recipe.masks, recipe.dropout, recipe.feature_grad_mult,
            recipe.head, recipe.temperature,
        )  # fmt: skip

    def found(self, graph, model, rows, keys, step, training) -> Found:
        """The sums; without Gumbel noise in evaluation."""
        encoded, masked = self._encode(graph, model, rows, keys, training)
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
        return Found(
            contrastive.sums(model.head, self.objective, encoded, masked, negatives, gumbel, tau)
        )

    def loss(self, sums) -> Float[Array, ""]:
        """L of `contrastive`."""
        return contrastive.loss(sums, self.objective)

    def report(self, sums) -> dict[str, Float[Array, ""]]:
        """That of `contrastive`."""
        return contrastive.report(sums)


@dataclasses.dataclass(frozen=True)
class PredictiveTask(_Pretraining):
    """HuBERT: the units of masked frames."""

    objective: Predictive

    @classmethod
    def of(cls, recipe: PredictiveRecipe) -> "PredictiveTask":
        """The task of a recipe."""
        return cls(
            recipe.encoder, recipe.masks, recipe.dropout, recipe.feature_grad_mult, recipe.head
        )

    def found(self, graph, model, rows, keys, step, training) -> Found:
        """The sums over masked and over other frames."""
        encoded, masked = self._encode(graph, model, rows, keys, training)
        units = jnp.asarray(rows.units)
        return Found(predictive.sums(model.head, self.objective, encoded, masked, units))

    def loss(self, sums) -> Float[Array, ""]:
        """L of `predictive`."""
        return predictive.loss(sums, self.objective)

    def report(self, sums) -> dict[str, Float[Array, ""]]:
        """That of `predictive`."""
        return predictive.report(sums)


@dataclasses.dataclass(frozen=True)
class CTCTask:
    """Characters of whole utterances; masks and dropout in training only."""

    config: EncoderConfig
    objective: CTC
    in_time: Spans
    over_neurons: Spans
    rates: Rates
    frozen: bool

    @classmethod
    def of(cls, recipe: CTCRecipe, config: EncoderConfig, objective: CTC) -> "CTCTask":
        """The task of a recipe for an encoder and an alphabet."""
        return cls(
            config, objective, recipe.masks, recipe.neuron_masks, recipe.dropout,
            recipe.freeze_feature_encoder,
        )  # fmt: skip

    def found(self, graph, model, rows, keys, step, training) -> Found:
        """The sums, and the likeliest token of each frame."""
        samples, lengths = jnp.asarray(rows.samples), jnp.asarray(rows.lengths)
        masks, dropout = UNMASKED, None
        if training:
            width, frames = self.config.frames(samples.shape[1]), self.config.frames(lengths)
            masks = ctc.spec_augment(
                keys, frames, width, self.config.hidden_size, self.in_time, self.over_neurons
            )
            dropout = Dropout(self.rates, keys)
        scale = 0.0 if self.frozen else 1.0
        encoded = encode(graph, model, samples, lengths, masks, dropout, scale)
        labels, counts = jnp.asarray(rows.labels), jnp.asarray(rows.counts)
        sums = ctc.sums(model.head, self.objective, encoded, labels, counts)
        tokens = jnp.argmax(ctc.logits(model.head, encoded), -1).astype(jnp.int32)
        return Found(sums, tokens)

    def loss(self, sums) -> Float[Array, ""]:
        """L of `ctc`."""
        return ctc.loss(sums)

    def report(self, sums) -> dict[str, Float[Array, ""]]:
        """That of `ctc`."""
        return ctc.report(sums)
