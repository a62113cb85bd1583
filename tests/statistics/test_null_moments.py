"""Moments of paired rows, against the same rows paired in memory."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import BatchRows, EncodedBatch, all_layers
from speechsim_jax.statistics.moments import ModelShape, all_tiles
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.null_moments import (
    NullMoments,
    SwappedMomentsAccumulator,
    paired_layers,
    paired_shapes,
    paired_tiles,
)
from speechsim_jax.statistics.null_rows import swap_partners, swap_ring
from speechsim_jax.statistics.swapped_moments import SwapPlan

SHAPES = (ModelShape(2, 3), ModelShape(1, 4))
RNG = np.random.default_rng(0)
NAMES = [f"u{k}" for k in range(9)]
LENGTHS = {name: int(RNG.integers(10, 700)) for name in NAMES}
ROWS = {
    name: [RNG.standard_normal((s.layers, length, s.neurons)).astype(np.float32) for s in SHAPES]
    for name, length in LENGTHS.items()
}
SPEAKERS = {name: f"s{k % 4}" for k, name in enumerate(NAMES)}
PARTNERS = tuple(swap_partners(swap_ring(SPEAKERS, 0), SPEAKERS, draw) for draw in range(2))


def accumulator(plan: SwapPlan, draws: int = 2) -> SwappedMomentsAccumulator:
    def one() -> MomentsAccumulator:
        return MomentsAccumulator(
            paired_shapes(SHAPES),
            64,
            tiles=paired_tiles(all_tiles(SHAPES), len(SHAPES), "xy"),
            layers=paired_layers(all_layers(SHAPES)),
        )

    return SwappedMomentsAccumulator([one() for _ in range(draws)], plan)


def plan_of(pieces: int = 1) -> SwapPlan:
    return SwapPlan("corpus", PARTNERS, {name: pieces for name in NAMES})


def add(to: SwappedMomentsAccumulator, names: Sequence[str], piece: str = "") -> None:
    """Each utterance in a batch of its own."""
    for name in names:
        rows = np.arange(LENGTHS[name])
        hidden = tuple(jnp.asarray(x[:, None]) for x in ROWS[name])
        where = BatchRows(rows, np.zeros_like(rows), rows, (name + piece,), (name,))
        to.update(EncodedBatch(hidden, where))


def stored(state: NullMoments, folder) -> NullMoments:
    folder.mkdir()
    state.save(folder)
    return NullMoments.load(folder)


def assert_paired(state: NullMoments, copies: int = 1) -> None:
    """Every pair is in the moments, as often as this."""
    for partners, draw in zip(PARTNERS, state.finish().draws, strict=True):
        x, y = [], []
        for one, other in partners.items():
            common = min(LENGTHS[one], LENGTHS[other])
            for name, side in ((one, x), (other, y)):
                side.append([layer[:common] for model in ROWS[name] for layer in model])
        rows_x, rows_y = ([np.concatenate(parts) for parts in zip(*side)] for side in (x, y))
        assert draw.moments.rows == copies * len(rows_x[0])
        for i, of_x in enumerate(rows_x):
            np.testing.assert_allclose(draw.x[i].mean, of_x.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(draw.y[i].std, rows_y[i].std(0), rtol=1e-5)
            for j, of_y in list(enumerate(rows_y))[i:]:
                expected = copies * (of_x - of_x.mean(0)).T @ (of_y - of_y.mean(0))
                found = draw.moments.scatter(draw.x[i], draw.y[j])
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
def test_utterances_wait_for_their_partners(order):
    found = accumulator(plan_of())
    add(found, order)
    state = found.result()
    assert_paired(state)
    assert not state.waiting.rows and not state.waiting.pairs


def test_pieces_are_paired_in_order():
    """A piece that the headers do not promise has no partner, and does not wait for one."""
    found = accumulator(plan_of(pieces=2))
    for piece in ("#0", "#1", "#2"):
        add(found, NAMES, piece)
    state = found.result()
    assert_paired(state, copies=2)
    assert not state.waiting.rows


def test_what_waits_survives_a_snapshot():
    first, second = accumulator(plan_of()), accumulator(plan_of())
    add(first, NAMES[:4])
    second.restore(first.snapshot())
    add(second, NAMES[4:])
    assert_paired(second.result())


@pytest.mark.slow
def test_shards_pair_what_waits(tmp_path):
    """Also if they are merged one after the other; rows of another corpus are not paired."""
    states = []
    for k, names in enumerate((NAMES[:3], NAMES[3:5], NAMES[5:])):
        part = accumulator(plan_of())
        add(part, names)
        states.append(stored(part.result(), tmp_path / f"part{k}"))
    assert all(state.waiting.rows for state in states)
    two = stored(states[0].merge(states[1:2]), tmp_path / "two")
    three = stored(two.merge(states[2:]), tmp_path / "three")
    assert_paired(three)
    assert not three.waiting.rows
    at_once = states[2].merge([states[0], states[1]])
    assert_paired(stored(at_once, tmp_path / "at_once"))
    other = accumulator(SwapPlan("another corpus", PARTNERS, {name: 1 for name in NAMES}))
    add(other, NAMES[3:])
    apart = stored(states[0].merge([other.result()]), tmp_path / "apart")
    assert len(apart.waiting.rows) == len(states[0].waiting.rows) + len(other.result().waiting.rows)


def test_other_numbers_of_draws_do_not_merge():
    one, other = (accumulator(plan_of(), draws).result() for draws in (1, 2))
    with pytest.raises(UserError, match="null_draws"):
        one.merge([other])
