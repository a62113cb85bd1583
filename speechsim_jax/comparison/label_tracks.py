"""Labels of rows, as phones, as representations with one column a class."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from speechsim_jax.audio.label_classes import classes_of
from speechsim_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class RowLabels:
    """The class of every row.

    Attributes:
      name: of the track.
      classes: most frequent first.
      of_row: number of each row's class, -1 for none.
    """

    name: str
    classes: tuple[str, ...]
    of_row: Int64[np.ndarray, " row"]

    def indicators(self, rows: int) -> Iterator[Float64[np.ndarray, "row class"]]:
        """1 for the class of each row, else 0, in blocks of so many rows."""
        for start in range(0, len(self.of_row), rows):
            of_row = self.of_row[start : start + rows]
            block = np.zeros((len(of_row), len(self.classes)))
            labelled = np.flatnonzero(of_row >= 0)
            block[labelled, of_row[labelled]] = 1
            yield block


def label_track(name: str, labels: Sequence[Any] | np.ndarray, min_share: float | int) -> RowLabels:
    """The classes of labels, by frequency and then by name.

    Args:
      name: of the track.
      labels: of each row; None, NaN or "" for none.
      min_share: classes of a smaller share of the labelled rows are no classes.

    Raises:
      UserError: labels that are not one a row; no class, or more than 2,000.
    """
    array = np.asarray(labels, dtype=object)
    if array.ndim != 1:
        raise UserError(f"labels of {name}: expected one label a row, got shape {array.shape}")
    texts = ["" if _is_missing(label) else str(label) for label in array.tolist()]
    counts = collections.Counter(texts)
    counts.pop("", None)
    classes = classes_of(name, counts, min_share)
    position = {text: k for k, text in enumerate(classes)}
    return RowLabels(name, classes, np.array([position.get(text, -1) for text in texts]))


def _is_missing(label: Any) -> bool:
    """None, NaN, or pandas' NA."""
    try:
        return label is None or bool(label != label)  # NaN differs from itself
    except TypeError:  # NA is neither equal nor different
        return True
