"""Which scores of a result are not to be trusted, and why: checks of its numbers, in words."""

from collections.abc import Callable

import numpy as np

from speechsim_jax.measures.null import LEAST_DRAWS_FOR_P
from speechsim_jax.results.depth import floors
from speechsim_jax.results.model_scores import ModelScores
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import listed

OUTLIER_SHARE = 0.5
"""From which share of a layer's variance in its top 1 % of neurons these decide a score."""
HELD_OUT_SHARE = 0.8
"""Below which share of the score of all rows a held-out score is far below it."""
FLOOR_SHARE = 0.5
"""From which share of a score its floor is most of it."""
FEW_CLUSTERS = 10
"""Below which effective number of clusters standard errors rest on few of them."""
LEVEL = 0.05
MOST_LAYERS = 3

Check = Callable[[SimilarityResult], "list[str] | None"]


def doubts(result: SimilarityResult) -> list[str]:
    """A sentence for every doubt, and one for what was checked without any, or could not be.

    Args:
        result: with any measures.
    """
    found, clear, unknown = [], [], []
    for name, check in _CHECKS.items():
        sentences = check(result)
        if sentences is None:
            unknown.append(name)
        elif sentences:
            found += sentences
        else:
            clear.append(name)
    if clear:
        found.append(f"Checked without a finding: {listed(clear)}.")
    if unknown:
        found.append(f"Not in this result, so not checked: {listed(unknown)}.")
    return found


def _few_rows(result: SimilarityResult) -> list[str] | None:
    attributes = result.attributes
    rows = attributes.get("rows", attributes.get("frames"))
    if rows is None or "width" not in result.dataset:
        return None
    if not result.few_frames_warning():
        return []
    widest = int(result.dataset["width"].max())
    measures = [m for m in result.measures if result.definition(m).get("inflated_by_few_rows")]
    return [
        f"Do not trust the height of {listed(measures)}: {rows:,} frames for layers of up to "
        f"{widest:,} neurons, {rows / widest:.1f} a neuron. With fewer than ten they are high for "
        "anything."
    ]


def _outliers(result: SimilarityResult) -> list[str] | None:
    if "outlier_share" not in result.dataset:
        return None
    measures = [name for name in result.measures if result.definition(name).get("by_variance")]
    shares = np.asarray(result.dataset["outlier_share"].values, np.float64)
    of_track = [name.model in result.tracks for name in result.representations]
    shares = np.where(of_track, np.nan, shares)
    places = np.flatnonzero(shares >= OUTLIER_SHARE)
    if not measures or not places.size:
        return []
    places = places[np.argsort(-shares[places], kind="stable")]
    labels = [str(result.representations[k]) for k in places[:MOST_LAYERS]]
    text = (
        f"Outlier neurons decide {listed(measures)} of {listed(labels, len(places), 'layers')}: "
        f"the top 1 % of their neurons hold up to {shares[places[0]]:.0%} of the variance."
    )
    if {"lincka", "lincka_zscored"} <= set(result.measures):
        scores, other = ModelScores(result, "lincka"), ModelScores(result, "lincka_zscored")
        cells = scores.scored() & other.scored()
        touched = np.isin(np.arange(len(shares)), places)
        cells &= touched[:, None] | touched
        if cells.any():
            gap = float((scores.values - other.values)[cells].mean())
            side = "lower" if gap >= 0 else "higher"
            text += (
                f" There lincka_zscored, in which all weigh the same, is {abs(gap):.3f} {side} "
                "on average."
            )
    return [text]


def _held_out(result: SimilarityResult) -> list[str] | None:
    names = [name for name in result.measures if f"{name}_heldout" in result.dataset]
    if not names:
        return None
    found = []
    for name in names:
        scores = ModelScores(result, name)
        held = np.asarray(result.matrix(f"{name}_heldout").values, np.float64)
        cells = scores.scored() & np.isfinite(held)
        if not cells.any():
            continue
        of_all, of_held = float(scores.values[cells].mean()), float(held[cells].mean())
        if scores.sign > 0 and of_held < HELD_OUT_SHARE * of_all:
            found.append(
                f"{name} is {of_all:.3f} on average, but {of_held:.3f} held out: the rest is "
                "fitted to these frames. Read the held-out scores."
            )
    return found


def _floors(result: SimilarityResult) -> list[str] | None:
    known = [floor for floor in floors(result.dataset) if floor.scores is not None]
    of_layers = [name for name in result.measures if result.matrix(name).dims[0] == "x"]
    if not known or not of_layers:
        return None
    scores, found = ModelScores(result, of_layers[0]), []
    for floor in known:
        assert floor.scores is not None
        values, least = (np.asarray(of.values, np.float64) for of in (floor.scores, floor.floor))
        cells = scores.between(scores.pairs) & np.isfinite(values) & (values > 0)
        if not cells.any():
            continue
        share = float(np.median(least[cells] / values[cells]))
        if share >= FLOOR_SHARE:
            found.append(
                f"{floor.name} is mostly floor: unrelated layers of these widths and so many "
                f"independent frames would score {np.median(least[cells]):.3f}, these score "
                f"{np.median(values[cells]):.3f} (medians)."
            )
    return found


def _null(result: SimilarityResult) -> list[str] | None:
    names = [name for name in result.measures if f"{name}_null" in result.dataset]
    if not names:
        return None
    found = []
    without = [name for name in names if f"{name}_p" not in result.dataset]
    if without:
        found.append(
            f"Whether {listed(without)} is above the score of rows that do not belong together is "
            f"not tested: p-values need {LEAST_DRAWS_FOR_P} draws of these (null_draws)."
        )
    null = result.attributes.get("null")
    if len(without) < len(names) and isinstance(null, dict) and null.get("kind") == "shift":
        found.append(
            "p-values of null=shift are too small where signals are slow for the length of the "
            "utterances; those of null=swap are not."
        )
    for name in names:
        if name in without:
            continue
        scores = ModelScores(result, name)
        p = np.asarray(result.matrix(f"{name}_p").values, np.float64)
        cells = scores.scored() & np.isfinite(p)
        above = int((p[cells] >= LEVEL).sum())
        if above:
            found.append(
                f"{name}: {above:,} of {int(cells.sum()):,} scores are not above those of rows "
                f"that do not belong together (p at least {LEVEL:g})."
            )
    return found


def _errors(result: SimilarityResult) -> list[str] | None:
    errors = result.attributes.get("errors") or {}
    with_errors = [name for name in result.measures if f"{name}_se" in result.dataset]
    if not with_errors:
        reason = errors.get("reason") if errors.get("over") == "none" else None
        return [f"It is not known how sure the scores are: {reason or 'no standard errors'}."]
    found = []
    without = [name for name in result.measures if name not in with_errors]
    if without:
        found.append(f"It is not known how sure {listed(without)} is: no standard errors.")
    kind = errors.get("over", "cluster")
    no_interval = [
        name
        for name in with_errors
        if not np.isfinite(np.asarray(result.half_interval(name).values)).any()
    ]
    if no_interval:
        found.append(f"Too few {kind}s for intervals of {listed(no_interval)}: ten are needed.")
    influence = result.known_influence
    few = {}
    for name in with_errors if influence is not None else ():
        if influence is None or name not in influence.values or name in no_interval:
            continue
        _, counting = influence.concentration(name)
        if counting < FEW_CLUSTERS:
            few[name] = counting
    if few:
        numbers = f"{min(few.values()):.1f}"
        if len(few) > 1:
            numbers += f" to {max(few.values()):.1f}"
        found.append(
            f"The intervals of {listed(list(few))} rest on few {kind}s, an effective number of "
            f"{numbers}: they may be too narrow."
        )
    return found


def _undefined(result: SimilarityResult) -> list[str] | None:
    if list(result.attributes.get("settings", {}).get("pairs") or ["all"]) != ["all"]:
        return None
    found = []
    for name in result.measures:
        missing = np.isnan(np.asarray(result.matrix(name).values, np.float64))
        if missing.any():
            found.append(
                f"{name}: {int(missing.sum()):,} of {missing.size:,} scores are not defined."
            )
    return found


_CHECKS: dict[str, Check] = {
    "frames against neurons": _few_rows,
    "outlier neurons": _outliers,
    "held-out scores": _held_out,
    "floors": _floors,
    "scores of rows that do not belong together": _null,
    "standard errors": _errors,
    "undefined scores": _undefined,
}
