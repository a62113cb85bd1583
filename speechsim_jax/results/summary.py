"""A result in a terminal: mean scores of models, each measure a row; and whether to trust them."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Float

_WIDTH = 100
# With no more rows than neurons these are near 1 for any two representations, or far above 0.
_INFLATED = (
    "linreg", "linreg_r2", "linreg_r2_global", "svcca", "svcca_ge", "svcca_centred",
    "svcca_centred_ge", "mean_cca", "mean_cca2", "pwcca", "pwcca_zscored", "lincka",
    "lincka_zscored", "procrustes", "maxcorr", "matchcorr", "rotcorr",
)  # fmt: skip
_ROWS_PER_NEURON = 10
_PAIRS_OF = 4  # of more models than this there is no column for every two


def means_table(
    depths: Mapping[str, int], means: Mapping[str, Float[np.ndarray, "model model"]]
) -> str:
    """The models with their letters and layers, and tables of at most 100 columns.

    `means`: measure -> [x, y], NaN where not known. Of all models with themselves (within) and with
    others (between), of each with itself, and of every two if there are few.
    """
    count = len(depths)
    names = [letter(index) for index in range(count)]
    itself = np.eye(count, dtype=bool)
    shown = [(x, x) for x in range(count)] if count > 1 else []
    if count <= _PAIRS_OF:
        shown += [(x, y) for x, y in product(range(count), repeat=2) if x != y]
    heads = ["within", *(["between"] if count > 1 else [])]
    heads += [f"{names[x]},{names[y]}" for x, y in shown]
    rows = []
    for values in means.values():
        overall = [_mean(values[itself]), *([_mean(values[~itself])] if count > 1 else [])]
        rows.append([*overall, *(values[pair] for pair in shown)])
    columns = []
    for head, scores in zip(heads, zip(*rows, strict=True), strict=True):
        texts = [head, *("-" if np.isnan(score) else f"{score:.3f}" for score in scores)]
        columns.append([text.rjust(max(map(len, texts))) for text in texts])
    longest = max(map(len, means))
    measures = [text.ljust(longest) for text in ("", *means)]
    tables = [
        "\n".join("  ".join(row).rstrip() for row in zip(measures, *group, strict=True))
        for group in _fitting(columns, _WIDTH - longest - 2)
    ]
    key = [
        f"{name}  {model} ({layers} layer{'s' * (layers > 1)})"
        for name, (model, layers) in zip(names, depths.items(), strict=True)
    ]
    return "\n\n".join(["\n".join(key), *tables])


@runtime_checkable
class Scored(Protocol):
    """What `few_frames` reads of a `SimilarityResult`."""

    @property
    def dataset(self) -> xr.Dataset:
        """Everything, labelled."""
        ...

    @property
    def measures(self) -> Sequence[str]:
        """The names of the measures."""
        ...

    @property
    def attributes(self) -> Mapping[str, Any]:
        """How it was made."""
        ...


def few_frames(result: Scored) -> str:
    """A warning where there are fewer than ten rows a neuron of the widest representation, else ""."""
    given = result.attributes
    rows = given.get("rows", given.get("frames"))
    inflated = [measure for measure in result.measures if measure in _INFLATED]
    if rows is None or not inflated or "width" not in result.dataset:
        return ""
    widest = int(result.dataset["width"].max())
    if rows >= _ROWS_PER_NEURON * widest:
        return ""
    return (
        f"Few frames: {rows:,} for layers of up to {widest:,} neurons. {_and(inflated)} come out "
        "high for anything, more so the wider the layers. Use more audio (a minute has 3,000 "
        "frames), or read lincka_debiased, the floors, and an untrained model (random:ID)."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ...: the models' names where there is no room."""
    rest, place = divmod(index, 26)
    return (letter(rest - 1) if rest else "") + chr(65 + place)


def _mean(values: Float[np.ndarray, " _n"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _fitting(columns: Sequence[list[str]], width: int) -> list[Sequence[list[str]]]:
    """Split the columns into as few groups as fit `width`, all about as many (at least one)."""
    groups: list[Sequence[list[str]]] = []
    for count in range(1, len(columns) + 1):
        size = -(-len(columns) // count)
        groups = [columns[start : start + size] for start in range(0, len(columns), size)]
        if all(sum(len(column[0]) + 2 for column in group) - 2 <= width for group in groups):
            break
    return groups
