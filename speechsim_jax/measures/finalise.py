"""All measures over all pairs of networks, from one finished statistic."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from speechsim_jax.measures.base import Measure, Pair, Ranking
from speechsim_jax.measures.cca import kept_directions
from speechsim_jax.statistics.finished import FinishedMoments

Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """`matrices`: measure -> [x, y]. `extras`: name -> (dimensions, array), NaN or -1 where short."""

    matrices: dict[str, np.ndarray]
    extras: Extras


def score_all(
    moments: FinishedMoments,
    measures: Sequence[Measure],
    rankings: Sequence[Ranking] = (),
    models: Sequence[str] = (),
    on_pair: Callable[[], None] = lambda: None,
) -> Scores:
    """Score every ordered pair; `models` names the model of each network, for the rankings.

    `on_pair` is called after each unordered pair, for progress.
    """
    count = moments.networks
    matrices = {measure.name: np.full((count, count), np.nan) for measure in measures}
    extras: Extras = {}
    longest = {"neuron": max(moments.width(i) for i in range(count))}
    longest["k"] = longest["neuron"]
    for i in range(count):
        for j in range(i, count):
            pair = Pair(moments, i, j)
            for view in (pair, pair.swapped) if i != j else (pair,):
                for measure in measures:
                    _score(view, measure, matrices, extras, longest)
            on_pair()
    if "svcca_rho" in extras:
        dims, rho = extras["svcca_rho"]
        extras["svcca_rho"] = dims, rho[:, :, : int(np.isfinite(rho).sum(axis=2).max(initial=1))]
    if rankings:
        extras |= rank_neurons(extras["best_corr"][1], rankings, models)
    return Scores(matrices, extras | network_facts(moments))


def _score(
    pair: Pair,
    measure: Measure,
    matrices: dict[str, np.ndarray],
    extras: Extras,
    longest: dict[str, int],
) -> None:
    i, j = pair.i, pair.j
    matrix = matrices[measure.name]
    mirrored = measure.symmetric and not np.isnan(matrix[j, i])
    matrix[i, j] = matrix[j, i] if mirrored else measure.function(pair)
    if measure.details is None:
        return
    for name, (dim, values) in measure.details(pair).items():
        if name not in extras:
            shape = (*matrix.shape, longest[dim])
            empty = np.nan if values.dtype.kind == "f" else -1
            extras[name] = ("x", "y", dim), np.full(shape, empty, values.dtype)
        extras[name][1][i, j, : len(values)] = values


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


def network_facts(moments: FinishedMoments) -> Extras:
    """What to know about each network before believing a score: ranks, condition, dead neurons."""
    whites = [moments.whitening(i) for i in range(moments.networks)]
    facts = {
        "width": [moments.width(i) for i in range(moments.networks)],
        "rank": [white.rank for white in whites],
        "condition": [white.condition for white in whites],
        "svcca_directions": [kept_directions(white) for white in whites],
        "dead_neurons": [int(np.sum(~moments.live(i))) for i in range(moments.networks)],
        "mean_to_std": [_mean_to_std(moments, i) for i in range(moments.networks)],
    }
    return {name: (("x",), np.array(values)) for name, values in facts.items()}


def _mean_to_std(moments: FinishedMoments, i: int) -> float:
    """The largest |mean| / std of a live neuron: how much float32 had to cancel."""
    live = moments.live(i)
    if not live.any():
        return float("nan")
    return float(np.max(np.abs(moments.mean(i)[live]) / moments.std(i)[live]))
