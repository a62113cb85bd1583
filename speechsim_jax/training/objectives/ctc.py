"""Connectionist temporal classification (Graves et al. 2006, eq. 5), as sums over utterances.

    L = -log sum_{paths that spell the labels} prod_t p(path_t | t)

over the valid frames of each utterance. An utterance with fewer frames than its labels need (one
each, and a blank between equal neighbours) is left out and counted.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from speechsim_jax.training.forward import Encoded, Masks, count
from speechsim_jax.training.model import CTC, CTCHead
from speechsim_jax.training.objectives.masking import Spans, span_mask
from speechsim_jax.training.random_keys import Keys, key_for


class Sums(NamedTuple):
    """Sums over utterances; they add up over devices and batches.

    Attributes:
        loss: Sum of -log p over `utterances`.
        utterances: Number of utterances.
        labels: Number of their labels.
        left_out: Number of further utterances, which are too short for their labels.
    """

    loss: Float[Array, ""]
    utterances: Int[Array, ""]
    labels: Int[Array, ""]
    left_out: Int[Array, ""]


def spec_augment(
    keys: Keys,
    frames: Int[Array, " batch"],
    width: int,
    neurons: int,
    in_time: Spans,
    over_neurons: Spans,
) -> Masks:
    """Draw spans of frames and of neurons to mask.

    Args:
        keys: The key of each utterance.
        frames: Valid frames of each utterance.
        width: Frames of the batch, padding included.
        neurons: Neurons of a frame.
        in_time: Spans of frames.
        over_neurons: Spans of neurons.

    Source: SpecAugment, Park et al. 2019.
    """
    everywhere = jnp.full(frames.shape, neurons)
    return Masks(
        span_mask(key_for(keys, "frames"), frames, width, in_time),
        span_mask(key_for(keys, "neurons"), everywhere, neurons, over_neurons),
    )


def logits(head: CTCHead, encoded: Encoded) -> Float[Array, "batch frame token"]:
    """Unnormalised log-probabilities of the tokens."""
    return head.lm_head(encoded.last)


def sums(
    head: CTCHead,
    objective: CTC,
    encoded: Encoded,
    labels: Int[Array, "batch label"],
    counts: Int[Array, " batch"],
) -> Sums:
    """The sums of a batch; `counts` is the number of valid labels of each row."""
    real = jnp.arange(labels.shape[1]) < counts[:, None]
    losses = optax.ctc_loss(
        logits(head, encoded),
        1.0 - encoded.frame_mask,
        jnp.where(real, labels, 0),
        1.0 - real,
        blank_id=objective.pad_token_id,
    )
    frames = jnp.sum(encoded.frame_mask, -1)
    doubled = jnp.sum((labels[:, 1:] == labels[:, :-1]) & real[:, 1:], -1)
    nonempty = frames > 0
    possible = nonempty & (frames >= counts + doubled)
    return Sums(
        jnp.sum(losses, where=possible),
        count(possible),
        jnp.sum(counts, where=possible),
        count(nonempty & ~possible),
    )


def loss(sums: Sums) -> Float[Array, ""]:
    """L per utterance (transformers with reduction "sum": times `utterances`)."""
    return sums.loss / jnp.maximum(sums.utterances, 1)


def metrics(sums: Sums) -> dict[str, Float[Array, ""]]:
    """Loss per label, and the number of utterances left out."""
    return {
        "loss_per_label": sums.loss / jnp.maximum(sums.labels, 1),
        "left_out": sums.left_out.astype(jnp.float32),
    }
