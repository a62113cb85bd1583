"""Audio in steps until standard errors are below a target: how far each step reads, and reached."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.audio.corpus import Source, total_seconds
from speechsim_jax.errors import UserError
from speechsim_jax.inference import planning
from speechsim_jax.inference.clusters import Clustering
from speechsim_jax.inference.standard_errors import LEAST_CLUSTERS
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.settings import Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.folded_moments import FoldedMoments
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.store import PassStatistics

FIRST_MINUTES = 3.0
"""Minutes of audio in the first step, at least; it has 10 clusters, too."""

# Fewer rows than this for each neuron of the widest layer show no inflation: everything fits.
_ROWS_PER_NEURON = 2

_log = logging.getLogger(__name__)


def end_of_step(order: Sequence[Source], start: int, minutes: float, clustering: Clustering) -> int:
    """How many utterances, in their order, have been read after a step.

    Args:
      order: all utterances.
      start: that were read before.
      minutes: that are to be read in all, with those before, as headers of files state them.
      clustering: what standard errors are over; there are 10 clusters, if there are so many.
    """
    least = min(LEAST_CLUSTERS, len(set(clustering.of.values())))
    clusters, seconds = set(), 0.0
    for number, source in enumerate(order, start=1):
        clusters.add(clustering.of[source.id])
        seconds += source.seconds or 0.0
        if number > start and seconds >= 60 * minutes and len(clusters) >= least:
            return number
    return len(order)


class PartScores(NamedTuple):
    """Scores of a part of the audio.

    Attributes:
      rows: of the part.
      widest: neurons of the widest representation.
      matrices: by measure, of those that read moments.
    """

    rows: int
    widest: int
    matrices: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, result: SimilarityResult) -> "PartScores":
        """Those of a result."""
        return cls(
            result.attributes["rows"],
            int(result.dataset["width"].max()),
            {name: result.matrix(name).values for name in _on_moments(result)},
        )


def scores_of_part(
    statistics: Sequence[PassStatistics], selection: MeasureSelection, tolerance: float | None
) -> PartScores | None:
    """Scores of the measures on moments that have standard errors; None without two rows.

    Args:
      statistics: of the part, of each pass.
      selection: the measures of the comparison.
      tolerance: `rank_tolerance`.
    """
    kinds = (MomentsState.kind, FoldedMoments.kind)
    of_moments = [
        PassStatistics({kind: state for kind, state in of_pass.states.items() if kind in kinds})
        for of_pass in statistics
    ]
    measures = tuple(m for m in selection.with_influence if m.statistic == MomentsState.kind)
    if not measures:
        return None
    try:
        finished = store.finish(of_moments, tolerance)
    except UserError:
        return None
    moments = finished.moments
    if moments is None or moments.rows < 2:
        return None
    widest = max(representation.width for representation in moments.representations)
    scores = score_all({MomentsState.kind: moments}, MeasureSelection(measures))
    return PartScores(moments.rows, widest, scores.matrices)


def _on_moments(result: SimilarityResult) -> list[str]:
    """The measures whose inflation by few rows is estimated."""
    kind = MomentsState.kind
    names = measures_with_errors(result)
    return [name for name in names if result.definition(name).get("statistic", kind) == kind]


@dataclasses.dataclass(frozen=True)
class StepReached:
    """What was reached after a step.

    Attributes:
      minutes: of audio that were read in all.
      utterances: that were read in all.
      clusters: speakers or utterances that standard errors are over.
      standard_error: the largest or median of all measures that have some.
      measure: whose it is.
      inflation: the largest or median that few rows add to scores, of all measures that have
        standard errors and read moments.
      applies: whether there are any such measures.
      predicted_minutes: of audio that the target takes.
    """

    minutes: float
    utterances: int
    clusters: int
    standard_error: float
    measure: str
    inflation: float
    applies: bool
    predicted_minutes: float

    @classmethod
    def of(
        cls, result: SimilarityResult, parts: Sequence[PartScores | None], settings: Settings
    ) -> "StepReached":
        """What the result of a step shows.

        Args:
          result: of everything that was read.
          parts: scores of what earlier steps have read, and of this step alone; none if it is the
            first.
          settings: with the target.
        """
        assert settings.target_se is not None
        of = settings.target_of
        errors = {}
        for name in measures_with_errors(result):
            scores = result.matrix(name).values
            errors[name] = planning.over_pairs(result.standard_error(name).values, scores, of)
        known = {name: error for name, error in errors.items() if math.isfinite(error)}
        # One that is not known is not below any target.
        unknown = [name for name in errors if name not in known]
        worst = unknown[0] if unknown else max(known, key=known.__getitem__)
        error = errors[worst]
        attributes = result.attributes
        inflation = _inflation(result, parts, of)
        minutes = attributes["seconds"] / 60
        return cls(
            minutes=minutes,
            utterances=attributes["utterances"],
            clusters=attributes["errors"]["clusters"],
            standard_error=error,
            measure=worst,
            inflation=inflation,
            applies=bool(_on_moments(result)),
            predicted_minutes=planning.minutes_needed(
                minutes, error, settings.target_se, inflation
            ),
        )

    def reached(self, target: float) -> bool:
        """Whether the standard error and the inflation are at most the target."""
        return self.standard_error <= target and (not self.applies or self.inflation <= target)

    @property
    def growth(self) -> float:
        """How many times the audio that was read will have been read after the next step."""
        known = not (self.applies and math.isnan(self.inflation))
        return planning.growth_of_step(self.minutes, self.predicted_minutes, known)

    def as_json(self) -> dict[str, Any]:
        """For the record of the result; None for what is not known."""
        record = dataclasses.asdict(self)
        del record["applies"]
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}


def measures_with_errors(result: SimilarityResult) -> list[str]:
    """The measures of a result that have standard errors."""
    return [name for name in result.measures if f"{name}_se" in result.dataset]


def _inflation(
    result: SimilarityResult, parts: Sequence[PartScores | None], of: planning.Of
) -> float:
    """The largest, over the measures, that few rows add to scores; NaN where it is not known."""
    if len(parts) < 2 or any(part is None for part in parts):
        return math.nan
    both = [part for part in parts if part is not None]
    few = min(part.rows for part in both) < _ROWS_PER_NEURON * both[0].widest
    added = []
    for name in both[0].matrices:
        if few and result.definition(name).get("inflated_by_few_rows"):
            return math.nan
        scores = result.matrix(name).values
        matrices = [part.matrices[name] for part in both]
        values = planning.inflation_by_few_rows([part.rows for part in both], matrices, scores)
        added.append(planning.over_pairs(np.abs(values), scores, of))
    return max(added, default=math.nan)


def log_step(
    steps: Sequence[StepReached], settings: Settings, over: str, left: Sequence[Source]
) -> None:
    """Log what the last step has reached and what is predicted.

    Args:
      steps: all so far.
      settings: with the target.
      over: what standard errors are over.
      left: the utterances that were not read.
    """
    assert settings.target_se is not None
    step, target = steps[-1], settings.target_se
    inflation = f"{step.inflation:.2g}" if math.isfinite(step.inflation) else "not known yet"
    if not step.applies:
        inflation = "not estimated for these measures"
    error = "not known"
    if math.isfinite(step.standard_error):
        error = f"{step.standard_error:.2g} ({step.measure})"
    _log.info(
        "step %d: %.1f min of audio, %d %ss: %s standard error %s, inflation by few frames %s",
        len(steps), step.minutes, step.clusters, over, settings.target_of, error, inflation,
    )  # fmt: skip
    if step.reached(target):
        _log.info("the target of %g is reached after %.1f min", target, step.minutes)
        return
    predicted = "how much is needed is not known"
    if math.isfinite(step.predicted_minutes):
        # A variance is known to sqrt(2 / degrees of freedom), and minutes are proportional to it.
        off = 100 * math.sqrt(2 / max(step.clusters - 1, 1))
        predicted = f"about {step.predicted_minutes:.3g} min (give or take {off:.0f} %) are needed"
    if not left:
        _log.warning(
            "the audio has ended after %.1f min, before the target of %g was reached: %s",
            step.minutes, target, predicted,
        )  # fmt: skip
        return
    more = total_seconds(left) / 60
    _log.info("for the target of %g %s; %.1f min are left", target, predicted, more)


def record(
    steps: Sequence[StepReached], settings: Settings, result: SimilarityResult
) -> dict[str, Any]:
    """What was reached, for the result's attributes."""
    assert settings.target_se is not None
    last = steps[-1].as_json()
    with_errors = measures_with_errors(result)
    reached = steps[-1].reached(settings.target_se)
    return {
        "standard_error": settings.target_se,
        "of": settings.target_of,
        "measures": with_errors,
        "left_out": [name for name in result.measures if name not in with_errors],
        "reached": reached,
        "stopped": "reached" if reached else "the audio has ended",
        "minutes": last["minutes"],
        "predicted_minutes": last["predicted_minutes"],
        "steps": [step.as_json() for step in steps],
    }
