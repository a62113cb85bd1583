"""Scores of the finished statistics, labelled."""

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm.auto

from speechsim_jax.comparison.representations import Representations
from speechsim_jax.errors import UserError, counted
from speechsim_jax.inference.standard_errors import SampledClusters
from speechsim_jax.measures.concepts import concepts
from speechsim_jax.measures.influence_sums import ReadInfluence
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.measures.scoring import pairs_scored, score_all
from speechsim_jax.pipeline.job_folder import writing
from speechsim_jax.results.exemplars import exemplar_variables
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime.atomic_write import AnyPath
from speechsim_jax.settings import Output
from speechsim_jax.statistics.clustered_sample import ClusteredSample
from speechsim_jax.statistics.grams import FinishedGrams
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState
from speechsim_jax.statistics.store import FinishedStatistics

_PACKAGE = "speechsim_jax"

# Where half of the sampled standard errors of a measure are known worse than this, relatively, they
# are computed from a second reading, if one can be made.
WELL_KNOWN = 0.1

_CELLS_PER_HEAD = 10
# Representations that a warning names; the result has the numbers of all.
_MOST_NAMED = 5

_log = logging.getLogger(__name__)


def scored_once(
    folder: AnyPath,
    compared: Representations,
    finished: FinishedStatistics,
    selection: MeasureSelection,
    attributes: dict[str, Any],
    output: Output,
) -> SimilarityResult:
    """`scored_result`, kept in a folder of stored statistics: the same is not scored twice.

    Scores of a measure that a user has registered are not kept, as its definition may change.
    """
    settings = attributes["settings"]
    given = [list(settings.get("given", ())), settings.get("given_part", "rest")]
    kept = [attributes["note"], output.keep_influence, *given]
    return kept_once(
        folder,
        selection,
        [list(selection.names), *kept, finished.numeric],
        lambda: scored_result(compared, finished, selection, attributes, output),
    )


def kept_once(
    folder: AnyPath,
    selection: MeasureSelection,
    key: Sequence[Any],
    compute: Callable[[], SimilarityResult],
) -> SimilarityResult:
    """A result that is kept in a folder of stored statistics, or what an earlier run has kept.

    Args:
      folder: of the statistics.
      selection: the measures; a result of one that a user has registered is not kept.
      key: everything else that it depends on, for JSON.
      compute: computes it.
    """
    if not all(_is_ours(measure.function) for measure in selection.measures):
        return compute()
    version = importlib.metadata.version(_PACKAGE)
    path = folder / f"scores-{digest_of([version, *key])}.nc"
    if path.exists():
        try:
            result = SimilarityResult.load(path)
        except UserError as error:
            _log.warning("%s; it is computed again", error)
        else:
            _log.info("scored by an earlier run")
            return result
    result = compute()
    with writing(folder):
        result.save(path)
    return result


def digest_of(key: Sequence[Any]) -> str:
    """Short, and different for another key."""
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _is_ours(function: Callable[..., Any]) -> bool:
    module = getattr(function, "__module__", None) or ""
    return module.split(".")[0] == _PACKAGE


def scored_result(
    compared: Representations,
    finished: FinishedStatistics,
    selection: MeasureSelection,
    attributes: dict[str, Any],
    output: Output,
    attention_names: Sequence[RepresentationName] | None = None,
) -> SimilarityResult:
    """Score all pairs of representations and label the result.

    Args:
      compared: the representations of the finished statistics.
      finished: what the measures read.
      selection: the measures.
      attributes: how the result was made; facts of the statistics are added.
      output: what is kept of influences, and whether a bar is shown.
      attention_names: of those with attention; by default all layers but 0.
    """
    names = compared.names
    started = time.monotonic()
    if attention_names is None:
        attention_names = [name for name in names if name.layer > 0]
    total = pairs_scored(finished.by_kind, selection, compared.pairs)
    _log.info(
        "scoring %s by %s",
        counted(len(names), "representation"), counted(len(selection.measures), "measure"),
    )  # fmt: skip
    with tqdm.auto.tqdm(
        total=total, desc="scores", unit="pair", disable=not output.progress
    ) as bar:
        models = [name.model for name in names]
        tracks = {*attributes.get("tracks", ()), *(label.name for label in compared.labels)}
        sample = finished.clustered.for_measures if finished.clustered is not None else None
        fewer = {} if sample is None else {ClusteredSample.kind: sample}
        scores = score_all(
            {**finished.by_kind, **fewer},
            selection,
            models,
            tracks,
            bar.update,
            keep_influence=output.keep_influence,
            pairs=compared.pairs,
        )
    extras = scores.extras
    if compared.labels and finished.moments is not None:
        _log.info("scoring what representations say of %s", counted(len(compared.labels), "label"))
        compared_models = [None if model in tracks else model for model in models]
        extras = extras | concepts(finished.by_kind, compared.labels, compared_models)
    if finished.exemplars is not None and finished.moments is not None:
        live = [representation.live for representation in finished.moments.representations]
        extras = extras | exemplar_variables(finished.exemplars, live)
    facts = {}
    if sample is not None:
        clusters = SampledClusters.of(sample)
        facts["errors"] = attributes["errors"] | {
            "clusters": clusters.total,
            "sampled": len(clusters.names),
            "rows": int(clusters.kept.sum()),
            "source": "sample",
        }
    if scores.degrees:
        facts["errors"] = facts.get("errors", attributes["errors"]) | {"degrees": scores.degrees}
    if finished.sample is not None:
        facts["sample"] = {
            "rows": len(finished.sample.keys),
            "utterances": len(set(finished.sample.utterances) - {""}),
        }
    if finished.attention is not None:
        facts["attention"] = {
            "utterances": finished.attention.utterances,
            "frames": finished.attention.frames,
        }
    _log.info("scored %d representations in %.1f s", len(names), time.monotonic() - started)
    result = SimilarityResult.build(
        names,
        scores.matrices,
        extras,
        measures={measure.name: measure.definition() for measure in selection.measures},
        attributes=attributes | facts,
        attention_representations=attention_names if selection.on("attention") else (),
        dims=scores.dims,
        influence=scores.influence,
    )
    _log_cautions(result, finished, selection)
    return result


def with_reading(
    result: SimilarityResult, read: ReadInfluence, output: Output, stride: int = 1
) -> SimilarityResult:
    """The result with the standard errors of a second reading.

    Args:
      result: without standard errors of measures of moments, or with sampled ones.
      read: what the reading has given.
      output: what is kept of influences.
      stride: every so many rows were evaluated.
    """
    clusters = read.table.clusters
    facts = {
        "clusters": clusters.total,
        "sampled": clusters.total,
        "rows": read.rows,
        "source": "reading",
        "stride": stride,
    }
    table = None if output.keep_influence == "none" else read.table
    return result.with_standard_errors(read.errors, table, facts)


def worst_known(result: SimilarityResult, selection: MeasureSelection) -> float:
    """How well the sampled standard errors of the measure of moments are known that are so least.

    The median of their relative errors over the cells that have any; 0 without such measures.
    """
    names = [f"{m.name}_se_error" for m in selection.on(MomentsState.kind)]
    found = [result.dataset[name].values for name in names if name in result.dataset]
    return max((float(np.median(x[x > 0])) for x in found if (x > 0).any()), default=0.0)


def log_unknown_errors(result: SimilarityResult, selection: MeasureSelection) -> None:
    """Log standard errors that are not known, of scores that are."""
    for name in (measure.name for measure in selection.with_errors):
        if f"{name}_se" in result.dataset:
            errors, scores = result.standard_error(name).values, result.matrix(name).values
            if unknown := int(np.sum(np.isnan(errors) & np.isfinite(scores))):
                _log.warning(
                    "standard errors of %d scores of %s are not known to half: too few rows of "
                    "each %s were sampled (errors_rows, errors_source='reading')",
                    unknown, name, result.attributes["errors"]["over"],
                )  # fmt: skip


def _log_cautions(
    result: SimilarityResult, finished: FinishedStatistics, selection: MeasureSelection
) -> None:
    """Log what is constant, and attention maps with few cells."""
    if (moments := finished.by_kind.get("moments")) is not None:
        _log_constant(result.representations, moments, "neurons")
    # Those of heads without a sum of their own take heads as neurons, and cells of maps as rows.
    if finished.attention is None or all(m.needs for m in selection.on("attention")):
        return
    moments = finished.attention.moments
    _log_constant(result.attention_representations, moments, "heads")
    heads = max(representation.width for representation in moments.representations)
    if moments.rows < _CELLS_PER_HEAD * heads:
        _log.warning(
            "Few cells: the attention maps have %d, for layers of up to %d heads; measures that "
            "take heads as neurons come out high for anything", moments.rows, heads,
        )  # fmt: skip


def _log_constant(
    names: Sequence[RepresentationName], moments: FinishedMoments | FinishedGrams, what: str
) -> None:
    """Log neurons or heads without variance; a representation without any other is said before."""
    dead = [
        f"{int(np.sum(~of.live))} of {of.width} in {name}"
        for name, of in zip(names, moments.representations, strict=True)
        if not of.live.all() and (what == "heads" or of.live.any())
    ]
    if dead:
        more = f" and in {len(dead) - _MOST_NAMED} more" if len(dead) > _MOST_NAMED else ""
        _log.warning(
            "constant %s, which correlate with nothing: %s%s",
            what, ", ".join(dead[:_MOST_NAMED]), more,
        )  # fmt: skip
