"""CTC against the sum over all paths; against torch in test_live_training.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.models.recognizer import best_path
from speechsim_jax.training import forward, model
from speechsim_jax.training.model import CTC
from speechsim_jax.training.objectives import ctc
from tests.support.objectives import TOKENS, random_encoded, start


def test_ctc_loss_is_the_sum_over_all_paths():
    """Every path of 5 frames and 4 tokens, spelled by our decoder's rule."""
    objective = CTC(vocab_size=4, pad_token_id=2)
    rng = np.random.default_rng(7)
    logits = rng.standard_normal((4, 5, 4)).astype(np.float32)
    frames, counts = np.array([5, 4, 3, 0]), np.array([3, 2, 2, 0], np.int32)
    labels = np.array([[0, 3, 1], [1, 1, 0], [3, 3, 0], [0, 0, 0]], np.int32)
    identity = model.CTCHead(model.Affine(jnp.eye(4), jnp.zeros(4)))
    mask = jnp.asarray(np.arange(5) < frames[:, None])
    encoded = forward.Encoded(*(jnp.asarray(logits),) * 3, mask)
    sums = ctc.sums(identity, objective, encoded, jnp.asarray(labels), jnp.asarray(counts))
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)))
    expected = []
    for row in range(3):
        paths = np.indices((4,) * frames[row]).reshape(frames[row], -1).T
        spelled = [path for path in paths if best_path(path, 2) == list(labels[row][: counts[row]])]
        expected.append(
            -np.log(sum(np.exp(log_p[row][np.arange(len(p)), p].sum()) for p in spelled))
        )
    assert (int(sums.utterances), int(sums.left_out), int(sums.labels)) == (3, 0, 7)
    assert float(ctc.loss(sums)) == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.slow
def test_ctc_leaves_out_what_is_too_short():
    objective = TOKENS
    head = start("ctc")[1].head
    mask = jnp.asarray(np.arange(9) < np.array([2, 4])[:, None])
    encoded = random_encoded(8)._replace(frame_mask=mask)
    labels, counts = jnp.array([[0, 1, 3, 4], [1, 1, 3, 3]]), jnp.array([3, 4])

    def loss(head):
        sums = ctc.sums(head, objective, encoded, labels, counts)
        return ctc.loss(sums), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(head)
    assert (int(sums.utterances), int(sums.left_out), float(value)) == (0, 2, 0.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
