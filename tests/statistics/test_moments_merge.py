"""Merging states with different reference shifts, against one state over all the rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax._jax_compat import x64
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES, MeasureSelection
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.statistics import moments, moments_merge
from speechsim_jax.statistics.moments import ModelShape, Moments, Reference, Tile
from speechsim_jax.statistics.moments_finished import FinishedMoments
from tests.support.merging import merge_states, rebase
from tests.support.rows import SHAPES, assert_matches, draw

ROOM = 40
_update, _reference_mean = jax.jit(moments.update), jax.jit(moments.reference_mean)


def state_of(
    data: list[np.ndarray],
    reference: list[np.ndarray] | None = None,
    dtype: str = "float64",
    tiles: tuple[Tile, ...] | None = None,
) -> Moments:
    """The state of the rows [layer, row, neuron] of each model, about their mean by default."""
    shapes = tuple(ModelShape(len(x), x.shape[2]) for x in data)
    rows = data[0].shape[1]
    with x64(dtype == "float64"):
        state = moments.zero(shapes, tiles, dtype)
        if reference is not None:
            state = moments.with_reference(state, whole(reference))
        for start in range(0, rows, ROOM):
            block = [x[:, start : start + ROOM] for x in data]
            block = [np.pad(x, ((0, 0), (0, ROOM - x.shape[1]), (0, 0))) for x in block]
            block = tuple(jnp.asarray(x, dtype) for x in block)
            valid = jnp.asarray(min(ROOM, rows - start), jnp.int32)
            if reference is None and start == 0:
                state = moments.with_reference(state, _reference_mean(block, valid))
            state = _update(state, block, valid)
        return state


def whole(reference: list[np.ndarray]) -> Reference:
    """A reference shift without rounding: nothing is lost behind it."""
    return tuple(np.stack([p, np.zeros_like(p)]) for p in reference)


def whole_numbers(rng: np.random.Generator, rows: int, size: int) -> list[np.ndarray]:
    """Rows of integers, as floats: sums of these are exact in float64."""
    return [rng.integers(-size, size, (s.layers, rows, s.neurons)).astype(float) for s in SHAPES]


def whole_reference(rng: np.random.Generator, size: int = 300) -> list[np.ndarray]:
    """A reference shift of integers, far from the mean of the rows."""
    return [x[:, 0] for x in whole_numbers(rng, 1, size)]


def assert_equal(a: Moments, b: Moments) -> None:
    """The same numbers, digit by digit, but for energies that b does not have."""
    assert moments.count_of(a) == moments.count_of(b)
    for x, y in zip(a.reference, b.reference):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a.sums), jax.tree.leaves(b.sums)):
        np.testing.assert_array_equal(x, y)


@given(st.integers(0, 2**32), st.integers(1, ROOM))
@settings(deadline=None, max_examples=40)
def test_rebasing_is_exact_on_whole_numbers(seed, rows):
    """Every formula, with no room for rounding: reference shifts 30 times as far as the rows."""
    rng = np.random.default_rng(seed)
    data = whole_numbers(rng, rows, 10)
    old, new = whole_reference(rng), whole_reference(rng)
    moved = rebase(state_of(data, old), whole(new))
    assert_equal(moved, moments_merge.on_host(state_of(data, new)))


@given(st.data(), st.integers(0, 2**32), st.integers(1, 5))
@settings(deadline=None, max_examples=15)
def test_merging_in_any_tree_is_exact_on_whole_numbers(data, seed, parts):
    """States of 0 or more rows, each about its own reference shift, merged in any order."""
    rng = np.random.default_rng(seed)
    pieces = [whole_numbers(rng, data.draw(st.integers(0, ROOM)), 10) for _ in range(parts)]
    states = [state_of(piece, whole_reference(rng)) for piece in pieces]
    while len(states) > 1:
        i, j = data.draw(st.permutations(range(len(states))))[:2]
        joined = merge_states([states[i], states[j]])
        states = [state for k, state in enumerate(states) if k not in (i, j)] + [joined]
    target = whole_reference(rng)
    union = [np.concatenate(parts, axis=1) for parts in zip(*pieces)]
    assert_equal(rebase(states[0], whole(target)), moments_merge.on_host(state_of(union, target)))


@given(st.integers(0, 2**32), st.lists(st.integers(1, 90), min_size=2, max_size=4))
@settings(deadline=None, max_examples=15)
def test_merged_states_match_the_whole_array(seed, lengths):
    """Rows whose mean drifts from job to job; 1e-12 of what the same rows give in one state."""
    rng = np.random.default_rng(seed)
    drift = [rng.standard_normal((s.layers, 1, s.neurons)) for s in SHAPES]
    pieces = [
        [x + 2 * k * d for x, d in zip(draw(length, seed % 1000 + k), drift)]
        for k, length in enumerate(lengths)
    ]
    union = [np.concatenate(parts, axis=1) for parts in zip(*pieces)]
    if union[0].shape[1] > 1:
        merged = merge_states([state_of(piece) for piece in pieces])
        assert_matches(FinishedMoments(merged), union, 1e-12)


def test_float32_states_merge_without_losing_digits():
    """The merged state still counts as float32: its rank tolerance and dead neurons say so."""
    pieces = [draw(200, 1, 0.3), draw(150, 2, 0.3), draw(70, 3, 0.3)]
    for piece in pieces:
        piece[0][1, :, 2] = -7.1
    union = [np.concatenate(parts, axis=1) for parts in zip(*pieces)]
    finished = FinishedMoments(merge_states([state_of(p, dtype="float32") for p in pieces]))
    assert_matches_but_for_dead(finished, union, 1e-6)
    assert finished.dtype == "float32"
    assert finished.rank_tolerance == 1e-6
    assert np.flatnonzero(~finished.representations[1].live).tolist() == [2]


def assert_matches_but_for_dead(finished: FinishedMoments, data, rtol: float) -> None:
    """Correlations and means equal numpy's, where there is variance."""
    arrays = [layer for stream in data for layer in stream]
    for x, own in zip(arrays, finished.representations):
        np.testing.assert_allclose(own.mean, x.mean(0), rtol=1e-6, atol=1e-6)
        for y, other in zip(arrays, finished.representations):
            z = [(a - a.mean(0))[:, n.live] / a.std(0)[n.live] for a, n in ((x, own), (y, other))]
            expected = z[0].T @ z[1] / len(x)
            actual = finished.correlate(finished.scatter(own, other), own, other)
            np.testing.assert_array_less(
                np.abs(actual[np.ix_(own.live, other.live)] - expected), rtol
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_do_not_know_that_the_jobs_were_two(dtype):
    pieces = [draw(120, 1), draw(95, 2)]
    union = [np.concatenate(parts, axis=1) for parts in zip(*pieces)]
    measures = [m for m in MEASURES.values() if m.statistic == "moments"]
    merged = merge_states([state_of(piece, dtype=dtype) for piece in pieces])
    scores, expected = (
        score_all(
            {"moments": FinishedMoments(state, 1e-6)}, MeasureSelection(tuple(measures))
        ).matrices
        for state in (merged, state_of(union))
    )
    for name, matrix in expected.items():
        bar = 1e-10 if dtype == "float64" else 1e-6
        assert np.abs(scores[name] - matrix).max() <= bar, name


def test_a_state_of_no_rows_is_the_identity():
    rng = np.random.default_rng(0)
    state = state_of(whole_numbers(rng, 30, 10), whole_reference(rng))
    with x64(True):
        empty = moments.zero(SHAPES, dtype="float64")
        elsewhere = moments.with_reference(empty, state_of(whole_numbers(rng, 1, 10)).reference)
    for states in ([empty, state], [state, empty], [elsewhere, state, empty], [state]):
        assert_equal(merge_states(states), moments_merge.on_host(state))
    assert moments.count_of(merge_states([empty, elsewhere])) == 0


def test_counts_add_up_past_two_to_the_31():
    rng = np.random.default_rng(0)
    state = state_of(whole_numbers(rng, 3, 10))
    state = dataclasses.replace(state, count=moments.as_count(2**31 - 1))
    assert moments.count_of(merge_states([state] * 5)) == 5 * (2**31 - 1)


def test_pairs_in_no_tile_have_no_energies():
    """What the tiles hold moves; of the rest nothing is invented."""
    rng = np.random.default_rng(0)
    tiles = (Tile(0, 0, ((0, 0), (1, 1))), Tile(0, 1, ((0, 2),)), Tile(1, 1, ((2, 2),)))
    pieces = [whole_numbers(rng, 20, 10) for _ in range(2)]
    union = [np.concatenate(parts, axis=1) for parts in zip(*pieces)]
    references = [whole_reference(rng) for _ in range(2)]
    merged = merge_states([state_of(x, p, tiles=tiles) for x, p in zip(pieces, references)])
    expected = moments_merge.on_host(state_of(union, references[0], tiles=tiles))
    for x, y in zip(merged.sums.cross, expected.sums.cross):
        np.testing.assert_array_equal(x, y)
    held = np.zeros((5, 5), bool)
    held[[0, 1, 0, 4, 4], [0, 1, 4, 0, 4]] = True
    actual, whole = merged.sums.energy_cross[0], expected.sums.energy_cross[0]
    np.testing.assert_array_equal(np.isfinite(actual), held)
    np.testing.assert_array_equal(actual[held], whole[held])
    np.testing.assert_array_equal(
        merged.sums.energy_first[1][0, 0, 2], expected.sums.energy_first[1][0, 0, 2]
    )
    assert np.isnan(merged.sums.energy_first[1][0, 1]).all()


def test_only_like_states_merge():
    rng = np.random.default_rng(0)
    data = whole_numbers(rng, 5, 10)
    state = state_of(data)
    with pytest.raises(UserError, match="states 1 and 3 differ in their models"):
        merge_states([state, state, state_of(data[:1])])
    with pytest.raises(UserError, match="states 1 and 2 differ in their layer pairs"):
        merge_states([state, state_of(data, tiles=(Tile(0, 0, ((0, 0),)),))])
    with pytest.raises(UserError, match=r"differ in their precision \(float64 and float32\)"):
        merge_states([state, state_of(data, dtype="float32")])
