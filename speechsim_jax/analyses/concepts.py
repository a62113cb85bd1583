"""Content, localisation and agreement as a Markdown page and as JSON."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speechsim_jax.analyses.markdown import literal
from speechsim_jax.errors import UserError
from speechsim_jax.results.concepts import Agreement, Concepts, DepthCurve, rank_correlation

# Pairs of models in the terminal.
_MOST_PAIRS = 6


def probe_correlations(
    concepts: Concepts, accuracies: Mapping[str, Sequence[float]], track: str
) -> dict[str, float]:
    """Rank correlations over layers of content with a linear probe's accuracies, by model.

    Args:
        concepts: What models encode.
        accuracies: Of the layers of each model that the probe has read, from 0 on.
        track: The label that the probe reads.

    Raises:
        UserError: A probe of none of the models, or of fewer layers.
    """
    found = {
        curve.model: rank_correlation(curve, accuracies[curve.model])
        for curve in concepts.content
        if curve.track == track and curve.model in accuracies
    }
    if not found:
        raise UserError(
            f"the probe is of {', '.join(accuracies) or 'no model'}, and of none of "
            f"{', '.join(concepts.models)}"
        )
    return found


def markdown(
    concepts: Concepts,
    about: Sequence[str],
    figures: Sequence[str],
    probed: Mapping[str, Mapping[str, float]],
) -> str:
    """The page.

    Args:
        concepts: What models encode.
        about: Lines on how it was found.
        figures: Paths of figures.
        probed: By label, `probe_correlations`.
    """
    lines = ["# What layers and neurons encode", "", *(f"- {line}" for line in about), ""]
    lines += [f"![{path}]({path})" for path in figures]
    lines += [
        "",
        "## Content",
        "",
        "Mean multiple correlation of a track's columns with all neurons of a layer, held out in "
        "brackets where it is known.",
        "",
    ]
    lines += _table(["track", "model", "first layer", "best layer", "last layer"], [
        [literal(c.track), literal(c.model), *_ends(c)] for c in concepts.content
    ])  # fmt: skip
    for label, correlations in probed.items():
        lines += ["", f"Rank correlation over layers with a linear probe of {literal(label)}: "]
        lines[-1] += ", ".join(f"{literal(m)} {_number(v)}" for m, v in correlations.items()) + "."
    if concepts.labels:
        lines += ["", "## Localisation", ""]
        lines += [
            "The best neuron's |correlation| with a class over that of all neurons together, mean "
            "over classes and layers; in rotated axes, where single neurons mean nothing.",
            "",
        ]
        lines += _table(["track", "model", "localisation", "rotated", "difference"], [
            [literal(c.track), literal(c.model), *_localised(c)] for c in concepts.localisation
        ])  # fmt: skip
    if concepts.agreement:
        lines += ["", "## Agreement of best-matched neurons", ""]
        lines += [
            "The share of neurons whose class is that of their best match in the other model's "
            "layer at the same depth, mean over layers; what chance would give; Cohen's kappa with "
            "its standard error (an upper bound: the mean over layers).",
            "",
        ]
        lines += _table(["track", "x", "y", "agreement", "chance", "kappa"], [
            [literal(a.track), literal(a.x), literal(a.y), *_agreed(a)] for a in concepts.agreement
        ])  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _ends(curve: DepthCurve) -> list[str]:
    if curve.best is None:
        return ["not defined"] * 3
    places = (0, curve.best, len(curve.values) - 1)
    cells = [_with_other(curve.values[k], curve.other[k]) for k in places]
    cells[1] += f" at {_place(curve, curve.best)}"
    return cells


def _place(curve: DepthCurve, k: int) -> str:
    """A layer, and its relative depth in brackets: models may differ in depth."""
    return f"{curve.layers[k]} ({curve.depth[k]:.2f})"


def _with_other(value: float, other: float) -> str:
    return _number(value) + (f" ({_number(other)})" if math.isfinite(other) else "")


def _localised(curve: DepthCurve) -> list[str]:
    value, rotated = _mean(curve.values), _mean(curve.other)
    difference = value - rotated
    return [
        _number(value),
        _number(rotated),
        f"{difference:+.3f}" if math.isfinite(difference) else "",
    ]


def _agreed(found: Agreement) -> list[str]:
    error = float(np.mean(found.kappa_error))
    kappa = _number(_mean(found.kappa))
    return [
        _number(_mean(found.observed)),
        _number(_mean(found.chance)),
        kappa + (f" ± {error:.3f}" if math.isfinite(error) else ""),
    ]


def _mean(values: np.ndarray) -> float:
    """Of those that are known; NaN of none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not defined"


def as_record(concepts: Concepts, probed: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Everything for JSON; NaN becomes None."""
    record = dataclasses.asdict(concepts) | {"probe": {k: dict(v) for k, v in probed.items()}}
    return _plain(record)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(concepts: Concepts) -> str:
    """A few lines for the terminal: content of the best layer, localisation, agreement."""
    head = ("track", "model", "best layer", "content", "held out", "localisation", "rotated")
    rows: list[tuple[str, ...]] = [head]
    localised = {(c.track, c.model): _localised(c)[:2] for c in concepts.localisation}
    for curve in concepts.content:
        best = curve.best
        if best is None:
            rows.append((curve.track, curve.model, "", "not defined", "", "", ""))
            continue
        rows.append(
            (
                curve.track, curve.model, _place(curve, best), _number(curve.values[best]),
                _number(curve.other[best]), *localised.get((curve.track, curve.model), ("", "")),
            )
        )  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths)).rstrip() for row in rows]
    of_first = [a for a in concepts.agreement if a.track == concepts.labels[0]]
    for found in of_first[:_MOST_PAIRS]:
        agreed, chance, kappa = _agreed(found)
        lines.append(
            f"agreement of {found.x} with {found.y} on {found.track}: {agreed} (chance {chance}), "
            f"kappa {kappa}"
        )
    more = len(concepts.agreement) - len(of_first[:_MOST_PAIRS])
    return "\n".join(lines + ([f"and {more} more in concepts.md"] if more else []))
