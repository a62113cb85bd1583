"""Labels that fit: short names, line breaks and positions along a heat map, and headlines.

Sizes and widths are in points; the extent of every text is computed, none is guessed.
"""

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

SMALL, MEDIUM, LARGE = 6.0, 7.0, 8.5
LINE = 1.25  # line height, in font sizes
GAP = 3.0
_LEGIBLE = 7  # the fewest characters that a shortened line of a name may keep
_LETTER = 10.0  # room for one letter, in points
CROWD = 12  # more blocks than this are too many for a key
_ELLIPSIS = "…"


class ModelSpan(NamedTuple):
    """A run of neighbouring representations of one model: positions `start` to `stop` (exclusive)."""

    model: str
    start: int
    stop: int


@dataclass(frozen=True)
class Side:
    """The labels along one axis of a heat map: positions in cells, sizes in points."""

    ticks: list[tuple[int, str]]
    names: list[tuple[float, str]]
    key: dict[str, str]
    tick_depth: float
    name_depth: float

    @property
    def depth(self) -> float:
        """All the room that the labels take, away from the map."""
        return self.tick_depth + self.name_depth


NO_SIDE = Side([], [], {}, 0.0, 0.0)


def blocks(matrix: xr.DataArray, axis: int) -> list[ModelSpan]:
    """The runs of one model along an axis of a result's matrix."""
    names = [str(name) for name in matrix[f"{matrix.dims[axis]}_model"].values]
    cuts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    return [ModelSpan(names[i], i, j) for i, j in zip(cuts, [*cuts[1:], len(names)], strict=True)]


def short_names(models: Sequence[str]) -> list[str]:
    """Drop the organisation or folder before the last "/", where names stay apart without it."""
    short = [model.rstrip("/").rsplit("/", 1)[-1] for model in models]
    return [s if short.count(s) == 1 else m for s, m in zip(short, models, strict=True)]


def unique(names: Iterable[str]) -> list[str]:
    """Each name once, in order."""
    return list(dict.fromkeys(names))


@lru_cache(maxsize=4096)
def text_width(text: str, size: int | float, bold: bool = False) -> float:
    """The width of a line of text in points."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    # A dollar would start mathematics; the figures draw it as it is.
    path = TextPath((0, 0), text.replace("$", "S"), prop=font)
    return float(path.get_extents().width) if len(path.vertices) else 0.0


def ellipsised(text: str, limit: int | float, size: int | float) -> str:
    """The text with its middle left out, if it is wider than `limit` points."""
    for kept in range(len(text), 1, -1):
        head, tail = -(-kept // 2), kept // 2
        line = text if kept == len(text) else f"{text[:head]}{_ELLIPSIS}{text[-tail:]}"
        if text_width(line, size) <= limit:
            break
    else:
        return text if len(text) <= 2 else f"{text[0]}{_ELLIPSIS}{text[-1]}"
    return line


def _wrapped(text: str, limit: int | float, size: int | float, bold: bool = False) -> list[str]:
    """Lines of whole words within `limit` points."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= limit:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _folded(name: str, count: int) -> list[str]:
    """The name over `count` lines, broken after hyphens, its widest line as narrow as can be."""
    parts = re.findall(r"[^-_. ]+[-_. ]*|[-_. ]+", name)
    best = [name]
    for cuts in combinations(range(1, len(parts)), min(count, len(parts)) - 1):
        edges = [0, *cuts, len(parts)]
        lines = ["".join(parts[i:j]).strip() for i, j in pairwise(edges)]
        if max(map(len, lines)) < max(map(len, best)):
            best = lines
    return best


def spread(centres: Sequence[float], widths: Sequence[float], side: float) -> list[float]:
    """Move labels apart as little as needed, within 0 to `side`."""
    placed = [min(max(c, w / 2), side - w / 2) for c, w in zip(centres, widths, strict=True)]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + (widths[i - 1] + widths[i]) / 2 + GAP)
    end = side
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], end - widths[i] / 2)
        end = placed[i] - widths[i] / 2 - GAP
    return placed


def _name_lines(name: str, room: float) -> list[str] | None:
    """The name in as few lines as fit the room, middles left out; None if little would be left."""
    lines = [name]
    for count in (1, 2, 3):
        lines = _folded(name, count)
        if max(text_width(line, MEDIUM) for line in lines) <= room:
            return lines
    short = [ellipsised(line, room, MEDIUM) for line in lines]
    cut = [line for line, whole in zip(short, lines, strict=True) if line != whole]
    return short if min(map(len, cut)) >= _LEGIBLE else None


def _place_names(
    runs: Sequence[ModelSpan], cell: float
) -> tuple[list[tuple[float, str]], dict[str, str]]:
    """Model names with their positions in points, and a key for blocks too small for a name."""
    side = cell * runs[-1].stop
    crowded = len(runs) > CROWD
    every = max(1, int(np.ceil(_LETTER * 4 * len(runs) / side))) if crowded else 1
    models = unique(run.model for run in runs)
    short = dict(zip(models, short_names(models), strict=True))
    spans = [cell * (run.stop - run.start) * every for run in runs[::every]]
    # Letters beside blocks narrower than a letter take their room from the names.
    excess = sum(max(0.0, _LETTER - span) for span in spans)
    share = excess / max(1, sum(span > _LETTER for span in spans))
    placed, labels, key = [], [], {}
    for run, span in zip(runs[::every], spans, strict=True):
        room = span - GAP - share
        lines = _name_lines(short[run.model], room)
        if lines is None and crowded:
            lines = [ellipsised(short[run.model], room, MEDIUM)]
        if lines is None:
            letter = next((a for a, m in key.items() if m == short[run.model]), chr(65 + len(key)))
            key[letter] = short[run.model]
            lines = [letter]
        labels.append(lines)
        placed.append(cell * (run.start + run.stop) / 2)
    widths = [max(text_width(line, MEDIUM) for line in lines) for lines in labels]
    placed = spread(placed, widths, side)
    return [(p, "\n".join(lines)) for p, lines in zip(placed, labels, strict=True)], key


def _place_ticks(
    runs: Sequence[ModelSpan], layers: Sequence[int], cell: float
) -> list[tuple[int, str]]:
    """The layers to name, by position: each block's first, then multiples of a common step."""
    if len(runs) == len(layers):
        return []  # single layers: the model's name says all
    widest = max(text_width(str(layer), SMALL) for layer in layers)
    steps = (1, 2, 3, 6, 12, 24, 48)
    step = next((s for s in steps if s * cell >= 2.2 * widest), steps[-1])
    firsts = [run.start for run in sorted(runs, key=lambda run: run.start - run.stop)]
    taken: dict[int, float] = {}
    for i in (*firsts, *(i for i, layer in enumerate(layers) if layer % step == 0)):
        half = max(text_width(str(layers[i]), SMALL), SMALL) / 2
        if all(abs(i - j) * cell >= half + other + 2 for j, other in taken.items()):
            taken[i] = half
    return [(i, str(layers[i])) for i in sorted(taken)]


def side_labels(matrix: xr.DataArray, axis: int, cell: float) -> Side:
    """The labels along an axis of a result's matrix whose cells are `cell` points wide."""
    runs = blocks(matrix, axis)
    layers = [int(layer) for layer in matrix[f"{matrix.dims[axis]}_layer"].values]
    ticks = _place_ticks(runs, layers, cell)
    names, key = _place_names(runs, cell)
    extent = max((text_width(label, SMALL) for _, label in ticks), default=0.0)
    lines = max(name.count("\n") + 1 for _, name in names)
    tick_depth = (extent + 1.5, SMALL)[axis] + 3.5 if ticks else 0.0
    centred = [(position / cell - 0.5, name) for position, name in names]
    return Side(ticks, centred, key, tick_depth, lines * MEDIUM * LINE + GAP)


@dataclass(frozen=True)
class Headline:
    """The lines of a figure's title and caption."""

    title: list[str]
    caption: list[str]

    @property
    def depth(self) -> float:
        """The room that it takes at the top of the figure."""
        return (len(self.title) * LARGE + len(self.caption) * SMALL) * LINE + 10

    def draw(self, figure: Figure) -> None:
        """Write it into the upper left corner."""
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


def title_of(result: SimilarityResult, measure: str, title: str | None) -> str:
    """The title given, or what the measure says of itself."""
    return result.definition(measure).get("summary") or measure if title is None else title


def headline(title: str, width: float, notes: Sequence[str], key: Sequence[str] = ()) -> Headline:
    """Title and caption that fit a figure of `width` inches; `key` stands without a title, too."""
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
