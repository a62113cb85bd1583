"""Decompositions through eigenvalues, against those of the matrix itself."""

import numpy as np
import pytest

from speechsim_jax.statistics import linalg


def with_values(shape: tuple[int, int], values: np.ndarray) -> np.ndarray:
    """A matrix of these singular values and random directions."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(values))))[0] for n in shape)
    return (left * values) @ right.T


CASES = {
    "square": with_values((40, 40), np.linspace(1, 0.01, 40)),
    "wide": with_values((30, 50), np.linspace(1, 0.01, 30)),
    "tall": with_values((50, 30), np.linspace(1, 0.01, 30)),
    "equal values": with_values((40, 40), np.ones(40)),
    "identity": np.eye(40),
    "small values": with_values((40, 40), np.geomspace(1, 1e-5, 40)),
    "smaller values": with_values((40, 40), np.geomspace(1, 1e-9, 40)),
    "rank deficient": with_values((40, 40), np.linspace(1, 0, 40)),
    "zero": np.zeros((5, 4)),
    "one row": with_values((1, 7), np.array([0.3])),
}


@pytest.mark.parametrize("name", CASES)
def test_singular_values_through_eigenvalues_are_those_of_an_svd(name):
    matrix = CASES[name]
    expected = np.linalg.svd(matrix, compute_uv=False)
    left, values, right = linalg.svd_by_eigenvectors(matrix)
    np.testing.assert_allclose(values, expected, atol=1e-10)
    np.testing.assert_allclose(linalg.singular_values_by_eigenvalues(matrix), expected, atol=1e-10)
    np.testing.assert_allclose((left * values) @ right, matrix, atol=1e-10)
    for vectors in (left.T, right):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=1e-6)


@pytest.mark.parametrize("name", ["square", "tall"])
def test_eigenvectors_that_do_not_converge_are_done_without(monkeypatch, name):
    def fail(matrix):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    for function in ("eigh", "eigvalsh"):
        monkeypatch.setattr(np.linalg, function, fail)
    matrix = CASES[name]
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(linalg.svd_by_eigenvectors(matrix)[1], expected, atol=1e-12)
    np.testing.assert_allclose(linalg.singular_values_by_eigenvalues(matrix), expected, atol=1e-12)


def test_nothing_has_no_singular_values():
    for matrix in (np.zeros((0, 3)), np.zeros((3, 0))):
        assert linalg.svd_by_eigenvectors(matrix)[1].shape == (0,)
        assert linalg.singular_values_by_eigenvalues(matrix).shape == (0,)
