"""The objective of HuBERT (Hsu et al. 2021, section II), as sums over frames.

    L = alpha L_m + beta L_u,   L_m = -sum_{t in M} log p(z_t | X masked, t)       (1)
    p(c | t) = exp(sim(A o_t, e_c) / tau) / sum_c' exp(sim(A o_t, e_c') / tau)     (3)

M: the masked frames, L_u the same over the others, z_t the cluster of frame t, o_t the last hidden
state, sim the cosine, tau 0.1. (The paper has beta = 1 - alpha; released models are trained with
masked frames only.) Eq. (2), several clusterings at once, is not needed for its models.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from speechsim_jax.training.forward import Encoded, count, feature_power, unit_vectors
from speechsim_jax.training.model import Predictive, PredictiveHead

ClusterIds = Int[Array, "batch frame"]
"""The cluster of each frame, -1 where there is none."""


class FrameSums(NamedTuple):
    """Sums over a set of frames.

    Attributes:
        loss: Sum of -log p.
        frames: Number of frames.
        correct: Number of correct predictions.
        targets: How often each cluster was the target.
    """

    loss: Float[Array, ""]
    frames: Int[Array, ""]
    correct: Int[Array, ""]
    targets: Int[Array, " cluster"]


class Sums(NamedTuple):
    """Sums over utterances; they add up over devices and batches.

    Attributes:
        masked: Over masked frames.
        unmasked: Over other frames.
        power: Sum over `valid` frames of the mean square of the convolutions' outputs.
        valid: Number of valid frames.
    """

    masked: FrameSums
    unmasked: FrameSums
    power: Float[Array, ""]
    valid: Int[Array, ""]


def log_probabilities(
    head: PredictiveHead, objective: Predictive, last: Float[Array, "batch frame neuron"]
) -> Float[Array, "batch frame cluster"]:
    """log p(c | t), equation 3."""
    predicted = unit_vectors(head.final_proj(last))
    similar = predicted @ unit_vectors(head.label_embs_concat).T
    return jax.nn.log_softmax(similar / objective.logit_temp)


def sums(
    head: PredictiveHead,
    objective: Predictive,
    encoded: Encoded,
    masked: Bool[Array, "batch frame"],
    clusters: ClusterIds,
) -> Sums:
    """The sums of a batch; padded frames and frames without a cluster are left out.

    Args:
        head: Projection and cluster embeddings.
        objective: Settings.
        encoded: Output of the encoder.
        masked: Masked frames.
        clusters: Targets.
    """
    log_p = log_probabilities(head, objective, encoded.last)
    known = encoded.frame_mask & (clusters >= 0)
    clusters = jnp.maximum(clusters, 0)
    loss = -jnp.take_along_axis(log_p, clusters[:, :, None], axis=2)[:, :, 0]
    correct = jnp.argmax(log_p, -1) == clusters
    targets = jax.nn.one_hot(clusters, objective.units, dtype=jnp.int32)

    def over(frames: Bool[Array, "batch frame"]) -> FrameSums:
        return FrameSums(
            jnp.sum(loss, where=frames),
            count(frames),
            count(frames & correct),
            jnp.sum(targets, axis=(0, 1), where=frames[:, :, None]),
        )

    valid = count(encoded.frame_mask)
    return Sums(over(known & masked), over(known & ~masked), feature_power(encoded), valid)


def loss(sums: Sums, objective: Predictive) -> Float[Array, ""]:
    """alpha L_m + beta L_u, each per frame, plus the penalty.

    fairseq divides both by the number of masked frames; with beta = 0 there is no difference. 0 if
    nothing is masked.
    """
    masked = sums.masked.loss / jnp.maximum(sums.masked.frames, 1)
    unmasked = sums.unmasked.loss / jnp.maximum(sums.unmasked.frames, 1)
    penalty = objective.feature_penalty * sums.power / jnp.maximum(sums.valid, 1)
    return objective.pred_masked_weight * masked + objective.pred_nomask_weight * unmasked + penalty


def metrics(sums: Sums) -> dict[str, Float[Array, ""]]:
    """Loss and accuracy on masked and on other frames."""
    masked, unmasked = (jnp.maximum(part.frames, 1) for part in (sums.masked, sums.unmasked))
    return {
        "masked_loss": sums.masked.loss / masked,
        "masked_accuracy": sums.masked.correct / masked,
        "unmasked_loss": sums.unmasked.loss / unmasked,
        "unmasked_accuracy": sums.unmasked.correct / unmasked,
        "feature_power": sums.power / jnp.maximum(sums.valid, 1),
    }


class Baseline(NamedTuple):
    """Metrics of predictions without the audio, on the same frames.

    Attributes:
        chance: Accuracy of guessing among all clusters.
        unigram_accuracy: Accuracy of always predicting the commonest cluster of the training audio.
        unigram_loss: Mean -log of the clusters' frequencies in the training audio.
    """

    chance: float
    unigram_accuracy: float
    unigram_loss: float


def baseline(
    targets: Int[Array | np.ndarray, " cluster"], training: Int[np.ndarray, " cluster"]
) -> Baseline:
    """Metrics of predictions from the frequencies of clusters in training.

    Args:
        targets: How often each cluster was the target on the evaluated frames.
        training: How often each cluster occurs in training. Its frequency is (n + 1) / (N + C), so
            that clusters that do not occur have a finite loss.
    """
    targets, training = np.asarray(targets, np.float64), np.asarray(training, np.float64)
    share = targets / max(targets.sum(), 1.0)
    frequency = (training + 1) / (training.sum() + len(training))
    return Baseline(
        chance=1 / len(training),
        unigram_accuracy=float(share[np.argmax(training)]),
        unigram_loss=float(-(share * np.log(frequency)).sum()),
    )
