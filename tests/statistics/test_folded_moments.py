"""Moments of two folds with one reference shift."""

import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator


@pytest.mark.parametrize("rows_per_update", [256, 2048, 4096])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.7, 0.95])
def test_what_is_constant_in_one_fold_is_dead_there(share, rows_per_update):
    """A class that is in one fold only, and a neuron that stands still in the other."""
    rng = np.random.default_rng(0)
    rows = 20_000
    fold = np.arange(rows) // (rows // 2)
    x = np.zeros((rows, 3), np.float32)
    x[:, 0] = rng.standard_normal(rows)
    x[fold == 0, 1] = rng.random(rows // 2) < share
    x[:, 2] = np.where(fold == 0, 7 + rng.standard_normal(rows), 3.1)
    shapes = (ModelShape(1, 3),)
    one, other = (MomentsAccumulator(shapes, rows_per_update, "float32") for _ in range(2))
    for start in range(0, rows, 1000):
        batch = jnp.asarray(x[None, None, start : start + 1000])
        for number, accumulator in enumerate((one, other)):
            positions = np.flatnonzero(fold[start : start + 1000] == number)
            if len(positions):
                accumulator.append((batch,), positions)
                one.share_reference(other)
    assert one.result().finish().representations[0].live.all()
    assert other.result().finish().representations[0].live.tolist() == [True, False, False]
