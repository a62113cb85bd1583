"""The objectives against written-out numpy, and what may not matter: padding, batches, devices.

That they are torch's, gradients included, is in test_live_training.py.
"""

import dataclasses
import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.ctc import best_path
from speechsim_jax.models.encoder import Outputs, SpeechEncoder
from speechsim_jax.training import (
    contrastive,
    ctc,
    masking,
    model,
    network,
    noise,
    predictive,
    quantizer,
)
from speechsim_jax.training.masking import Spans, span_mask
from speechsim_jax.training.model import CTC, Contrastive, Predictive
from speechsim_jax.training.network import Masks
from speechsim_jax.training.noise import Dropout, Rates

ROOT = Path(__file__).parents[1]

CONFIG = EncoderConfig(
    family="wav2vec2",
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8,) * 3,  # few, which compile soon; frames are 400 samples every 320 as ever
    conv_kernel=(10, 15, 9),
    conv_stride=(5, 8, 8),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
LARGE = dataclasses.replace(CONFIG, do_stable_layer_norm=True, feat_extract_norm="layer")
CONTRASTIVE = Contrastive(
    num_codevectors_per_group=5,
    codevector_dim=12,
    proj_codevector_dim=6,
    num_negatives=4,
    feature_penalty=10.0,
)
PREDICTIVE = Predictive(units=7, final_dim=6, pred_nomask_weight=0.5)
TOKENS = CTC(vocab_size=6, pad_token_id=2)
OBJECTIVES = {"contrastive": CONTRASTIVE, "predictive": PREDICTIVE, "ctc": TOKENS}
# One is a filler, one has one frame and so nothing to mask.
LENGTHS = np.array([320 * 25 + 80, 320 * 14 + 200, 0, 400, 320 * 20 + 80], np.int32)
FRAMES = 25


def keys_of(count: int, step: int = 0) -> noise.Keys:
    return noise.utterance_keys(0, step, np.arange(count))


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Samples, units and labels; what is past the end must not be read."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((len(LENGTHS), LENGTHS.max())).astype(np.float32)
    units = rng.integers(0, PREDICTIVE.units, (len(LENGTHS), FRAMES)).astype(np.int32)
    units[0, :3] = -1
    labels = rng.choice([0, 1, 3, 4, 5], (len(LENGTHS), 6)).astype(np.int32)
    counts = np.array([6, 4, 0, 3, 5], np.int32)  # the one of a frame is too short for three
    numbers = np.arange(len(LENGTHS), dtype=np.int32)
    return dict(
        samples=samples, lengths=LENGTHS, units=units, labels=labels, counts=counts, numbers=numbers
    )


@functools.cache
def start(name: str):
    return model.initial(CONFIG, OBJECTIVES[name], 0)


RATES = Rates(0.1, 0.1, 0.1, 0.1, 0.1, layerdrop=0.3)


def sums_of(name: str, trained, samples, lengths, units, labels, counts, numbers, rates=RATES):
    """One training step's sums of an objective, with everything that a step draws."""
    objective, (graph, _) = OBJECTIVES[name], start(name)
    width = CONFIG.frames(samples.shape[1])
    keys = noise.utterance_keys(0, 5, numbers)
    frames = CONFIG.frames(jnp.asarray(lengths))
    masks = ctc.spec_augment(keys, frames, width, 16, Spans(0.5, 3), Spans(0.2, 4))
    encoded = network.encode(graph, trained, samples, lengths, masks, Dropout(rates, keys))
    if name == "ctc":
        return ctc.sums(trained.head, objective, encoded, labels, counts)
    if name == "predictive":
        return predictive.sums(trained.head, objective, encoded, masks.frames, units[:, :width])
    negatives = contrastive.sample_negatives(keys, masks.frames, objective.num_negatives)
    gumbel = quantizer.gumbel_noise(keys, width, 2, objective.num_codevectors_per_group)
    return contrastive.sums(
        trained.head, objective, encoded, masks.frames, negatives, gumbel, jnp.float32(2.0)
    )


def loss_of(name: str, sums) -> jax.Array:
    if name == "ctc":
        return ctc.loss(sums)
    module = contrastive if name == "contrastive" else predictive
    return module.loss(sums, OBJECTIVES[name])


@functools.cache
def step_of(name: str):
    """Loss, sums and gradient of a batch, compiled."""

    def loss(trained, rows):
        sums = sums_of(name, trained, **rows)
        return loss_of(name, sums), sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def sums_alone(name: str):
    return jax.jit(lambda trained, rows: sums_of(name, trained, **rows))


encode = jax.jit(network.encode, static_argnums=0, static_argnames="feature_grad_mult")


def assert_close(a, b, relative: float = 1e-5) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = max(np.abs(y).max(initial=0), 1e-3)
        assert np.abs(x - y).max(initial=0) <= relative * scale


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 25, 60, 400])
@pytest.mark.parametrize("spans", [Spans(0.65, 10, 2), Spans(0.8, 10, 0), Spans(0.05, 4, 1)])
def test_number_of_spans(n, spans):
    """As `_compute_mask_indices` of transformers counts them for an utterance alone."""
    for u in (0.0, 0.25, 0.5, 0.999):
        expected = max(int(spans.probability * n / spans.length + u), spans.minimum)
        if expected * spans.length > n:
            expected = n // spans.length
        expected = max(min(expected, n - (spans.length - 1)), 0)
        assert int(masking.count_of(spans, jnp.int32(n), jnp.float32(u))) == expected


def test_masks_are_spans_of_valid_frames_drawn_uniformly():
    """Frame t, which w_t of m starts cover, is masked but for C(m - w_t, k) / C(m, k) of draws."""
    spans, n, width, draws = Spans(0.4, 5, 2), 43, 50, 4000
    keys = jax.random.split(jax.random.key(1), draws)
    found = np.asarray(span_mask(keys, jnp.full(draws, n), width, spans))
    assert found.shape == (draws, width) and not found[:, n:].any()
    m, share = n - spans.length + 1, spans.probability * n / spans.length
    few = math.floor(share)
    covering = np.array([min(t, m - 1) - max(0, t - spans.length + 1) + 1 for t in range(n)])
    missed = {k: [math.comb(m - w, k) / math.comb(m, k) for w in covering] for k in (few, few + 1)}
    weight = share - few
    expected = 1 - (1 - weight) * np.array(missed[few]) - weight * np.array(missed[few + 1])
    z = (found[:, :n].mean(0) - expected) / np.sqrt(expected * (1 - expected) / draws)
    assert np.abs(z).max() < 4.5
    # every run of masked frames is at least a span
    edges = np.diff(np.pad(found.astype(int), ((0, 0), (1, 1))))
    begins, ends = np.nonzero(edges == 1)[1], np.nonzero(edges == -1)[1]
    assert (ends - begins).min() == spans.length


def test_masks_do_not_depend_on_padding_or_company():
    keys, sizes = keys_of(3), jnp.array([30, 12, 7])
    together = span_mask(keys, sizes, 64, Spans(0.5, 4))
    for row in range(3):
        alone = span_mask(keys[row : row + 1], sizes[row : row + 1], 30, Spans(0.5, 4))
        assert np.array_equal(together[row, :30], alone[0])
    assert not np.array_equal(together[0], span_mask(keys_of(3, 1), sizes, 64, Spans(0.5, 4))[0])


def test_impossible_spans():
    for wrong in (dict(length=0), dict(probability=1.5), dict(probability=-0.1), dict(minimum=-1)):
        with pytest.raises(UserError, match="expected a length of 1 or more"):
            Spans(**wrong)


def test_nothing_to_mask():
    found = span_mask(keys_of(3), jnp.array([0, 9, 10]), 12, Spans(0.65, 10, 2))
    assert np.asarray(found).sum(1).tolist() == [0, 0, 10]


# --- negatives ------------------------------------------------------------------------------------


def test_negatives_are_other_masked_frames_drawn_uniformly():
    masked = np.zeros((3, 12), bool)
    masked[0, [1, 4, 5, 9]] = True
    masked[1, [3, 11]] = True
    masked[2, 6] = True  # has no other
    number = 6000
    found = np.asarray(contrastive.sample_negatives(keys_of(3), jnp.asarray(masked), number))
    assert found.shape == (3, 12, number)
    for t in (1, 4, 5, 9):
        others, counts = np.unique(found[0, t], return_counts=True)
        assert others.tolist() == sorted({1, 4, 5, 9} - {t})
        assert np.abs(counts - number / 3).max() < 4.5 * np.sqrt(number * 2 / 9)
    assert set(found[1, 3]) == {11} and set(found[1, 11]) == {3}
    padded = np.pad(masked, ((0, 0), (0, 5)))
    wider = contrastive.sample_negatives(keys_of(3), jnp.asarray(padded), number)
    assert np.array_equal(np.asarray(wider)[:2, :12][masked[:2]], found[:2][masked[:2]])


# --- wav2vec 2.0 ----------------------------------------------------------------------------------


def random_encoded(seed: int, dtype=np.float32) -> network.Encoded:
    rng = np.random.default_rng(seed)
    last = rng.standard_normal((2, 9, 16)).astype(dtype)
    features = rng.standard_normal((2, 9, 8)).astype(dtype)
    mask = np.arange(9) < np.array([9, 6])[:, None]
    return network.Encoded(*map(jnp.asarray, (last, features, features, mask)))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


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
        own, rest = c[b, t] @ q[b, t] / 0.1, [c[b, t] @ q[b, s] / 0.1 for s in others]
        loss += np.log(np.exp([own, *rest]).sum()) - own
        correct += own > max(rest, default=-np.inf)
        chance += 1 / (1 + len(rest))
    assert 0 < same < 12 * masked.sum()
    p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[masked].mean(0)
    diversity = (5 - np.exp(-(p * np.log(p)).sum(-1))).sum() / 10
    power = (convolved**2).mean(-1)[valid > 0].mean()
    frames = masked.sum()
    assert (int(sums.frames), int(sums.correct), int(sums.valid)) == (frames, correct, 15)
    expected = loss / frames + 0.1 * diversity + 10 * power
    assert float(contrastive.loss(sums, CONTRASTIVE)) == pytest.approx(expected, rel=1e-6)
    report = contrastive.report(sums)
    assert float(report["chance"]) == pytest.approx(chance / frames, rel=1e-6)
    assert float(report["perplexity"]) == pytest.approx(10 - 10 * diversity, rel=1e-6)
    hard = np.zeros((2, 5))
    for g in range(2):
        np.add.at(hard[g], codes[masked][:, g], 1)
    assert np.array_equal(sums.hard, hard)


def test_straight_through():
    """Forward the choice, to the last bit; backward the gradient of the softmax."""
    head, encoded = start("contrastive")[1].head, random_encoded(2)
    gumbel = quantizer.gumbel_noise(keys_of(2), 9, 2, 5)

    def vectors(features, tau):
        return quantizer.quantize(head.quantizer, features, 2, gumbel, tau).vectors

    found = quantizer.quantize(head.quantizer, encoded.features, 2, gumbel, 0.5)
    books = np.asarray(head.quantizer.codevectors).reshape(2, 5, 6)
    chosen = np.asarray(found.hard).argmax(-1)
    for g in range(2):
        assert np.array_equal(found.vectors[..., 6 * g : 6 * g + 6], books[g][chosen[..., g]])
    assert np.array_equal(found.code, chosen[..., 0] + 5 * chosen[..., 1])

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


# --- HuBERT ---------------------------------------------------------------------------------------


def numpy_predictive(head: dict[str, np.ndarray], last, masked, units) -> float:
    """Equations 1 and 3, frame by frame: alpha L_m / |M| + beta L_u / |rest|."""
    parts = {True: [], False: []}
    for b, t in zip(*np.nonzero(units >= 0)):
        o = unit(head["final_proj.weight"] @ last[b, t] + head["final_proj.bias"])
        similar = unit(head["label_embs_concat"]) @ o / PREDICTIVE.logit_temp
        parts[bool(masked[b, t])].append(np.log(np.exp(similar).sum()) - similar[units[b, t]])
    return np.mean(parts[True]) + PREDICTIVE.pred_nomask_weight * np.mean(parts[False])


def test_predictive_loss_and_gradient_written_out():
    """The value, and every number of the gradient by central differences in float64."""
    objective = dataclasses.replace(PREDICTIVE, feature_penalty=0.0)
    head, encoded = start("predictive")[1].head, random_encoded(4)
    rng = np.random.default_rng(5)
    masked = rng.random((2, 9)) < 0.5
    units = rng.integers(0, 7, (2, 9)).astype(np.int32)
    units[0, 8] = -1

    def loss(head, last):
        sums = predictive.sums(
            head, objective, encoded._replace(last=last), jnp.asarray(masked), jnp.asarray(units)
        )
        return predictive.loss(sums, objective)

    found, (by_head, by_last) = jax.value_and_grad(loss, (0, 1))(head, encoded.last)
    known = np.where(encoded.frame_mask, units, -1)
    values = {name: np.asarray(x, np.float64) for name, x in model.head_tensors(head).items()}
    values["last"] = np.asarray(encoded.last, np.float64)
    assert float(found) == pytest.approx(
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
    units = np.where(np.arange(9) % 3 == 0, (likeliest + 1) % 7, likeliest)
    masked = jnp.asarray(np.arange(9) < 5)[None].repeat(2, 0)
    sums = predictive.sums(head, objective, encoded, masked, jnp.asarray(units))
    report = predictive.report(sums)
    # frames 0 to 4 of both; then 5 to 8 of the first, 5 of the second
    assert float(report["masked_accuracy"]) == pytest.approx(6 / 10)
    assert float(report["unmasked_accuracy"]) == pytest.approx(4 / 5)
    assert np.array_equal(sums.masked.due, np.bincount(units[:, :5].ravel(), minlength=7))
    found = predictive.baseline(np.array([3, 1, 0]), np.array([2, 5, 0]))
    assert found.chance == pytest.approx(1 / 3) and found.unigram_accuracy == 0.25
    assert found.unigram_loss == pytest.approx(-(0.75 * np.log(0.3) + 0.25 * np.log(0.6)))


# --- CTC ------------------------------------------------------------------------------------------


def test_ctc_loss_is_the_sum_over_all_paths():
    """Every path of 5 frames and 4 tokens, spelled by our decoder's rule."""
    objective = CTC(vocab_size=4, pad_token_id=2)
    rng = np.random.default_rng(7)
    logits = rng.standard_normal((4, 5, 4)).astype(np.float32)
    frames, counts = np.array([5, 4, 3, 0]), np.array([3, 2, 2, 0], np.int32)
    labels = np.array([[0, 3, 1], [1, 1, 0], [3, 3, 0], [0, 0, 0]], np.int32)
    identity = model.CTCHead(model.Affine(jnp.eye(4), jnp.zeros(4)))
    mask = jnp.asarray(np.arange(5) < frames[:, None])
    encoded = network.Encoded(*(jnp.asarray(logits),) * 3, mask)
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


# --- whatever the objective -----------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_is_the_sum_of_its_utterances(name):
    """Alone or together, in a longer batch, beside a filler: the same draws, sums and gradient."""
    rows = batch()
    (_, together), gradient = step_of(name)(start(name)[1], rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((together, gradient)))
    alone = []
    for row, length in enumerate(LENGTHS):
        if length:
            cut = {key: value[row : row + 1] for key, value in rows.items()}
            if row == 1:
                cut["samples"] = cut["samples"][:, : length + 777]
            alone.append(sums_alone(name)(start(name)[1], cut))
    assert_close(together, jax.tree.map(lambda *parts: sum(parts), *alone))
    junk = rows["samples"] + 1e6 * (np.arange(LENGTHS.max()) >= LENGTHS[:, None])
    again = step_of(name)(start(name)[1], rows | {"samples": junk.astype(np.float32)})
    assert_close(again, ((loss_of(name, together), together), gradient), 0.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_of_fillers(name):
    rows = batch() | {"lengths": 0 * LENGTHS, "counts": 0 * LENGTHS}
    (loss, sums), gradient = step_of(name)(start(name)[1], rows)
    assert float(loss) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((sums, gradient)))


@pytest.mark.parametrize("name", ["predictive", "ctc"])  # a straight-through gradient is none
def test_the_gradient_is_the_slope(name):
    """With dropout, masks and skipped layers, a short step against it lowers the loss by that."""
    trained = start(name)[1]
    (first, _), gradient = step_of(name)(trained, batch())
    square = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
    small = 0.01 / math.sqrt(square)
    moved = jax.tree.map(lambda p, g: p - small * g, trained, gradient)
    (then, _), _ = step_of(name)(moved, batch())
    assert float(first - then) == pytest.approx(small * square, rel=0.2)


def test_on_several_devices():
    """In a process of its own: how many devices a CPU shows is fixed when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_training_losses"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{name} agrees" for name in OBJECTIVES]


def on_several_devices() -> None:
    """Loss and gradient of a batch divided over four devices: those of one device."""
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    over, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    rows = {name: np.concatenate([x, x[:3]]) for name, x in batch().items()}
    rows["numbers"] = np.arange(8, dtype=np.int32)
    for name in OBJECTIVES:
        trained = start(name)[1]

        def own(trained, rows, name=name):
            sums = sums_of(name, trained, **rows)
            return jax.tree.map(lambda part: part[None], sums)

        def loss(trained, rows, name=name, own=own):
            parts = jax.shard_map(
                own, mesh=mesh, in_specs=(whole, over), out_specs=over, check_vma=False
            )(trained, rows)
            return loss_of(name, jax.tree.map(lambda part: part.sum(0), parts))

        if name == "contrastive":  # whose loss is no mean of the devices' losses
            found = jax.jit(jax.value_and_grad(loss))(trained, rows)
            (value, _), gradient = step_of(name)(trained, rows)
            assert_close(found, (value, gradient))
        else:
            expected = loss_of(name, sums_alone(name)(trained, rows))
            assert_close(jax.jit(loss)(trained, rows), expected)
        print(name, "agrees")


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", [False, True])
def test_without_masks_and_dropout_it_is_the_encoder(stable):
    config = LARGE if stable else CONFIG
    graph, trained = model.initial(config, PREDICTIVE, 1)
    samples = batch()["samples"]
    found = encode(graph, trained, samples, LENGTHS)
    encoder = SpeechEncoder("made", config, graph, trained.encoder)
    expected = encoder.apply(samples, LENGTHS, Outputs(layers=(1,), features=True), "default")
    assert np.array_equal(found.frame_mask, expected.frame_mask)
    mask = np.asarray(found.frame_mask)
    for a, b in ((found.last, expected.hidden_states[0]), (found.features, expected.features)):
        assert np.abs(np.asarray(a)[mask] - np.asarray(b)[mask]).max() <= 1e-5


def test_masked_frames_are_not_seen():
    """Backwards under the mask (the same mean and variance), an utterance sounds the same."""
    graph, trained = model.initial(LARGE, PREDICTIVE, 1)
    masked = np.zeros((5, FRAMES), bool)
    masked[0, 5:15] = True
    samples, other = batch()["samples"], batch()["samples"].copy()
    heard_by_masked_alone = slice(320 * 5 + 80, 320 * 15)
    other[0, heard_by_masked_alone] = other[0, heard_by_masked_alone][::-1]
    shown, hidden = (
        np.abs(
            np.subtract(
                *(encode(graph, trained, x, LENGTHS, masks).last[0] for x in (samples, other))
            )
        )
        for masks in (Masks(), Masks(jnp.asarray(masked)))
    )
    assert shown.max() > 0.1 and hidden.max() <= 1e-5


def test_frozen_convolutions_and_scaled_gradients():
    graph, trained = start("predictive")

    def gradient(scale):
        def total(trained):
            encoded = encode(graph, trained, batch()["samples"], LENGTHS, feature_grad_mult=scale)
            return jnp.sum(encoded.last[..., 0])

        return jax.grad(total)(trained).encoder

    whole, tenth, none = (gradient(scale) for scale in (1, 0.1, 0))
    assert_close(
        tenth["feature_extractor"], jax.tree.map(lambda g: 0.1 * g, whole["feature_extractor"])
    )
    assert not any(np.any(g) for g in jax.tree.leaves(none["feature_extractor"]))
    for part in ("feature_projection", "encoder"):
        assert_close(tenth[part], whole[part])
        assert_close(none[part], whole[part])


def test_dropout():
    keys, x = keys_of(4), jnp.ones((4, 50, 30))
    dropout = Dropout(Rates(hidden_dropout=0.25, layerdrop=0.5), keys)
    found = np.asarray(dropout("attended", x))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((found > 0).mean() - 0.75) < 4.5 * np.sqrt(0.25 * 0.75 / found.size)
    assert dropout("activation", x) is x
    for other in (dropout("fed", x), dropout.in_layer(1)("attended", x)):
        assert 0.3 < (np.asarray(other) != found).mean() < 0.45  # 2 * 0.25 * 0.75
    assert np.array_equal(dropout("attended", x[:, :20]), found[:, :20])
    alone = Dropout(dropout.rates, keys[2:3])("attended", x[2:3])
    assert np.array_equal(alone[0], found[2])
    skipped = np.asarray(
        Dropout(dropout.rates, keys_of(400)).or_skip(jnp.zeros((400, 2, 3)), jnp.ones((400, 2, 3)))
    )
    assert (skipped == skipped[:, :1, :1]).all() and 150 < skipped[:, 0, 0].sum() < 250


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_exported_and_filled_again(name):
    objective, (_, trained) = OBJECTIVES[name], start(name)
    tensors = model.export(CONFIG, trained)
    _, again = model.fill(CONFIG, objective, tensors, "ours")
    for a, b in zip(*map(jax.tree.leaves, (trained, again)), strict=True):
        assert np.array_equal(a, b)
    heads = {name for name in tensors if not name.startswith("wav2vec2.")}
    assert heads == {
        "contrastive": {
            "quantizer.codevectors", "quantizer.weight_proj.weight", "quantizer.weight_proj.bias",
            "project_hid.weight", "project_hid.bias", "project_q.weight", "project_q.bias",
        },
        "predictive": {"final_proj.weight", "final_proj.bias", "label_embs_concat"},
        "ctc": {"lm_head.weight", "lm_head.bias"},
    }[name]  # fmt: skip
    assert "wav2vec2.masked_spec_embed" in tensors


def test_what_does_not_fit_is_said_at_once():
    tensors = model.export(CONFIG, start("ctc")[1])
    tensors["lm_head.bias"] = np.zeros(5, np.float32)
    tensors["final_proj.bias"] = np.zeros(2, np.float32)
    del tensors["wav2vec2.masked_spec_embed"]
    with pytest.raises(UserError) as error:
        model.fill(CONFIG, TOKENS, tensors, "folder")
    assert str(error.value) == (
        "folder: the head does not fit the objective; final_proj.bias [2] instead of nothing, "
        "lm_head.bias [5] instead of [6], masked_spec_embed missing instead of [16]"
    )
    with pytest.raises(UserError, match="not a multiple of num_codevector_groups 3"):
        Contrastive(num_codevector_groups=3)


def test_start_of_a_fine_tuning():
    pretrained = model.export(CONFIG, model.initial(CONFIG, CONTRASTIVE, 3)[1])
    _, trained = model.initial(CONFIG, TOKENS, 4, pretrained)
    tensors = model.export(CONFIG, trained)
    for name in pretrained.keys() & tensors.keys():
        assert np.array_equal(tensors[name], pretrained[name])
    assert sum(name.startswith("wav2vec2.") for name in tensors) == len(tensors) - 2
    other = model.export(CONFIG, model.initial(CONFIG, TOKENS, 5)[1])
    assert not np.array_equal(tensors["lm_head.weight"], other["lm_head.weight"])
    bound = 1 / 4
    hid = pretrained["project_hid.weight"], pretrained["project_hid.bias"]
    assert all(0.5 * bound < np.abs(x).max() <= bound for x in hid)


if __name__ == "__main__":
    on_several_devices()
