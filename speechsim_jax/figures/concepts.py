"""Figures of content, localisation and agreement over the depth of models."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from speechsim_jax.figures.curves import DepthLine, depth_curves
from speechsim_jax.results.concepts import Concepts, DepthCurve


def draw(concepts: Concepts, notes: Sequence[str], interval: str) -> dict[str, Figure]:
    """All figures by name: content, and with labels localisation and agreement_LABEL.

    Args:
        concepts: What is drawn.
        notes: Of the data, under the titles.
        interval: What intervals are, "" where there are none.
    """
    intervals = [interval] if interval else []
    figures = {
        "content": depth_curves(
            _panels(concepts.content),
            "mean multiple correlation",
            "How well each layer encodes phones, speakers, acoustics, ...",
            notes,
            [*intervals, *_dashes(concepts.content, "dashed: held out")],
            one_scale=False,
        )
    }
    if concepts.labels:
        figures["localisation"] = depth_curves(
            _panels(concepts.localisation),
            "localisation",
            "How much of that is in one neuron",
            notes,
            ["dashed: layers in rotated axes"],
            one_scale=False,
        )
    for label in concepts.labels if len(concepts.models) > 1 else ():
        lines: dict[str, list[DepthLine]] = {}
        for found in concepts.agreement:
            if found.track == label:
                nothing = np.full(len(found.depth), np.nan)
                line = DepthLine(found.y, found.depth, found.kappa, nothing, nothing)
                lines.setdefault(f"x: {found.x}", []).append(line)
        # A name of a file, whatever the label is called.
        name = re.sub(r"[^\w-]", "_", label)
        figures[f"agreement_{name}"] = depth_curves(
            lines,
            "kappa",
            f"Do best-matched neurons encode the same {label}?",
            notes,
            ["1: always, 0: as often as by chance"],
            models=concepts.models,
        )
    return figures


def _panels(curves: Sequence[DepthCurve]) -> Mapping[str, list[DepthLine]]:
    """Lines by track."""
    panels: dict[str, list[DepthLine]] = {}
    for curve in curves:
        line = DepthLine(curve.model, curve.depth, curve.values, curve.half, curve.other)
        panels.setdefault(curve.track, []).append(line)
    return panels


def _dashes(curves: Sequence[DepthCurve], key: str) -> list[str]:
    return [key] if any(np.isfinite(curve.other).any() for curve in curves) else []
