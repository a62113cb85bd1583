"""The objective of HuBERT (Hsu et al. 2021, section II), as sums over frames.

    L = alpha L_m + beta L_u,   L_m = -sum_{t in M} log p(z_t | X masked, t)       (1)
    p(c | t) = exp(sim(A o_t, e_c) / tau) / sum_c' exp(sim(A o_t, e_c') / tau)     (3)

M: the masked frames, L_u the same over the others, z_t the unit of frame t (`units`), o_t the last
hidden state, sim the cosine, tau 0.1. (The paper has beta = 1 - alpha; released models are trained
with masked frames only.) Eq. (2), several clusterings at once, is not needed for its models.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from speechsim_jax.training.forward import Encoded, count, feature_power, unit_vectors
from speechsim_jax.training.model import Predictive, PredictiveHead

Units = Int[Array, "batch frame"]
"""The unit of each frame, -1 where there is none."""


class OfFrames(NamedTuple):
    """Sums over some frames: -log p, frames, correct predictions, how often each unit was due."""

    loss: Float[Array, ""]
    frames: Int[Array, ""]
    correct: Int[Array, ""]
    due: Int[Array, " unit"]


class Sums(NamedTuple):
    """What utterances add to; those of devices and batches add up.

    `power`: mean squares of the convolutions' outputs over the `valid` frames.
    """

    masked: OfFrames
    unmasked: OfFrames
    power: Float[Array, ""]
    valid: Int[Array, ""]


def log_probabilities(
    head: PredictiveHead, objective: Predictive, last: Float[Array, "batch frame neuron"]
) -> Float[Array, "batch frame unit"]:
    """log p(c | t)."""
    predicted = unit_vectors(head.final_proj(last))
    similar = predicted @ unit_vectors(head.label_embs_concat).T
    return jax.nn.log_softmax(similar / objective.logit_temp)


def sums(
    head: PredictiveHead,
    objective: Predictive,
    encoded: Encoded,
    masked: Bool[Array, "batch frame"],
    units: Units,
) -> Sums:
    """The sums of a batch; padded frames and frames without a unit add nothing."""
    log_p = log_probabilities(head, objective, encoded.last)
    known = encoded.frame_mask & (units >= 0)
    units = jnp.maximum(units, 0)
    loss = -jnp.take_along_axis(log_p, units[:, :, None], axis=2)[:, :, 0]
    correct = jnp.argmax(log_p, -1) == units
    due = jax.nn.one_hot(units, objective.units, dtype=jnp.int32)

    def over(frames: Bool[Array, "batch frame"]) -> OfFrames:
        return OfFrames(
            jnp.sum(loss, where=frames),
            count(frames),
            count(frames & correct),
            jnp.sum(due, axis=(0, 1), where=frames[:, :, None]),
        )

    valid = count(encoded.frame_mask)
    return Sums(over(known & masked), over(known & ~masked), feature_power(encoded), valid)


def loss(sums: Sums, objective: Predictive) -> Float[Array, ""]:
    """alpha L_m + beta L_u per masked frame and per other frame, and the penalty.

    fairseq divides both by the number of masked frames; with beta = 0 there is no difference. 0 if
    nothing is masked.
    """
    masked = sums.masked.loss / jnp.maximum(sums.masked.frames, 1)
    unmasked = sums.unmasked.loss / jnp.maximum(sums.unmasked.frames, 1)
    penalty = objective.feature_penalty * sums.power / jnp.maximum(sums.valid, 1)
    return objective.pred_masked_weight * masked + objective.pred_nomask_weight * unmasked + penalty


def report(sums: Sums) -> dict[str, Float[Array, ""]]:
    """What is worth a look: accuracy and loss on masked and on other frames."""
    masked, unmasked = (jnp.maximum(part.frames, 1) for part in (sums.masked, sums.unmasked))
    return {
        "masked_loss": sums.masked.loss / masked,
        "masked_accuracy": sums.masked.correct / masked,
        "unmasked_loss": sums.unmasked.loss / unmasked,
        "unmasked_accuracy": sums.unmasked.correct / unmasked,
        "feature_power": sums.power / jnp.maximum(sums.valid, 1),
    }


class Baseline(NamedTuple):
    """What knowing nothing of the audio would score on the same frames.

    `chance`: accuracy of guessing among all units; `unigram_accuracy`: of always naming the unit
    that is commonest in training; `unigram_loss`: -log of the units' frequencies in training.
    """

    chance: float
    unigram_accuracy: float
    unigram_loss: float


def baseline(due: Int[Array | np.ndarray, " unit"], training: Int[np.ndarray, " unit"]) -> Baseline:
    """Of frames where units were `due` so often, knowing how often they occur in training.

    Frequencies in training are (n + 1) / (N + C), so that a unit not met there has one.
    """
    due, training = np.asarray(due, np.float64), np.asarray(training, np.float64)
    share = due / max(due.sum(), 1.0)
    frequency = (training + 1) / (training.sum() + len(training))
    return Baseline(
        chance=1 / len(training),
        unigram_accuracy=float(share[np.argmax(training)]),
        unigram_loss=float(-(share * np.log(frequency)).sum()),
    )
