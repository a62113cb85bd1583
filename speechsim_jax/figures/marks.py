"""Which cells of a map are marked, as they are not found to differ from a reference."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool

from speechsim_jax.inference.differences import FALSE_DISCOVERY_RATE
from speechsim_jax.results.reference import CLOSEST, CLOSEST_OF_ROW
from speechsim_jax.results.result import SimilarityResult

AUTO = "auto"
AT_RATE = f"false discovery rate {100 * FALSE_DISCOVERY_RATE:.0f} %"
"""At which marks are made, in words."""


@dataclass(frozen=True, eq=False)
class Marks:
    """Cells of a map that are not found to differ from their reference.

    Attributes:
        cells: they.
        text: what they are, in words.
    """

    cells: Bool[np.ndarray, "x y"]
    text: str


def not_different(result: SimilarityResult, measure: str, reference: Any = AUTO) -> Marks | None:
    """The cells that are not found to differ from their reference, and these themselves.

    Args:
        result: with standard errors.
        measure: its name.
        reference: as in `SimilarityResult.differences`; "auto": the closest layer of each model,
            where the result has what that takes; "none" or None: no marks.

    Returns:
        None where nothing is to be marked.

    Raises:
        UserError: another reference than "auto" that the result cannot be compared with.
    """
    if reference is None or (isinstance(reference, str) and reference == "none"):
        return None
    if isinstance(reference, str) and reference == AUTO:
        if result.influence_of_rows(measure) is None:
            return None
        reference = CLOSEST
    return marks_of(result.differences(measure, reference, rate=FALSE_DISCOVERY_RATE), reference)


def marks_of(found: xr.Dataset, reference: Any) -> Marks | None:
    """The marks of what `SimilarityResult.differences` has found at `FALSE_DISCOVERY_RATE`.

    Args:
        found: what it returned.
        reference: what cells were compared with.

    Returns:
        None where no cell could be compared.
    """
    if not np.isfinite(found["p"].values).any():
        return None
    judged = np.isfinite(found["difference"].values)
    cells = (judged & ~found["differs"].values) | found["reference"].values
    return Marks(cells, f"not found to differ from {in_words(reference)} ({AT_RATE})")


def in_words(reference: Any) -> str:
    """What cells are compared with."""
    words = {
        CLOSEST: "the closest layer of its model",
        CLOSEST_OF_ROW: "the closest layer of its row",
        "floor": "the floor",
    }
    if isinstance(reference, str):
        return words.get(reference, f"the same layer of {reference}")
    if isinstance(reference, xr.DataArray):
        return str(reference.name or "the numbers given")
    if isinstance(reference, int | float):
        return f"{reference:g}"
    return f"({', '.join(map(str, reference))})"
