"""Figure of probe accuracies over the depth of each encoder."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from speechsim_jax.analyses.probing.summary import ProbeSummary
from speechsim_jax.figures.style import (
    DPI,
    GREY,
    LEGEND,
    StandaloneFigure,
    line_style,
    style_panel,
    write_figures,
)
from speechsim_jax.figures.text_layout import LINE, MEDIUM, headline, legend_layout, short_names


def accuracy_by_depth(
    summary: ProbeSummary, untrained: Collection[str] = (), note: str = ""
) -> Figure:
    """Accuracy over the relative depth of each encoder's layers; baselines are horizontal lines.

    Args:
        summary: Accuracies with intervals, which are drawn as error bars.
        untrained: Names of the encoders with random weights, which are drawn with open markers and
            dashed lines, in the colour of the encoder before them.
        note: Caption.
    """
    width, left = 4.2, 34.0
    names = short_names([encoder.name for encoder in summary.encoders])
    labels, columns, legend_height = legend_layout([*names, *summary.baselines], width)
    below = 30 + legend_height
    title = "Phone of a frame, read by a linear probe"
    head = headline(title, width, [note] if note else [])
    points = np.array([72 * width, below + 150 + head.height])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    axes = figure.add_axes(tuple([left, below, points[0] - left - 8, 150] * scale), label="depths")
    handles, colour = [], -1
    for encoder in summary.encoders:
        random = encoder.name in untrained
        colour += not random or colour < 0
        values = 100 * np.array(encoder.layers)
        depth = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
        style: dict[str, Any] = line_style(colour, len(values))
        style |= {"markerfacecolor": "white", "linestyle": "--"} if random else {}
        reach = np.abs(values[:, 1:] - values[:, :1]).T
        handles += [axes.errorbar(
            depth, values[:, 0], np.nan_to_num(reach), elinewidth=0.6, capsize=1.5,
            gid=encoder.name, **style,
        )]  # fmt: skip
    for line, (name, value) in zip(("-.", ":", "--", "-") * 3, summary.baselines.items()):
        handles += [
            axes.axhline(100 * value.value, color=GREY, linewidth=1, linestyle=line, gid=name)
        ]
    axes.set_xlabel("relative depth of the layer", fontsize=MEDIUM)
    axes.set_ylabel("frames read right", fontsize=MEDIUM)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    style_panel(axes, "")
    legend = figure.legend(handles, labels, loc="lower center", ncols=columns, **LEGEND)
    for text in legend.get_texts():
        text.set(parse_math=False, linespacing=LINE)
    head.draw(figure)
    return figure


def save_accuracy_by_depth(
    summary: ProbeSummary, folder: Path, untrained: Collection[str] = (), note: str = ""
) -> list[Path]:
    """Write `accuracy_by_depth` as probe.png and probe.pdf, and return their paths."""
    figure = accuracy_by_depth(summary, untrained, note)
    return write_figures({"probe": figure}, folder, ("png", "pdf"))
