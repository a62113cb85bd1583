"""`Moments` against float64 sums, over every way of cutting the stream."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax._jax_compat import x64
from speechsim_jax.statistics import moments, moments_accumulator
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments
from tests.support.rows import SHAPES, assert_matches, draw

_update, _reference_mean = map(jax.jit, (moments.update, moments.reference_mean))


def stream(
    data: list[np.ndarray], cuts: list[int], size: int, dtype: str = "float32"
) -> FinishedMoments:
    """Feed the data in pieces that end at `cuts` through buffers of `size` rows."""
    shapes = tuple(ModelShape(len(x), x.shape[2]) for x in data)
    statistic = MomentsAccumulator(shapes, size, dtype, rows_dtype=dtype)
    edges = [0, *sorted(cuts), data[0].shape[1]]
    for start, stop in itertools.pairwise(edges):
        with x64(dtype == "float64"):
            piece = tuple(jnp.asarray(x[:, None, start:stop], dtype) for x in data)
        statistic.append(piece, np.arange(stop - start))
    return statistic.result().finish()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-13)])
def test_equals_the_whole_array(dtype, rtol):
    data = draw(300)
    assert_matches(stream(data, [40, 41, 170], 64, dtype), data, rtol)


@pytest.mark.slow
@given(st.data(), st.sampled_from([1, 33, 200, 250]), st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_any_cut_order_batch_and_buffer_give_the_same(data, size, seed):
    """Rows in any order, in batches of any shape, cut anywhere, through buffers of any size."""
    whole = draw(200, seed)
    batch = data.draw(st.sampled_from([(1, 200), (5, 40)]))
    order = np.random.default_rng(data.draw(st.integers(0, 2**32))).permutation(200)
    cuts = data.draw(st.lists(st.integers(0, 200), max_size=6))
    statistic = MomentsAccumulator(SHAPES, size)
    hidden = tuple(jnp.asarray(x.reshape(len(x), *batch, x.shape[2]), jnp.float32) for x in whole)
    for start, stop in itertools.pairwise([0, *sorted(cuts), 200]):
        statistic.append(hidden, order[start:stop])
    assert_matches(statistic.result().finish(), whole, 2e-6)


def test_rows_past_valid_are_ignored_whatever_they_hold():
    data = draw(50)
    padded = [np.concatenate([x, np.full_like(x[:, :7], np.nan)], 1) for x in data]
    blocks = tuple(jnp.asarray(x, jnp.float32) for x in padded)
    reference = moments.reference_mean(blocks, jnp.int32(50))
    state = moments.update(
        moments.with_reference(moments.zero(SHAPES), reference), blocks, jnp.int32(50)
    )
    assert_matches(FinishedMoments(state), data, 1e-6)


@pytest.mark.parametrize("rows", [20, 127, 128, 129, 300, 511, 512])
def test_a_buffer_that_is_full_in_part(rows):
    """Of any number of its quarters; nothing that lies behind the valid rows is in the sums."""
    data = draw(rows)
    full = [
        np.concatenate([x, np.full_like(x[:, :1], np.nan).repeat(512 - rows, 1)], 1) for x in data
    ]
    blocks = tuple(jnp.asarray(x, jnp.float32) for x in full)
    reference = _reference_mean(blocks, jnp.int32(rows))
    state = moments.with_reference(moments.zero(SHAPES), reference)
    assert_matches(FinishedMoments(_update(state, blocks, jnp.int32(rows))), data, 1e-6)


@pytest.mark.parametrize(("rows", "divided"), [(512, True), (510, False), (64, False)])
def test_only_quarters_that_hold_rows_are_multiplied(rows, divided):
    """On a CPU; an accelerator would wait for the host to choose."""

    blocks = tuple(jnp.zeros((s.layers, rows, s.neurons)) for s in SHAPES)
    numbers, structure = jax.tree.flatten((moments.zero(SHAPES), blocks, jnp.int32(5)))

    def update(*numbers):
        return jax.tree.leaves(moments.update(*jax.tree.unflatten(structure, numbers)))

    def products(platform):
        traced = jax.jit(update).trace(*numbers)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")

    assert products("cuda") == products("tpu")
    assert (products("cpu") > products("cuda")) == divided


def test_buffers_that_lie_one_after_the_other():
    data, valid = draw(60), np.array([20, 3, 0], np.int32)
    inside = (np.arange(20) < valid[:, None]).reshape(-1)
    holed = [np.where(inside[:, None], x, np.nan) for x in data]
    blocks = tuple(jnp.asarray(x, jnp.float32) for x in holed)
    reference = moments.reference_mean(blocks, jnp.asarray(valid))
    state = moments.with_reference(moments.zero(SHAPES), reference)
    state = moments.update(state, blocks, jnp.asarray(valid))
    assert_matches(FinishedMoments(state), [x[:, inside] for x in data], 1e-6)


def test_only_the_layer_pairs_asked_for():
    data = tuple(jnp.asarray(x[:, None], jnp.float32) for x in draw(50))
    own = tuple(tile for tile in moments.all_tiles(SHAPES) if tile.a == tile.b)
    every, some = MomentsAccumulator(SHAPES, 64), MomentsAccumulator(SHAPES, 64, tiles=own)
    for statistic in (every, some):
        statistic.append(data, np.arange(50))
    every, some = every.result().finish(), some.result().finish()
    for a, b in itertools.combinations_with_replacement(range(5), 2):
        pair = some.representations[a], some.representations[b]
        if (a < 2) == (b < 2):
            expected = every.scatter(every.representations[a], every.representations[b])
            np.testing.assert_array_equal(some.scatter(*pair), expected)
        else:
            with pytest.raises(KeyError):
                some.scatter(*pair)


def random_state(seed: int, rows: int = 40) -> moments.Moments:
    """A state of at most 40 rows, all with one reference shift."""
    blocks, first = (
        tuple(jnp.asarray(x, jnp.float32) for x in draw(40, k, 0.3)) for k in (seed, 0)
    )
    reference = _reference_mean(first, jnp.int32(9))
    return _update(moments.with_reference(moments.zero(SHAPES), reference), blocks, jnp.int32(rows))


@given(st.integers(0, 2**60), st.integers(0, 40))
@settings(deadline=None, max_examples=50)
def test_counts_past_two_to_the_31(count, rows):
    state = dataclasses.replace(random_state(1, rows=0), count=moments.as_count(count))
    assert moments.count_of(state) == count
    blocks = tuple(jnp.asarray(x, jnp.float32) for x in draw(40))
    assert moments.count_of(_update(state, blocks, jnp.int32(rows))) == count + rows


def test_two_sum_is_exact_when_compiled():
    rng = np.random.default_rng(0)
    a = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-6, 7, 10_000)).astype(np.float32)
    b = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-6, 7, 10_000)).astype(np.float32)
    high, lost = (np.asarray(v, np.float64) for v in jax.jit(moments.two_sum)(a, b))
    exact = a.astype(np.float64) + b.astype(np.float64)
    assert np.abs(lost).max() > 0
    np.testing.assert_array_equal(high + lost, exact)


def test_float32_sums_keep_their_digits_over_many_updates():
    """3000 updates at mean/std = 30: lost digits and reference shift both matter (plain: 1e-4)."""
    rng = np.random.default_rng(0)
    size, width, updates = 64, 6, 3000
    base = rng.standard_normal((1, size, width)) @ rng.standard_normal((width, width)) + 30
    block = base.astype(np.float32)
    reference = moments.reference_mean((jnp.asarray(block[:, :5]),), jnp.int32(5))
    state = moments.with_reference(moments.zero((ModelShape(1, width),)), reference)
    update = jax.jit(moments.update, donate_argnums=0)
    for _ in range(updates):
        state = update(state, (jnp.asarray(block),), jnp.int32(size))
    x = block[0].astype(np.float64)
    centred = x - x.mean(0)
    finished = FinishedMoments(state)
    (representation,) = finished.representations
    error = finished.scatter(representation, representation) / updates - centred.T @ centred
    assert np.linalg.norm(error) / np.linalg.norm(centred.T @ centred) < 3e-7


def test_a_constant_neuron_is_dead_and_nothing_else_is():
    for dtype in ("float32", "float64"):
        data = draw(400)
        data[0][0, :, 2] = 0.1
        data[1][1, :, 0] = -1234.567
        finished = stream(data, [11], 32, dtype)
        dead = [
            np.flatnonzero(~representation.live).tolist()
            for representation in finished.representations
        ]
        assert dead == [[2], [], [], [0], []]
        assert finished.representations[0].whitening.rank == 4
        assert finished.representations[0].std[2] == 0


def test_update_compiles_once():
    statistic = MomentsAccumulator(SHAPES, 16)
    before = moments_accumulator._update._cache_size()
    for length in (5, 40, 3, 3, 60):
        piece = tuple(jnp.asarray(x[:, None], jnp.float32) for x in draw(length))
        statistic.append(piece, np.arange(length))
    assert statistic.rows == 111
    statistic.result().finish()
    assert moments_accumulator._update._cache_size() == before + 1


def test_tiles_hold_every_pair_once():
    tiles = moments.all_tiles(SHAPES)
    pairs = [(t.a, l, t.b, m) for t in tiles for l, m in t.pairs]
    assert len(pairs) == len(set(pairs)) == 5 * 6 // 2
    assert all((a, l) <= (b, m) for a, l, b, m in pairs)
