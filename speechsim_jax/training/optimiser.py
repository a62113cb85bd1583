"""AdamW with clipped gradients and a learning rate that rises and falls.

    g <- g min(1, clip_norm / |g|)
    theta <- theta - eta_k (Adam(g) + weight_decay theta)

Biases, gains and single vectors do not decay. Frozen parameters and the statistics of a batch norm
stay as they are. Decay, freezing and clipping are written out instead of chained from optax: so
Adam's moments are trees of the same structure as the model.

Source: Kingma & Ba 2015; Loshchilov & Hutter 2019, algorithm 2.
"""

import dataclasses
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from speechsim_jax.errors import UserError
from speechsim_jax.training.model import Model

# Gains that have several axes: of the weight norm, of WavLM's gates.
_GAINS = ("weight_g", "gru_rel_pos_const")
_STATISTICS = (["batch_norm", "mean"], ["batch_norm", "var"])


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Settings of the optimiser and its schedule.

    Attributes:
        peak_learning_rate: Reached by a linear rise.
        schedule: After the rise, "cosine" falls to `final_share` of the peak; "tri-stage" (fairseq)
            holds the peak and then decays exponentially.
        warmup_share: Share of all steps in which the learning rate rises.
        hold_share: Share of all steps at the peak (tri-stage only).
        final_share: Last learning rate as a share of the peak.
        b1: Adam's beta_1; the constants' defaults are those of wav2vec 2.0 and HuBERT.
        b2: Adam's beta_2.
        eps: Adam's epsilon.
        weight_decay: Weight decay.
        clip_norm: Largest norm of a gradient.

    Raises:
        UserError: Values out of range.
    """

    peak_learning_rate: float | int = 5e-4
    schedule: Literal["cosine", "tri-stage"] = "cosine"
    warmup_share: float | int = 0.08
    hold_share: float | int = 0.4
    final_share: float | int = 0.05
    b1: float | int = 0.9
    b2: float | int = 0.98
    eps: float | int = 1e-6
    weight_decay: float | int = 0.01
    clip_norm: float | int = 1.0

    def __post_init__(self):
        shares = self.warmup_share, self.hold_share, self.final_share
        if not self.peak_learning_rate > 0 or not self.clip_norm > 0:
            raise UserError(f"{self}: expected a learning rate and a clip_norm above 0")
        if not all(0 <= share <= 1 for share in shares) or self.final_share == 0:
            raise UserError(f"{self}: expected shares between 0 and 1, the final one above 0")

    def learning_rate(self, steps: int) -> optax.Schedule:
        """The learning rate of the k-th of `steps` updates, k from 1."""
        peak, final = self.peak_learning_rate, self.peak_learning_rate * self.final_share
        rise = max(round(self.warmup_share * steps), 1)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(0.0, peak, rise, max(steps, rise + 1), final)
        hold = round(self.hold_share * steps)
        fall = max(steps - rise - hold, 1)
        stages = [
            optax.linear_schedule(0.0, peak, rise),
            optax.constant_schedule(peak),
            optax.exponential_decay(peak, fall, self.final_share, end_value=final),
        ]
        return optax.join_schedules(stages, [rise, rise + hold])

    def init(self, model: Model) -> optax.ScaleByAdamState:
        """Adam's state before the first step."""
        return self._adam.init(model)

    @property
    def _adam(self) -> Any:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def update(
        self,
        gradient: Model,
        state: optax.ScaleByAdamState,
        model: Model,
        steps: int,
        frozen: bool = False,
    ) -> "UpdateResult":
        """One update.

        Args:
            gradient: Of the loss.
            state: Adam's state.
            model: Parameters.
            steps: Number of updates of the training.
            frozen: Leave the convolutions as they are.
        """
        gradient = jax.tree_util.tree_map_with_path(
            lambda path, g: jnp.zeros_like(g) if _is_fixed(path, frozen) else g, gradient
        )
        clip = optax.clip_by_global_norm(self.clip_norm)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
        moved, state = self._adam.update(clip.update(gradient, optax.EmptyState())[0], state)
        rate = self.learning_rate(steps)(state.count)

        def step(path: tuple, theta: Array, u: Array) -> Array:
            if _is_fixed(path, frozen):
                return theta
            return theta - rate * (u + self.weight_decay * theta if _decays(path, theta) else u)

        model = jax.tree_util.tree_map_with_path(step, model, moved)
        return UpdateResult(model, state, norm, jnp.asarray(rate))


class UpdateResult(NamedTuple):
    """Result of an update.

    Attributes:
        model: Parameters after the update.
        state: Adam's state after the update.
        norm: |g| before clipping.
        rate: Learning rate.
    """

    model: Model
    state: optax.ScaleByAdamState
    norm: Float[Array, ""]
    rate: Float[Array, ""]


def _is_fixed(path: tuple, frozen: bool) -> bool:
    words = _words(path)
    return words[-2:] in _STATISTICS or (frozen and "feature_extractor" in words)


def _decays(path: tuple, parameter: Array) -> bool:
    return parameter.ndim > 1 and _words(path)[-1] not in _GAINS


def _words(path: tuple) -> list[str]:
    """The names in the path of a parameter, without the last name `value` that nnx adds."""
    words = re.findall(r"\w+", jax.tree_util.keystr(path))
    return words[:-1] if words[-1] == "value" else words
