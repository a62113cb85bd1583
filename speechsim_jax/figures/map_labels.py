"""Names and layers along the sides of a heat map.

The names of models stand in the first way that has room for all of them on both sides: along the
side, in up to three lines; across it, which is horizontal next to the rows and vertical below the
columns; else letters stand for those without room, and the names are in a key below the map. Where
not even letters have room, every n-th representation is named, across.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import xarray as xr
from matplotlib.axes import Axes

from speechsim_jax.figures.text_layout import (
    GAP,
    LINE,
    MEDIUM,
    SMALL,
    balanced,
    pieces,
    short_names,
    text_width,
    unique,
)
from speechsim_jax.results.summary import letter

_LETTER = 10.0  # the least room for a letter, in points
_DEEPEST = 0.22  # the most of a figure's width that names across a side take
_ALONG, _ACROSS = 3, 2  # the most lines of a name
_APART = 4.0  # between the ticks or the map and the names, in points
CROWD = 12  # more models than this have no lines between them where each has one layer


class ModelSpan(NamedTuple):
    """Neighbouring representations of one model along a side.

    Attributes:
        model: its name.
        start: the position of the first.
        stop: the position after the last.
    """

    model: str
    start: int
    stop: int


class Name(NamedTuple):
    """A name along a side.

    Attributes:
        position: of its middle, in cells.
        text: its lines.
        along: whether it reads along the side, not across it.
    """

    position: float
    text: str
    along: bool = True

    @property
    def thickness(self) -> float:
        """Its extent across its lines, in points."""
        return (self.text.count("\n") + 1) * MEDIUM * LINE

    @property
    def width(self) -> float:
        """Its extent along its lines, in points."""
        return max(text_width(line, MEDIUM) for line in self.text.split("\n"))

    @property
    def room(self) -> float:
        """What it takes of its side, in points."""
        return self.width if self.along else self.thickness


@dataclass(frozen=True)
class Side:
    """The labels along one side of a heat map.

    Attributes:
        ticks: positions in cells, and the numbers of the layers there.
        names: of the models.
        tick_extent: the room of the ticks, away from the map, in points.
        name_extent: the room of the names, away from the map, in points.
    """

    ticks: list[tuple[int, str]]
    names: list[Name]
    tick_extent: float
    name_extent: float

    @property
    def extent(self) -> float:
        """The room of all labels, away from the map, in points."""
        return self.tick_extent + self.name_extent


class Labels(NamedTuple):
    """The labels of a heat map.

    Attributes:
        x: of the rows, on the left.
        y: of the columns, below.
        key: names by the letters that stand for them.
    """

    x: Side
    y: Side
    key: dict[str, str]


def spans_of(models: Sequence[str]) -> list[ModelSpan]:
    """The spans of single models, by the model of every representation along a side."""
    cuts = [i for i in range(len(models)) if i == 0 or models[i] != models[i - 1]]
    ends = [*cuts[1:], len(models)]
    return [ModelSpan(models[i], i, j) for i, j in zip(cuts, ends, strict=True)]


def model_spans(matrix: xr.DataArray, axis: int) -> list[ModelSpan]:
    """The spans of single models along an axis (0 or 1) of a result's matrix."""
    return spans_of([str(name) for name in matrix[f"{matrix.dims[axis]}_model"].values])


def map_labels(matrix: xr.DataArray, room: float, width: float) -> tuple[Labels, float]:
    """The labels of a heat map, and the side of its cells in points.

    Args:
        matrix: a result's matrix.
        room: of the row labels and the cells together, in points.
        width: of the figure in points.
    """
    spans = [model_spans(matrix, axis) for axis in (0, 1)]
    layers = [[int(n) for n in matrix[f"{dim}_layer"].values] for dim in matrix.dims]
    for arrange in _ARRANGEMENTS:
        extent = 0.0
        while True:  # the labels' extent depends on the size of the map, and the reverse
            cell = (room - extent) / matrix.shape[1]
            placed = arrange(spans, cell, _DEEPEST * width)
            if placed is None:
                break
            names, key = placed
            sides = [_side(k, spans[k], layers[k], names[k], cell) for k in (0, 1)]
            if sides[0].extent <= extent:
                return Labels(sides[0], sides[1], key), cell
            extent = sides[0].extent
    raise AssertionError("the last arrangement has room for whatever there is")


def column_names(
    spans: Sequence[ModelSpan], cell: float, deepest: float
) -> tuple[Side, dict[str, str]]:
    """Names below the columns of a map whose rows are not named, and their key."""
    for arrange in _ARRANGEMENTS:
        placed = arrange([spans], cell, deepest)
        if placed is not None:
            (names,), key = placed
            return _side(1, spans, [], names, cell), key
    raise AssertionError("the last arrangement has room for whatever there is")


def _side(
    axis: int, spans: Sequence[ModelSpan], layers: Sequence[int], names: list[Name], cell: float
) -> Side:
    ticks = _place_ticks(spans, layers, cell)
    widest = max((text_width(label, SMALL) for _, label in ticks), default=0.0)
    tick_extent = (widest + 1.5, SMALL)[axis] + 3.5 if ticks else 0.0
    away = max(name.thickness if name.along else name.width for name in names)
    in_cells = [name._replace(position=name.position / cell - 0.5) for name in names]
    return Side(ticks, in_cells, tick_extent, away + _APART)


def draw_names(axes: Axes, side: Side, axis: int) -> None:
    """Write the names of the rows (axis 0) or columns (1) next to their ticks."""
    transform = axes.get_xaxis_transform() if axis else axes.get_yaxis_transform()
    offset = -side.tick_extent - _APART + 1
    for name in side.names:
        axes.annotate(
            name.text,
            xy=(name.position, 0) if axis else (0, name.position),
            xytext=(0, offset) if axis else (offset, 0),
            xycoords=transform,
            textcoords="offset points",
            annotation_clip=False,
            fontsize=MEDIUM,
            linespacing=LINE,
            multialignment="center" if name.along else "right",
            rotation=0 if name.along == bool(axis) else 90,
            ha="center" if axis else "right",
            va="top" if axis else "center",
            parse_math=False,
            gid="y name" if axis else "x name",
        )


# --- arrangements: names in points along each side and their key, or None without room ---

_Placed = tuple[list[list[Name]], dict[str, str]]


def _along(sides: Sequence[Sequence[ModelSpan]], cell: float, deepest: float) -> _Placed | None:
    short = _short_names(sides)
    placed = []
    for spans in sides:
        texts = [_fitting(short[s.model], cell * (s.stop - s.start) - GAP, _ALONG) for s in spans]
        if None in texts:
            return None
        placed.append([Name(_middle(s, cell), t) for s, t in zip(spans, texts, strict=True) if t])
    return placed, {}


def _across(sides: Sequence[Sequence[ModelSpan]], cell: float, deepest: float) -> _Placed | None:
    short = _short_names(sides)
    placed = []
    for spans in sides:
        names = []
        for span in spans:
            lines = int(cell * (span.stop - span.start) // (MEDIUM * LINE))
            text = _fitting(short[span.model], deepest, min(lines, _ACROSS))
            if text is None:
                return None
            names.append(Name(_middle(span, cell), text, along=False))
        placed.append(names)
    return placed, {}


def _lettered(sides: Sequence[Sequence[ModelSpan]], cell: float, deepest: float) -> _Placed | None:
    short = _short_names(sides)
    lettered: set[str] = set()
    while True:
        key = {letter(k): short[model] for k, model in enumerate(m for m in short if m in lettered)}
        letters = {name: initial for initial, name in key.items()}
        placed, missing = [], set()
        for axis, spans in enumerate(sides):
            # Letters of spans shorter than a letter take their room from the names.
            lengths = {span: cell * (span.stop - span.start) for span in spans}
            excess = sum(
                max(0.0, _LETTER - length) for s, length in lengths.items() if s.model in lettered
            )
            share = excess / max(1, sum(span.model not in lettered for span in spans))
            names = []
            for span, length in lengths.items():
                text = letters.get(short[span.model])
                # A letter is upright on both sides.
                along = text is None or axis == 1 or len(sides) == 1
                text = text or _fitting(short[span.model], length - GAP - share, _ALONG)
                if text is None:
                    missing.add(span.model)
                else:
                    names.append(Name(_middle(span, cell), text, along))
            placed.append(names)
        if not missing:
            break
        lettered |= missing
        if 2 * len(lettered) > len(short):
            lettered = set(short)
    spreads = []
    for spans, names in zip(sides, placed, strict=True):
        rooms, side = [name.room for name in names], cell * spans[-1].stop
        if sum(rooms) + GAP * (len(rooms) - 1) > side:
            return None
        centres = spread([name.position for name in names], rooms, side)
        spreads.append([n._replace(position=c) for n, c in zip(names, centres, strict=True)])
    return spreads, key


def _every_nth(sides: Sequence[Sequence[ModelSpan]], cell: float, deepest: float) -> _Placed:
    short = _short_names(sides)
    placed = []
    for spans in sides:
        names: list[Name] = []
        end = -3.0  # a name may begin a little before its side
        for span in spans:
            text = "\n".join(balanced(short[span.model], 1.5 * deepest, MEDIUM))
            name = Name(_middle(span, cell), text, along=False)
            if name.position - name.room / 2 >= end:
                names.append(name)
                end = name.position + name.room / 2 + GAP
        placed.append(names)
    return placed, {}


_ARRANGEMENTS = (_along, _across, _lettered, _every_nth)


def _short_names(sides: Sequence[Sequence[ModelSpan]]) -> dict[str, str]:
    models = unique(span.model for spans in sides for span in spans)
    return dict(zip(models, short_names(models), strict=True))


def _middle(span: ModelSpan, cell: float) -> float:
    return cell * (span.start + span.stop) / 2


def _fitting(name: str, room: float, most: int) -> str | None:
    """The name in at most so many lines of at most `room` points; None if it needs more."""
    if any(text_width(piece, MEDIUM) > room for piece in pieces(name)):
        return None
    lines = balanced(name, room, MEDIUM)
    return "\n".join(lines) if len(lines) <= most else None


def spread(centres: Sequence[float], widths: Sequence[float], side: float) -> list[float]:
    """Move labels apart as little as needed.

    Args:
        centres: where they should be, in points, ascending.
        widths: of the labels, in points.
        side: the labels stay between 0 and this.

    Returns:
        The centres of the labels, which do not overlap if there is room for all of them.
    """
    positions = [min(max(c, w / 2), side - w / 2) for c, w in zip(centres, widths, strict=True)]
    for i in range(1, len(positions)):
        positions[i] = max(positions[i], positions[i - 1] + (widths[i - 1] + widths[i]) / 2 + GAP)
    end = side
    for i in reversed(range(len(positions))):
        positions[i] = min(positions[i], end - widths[i] / 2)
        end = positions[i] - widths[i] / 2 - GAP
    return positions


def _place_ticks(
    spans: Sequence[ModelSpan], layers: Sequence[int], cell: float
) -> list[tuple[int, str]]:
    """The layers to name, by position: each span's first, then multiples of a common step."""
    if len(spans) >= len(layers):
        return []  # models of one layer: their names are enough
    widest = max(text_width(str(layer), SMALL) for layer in layers)
    steps = (1, 2, 3, 6, 12, 24, 48)
    step = next((s for s in steps if s * cell >= 2.2 * widest), steps[-1])
    # The longest spans first: where there is no room for all, they get their number.
    firsts = [span.start for span in sorted(spans, key=lambda span: span.start - span.stop)]
    half_widths: dict[int, float] = {}
    for i in (*firsts, *(i for i, layer in enumerate(layers) if layer % step == 0)):
        half = max(text_width(str(layers[i]), SMALL), SMALL) / 2
        if all(abs(i - j) * cell >= half + width + 2 for j, width in half_widths.items()):
            half_widths[i] = half
    return [(i, str(layers[i])) for i in sorted(half_widths)]
