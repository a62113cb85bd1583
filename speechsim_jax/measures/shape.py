"""Shape metrics: how far a rotation can bring one representation's rows onto the other's."""

import math

import numpy as np
from jaxtyping import Float

from speechsim_jax.inference.influence_rows import Influence, forms, weighted_squares
from speechsim_jax.measures.base import Measure, PairRows, RepresentationPair, divide
from speechsim_jax.measures.heldout import HeldOutPair
from speechsim_jax.statistics.linalg import Matrix, svd


def procrustes(pair: RepresentationPair) -> float:
    """||S_xy||_* / (||Xc||_F ||Yc||_F), the cosine of the angular Procrustes distance.

    In [0, 1], symmetric; invariant to rotation, scale and shift; exactly 1 for a representation
    with itself, so that its distance is 0. NaN if a representation has no variance. Source:
    Williams et al. 2021 (arXiv 2110.14739), equation 4.
    """
    return pair.once(_procrustes)


def _procrustes(pair: RepresentationPair) -> float:
    sizes = [
        representation.std @ representation.std * pair.rows for representation in (pair.x, pair.y)
    ]
    nuclear = float(sizes[0] if pair.same else np.linalg.norm(pair.scatter, "nuc"))
    return divide(nuclear, float(np.sqrt(sizes[0] * sizes[1])))


def procrustes_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """s [x'Q y / ||C_xy||_* - |x|^2 / (2 tr C_xx) - |y|^2 / (2 tr C_yy)], Q = U V' of C_xy."""
    rotation, size, of_x, of_y = pair.once(_turned, rows.x.dtype)
    total = forms(rows.x.zscored, rotation, rows.y.zscored) * pair.rows / size
    total -= weighted_squares(rows.x.zscored, of_x) + weighted_squares(rows.y.zscored, of_y)
    return procrustes(pair) * total


def _turned(
    pair: RepresentationPair, dtype: np.dtype
) -> tuple[Matrix, float, Float[np.ndarray, " x"], Float[np.ndarray, " y"]]:
    """Q between z-scored live neurons, ||S_xy||_*, and what their squares count for x and for y."""
    left, values, right = svd(pair.scatter)
    stds = [representation.std[representation.live] for representation in (pair.x, pair.y)]
    rotation = (left @ right)[np.ix_(pair.x.live, pair.y.live)] * stds[0][:, None] * stds[1]
    of_x, of_y = (np.square(std) / (2 * float(std @ std)) for std in stds)
    return rotation.astype(dtype), float(values.sum()), of_x, of_y


def procrustes_heldout(pair: HeldOutPair) -> float:
    """tr(Q'S_xy) / (||X|| ||Y||) on the other fold, Q = U V' the fitted one's rotation."""
    if pair.fit.same:
        rotation = np.eye(pair.fit.x.width)
    else:
        left, _, right = svd(pair.fit.scatter)
        rotation = left @ right
    x, y = pair.evaluate.x, pair.evaluate.y
    sizes = [float(r.std @ r.std * pair.evaluate.rows) for r in (x, y)]
    return divide(float(np.sum(rotation * pair.evaluate.scatter)), math.sqrt(sizes[0] * sizes[1]))


def procrustes_distance(pair: RepresentationPair) -> float:
    """The angular Procrustes distance arccos(procrustes) in radians, a metric.

    In [0, pi / 2], symmetric. Source: Williams et al. 2021 (arXiv 2110.14739), equation 4.
    """
    return math.acos(min(procrustes(pair), 1.0))


def procrustes_distance_influence(pair: RepresentationPair, rows: PairRows) -> Influence:
    """-I / sqrt(1 - s^2), I the influence on `procrustes`."""
    slope = math.sqrt(max(1 - procrustes(pair) ** 2, 0.0))
    influence = procrustes_influence(pair, rows)
    return np.full_like(influence, np.nan) if slope == 0 else -influence / slope


MEASURES = (
    Measure(
        name="procrustes",
        level="layer",
        summary="cosine of the angular Procrustes distance",
        function=procrustes,
        influence=procrustes_influence,
        heldout={"procrustes_heldout": procrustes_heldout},
        symmetric=True,
        limits=(0.0, 1.0),
        by_variance=True,
        reference="Williams et al. 2021 (arXiv 2110.14739), equation 4",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="procrustes_distance",
        level="layer",
        summary="angular Procrustes distance in radians, a metric",
        function=procrustes_distance,
        influence=procrustes_distance_influence,
        symmetric=True,
        limits=(0.0, math.pi / 2),
        by_variance=True,
        reference="Williams et al. 2021 (arXiv 2110.14739), equation 4",
        higher_is_closer=False,
    ),
)
