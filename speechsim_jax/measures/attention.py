"""Attention level: how alike are the maps of two heads, and of two layers' heads?

Head measures give a similarity of every two heads. A layer x is then as well accounted for by y as
its heads are on average by their best counterparts,

    score(x, y) = mean over heads a of x of max over heads b of y of similarity(a, b)

(Wu et al. 2020, section 3.4; El Kheir et al. 2024). Layer measures take the heads as neurons and
all cells of all maps as rows.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from speechsim_jax.measures import cca, cka
from speechsim_jax.measures.base import AttentionPair, Details, Measure, RepresentationPair
from speechsim_jax.statistics.attention_finished import MapMeans

Similarity = Float[np.ndarray, "_ _"]

WU = "Wu et al. 2020, arXiv 2005.01172"


def frobenius(means: MapMeans) -> Similarity:
    """1 - mean over utterances of ||A - B||_F: falls with length, without bound.

    Source: Wu et al. 2020 (arXiv 2005.01172), section 3.4.
    """
    return 1 - means.distance


def frobenius_norm(means: MapMeans) -> Similarity:
    """1 - mean over utterances of ||A - B||_F / sqrt(2 T), in [0, 1].

    Source: `frobenius`, over the greatest distance that maps of T frames can have.
    """
    return 1 - means.distance_norm


def js(means: MapMeans) -> Similarity:
    """1 - mean over rows of the Jensen-Shannon divergence in nats, in [1 - ln 2, 1].

    Source: Wu et al. 2020 (arXiv 2005.01172), section 3.4.
    """
    return 1 - means.divergence


def js_bits(means: MapMeans) -> Similarity:
    """1 - mean over rows of the Jensen-Shannon divergence in bits, in [0, 1].

    Source: Lin 1991 (IEEE Transactions on Information Theory 37), where the bound is 1 bit.
    """
    return 1 - means.divergence / math.log(2)


def pearson(means: MapMeans) -> Similarity:
    """Mean over rows of (T - 1) / T times Pearson's r, so below 1 even for a head with itself.

    Source: Wu et al. 2020 (arXiv 2005.01172), section 3.4; the factor is that of their code.
    """
    return means.correlation_paper


def pearson_exact(means: MapMeans) -> Similarity:
    """Mean over rows of Pearson's r; rows that do not vary (std < 1e-6 / T) count as 0.

    Source: `pearson`, with covariance and standard deviations over the same number.
    """
    return means.correlation


def of_heads(
    name: str,
    similarity: Callable[[MapMeans], Similarity],
    needs: str,
    summary: str,
    limits: tuple[float, float],
    reference: str,
) -> Measure:
    """The measure of two layers that follows from a similarity of two heads.

    Next to the score: `NAME_heads` [head_x, head_y], the similarities; `NAME_best` and `NAME_match`
    [head_x], the best counterpart's similarity and number; `NAME_baseline` [baseline, head_x], the
    similarity of each head of x with its baselines.

    Args:
      name: of the measure.
      similarity: means over maps -> similarity of what was compared.
      needs: the sum that it reads (`statistics.attention_sums`).
      summary, limits, reference: as in `Measure`.
    """

    def score(pair: AttentionPair) -> float:
        return float(similarity(pair.means).max(axis=1).mean())

    def details(pair: AttentionPair) -> Details:
        block = similarity(pair.means)
        return {
            f"{name}_heads": (("head_x", "head_y"), block.astype(np.float32)),
            f"{name}_best": ("head_x", block.max(axis=1).astype(np.float32)),
            f"{name}_match": ("head_x", block.argmax(axis=1).astype(np.int32)),
        }

    def facts(pair: AttentionPair) -> Details:
        baseline = similarity(pair.baselines).astype(np.float32)
        return {f"{name}_baseline": (("baseline", "head_x"), baseline)}

    return Measure(
        name=name,
        level="attention",
        summary=summary,
        function=score,
        symmetric=False,
        limits=limits,
        reference=reference,
        statistic="attention",
        needs=needs,
        grouped=True,
        details=details,
        facts=facts,
    )


def of_cells(
    name: str,
    function: Callable[[RepresentationPair], float],
    symmetric: bool,
    summary: str,
    reference: str,
    grouped: bool = True,
) -> Measure:
    """A measure on moments, of heads as neurons and cells of maps as rows."""
    return Measure(
        name=name,
        level="attention",
        summary=summary,
        function=lambda pair: function(pair.moments),
        symmetric=symmetric,
        limits=(0.0, 1.0),
        reference=reference,
        statistic="attention",
        grouped=grouped,
    )


MEASURES = (
    of_heads(
        "attn_frobenius",
        frobenius,
        needs="distance",
        summary="1 - mean Frobenius distance of maps; falls as utterances get longer",
        limits=(-math.inf, 1.0),
        reference=WU,
    ),
    of_heads(
        "attn_js",
        js,
        needs="divergence",
        summary="1 - mean Jensen-Shannon divergence of rows, nats",
        limits=(1 - math.log(2), 1.0),
        reference=WU,
    ),
    of_heads(
        "attn_pearson",
        pearson,
        needs="correlation",
        summary="mean correlation of rows, times (T - 1) / T",
        limits=(-1.0, 1.0),
        reference=WU,
    ),
    of_heads(
        "attn_frobenius_norm",
        frobenius_norm,
        needs="distance",
        summary="1 - mean Frobenius distance / sqrt(2 T)",
        limits=(0.0, 1.0),
        reference="this package",
    ),
    of_heads(
        "attn_js_bits",
        js_bits,
        needs="divergence",
        summary="1 - mean Jensen-Shannon divergence of rows, bits",
        limits=(0.0, 1.0),
        reference="Lin 1991",
    ),
    of_heads(
        "attn_pearson_exact",
        pearson_exact,
        needs="correlation",
        summary="mean correlation of rows; 1 for a head with itself",
        limits=(-1.0, 1.0),
        reference="this package",
    ),
    of_cells(
        "attn_lincka",
        cka.lincka,
        symmetric=True,
        summary="linear CKA, heads as neurons, cells as rows",
        reference="Kornblith et al. 2019",
    ),
    of_cells(
        "attn_svcca",
        cca.svcca,
        symmetric=True,
        summary="SVCCA, heads as neurons, cells as rows",
        reference="Raghu et al. 2017",
    ),
    of_cells(
        "attn_pwcca",
        cca.pwcca,
        symmetric=False,
        summary="PWCCA, heads as neurons, cells as rows",
        reference="Morcos et al. 2018",
        grouped=False,
    ),
)

PAPER = ("attn_frobenius", "attn_js", "attn_pearson")
"""The measures of El Kheir et al. 2024 on attention."""
