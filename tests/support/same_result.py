"""What it means for two ways of computing a result to agree."""

import numpy as np

import speechsim_jax as ss
from tests.support.tolerances import MESH

CHOICES = ("rank", "best_match", "mincorr_order")


def assert_same_result(found: ss.SimilarityResult, expected: ss.SimilarityResult) -> None:
    """All measures of `found` within the bar; ranks, winners and rankings equal."""
    assert found.measures
    for measure in found.measures:
        np.testing.assert_allclose(
            found.matrix(measure).values, expected.matrix(measure).values, atol=MESH
        )
    for name in CHOICES:
        if name in found.dataset:
            np.testing.assert_array_equal(found.dataset[name], expected.dataset[name])
