"""Decompositions on the host, in several threads: whitening and singular values."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import scipy.linalg
import threadpoolctl
from jaxtyping import Float

Matrix = Float[np.ndarray, "x y"]
Vector = Float[np.ndarray, " x"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in order, with one thread per core and a single-threaded BLAS.

    The decompositions of one matrix hardly gain from a second core, and a threaded BLAS is an order
    of magnitude slower when another thread occupies that core.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        concurrent.futures.ThreadPoolExecutor(cores) as pool,
    ):
        yield from pool.map(function, items)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A representation's z-scored live neurons in the axes of their correlations R = V values V'.

    Attributes:
      vectors: V, without the directions below the rank tolerance.
      values: eigenvalues, descending; those at most tau times the largest are left out, so that
        W = V / sqrt(values) is finite.
    """

    vectors: Float[np.ndarray, "live rank"]
    values: Float[np.ndarray, " rank"]

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.values)

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; NaN when no neuron is alive."""
        return float(self.values[0] / self.values[-1]) if self.rank else float("nan")

    @functools.cached_property
    def matrix(self) -> Float[np.ndarray, "live rank"]:
        """W with W' R W = 1."""
        return self.vectors / np.sqrt(self.values)

    @functools.cached_property
    def loadings(self) -> Float[np.ndarray, "live rank"]:
        """R W, the correlations of neurons with directions."""
        return self.vectors * np.sqrt(self.values)

    @functools.cached_property
    def _leading(self) -> dict[int, "Whitening"]:
        return {}

    def first(self, k: int) -> "Whitening":
        """The k directions of the largest eigenvalues."""
        if k not in self._leading:
            self._leading[k] = Whitening(self.vectors[:, :k], self.values[:k])
        return self._leading[k]


def whiten(correlation: Float[np.ndarray, "live live"], tolerance: float) -> Whitening:
    """The whitening of a representation.

    Args:
      correlation: of its live neurons.
      tolerance: tau, relative to the largest eigenvalue.
    """
    if not len(correlation):
        return Whitening(np.zeros((0, 0)), np.zeros(0))
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int(np.sum(values > tolerance * values[0]))
    return Whitening(np.ascontiguousarray(vectors[:, :rank]), values[:rank])


def svd(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, s, V' by divide and conquer, or by QR steps if that does not converge.

    It does not for some matrices within 1e-11 of the identity, as two equal representations give;
    QR steps are several times slower.
    """
    try:
        return np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")


def singular_values(matrix: Matrix) -> np.ndarray:
    """The singular values alone, with the same fallback as `svd`."""
    try:
        return np.linalg.svd(matrix, compute_uv=False)
    except np.linalg.LinAlgError:
        return np.asarray(scipy.linalg.svd(matrix, compute_uv=False, lapack_driver="gesvd"))


# Of the largest singular value. Above it, those from eigenvalues are within 1e-10 of the largest.
_SMALL = 1e-6


def svd_by_eigenvectors(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, s, V' from the eigenvectors of M M' (or M'M, if smaller), in half the time of `svd`.

    An eigenvalue is known to some 1e-16 of the largest, so s to that over 2 s; where that is too
    little for the smallest, or the eigenvectors do not converge, `svd` is used.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, s, left = svd_by_eigenvectors(matrix.T)
        return left.T, s, right.T
    with contextlib.suppress(np.linalg.LinAlgError):
        values, vectors = np.linalg.eigh(matrix @ matrix.T)
        if _well_known(values):
            s, left = np.sqrt(values[::-1]), vectors[:, ::-1]
            right = left.T @ matrix
            return left, s, right / np.linalg.norm(right, axis=1)[:, None]
    return svd(matrix)


def singular_values_by_eigenvalues(matrix: Matrix) -> np.ndarray:
    """The singular values alone, as of `svd_by_eigenvectors`, in two thirds of its time."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    with contextlib.suppress(np.linalg.LinAlgError):
        values = np.linalg.eigvalsh(matrix @ matrix.T)
        if _well_known(values):
            return np.sqrt(values[::-1])
    return singular_values(matrix)


def _well_known(values: Vector) -> bool:
    """Whether ascending eigenvalues give singular values that are accurate enough."""
    return len(values) > 0 and bool(values[0] > _SMALL**2 * values[-1])
