"""The objective of wav2vec 2.0 (Baevski et al. 2020, section 3.2), as sums over masked frames.

    L   = L_m + alpha L_d                                                               (2)
    L_m = -log exp(sim(c_t, q_t) / kappa) / sum_{q in Q_t} exp(sim(c_t, q) / kappa)     (3)
    L_d = 1/(G V) sum_g (V - exp(H(p_g)))                                               (4)

Q_t: the quantized frame q_t and K distractors, drawn uniformly from the other masked frames of the
same utterance; a distractor with the codewords of q_t is left out (as in fairseq and transformers,
which compare vectors instead of codes; vectors of equal codes can differ by rounding). sim is the
cosine. fairseq adds the mean square of the convolutions' outputs (`feature_penalty`, 10 there, 0 in
transformers).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from speechsim_jax.training.forward import Encoded, count, feature_power, unit_vectors
from speechsim_jax.training.model import Contrastive, ContrastiveHead
from speechsim_jax.training.objectives import quantizer
from speechsim_jax.training.random_keys import Keys

Negatives = Int[Array, "batch frame negative"]


class Sums(NamedTuple):
    """Sums over utterances; they add up over devices and batches.

    Attributes:
        contrastive: Sum of L_m over `frames`.
        frames: Number of masked frames, without utterances that have only one.
        correct: Number of `frames` where q_t is more similar than every distractor.
        chance: Expected number of correct frames by guessing.
        soft: Sum over `frames` of the distribution over codewords.
        hard: Number of `frames` that chose each codeword.
        power: Sum over `valid` frames of the mean square of the convolutions' outputs.
        valid: Number of valid frames.
    """

    contrastive: Float[Array, ""]
    frames: Int[Array, ""]
    correct: Int[Array, ""]
    chance: Float[Array, ""]
    soft: Float[Array, "group codeword"]
    hard: Float[Array, "group codeword"]
    power: Float[Array, ""]
    valid: Int[Array, ""]


def sample_negatives(
    keys: Keys, masked: Bool[Array, "batch frame"], number: int
) -> Int[Array, "batch frame _number"]:
    """Draw distractors: other masked frames of the same utterance, uniformly with replacement.

    Args:
        keys: The key of each utterance.
        masked: Masked frames.
        number: Distractors for each frame.

    Returns:
        Indices of frames; undefined for frames that are not masked.
    """
    return jax.vmap(lambda key, row: _negatives_of_utterance(key, row, number))(keys, masked)


def _negatives_of_utterance(
    key: Key[Array, ""], masked: Bool[Array, " frame"], number: int
) -> Int[Array, "frame _number"]:
    total = count(masked)
    masked_frames = jnp.argsort(~masked, stable=True)
    rank = jnp.cumsum(masked) - 1
    drawn = jax.random.randint(key, (len(masked), number), 0, jnp.maximum(total - 1, 1))
    others = drawn + (drawn >= rank[:, None])
    return jnp.take(masked_frames, others, mode="clip")


def sums(
    head: ContrastiveHead,
    objective: Contrastive,
    encoded: Encoded,
    masked: Bool[Array, "batch frame"],
    negatives: Negatives,
    gumbel: quantizer.Choices | None = None,
    tau: float | int | Float[Array, ""] = 1.0,
) -> Sums:
    """The sums of a batch.

    Args:
        head: Quantizer and projections.
        objective: Settings.
        encoded: Output of the encoder.
        masked: Masked frames.
        negatives: Distractors of each frame (`sample_negatives`).
        gumbel: Noise of the quantizer; None in evaluation, for the likeliest codewords.
        tau: Temperature of the quantizer.
    """
    groups = objective.num_codevector_groups
    quantized = quantizer.quantize(head.quantizer, encoded.features, groups, gumbel, tau)
    predicted = unit_vectors(head.project_hid(encoded.last))
    targets = unit_vectors(head.project_q(quantized.vectors))
    similar = jnp.einsum("btd,bsd->bts", predicted, targets)
    similar = similar / objective.contrastive_logits_temperature

    positive = jnp.diagonal(similar, axis1=1, axis2=2)[..., None]
    same = quantized.code[:, None, :] == quantized.code[:, :, None]
    similar = jnp.where(same, -jnp.inf, similar)
    negative = jnp.take_along_axis(similar, negatives, axis=2)
    loss = jax.nn.logsumexp(jnp.concatenate([positive, negative], -1), axis=-1) - positive[..., 0]

    frames = masked & (jnp.sum(masked, -1, keepdims=True) > 1)
    guesses = 1 / (1 + jnp.sum(jnp.isfinite(negative), -1))
    used = frames[:, :, None, None]
    usage = quantized.soft if gumbel is not None else quantized.hard
    return Sums(
        contrastive=jnp.sum(loss, where=frames),
        frames=count(frames),
        correct=count(frames & (positive > negative).all(-1)),
        chance=jnp.sum(guesses, where=frames),
        soft=jnp.sum(usage, axis=(0, 1), where=used),
        hard=jnp.sum(quantized.hard, axis=(0, 1), where=used),
        power=feature_power(encoded),
        valid=count(encoded.frame_mask),
    )


def loss(sums: Sums, objective: Contrastive) -> Float[Array, ""]:
    """L per masked frame plus the penalty; 0 if nothing is masked.

    transformers' loss is `frames` times L.
    """
    choices = objective.num_codevector_groups * objective.num_codevectors_per_group
    diversity = (choices - quantizer.perplexity(sums.soft, sums.frames)) / choices
    per_frame = sums.contrastive / jnp.maximum(sums.frames, 1)
    weighted = objective.diversity_loss_weight * diversity * (sums.frames > 0)
    penalty = objective.feature_penalty * sums.power / jnp.maximum(sums.valid, 1)
    return per_frame + weighted + penalty


def metrics(sums: Sums) -> dict[str, Float[Array, ""]]:
    """Loss, accuracy, accuracy of guessing, and numbers of codewords in use."""
    frames = jnp.maximum(sums.frames, 1)
    return {
        "contrastive_loss": sums.contrastive / frames,
        "accuracy": sums.correct / frames,
        "chance": sums.chance / frames,
        "perplexity": quantizer.perplexity(sums.soft, sums.frames),
        "code_perplexity": quantizer.perplexity(sums.hard, sums.frames),
        "feature_power": sums.power / jnp.maximum(sums.valid, 1),
    }
