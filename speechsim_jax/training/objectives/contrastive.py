"""The objective of wav2vec 2.0 (Baevski et al. 2020, section 3.2), as sums over masked frames.

    L   = L_m + alpha L_d                                                               (2)
    L_m = -log exp(sim(c_t, q_t) / kappa) / sum_{q in Q_t} exp(sim(c_t, q) / kappa)     (3)
    L_d = 1/(G V) sum_g (V - exp(H(p_g)))                                               (4)

Q_t: the quantized frame q_t and K distractors, drawn uniformly from the other masked frames of the
same utterance; one whose codewords are those of q_t is left out (as in fairseq and transformers;
they compare vectors, of which equal codes can differ by rounding). sim is the cosine. fairseq adds
the mean square of the convolutions' outputs (`feature_penalty`, 10 there, 0 in transformers).
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
    """What utterances add to; those of devices and batches add up.

    `contrastive`: of L_m; `correct`: frames whose own codewords come first; `chance`: the same
    expected of guessing; `soft`, `hard` [group, codeword]: usage of the codewords; `power`: mean
    squares of the convolutions' outputs over the `valid` frames. All but the last two are over
    `frames`: masked ones, in utterances where there is another to tell them from.
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
    """For each masked frame the places of `number` other masked frames of its utterance.

    Uniformly with replacement, never the frame itself; what stands at other frames means nothing.
    """
    return jax.vmap(lambda key, row: _negatives_of_one(key, row, number))(keys, masked)


def _negatives_of_one(
    key: Key[Array, ""], masked: Bool[Array, " frame"], number: int
) -> Int[Array, "frame _number"]:
    total = count(masked)
    places = jnp.argsort(~masked, stable=True)
    rank = jnp.cumsum(masked) - 1
    drawn = jax.random.randint(key, (len(masked), number), 0, jnp.maximum(total - 1, 1))
    others = drawn + (drawn >= rank[:, None])
    return jnp.take(places, others, mode="clip")


def sums(
    head: ContrastiveHead,
    objective: Contrastive,
    encoded: Encoded,
    masked: Bool[Array, "batch frame"],
    negatives: Negatives,
    gumbel: quantizer.Choices | None = None,
    tau: float | int | Float[Array, ""] = 1.0,
) -> Sums:
    """The sums of a batch; without `gumbel` as in evaluation (likeliest codewords)."""
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
    """L per masked frame, and the penalty; transformers' is `frames` times that.

    0 if nothing is masked.
    """
    choices = objective.num_codevector_groups * objective.num_codevectors_per_group
    diversity = (choices - quantizer.perplexity(sums.soft, sums.frames)) / choices
    per_frame = sums.contrastive / jnp.maximum(sums.frames, 1)
    weighted = objective.diversity_loss_weight * diversity * (sums.frames > 0)
    penalty = objective.feature_penalty * sums.power / jnp.maximum(sums.valid, 1)
    return per_frame + weighted + penalty


def report(sums: Sums) -> dict[str, Float[Array, ""]]:
    """What is worth a look: the accuracy and that of guessing, codewords in use."""
    frames = jnp.maximum(sums.frames, 1)
    return {
        "contrastive_loss": sums.contrastive / frames,
        "accuracy": sums.correct / frames,
        "chance": sums.chance / frames,
        "perplexity": quantizer.perplexity(sums.soft, sums.frames),
        "code_perplexity": quantizer.perplexity(sums.hard, sums.frames),
        "feature_power": sums.power / jnp.maximum(sums.valid, 1),
    }
