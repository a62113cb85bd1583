"""Masks and dropout: spans of valid frames, independent of the rest of the batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.training.objectives import masking
from speechsim_jax.training.objectives.masking import Spans, span_mask
from speechsim_jax.training.random_keys import Dropout, DropoutRates
from tests.support.objectives import keys_of


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 25, 60, 400])
@pytest.mark.parametrize("spans", [Spans(0.65, 10, 2), Spans(0.8, 10, 0), Spans(0.05, 4, 1)])
def test_number_of_spans(n, spans):
    """As `_compute_mask_indices` of transformers counts them for an utterance alone."""
    for u in (0.0, 0.25, 0.5, 0.999):
        expected = max(int(spans.probability * n / spans.length + u), spans.minimum)
        if expected * spans.length > n:
            expected = n // spans.length
        expected = max(min(expected, n - (spans.length - 1)), 0)
        assert int(masking.span_count(spans, jnp.int32(n), jnp.float32(u))) == expected


@pytest.mark.slow
def test_masks_are_spans_of_valid_frames_drawn_uniformly():
    """Frame t, which w_t of m starts cover, is masked but for C(m - w_t, k) / C(m, k) of draws."""
    spans, n, width, draws = Spans(0.4, 5, 2), 43, 50, 4000
    keys = jax.random.split(jax.random.key(1), draws)
    masks = np.asarray(span_mask(keys, jnp.full(draws, n), width, spans))
    assert masks.shape == (draws, width) and not masks[:, n:].any()
    m, share = n - spans.length + 1, spans.probability * n / spans.length
    few = math.floor(share)
    covering = np.array([min(t, m - 1) - max(0, t - spans.length + 1) + 1 for t in range(n)])
    missed = {k: [math.comb(m - w, k) / math.comb(m, k) for w in covering] for k in (few, few + 1)}
    weight = share - few
    expected = 1 - (1 - weight) * np.array(missed[few]) - weight * np.array(missed[few + 1])
    z = (masks[:, :n].mean(0) - expected) / np.sqrt(expected * (1 - expected) / draws)
    assert np.abs(z).max() < 4.5
    # every run of masked frames is at least a span
    edges = np.diff(np.pad(masks.astype(int), ((0, 0), (1, 1))))
    begins, ends = np.nonzero(edges == 1)[1], np.nonzero(edges == -1)[1]
    assert (ends - begins).min() == spans.length


@pytest.mark.slow
def test_masks_do_not_depend_on_padding_or_other_utterances():
    keys, sizes = keys_of(3), jnp.array([30, 12, 7])
    together = span_mask(keys, sizes, 64, Spans(0.5, 4))
    for row in range(3):
        alone = span_mask(keys[row : row + 1], sizes[row : row + 1], 30, Spans(0.5, 4))
        assert np.array_equal(together[row, :30], alone[0])
    assert not np.array_equal(together[0], span_mask(keys_of(3, 1), sizes, 64, Spans(0.5, 4))[0])


def test_spans_out_of_range():
    for wrong in (dict(length=0), dict(probability=1.5), dict(probability=-0.1), dict(minimum=-1)):
        with pytest.raises(UserError, match="expected a length of 1 or more"):
            Spans(**wrong)


def test_nothing_to_mask():
    masks = span_mask(keys_of(3), jnp.array([0, 9, 10]), 12, Spans(0.65, 10, 2))
    assert np.asarray(masks).sum(1).tolist() == [0, 0, 10]


@pytest.mark.slow
def test_dropout():
    keys, x = keys_of(4), jnp.ones((4, 50, 30))
    dropout = Dropout(DropoutRates(hidden_dropout=0.25, layerdrop=0.5), keys)
    dropped = np.asarray(dropout("attended", x))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((dropped > 0).mean() - 0.75) < 4.5 * np.sqrt(0.25 * 0.75 / dropped.size)
    assert dropout("activation", x) is x
    for other in (dropout("fed", x), dropout.in_layer(1)("attended", x)):
        assert 0.3 < (np.asarray(other) != dropped).mean() < 0.45  # 2 * 0.25 * 0.75
    assert np.array_equal(dropout("attended", x[:, :20]), dropped[:, :20])
    alone = Dropout(dropout.rates, keys[2:3])("attended", x[2:3])
    assert np.array_equal(alone[0], dropped[2])
    skipped = np.asarray(
        Dropout(dropout.rates, keys_of(400)).layer_drop(
            jnp.zeros((400, 2, 3)), jnp.ones((400, 2, 3))
        )
    )
    assert (skipped == skipped[:, :1, :1]).all() and 150 < skipped[:, 0, 0].sum() < 250
