"""How the layers of a model become what they are: checkpoints against the final model.

The first use of SVCCA: Raghu et al. 2017 (arXiv 1706.05806), section 4.1.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from speechsim_jax.errors import UserError
from speechsim_jax.figures.style import (
    DPI,
    StandaloneFigure,
    colour_bar_width,
    colour_limits,
    draw_bar,
    draw_cells,
)
from speechsim_jax.figures.text_layout import LINE, MEDIUM, SMALL, Headline, ellipsised, text_width

_SETTLED = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Dynamics:
    """`scores`: measure -> [step, layer of the checkpoint, layer of the final model].

    `untrained`: the same without steps, of random weights; `note` goes under the figures.
    """

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    scores: Mapping[str, Float[np.ndarray, "_step _layer _layer"]]
    untrained: Mapping[str, Float[np.ndarray, "_layer _layer"]]
    note: str = ""

    def same(self, measure: str) -> Float[np.ndarray, "layer step"]:
        """Each layer with the same layer of the final model.

        Raises:
            UserError: no such measure.
        """
        if measure not in self.scores:
            raise UserError(f"no measure {measure!r} here; there are: {', '.join(self.scores)}")
        return np.diagonal(self.scores[measure], axis1=1, axis2=2).T

    def settled(self, measure: str) -> list[int | None]:
        """For each layer the first step from which on it has at least 0.9 of the last score."""
        found: list[int | None] = []
        for row in self.same(measure):
            below = np.flatnonzero(~(row >= _SETTLED * row[-1]))
            place = 0 if not below.size else int(below[-1]) + 1
            found.append(self.steps[place] if place < len(row) else None)
        return found

    def table(self, measure: str) -> str:
        """Same-layer scores, a line for each layer from the top down, a column for each step."""
        settled = ["-" if step is None else str(step) for step in self.settled(measure)]
        head = [measure, "untrained", *map(str, self.steps), f"{_SETTLED} from step"]
        lines = [head]
        for place in reversed(range(len(self.layers))):
            start = self.untrained.get(measure)
            first = "" if start is None else f"{start[place, place]:.3f}"
            values = [f"{value:.3f}" for value in self.same(measure)[place]]
            lines.append([f"layer {self.layers[place]}", first, *values, settled[place]])
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(text.rjust(width) for text, width in zip(line, widths)) for line in lines
        )

    def write_csv(self, path: Path) -> Path:
        """One line a measure, step (empty: untrained), layer and layer of the final model."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["measure", "step", "layer", "final_layer", "score"])
            for measure, scores in self.scores.items():
                maps: list[tuple[int | str, np.ndarray]] = list(zip(self.steps, scores))
                if measure in self.untrained:
                    maps.insert(0, ("", self.untrained[measure]))
                for step, values in maps:
                    for (x, y), value in np.ndenumerate(values):
                        layers = self.layers[x], self.layers[y]
                        writer.writerow([measure, step, *layers, f"{value:.6g}"])
        return path


def steps_map(found: Dynamics, measure: str) -> Figure:
    """A square for each layer (upwards) and checkpoint, its score with that layer at the end.

    Raises:
        UserError: no such measure.
    """
    values = found.same(measure)
    layers = len(values)
    low, high = colour_limits(values, (0, 1))
    width, cell = 3.5, 14.0
    head = _headline("Each layer against itself at the end of training", found.note, width)
    label = f"{measure} with the final model"
    left, right, below, above = 34.0, colour_bar_width(low, high, label), 28.0, head.height
    height = float(np.clip(cell * layers, 80, 260))
    points = np.array([72 * width, below + height + above])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    side = points[0] - left - right
    axes = figure.add_axes(tuple([left, below, side, height] * scale), label="map")
    image = draw_cells(axes, values, low, high)
    axes.invert_yaxis()  # depth upwards
    _name_axes(axes, found, side)
    axes.set_ylabel("layer", fontsize=MEDIUM)
    axes.set_xlabel("training step", fontsize=MEDIUM)
    draw_bar(image, label, values)
    head.draw(figure)
    return figure


def layers_maps(found: Dynamics, measure: str, most: int = 6) -> Figure:
    """All layers against all layers of the final model, at up to `most` of the checkpoints.

    Raises:
        UserError: no such measure.
    """
    found.same(measure)
    chosen = np.unique(np.linspace(0, len(found.steps) - 1, most).round().astype(int))
    values = found.scores[measure][chosen]
    low, high = colour_limits(values.reshape(-1, values.shape[-1]), (0, 1))
    gap, left, right, below = 10.0, 34.0, colour_bar_width(low, high, measure), 30.0
    between = left + right + gap * (len(chosen) - 1)
    side = min(120.0, (72 * 7.0 - between) / len(chosen))
    width = max(4.0, (between + side * len(chosen)) / 72)
    head = _headline("Layers along training against layers at its end", found.note, width)
    above = head.height + MEDIUM * LINE + 3
    points = np.array([72 * width, below + side + above])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    image = None
    for number, (place, block) in enumerate(zip(chosen, values)):
        start = left + number * (side + gap)
        axes = figure.add_axes(tuple([start, below, side, side] * scale), label=f"map {number}")
        image = draw_cells(axes, block, low, high)
        axes.invert_yaxis()
        ticks = _some(len(found.layers), side / 12)
        axes.set_xticks(ticks, [str(found.layers[tick]) for tick in ticks])
        axes.set_yticks(ticks, [str(found.layers[tick]) for tick in ticks] if not number else [])
        axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
        axes.spines[:].set_visible(False)
        axes.set_title(f"step {found.steps[place]}", fontsize=MEDIUM, pad=3)
        if not number:
            axes.set_ylabel("layer of the checkpoint", fontsize=MEDIUM)
            axes.set_xlabel("layer of the final model", fontsize=MEDIUM)
    assert image is not None
    draw_bar(image, measure, values.reshape(-1, values.shape[-1]))
    head.draw(figure)
    return figure


def _name_axes(axes, found: Dynamics, side: float) -> None:
    widest = max(text_width(str(step), SMALL) for step in found.steps)
    steps = _some(len(found.steps), side / (widest + 4))
    layers = _some(len(found.layers), 20)
    axes.set_xticks(steps, [str(found.steps[place]) for place in steps])
    axes.set_yticks(layers, [str(found.layers[place]) for place in layers])
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    axes.spines[:].set_visible(False)


def _some(count: int, room: float | int) -> list[int]:
    """Every k-th of so many places, as many as there is room for."""
    return list(range(0, count, max(1, -(-count // max(1, int(room))))))


def _headline(title: str, note: str, width: float) -> Headline:
    return Headline([title], [ellipsised(note, 72 * width - 12, SMALL)] if note else [])


def gathered(
    steps: Sequence[int],
    layers: Sequence[int],
    blocks: Sequence[Mapping[str, Float[np.ndarray, "_layer _layer"]]],
    untrained: Mapping[str, Float[np.ndarray, "_layer _layer"]],
    note: str = "",
) -> Dynamics:
    """The dynamics of the blocks (measure -> [layer, final layer]) of rising steps."""
    scores = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
    return Dynamics(tuple(steps), tuple(layers), scores, dict(untrained), note)
