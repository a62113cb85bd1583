"""`compare_activations`: the same statistics and scores on arrays."""

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from speechsim_jax.comparison.arrays import (
    as_array,
    as_models,
    check_finite,
    checked_groups,
    default_stats_dtype,
    few_sizes,
    is_array,
    named,
    representation_names,
)
from speechsim_jax.comparison.few_rows import few_rows, grams_of
from speechsim_jax.comparison.label_tracks import label_track
from speechsim_jax.comparison.null_arrays import Null, null_moments, row_pairs
from speechsim_jax.comparison.pairs import chosen_pairs
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.score import (
    WELL_KNOWN,
    log_unknown_errors,
    scored_result,
    with_reading,
    worst_known,
)
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import folds as divided
from speechsim_jax.inference.influence_table import Keep
from speechsim_jax.measures.concepts import LabelTrack
from speechsim_jax.measures.influence_sums import InfluenceSums
from speechsim_jax.measures.registry import MeasureSelection, resolve
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.settings import Output, Settings
from speechsim_jax.statistics.accumulator import Accumulator, BatchRows, EncodedBatch, State
from speechsim_jax.statistics.clustered_sample import ClusteredSampleAccumulator, choose
from speechsim_jax.statistics.folded_moments import FoldedMoments, FoldedMomentsAccumulator
from speechsim_jax.statistics.moments import ModelShape, Tile, tiles_of
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.null_moments import NullMoments
from speechsim_jax.statistics.product_precision import HIGHEST, resolved
from speechsim_jax.statistics.sample import Sample, SampleAccumulator
from speechsim_jax.statistics.store import FinishedStatistics, PassStatistics

# Between these the squares and products that are summed keep their digits.
_LIMITS = {"float32": (1e-8, 1e6), "float64": (1e-35, 1e35)}
_SCALE_IT = "scale it, as no score depends on the scale, or use stats_dtype='float64'"

_log = logging.getLogger(__name__)

_ERRORS = {
    True: ("group", "groups of rows, as given"),
    False: ("none", "they were not asked for (errors=True)"),
}

Rows = Any
"""An array, or an iterable of arrays, one after the other, or a function that returns one."""


def compare_activations(
    activations: Mapping[Any, Rows],
    measures: str | list[str] | tuple[str, ...] = "paper",
    *,
    levels: list[str] | tuple[str, ...] | None = None,
    stats_dtype: str | None = None,
    stats_precision: str = Settings.stats_precision,
    rank_tolerance: float | int | None = None,
    rows_per_update: int = Settings.rows_per_update,
    sample_frames: int = Settings.sample_frames,
    seed: int = 0,
    utterances: Sequence[str] | np.ndarray | None = None,
    errors: bool = False,
    groups: Sequence[Any] | np.ndarray | None = None,
    errors_rows: int = Settings.errors_rows,
    errors_source: Literal["auto", "sample", "reading"] = "auto",
    keep_influence: Keep = Output.keep_influence,
    heldout: bool = False,
    folds: Sequence[Any] | np.ndarray | None = None,
    null: Null = Settings.null,
    null_draws: int = Settings.null_draws,
    pairs: str | Sequence[str | tuple[str, str]] = "all",
    labels: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    label_min_share: float | int = 0.0,
    given: Sequence[str] = (),
    given_part: Literal["rest", "explained"] = Settings.given_part,
    progress: bool = False,
) -> SimilarityResult:
    """Compare representations given as arrays, on the same rows.

    >>> x = np.random.default_rng(0).standard_normal((500, 64))
    >>> result = ss.compare_activations({"mine/0": x, "theirs/3": x[:, ::-1]})
    >>> round(float(result.matrix("maxcorr").loc["mine/0", "theirs/3"]), 6)
    1.0
    >>> result.dataset["best_match"].loc["mine/0", "theirs/3"].values[:3]
    array([63, 62, 61], dtype=int32)

    Args:
      activations: name -> array [rows, neurons] (numpy's, memory-mapped ones are read in blocks;
        JAX's, torch's, or rows as lists), or an iterable of such arrays, one after the other, or a
        function that returns one.
        "model/3" or ("model", 3) is layer 3 of a model; a key without a layer is layer 0 of a model
        of one layer.
      measures: as in `compare`, except for attention.
      levels: as in `compare`.
      stats_dtype: float64 on a CPU by default, compensated float32 elsewhere and where all arrays
        have float32 or fewer digits.
      stats_precision: as in `Settings`.
      rank_tolerance: as in `Settings`.
      rows_per_update: rows that are added to the statistics together.
      sample_frames: rows of the sample that some measures read, chosen by `seed` and the rows'
        numbers (all, if there are no more).
      seed: of the sample.
      utterances: the utterance of each row; without it, `mutual_knn` cannot leave neighbours in
        time out.
      errors: whether scores get standard errors.
      groups: the cluster of each row, such as its speaker, that standard errors are taken over
        (default: `utterances`).
      errors_rows: rows that standard errors are estimated from, at most about.
      errors_source: whether they are estimated from a sample of rows, or the arrays are read a
        second time ("auto": where the sample does not give half of those of a measure to 10 %). An
        iterator can be read once only.
      keep_influence: as in `Output`.
      heldout: whether there are scores that are fitted on one fold of the rows and evaluated on the
        other, NAME_heldout.
      folds: the fold of each row, two different values (default: groups, or utterances, divided so
        that rows are balanced).
      null: as in `Settings`; "shift" needs utterances, "swap" takes those of another group. The
        arrays are read once more for each draw, so they may not be iterables.
      null_draws: as in `Settings`.
      pairs: of representations: "all"; "between" models or "within" them; "same_depth", between
        models the layers nearest in depth; or a list of pairs of keys. Others have no score.
      labels: name -> the label of each row, as its phone; None or "" for none. Each becomes a
        representation of that name, with a column for every class, and brings what neurons and
        layers know of it (docs/concepts.md).
      label_min_share: classes of a smaller share of the labelled rows count as no label.
      given: keys of representations that are regressed out of all others, as acoustic features:
        scores are of what is left (partial scores), and these leave the result.
      given_part: as in `Settings`.
      progress: whether a bar is shown on stderr.

    Returns:
      All scores, labelled.

    Raises:
      UserError: arrays that are not [rows, neurons] of the same number of rows; NaN or inf, with
        the row.
    """
    if not activations:
        raise UserError("no activations given")
    precision: dict[str, Any] = {} if stats_dtype is None else {"stats_dtype": stats_dtype}
    settings = Settings(
        stats_precision=stats_precision,
        pairs=pairs,  # pyright: ignore[reportArgumentType]
        sample_frames=sample_frames,
        seed=seed,
        rank_tolerance=rank_tolerance,
        rows_per_update=rows_per_update,
        errors_rows=errors_rows,
        errors_source=errors_source,
        null=null,
        null_draws=null_draws,
        given=tuple(given) if isinstance(given, list | tuple) else (),
        given_part=given_part,
        **precision,
    )
    for name, value in (("errors", errors), ("heldout", heldout)):
        if not isinstance(value, bool):
            raise UserError(
                f"{name} is {value!r}; expected True or False (groups names the clusters)"
            )
    output = Output(keep_influence=keep_influence, progress=progress)
    names = utterances if groups is None else groups
    fold_of = _fold_of(folds, names, seed) if heldout or folds is not None else None
    speakers, groups = groups, checked_groups(names) if errors else None
    if folds is not None and groups is not None and fold_of is not None:
        in_folds = set(zip(groups.tolist(), fold_of.tolist()))
        if len(in_folds) > len(set(groups.tolist())):
            _log.warning("some groups are in both folds: held-out scores are not of new groups")
    if rows_per_update < 2:
        raise UserError("rows_per_update is 1; expected at least 2")
    selection = resolve(measures, levels)._replace(errors=errors, heldout=fold_of is not None)
    selection = selection._replace(null=null != "none")
    null_pairs = None
    if NullMoments.kind in selection.accumulated:
        if len(given):
            raise UserError(f"null={null!r} has no partial form; leave it out, or given")
        of_utterance, of_speaker = (
            None if values is None else named(what, values)
            for what, values in (("utterances", utterances), ("groups", speakers))
        )
        null_pairs = row_pairs(null, of_utterance, of_speaker, null_draws, seed)
        if chunks := [key for key, rows in activations.items() if not is_array(rows)]:
            raise UserError(
                f"{chunks[0]}: null={null!r} reads rows in another order; give an array "
                "(np.memmap for one that does not fit into memory), not chunks of one"
            )
    if attention := selection.on("attention"):
        raise UserError(f"{attention[0].name} compares maps; use compare_attentions")
    for measure in selection.measures:
        if measure.statistic not in (MomentsState.kind, Sample.kind):
            raise UserError(
                f"{measure.name} reads the statistic {measure.statistic!r}, which arrays do not "
                "have; use compare"
            )
    tracks = [label_track(name, of, label_min_share) for name, of in (labels or {}).items()]
    selection = selection._replace(labels=bool(tracks))
    names = representation_names(
        [*activations, *(track.name for track in tracks)], layer=0, argument="activations"
    )
    texts = [str(name) for name in names]
    labelled = texts[len(activations) :]
    compared = Representations(
        tuple(names),
        tuple(
            LabelTrack(track.name, texts.index(label), track.classes)
            for track, label in zip(tracks, labelled)
        ),
        pairs=chosen_pairs(
            settings.pairs,
            names,
            _depths(names),
            range(len(activations), len(names)),
            [str(name) for name in representation_names(given, layer=0, argument="given")],
        ),
    ).with_given(given, selection, given_part)
    if stats_dtype is None:
        stats_dtype = default_stats_dtype(activations.values())
    products = resolved(settings.stats_precision, stats_dtype)
    indicators = [functools.partial(track.indicators, rows_per_update) for track in tracks]
    everything = [*activations.values(), *indicators]
    once = [text for text, rows in zip(texts, everything) if _read_once(rows)]
    if errors and errors_source == "reading" and once:
        raise UserError(
            f"{once[0]}: an iterator can be read once only; errors_source='reading' needs an "
            "array, a list of chunks, or a function that returns an iterable"
        )

    def blocks_of_all() -> Iterator[list[np.ndarray]]:
        return _aligned(texts, everything, rows_per_update, _LIMITS[stats_dtype])

    blocks = blocks_of_all()
    first = next(blocks)
    blocks = itertools.chain([first], blocks)
    widths = [block.shape[1] for block in first]

    def check_named(rows: int) -> None:
        if utterances is not None and len(utterances) != rows:
            raise UserError(f"utterances names {len(utterances)} rows, but there are {rows}")
        for what, of_rows in (("groups", groups), ("groups", speakers), ("folds", fold_of)):
            if of_rows is not None and len(of_rows) != rows:
                raise UserError(f"{what} names {len(of_rows)} rows, but there are {rows}")

    def accumulated() -> FinishedStatistics:
        shapes = _shapes(widths)
        moments = _moments(
            shapes,
            min(rows_per_update, few_sizes(len(first[0]))),
            stats_dtype,
            products,
            fold_of if FoldedMoments.kind in selection.accumulated else None,
            None if compared.pairs is None else tiles_of(shapes, compared.pairs),
        )
        accumulators: list[Accumulator] = [moments]
        if selection.on("sample"):
            clusters = None if groups is None else functools.partial(_of_rows, "groups", groups)
            accumulators.append(
                SampleAccumulator(
                    shapes, sample_frames, seed, rows_dtype=stats_dtype, names=clusters
                )
            )
        # What is known of labels has sampled errors in any case.
        sampled = bool(tracks) or (selection.with_influence and errors_source != "reading")
        if groups is not None and sampled:
            accumulators.append(_clustered(shapes, groups, errors_rows, seed, stats_dtype))
        for arrays in blocks:
            rows = _rows(moments.rows, len(arrays[0]), utterances)
            batch = EncodedBatch(as_models(shapes, arrays, stats_dtype), rows)
            for accumulator in accumulators:
                accumulator.update(batch)
        check_named(moments.rows)
        states: list[State] = [accumulator.result() for accumulator in accumulators]
        if null_pairs is not None:
            arrays = [as_array(text, rows) for text, rows in zip(texts, activations.values())]
            arrays += [np.concatenate(list(track.indicators(rows_per_update))) for track in tracks]
            states.append(
                null_moments(
                    arrays, shapes, null_pairs, null_draws, rows_per_update, stats_dtype, products
                )
            )
        passes = [PassStatistics({state.kind: state for state in states})]
        return compared.finish(passes, rank_tolerance)

    if (
        selection.of_norms
        and not compared.given
        and products == HIGHEST
        and few_rows(everything, widths, stats_dtype, compared.pairs)
    ):
        grams = grams_of(blocks, everything, widths, stats_dtype, rank_tolerance)
        check_named(grams.rows)
        finished = FinishedStatistics({MomentsState.kind: grams})
    else:
        finished = accumulated()
    attributes = provenance.record(
        frames=finished.rows(0),
        numeric={"stats_precision": products} | finished.numeric,
        settings={
            "sample_frames": sample_frames,
            "seed": seed,
            "errors_rows": errors_rows,
            "pairs": settings.pairs,
        },
        errors=dict(zip(("over", "reason"), _ERRORS[errors])),
        null={"kind": null, "draws": null_draws},
        **({"given": list(given), "given_part": given_part} if compared.given else {}),
    )
    result = scored_result(compared.left, finished, selection, attributes, output)
    if groups is not None and _read_again(result, selection, errors_source, once):
        assert finished.moments is not None
        sums = InfluenceSums(finished.moments, selection.measures)
        read = 0
        for arrays in blocks_of_all():
            of_rows = groups[read : read + len(arrays[0])]
            read += len(arrays[0])
            taken = [block[: len(of_rows)].astype(stats_dtype) for block in arrays]
            sums.add(finished.residuals(taken), of_rows)
        if read != finished.rows(0):
            raise UserError(f"{texts[0]}: not the same rows when read a second time")
        result = with_reading(result, sums.result(), output)
    log_unknown_errors(result, selection)
    if warning := result.few_frames_warning():
        _log.warning("%s", warning)
    return result


def _depths(names: Sequence[RepresentationName]) -> list[float]:
    """The relative depth of each, the last layer that is given being a model's last."""
    last = {name.model: 0 for name in names}
    for name in names:
        last[name.model] = max(last[name.model], name.layer)
    return [name.layer / max(last[name.model], 1) for name in names]


def _read_again(
    result: SimilarityResult, selection: MeasureSelection, source: str, once: Sequence[str]
) -> bool:
    """Whether standard errors are computed from a second reading of the arrays."""
    if not selection.with_influence or source == "sample":
        return False
    if source == "reading":
        return True
    worst = worst_known(result, selection)
    if worst > WELL_KNOWN and once:
        _log.info(
            "sampled standard errors are known to %.0f %% (median); %s can be read once only, so "
            "they are not computed from all rows", 100 * worst, once[0],
        )  # fmt: skip
    return worst > WELL_KNOWN and not once


def _clustered(
    shapes: tuple[ModelShape, ...], groups: np.ndarray, most_rows: int, seed: int, dtype: str
) -> ClusteredSampleAccumulator:
    """The sample that standard errors are estimated from: all rows if there are no more."""

    clusters, lengths = np.unique(groups, return_counts=True)
    choice = choose(dict(zip(clusters.tolist(), lengths.tolist())), most_rows, seed, share=1.0)
    names = functools.partial(_of_rows, "groups", groups)
    return ClusteredSampleAccumulator(shapes, choice, names, rows_dtype=dtype)


def _of_rows(what: str, values: np.ndarray, rows: BatchRows) -> np.ndarray:
    """The values of the rows of a batch."""
    if rows.number[-1] >= len(values):
        raise UserError(f"{what} names {len(values)} rows, but there are more")
    return values[rows.number]


def _fold_of(
    given: Sequence[Any] | np.ndarray | None,
    groups: Sequence[Any] | np.ndarray | None,
    seed: int,
) -> np.ndarray:
    """The fold of each row, 0 or 1."""
    if given is not None:
        values, fold_of = np.unique(named("folds", given).astype(str), return_inverse=True)
        if len(values) != 2:
            raise UserError(
                f"folds: expected one of two values for each row, got {len(values)} values"
            )
        return fold_of
    names = checked_groups(groups)
    clusters, index, counts = np.unique(names, return_inverse=True, return_counts=True)
    of_cluster = divided(dict(zip(clusters.tolist(), counts.tolist())), seed)
    return np.array([of_cluster[name] for name in clusters.tolist()])[index]


def _moments(
    shapes: tuple[ModelShape, ...],
    rows_per_update: int,
    dtype: str,
    precision: str,
    fold_of: np.ndarray | None,
    tiles: tuple[Tile, ...] | None,
) -> MomentsAccumulator | FoldedMomentsAccumulator:
    """The accumulator of the moments, of two folds where there are folds."""

    def one() -> MomentsAccumulator:
        return MomentsAccumulator(
            shapes, rows_per_update, dtype, rows_dtype=dtype, tiles=tiles, precision=precision
        )

    if fold_of is None:
        return one()
    return FoldedMomentsAccumulator((one(), one()), functools.partial(_of_rows, "folds", fold_of))


def _rows(start: int, count: int, utterances: Sequence[str] | np.ndarray | None) -> BatchRows:
    """`count` rows from row `start`; a row's key depends on its number, not its utterance."""
    names, utterance = np.array([""]), np.zeros(count, np.int64)
    if utterances is not None:
        of_rows = np.asarray(utterances[start : start + count]).astype(str)
        if len(of_rows) < count:
            raise UserError(f"utterances names {len(utterances)} rows, but there are more")
        names, utterance = np.unique(of_rows, return_inverse=True)
    return BatchRows(
        positions=np.arange(count),
        utterance=utterance,
        number=np.arange(start, start + count),
        ids=("",) * len(names),
        utterances=tuple(names.tolist()),
    )


def _blocks(name: str, rows: Rows, size: int, limits: tuple[float, float]) -> Iterator[np.ndarray]:
    """Blocks of exactly `size` rows, except for the last; the largest value within the limits."""
    pending: list[np.ndarray] = []
    waiting = checked = 0
    if not is_array(rows) and not isinstance(rows, Iterable) and callable(rows):
        rows = rows()
    if not is_array(rows) and not isinstance(rows, Iterable):
        raise UserError(
            f"{name}: expected an array [rows, neurons] or chunks of one, got {type(rows).__name__}"
        )
    width, peak = None, 0.0
    for given in [rows] if is_array(rows) else rows:
        chunk = as_array(name, given)
        if chunk.ndim != 2 or chunk.shape[1] == 0:
            raise UserError(f"{name}: expected an array [rows, neurons], got shape {chunk.shape}")
        if width not in (None, chunk.shape[1]):
            raise UserError(f"{name}: has chunks of {width} and of {chunk.shape[1]} neurons")
        width = chunk.shape[1]
        for start in range(0, len(chunk), size):
            part = np.asarray(chunk[start : start + size])
            check_finite(name, part, before=checked)
            checked += len(part)
            # Not np.abs: the smallest integer has no absolute value of its type.
            peak = max(peak, float(part.max(initial=0)), -float(part.min(initial=0)))
            if peak > limits[1]:
                raise UserError(f"{name}: has values up to {peak:.3g}; {_SCALE_IT}")
            pending.append(part)
            waiting += len(part)
            while waiting >= size:
                joined = np.concatenate(pending)
                yield joined[:size]
                pending, waiting = [joined[size:]], waiting - size
    if 0 < peak < limits[0]:
        raise UserError(f"{name}: no value exceeds {peak:.3g}; {_SCALE_IT}")
    if waiting:
        yield np.concatenate(pending)


def _read_once(rows: Rows) -> bool:
    """Whether rows are gone once they have been read: an iterator."""
    return not is_array(rows) and isinstance(rows, Iterator)


def _aligned(
    labels: list[str], activations: list[Rows], size: int, limits: tuple[float, float]
) -> Iterator[list[np.ndarray]]:
    """Blocks of the same rows of all representations."""
    blocks = [_blocks(label, rows, size, limits) for label, rows in zip(labels, activations)]
    before = 0
    while True:
        current = [next(block, None) for block in blocks]
        _check_aligned(labels, current, before)
        if current[0] is None:
            return
        before += len(current[0])
        yield [block for block in current if block is not None]


def _check_aligned(labels: list[str], blocks: list[np.ndarray | None], before: int) -> None:
    """Raise UserError unless all representations have the same rows, and at least two."""
    lengths = [0 if block is None else len(block) for block in blocks]
    for label, length in zip(labels, lengths):
        if length != lengths[0]:
            raise UserError(
                f"{labels[0]} and {label} differ in rows ({before + lengths[0]} and "
                f"{before + length} so far); every representation needs the same rows"
            )
    if before == 0 and lengths[0] < 2:
        raise UserError(f"at least 2 rows are needed, got {lengths[0]}")


def _shapes(widths: list[int]) -> tuple[ModelShape, ...]:
    """Adjacent representations of one width are treated as layers of one model."""
    shapes: list[ModelShape] = []
    for width in widths:
        if shapes and shapes[-1].neurons == width:
            shapes[-1] = ModelShape(shapes[-1].layers + 1, width)
        else:
            shapes.append(ModelShape(1, width))
    return tuple(shapes)
