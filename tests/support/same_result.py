"""Agreement of two results of the same comparison, computed in two ways."""

import numpy as np

import speechsim_jax as ss
from tests.support.tolerances import ERRORS_RELATIVE, MESH

CHOICES = ("rank", "best_match", "mincorr_order")


def assert_same_result(
    actual: ss.SimilarityResult,
    expected: ss.SimilarityResult,
    errors_relative: float = ERRORS_RELATIVE,
) -> None:
    """All measures of `actual` within the tolerance, held-out scores and standard errors too.

    Ranks, best matches and rankings are equal.
    """
    assert actual.measures
    for measure in actual.measures:
        np.testing.assert_allclose(
            actual.matrix(measure).values, expected.matrix(measure).values, atol=MESH
        )
    further = [name for name in expected.dataset if str(name).endswith(("_se", "_heldout"))]
    for name in (str(name) for name in further if name in actual.dataset):
        bars = {"rtol": errors_relative, "atol": 1e-9} if name.endswith("_se") else {"atol": MESH}
        found, of_expected = actual.matrix(name).values, expected.matrix(name).values
        if name == "localisation_heldout":  # a ratio: its errors are those of both over the lower
            scale = expected.matrix("readability_heldout").values / (1 + np.abs(of_expected))
            found, of_expected = scale * found, scale * of_expected
        np.testing.assert_allclose(found, of_expected, **bars, err_msg=name)
    for name in CHOICES:
        if name in actual.dataset:
            np.testing.assert_array_equal(actual.dataset[name], expected.dataset[name])
