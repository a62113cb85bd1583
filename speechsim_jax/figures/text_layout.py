"""Text that fits: measured widths, line breaks where names allow them, headlines and keys.

Sizes and widths are in points; the extent of every text is measured, none is guessed. No name is
ever shortened: one that is too long for its place is broken into lines, or a letter stands there
and the name is in a key.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from speechsim_jax.results.result import SimilarityResult

SMALL, MEDIUM, LARGE = 6.0, 7.0, 8.5
LINE = 1.25  # line height, in font sizes
GAP = 3.0
_BREAKS = r"-_/.:@#"  # a line of a name may end after these
_FEWEST = 3  # characters between two places where a name may be broken
_COLUMN_GAP = 14.0  # between the columns of a key
_INDENT = 12.0  # of the names in a key, after their letters
_HANDLE = 32.0  # a line of a legend, and what is free around it


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
    if not text.strip():
        return 0.0
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    # A dollar would start mathematics here; the figures draw it as a dollar.
    path = TextPath((0, 0), text.replace("$", "S"), prop=font)
    # Outlines have their extreme points among these, and `get_extents` would solve every curve.
    return float(np.ptp(path.vertices[path.codes != Path.CLOSEPOLY, 0]))


def pieces(name: str) -> list[str]:
    """The name between the places where it may be broken: after "/", "-", "_" and the like.

    A piece ends with its separators, and has at least three other characters if it can: "org/",
    "wav2vec2-", "large"; but "contrastive_s" is one.
    """
    found: list[str] = []
    for piece in re.findall(rf"[^{_BREAKS}]+[{_BREAKS}]*|[{_BREAKS}]+", name):
        if found and min(_length(found[-1]), _length(piece)) < _FEWEST:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def _length(piece: str) -> int:
    """The number of characters that are not separators."""
    return len(re.sub(f"[{_BREAKS}]", "", piece))


@lru_cache(maxsize=4096)
def wrapped(text: str, room: int | float, size: int | float, bold: bool = False) -> tuple[str, ...]:
    """The text in lines of at most `room` points, and all of it.

    Lines end between words; within a word that has no room in a line of its own, where `pieces`
    ends one; and within a piece that has none, anywhere.
    """
    lines: list[str] = []

    def add(part: str, glue: str) -> None:
        longer = f"{lines[-1]}{glue}{part}" if lines else part
        if lines and text_width(longer.rstrip(), size, bold) <= room:
            lines[-1] = longer
        else:
            lines.append(part)

    def fits(part: str) -> bool:
        return text_width(part, size, bold) <= room

    for word in text.split():
        if fits(word):
            add(word, " ")
            continue
        for number, piece in enumerate(pieces(word)):
            glue = "" if number else " "
            if fits(piece):
                add(piece, glue)
                continue
            for place, character in enumerate(piece):
                add(character, "" if place else glue)
    return tuple(lines)


@lru_cache(maxsize=4096)
def balanced(text: str, room: int | float, size: int | float) -> tuple[str, ...]:
    """`wrapped` with the same number of lines, as equal in width as their breaks allow."""
    lines = wrapped(text, room, size)
    if len(lines) < 2:
        return lines
    low, high = room / len(lines), room
    while high - low > 0.5:
        middle = (low + high) / 2
        if len(wrapped(text, middle, size)) > len(lines) or _cuts(text, middle, size):
            low = middle
        else:
            high = middle
    return wrapped(text, high, size)


def _cuts(text: str, room: int | float, size: int | float) -> bool:
    """Whether a piece of the text would have to be broken."""
    return any(text_width(piece, size) > room for word in text.split() for piece in pieces(word))


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
        first, *rest = wrapped(note, room, SMALL) or ("",)
        if caption and text_width(f"{caption[-1]} · {first}", SMALL) <= room:
            caption[-1] += f" · {first}"
        else:
            caption.append(first)
        caption += rest
    return Headline(list(wrapped(title, room, LARGE, bold=True)), caption)


@dataclass(frozen=True)
class Key:
    """Letters and the names that they stand for, in columns below a figure.

    Attributes:
        entries: letter and the lines of the name.
        columns: how many there are.
        room: the width of each in points.
    """

    entries: list[tuple[str, tuple[str, ...]]]
    columns: int
    room: float

    @property
    def height(self) -> float:
        """The room that it takes at the bottom of the figure, in points."""
        return max(map(self._height, self._columns()), default=0.0) + (GAP if self.entries else 0)

    def draw(self, figure: Figure) -> None:
        """Write it into the lower left corner of a figure."""
        width, height = figure.get_size_inches() * 72
        for number, column in enumerate(self._columns()):
            top, left = self.height, 6 + number * (self.room + _COLUMN_GAP)
            for letter, lines in column:
                for text, indent in ((letter, 0.0), ("\n".join(lines), _INDENT)):
                    artist = figure.text(
                        (left + indent) / width, top / height, text, parse_math=False, gid="key"
                    )
                    artist.set(fontsize=SMALL, va="top", linespacing=LINE)
                top -= self._height([(letter, lines)])

    def _columns(self) -> list[list[tuple[str, tuple[str, ...]]]]:
        rows = -(-len(self.entries) // self.columns)
        return [self.entries[k : k + rows] for k in range(0, len(self.entries), max(1, rows))]

    @staticmethod
    def _height(entries: Sequence[tuple[str, tuple[str, ...]]]) -> float:
        return sum(len(lines) * SMALL * LINE + 1.5 for _, lines in entries)


def key_of(names: Mapping[str, str], width: int | float) -> Key:
    """The key of a figure, in as many columns as its names leave room for.

    Args:
        names: by letter.
        width: of the figure in inches.
    """
    room = 72 * width - 12
    lines = [wrapped(name, room - _INDENT, SMALL) for name in names.values()]
    widest = max((text_width(line, SMALL) for each in lines for line in each), default=0.0)
    columns = max(1, int((room + _COLUMN_GAP) // (_INDENT + widest + _COLUMN_GAP)))
    return Key(list(zip(names, lines, strict=True)), columns, _INDENT + widest)


def legend_layout(names: Sequence[str], width: int | float) -> tuple[list[str], int, float]:
    """The labels of a legend below a figure, its number of columns, and its height in points.

    Args:
        names: of its lines.
        width: of the figure in inches.
    """
    room = 72 * width - 12 - _HANDLE
    lines = [wrapped(name, room, SMALL) for name in names]
    widest = max(text_width(line, SMALL) for each in lines for line in each)
    columns = max(1, int((room + _HANDLE) // (widest + _HANDLE)))
    rows = -(-len(names) // columns)
    # A name of several lines leaves room for one column only.
    extra = sum(len(each) - 1 for each in lines)
    height = 1.7 * SMALL * rows + LINE * SMALL * extra
    return ["\n".join(each) for each in lines], columns, height
