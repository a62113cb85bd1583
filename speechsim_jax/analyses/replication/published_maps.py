"""A result laid beside maps that others have published, layer by layer.

The maps that come with the package (`data/published_2406_16099.npz`) are those of El Kheir et al.
2024 (arXiv 2406.16099), read back from their figures; their `provenance` says how. The order of
representations and the orientation of asymmetric maps are inferred, so both orientations are
compared. The audio of a run is another, so agreement to a few hundredths is the most to expect.
"""

import csv
import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speechsim_jax.errors import UserError
from speechsim_jax.figures.style import (
    DPI,
    StandaloneFigure,
    colour_bar_width,
    colour_limits,
    difference_limits,
    draw_bar,
    draw_cells,
    draw_differences,
)
from speechsim_jax.figures.text_layout import (
    GAP,
    LINE,
    MEDIUM,
    SMALL,
    ellipsised,
    spread,
    text_width,
)
from speechsim_jax.results.depth import nearest_depth
from speechsim_jax.results.result import RepresentationName, SimilarityResult

BUNDLED = Path(__file__).parent / "data" / "published_2406_16099.npz"
_FINETUNED = "_finetuned_"
# What `SimilarityResult` is to know of the published measures.
_ASYMMETRIC = ("maxcorr", "linreg", "pwcca")
# Below what a measure can be, there is no score: these pairs were lost by the published code.
_LEAST = {"attn_js": 1 - math.log(2)}
# Layers of the published architectures; of the large ones the last is missing from the maps.
_DEPTHS = {"base": 12, "large": 24}


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """Maps by name; rows and columns of those of layers are `representations`, NaN where lost.

    Attention maps have the layers from 1 on. `finetuned`: by family and measure, the layers of its
    large model against those of the fine-tuned one.
    """

    representations: tuple[RepresentationName, ...]
    maps: Mapping[str, Float[np.ndarray, "_n _n"]]
    finetuned: Mapping[tuple[str, str], Float[np.ndarray, "_m _m"]]
    provenance: str

    def representations_of(self, measure: str) -> tuple[RepresentationName, ...]:
        """The rows of a map."""
        heads = measure.startswith("attn_")
        return tuple(n for n in self.representations if n.layer > 0 or not heads)

    @property
    def models(self) -> tuple[str, ...]:
        """The models, in order, each once."""
        return tuple(dict.fromkeys(representation.model for representation in self.representations))

    def results(self) -> list[SimilarityResult]:
        """The maps as results: of the models, and of each large one with its fine-tuned form."""
        heads = [name for name in self.maps if name.startswith("attn_")]
        main = SimilarityResult.build(
            self.representations,
            {name: np.asarray(values, np.float64) for name, values in self.maps.items()},
            measures={
                name: {"symmetric": name not in (*_ASYMMETRIC, *heads)} for name in self.maps
            },
            attention_representations=self.representations_of("attn_") if heads else (),
            dims={name: ("x_attention", "y_attention") for name in heads},
        )
        return [main, *map(self._finetuned_result, dict.fromkeys(f for f, _ in self.finetuned))]

    def _finetuned_result(self, family: str) -> SimilarityResult:
        model, maps = f"{family}-large", {}
        layers = [
            representation
            for representation in self.representations
            if representation.model == model
        ]
        for (of, measure), values in self.finetuned.items():
            if of == family:
                square = np.full((2 * len(layers),) * 2, np.nan)
                square[: len(layers), len(layers) :] = values
                square[len(layers) :, : len(layers)] = values.T
                maps[measure] = square
        turned = [
            RepresentationName(f"{model}-ft", representation.layer) for representation in layers
        ]
        return SimilarityResult.build([*layers, *turned], maps)


def load(path: str | Path = BUNDLED) -> Published:
    """Read a file of maps: `representations` ("model/layer") and square arrays by measure.

    `FAMILY_finetuned_MEASURE` is a map of the family's large model, as many layers as that has.
    Raises UserError for a file that is none.
    """
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no file of published maps (.npz): {error}") from error
    if "networks" not in arrays:
        raise UserError(f"{path}: no array 'networks', which names the rows of the maps")
    representations = tuple(_representation(path, str(name)) for name in arrays.pop("networks"))
    provenance = str(arrays.pop("provenance", ""))
    found = Published(representations, {}, {}, provenance)
    maps, finetuned = {}, {}
    for name, values in arrays.items():
        family, _, measure = name.rpartition(_FINETUNED)
        rows = found.representations_of(name)
        if family:
            rows = tuple(n for n in representations if n.model == f"{family}-large")
        if values.shape != (len(rows),) * 2:
            raise UserError(f"{path}: {name} has the shape {values.shape}, not {(len(rows),) * 2}")
        values = np.where(values < _LEAST.get(name, -np.inf), np.nan, values.astype(np.float64))
        if family:
            finetuned[family, measure] = values
        else:
            maps[name] = values
    return dataclasses.replace(found, maps=maps, finetuned=finetuned)


def _representation(path: str | Path, label: str) -> RepresentationName:
    model, _, layer = label.rpartition("/")
    if not model or not layer.isdigit():
        raise UserError(f"{path}: {label!r} in 'networks' is not model/layer")
    return RepresentationName(model, int(layer))


def matched(
    published: Sequence[str], models: Sequence[str], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Published model -> model of a run: as `given`, else one whose name begins with its name.

    Of several, the shortest name. Raises UserError for a name in `given` that nobody has.
    """
    for name, model in (given or {}).items():
        if name not in published:
            raise UserError(f"no published model {name!r}; there are: {', '.join(published)}")
        if model not in models:
            raise UserError(f"no model {model!r} in this run; there are: {', '.join(models)}")
    if given:
        return dict(given)
    found = {}
    for name in published:
        alike = [model for model in models if model.rsplit("/", 1)[-1].startswith(name)]
        if alike:
            found[name] = min(alike, key=len)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Laid:
    """A map of a run and a published one, cell by cell; rows and columns by published name.

    `orientation` says what was done to the published map. `names`: published -> run.
    """

    name: str
    measure: str
    orientation: str
    rows: tuple[RepresentationName, ...]
    columns: tuple[RepresentationName, ...]
    names: Mapping[str, str]
    run: Float[np.ndarray, "x y"]
    published: Float[np.ndarray, "x y"]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a block of a run agrees with the published one; cells of a layer with itself left out."""

    name: str
    x: str
    y: str
    run_x: str
    run_y: str
    orientation: str
    cells: int
    correlation: float
    mean_abs_difference: float
    mean_run: float
    mean_published: float


def lay(result: SimilarityResult, published: Published, names: Mapping[str, str]) -> list[Laid]:
    """The maps that both have, over the layers that both have, in both orientations if they matter.

    A layer's counterpart is the published layer at the nearest relative depth, within half a layer.
    """
    found = []
    for measure, values in published.maps.items():
        if measure not in result.measures:
            continue
        there = published.representations_of(measure)
        own = [
            str(label) for label in result.matrix(measure)[result.matrix(measure).dims[0]].values
        ]
        pairs = _counterparts(own, there, names)
        if not pairs:
            continue
        i, j = (list(side) for side in zip(*pairs))
        rows = tuple(there[k] for k in j)
        run = np.asarray(result.matrix(measure).values, np.float64)[np.ix_(i, i)]
        kinds = {"as given": values, "transposed": values.T}
        if result.definition(measure).get("symmetric"):
            del kinds["transposed"]
        for kind, maps in kinds.items():
            taken = maps[np.ix_(j, j)]
            found.append(Laid(measure, measure, kind, rows, rows, names, run, taken))
    return found


def lay_finetuned(
    result: SimilarityResult, published: Published, family: str, pair: tuple[str, str]
) -> list[Laid]:
    """The same of a fine-tuned and a pretrained model (`pair`); which is a row is not known."""
    tuned, before = pair
    model, found = f"{family}-large", []
    there = tuple(
        representation
        for representation in published.representations
        if representation.model == model
    )
    for (of, measure), values in published.finetuned.items():
        if of != family or measure not in result.measures:
            continue
        for kind, x, y in (
            ("rows pretrained", before, tuned),
            ("rows fine-tuned", tuned, before),
        ):
            block = result.block(measure, x, y)
            own = [f"{x}/{layer}" for layer in block[f"{block.dims[0]}_layer"].values]
            pairs = _counterparts(own, there, {model: x})
            if not pairs:
                continue
            i, j = (list(side) for side in zip(*pairs))
            rows = tuple(there[k] for k in j)
            columns = tuple(
                RepresentationName(f"{model}-ft", representation.layer) for representation in rows
            )
            if x == tuned:
                rows, columns = columns, rows
            run = np.asarray(block.values, np.float64)[np.ix_(i, i)]
            name = f"{family}{_FINETUNED}{measure}"
            names = {model: before, f"{model}-ft": tuned}
            found.append(Laid(name, measure, kind, rows, columns, names, run, values[np.ix_(j, j)]))
    return found


def _counterparts(
    own: Sequence[str], there: Sequence[RepresentationName], names: Mapping[str, str]
) -> list[tuple[int, int]]:
    """Places in the run and in the published map that belong together."""
    found = []
    for name, model in names.items():
        layers = {n.layer: place for place, n in enumerate(there) if n.model == name}
        mine = {
            int(label.rpartition("/")[2]): place
            for place, label in enumerate(own)
            if label.rpartition("/")[0] == model
        }
        if not layers or not mine:
            continue
        depth, deepest = _DEPTHS.get(name.rpartition("-")[2], max(layers)), max(mine)
        # A run that leaves out the last layer, as the maps do, is as deep as they are.
        scale = 1.0 if deepest in (depth, max(layers)) else depth / max(deepest, 1)
        numbers, scaled = np.array(list(layers), float), np.array(sorted(mine)) * scale
        for layer, match in zip(sorted(mine), nearest_depth(scaled, numbers)):
            nearest, place = int(numbers[match]), mine[layer]
            if abs(nearest - layer * scale) <= 0.5:
                found.append((place, layers[nearest]))
    return found


def agreements(laid: Laid) -> list[Agreement]:
    """Correlation and mean absolute difference of each block, and of all blocks together."""
    xs, ys = (np.array([n.model for n in side]) for side in (laid.rows, laid.columns))
    self_cells = np.array([[x == y for y in laid.columns] for x in laid.rows])
    usable = np.isfinite(laid.run) & np.isfinite(laid.published) & ~self_cells
    blocks = [(x, y) for x in dict.fromkeys(xs.tolist()) for y in dict.fromkeys(ys.tolist())]
    found = [
        _agreement(laid, x, y, usable & np.logical_and.outer(xs == x, ys == y)) for x, y in blocks
    ]
    return [*found, _agreement(laid, "all", "all", usable)] if len(blocks) > 1 else found


def _agreement(laid: Laid, x: str, y: str, cells: np.ndarray) -> Agreement:
    run, published = laid.run[cells], laid.published[cells]
    count = len(run)
    varied = count > 2 and np.ptp(run) > 0 and np.ptp(published) > 0
    return Agreement(
        laid.name, x, y, laid.names.get(x, x), laid.names.get(y, y), laid.orientation, count,
        float(np.corrcoef(run, published)[0, 1]) if varied else math.nan,
        float(np.mean(np.abs(run - published))) if count else math.nan,
        float(np.mean(run)) if count else math.nan,
        float(np.mean(published)) if count else math.nan,
    )  # fmt: skip


def write_csv(rows: Sequence[Agreement], path: Path) -> Path:
    """One line a block and orientation."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(Agreement))
        writer.writerows(dataclasses.astuple(row) for row in rows)
    return path


def table(rows: Sequence[Agreement]) -> str:
    """The agreements for a terminal."""
    head = ("map", "rows", "columns", "published map", "cells", "corr.", "|diff.|", "run", "publ.")
    cells = [
        (
            row.name, row.run_x, row.run_y, row.orientation, str(row.cells),
            f"{row.correlation:.2f}", f"{row.mean_abs_difference:.3f}", f"{row.mean_run:.3f}",
            f"{row.mean_published:.3f}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[k]) for line in [head, *cells]) for k in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip()
        for line in [head, *cells]
    )


def side_by_side(laid: Laid) -> Figure:
    """Three maps: the run's, the published one, and the first minus the second.

    A dash in a cell of the third says that it is below zero.
    """
    known = np.concatenate([laid.run.ravel(), laid.published.ravel()])[:, None]
    limits, difference = colour_limits(known, None), laid.run - laid.published
    panels = (
        (f"{laid.name}: this run", laid.run, limits),
        (f"published ({laid.orientation})", laid.published, limits),
        ("this run minus published", difference, difference_limits(difference)),
    )
    width, left, below, above = 7.0, 8.0, 30.0, 20.0
    gap = max(colour_bar_width(*ends, "") for _, _, ends in panels) + 6
    side = (72 * width - left - 3 * gap) / 3
    height = side * len(laid.rows) / len(laid.columns)
    points = np.array([72 * width, below + height + above])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    for number, (title, values, ends) in enumerate(panels):
        start = left + number * (side + gap)
        axes = figure.add_axes(tuple([start, below, side, height] * scale), label=f"map {number}")
        image = (draw_cells if number < 2 else draw_differences)(axes, values, *ends)
        for edges, line in (
            (_edges(laid.rows), axes.axhline),
            (_edges(laid.columns), axes.axvline),
        ):
            for edge in edges:
                line(edge, color="white" if number < 2 else "black", linewidth=0.8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(ellipsised(title, side + gap / 2, MEDIUM), fontsize=MEDIUM, parse_math=False)
        _name_blocks(axes, laid, side)
        draw_bar(image, "", values)
    return figure


def _edges(representations: Sequence[RepresentationName]) -> list[float]:
    """Between the layers of two models."""
    return [
        i - 0.5
        for i in range(1, len(representations))
        if representations[i].model != representations[i - 1].model
    ]


def _name_blocks(axes: Axes, laid: Laid, side: float) -> None:
    """The published names of the models, below the columns, moved apart where they would touch."""
    models = [representation.model for representation in laid.columns]
    names = list(dict.fromkeys(models))
    cell = side / len(models)
    centres = [cell * (models.index(name) + models.count(name) / 2) for name in names]
    # Broken at the hyphens: the published names are of a family and a size.
    parts = [name.split("-") for name in names]
    widths = [max(text_width(part, SMALL) for part in of) for of in parts]
    if sum(widths) + GAP * (len(names) - 1) > side:
        room = side / len(names) - GAP
        parts = [[ellipsised(part, room, SMALL) for part in of] for of in parts]
        widths = [min(width, room) for width in widths]
    for place, of in zip(spread(centres, widths, side), parts, strict=True):
        axes.annotate(
            "\n".join(of), (place / cell - 0.5, 0), (0, -3), annotation_clip=False,
            xycoords=axes.get_xaxis_transform(), textcoords="offset points",
            ha="center", va="top", fontsize=SMALL, linespacing=LINE, parse_math=False,
        )  # fmt: skip
