"""Centred kernel alignment with a linear kernel."""

import numpy as np

from speechsim_jax.measures.base import Measure, Pair, divide


def lincka(pair: Pair) -> float:
    """||S_xy||_F^2 / (||S_xx||_F ||S_yy||_F); centred, not z-scored.

    In [0, 1], symmetric; invariant to rotation, scale and shift. NaN if a network has no variance.
    Source: Kornblith et al. 2019 (arXiv 1905.00414), equation 4; Wu et al. 2020.
    """
    numerator = float(np.sum(np.square(pair.scatter)))
    return divide(numerator, pair.x.scatter_norm * pair.y.scatter_norm)


MEASURES = (
    Measure(
        name="lincka",
        level="layer",
        summary="linear CKA, biased, on centred neurons",
        function=lincka,
        symmetric=True,
        limits=(0.0, 1.0),
        reference="Kornblith et al. 2019 (arXiv 1905.00414), equation 4",
    ),
)
