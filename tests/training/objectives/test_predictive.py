"""The objective of HuBERT against numpy: the value, and each number of its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.training import model
from speechsim_jax.training.objectives import predictive
from tests.support.objectives import PREDICTIVE, assert_close, random_encoded, start, unit


def numpy_predictive(head: dict[str, np.ndarray], last, masked, clusters) -> float:
    """Equations 1 and 3, frame by frame: alpha L_m / |M| + beta L_u / |rest|."""
    parts = {True: [], False: []}
    for b, t in zip(*np.nonzero(clusters >= 0)):
        o = unit(head["final_proj.weight"] @ last[b, t] + head["final_proj.bias"])
        similar = unit(head["label_embs_concat"]) @ o / PREDICTIVE.logit_temp
        parts[bool(masked[b, t])].append(np.log(np.exp(similar).sum()) - similar[clusters[b, t]])
    return np.mean(parts[True]) + PREDICTIVE.pred_nomask_weight * np.mean(parts[False])


@pytest.mark.slow
def test_predictive_loss_and_gradient_written_out():
    """The value, and every number of the gradient by central differences in float64."""
    objective = dataclasses.replace(PREDICTIVE, feature_penalty=0.0)
    head, encoded = start("predictive")[1].head, random_encoded(4)
    rng = np.random.default_rng(5)
    masked = rng.random((2, 9)) < 0.5
    clusters = rng.integers(0, 7, (2, 9)).astype(np.int32)
    clusters[0, 8] = -1

    def loss(head, last):
        sums = predictive.sums(
            head, objective, encoded._replace(last=last), jnp.asarray(masked), jnp.asarray(clusters)
        )
        return predictive.loss(sums, objective)

    value, (by_head, by_last) = jax.value_and_grad(loss, (0, 1))(head, encoded.last)
    known = np.where(encoded.frame_mask, clusters, -1)
    values = {name: np.asarray(x, np.float64) for name, x in model.head_tensors(head).items()}
    values["last"] = np.asarray(encoded.last, np.float64)
    assert float(value) == pytest.approx(
        numpy_predictive(values, values["last"], masked, known), rel=1e-6
    )
    gradients = model.head_tensors(by_head) | {"last": by_last}
    for name, x in values.items():
        expected = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            sides = []
            for side in (1e-5, -1e-5):
                moved = x.copy()
                moved[place] += side
                changed = values | {name: moved}
                sides.append(numpy_predictive(changed, changed["last"], masked, known))
            expected[place] = (sides[0] - sides[1]) / 2e-5
        assert_close(gradients[name], expected)
        assert np.abs(expected).max() > 1e-2, name


def test_predictive_counts_and_baselines():
    objective, encoded = PREDICTIVE, random_encoded(6)
    head = start("predictive")[1].head
    log_p = np.asarray(predictive.log_probabilities(head, objective, encoded.last))
    assert np.allclose(np.exp(log_p).sum(-1), 1, atol=1e-6)
    likeliest = log_p.argmax(-1).astype(np.int32)
    clusters = np.where(np.arange(9) % 3 == 0, (likeliest + 1) % 7, likeliest)
    masked = jnp.asarray(np.arange(9) < 5)[None].repeat(2, 0)
    sums = predictive.sums(head, objective, encoded, masked, jnp.asarray(clusters))
    metrics = predictive.metrics(sums)
    # frames 0 to 4 of both; then 5 to 8 of the first, 5 of the second
    assert float(metrics["masked_accuracy"]) == pytest.approx(6 / 10)
    assert float(metrics["unmasked_accuracy"]) == pytest.approx(4 / 5)
    assert np.array_equal(sums.masked.targets, np.bincount(clusters[:, :5].ravel(), minlength=7))
    baseline = predictive.baseline(np.array([3, 1, 0]), np.array([2, 5, 0]))
    assert baseline.chance == pytest.approx(1 / 3) and baseline.unigram_accuracy == 0.25
    assert baseline.unigram_loss == pytest.approx(-(0.75 * np.log(0.3) + 0.25 * np.log(0.6)))
