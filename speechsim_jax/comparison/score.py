"""TODO."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import tqdm.auto

from speechsim_jax.measures import MeasureSelection, scoring
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.statistics.finished import Finished

_log = logging.getLogger(__name__)


def build_result(
    names: Sequence[RepresentationName],
    finished: Finished,
    chosen: MeasureSelection,
    attributes: dict[str, Any],
    progress: bool,
) -> SimilarityResult:
    """Score all pairs of representations and label what comes out."""
    matrices, extras, more = {}, {}, {}
    started = time.monotonic()
    if finished.moments is not None:
        pairs = len(names) * (len(names) + 1) // 2
        total = pairs * len({measure.statistic for measure in chosen.measures})
        with tqdm.auto.tqdm(total=total, desc="scores", unit="pair", disable=not progress) as bar:
            models = [name.model for name in names]
            scores = score_all(
                finished.moments, chosen.measures, chosen.rankings, models, bar.update,
                finished.sample,
            )  # fmt: skip
        matrices, extras = dict(scores.matrices), dict(scores.extras)
    definitions = {m.name: scoring.describe(m) for m in chosen.measures}
    if finished.sample is not None:
        attributes["sample"] = {
            "rows": len(finished.sample.keys),
            "utterances": len(set(finished.sample.utterances) - {""}),
        }
    if finished.attention is not None:
        heads = [name for name in names if name.layer > 0]
        more = scoring.attention_result(heads, finished.attention, chosen.attention)
        matrices |= more.pop("matrices")
        extras |= more.pop("extras")
        definitions |= more.pop("measures")
        attributes["attention"] = {
            "utterances": finished.attention.utterances,
            "frames": finished.attention.frames,
        }
    _log.info("scored %d representations in %.1f s", len(names), time.monotonic() - started)
    return SimilarityResult.build(
        names, matrices, extras, measures=definitions, attributes=attributes, **more
    )
