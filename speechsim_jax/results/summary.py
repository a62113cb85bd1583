"""Text of a result for a terminal: a table of mean scores, and a warning of too few frames."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

_WIDTH = 100
_ROWS_PER_NEURON = 10
_MOST_MODELS_BY_PAIR = 4  # with more models than this there is no column for every pair


class Mean(NamedTuple):
    """A mean of scores, and its standard error; NaN where not known."""

    score: float
    error: float = float("nan")

    def __str__(self) -> str:
        if np.isnan(self.score):
            return "-"
        return f"{self.score:.3f}" + ("" if np.isnan(self.error) else f" ±{self.error:.3f}")


def blocks_shown(count: int) -> dict[str, list[tuple[int, int]]]:
    """The columns of `means_table`, each a mean over blocks (x, y) of models.

    All models with themselves (within) and with others (between), each with itself, and every pair
    if there are few models.

    Args:
        count: of models.
    """
    names = [letter(index) for index in range(count)]
    own = [(x, x) for x in range(count)]
    others = [(x, y) for x, y in product(range(count), repeat=2) if x != y]
    columns = {"within": own}
    if count > 1:
        columns["between"] = others
        columns |= {f"{names[x]},{names[y]}": [(x, y)] for x, y in own}
    if count <= _MOST_MODELS_BY_PAIR:
        columns |= {f"{names[x]},{names[y]}": [(x, y)] for x, y in others}
    return columns


def means_table(layer_counts: Mapping[str, int], means: Mapping[str, Mapping[str, Mean]]) -> str:
    """The models with their letters and numbers of layers, then tables of mean scores.

    No line is longer than 100 characters, unless one column is.

    Args:
        layer_counts: number of layers by model.
        means: by measure, the means by column (`blocks_shown`).

    Returns:
        The text, without a newline at its end.
    """
    names = [letter(index) for index in range(len(layer_counts))]
    columns = []
    for heading in next(iter(means.values())):
        texts = [heading, *(str(of_measure[heading]) for of_measure in means.values())]
        columns.append([text.rjust(max(map(len, texts))) for text in texts])
    longest = max(map(len, means))
    measures = [text.ljust(longest) for text in ("", *means)]
    tables = [
        "\n".join("  ".join(row).rstrip() for row in zip(measures, *group, strict=True))
        for group in _split_columns(columns, _WIDTH - longest - 2)
    ]
    models = [
        f"{name}  {model} ({layers} layer{'s' * (layers > 1)})"
        for name, (model, layers) in zip(names, layer_counts.items(), strict=True)
    ]
    return "\n\n".join(["\n".join(models), *tables])


def few_frames_warning(rows: int, widest: int, measures: Sequence[str]) -> str:
    """A warning if there are fewer than ten rows per neuron of the widest layer, else "".

    Args:
        rows: frames, or pooled frames, that the scores are of.
        widest: neurons of the widest layer.
        measures: the measures that few rows inflate.

    Returns:
        One paragraph; empty also without such measures.
    """
    if not measures or rows >= _ROWS_PER_NEURON * widest:
        return ""
    return (
        f"Few frames: {rows:,} for layers of up to {widest:,} neurons. {listed(measures)} come out "
        "high for anything, more so the wider the layers. Use more audio (a minute has 3,000 "
        "frames), or read lincka_debiased, the floors, and an untrained model (random:ID)."
    )


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ...: stands for a model's name where there is no room for it."""
    rest, place = divmod(index, 26)
    return (letter(rest - 1) if rest else "") + chr(65 + place)


def listed(texts: Sequence[str], count: int | None = None, of: str = "") -> str:
    """Texts as a list in a sentence.

    Args:
        texts: those that are named.
        count: of all, with those that are not named; default: all are.
        of: what they are, where some are not named.
    """
    left = (count or len(texts)) - len(texts)
    parts = [*texts, f"{left} more {of}".rstrip()] if left > 0 else list(texts)
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _split_columns(columns: Sequence[list[str]], width: int) -> list[Sequence[list[str]]]:
    """Split the columns into as few groups as fit `width`, about equal in number (at least one)."""
    groups: list[Sequence[list[str]]] = []
    for count in range(1, len(columns) + 1):
        size = -(-len(columns) // count)
        groups = [columns[start : start + size] for start in range(0, len(columns), size)]
        if all(sum(len(column[0]) + 2 for column in group) - 2 <= width for group in groups):
            break
    return groups
