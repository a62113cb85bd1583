"""Comparison of a result with published maps, layer by layer.

The maps that come with the package (`data/published_2406_16099.npz`) are those of El Kheir et al.
2024 (arXiv 2406.16099), read back from their figures as their `provenance` describes. The order of
representations and the orientation of asymmetric maps are inferred, so both orientations are
compared. The audio of a run differs from that of the paper, so agreement to a few hundredths is the
best to expect.
"""

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from speechsim_jax.errors import UserError
from speechsim_jax.figures.map_labels import column_names, draw_names, spans_of
from speechsim_jax.figures.style import (
    DIFFERENCES,
    DPI,
    StandaloneFigure,
    colour_bar_width,
    colour_limits,
    difference_limits,
    draw_bar,
    draw_cells,
    draw_dashes,
)
from speechsim_jax.figures.text_layout import LINE, MEDIUM, balanced, key_of
from speechsim_jax.results.depth import nearest_depth
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import text_tables

BUNDLED = Path(__file__).parent / "data" / "published_2406_16099.npz"
_FINETUNED = "_finetuned_"
# Published measures whose maps are not symmetric, attention aside.
_ASYMMETRIC = ("maxcorr", "linreg", "pwcca")
# Lower bounds of measures. Values below are not scores: the published code lost these pairs.
_LOWER_BOUND = {"attn_js": 1 - math.log(2)}
# Layers of the published architectures; of the large ones the last is missing from the maps.
_DEPTHS = {"base": 12, "large": 24}


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedMaps:
    """Published maps.

    Attributes:
        representations: Rows and columns of the maps of layers; those of attention lack layer 0.
        maps: Scores by measure, NaN where lost.
        finetuned: By family and measure, scores of the layers of the family's large model with
            those of its fine-tuned form; which are the rows is inferred.
        provenance: Where the maps come from.
    """

    representations: tuple[RepresentationName, ...]
    maps: Mapping[str, Float[np.ndarray, "_n _n"]]
    finetuned: Mapping[tuple[str, str], Float[np.ndarray, "_m _m"]]
    provenance: str

    def representations_of(self, measure: str) -> tuple[RepresentationName, ...]:
        """The rows of the map of a measure."""
        heads = measure.startswith("attn_")
        return tuple(n for n in self.representations if n.layer > 0 or not heads)

    @property
    def models(self) -> tuple[str, ...]:
        """The models in the order of the rows."""
        return tuple(dict.fromkeys(representation.model for representation in self.representations))

    def results(self) -> list[SimilarityResult]:
        """The maps as results: one of all models, and one for each fine-tuned model."""
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
        for (its_family, measure), values in self.finetuned.items():
            if its_family == family:
                square = np.full((2 * len(layers),) * 2, np.nan)
                square[: len(layers), len(layers) :] = values
                square[len(layers) :, : len(layers)] = values.T
                maps[measure] = square
        finetuned = [
            RepresentationName(f"{model}-ft", representation.layer) for representation in layers
        ]
        return SimilarityResult.build([*layers, *finetuned], maps)


def load(path: str | Path = BUNDLED) -> PublishedMaps:
    """Read a file of published maps.

    Args:
        path: An .npz file with the array `networks` ("model/layer", the rows of the maps) and a
            square array a measure. `FAMILY_finetuned_MEASURE` has the layers of the family's large
            model as rows, and those of its fine-tuned form as columns.

    Raises:
        UserError: Not such a file.
    """
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a file of published maps (.npz): {error}") from error
    if "networks" not in arrays:
        raise UserError(f"{path}: no array 'networks', which names the rows of the maps")
    representations = tuple(_representation(path, str(name)) for name in arrays.pop("networks"))
    provenance = str(arrays.pop("provenance", ""))
    published = PublishedMaps(representations, {}, {}, provenance)
    maps, finetuned = {}, {}
    for name, values in arrays.items():
        family, _, measure = name.rpartition(_FINETUNED)
        rows = published.representations_of(name)
        if family:
            rows = tuple(n for n in representations if n.model == f"{family}-large")
        if values.shape != (len(rows),) * 2:
            raise UserError(f"{path}: {name} has the shape {values.shape}, not {(len(rows),) * 2}")
        values = np.where(
            values < _LOWER_BOUND.get(name, -np.inf), np.nan, values.astype(np.float64)
        )
        if family:
            finetuned[family, measure] = values
        else:
            maps[name] = values
    return dataclasses.replace(published, maps=maps, finetuned=finetuned)


def _representation(path: str | Path, label: str) -> RepresentationName:
    model, _, layer = label.rpartition("/")
    if not model or not layer.isdigit():
        raise UserError(f"{path}: {label!r} in 'networks' is not model/layer")
    return RepresentationName(model, int(layer))


def match_models(
    published: Sequence[str], models: Sequence[str], published_as: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The model of a run that corresponds to each published model.

    Args:
        published: Names of published models.
        models: Names of the run's models.
        published_as: Model of the run by published model. Default: the model whose name begins with
            the published name; of several, the one with the shortest name.

    Raises:
        UserError: `published_as` has an unknown name.
    """
    for name, model in (published_as or {}).items():
        if name not in published:
            raise UserError(f"no published model {name!r}; there are: {', '.join(published)}")
        if model not in models:
            raise UserError(f"no model {model!r} in this run; there are: {', '.join(models)}")
    if published_as:
        return dict(published_as)
    matches = {}
    for name in published:
        candidates = [model for model in models if model.rsplit("/", 1)[-1].startswith(name)]
        if candidates:
            matches[name] = min(candidates, key=len)
    return matches


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedMap:
    """A map of a run and the published map of the same layers, cell by cell.

    Attributes:
        name: Name of the map: the measure, or FAMILY_finetuned_MEASURE.
        measure: The measure.
        orientation: How the published map was read, e.g. "transposed".
        rows: Published names of the rows.
        columns: Published names of the columns.
        names: Model of the run by published model.
        run: Scores of the run.
        published: Published scores, NaN where lost.
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
    """Agreement of one block (two models) of a run with the published one.

    Attributes:
        name: Name of the map.
        x: Published model of the rows, or "all".
        y: Published model of the columns, or "all".
        run_x: Model of the run that corresponds to `x`.
        run_y: Model of the run that corresponds to `y`.
        orientation: How the published map was read.
        cells: Number of cells compared; those of a layer with itself are left out.
        correlation: Pearson correlation over the cells.
        mean_abs_difference: Mean absolute difference.
        mean_run: Mean score of the run.
        mean_published: Mean published score.
    """

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


def align(
    result: SimilarityResult, published: PublishedMaps, names: Mapping[str, str]
) -> list[AlignedMap]:
    """Align the maps of a run with the published ones.

    A layer corresponds to the published layer at the nearest relative depth, within half a layer.

    Args:
        result: The run.
        published: Published maps.
        names: Model of the run by published model.

    Returns:
        The common measures over the corresponding layers; asymmetric ones in both orientations.
    """
    aligned = []
    for measure, values in published.maps.items():
        if measure not in result.measures:
            continue
        published_rows = published.representations_of(measure)
        matrix = result.matrix(measure)
        pairs = _counterparts(
            list(map(str, matrix[matrix.dims[0]].values)),
            published_rows,
            names,
            result.transformer_layers,
        )
        if not pairs:
            continue
        i, j = (list(side) for side in zip(*pairs))
        rows = tuple(published_rows[k] for k in j)
        run = np.asarray(matrix.values, np.float64)[np.ix_(i, i)]
        orientations = {"as given": values, "transposed": values.T}
        if result.definition(measure).get("symmetric"):
            del orientations["transposed"]
        for orientation, oriented in orientations.items():
            cells = oriented[np.ix_(j, j)]
            aligned.append(AlignedMap(measure, measure, orientation, rows, rows, names, run, cells))
    return aligned


def align_finetuned(
    result: SimilarityResult, published: PublishedMaps, family: str, pair: tuple[str, str]
) -> list[AlignedMap]:
    """Align the maps of a fine-tuned with a pretrained model with the published ones.

    Args:
        result: The run.
        published: Published maps.
        family: Family of the models.
        pair: Names of the fine-tuned and the pretrained model.

    Returns:
        The common measures, each in two orientations: the published rows are not known.
    """
    tuned, before = pair
    model, aligned = f"{family}-large", []
    published_rows = tuple(
        representation
        for representation in published.representations
        if representation.model == model
    )
    for (its_family, measure), values in published.finetuned.items():
        if its_family != family or measure not in result.measures:
            continue
        for orientation, x, y in (
            ("rows pretrained", before, tuned),
            ("rows fine-tuned", tuned, before),
        ):
            block = result.block(measure, x, y)
            run_rows = [f"{x}/{layer}" for layer in block[f"{block.dims[0]}_layer"].values]
            pairs = _counterparts(run_rows, published_rows, {model: x}, result.transformer_layers)
            if not pairs:
                continue
            i, j = (list(side) for side in zip(*pairs))
            rows = tuple(published_rows[k] for k in j)
            columns = tuple(
                RepresentationName(f"{model}-ft", representation.layer) for representation in rows
            )
            if x == tuned:
                rows, columns = columns, rows
            run = np.asarray(block.values, np.float64)[np.ix_(i, i)]
            name = f"{family}{_FINETUNED}{measure}"
            names = {model: before, f"{model}-ft": tuned}
            cells = values[np.ix_(j, j)]
            aligned.append(AlignedMap(name, measure, orientation, rows, columns, names, run, cells))
    return aligned


def _counterparts(
    run_rows: Sequence[str],
    published_rows: Sequence[RepresentationName],
    names: Mapping[str, str],
    transformer_layers: Mapping[str, int],
) -> list[tuple[int, int]]:
    """Row numbers of the run and of the published map that correspond.

    `names`: model of the run by published model. `transformer_layers`: of the run's models.
    """
    pairs = []
    for name, model in names.items():
        published = {n.layer: row for row, n in enumerate(published_rows) if n.model == name}
        run = {
            int(label.rpartition("/")[2]): row
            for row, label in enumerate(run_rows)
            if label.rpartition("/")[0] == model
        }
        if not published or not run:
            continue
        depth = _DEPTHS.get(name.rpartition("-")[2], max(published))
        deepest = transformer_layers[model]
        # A run that leaves out the last layer, as the maps do, is as deep as they are.
        scale = 1.0 if deepest in (depth, max(published)) else depth / max(deepest, 1)
        numbers, layers = np.array(list(published), float), sorted(run)
        for layer, match in zip(layers, nearest_depth(np.array(layers) * scale, numbers)):
            row, nearest = run[layer], int(numbers[match])
            if abs(nearest - layer * scale) <= 0.5:
                pairs.append((row, published[nearest]))
    return pairs


def agreements(aligned: AlignedMap) -> list[Agreement]:
    """Agreement of each block (two models), and of all blocks together if there are several."""
    xs, ys = (np.array([n.model for n in side]) for side in (aligned.rows, aligned.columns))
    self_cells = np.array([[x == y for y in aligned.columns] for x in aligned.rows])
    usable = np.isfinite(aligned.run) & np.isfinite(aligned.published) & ~self_cells
    blocks = [(x, y) for x in dict.fromkeys(xs.tolist()) for y in dict.fromkeys(ys.tolist())]
    rows = [
        _agreement(aligned, x, y, usable & np.logical_and.outer(xs == x, ys == y))
        for x, y in blocks
    ]
    return [*rows, _agreement(aligned, "all", "all", usable)] if len(blocks) > 1 else rows


def _agreement(aligned: AlignedMap, x: str, y: str, cells: np.ndarray) -> Agreement:
    run, published = aligned.run[cells], aligned.published[cells]
    count = len(run)
    varied = count > 2 and np.ptp(run) > 0 and np.ptp(published) > 0
    return Agreement(
        aligned.name, x, y, aligned.names.get(x, x), aligned.names.get(y, y),
        aligned.orientation, count,
        float(np.corrcoef(run, published)[0, 1]) if varied else math.nan,
        float(np.mean(np.abs(run - published))) if count else math.nan,
        float(np.mean(run)) if count else math.nan,
        float(np.mean(published)) if count else math.nan,
    )  # fmt: skip


def write_csv(rows: Sequence[Agreement], path: Path) -> Path:
    """Write one line for each block and orientation, and return the path."""
    heads = tuple(field.name for field in dataclasses.fields(Agreement))
    return text_tables.write_csv(path, [heads, *(dataclasses.astuple(row) for row in rows)])


def table(rows: Sequence[Agreement]) -> str:
    """The agreements as a text table."""
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


def side_by_side(aligned: AlignedMap) -> Figure:
    """Three maps: of the run, published, and their difference (a dash in negative cells)."""
    scores = np.concatenate([aligned.run.ravel(), aligned.published.ravel()])[:, None]
    limits, difference = colour_limits(scores, None), aligned.run - aligned.published
    panels = (
        (f"{aligned.name}: this run", aligned.run, limits),
        (f"published ({aligned.orientation})", aligned.published, limits),
        ("this run minus published", difference, difference_limits(difference)),
    )
    width, left = 7.0, 8.0
    gap = max(colour_bar_width(*ends, "") for _, _, ends in panels) + 6
    side = (72 * width - left - 3 * gap) / 3
    height = side * len(aligned.rows) / len(aligned.columns)
    titles = [balanced(title, side + gap / 2, MEDIUM) for title, _, _ in panels]
    above = max(map(len, titles)) * MEDIUM * LINE + 11
    spans = spans_of([representation.model for representation in aligned.columns])
    borders = [
        [span.start - 0.5 for span in spans_of([name.model for name in of])[1:]]
        for of in (aligned.rows, aligned.columns)
    ]
    names, letters = column_names(spans, side / len(aligned.columns), side)
    key = key_of(letters, width)
    below = names.extent + key.height + 4
    points = np.array([72 * width, below + height + above])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    for number, (lines, (_, values, ends)) in enumerate(zip(titles, panels)):
        start = left + number * (side + gap)
        axes = figure.add_axes(tuple([start, below, side, height] * scale), label=f"map {number}")
        image = draw_cells(axes, values, *ends, *((DIFFERENCES,) if number == 2 else ()))
        if number == 2:
            draw_dashes(image, values)
        for edges, line in zip(borders, (axes.axhline, axes.axvline)):
            for edge in edges:
                line(edge, color="white" if number < 2 else "black", linewidth=0.8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title("\n".join(lines), fontsize=MEDIUM, linespacing=LINE, parse_math=False)
        draw_names(axes, names, 1)
        draw_bar(image, "", values)
    key.draw(figure)
    return figure
