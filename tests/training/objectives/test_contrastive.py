"""The objective of wav2vec 2.0 against numpy; against torch in test_live_training.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.training.objectives import contrastive, quantizer
from tests.support.objectives import CONTRASTIVE, assert_close, keys_of, random_encoded, start, unit


@pytest.mark.slow
def test_negatives_are_other_masked_frames_drawn_uniformly():
    masked = np.zeros((3, 12), bool)
    masked[0, [1, 4, 5, 9]] = True
    masked[1, [3, 11]] = True
    masked[2, 6] = True  # has no other
    number = 6000
    negatives = np.asarray(contrastive.sample_negatives(keys_of(3), jnp.asarray(masked), number))
    assert negatives.shape == (3, 12, number)
    for t in (1, 4, 5, 9):
        others, counts = np.unique(negatives[0, t], return_counts=True)
        assert others.tolist() == sorted({1, 4, 5, 9} - {t})
        assert np.abs(counts - number / 3).max() < 4.5 * np.sqrt(number * 2 / 9)
    assert set(negatives[1, 3]) == {11} and set(negatives[1, 11]) == {3}
    padded = np.pad(masked, ((0, 0), (0, 5)))
    wider = contrastive.sample_negatives(keys_of(3), jnp.asarray(padded), number)
    assert np.array_equal(np.asarray(wider)[:2, :12][masked[:2]], negatives[:2][masked[:2]])


@pytest.mark.slow
def test_contrastive_loss_written_out():
    """Equations 2 to 4, frame by frame in float64."""
    head, encoded = start("contrastive")[1].head, random_encoded(1)
    common = head.quantizer.weight_proj._replace(bias=jnp.array([4.0, 0, 0, 0, 0] * 2))
    head = head._replace(quantizer=head.quantizer._replace(weight_proj=common))
    masked = np.zeros((2, 9), bool)
    masked[0, 2:7] = masked[1, 1:4] = True
    negatives = contrastive.sample_negatives(keys_of(2), jnp.asarray(masked), 12)
    gumbel = quantizer.gumbel_noise(keys_of(2), 9, 2, 5)
    sums = contrastive.sums(head, CONTRASTIVE, encoded, jnp.asarray(masked), negatives, gumbel, 2.0)

    head64 = jax.tree.map(lambda x: np.asarray(x, np.float64), head)
    last, features, convolved, valid = (np.asarray(x, np.float64) for x in encoded)
    weight, bias = head64.quantizer.weight_proj
    logits = (features @ weight.T + bias).reshape(2, 9, 2, 5)
    codes = (logits + np.asarray(gumbel)).argmax(-1)
    books = head64.quantizer.codevectors.reshape(2, 5, 6)
    vectors = np.concatenate([books[g][codes[..., g]] for g in range(2)], -1)
    q = unit(vectors @ head64.project_q.weight.T + head64.project_q.bias)
    c = unit(last @ head64.project_hid.weight.T + head64.project_hid.bias)
    loss, correct, chance, same = 0.0, 0, 0.0, 0
    for b, t in zip(*np.nonzero(masked)):
        others = [s for s in np.asarray(negatives)[b, t] if (codes[b, s] != codes[b, t]).any()]
        same += 12 - len(others)
        positive, rest = c[b, t] @ q[b, t] / 0.1, [c[b, t] @ q[b, s] / 0.1 for s in others]
        loss += np.log(np.exp([positive, *rest]).sum()) - positive
        correct += positive > max(rest, default=-np.inf)
        chance += 1 / (1 + len(rest))
    assert 0 < same < 12 * masked.sum()
    p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[masked].mean(0)
    diversity = (5 - np.exp(-(p * np.log(p)).sum(-1))).sum() / 10
    power = (convolved**2).mean(-1)[valid > 0].mean()
    frames = masked.sum()
    assert (int(sums.frames), int(sums.correct), int(sums.valid)) == (frames, correct, 15)
    expected = loss / frames + 0.1 * diversity + 10 * power
    assert float(contrastive.loss(sums, CONTRASTIVE)) == pytest.approx(expected, rel=1e-6)
    metrics = contrastive.metrics(sums)
    assert float(metrics["chance"]) == pytest.approx(chance / frames, rel=1e-6)
    assert float(metrics["perplexity"]) == pytest.approx(10 - 10 * diversity, rel=1e-6)
    hard = np.zeros((2, 5))
    for g in range(2):
        np.add.at(hard[g], codes[masked][:, g], 1)
    assert np.array_equal(sums.hard, hard)


@pytest.mark.slow
def test_straight_through():
    """Forward the choice, to the last bit; backward the gradient of the softmax."""
    head, encoded = start("contrastive")[1].head, random_encoded(2)
    gumbel = quantizer.gumbel_noise(keys_of(2), 9, 2, 5)

    def vectors(features, tau):
        return quantizer.quantize(head.quantizer, features, 2, gumbel, tau).vectors

    quantized = quantizer.quantize(head.quantizer, encoded.features, 2, gumbel, 0.5)
    books = np.asarray(head.quantizer.codevectors).reshape(2, 5, 6)
    chosen = np.asarray(quantized.hard).argmax(-1)
    for g in range(2):
        assert np.array_equal(quantized.vectors[..., 6 * g : 6 * g + 6], books[g][chosen[..., g]])
    assert np.array_equal(quantized.code, chosen[..., 0] + 5 * chosen[..., 1])

    def relaxed(features):
        logits = head.quantizer.weight_proj(features).reshape(2, 9, 2, 5)
        soft = jax.nn.softmax((logits + gumbel) / 0.5)
        return jnp.einsum("btgv,gvd->btgd", soft, books).reshape(2, 9, 12)

    weight = np.random.default_rng(3).standard_normal((2, 9, 12)).astype(np.float32)
    ours = jax.grad(lambda x: jnp.sum(weight * vectors(x, 0.5)))(encoded.features)
    assert_close(ours, jax.grad(lambda x: jnp.sum(weight * relaxed(x)))(encoded.features))
    assert np.abs(ours).max() > 0.1


def test_gumbel_noise_and_temperature():
    draws = np.asarray(quantizer.gumbel_noise(keys_of(4), 500, 2, 20)).ravel()
    assert abs(draws.mean() - np.euler_gamma) < 4.5 * draws.std() / np.sqrt(draws.size)
    assert draws.var() == pytest.approx(np.pi**2 / 6, rel=0.05)
    assert float(quantizer.temperature(0)) == 2.0
    assert float(quantizer.temperature(1000)) == pytest.approx(2 * 0.999995**1000, rel=1e-6)
    assert float(quantizer.temperature(10**6)) == 0.5


def test_perplexity_of_unused_codewords():
    usage = jnp.array([[8.0, 0, 0, 0], [2.0, 2, 2, 2]])
    value, gradient = jax.value_and_grad(quantizer.perplexity)(usage, jnp.int32(8))
    assert float(value) == pytest.approx(1 + 4, rel=1e-6)
    assert np.isfinite(gradient).all()
    assert float(quantizer.perplexity(0 * usage, jnp.int32(0))) == 2
