"""Attention level: how alike are the maps of two heads, and of two layers' heads?

Head measures give a similarity of every two heads. A representation (the heads of one layer) x is
then as well accounted for by y as its heads are on average by their best counterparts,

    score(x, y) = mean over heads a of x of max over heads b of y of similarity(a, b)

(Wu et al. 2020, section 3.4; El Kheir et al. 2024). Layer measures take the heads as neurons and
all cells of all maps as rows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from speechsim_jax.measures import cca, cka
from speechsim_jax.measures.base import RepresentationPair
from speechsim_jax.statistics.attention_finished import FinishedAttention, MapMeans
from speechsim_jax.statistics.attention_sums import BASELINES

Similarity = Float[np.ndarray, "_ _"]
Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]

WU = "Wu et al. 2020, arXiv 2005.01172"
_DIMS = ("x_attention", "y_attention")


@dataclasses.dataclass(frozen=True)
class AttentionMeasure:
    """One similarity of the attention of two representations.

    Either `of_heads` (means over maps -> similarity of what was compared) with the sum that it
    `needs`, or `of_layers`, a measure on moments with heads as neurons.
    """

    name: str
    summary: str
    limits: tuple[float, float]
    reference: str
    symmetric: bool = False
    of_heads: Callable[[MapMeans], Similarity] | None = None
    needs: str | None = None
    of_layers: Callable[[RepresentationPair], float] | None = None
    level: str = "attention"
    statistic: str = "attention"


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


MEASURES = (
    AttentionMeasure(
        name="attn_frobenius",
        summary="1 - mean Frobenius distance of maps; falls as utterances get longer",
        limits=(-math.inf, 1.0),
        reference=WU,
        of_heads=frobenius,
        needs="distance",
    ),
    AttentionMeasure(
        name="attn_js",
        summary="1 - mean Jensen-Shannon divergence of rows, nats",
        limits=(1 - math.log(2), 1.0),
        reference=WU,
        of_heads=js,
        needs="divergence",
    ),
    AttentionMeasure(
        name="attn_pearson",
        summary="mean correlation of rows, times (T - 1) / T",
        limits=(-1.0, 1.0),
        reference=WU,
        of_heads=pearson,
        needs="correlation",
    ),
    AttentionMeasure(
        name="attn_frobenius_norm",
        summary="1 - mean Frobenius distance / sqrt(2 T)",
        limits=(0.0, 1.0),
        reference="this package",
        of_heads=frobenius_norm,
        needs="distance",
    ),
    AttentionMeasure(
        name="attn_js_bits",
        summary="1 - mean Jensen-Shannon divergence of rows, bits",
        limits=(0.0, 1.0),
        reference="Lin 1991",
        of_heads=js_bits,
        needs="divergence",
    ),
    AttentionMeasure(
        name="attn_pearson_exact",
        summary="mean correlation of rows; 1 for a head with itself",
        limits=(-1.0, 1.0),
        reference="this package",
        of_heads=pearson_exact,
        needs="correlation",
    ),
    AttentionMeasure(
        name="attn_lincka",
        summary="linear CKA, heads as neurons, cells as rows",
        limits=(0.0, 1.0),
        reference="Kornblith et al. 2019",
        symmetric=True,
        of_layers=cka.lincka,
    ),
    AttentionMeasure(
        name="attn_svcca",
        summary="SVCCA, heads as neurons, cells as rows",
        limits=(0.0, 1.0),
        reference="Raghu et al. 2017",
        symmetric=True,
        of_layers=cca.svcca,
    ),
    AttentionMeasure(
        name="attn_pwcca",
        summary="PWCCA, heads as neurons, cells as rows",
        limits=(0.0, 1.0),
        reference="Morcos et al. 2018",
        of_layers=cca.pwcca,
    ),
)

PAPER = ("attn_frobenius", "attn_js", "attn_pearson")
"""The measures of El Kheir et al. 2024 on attention."""


def score_attention(
    found: FinishedAttention, measures: Sequence[AttentionMeasure]
) -> tuple[dict[str, np.ndarray], Extras]:
    """Each measure's [x, y] over representations, and details.

    Of a head measure NAME: `NAME_heads` [x, y, head_x, head_y]; `NAME_best` and `NAME_match`
    [x, y, head_x], the best counterpart's similarity and number; `NAME_baseline` [x, baseline,
    head_x], its similarity with what `baseline` names. Where a representation has fewer heads they
    end in NaN or -1.
    """
    matrices = {}
    extras: Extras = {}
    if any(measure.of_heads for measure in measures):
        extras["baseline"] = ("baseline",), np.array(BASELINES, dtype=object)
    for measure in measures:
        if measure.of_layers is not None:
            matrices[measure.name] = _over_pairs(found, measure.of_layers)
        else:
            matrices[measure.name], details = _over_heads(found, measure)
            extras |= details
    return matrices, extras


def _over_pairs(
    found: FinishedAttention, function: Callable[[RepresentationPair], float]
) -> np.ndarray:
    representations = found.moments.representations
    return np.array(
        [
            [function(RepresentationPair(found.moments, x, y)) for y in representations]
            for x in representations
        ]
    )


def _over_heads(found: FinishedAttention, measure: AttentionMeasure) -> tuple[np.ndarray, Extras]:
    assert measure.of_heads is not None
    similarity = measure.of_heads(found.means)
    against = measure.of_heads(found.baselines)
    count, most = len(found.heads), max(where.stop - where.start for where in found.heads)
    scores = np.full((count, count), np.nan)
    heads = np.full((count, count, most, most), np.nan, np.float32)
    best = np.full((count, count, most), np.nan, np.float32)
    match = np.full((count, count, most), -1, np.int32)
    baseline = np.full((count, len(BASELINES), most), np.nan, np.float32)
    for (i, x), (j, y) in _pairs(found.heads):
        block = similarity[x, y]
        value = block.max(axis=1)
        scores[i, j] = value.mean()
        heads[i, j, : block.shape[0], : block.shape[1]] = block
        best[i, j, : len(value)] = value
        match[i, j, : len(value)] = block.argmax(axis=1)
    for i, x in enumerate(found.heads):
        baseline[i, :, : x.stop - x.start] = against[:, x]
    name = measure.name
    return scores, {
        f"{name}_heads": ((*_DIMS, "head_x", "head_y"), heads),
        f"{name}_best": ((*_DIMS, "head_x"), best),
        f"{name}_match": ((*_DIMS, "head_x"), match),
        f"{name}_baseline": (("x_attention", "baseline", "head_x"), baseline),
    }


def _pairs(heads: Sequence[slice]) -> Iterator[tuple[tuple[int, slice], tuple[int, slice]]]:
    return ((x, y) for x in enumerate(heads) for y in enumerate(heads))
