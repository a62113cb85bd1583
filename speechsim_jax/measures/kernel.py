"""Centred kernel alignment with a Gaussian kernel, on the frame sample."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32

from speechsim_jax.inference.influence_rows import Influence
from speechsim_jax.measures.base import Measure, SamplePair, divide
from speechsim_jax.measures.neighbours import upper
from speechsim_jax.statistics.sample import SampledRepresentation

# Squared distances below this share of the largest squared norm are 0 to rounding.
_SAME_ROW = 1e-13
# The density of distances at their median is that of those within this factor of it.
_AROUND_MEDIAN = 1.1


@dataclasses.dataclass(frozen=True)
class Gram:
    """A kernel matrix less its mean: neither estimator of HSIC depends on it, and digits are saved.

    Attributes:
      upper: entries above the diagonal, row by row.
      diagonal: every entry of the diagonal.
      sums: over each row, without the diagonal.
    """

    upper: Float[np.ndarray, " entry"]
    diagonal: float
    sums: Float[np.ndarray, " row"]


def gram(representation: SampledRepresentation) -> Gram:
    """exp(-d^2 / (2 m)) of all pairs of rows.

    m, the squared bandwidth, is the median of the n x n squared distances, diagonal included; the
    lower median where the count is even. All NaN if m is 0 (half of all pairs are of equal rows).
    """
    distances = squared_distances(representation.rows)
    return gaussian(distances, _median(upper(distances), len(distances)))


def gaussian(distances: Float[np.ndarray, "row row"], m: float) -> Gram:
    """exp(-d^2 / (2 m)) of all pairs of rows; all NaN if m is 0.

    Args:
      distances: squared, d^2; written over.
      m: squared bandwidth.
    """
    n = len(distances)
    if m <= 0:
        return Gram(np.full(n * (n - 1) // 2, np.nan), np.nan, np.full(n, np.nan))
    kernel = np.exp(np.multiply(distances, -0.5 / m, out=distances), out=distances)
    mean = kernel.mean()
    kernel -= mean
    diagonal = float(1 - mean)
    return Gram(upper(kernel), diagonal, kernel.sum(axis=1) - diagonal)


def squared_distances(x: Float[np.ndarray, "row neuron"]) -> Float[np.ndarray, "row row"]:
    """|x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 x_i.x_j of centred rows; 0 on the diagonal."""
    x = x - x.mean(axis=0)
    norms = np.sum(np.square(x), axis=1)
    distances = x @ x.T
    distances *= -2
    distances += norms[:, None]
    distances += norms
    distances[distances <= _SAME_ROW * norms.max(initial=0)] = 0
    np.fill_diagonal(distances, 0)
    return distances


def _median(above: Float[np.ndarray, " entry"], n: int) -> float:
    """The lower median of the n x n matrix: n zeros, and each entry above the diagonal twice."""
    index = ((n * n - 1) // 2 - n) // 2
    return float(np.partition(above, index)[index]) if n > 2 else 0.0


def hsic0(x: Gram, y: Gram) -> float:
    """The biased estimator tr(K H L H), H = 1 - 11'/n: <K, L> - 2 k.l / n + (1'k)(1'l) / n^2.

    k and l are the row sums, diagonal included. Source: Gretton et al. 2005 (ALT), equation 9,
    without its factor, which cancels.
    """
    n = len(x.sums)
    k, l = x.sums + x.diagonal, y.sums + y.diagonal
    inner = 2 * (x.upper @ y.upper) + n * x.diagonal * y.diagonal
    return float(inner - 2 * (k @ l) / n + k.sum() * l.sum() / n**2)


def hsic1(x: Gram, y: Gram) -> float:
    """The unbiased estimator, on Grams without their diagonals.

    [<K, L> + (1'k)(1'l) / ((n-1)(n-2)) - 2 k.l / (n-2)] / (n (n-3)). Source: Song et al. 2012
    (JMLR 13), equation 5.
    """
    n = len(x.sums)
    total = x.sums.sum() * y.sums.sum() / ((n - 1) * (n - 2))
    inner = 2 * (x.upper @ y.upper)
    return float((inner + total - 2 * (x.sums @ y.sums) / (n - 2)) / (n * (n - 3)))


def rbfcka(pair: SamplePair) -> float:
    """tr(K H L H) / sqrt(tr(K H K H) tr(L H L H)) with Gaussian kernels as wide as the data.

    K_ij = exp(-|x_i - x_j|^2 / (2 m)), m the median of the squared distances, diagonal included.
    In [0, 1], symmetric; invariant to rotation, scale and shift, so a dead neuron changes nothing.
    NaN if half of all pairs of rows are equal (m = 0), so for n < 3. Source: Kornblith et al. 2019
    (arXiv 1905.00414), section 3; the median is that of Wu et al. 2020.
    """
    x, y = pair.x.once(gram), pair.y.once(gram)
    return divide(hsic0(x, y), (pair.x.once(_hsic0_self) * pair.y.once(_hsic0_self)) ** 0.5)


def rbfcka_debiased(pair: SamplePair) -> float:
    """`rbfcka` with the unbiased estimator of HSIC.

    HSIC1(x, y) / sqrt(HSIC1(x, x) HSIC1(y, y)); near 0 for independent rows, at most 1, and
    slightly negative values are kept. Symmetric. NaN if n < 4, if half of all pairs of rows are
    equal or if a self-term is not positive. Source: Song et al. 2012 (JMLR 13), equation 5.
    """
    if pair.rows < 4:
        return float("nan")
    self_terms = pair.x.once(_hsic1_self), pair.y.once(_hsic1_self)
    if not min(self_terms) > 0:
        return float("nan")
    return hsic1(pair.x.once(gram), pair.y.once(gram)) / (self_terms[0] * self_terms[1]) ** 0.5


def _hsic0_self(representation: SampledRepresentation) -> float:
    return hsic0(representation.once(gram), representation.once(gram))


def _hsic1_self(representation: SampledRepresentation) -> float:
    return hsic1(representation.once(gram), representation.once(gram))


@dataclasses.dataclass(frozen=True)
class RowsOfKernel:
    """What the influence of rows on a score of kernels reads of one representation.

    Attributes:
      kernel: less its means of rows and columns.
      derivative: of the kernel in log m, less its means.
      bandwidth: influence of each row on log m.
      own: sum over columns of the squared kernel.
    """

    kernel: Float32[np.ndarray, "row row"]
    derivative: Float32[np.ndarray, "row row"]
    bandwidth: Float[np.ndarray, " row"]
    own: Float[np.ndarray, " row"]


def rows_of_kernel(representation: SampledRepresentation) -> RowsOfKernel:
    """The centred kernel, and how each row moves its bandwidth; NaN where the kernel is.

    A row is one of two of a distance, and so moves log m by 2 (1/2 - F) / f: F the share of its own
    distances up to m, f the density of the logarithms of all at m.
    """
    distances = squared_distances(representation.rows)
    n = len(distances)
    m = _median(upper(distances), n)
    if m <= 0:
        nan = np.full((n, n), np.nan, np.float32)
        return RowsOfKernel(nan, nan, nan[0], nan[0])
    share = np.mean(distances <= m, axis=1)
    around = (distances > m / _AROUND_MEDIAN) & (distances <= m * _AROUND_MEDIAN)
    density = np.mean(around) / (2 * np.log(_AROUND_MEDIAN))
    distances /= m
    kernel = np.exp(-distances / 2)
    derivative = _centred(kernel * distances / 2)
    kernel = _centred(kernel)
    return RowsOfKernel(
        kernel, derivative, -2 * (share - share.mean()) / density, _row_sums(kernel, kernel)
    )


def _centred(matrix: Float[np.ndarray, "row row"]) -> Float32[np.ndarray, "row row"]:
    """A symmetric matrix less its means of rows and columns."""
    means = matrix.mean(axis=0)
    return (matrix - means - means[:, None] + means.mean()).astype(np.float32)


def _row_sums(
    x: Float32[np.ndarray, "row row"], y: Float32[np.ndarray, "row row"]
) -> Float[np.ndarray, " row"]:
    """Of the products of entries."""
    return np.einsum("ij,ij->i", x, y).astype(np.float64)


def _influence(pair: SamplePair, diagonal: bool) -> Influence:
    """s [2 h / H - a / A - b / B], and what each row does to the bandwidths.

    h, a and b are row sums of the products of centred kernels, of x and y, x and x, y and y, H, A
    and B their means. They count twice, since a row is one of the two of an entry.

    Args:
      pair: the representations.
      diagonal: whether the diagonal is a part of the score.
    """
    x, y = pair.x.once(rows_of_kernel), pair.y.once(rows_of_kernel)
    h, a, b = _row_sums(x.kernel, y.kernel), x.own, y.own
    if not diagonal:
        of_x, of_y = (np.diagonal(k.kernel).astype(np.float64) for k in (x, y))
        h, a, b = h - of_x * of_y, a - of_x**2, b - of_y**2
    scale = np.sqrt(a.mean() * b.mean()) if min(a.mean(), b.mean()) > 0 else np.nan
    score = h.mean() / scale
    total = 2 * h / scale - score * (a / a.mean() + b / b.mean())
    for one, other, own in ((x, y, a), (y, x, b)):
        # Of the sums of products in log m; on the diagonal, distances are 0.
        cross, square = (np.vdot(one.derivative, k.kernel) / pair.rows for k in (other, one))
        total += (cross / scale - score * square / own.mean()) * one.bandwidth
    return total - total.mean()


def rbfcka_influence(pair: SamplePair) -> Influence:
    """Of each row, with the kernels' widths, which it moves."""
    return _influence(pair, diagonal=True)


def rbfcka_debiased_influence(pair: SamplePair) -> Influence:
    """As of `rbfcka`, without the diagonals of the kernels, to first order in 1 / n."""
    return _influence(pair, diagonal=False)


MEASURES = (
    Measure(
        name="rbfcka",
        level="layer",
        summary="CKA with Gaussian kernels, biased, on the frame sample",
        function=rbfcka,
        influence=rbfcka_influence,
        statistic="sample",
        symmetric=True,
        limits=(0.0, 1.0),
        by_variance=True,
        reference="Kornblith et al. 2019 (arXiv 1905.00414), section 3",
    ),
    Measure(
        name="rbfcka_debiased",
        level="layer",
        summary="CKA with Gaussian kernels and the unbiased estimator of HSIC, on the frame sample",
        function=rbfcka_debiased,
        influence=rbfcka_debiased_influence,
        statistic="sample",
        symmetric=True,
        limits=(-1.0, 1.0),
        by_variance=True,
        reference="Song et al. 2012 (JMLR 13), equation 5",
    ),
)
