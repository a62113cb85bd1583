"""Labels that fit: short names, line breaks and positions along a heat map, and headlines.

Sizes and widths are in points; the extent of every text is computed, none is guessed.
"""

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import letter

SMALL, MEDIUM, LARGE = 6.0, 7.0, 8.5
LINE = 1.25  # line height, in font sizes
GAP = 3.0
_LEGIBLE = 7  # the fewest characters of a shortened line of a name
_LETTER = 10.0  # room for one letter, in points
_SHORT_NAME = 4 * _LETTER  # the least room for a name where not all are written
CROWD = 12  # with more spans than this there are too many for a key
_ELLIPSIS = "…"


class ModelSpan(NamedTuple):
    """Neighbouring representations of one model along an axis.

    Attributes:
        model: its name.
        start: the position of the first.
        stop: the position after the last.
    """

    model: str
    start: int
    stop: int


@dataclass(frozen=True)
class Side:
    """The labels along one axis of a heat map.

    Attributes:
        ticks: positions in cells, and the numbers of the layers there.
        names: positions in cells, and the models' names, over several lines.
        key: letters that stand for models without room for a name, and their names.
        tick_extent: the room of the ticks, away from the map, in points.
        name_extent: the room of the names, away from the map, in points.
    """

    ticks: list[tuple[int, str]]
    names: list[tuple[float, str]]
    key: dict[str, str]
    tick_extent: float
    name_extent: float

    @property
    def extent(self) -> float:
        """The room of all labels, away from the map, in points."""
        return self.tick_extent + self.name_extent


NO_SIDE = Side([], [], {}, 0.0, 0.0)


def model_spans(matrix: xr.DataArray, axis: int) -> list[ModelSpan]:
    """The spans of single models along an axis (0 or 1) of a result's matrix."""
    names = [str(name) for name in matrix[f"{matrix.dims[axis]}_model"].values]
    cuts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    return [ModelSpan(names[i], i, j) for i, j in zip(cuts, [*cuts[1:], len(names)], strict=True)]


def short_names(models: Sequence[str]) -> list[str]:
    """Drop the organisation or folder before the last "/", where names stay different without."""
    short = [model.rstrip("/").rsplit("/", 1)[-1] for model in models]
    return [s if short.count(s) == 1 else m for s, m in zip(short, models, strict=True)]


def unique(names: Iterable[str]) -> list[str]:
    """Each name once, in order."""
    return list(dict.fromkeys(names))


@lru_cache(maxsize=4096)
def text_width(text: str, size: int | float, bold: bool = False) -> float:
    """The width of a line of text in points."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    # A dollar would start mathematics here; the figures draw it as a dollar.
    path = TextPath((0, 0), text.replace("$", "S"), prop=font)
    return float(path.get_extents().width) if len(path.vertices) else 0.0


def ellipsised(text: str, limit: int | float, size: int | float) -> str:
    """The text with its middle left out, if it is wider than `limit` points."""

    def of_length(length: int) -> str:
        head, tail = -(-length // 2), length // 2
        return f"{text[:head]}{_ELLIPSIS}{text[-tail:]}"

    if len(text) <= 2 or text_width(text, size) <= limit:
        return text
    lengths = range(2, len(text))
    fitting = bisect.bisect_right(lengths, limit, key=lambda n: text_width(of_length(n), size))
    return of_length(lengths[max(fitting - 1, 0)])


def _wrapped(text: str, limit: int | float, size: int | float, bold: bool = False) -> list[str]:
    """The text broken between words into lines of at most `limit` points."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= limit:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _folded(name: str, count: int) -> list[str]:
    """The name over `count` lines, broken after hyphens, its widest line as short as possible."""
    parts = re.findall(r"[^-_. ]+[-_. ]*|[-_. ]+", name)
    best = [name]
    for cuts in combinations(range(1, len(parts)), min(count, len(parts)) - 1):
        edges = [0, *cuts, len(parts)]
        lines = ["".join(parts[i:j]).strip() for i, j in pairwise(edges)]
        if max(map(len, lines)) < max(map(len, best)):
            best = lines
    return best


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


def _name_lines(name: str, room: float) -> list[str] | None:
    """The name in as few lines as fit `room` points, shortened if need be; None if too much."""
    lines = [name]
    for count in (1, 2, 3):
        lines = _folded(name, count)
        if max(text_width(line, MEDIUM) for line in lines) <= room:
            return lines
    short = [ellipsised(line, room, MEDIUM) for line in lines]
    shortened = [line for line, full in zip(short, lines, strict=True) if line != full]
    # A name of one or two letters cannot be shortened, and has no room.
    return short if min(map(len, shortened), default=0) >= _LEGIBLE else None


def _place_names(
    spans: Sequence[ModelSpan], cell: float
) -> tuple[list[tuple[float, str]], dict[str, str]]:
    """Model names with their positions in points, and a key for spans too short for a name."""
    side = cell * spans[-1].stop
    crowded = len(spans) > CROWD
    every = max(1, int(np.ceil(_SHORT_NAME * len(spans) / side))) if crowded else 1
    models = unique(span.model for span in spans)
    short = dict(zip(models, short_names(models), strict=True))
    named = spans[::every]
    if crowded and len(named) > 1 and cell * (spans[-1].stop - named[-1].start) < _SHORT_NAME:
        named = named[:-1]
    # A name has the room up to the next one that is written.
    ends = [span.start for span in named[1:]] + [spans[-1].stop]
    lengths = [cell * (end - span.start) for span, end in zip(named, ends, strict=True)]
    # Letters at spans shorter than a letter take their room from the names.
    excess = sum(max(0.0, _LETTER - length) for length in lengths)
    share = excess / max(1, sum(length > _LETTER for length in lengths))
    centres, labels, key = [], [], {}
    for span, length in zip(named, lengths, strict=True):
        name, room = short[span.model], length - GAP - share
        lines = _name_lines(name, room)
        if lines is None and crowded:
            lines = [ellipsised(name, room, MEDIUM)]
        if lines is None:
            known = (initial for initial, of_model in key.items() if of_model == name)
            lines = [next(known, letter(len(key)))]
            key[lines[0]] = name
        labels.append(lines)
        centres.append(cell * (span.start + span.stop) / 2)
    widths = [max(text_width(line, MEDIUM) for line in lines) for lines in labels]
    centres = spread(centres, widths, side)
    return [(c, "\n".join(lines)) for c, lines in zip(centres, labels, strict=True)], key


def _place_ticks(
    spans: Sequence[ModelSpan], layers: Sequence[int], cell: float
) -> list[tuple[int, str]]:
    """The layers to name, by position: each span's first, then multiples of a common step."""
    if len(spans) == len(layers):
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


def side_labels(matrix: xr.DataArray, axis: int, cell: float) -> Side:
    """The labels along an axis of a heat map.

    Args:
        matrix: a result's matrix.
        axis: 0 or 1.
        cell: the side of a cell in points.
    """
    spans = model_spans(matrix, axis)
    layers = [int(layer) for layer in matrix[f"{matrix.dims[axis]}_layer"].values]
    ticks = _place_ticks(spans, layers, cell)
    names, key = _place_names(spans, cell)
    extent = max((text_width(label, SMALL) for _, label in ticks), default=0.0)
    lines = max(name.count("\n") + 1 for _, name in names)
    tick_extent = (extent + 1.5, SMALL)[axis] + 3.5 if ticks else 0.0
    in_cells = [(position / cell - 0.5, name) for position, name in names]
    return Side(ticks, in_cells, key, tick_extent, lines * MEDIUM * LINE + GAP)


@dataclass(frozen=True)
class Headline:
    """Title and caption of a figure.

    Attributes:
        title: its lines.
        caption: its lines.
    """

    title: list[str]
    caption: list[str]

    @property
    def height(self) -> float:
        """The room that it takes at the top of the figure, in points."""
        return (len(self.title) * LARGE + len(self.caption) * SMALL) * LINE + 10

    def draw(self, figure: Figure) -> None:
        """Write it into the upper left corner of a figure."""
        width, height = figure.get_size_inches() * 72
        top = height - 4
        for lines, size, style in (
            (self.title, LARGE, {"weight": "bold", "gid": "title"}),
            (self.caption, SMALL, {"color": "#404040", "gid": "caption"}),
        ):
            if lines:
                artist = figure.text(6 / width, top / height, "\n".join(lines), parse_math=False)
                artist.set(fontsize=size, va="top", linespacing=LINE, **style)
            top -= len(lines) * size * LINE


def title_or_summary(result: SimilarityResult, measure: str, title: str | None) -> str:
    """The title, or without one the measure's summary, or without that its name."""
    return result.definition(measure).get("summary") or measure if title is None else title


def headline(title: str, width: float, notes: Sequence[str], key: Sequence[str] = ()) -> Headline:
    """Break title and caption into lines that fit a figure.

    Args:
        title: "" for none; then there is no caption of notes, either.
        width: of the figure in inches.
        notes: parts of the caption.
        key: parts of the caption that a reader needs also without a title.
    """
    notes = [*notes, *key] if title else key
    room = 72 * width - 12
    caption: list[str] = []
    for note in notes:
        first, *rest = _wrapped(note, room, SMALL) or [""]
        if caption and text_width(f"{caption[-1]} · {first}", SMALL) <= room:
            caption[-1] += f" · {first}"
        else:
            caption.append(first)
        caption += rest
    return Headline(_wrapped(title, room, LARGE, bold=True), caption)
