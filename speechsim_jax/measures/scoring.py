"""Scores all pairs of representations with all measures, from finished statistics."""

import collections
import dataclasses
import functools
import itertools
import logging
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from speechsim_jax.inference.influence_rows import Influence, RepresentationRows
from speechsim_jax.inference.influence_table import (
    InfluenceCollector,
    InfluenceTable,
    Keep,
    joined,
)
from speechsim_jax.inference.standard_errors import SampledClusters
from speechsim_jax.measures.base import (
    AttentionPair,
    GramPair,
    Measure,
    Pair,
    PairRows,
    Ranking,
    RepresentationPair,
    SamplePair,
    divide,
)
from speechsim_jax.measures.cca import kept_directions
from speechsim_jax.measures.heldout import HeldOutPair
from speechsim_jax.measures.influences import influences_of_rows
from speechsim_jax.measures.null import null_extras, null_scores
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.statistics.attention_finished import AttentionState, FinishedAttention
from speechsim_jax.statistics.clustered_sample import ClusteredSample
from speechsim_jax.statistics.folded_moments import FinishedFolds, FoldedMoments
from speechsim_jax.statistics.grams import FinishedGrams
from speechsim_jax.statistics.linalg import map_in_threads
from speechsim_jax.statistics.moments_finished import (
    FinishedMoments,
    MomentsState,
    RepresentationMoments,
)
from speechsim_jax.statistics.null_moments import FinishedNull, NullDraw, NullMoments
from speechsim_jax.statistics.sample import Sample

Extras = dict[str, tuple[tuple[str, ...], np.ndarray]]

# Dimensions of a statistic's matrices, where they are not x and y.
_DIMS = {"attention": ("x_attention", "y_attention")}
# Memory for what the representations of one block cache: for each a kernel and ranked
# dissimilarities, 8 n^2 bytes together for n rows (32 MB for 2000), and with standard errors two
# squares of the kernel and one of the ranks, 13 n^2 more. The temporaries of each thread, 40 n^2,
# come on top.
_SAMPLE_BYTES = 2**31
_BYTES_PER_PAIR_OF_ROWS, _WITH_INFLUENCE = 8, 21
# The same for rows of which influences are computed: z-scored and whitened.
_ROWS_BYTES = 2**30
# A score may leave its limits by this much, of rounding in float32.
_ROUNDING = 1e-4

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores, and named arrays next to them.

    Attributes:
      matrices: measure -> [x, y].
      dims: measure -> names of these dimensions.
      extras: name -> (dimensions, array), padded with NaN or -1. Among them NAME_se, standard
        errors, and NAME_se_error, their own relative errors.
      influence: behind the standard errors; None if there are none, or it is not kept.
      degrees: of freedom of the standard errors of measures on the sample and on attention.
    """

    matrices: dict[str, np.ndarray]
    dims: dict[str, tuple[str, str]]
    extras: Extras
    influence: InfluenceTable | None = None
    degrees: Mapping[str, int] = dataclasses.field(default_factory=dict)


def score_all(
    finished: Mapping[str, Any],
    selection: MeasureSelection,
    models: Sequence[str] = (),
    tracks: Collection[str] = (),
    on_pair: Callable[[], object] = lambda: None,
    sample_bytes: int = _SAMPLE_BYTES,
    keep_influence: Keep = "auto",
    pairs: Collection[tuple[int, int]] | None = None,
) -> Scores:
    """Score every ordered pair of representations of every statistic.

    Args:
      finished: the finished statistics by kind; those that the measures read.
      selection: measures and rankings.
      models: the model of each representation, for the rankings.
      tracks: those of `models` that are tracks, which neurons are not ranked by.
      on_pair: called after each unordered pair of each statistic, for progress.
      sample_bytes: memory for what measures on the sample cache of its representations.
      keep_influence: what is kept of the influences behind standard errors.
      pairs: of representations that are scored, by number, the smaller first; None for all. Those
        of attention are in any case.
    """
    matrices: dict[str, np.ndarray] = {}
    details = _Details()
    collectors: dict[str, InfluenceCollector] = {}
    rows = None
    folds: FinishedFolds | None = finished.get(FoldedMoments.kind)
    heldout: dict[str, np.ndarray] = {}
    if folds is not None:
        shape = (len(folds.representations),) * 2
        names = [name for measure in selection.measures for name in measure.heldout]
        heldout = {name: np.full(shape, np.nan) for name in names}
    null: FinishedNull = finished.get(NullMoments.kind, FinishedNull(()))
    under_null: dict[str, np.ndarray] = {}
    if null.draws:
        shape = (len(null.draws), *(len(null.representations),) * 2)
        measures = selection.on(MomentsState.kind)
        under_null = {measure.name: np.full(shape, np.nan) for measure in measures}
    if selection.whitens:
        whiten = operator.attrgetter("whitening")
        for _ in map_in_threads(whiten, finished[MomentsState.kind].representations):
            pass
    if ClusteredSample.kind in finished and selection.with_influence:
        collectors[MomentsState.kind], rows = _influences(finished, selection, keep_influence)
    for kind in selection.statistics:
        measures = selection.on(kind)
        if not measures:
            continue
        count = len(finished[kind].representations)
        matrices |= {measure.name: np.full((count, count), np.nan) for measure in measures}
        x, y = _dims(kind)
        of_moments = kind == MomentsState.kind
        if kind == Sample.kind:
            collectors |= _of_sample(finished[kind], measures, keep_influence)
        elif kind == AttentionState.kind:
            collectors |= _of_attention(finished[kind], measures, keep_influence)
        of_kind = [c for key, c in collectors.items() if key.split()[0] == kind]
        further = _Further(rows, folds, null.draws) if of_moments else _Further()
        wanted = None if kind == AttentionState.kind else pairs
        for views in _scored(finished[kind], measures, sample_bytes, further, wanted):
            for view in views:
                for name, value in view.heldout.items():
                    heldout[name][view.i, view.j] = value
                for name, values in view.under_null.items():
                    under_null[name][:, view.i, view.j] = values
                for collector in of_kind:
                    known = {n: i for n, i in view.influences.items() if n in collector.errors}
                    collector.add(view.i, view.j, known)
                for name, value in view.scores.items():
                    matrices[name][view.i, view.j] = value
                details.add((x, y), (count, count), (view.i, view.j), view.details)
                details.add((x,), (count,), (view.i,), view.facts)
            on_pair()
        details.coordinates |= getattr(finished[kind], "coordinates", {})
    extras = details.arrays()
    for ranking in selection.rankings:
        _, name = ranking.reads
        extras |= rank_neurons(
            extras[name][1], ranking, [None if model in tracks else model for model in models]
        )
    if MomentsState.kind in finished:
        extras |= representation_facts(finished[MomentsState.kind], selection.whitens)
        _undefine_constant(matrices, selection, finished[MomentsState.kind])
    for measure in selection.measures:
        _keep_to_limits(matrices[measure.name], measure)
    dims = {m.name: _dims(m.statistic) for m in selection.measures}
    for collector in collectors.values():
        for name in collector.errors:
            undefined = np.isnan(matrices[name])
            for suffix, values in (("se", collector.errors), ("se_error", collector.relative)):
                values[name][undefined] = np.nan
                extras[f"{name}_{suffix}"] = (dims[name], values[name])
    for measure in selection.measures:
        for name in measure.heldout if folds is not None else ():
            heldout[name][np.isnan(matrices[measure.name])] = np.nan
            extras[name] = (("x", "y"), heldout[name])
        if measure.name in under_null:
            of_draws = under_null[measure.name]
            extras |= null_extras(measure, matrices[measure.name], of_draws, models)
    return Scores(
        {m.name: matrices[m.name] for m in selection.measures},
        dims,
        extras,
        joined(
            collectors[MomentsState.kind].table() if MomentsState.kind in collectors else None,
            [c.table() for kind, c in collectors.items() if kind != MomentsState.kind],
        ),
        {
            name: collector.clusters.degrees
            for kind, collector in collectors.items()
            if kind != MomentsState.kind
            for name in collector.errors
        },
    )


def _influences(
    finished: Mapping[str, Any], selection: MeasureSelection, keep: Keep
) -> tuple[InfluenceCollector, list[RepresentationRows]]:
    """The collector of influences, and the sampled rows of each representation."""
    sample: ClusteredSample = finished[ClusteredSample.kind]
    representations = finished[MomentsState.kind].representations
    names = tuple(measure.name for measure in selection.with_influence)
    rows = [RepresentationRows(r, x) for r, x in zip(representations, sample.representations)]
    clusters = SampledClusters.of(sample)
    return InfluenceCollector(clusters, names, len(representations), keep), rows


def _of_sample(
    sample: Sample, measures: Sequence[Measure], keep: Keep
) -> dict[str, InfluenceCollector]:
    """The collectors of influences on measures on the sample; none without clusters."""
    if not len(sample.clusters) or (sample.clusters == "").any():
        return {}
    clusters, rows = np.unique(sample.clusters.astype(str), return_counts=True)
    known = {Sample.kind: SampledClusters.whole(clusters.tolist(), rows)}
    known[f"{Sample.kind} groups"] = _groups(np.bincount(sample.representations[0].group))
    names: dict[str, list[str]] = {key: [] for key in known}
    for measure in measures:
        if measure.influence is not None:
            names[f"{Sample.kind} groups" if measure.grouped else Sample.kind].append(measure.name)
    count = len(sample.representations)
    return {
        key: InfluenceCollector(known[key], tuple(names[key]), count, keep)
        for key in known
        if names[key]
    }


def _groups(rows: Int64[np.ndarray, " group"]) -> SampledClusters:
    """Groups of clusters of so many rows each."""
    return SampledClusters.whole([f"group {k + 1}" for k in range(len(rows))], rows)


def _of_attention(
    attention: FinishedAttention, measures: Sequence[Measure], keep: Keep
) -> dict[str, InfluenceCollector]:
    """The influences of groups of utterances on measures on attention; none without groups.

    A group moves a score by what it changes when the group is left out, as many times less as the
    other groups are of all.
    """
    measures = [measure for measure in measures if measure.grouped]
    frames = attention.group_frames
    if not measures or len(frames) < 2:
        return {}
    clusters = _groups(np.array(list(frames.values())))
    names, count = tuple(measure.name for measure in measures), len(attention.representations)
    collector = InfluenceCollector(clusters, names, count, keep, _dims(AttentionState.kind))
    scores = _head_scores(attention, measures)
    others = clusters.total_rows / clusters.rows - 1
    moved = {name: np.zeros((len(frames), count, count)) for name in names}
    for place, group in enumerate(frames):
        rest = _head_scores(attention.without(group), measures)
        for name in names:
            moved[name][place] = others[place] * (scores[name] - rest[name])
    for i, j in itertools.product(range(count), repeat=2):
        of_pair = {name: moved[name][:, i, j] for name in names}
        collector.add(i, j, {name: values - values.mean() for name, values in of_pair.items()})
    return {AttentionState.kind: collector}


def _head_scores(
    attention: FinishedAttention, measures: Sequence[Measure]
) -> dict[str, Float[np.ndarray, "x y"]]:
    """The scores of all pairs of layers, by measure."""
    count = len(attention.representations)
    scores = {measure.name: np.zeros((count, count)) for measure in measures}
    for i, j in itertools.product(range(count), repeat=2):
        pair = AttentionPair(attention, i, j)
        for measure in measures:
            known = measure.symmetric and j < i
            of_measure = scores[measure.name]
            of_measure[i, j] = of_measure[j, i] if known else measure.function(pair)
    return scores


def _undefine_constant(
    matrices: Mapping[str, np.ndarray],
    selection: MeasureSelection,
    moments: FinishedMoments | FinishedGrams,
) -> None:
    """A representation without a live neuron is like nothing: NaN in every measure."""
    constant = [k for k, r in enumerate(moments.representations) if not r.live.any()]
    if not constant:
        return
    numbers = ", ".join(str(k + 1) for k in constant)
    _log.warning("constant, and so without scores: representation %s", numbers)
    for measure in selection.measures:
        if _dims(measure.statistic) == ("x", "y"):
            matrices[measure.name][constant, :] = np.nan
            matrices[measure.name][:, constant] = np.nan


def _keep_to_limits(scores: np.ndarray, measure: Measure) -> None:
    """Scores that leave the measure's limits by rounding get the limit; further out, NaN."""
    low, high = measure.limits
    outside = (scores < low - _ROUNDING) | (scores > high + _ROUNDING)
    if outside.any():
        worst = float(scores[outside][np.argmax(np.abs(scores[outside]))])
        _log.warning(
            "%d scores of %s are not defined: they are as far out of its limits as %.3g, the "
            "statistics have lost their digits (values of very different size; stats_dtype)",
            int(outside.sum()), measure.name, worst,
        )  # fmt: skip
        scores[outside] = np.nan
    np.clip(scores, low, high, out=scores)


def pairs_scored(
    finished: Mapping[str, Any],
    selection: MeasureSelection,
    pairs: Collection[tuple[int, int]] | None = None,
) -> int:
    """How often `score_all` calls `on_pair`."""
    total = 0
    for kind in selection.statistics:
        count = len(finished[kind].representations) if selection.on(kind) else 0
        if count and pairs is not None and kind != AttentionState.kind:
            total += len(pairs)
        else:
            total += count * (count + 1) // 2
    return total


def _dims(kind: str) -> tuple[str, str]:
    return _DIMS.get(kind, ("x", "y"))


class _Details:
    """Named arrays of pairs or representations, collected one by one and padded at the end."""

    def __init__(self) -> None:
        self.coordinates: dict[str, np.ndarray] = {}
        self._values: dict[str, dict[tuple[int, ...], np.ndarray]] = collections.defaultdict(dict)
        self._dims: dict[str, tuple[str, ...]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(
        self,
        outer: tuple[str, ...],
        shape: tuple[int, ...],
        index: tuple[int, ...],
        values: Mapping[str, tuple[str | tuple[str, ...] | None, np.ndarray]],
    ) -> None:
        """Add the arrays of one pair, or of one representation."""
        for name, (inner, array) in values.items():
            inner = () if inner is None else (inner,) if isinstance(inner, str) else inner
            self._dims[name] = (*outer, *inner)
            self._shapes[name] = shape
            self._values[name][index] = array

    def arrays(self) -> Extras:
        """Every array over all pairs; a dimension is as long as its longest array, at least 1."""
        sizes: dict[str, int] = collections.defaultdict(lambda: 1)
        for name, values in self._values.items():
            inner = self._dims[name][len(self._shapes[name]) :]
            for array in values.values():
                for dim, size in zip(inner, array.shape, strict=True):
                    sizes[dim] = max(sizes[dim], size)
        extras: Extras = {}
        for name, values in self._values.items():
            outer, dims = self._shapes[name], self._dims[name]
            dtype = next(iter(values.values())).dtype
            shape = (*outer, *(sizes[dim] for dim in dims[len(outer) :]))
            padded = np.full(shape, np.nan if dtype.kind == "f" else -1, dtype)
            for index, array in values.items():
                padded[(*index, *map(slice, array.shape))] = array
            extras[name] = dims, padded
        used = {dim for dims, _ in extras.values() for dim in dims}
        labels = {dim: ((dim,), names) for dim, names in self.coordinates.items() if dim in used}
        return labels | extras


@dataclasses.dataclass(frozen=True)
class _View:
    """Scores and details of one ordered pair; facts of x where x and y are the same."""

    i: int
    j: int
    scores: dict[str, float]
    details: dict[str, Any]
    facts: dict[str, Any]
    influences: dict[str, Influence]
    heldout: dict[str, float]
    under_null: dict[str, list[float]]


class _Further(NamedTuple):
    """What there is besides the moments of all rows, for standard errors, held-out scores, nulls.

    Attributes:
      rows: sampled rows of each representation.
      folds: the moments of two folds.
      draws: those of rows that do not belong together.
    """

    rows: Sequence[RepresentationRows] | None = None
    folds: FinishedFolds | None = None
    draws: Sequence[NullDraw] = ()


def _scored(
    finished: Any,
    measures: Sequence[Measure],
    sample_bytes: int,
    further: _Further,
    wanted: Collection[tuple[int, int]] | None,
) -> Iterator[list[_View]]:
    """Every unordered pair of one statistic that is wanted (None: all), in both orders."""
    pair = functools.partial(pair_of, finished)
    rows = further.rows
    score = functools.partial(_score, pair, measures, further)
    count = len(finished.representations)
    caching: Sequence[Any] = ()
    blocks = iter([(range(count), range(count))])
    if isinstance(finished, Sample):
        caching = finished.representations
        known = "" not in finished.clusters
        each = _WITH_INFLUENCE if known else _BYTES_PER_PAIR_OF_ROWS
        blocks = pair_blocks(count, each * len(finished.keys) ** 2, sample_bytes)
    elif rows is not None:
        caching = rows
        blocks = pair_blocks(count, max(r.cache_bytes for r in rows), _ROWS_BYTES)
    for a, b in blocks:
        pairs = [(i, j) for i in a for j in b if i <= j]
        if wanted is not None:
            pairs = [pair for pair in pairs if pair in wanted]
        if isinstance(finished, FinishedMoments):  # of other pairs there are no sums
            of = finished.representations
            pairs = [(i, j) for i, j in pairs if finished.has(of[i], of[j])]
        yield from map_in_threads(score, pairs)
        for index, representation in enumerate(caching):
            if index not in a:
                representation.release()


def pair_of(finished: Any, i: int, j: int) -> Any:
    """The argument of a measure's function for representations i and j of a finished statistic."""
    if isinstance(finished, FinishedAttention):
        return AttentionPair(finished, i, j)
    x, y = finished.representations[i], finished.representations[j]
    if isinstance(finished, FinishedMoments):
        return RepresentationPair(finished, x, y)
    if isinstance(finished, FinishedGrams):
        return GramPair(x, y, finished)
    return SamplePair(x, y) if isinstance(finished, Sample) else Pair(x, y)


def pair_blocks(count: int, bytes_each: int, memory_bytes: int) -> Iterator[tuple[range, range]]:
    """Pairs of blocks of representations to take together, each pair in exactly one of them.

    One block if the caches of all representations fit into the memory, else blocks of which two
    fit.

    Args:
      count: of representations.
      bytes_each: of the cache of one.
      memory_bytes: for the caches of two blocks.
    """
    fitting = max(2, memory_bytes // max(bytes_each, 1))
    size = count if count <= fitting else fitting // 2
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    yield from itertools.combinations_with_replacement(blocks, 2)


def _score(
    pair_at: Callable[[int, int], Any],
    measures: Sequence[Measure],
    further: _Further,
    indices: tuple[int, int],
) -> list[_View]:
    """Both directions of a pair; symmetric measures are computed once."""
    i, j = indices
    rows, folds, draws = further
    pair = pair_at(i, j)
    views: list[_View] = []
    for view in (pair,) if pair.same else (pair, pair.swapped):
        scores, details, facts = {}, {}, {}
        for measure in measures:
            known = views and measure.symmetric
            scores[measure.name] = (
                views[0].scores[measure.name] if known else measure.function(view)
            )
            details |= measure.details(view) if measure.details else {}
            facts |= measure.facts(view) if measure.facts and pair.same else {}
        order = indices if view is pair else (j, i)
        influences: dict[str, Influence] = {}
        if rows is not None:
            asymmetric = [m for m in measures if not (views and m.symmetric)]
            of_pair = PairRows(rows[order[0]], rows[order[1]])
            influences = (views[0].influences if views else {}) | influences_of_rows(
                asymmetric, view, of_pair
            )
        elif isinstance(view, SamplePair) and (view.x.cluster >= 0).all():
            influences = views[0].influences if views else _of_clusters(measures, view, scores)
        views.append(_View(*order, scores, details, facts, influences, {}, {}))
    if folds is not None and folds.folds:
        _add_heldout(views, measures, [pair_of(fold, *indices) for fold in folds.folds])
    for view, scores in zip(views, null_scores(draws, measures, i, j) if draws else ()):
        view.under_null.update(scores)
    return views


def _add_heldout(
    views: Sequence[_View], measures: Sequence[Measure], folds: Sequence[RepresentationPair]
) -> None:
    """Means of the scores fitted on either fold and evaluated on the other."""
    pairs = [HeldOutPair(fit, evaluate) for fit, evaluate in (folds, folds[::-1])]
    if not all(r.live.any() for fold in folds for r in (fold.x, fold.y)):
        return
    for view in views:
        for measure in measures:
            known = view is not views[0] and measure.symmetric
            for name, function in measure.heldout.items():
                view.heldout[name] = (
                    views[0].heldout[name]
                    if known
                    else sum(function(pair) for pair in pairs) / len(pairs)
                )
        pairs = [pair.swapped for pair in pairs]


def _of_clusters(
    measures: Sequence[Measure], pair: SamplePair, scores: Mapping[str, float]
) -> dict[str, Influence]:
    """Mean influence of the rows of each cluster of the sample, or each group, by measure."""
    influences = {}
    for measure in measures:
        if measure.influence is not None:
            number = pair.x.group if measure.grouped else pair.x.cluster
            of_rows = np.full(pair.rows, 0.0 if np.isfinite(scores[measure.name]) else np.nan)
            if not pair.same and np.isfinite(scores[measure.name]):
                of_rows = measure.influence(pair)
            influences[measure.name] = np.bincount(number, weights=of_rows) / np.bincount(number)
    return influences


def rank_neurons(best_corr: np.ndarray, ranking: Ranking, models: Sequence[str | None]) -> Extras:
    """Scores of neurons [x, neuron] and their order [x, place], from the best correlations.

    A neuron's best correlation in a model is the best over that model's layers that it is compared
    with; the ranking's function then goes over all *other* models. Ties keep the neurons' order.
    Where there is nothing to rank against, nothing is returned. A representation of no model
    (None) is not ranked, and none is ranked by it.
    """
    names = [model for model in dict.fromkeys(models) if model is not None]
    if len(names) < 2:
        return {}
    of_model = np.array([-1 if model is None else names.index(model) for model in models])
    # NaN of what is not compared, -inf of a model of which nothing is.
    known = np.where(np.isnan(best_corr), -np.inf, best_corr)
    by_model = np.stack([known[:, of_model == k].max(axis=1) for k in range(len(names))], axis=-1)
    scores = np.full(best_corr.shape[::2], np.nan, np.float32)
    order = np.full(best_corr.shape[::2], -1, np.int32)
    for i, model in enumerate(of_model):
        if model < 0:
            continue
        live = np.isfinite(best_corr[i, i])
        others = np.delete(by_model[i][live], model, axis=1)
        others = others[:, np.isfinite(others).all(axis=0)]
        if not others.shape[1]:
            continue
        value = ranking.function(others)
        scores[i, live] = value
        order[i, : len(value)] = np.argsort(-value, kind="stable")
    if np.isnan(scores).all():
        return {}
    return {
        f"{ranking.name}_neuron": (("x", "neuron"), scores),
        f"{ranking.name}_order": (("x", "place"), order),
    }


def representation_facts(moments: FinishedMoments | FinishedGrams, whitened: bool) -> Extras:
    """What qualifies the scores of each representation: its dead neurons, rank, ...

    Args:
      moments: of the representations.
      whitened: whether a measure reads them whitened, which ranks are known from.
    """
    representations = moments.representations
    facts: dict[str, list[float]] = {"width": [r.width for r in representations]}
    if whitened:
        facts |= {
            "rank": [r.whitening.rank for r in representations],
            "condition": [r.whitening.condition for r in representations],
            "svcca_directions": [kept_directions(r.whitening) for r in representations],
        }
    facts |= {
        "dead_neurons": [int(np.sum(~r.live)) for r in representations],
        "outlier_share": [_outlier_share(r) for r in representations],
        "mean_to_std": [_mean_to_std(r) for r in representations],
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
