"""A result in words: what the top of the page says, each number in it computed from the result."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.figures.text_layout import short_names
from speechsim_jax.report.doubts import doubts
from speechsim_jax.results.concepts import Agreement, DepthCurve, read_concepts
from speechsim_jax.results.model_scores import (
    NORMAL_HALF,
    Estimate,
    ModelScores,
    RankedPair,
    lead_measures,
    ranked_pairs,
    untrained_models,
)
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import listed

About = Literal["closest", "depth", "shared", "trust"]

MOST_NAMED = 3
MOST_TRACKS = 4
SHARED_CORRELATION = 0.5
"""From which |correlation| on a neuron counts as found in another model."""
_THIRDS = ("first", "middle", "last")


class Sentence(NamedTuple):
    """Something that a result says.

    Attributes:
        about: what it is about.
        text: the words.
        cell: labels of x and y where it is about one cell of the map.
    """

    about: About
    text: str
    cell: tuple[str, str] | None = None


def in_words(result: SimilarityResult) -> list[Sentence]:
    """Which models are closest, at which depths, what they share, and what not to trust.

    "±" is half a 95 % interval. Two numbers are "not distinguishable" where their difference is
    within its own interval, or, where that is not known, where their intervals overlap. Pairs of
    models are tested together (`ModelScores.distinguished`).

    Args:
        result: with any measures.
    """
    short = dict(zip(result.models, short_names(result.models), strict=True))
    scores = [ModelScores(result, name) for name in lead_measures(result)]
    scores = [of for of in scores if of.scored().any()]
    untrained = untrained_models(result)
    sentences = []
    for of_measure in scores:
        pairs = ranked_pairs(of_measure, untrained)
        sentences += _closest(of_measure, pairs, short)
        if of_measure is scores[0]:
            sentences += _depths(result, of_measure, pairs, short)
    if text := _disagreement(scores, untrained):
        sentences.append(Sentence("depth", text))
    if not scores:
        sentences.append(
            Sentence("closest", "No two models of this result have scores with each other.")
        )
    sentences += [Sentence("shared", text) for text in _shared(result, short)]
    trust = [text for of in scores[:1] if (text := _against_untrained(of, untrained, short))]
    sentences += [Sentence("trust", text) for text in [*trust, *doubts(result)]]
    return sentences


def _closest(
    scores: ModelScores, pairs: Sequence[RankedPair], short: dict[str, str]
) -> list[Sentence]:
    """Which models are closest, and which others may be."""
    first, *others = pairs
    names = _pair(first, short)
    if first.x == first.y:
        text = (
            f"By {scores.measure}, layers of {names} score {first.mean} on average with the "
            "closest other layer."
        )
        return [_of_cell(scores, first, "closest", text)]
    mean = f"{first.mean}, the mean of every layer with its closest of the other"
    if not others:
        text = f"By {scores.measure}, {names} score {mean}."
        return [_of_cell(scores, first, "closest", text)]
    text = f"By {scores.measure}, the closest models are {names}: {mean}. "
    next_ = others[0]
    differs = scores.distinguished(first, others)
    alike = [other for other, is_other in zip(others, differs, strict=True) if is_other is False]
    if differs[0] is None:
        text += (
            f"Next: {_pair(next_, short)}, {next_.mean}; it is not known how sure that order is."
        )
    elif not alike:
        text += f"Next: {_pair(next_, short)}, {next_.mean}, less close by more than chance."
    else:
        shown = [f"{_pair(o, short)} ({o.mean})" for o in alike[:MOST_NAMED]]
        text += f"Not distinguishable from them: {listed(shown, len(alike))}."
    if len(others) > 1 and others[-1] not in alike:
        text += f" Least close: {_pair(others[-1], short)}, {others[-1].mean}."
    return [_of_cell(scores, first, "closest", text)]


def _depths(
    result: SimilarityResult,
    scores: ModelScores,
    pairs: Sequence[RankedPair],
    short: dict[str, str],
) -> list[Sentence]:
    """At which depths the closest models are closest, and how closeness changes with depth."""
    first = pairs[0]
    x, y = scores.closest_cell(first.x, first.y)
    score = Estimate(float(scores.values[x, y]), float(scores.half[x, y]))
    text = (
        f"By {scores.measure}, layer {_at(scores, x)} of {short[_model(scores, x)]} and layer "
        f"{_at(scores, y)} of {short[_model(scores, y)]} are the closest layers of the closest "
        f"models: {score}."
    )
    text += _sureness(result, scores, x, y)
    sentences = [Sentence("depth", text, (scores.labels[x], scores.labels[y]))]
    cells = _matched(scores, pairs)
    if text := _by_third(scores, cells):
        sentences.append(Sentence("depth", text))
    if first.x != first.y:
        apart = np.mean([abs(scores.depths[i] - scores.depths[j]) for i, j in cells])
        text = (
            f"By {scores.measure}, the closest layer of another model lies on average {apart:.2f} "
            "of the depth away from the same relative depth."
        )
        sentences.append(Sentence("depth", text))
    return sentences


def _sureness(result: SimilarityResult, scores: ModelScores, x: int, y: int) -> str:
    """How sure it is that y is the closest layer of its model to x."""
    model = _model(scores, y)
    columns = [k for k in scores.places(model) if np.isfinite(scores.closeness[x, k])]
    if len(columns) < 2 or not np.isfinite(scores.half[x, y]):
        return ""
    if scores.has_sums:
        shares = result.closest(scores.measure, scores.labels[x], model)
        ranked = sorted(
            ((float(share), label) for share, label in zip(shares.values, shares["y"].values)),
            reverse=True,
        )
        layers = dict(zip(scores.labels, scores.layers, strict=True))
        shown = [
            f"layer {layers[str(n)]} in {s:.0%} of them"
            for s, n in ranked[:MOST_NAMED]
            if s >= 0.01
        ]
        return f" In draws from the scores' errors the closest to it is {listed(shown)}."
    gap = np.abs(scores.closeness[x, y] - scores.closeness[x, columns])
    near = gap <= scores.half[x, y] + scores.half[x, columns]
    alike = [f"{scores.layers[k]}" for k, is_near in zip(columns, near) if is_near and k != y]
    if not alike:
        return " No other layer's interval overlaps that of this score."
    shown = listed(alike[:MOST_NAMED], len(alike))
    return f" Not distinguishable, as intervals overlap: layer {shown} instead."


def _matched(scores: ModelScores, pairs: Sequence[RankedPair]) -> list[tuple[int, int]]:
    """The cells of every layer with its closest one of another model."""
    return [
        cell
        for pair in pairs
        for x_model, y_model in dict.fromkeys([(pair.x, pair.y), (pair.y, pair.x)])
        for cell in scores.matches(x_model, y_model)
    ]


class _Thirds(NamedTuple):
    """The thirds of the depth in which layers are closest to other models, and least close."""

    most: int
    least: int
    means: dict[int, Estimate]
    difference: Estimate


def _thirds(scores: ModelScores, cells: Sequence[tuple[int, int]]) -> _Thirds | None:
    thirds: dict[int, list[tuple[int, int]]] = {}
    for x, y in cells:
        thirds.setdefault(min(int(3 * scores.depths[x] + 1e-9), 2), []).append((x, y))
    if len(thirds) < 2:
        return None
    weights = {third: scores.of_cells(of) for third, of in thirds.items()}
    means = {third: scores.estimate(of) for third, of in weights.items()}
    order = sorted(means, key=lambda third: -scores.sign * means[third].value)
    most, least = order[0], order[-1]
    return _Thirds(most, least, means, scores.estimate(weights[most] - weights[least]))


def _by_third(scores: ModelScores, cells: Sequence[tuple[int, int]]) -> str:
    """In which third of the depth layers are closest to another model, and in which least."""
    found = _thirds(scores, cells)
    if found is None:
        return ""
    verdict = {
        True: f"a difference of {found.difference}",
        False: f"not distinguishable (a difference of {found.difference})",
        None: "it is not known how sure that is",
    }[found.difference.differs]
    return (
        f"By {scores.measure}, layers are closest to their best matches in the "
        f"{_THIRDS[found.most]} third ({found.means[found.most]}), and least close in the "
        f"{_THIRDS[found.least]} ({found.means[found.least]}): {verdict}."
    )


def _disagreement(scores: Sequence[ModelScores], untrained: Sequence[str]) -> str:
    """Which measures place the closest layers at other depths, as far as that is sure."""
    measures: dict[int, list[str]] = {}
    for of in scores:
        found = _thirds(of, _matched(of, ranked_pairs(of, untrained)))
        if found is not None and found.difference.differs:
            measures.setdefault(found.most, []).append(of.measure)
    if len(measures) < 2:
        return ""
    places = [f"{listed(of)} in the {_THIRDS[third]}" for third, of in sorted(measures.items())]
    return f"Measures disagree on where in the depth layers are closest: {listed(places)}."


def _against_untrained(scores: ModelScores, untrained: Sequence[str], short: dict[str, str]) -> str:
    """What untrained models score, which trained ones owe to architecture and audio alone."""
    pairs = scores.pairs
    trained = [pair for pair in pairs if not set(pair) & set(untrained)]
    mixed = [pair for pair in pairs if len(set(pair) & set(untrained)) == 1]
    means = []
    for group in (trained, mixed):
        known = [w for pair in group if (w := scores.of_pair(*pair)) is not None]
        if not known:
            return ""
        means.append(np.mean(known, axis=0))
    of_trained, of_mixed = map(scores.estimate, means)
    difference = scores.estimate(means[0] - means[1])
    names = listed([short[m] for m in untrained[:MOST_NAMED]], len(untrained))
    verdict = " These are not distinguishable." if difference.differs is False else ""
    return (
        f"Read {scores.measure} against untrained models ({names}): they score {of_mixed} with "
        f"trained ones, and trained ones {of_trained} with each other.{verdict}"
    )


def _shared(result: SimilarityResult, short: dict[str, str]) -> list[str]:
    """What models encode of tracks, and whether matched neurons encode the same classes."""
    sentences = []
    if "mincorr_neuron" in result.dataset and len(result.compared_models) > 1:
        sentences.append(_shared_neurons(result, short))
    if not result.tracks:
        return [*sentences, "What they encode is not known: the result has no labels or features."]
    try:
        concepts = read_concepts(result)
    except UserError as error:
        return [*sentences, f"What they encode is not known: {error}."]
    tracks = [*concepts.labels, *concepts.features]
    for track in tracks[:MOST_TRACKS]:
        curves = [c for c in concepts.content if c.track == track and c.best is not None]
        if curves:
            sentences.append(_content(track, curves, short))
    for label in concepts.labels[:MOST_TRACKS]:
        found = [a for a in concepts.agreement if a.track == label]
        found = [a for a in found if np.isfinite(a.kappa).any()]
        if found:
            sentences.append(_agreement(max(found, key=lambda a: np.nanmean(a.kappa)), short))
    return sentences


def _shared_neurons(result: SimilarityResult, short: dict[str, str]) -> str:
    values = np.asarray(result.dataset["mincorr_neuron"].values, np.float64)
    of_model = np.array([name.model for name in result.representations], dtype=object)
    shares = {}
    for model in result.compared_models:
        known = values[of_model == model]
        known = known[np.isfinite(known)]
        if known.size:
            shares[model] = float((known >= SHARED_CORRELATION).mean())
    ranked = sorted(shares, key=lambda model: -shares[model])
    shown = [f"{shares[m]:.0%} of those of {short[m]}" for m in ranked[:MOST_NAMED]]
    return (
        f"Neurons with a match of |correlation| {SHARED_CORRELATION:g} or more in every other "
        f"model: {listed(shown, len(ranked))}."
    )


def _content(track: str, curves: Sequence[DepthCurve], short: dict[str, str]) -> str:
    def best(curve: DepthCurve) -> tuple[Estimate, float, int]:
        k = curve.best or 0
        estimate = Estimate(float(curve.values[k]), float(curve.half[k]))
        return estimate, float(curve.other[k]), int(curve.layers[k])

    ranked = sorted(curves, key=lambda curve: -best(curve)[0].value)
    texts = []
    for curve in ranked[:MOST_NAMED]:
        estimate, heldout, layer = best(curve)
        held = f", held out {heldout:.3f}" if np.isfinite(heldout) else ""
        texts.append(f"layer {layer} of {short[curve.model]} ({estimate}{held})")
    return f"{track} is read best from {listed(texts, len(ranked), 'models')}."


def _agreement(found: Agreement, short: dict[str, str]) -> str:
    observed, chance, kappa = (
        float(np.nanmean(of)) for of in (found.observed, found.chance, found.kappa)
    )
    errors = found.kappa_error[np.isfinite(found.kappa_error)]
    half = NORMAL_HALF * float(errors.mean()) if errors.size else float("nan")
    estimate = Estimate(kappa, half)
    verdict = {
        True: "more often than by chance" if kappa > 0 else "less often than by chance",
        False: "not distinguishable from chance",
        None: "it is not known how sure that is",
    }[estimate.differs]
    return (
        f"Best-matched neurons of {short[found.x]} and {short[found.y]} encode the same class of "
        f"{found.track} in {observed:.0%} of cases, {chance:.0%} by chance (kappa {estimate}): "
        f"{verdict}."
    )


def _of_cell(scores: ModelScores, pair: RankedPair, about: About, text: str) -> Sentence:
    x, y = scores.closest_cell(pair.x, pair.y)
    return Sentence(about, text, (scores.labels[x], scores.labels[y]))


def _pair(pair: RankedPair, short: dict[str, str]) -> str:
    return short[pair.x] if pair.x == pair.y else f"{short[pair.x]} and {short[pair.y]}"


def _model(scores: ModelScores, place: int) -> str:
    return scores.labels[place].rpartition("/")[0]


def _at(scores: ModelScores, place: int) -> str:
    return f"{scores.layers[place]} (depth {scores.depths[place]:.2f})"
