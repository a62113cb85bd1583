"""Single neurons: is the same neuron found again in the other network?"""

from collections.abc import Mapping

import numpy as np

from speechsim_jax.measures.base import Measure, Pair, Ranking
from speechsim_jax.statistics.finished import winners


def maxcorr(pair: Pair) -> float:
    """Mean over neurons i of x of max_j |corr(x_i, y_j)|; a dead neuron of x counts as 0.

    In [0, 1], asymmetric. Source: Wu et al. 2020, section 4.1 ("maxcorr"); "neuronsim" in
    El Kheir et al. 2024.
    """
    value, _ = winners(pair.correlation)
    return float(value.mean())


def maxcorr_winners(pair: Pair) -> Mapping[str, tuple[str, np.ndarray]]:
    """The best |correlation| in y of each neuron of x, and the neuron that has it (-1: none)."""
    value, index = winners(pair.correlation)
    return {
        "best_corr": ("neuron", value.astype(np.float32)),
        "best_match": ("neuron", index.astype(np.int32)),
    }


MEASURES = (
    Measure(
        name="maxcorr",
        level="neuron",
        summary="mean over neurons of x of the best |correlation| with a neuron of y",
        function=maxcorr,
        details=maxcorr_winners,
        symmetric=False,
        limits=(0.0, 1.0),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
    ),
)

RANKINGS = (
    Ranking(
        name="maxcorr",
        level="neuron",
        summary="each neuron's largest best correlation over the other models",
        function=lambda best: best.max(axis=1),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
    ),
    Ranking(
        name="mincorr",
        level="neuron",
        summary="each neuron's smallest best correlation over the other models",
        function=lambda best: best.min(axis=1),
        reference="Wu et al. 2020 (arXiv 2005.01172), section 4.1",
    ),
)
