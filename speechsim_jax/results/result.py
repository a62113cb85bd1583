"""`SimilarityResult`: labelled similarity matrices with their provenance, as an xarray Dataset."""

import itertools
import json
import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from speechsim_jax.errors import UserError, printable
from speechsim_jax.results import netcdf
from speechsim_jax.results.summary import few_frames_warning, means_table
from speechsim_jax.runtime.atomic_write import AnyPath, as_path, write_text, writing
from speechsim_jax.runtime.text_tables import write_csv

if TYPE_CHECKING:
    import pandas

REPRESENTATION_DIMS = ("x", "y")
ATTENTION_DIMS = ("x_attention", "y_attention")


@dataclass(frozen=True)
class RepresentationName:
    """Names one layer of one model; `str(name)` is "model/3".

    >>> str(ss.RepresentationName("mine", 3))
    'mine/3'

    Attributes:
        model: the name of the model; control characters, and what files cannot hold, become
            escapes ("\\u001b").
        layer: the number of the layer; 0 is the transformer's input.
    """

    model: str
    layer: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", printable(self.model))

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}"


@dataclass(frozen=True, eq=False)
class SimilarityResult:
    """How well every representation y accounts for every representation x: a matrix per measure.

    Dims `x` and `y` run over representations, with the labels "model/3" as index and the
    coordinates `x_model`, `x_layer`, `y_model`, `y_layer`; attention measures run over
    `x_attention` and `y_attention`, labelled the same way.

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

    Attributes:
        dataset: everything: the matrices, other arrays, and the provenance as attributes.
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
        """Label matrices of scores and other arrays.

        Args:
            representations: what `x` and `y` run over.
            matrices: by measure, the scores of row x with column y.
            extras: further arrays by name, each with its dims.
            measures: by measure, its definition: `symmetric`, `range`, `level`, `summary`,
                `reference`, `higher_is_closer` (False for distances), `inflated_by_few_rows`,
                `statistic`, all optional.
            attributes: provenance: mappings, lists and simple values, nested in any way.
            attention_representations: what `x_attention` and `y_attention` run over.
            dims: by measure, the dims of a matrix where they are not `x` and `y`.

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
        variables = self.dataset.data_vars.items()
        return tuple(str(name) for name, v in variables if v.attrs.get("kind") == "measure")

    @property
    def representations(self) -> tuple[RepresentationName, ...]:
        """The representations along `x` and `y`."""
        return _representations(self.dataset, "x")

    @property
    def attention_representations(self) -> tuple[RepresentationName, ...]:
        """The representations along `x_attention` and `y_attention`; () without such measures."""
        if "x_attention" not in self.dataset.dims:
            return ()
        return _representations(self.dataset, "x_attention")

    @property
    def models(self) -> tuple[str, ...]:
        """The models, in order, each once."""
        return _unique(representation.model for representation in self.representations)

    @property
    def attributes(self) -> dict[str, Any]:
        """The nested attributes that `build` was called with (tuples as lists, as in JSON)."""
        return json.loads(self.dataset.attrs["provenance"])

    def definition(self, measure: str) -> dict[str, Any]:
        """What is known of a measure: the entry of `measures` that `build` was called with.

        Args:
            measure: its name.

        Returns:
            `symmetric`, `range`, `level`, `summary`, `reference`, `higher_is_closer`, ...: those
            that are known.

        Raises:
            UserError: the result has no such measure.
        """
        return json.loads(self.matrix(measure).attrs["definition"])

    def matrix(self, measure: str) -> xr.DataArray:
        """The matrix of one measure, labelled.

        Args:
            measure: its name.

        Returns:
            The scores of row x with column y.

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
        """Keep some models and layers, on every axis.

        Args:
            models: their names, in the order that the result is to have; default: all.
            layers: numbers of layers; default: all.

        Raises:
            UserError: an unknown model, or nothing is left.
        """
        names = [models] if isinstance(models, str) else models
        selected = self.models if names is None else _unique(names)
        if unknown := [model for model in selected if model not in self.models]:
            raise UserError(
                f"no model {unknown[0]!r} in this result; it has: {', '.join(self.models)}"
            )
        numbers = {layers} if isinstance(layers, int) else layers
        positions = {}
        for dim in (*REPRESENTATION_DIMS, *ATTENTION_DIMS):
            if dim in self.dataset.dims:
                representations = _representations(self.dataset, dim)
                positions[dim] = [
                    i
                    for model in selected
                    for i, name in enumerate(representations)
                    if name.model == model and (numbers is None or name.layer in numbers)
                ]
        if not positions["x"]:
            raise UserError(
                f"no representation of {', '.join(selected)} has a layer among {layers}"
            )
        if "model" in self.dataset.dims:
            positions["model"] = [self.models.index(model) for model in selected]
        empty = [dim for dim, indices in positions.items() if not indices]
        return SimilarityResult(self.dataset.isel(positions).drop_dims(empty))

    def block(self, measure: str, x_model: str, y_model: str) -> xr.DataArray:
        """The scores of the layers of one model with those of another.

        Args:
            measure: its name.
            x_model: the model of the rows.
            y_model: the model of the columns.

        Raises:
            UserError: an unknown measure or model.
        """
        matrix = self.matrix(measure)
        positions = {}
        for dim, model in zip(matrix.dims, (x_model, y_model), strict=True):
            positions[dim] = np.flatnonzero(matrix[f"{dim}_model"].values == model)
            if not positions[dim].size:
                present = ", ".join(_unique(matrix[f"{dim}_model"].values))
                raise UserError(f"no model {model!r} under {measure}; it has: {present}")
        return matrix.isel(positions)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A table with one row per pair of representations x and y, one column per measure.

        Returns:
            x_model, x_layer, y_model, y_layer, then the measures; NaN where one is not defined, or
            has no such pair, as attention measures of layer 0.
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
            columns[measure] = ("pair", matrix.reindex({rows: index, cols: index}).values.ravel())
        return xr.Dataset(columns).to_dataframe().reset_index(drop=True)

    def to_csv(self, path: str | os.PathLike[str]) -> AnyPath:
        """Write `to_dataframe()` as plain CSV, undefined scores as empty fields, all digits.

        A model's name that a spreadsheet would take for a formula gets an apostrophe in front.

        The provenance and the definitions of the measures go into <path>.json.

        Args:
            path: the file; its folder is made if needed.

        Returns:
            The path.
        """
        path = as_path(path)
        definitions = {measure: self.definition(measure) for measure in self.measures}
        metadata = {"provenance": self.attributes, "measures": definitions}
        with writing(path):
            table = self.to_dataframe()
            rows = zip(*(table[column].tolist() for column in table.columns), strict=True)
            write_csv(path, itertools.chain([table.columns.tolist()], rows))
            write_text(path.with_name(f"{path.name}.json"), json.dumps(metadata, indent=2) + "\n")
        return path

    def save(self, path: str | os.PathLike[str]) -> AnyPath:
        """Write a compressed netCDF file; a reader sees the old file or the new one, never half.

        Args:
            path: the file; its folder is made if needed.

        Returns:
            The path.
        """
        with writing(as_path(path)):
            return netcdf.write(self.dataset, as_path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SimilarityResult":
        """Read what `save` wrote.

        Args:
            path: the file.

        Raises:
            UserError: there is no such file, or it is not a result that this version can read.
        """
        return cls(netcdf.read(as_path(path)))

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
        legend = (
            "mean over layers of how well y accounts for x, a layer with itself left out; "
            "within: of layers of one model, between: of two"
        )
        head, _ = repr(self).split("\n", 1)  # without the measures, which the table names
        parts = [textwrap.fill(head, 100), table, textwrap.fill(f"x,y: {legend}", 100)]
        if any(self.matrix(measure).dims == ATTENTION_DIMS for measure in self.measures):
            parts.append("attn_*: heads of any two models look alike; see their baselines, too")
        if warning := self.few_frames_warning():
            parts.append(textwrap.fill(warning, 100))
        return "\n\n".join(parts)

    def few_frames_warning(self) -> str:
        """A warning if the scores are of too few frames for some of the measures, else ""."""
        attributes = self.attributes
        rows = attributes.get("rows", attributes.get("frames"))
        if rows is None or "width" not in self.dataset:
            return ""
        inflated = [m for m in self.measures if self.definition(m).get("inflated_by_few_rows")]
        return few_frames_warning(rows, int(self.dataset["width"].max()), inflated)

    def _block_mean(self, measure: str, x_model: str, y_model: str) -> float:
        matrix = self.matrix(measure)
        if not {x_model, y_model} <= set(matrix[f"{matrix.dims[0]}_model"].values):
            return math.nan
        values = self.block(measure, x_model, y_model).values
        defined = np.isfinite(values)
        if x_model == y_model:
            defined &= ~np.eye(len(values), dtype=bool)
        return float(values[defined].mean()) if defined.any() else math.nan

    def __repr__(self) -> str:
        parts = [
            f"{len(self.models)} models",
            f"{len(self.representations)} representations",
            *self.notes(),
        ]
        return f"SimilarityResult({', '.join(parts)})\n  measures: {', '.join(self.measures)}"

    def notes(self) -> list[str]:
        """What a caption states about the data: frames, utterances, and the attribute `note`.

        Rows follow the frames if they are fewer, which means that frames were pooled.
        """
        attributes = self.attributes
        names = ["frames", "utterances"]
        if attributes.get("rows", attributes.get("frames")) != attributes.get("frames"):
            names.insert(1, "rows")
        notes = [f"{attributes[name]:,} {name}" for name in names if name in attributes]
        return [*notes, str(attributes["note"])] if attributes.get("note") else notes


def _representations(dataset: xr.Dataset, dim: str) -> tuple[RepresentationName, ...]:
    pairs = zip(dataset[f"{dim}_model"].values, dataset[f"{dim}_layer"].values, strict=True)
    return tuple(RepresentationName(str(model), int(layer)) for model, layer in pairs)


def _coordinates(
    dims: tuple[str, str], representations: Sequence[RepresentationName]
) -> dict[str, Any]:
    if not representations:
        raise UserError("a result needs at least one representation")
    if len(set(representations)) < len(representations):
        repeated = next(n for i, n in enumerate(representations) if n in representations[:i])
        raise UserError(
            f"representation {repeated} is given twice; every layer of every model must be unique"
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
