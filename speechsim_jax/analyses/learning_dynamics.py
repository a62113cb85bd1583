"""Learning dynamics: the layers of checkpoints along training against those of the final model.

Source: Raghu et al. 2017 (arXiv 1706.05806), section 4.1.
"""

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
from speechsim_jax.figures.text_layout import (
    LINE,
    MEDIUM,
    SMALL,
    balanced,
    headline,
    text_width,
)
from speechsim_jax.runtime.text_tables import write_csv

# Share of the final score from which on a layer counts as settled.
_SETTLED = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class LearningDynamics:
    """Similarity of every layer of every checkpoint with every layer of the final model.

    Attributes:
        steps: Training steps of the checkpoints, ascending.
        layers: Layer numbers.
        scores: [step, layer of the checkpoint, layer of the final model] by measure.
        untrained: [layer, layer of the final model] of random weights, by measure; may be empty.
        note: Caption of the figures.
    """

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    scores: Mapping[str, Float[np.ndarray, "_step _layer _layer"]]
    untrained: Mapping[str, Float[np.ndarray, "_layer _layer"]]
    note: str = ""

    @classmethod
    def from_blocks(
        cls,
        steps: Sequence[int],
        layers: Sequence[int],
        blocks: Sequence[Mapping[str, Float[np.ndarray, "_layer _layer"]]],
        untrained: Mapping[str, Float[np.ndarray, "_layer _layer"]],
        note: str = "",
    ) -> "LearningDynamics":
        """Stack the scores of single checkpoints.

        Args:
            steps: Training steps, ascending.
            layers: Layer numbers.
            blocks: For each step, [layer, layer of the final model] by measure.
            untrained: The same of random weights; may be empty.
            note: Caption of the figures.
        """
        scores = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
        return cls(tuple(steps), tuple(layers), scores, dict(untrained), note)

    def same_layer(self, measure: str) -> Float[np.ndarray, "layer step"]:
        """Score of each layer with the same layer of the final model, at each step.

        Raises:
            UserError: no such measure.
        """
        if measure not in self.scores:
            raise UserError(f"no measure {measure!r} here; there are: {', '.join(self.scores)}")
        return np.diagonal(self.scores[measure], axis1=1, axis2=2).T

    def settling_steps(self, measure: str) -> list[int | None]:
        """For each layer the first step from which on it keeps 0.9 of its last score, if any."""
        steps: list[int | None] = []
        for row in self.same_layer(measure):
            below = np.flatnonzero(~(row >= _SETTLED * row[-1]))
            first = 0 if not below.size else int(below[-1]) + 1
            steps.append(self.steps[first] if first < len(row) else None)
        return steps

    def table(self, measure: str) -> str:
        """Same-layer scores as text: a line a layer from the top down, a column a step."""
        settled = ["-" if step is None else str(step) for step in self.settling_steps(measure)]
        head = [measure, "untrained", *map(str, self.steps), f"{_SETTLED} from step"]
        lines = [head]
        untrained = self.untrained.get(measure)
        for index in reversed(range(len(self.layers))):
            first = "" if untrained is None else f"{untrained[index, index]:.3f}"
            values = [f"{value:.3f}" for value in self.same_layer(measure)[index]]
            lines.append([f"layer {self.layers[index]}", first, *values, settled[index]])
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(text.rjust(width) for text, width in zip(line, widths)) for line in lines
        )

    def write_csv(self, path: Path) -> Path:
        """Write every score: measure, step (empty: untrained), layer, layer of the final model."""
        rows: list[tuple[object, ...]] = [("measure", "step", "layer", "final_layer", "score")]
        for measure, scores in self.scores.items():
            maps: list[tuple[int | str, np.ndarray]] = list(zip(self.steps, scores))
            if measure in self.untrained:
                maps.insert(0, ("", self.untrained[measure]))
            for step, values in maps:
                for (x, y), value in np.ndenumerate(values):
                    layers = self.layers[x], self.layers[y]
                    rows.append((measure, step, *layers, float(f"{value:.6g}")))
        return write_csv(path, rows)


def steps_map(dynamics: LearningDynamics, measure: str) -> Figure:
    """Map of the same-layer scores: layers upwards, checkpoints from left to right.

    Args:
        dynamics: Scores of all checkpoints.
        measure: Which of its measures.

    Raises:
        UserError: no such measure.
    """
    values = dynamics.same_layer(measure)
    layers = len(values)
    low, high = colour_limits(values, (0, 1))
    width, cell = 3.5, 14.0
    head = headline(
        "Each layer against itself at the end of training",
        width,
        [dynamics.note] if dynamics.note else [],
    )
    height = float(np.clip(cell * layers, 80, 260))
    label = "\n".join(balanced(f"{measure} with the final model", height, MEDIUM))
    left, right, below, above = 34.0, colour_bar_width(low, high, label), 28.0, head.height
    points = np.array([72 * width, below + height + above])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    side = points[0] - left - right
    axes = figure.add_axes(tuple([left, below, side, height] * scale), label="map")
    image = draw_cells(axes, values, low, high)
    axes.invert_yaxis()  # depth upwards
    _label_axes(axes, dynamics, side)
    axes.set_ylabel("layer", fontsize=MEDIUM)
    axes.set_xlabel("training step", fontsize=MEDIUM)
    draw_bar(image, label, values)
    head.draw(figure)
    return figure


def layers_maps(dynamics: LearningDynamics, measure: str, most: int = 6) -> Figure:
    """Maps of all layers against all layers of the final model, one a checkpoint.

    Args:
        dynamics: Scores of all checkpoints.
        measure: Which of its measures.
        most: At most so many checkpoints, evenly chosen.

    Raises:
        UserError: no such measure.
    """
    dynamics.same_layer(measure)  # raises for an unknown measure
    chosen = np.unique(np.linspace(0, len(dynamics.steps) - 1, most).round().astype(int))
    values = dynamics.scores[measure][chosen]
    low, high = colour_limits(values.reshape(-1, values.shape[-1]), (0, 1))
    gap, left, right, below = 10.0, 34.0, colour_bar_width(low, high, measure), 30.0
    between = left + right + gap * (len(chosen) - 1)
    side = min(120.0, (72 * 7.0 - between) / len(chosen))
    width = max(4.0, (between + side * len(chosen)) / 72)
    head = headline(
        "Layers along training against layers at its end",
        width,
        [dynamics.note] if dynamics.note else [],
    )
    above = head.height + MEDIUM * LINE + 3
    points = np.array([72 * width, below + side + above])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    image = None
    for number, (index, block) in enumerate(zip(chosen, values)):
        start = left + number * (side + gap)
        axes = figure.add_axes(tuple([start, below, side, side] * scale), label=f"map {number}")
        image = draw_cells(axes, block, low, high)
        axes.invert_yaxis()
        ticks = _tick_positions(len(dynamics.layers), side / 12)
        axes.set_xticks(ticks, [str(dynamics.layers[tick]) for tick in ticks])
        axes.set_yticks(ticks, [str(dynamics.layers[tick]) for tick in ticks] if not number else [])
        axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
        axes.spines[:].set_visible(False)
        axes.set_title(f"step {dynamics.steps[index]}", fontsize=MEDIUM, pad=3)
        if not number:
            axes.set_ylabel("layer of the checkpoint", fontsize=MEDIUM)
            axes.set_xlabel("layer of the final model", fontsize=MEDIUM)
    assert image is not None
    draw_bar(image, measure, values.reshape(-1, values.shape[-1]))
    head.draw(figure)
    return figure


def _label_axes(axes, dynamics: LearningDynamics, side: float) -> None:
    widest = max(text_width(str(step), SMALL) for step in dynamics.steps)
    steps = _tick_positions(len(dynamics.steps), side / (widest + 4))
    layers = _tick_positions(len(dynamics.layers), 20)
    axes.set_xticks(steps, [str(dynamics.steps[index]) for index in steps])
    axes.set_yticks(layers, [str(dynamics.layers[index]) for index in layers])
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    axes.spines[:].set_visible(False)


def _tick_positions(count: int, room: float | int) -> list[int]:
    """Every k-th of `count` positions, so that at most `room` are left."""
    return list(range(0, count, max(1, -(-count // max(1, int(room))))))
