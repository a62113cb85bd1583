"""Agreement of two results of the same comparison, computed in two ways."""

import numpy as np

import speechsim_jax as ss
from tests.support.tolerances import MESH

CHOICES = ("rank", "best_match", "mincorr_order")


def assert_same_result(actual: ss.SimilarityResult, expected: ss.SimilarityResult) -> None:
    """All measures of `actual` within the tolerance; ranks, best matches and rankings equal."""
    assert actual.measures
    for measure in actual.measures:
        np.testing.assert_allclose(
            actual.matrix(measure).values, expected.matrix(measure).values, atol=MESH
        )
    for name in CHOICES:
        if name in actual.dataset:
            np.testing.assert_array_equal(actual.dataset[name], expected.dataset[name])
