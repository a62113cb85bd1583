"""Golden values of the measures: Wu et al.'s own code on drawn representations and maps."""

import numpy as np

from tests.support.paths import DATA

GOLDEN = np.load(DATA / "measures.npz")
GOLDEN_MEASURES = ("maxcorr", "linreg", "lincka", "svcca", "pwcca")

# Of the representations: model and layer, as "a0".
NAMES = [str(name) for name in GOLDEN["networks"]]


def golden_inputs() -> dict[tuple[str, int], np.ndarray]:
    """The representations by model and layer: a0, a1, a2, b0, b1."""
    return {(name[0], int(name[1])): GOLDEN[f"x_{name}"] for name in NAMES}
