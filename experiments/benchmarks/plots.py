"""Figures from the lines of JSON that `pipeline`, `memory` and `scaling` print."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from speechsim_jax.errors import UserError
from speechsim_jax.figures.style import GREY, LEGEND, StandaloneFigure, line_style, style_panel
from speechsim_jax.figures.text_layout import MEDIUM, SMALL

Line = dict[str, Any]

_WIDTH, _HEIGHT, _DPI = 7.0, 2.5, 150
_BY = {
    "ours": "ours",
    "moments": "stored activations,\nmoments once a pair",
    "published": "published,\nin memory",
    "its files": "published,\nwith its files",
}


def run(lines: str, folder: str) -> None:
    """Write pipeline.png, memory.png and scaling.png, where there are lines for them."""
    figures = read_lines(Path(lines))
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    draw = {"pipeline": pipeline, "memory": memory, "scaling": scaling}
    if not draw.keys() & figures.keys():
        raise UserError(f"--lines={lines}: no lines of {', '.join(draw)}")
    for what in draw.keys() & figures.keys():
        path = out / f"{what}.png"
        draw[what](figures[what]).savefig(path, dpi=_DPI)
        print(path)


def read_lines(path: Path) -> dict[str, list[Line]]:
    """The figures in a file by what was measured; other lines are ignored."""
    figures = defaultdict(list)
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"--lines={path} cannot be read ({error.strerror})") from error
    for line in text.splitlines():
        if line.startswith("{") and "figure" in (entry := json.loads(line)):
            figures[entry["what"]].append(entry)
    return dict(figures)


def _last(lines: list[Line], figure: str, **labels: Any) -> Line | None:
    """The last line of a figure, as repeated runs append theirs."""
    labels |= {"figure": figure}
    same = [line for line in lines if all(line.get(k) == v for k, v in labels.items())]
    return same[-1] if same else None


def _panels(count: int) -> tuple[StandaloneFigure, list[Axes]]:
    figure = StandaloneFigure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("constrained")
    return figure, list(figure.subplots(1, count, squeeze=False).ravel())


def pipeline(lines: list[Line]) -> StandaloneFigure:
    """Forward passes and analysis of every pipeline, a panel for each amount of audio."""
    amounts = sorted({line["minutes"] for line in lines})
    figure, panels = _panels(len(amounts))
    for axes, minutes in zip(panels, amounts):
        of = [line for line in lines if line["minutes"] == minutes]
        names = [by for by in _BY if _last(of, "end to end", by=by)]
        total = np.array([_value(of, "end to end", by) for by in names])
        analysis = np.array([_value(of, "analysis", by) for by in names])
        places = np.arange(len(names))[::-1]
        axes.barh(places, total - analysis, 0.6, color="#bfbfbf", label="forward passes, reading")
        axes.barh(places, analysis, 0.6, total - analysis, color="#0072B2", label="analysis")
        for place, seconds in zip(places, total):
            times = f"{seconds:,.0f} s"
            times += f" ({seconds / total[0]:.1f} x)" if place != places[0] else ""
            axes.annotate(times, (seconds, place), (3, 0), textcoords="offset points",
                          va="center", fontsize=SMALL)  # fmt: skip
        labels = [_BY[by] for by in names] if axes is panels[0] else [""] * len(names)
        axes.set_yticks(places, labels)
        axes.set_xlim(0, 1.3 * total.max())
        axes.set_xlabel("seconds, end to end", fontsize=MEDIUM)
        style_panel(axes, f"{minutes:g} minutes of speech")
        axes.grid(visible=False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, **LEGEND
    )
    return figure


def _value(lines: list[Line], figure: str, by: str) -> float:
    line = _last(lines, figure, by=by)
    if line is None:
        raise UserError(f"a line of {figure!r} by {by!r} is missing")
    return line["value"]


def memory(lines: list[Line]) -> StandaloneFigure:
    """Peak memory, and wall time, against the amount of audio."""
    figure, panels = _panels(2)
    for axes, name, label in zip(panels, ("peak RSS", "total"), ("peak RSS, GiB", "wall time, s")):
        values = {line["minutes"]: line["value"] for line in lines if line["figure"] == name}
        amounts = sorted(values)
        axes.plot(amounts, [values[minutes] for minutes in amounts], **line_style(0, len(amounts)))
        axes.set_ylim(0, 1.25 * max(values.values()))
        axes.set_xlim(0, 1.08 * amounts[-1])
        axes.set_xlabel("minutes of speech", fontsize=MEDIUM)
        style_panel(axes, label)
    return figure


def scaling(lines: list[Line]) -> StandaloneFigure:
    """Work, bytes received and memory of one device against the number of devices."""
    labels = {
        "update, products of a device for an hour": ("products for an hour, TFLOP", 1.0),
        "update, bytes a device receives": ("received in an update, MB", 1e-6),
        "update, state and rows of a device": ("state and rows, GiB", 1.0),
    }
    figure, panels = _panels(len(labels))
    sizes = sorted({line["feature"] for line in lines})
    planned: dict[str, Any] = {"marker": "x", "linestyle": "", "color": GREY, "markersize": 4}
    for axes, (name, (label, unit)) in zip(panels, labels.items()):
        for number, feature in enumerate(sizes):
            of = [x for x in lines if x["figure"] == name and x["feature"] == feature]
            values = {line["devices"]: unit * line["value"] for line in of}
            counts = sorted(values)
            axes.plot(counts, [values[count] for count in counts], label=f"feature:{feature}",
                      **line_style(number, len(counts)))  # fmt: skip
            if "planned" in of[0]:
                plan = {line["devices"]: unit * line["planned"] for line in of}
                axes.plot(counts, [plan[count] for count in counts], **planned)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({line["devices"] for line in lines})))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0)
        axes.set_xlabel("devices", fontsize=MEDIUM)
        style_panel(axes, label)
    handles, _ = panels[0].get_legend_handles_labels()
    handles.append(Line2D([], [], label="planned", **planned))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), **LEGEND)
    return figure
