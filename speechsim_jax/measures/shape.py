"""Shape metrics: how far a rotation can bring one representation's rows onto the other's."""

import math

import numpy as np

from speechsim_jax.measures.base import Measure, RepresentationPair, divide


def procrustes(pair: RepresentationPair) -> float:
    """||S_xy||_* / (||Xc||_F ||Yc||_F), the cosine of the angular Procrustes distance.

    In [0, 1], symmetric; invariant to rotation, scale and shift; exactly 1 for a representation
    with itself, so that its distance is 0. NaN if a representation has no variance. Source:
    Williams et al. 2021 (arXiv 2110.14739), equation 4.
    """
    if procrustes not in pair.cache:
        sizes = [
            representation.std @ representation.std * pair.rows
            for representation in (pair.x, pair.y)
        ]
        nuclear = float(sizes[0] if pair.same else np.linalg.norm(pair.scatter, "nuc"))
        pair.cache[procrustes] = divide(nuclear, float(np.sqrt(sizes[0] * sizes[1])))
    return pair.cache[procrustes]


def procrustes_distance(pair: RepresentationPair) -> float:
    """The angular Procrustes distance arccos(procrustes) in radians, a metric.

    In [0, pi / 2], symmetric. Source: Williams et al. 2021 (arXiv 2110.14739), equation 4.
    """
    return math.acos(min(procrustes(pair), 1.0))


MEASURES = (
    Measure(
        name="procrustes",
        level="layer",
        summary="cosine of the angular Procrustes distance",
        function=procrustes,
        symmetric=True,
        limits=(0.0, 1.0),
        reference="Williams et al. 2021 (arXiv 2110.14739), equation 4",
        inflated_by_few_rows=True,
    ),
    Measure(
        name="procrustes_distance",
        level="layer",
        summary="angular Procrustes distance in radians, a metric",
        function=procrustes_distance,
        symmetric=True,
        limits=(0.0, math.pi / 2),
        reference="Williams et al. 2021 (arXiv 2110.14739), equation 4",
        higher_is_closer=False,
    ),
)
