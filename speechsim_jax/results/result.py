"""`SimilarityResult`: labelled similarity matrices with their provenance, as an xarray Dataset."""

import json
import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from speechsim_jax.errors import UserError
from speechsim_jax.results import netcdf
from speechsim_jax.results.summary import few_frames, means_table

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

REPRESENTATION_DIMS = ("x", "y")
ATTENTION_DIMS = ("x_attention", "y_attention")


@dataclass(frozen=True)
class RepresentationName:
    """Layer `layer` of the model `model`; `str(name)` is "model/3".

    >>> str(ss.RepresentationName("mine", 3))
    'mine/3'
    """

    model: str
    layer: int

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}"


@dataclass(frozen=True, eq=False)
class SimilarityResult:
    """How well every representation y accounts for every representation x, one variable per measure.

    Dims `x` and `y` run over representations, with the labels "model/3" as index and the
    coordinates `x_model`, `x_layer`, `y_model`, `y_layer`; attention measures run over
    `x_attention` and `y_attention`, labelled the same way. `dataset` holds all of it.

    >>> result  # of two models of two layers each
    SimilarityResult(2 models, 4 representations, 500 frames)
      measures: maxcorr, lincka
    >>> float(result.matrix("maxcorr").loc["mine/0", "theirs/0"].round(6))
    1.0
    >>> result.select("theirs", layers=1).representations
    (RepresentationName(model='theirs', layer=1),)
    >>> result.block("lincka", "mine", "theirs").shape
    (2, 2)
    >>> result.to_dataframe().columns.tolist()
    ['x_model', 'x_layer', 'y_model', 'y_layer', 'maxcorr', 'lincka']
    >>> ss.SimilarityResult.load(result.save("result.nc")).measures
    ('maxcorr', 'lincka')
    """

    dataset: xr.Dataset

    @classmethod
    def build(
        cls,
        representations: Sequence[RepresentationName],
        matrices: Mapping[str, Float[np.ndarray, "_ _"]],
        extras: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = {},
        measures: Mapping[str, Mapping[str, Any]] = {},
        attributes: Mapping[str, Any] = {},
        attention_representations: Sequence[RepresentationName] = (),
        dims: Mapping[str, tuple[str, str]] = {},
    ) -> "SimilarityResult":
        """Label `matrices` (measure -> row x, column y) and whatever goes with them.

        `extras` are further arrays with their dims; `measures` describes each measure (symmetric,
        range, level, summary, reference); `attributes` is any nesting of mappings, lists and
        simple values. `dims` names the dims of a matrix where they are not `x` and `y`; those over
        `attention_representations` are `x_attention` and `y_attention`.

        Raises:
            UserError: no or repeated representations, a repeated name, or a shape that does not
            fit.
        """
        coords = _coordinates(REPRESENTATION_DIMS, representations)
        if attention_representations:
            coords |= _coordinates(ATTENTION_DIMS, attention_representations)
        entries = {name: (dims.get(name, REPRESENTATION_DIMS), matrices[name]) for name in matrices}
        if repeated := (entries.keys() & extras.keys()) | (
            coords.keys() & (entries.keys() | extras.keys())
        ):
            raise UserError(f"names used twice in one result: {', '.join(sorted(repeated))}")
        if any("model" in names for names, _ in extras.values()):
            coords["model"] = ("model", _text(_unique(n.model for n in representations)))
        sizes = {dim: len(values) for dim, values in coords.values()}
        variables = {}
        for name, (names, values) in {**entries, **dict(extras)}.items():
            _check_shape(name, names, values, sizes)
            attrs: dict[str, Any] = {"kind": "extra"}
            if name in entries:
                attrs = netcdf.measure_attributes(measures.get(name, {}))
            variables[name] = (names, values, attrs)
        return cls(xr.Dataset(variables, coords, netcdf.provenance_attributes(attributes)))

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, in the order they were computed."""
        found = self.dataset.data_vars.items()
        return tuple(str(name) for name, v in found if v.attrs.get("kind") == "measure")

    @property
    def representations(self) -> tuple[RepresentationName, ...]:
        """The representations along `x` and `y`."""
        return _representations(self.dataset, "x")

    @property
    def attention_representations(self) -> tuple[RepresentationName, ...]:
        """The representations along `x_attention` and `y_attention`; empty without attention measures."""
        return (
            _representations(self.dataset, "x_attention")
            if "x_attention" in self.dataset.dims
            else ()
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The models, in order, each once."""
        return _unique(representation.model for representation in self.representations)

    @property
    def attributes(self) -> dict[str, Any]:
        """The nested attributes given to `build` (tuples as lists, as JSON keeps them)."""
        return json.loads(self.dataset.attrs["provenance"])

    def definition(self, measure: str) -> dict[str, Any]:
        """What is known of a measure: symmetric, range, level, summary, reference."""
        return json.loads(self.matrix(measure).attrs["definition"])

    def matrix(self, measure: str) -> xr.DataArray:
        """The matrix of one measure, row x and column y, labelled.

        Raises:
            UserError: the result has no such measure, or it is a ranking.
        """
        if measure not in self.measures:
            if (ranking := f"{measure}_neuron") in self.dataset:
                raise UserError(f"{measure} is a ranking of neurons: result.dataset[{ranking!r}]")
            raise UserError(
                f"no measure {measure!r} in this result; it has: {', '.join(self.measures)}"
            )
        return self.dataset[measure]

    def select(
        self,
        models: Sequence[str] | str | None = None,
        layers: Sequence[int] | int | None = None,
    ) -> "SimilarityResult":
        """Keep these models, in the order given, and these layers, on every axis.

        Raises:
            UserError: an unknown model, or nothing is left.
        """
        given = [models] if isinstance(models, str) else models
        wanted = self.models if given is None else _unique(given)
        if unknown := [model for model in wanted if model not in self.models]:
            raise UserError(
                f"no model {unknown[0]!r} in this result; it has: {', '.join(self.models)}"
            )
        depths = {layers} if isinstance(layers, int) else layers
        kept = {}
        for dim in (*REPRESENTATION_DIMS, *ATTENTION_DIMS):
            if dim in self.dataset.dims:
                names = _representations(self.dataset, dim)
                kept[dim] = [
                    i
                    for model in wanted
                    for i, name in enumerate(names)
                    if name.model == model and (depths is None or name.layer in depths)
                ]
        if not kept["x"]:
            raise UserError(f"no representation of {', '.join(wanted)} has a layer among {layers}")
        if "model" in self.dataset.dims:
            kept["model"] = [self.models.index(model) for model in wanted]
        chosen = self.dataset.isel(kept)
        return SimilarityResult(chosen.drop_dims([dim for dim, rows in kept.items() if not rows]))

    def block(self, measure: str, x_model: str, y_model: str) -> xr.DataArray:
        """The layers of `x_model` (rows) against those of `y_model` (columns).

        Raises:
            UserError: an unknown measure or model.
        """
        matrix = self.matrix(measure)
        kept = {}
        for dim, model in zip(matrix.dims, (x_model, y_model), strict=True):
            kept[dim] = np.flatnonzero(matrix[f"{dim}_model"].values == model)
            if not kept[dim].size:
                present = ", ".join(_unique(matrix[f"{dim}_model"].values))
                raise UserError(f"no model {model!r} under {measure}; it has: {present}")
        return matrix.isel(kept)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per pair of representations x and y, one column per measure.

        x_model, x_layer, y_model, y_layer, then the measures; NaN where one is not defined, or has
        no such pair, as attention measures of layer 0.
        """
        labels = list(dict.fromkeys([*self.representations, *self.attention_representations]))
        index = _text(map(str, labels))
        pairs = [(x.model, x.layer, y.model, y.layer) for x in labels for y in labels]
        keys = zip(
            ("x_model", "x_layer", "y_model", "y_layer"), zip(*pairs, strict=True), strict=True
        )
        columns: dict[str, Any] = {key: ("pair", list(values)) for key, values in keys}
        for measure in self.measures:
            matrix = self.matrix(measure).drop_attrs()
            rows, cols = matrix.dims
            whole = matrix.reindex({rows: index, cols: index})
            columns[measure] = ("pair", whole.values.ravel())
        return xr.Dataset(columns).to_dataframe().reset_index(drop=True)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dataframe()` as plain CSV, undefined scores as empty fields, all digits.

        The provenance and what is known of each measure go beside it, into <path>.json.
        """
        path = Path(path)
        definitions = {measure: self.definition(measure) for measure in self.measures}
        about = {"provenance": self.attributes, "measures": definitions}
        netcdf.write_text(path, self.to_dataframe().to_csv(index=False, lineterminator="\n"))
        netcdf.write_text(Path(f"{path}.json"), json.dumps(about, indent=2) + "\n")
        return path

    def plot(
        self,
        measure: str,
        *,
        style: str = "labelled",
        limits: tuple[int | float, int | float] | None = None,
        title: str | None = None,
        width: int | float | None = None,
    ) -> "matplotlib.figure.Figure":
        """The heat map of one measure (`figures.heatmap`); `figures` has the curves.

        `style`: "labelled", or "paper", the layout of the published maps, without labels; `limits`:
        the ends of the colour scale; `title`: by default what the measure says of itself; `width`:
        of the figure, in inches.
        """
        from speechsim_jax import figures

        return figures.heatmap(self, measure, style=style, limits=limits, title=title, width=width)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write one HTML page with interactive maps, curves, matches and the provenance.

        It opens from disk, without a network; where this result lacks something, it says so.
        """
        from speechsim_jax.report import write_report

        return write_report(self, path)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a compressed netCDF file; a reader sees the old file or the new one, never half."""
        return netcdf.write(self.dataset, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SimilarityResult":
        """Read what `save` wrote.

        Raises:
            UserError: no such file, or not a result this version can read.
        """
        return cls(netcdf.read(Path(path)))

    def summary(self) -> str:
        """A table of means over layers for a terminal, a row for each measure.

        Undefined scores, and those of a layer with itself, are left out. Where there are too few
        frames for some of the measures, a warning follows.
        """
        if not self.measures:
            return repr(self)
        means = {
            measure: np.array(
                [[self._block_mean(measure, x, y) for y in self.models] for x in self.models]
            )
            for measure in self.measures
        }
        table = means_table(
            Counter(representation.model for representation in self.representations), means
        )
        told = (
            "mean over layers of how well y accounts for x, a layer with itself left out; "
            "within: of layers of one model, between: of two"
        )
        head, _ = repr(self).split("\n", 1)  # without the measures, which the table names
        parts = [textwrap.fill(head, 100), table, textwrap.fill(f"x,y: {told}", 100)]
        if any(measure.startswith("attn_") for measure in self.measures):
            parts.append("attn_*: heads of any two models look alike; see their baselines, too")
        if warning := few_frames(self):
            parts.append(textwrap.fill(warning, 100))
        return "\n\n".join(parts)

    def _block_mean(self, measure: str, x_model: str, y_model: str) -> float:
        matrix = self.matrix(measure)
        if not {x_model, y_model} <= set(matrix[f"{matrix.dims[0]}_model"].values):
            return math.nan
        values = self.block(measure, x_model, y_model).values
        keep = np.isfinite(values)
        if x_model == y_model:
            keep &= ~np.eye(len(values), dtype=bool)
        return float(values[keep].mean()) if keep.any() else math.nan

    def __repr__(self) -> str:
        parts = [
            f"{len(self.models)} models",
            f"{len(self.representations)} representations",
            *self.notes(),
        ]
        return f"SimilarityResult({', '.join(parts)})\n  measures: {', '.join(self.measures)}"

    def notes(self) -> list[str]:
        """What a caption must say of the data: frames, utterances, and the attribute `note`.

        And rows, where they are fewer than the frames, which were pooled.
        """
        given = self.attributes
        named = ["frames", "utterances"]
        if given.get("rows", given.get("frames")) != given.get("frames"):
            named.insert(1, "rows")
        counts = [f"{given[k]:,} {k}" for k in named if k in given]
        return [*counts, str(given["note"])] if given.get("note") else counts


def _representations(dataset: xr.Dataset, dim: str) -> tuple[RepresentationName, ...]:
    pairs = zip(dataset[f"{dim}_model"].values, dataset[f"{dim}_layer"].values, strict=True)
    return tuple(RepresentationName(str(model), int(layer)) for model, layer in pairs)


def _coordinates(
    dims: tuple[str, str], representations: Sequence[RepresentationName]
) -> dict[str, Any]:
    if not representations:
        raise UserError("a result needs at least one representation")
    if len(set(representations)) < len(representations):
        again = next(n for i, n in enumerate(representations) if n in representations[:i])
        raise UserError(
            f"representation {again} is given twice; every layer of every model must be unique"
        )
    coords: dict[str, Any] = {}
    for dim in dims:
        coords[dim] = (dim, _text(map(str, representations)))
        coords[f"{dim}_model"] = (dim, _text(n.model for n in representations))
        coords[f"{dim}_layer"] = (dim, np.array([n.layer for n in representations], dtype=np.int64))
    return coords


def _check_shape(
    name: str, dims: tuple[str, ...], values: np.ndarray, sizes: dict[str, int]
) -> None:
    if len(dims) != values.ndim:
        raise UserError(f"{name}: shape {values.shape} does not have the dims {', '.join(dims)}")
    for dim, size in zip(dims, values.shape, strict=True):
        if sizes.setdefault(dim, size) != size:
            raise UserError(f"{name}: {size} entries along {dim}, expected {sizes[dim]}")


def _text(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
