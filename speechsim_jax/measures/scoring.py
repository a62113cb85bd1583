"""All measures over all pairs of representations, from the finished statistics."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from speechsim_jax.measures.attention import AttentionMeasure, score_attention
from speechsim_jax.measures.base import Measure, Ranking, RepresentationPair, SamplePair, divide
from speechsim_jax.measures.cca import kept_directions
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.statistics.attention_finished import FinishedAttention
from speechsim_jax.statistics.linalg import map_in_threads
from speechsim_jax.statistics.moments_finished import FinishedMoments, RepresentationMoments
from speechsim_jax.statistics.sample import Sample

Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]

# What the representations of one block may keep: per representation a kernel and ranked
# dissimilarities, 8 n^2 bytes together for n rows (32 MB for 2000). The temporaries of each thread,
# 40 n^2, come on top.
_SAMPLE_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Scores:
    """`matrices`: measure -> [x, y]. `extras`: name -> (dimensions, array), ended by NaN or -1."""

    matrices: dict[str, np.ndarray]
    extras: Extras


def score_all(
    moments: FinishedMoments,
    measures: Sequence[Measure],
    rankings: Sequence[Ranking] = (),
    models: Sequence[str] = (),
    on_pair: Callable[[], object] = lambda: None,
    sample: Sample | None = None,
) -> Scores:
    """Score every ordered pair; `models` names the model of each representation, for the rankings.

    `on_pair` is called after each unordered pair, for progress: once for each statistic that the
    measures read. `sample` is needed by measures on the sample only.
    """
    count = len(moments.representations)
    matrices = {measure.name: np.full((count, count), np.nan) for measure in measures}
    extras: Extras = {}
    longest = max(representation.width for representation in moments.representations)
    on_moments = [measure for measure in measures if measure.statistic == "moments"]
    on_sample = [measure for measure in measures if measure.statistic == "sample"]
    for scored in itertools.chain(_on_moments(moments, on_moments), _on_sample(sample, on_sample)):
        for view in scored:
            for name, value in view.scores.items():
                matrices[name][view.i, view.j] = value
            for name, (dim, values) in view.details.items():
                if name not in extras:
                    extras[name] = _empty(dim, values.dtype, count, longest)
                place = (view.i, view.j) if dim is None else (view.i, view.j, slice(len(values)))
                extras[name][1][place] = values
        on_pair()
    if "svcca_rho" in extras:
        dims, rho = extras["svcca_rho"]
        extras["svcca_rho"] = dims, rho[:, :, : int(np.isfinite(rho).sum(axis=2).max(initial=1))]
    if rankings:
        extras |= rank_neurons(extras["best_corr"][1], rankings, models)
    return Scores(matrices, extras | representation_facts(moments))


def _empty(
    dim: str | None, dtype: np.dtype, count: int, longest: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """An array over all pairs, and along `dim` if there is one, of NaN or -1."""
    dims = ("x", "y") if dim is None else ("x", "y", dim)
    shape = (count, count, longest)[: len(dims)]
    return dims, np.full(shape, np.nan if dtype.kind == "f" else -1, dtype)


@dataclasses.dataclass(frozen=True)
class _View:
    """Scores and details of one ordered pair."""

    i: int
    j: int
    scores: dict[str, float]
    details: dict[str, tuple[str | None, np.ndarray]]


def _on_moments(moments: FinishedMoments, measures: Sequence[Measure]) -> Iterator[list[_View]]:
    """Every unordered pair on the moments."""

    def pair(i: int, j: int) -> RepresentationPair:
        return RepresentationPair(moments, moments.representations[i], moments.representations[j])

    if measures:
        pairs = itertools.combinations_with_replacement(range(len(moments.representations)), 2)
        yield from map_in_threads(functools.partial(_score, pair, measures), list(pairs))


def _on_sample(sample: Sample | None, measures: Sequence[Measure]) -> Iterator[list[_View]]:
    """Every unordered pair on the sample; two blocks of representations at a time keep what they made."""
    if not measures:
        return
    assert sample is not None, "measures on the sample need one"
    representations = sample.representations

    def pair(i: int, j: int) -> SamplePair:
        return SamplePair(representations[i], representations[j])

    score = functools.partial(_score, pair, measures)
    for a, b in sample_blocks(len(representations), len(sample.keys)):
        yield from map_in_threads(score, [(i, j) for i in a for j in b if i <= j])
        for index, representation in enumerate(representations):
            if index not in a:
                representation.release()


def sample_blocks(count: int, rows: int) -> Iterator[tuple[range, range]]:
    """Blocks of representations to take together, each pair of representations in exactly one of them.

    One block if all representations fit in the memory for it, else blocks of which two fit.
    """
    fitting = max(2, _SAMPLE_BYTES // (8 * rows**2))
    size = count if count <= fitting else fitting // 2
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    yield from itertools.combinations_with_replacement(blocks, 2)


def _score(
    pair_of: Callable[[int, int], RepresentationPair | SamplePair],
    measures: Sequence[Measure],
    indices: tuple[int, int],
) -> list[_View]:
    """Both directions of a pair; symmetric measures are computed once."""
    i, j = indices
    pair = pair_of(i, j)
    views = []
    for view in (pair,) if pair.same else (pair, pair.swapped):
        scores, details = {}, {}
        for measure in measures:
            again = views and measure.symmetric
            scores[measure.name] = (
                views[0].scores[measure.name] if again else measure.function(view)
            )
            details |= measure.details(view) if measure.details else {}
        views.append(_View(*(indices if view is pair else (j, i)), scores, details))
    return views


def rank_neurons(
    best_corr: np.ndarray, rankings: Sequence[Ranking], models: Sequence[str]
) -> Extras:
    """Scores of neurons [x, neuron] and their order [x, place], from the best correlations.

    A neuron's best correlation in a model is the best over that model's layers; the ranking's
    function then goes over all *other* models. Ties keep the neurons' order. With one model there
    is nothing to rank against and nothing is returned.
    """
    names = list(dict.fromkeys(models))
    if len(names) < 2:
        return {}
    of_model = np.array([names.index(model) for model in models])
    by_model = np.stack(
        [best_corr[:, of_model == k].max(axis=1) for k in range(len(names))], axis=-1
    )
    extras: Extras = {}
    for ranking in rankings:
        scores = np.full(best_corr.shape[::2], np.nan, np.float32)
        order = np.full(best_corr.shape[::2], -1, np.int32)
        for i, own in enumerate(of_model):
            live = np.isfinite(best_corr[i, 0])
            others = np.delete(by_model[i][live], own, axis=1)
            value = ranking.function(others)
            scores[i, live] = value
            order[i, : len(value)] = np.argsort(-value, kind="stable")
        extras[f"{ranking.name}_neuron"] = ("x", "neuron"), scores
        extras[f"{ranking.name}_order"] = ("x", "place"), order
    return extras


def representation_facts(moments: FinishedMoments) -> Extras:
    """What to know about each representation before believing a score."""
    representations = moments.representations
    facts = {
        "width": [representation.width for representation in representations],
        "rank": [representation.whitening.rank for representation in representations],
        "condition": [representation.whitening.condition for representation in representations],
        "svcca_directions": [
            kept_directions(representation.whitening) for representation in representations
        ],
        "dead_neurons": [int(np.sum(~representation.live)) for representation in representations],
        "outlier_share": [_outlier_share(representation) for representation in representations],
        "mean_to_std": [_mean_to_std(representation) for representation in representations],
    }
    return {name: (("x",), np.array(values)) for name, values in facts.items()}


def _outlier_share(representation: RepresentationMoments) -> float:
    """Share of the variance that the top 1 % of the neurons (at least one) hold."""
    variance = np.sort(np.square(representation.std))[::-1]
    top = max(1, round(0.01 * len(variance)))
    return divide(float(variance[:top].sum()), float(variance.sum()))


def _mean_to_std(representation: RepresentationMoments) -> float:
    """The largest |mean| / std of a live neuron: how much float32 had to cancel."""
    live = representation.live
    return float(np.max(np.abs(representation.mean[live]) / representation.std[live], initial=0))


def attention_result(
    names: Sequence[RepresentationName],
    found: FinishedAttention,
    measures: Sequence[AttentionMeasure],
) -> dict[str, Any]:
    """What `SimilarityResult.build` is to know of the attention level."""
    matrices, extras = score_attention(found, measures)
    return {
        "matrices": matrices,
        "extras": extras,
        "attention_representations": names,
        "dims": {m.name: ("x_attention", "y_attention") for m in measures},
        "measures": {m.name: describe(m) for m in measures},
    }


def describe(measure: Measure | AttentionMeasure) -> dict[str, Any]:
    """The measure's entry in a result."""
    return {
        "symmetric": measure.symmetric,
        "range": measure.limits,
        "level": measure.level,
        "statistic": measure.statistic,
        "summary": measure.summary,
        "reference": measure.reference,
    }
