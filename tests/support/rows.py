"""Drawn rows of a few small models, and what statistics of them must be."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from speechsim_jax._jax_compat import x64
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments

SHAPES = (ModelShape(2, 5), ModelShape(3, 4))


def draw(rows: int, seed: int = 0, mean: float = 3.0) -> list[np.ndarray]:
    """Correlated rows with means, one [layer, row, neuron] a stream, float64."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((rows, 3))
    return [
        rng.standard_normal((s.layers, rows, s.neurons))
        + shared @ rng.standard_normal((s.layers, 3, s.neurons))
        + mean * rng.standard_normal((s.layers, 1, s.neurons))
        for s in SHAPES
    ]


def representations(data: list[np.ndarray]) -> list[np.ndarray]:
    """The rows of each representation, in order."""
    return [layer for stream in data for layer in stream]


def moments_of(
    arrays: Sequence[np.ndarray], rank_tolerance: float | None = None
) -> FinishedMoments:
    """The float64 moments of representations [row, neuron], each as a model of one layer."""
    shapes = tuple(ModelShape(1, x.shape[1]) for x in arrays)
    accumulator = MomentsAccumulator(shapes, 4096, "float64", rows_dtype="float64")
    for start in range(0, len(arrays[0]), 4096):
        parts = [x[start : start + 4096] for x in arrays]
        with x64(True):
            hidden = tuple(jnp.asarray(part[None, None]) for part in parts)
            accumulator.append(hidden, np.arange(len(parts[0])))
    return accumulator.result().finish((), rank_tolerance)


def assert_matches(finished: FinishedMoments, data: list[np.ndarray], rtol: float) -> None:
    """Means, scatters and energies equal those of the whole arrays, relative to their sizes."""
    arrays = representations(data)
    assert finished.rows == len(arrays[0])
    shapes = (np.asarray(p, np.float64).sum(axis=0) for p in finished.states[0].small.reference)
    references = [layer for stream in shapes for layer in stream]
    for i, x in enumerate(arrays):
        own = finished.representations[i]
        np.testing.assert_allclose(own.mean, x.mean(0), rtol=rtol, atol=rtol * x.std())
        for j, y in enumerate(arrays):
            expected = (x - x.mean(0)).T @ (y - y.mean(0))
            scale = np.sqrt(np.outer(x.var(0), y.var(0))) * len(x)
            np.testing.assert_array_less(
                np.abs(finished.scatter(own, finished.representations[j]) - expected) / scale,
                rtol,
                err_msg=f"{i} {j}",
            )
            shifted = [x - references[i], y - references[j]]
            norms = [np.sum(a**2, 1) for a in shifted]
            energies = finished.energies(own, finished.representations[j])
            np.testing.assert_allclose(energies.energy_x, norms[0].sum(), rtol=rtol)
            np.testing.assert_allclose(energies.energy_y, norms[1].sum(), rtol=rtol)
            np.testing.assert_allclose(energies.cross, norms[0] @ norms[1], rtol=rtol)
            for value, weight, summed in (
                (energies.x_energy_y, norms[0], shifted[1]),
                (energies.y_energy_x, norms[1], shifted[0]),
            ):
                bound = np.abs(summed).T @ weight
                np.testing.assert_array_less(np.abs(value - weight @ summed) / bound, rtol)
