"""`SimilarityResult`: labelled similarity matrices with their provenance, as an xarray Dataset."""

import functools
import hashlib
import itertools
import json
import math
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from speechsim_jax.errors import UserError, counted, did_you_mean, printable
from speechsim_jax.inference import differences
from speechsim_jax.inference.contrast import Contrast, contrast, shares_of_largest
from speechsim_jax.inference.differences import FALSE_DISCOVERY_RATE
from speechsim_jax.inference.influence_table import InfluenceTable, Keep, joined
from speechsim_jax.inference.planning import AudioNeeded, minutes_needed, over_pairs
from speechsim_jax.inference.standard_errors import (
    LEAST_CLUSTERS,
    effective_degrees,
    quantile,
)
from speechsim_jax.results import influence_file, netcdf
from speechsim_jax.results.depth import floors, relative_depth
from speechsim_jax.results.exemplars import Exemplar, exemplar_records
from speechsim_jax.results.reference import CLOSEST, reference_cells
from speechsim_jax.results.summary import Mean, blocks_shown, few_frames_warning, means_table
from speechsim_jax.runtime.atomic_write import AnyPath, as_path, write_text, writing
from speechsim_jax.runtime.text_tables import write_csv

if TYPE_CHECKING:
    import pandas

Cells = Any
"""A cell (x, y), or several; x and y are labels such as "model/3"."""

REPRESENTATION_DIMS = ("x", "y")
ATTENTION_DIMS = ("x_attention", "y_attention")
# Dimensions of what is known of label tracks and their classes.
_OF_LABELS = {"track", "class"}


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
    _influence: "InfluenceTable | Callable[[], InfluenceTable] | None" = field(
        default=None, repr=False
    )

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
        influence: InfluenceTable | None = None,
    ) -> "SimilarityResult":
        """Label matrices of scores and other arrays.

        Args:
            representations: what `x` and `y` run over.
            matrices: by measure, the scores of row x with column y.
            extras: further arrays by name, each with its dims.
            measures: by measure, its definition: `symmetric`, `range`, `level`, `summary`,
                `reference`, `higher_is_closer` (False for distances), `inflated_by_few_rows`,
                `by_variance`, `statistic`, all optional.
            attributes: provenance: mappings, lists and simple values, nested in any way.
            attention_representations: what `x_attention` and `y_attention` run over.
            dims: by measure, the dims of a matrix where they are not `x` and `y`.
            influence: behind the standard errors, which are extras NAME_se.

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
        if influence is not None:
            influence = influence.labelled(
                {
                    "x": tuple(map(str, representations)),
                    "x_attention": tuple(map(str, attention_representations)),
                }
            )
        dataset = xr.Dataset(variables, coords, netcdf.provenance_attributes(attributes))
        return cls(dataset, influence)

    def with_standard_errors(
        self,
        errors: Mapping[str, Float[np.ndarray, "x y"]],
        influence: InfluenceTable | None,
        facts: Mapping[str, Any],
    ) -> "SimilarityResult":
        """The same scores with other standard errors, which are not estimated from a sample.

        Args:
            errors: by measure; NaN takes the place of those of undefined scores.
            influence: behind them.
            facts: how they were computed, added to `attributes["errors"]`.
        """
        variables = {}
        for name, values in errors.items():
            known = np.isfinite(self.matrix(name).values)
            for end, of_end in (
                ("se", values),
                ("se_error", np.where(np.isnan(values), np.inf, 0)),
            ):
                array = np.where(known, of_end, np.nan)
                variables[f"{name}_{end}"] = (REPRESENTATION_DIMS, array, {"kind": "extra"})
        attributes = self.attributes
        attributes["errors"] = attributes.get("errors", {}) | dict(facts)
        dataset = self.dataset.assign(variables)
        dataset.attrs = netcdf.provenance_attributes(attributes)
        if influence is not None:
            influence = replace(influence, labels=tuple(map(str, self.representations)))
        others = self.influence.further if self.influence is not None else ()
        return SimilarityResult(dataset, joined(influence, others))

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, in the order they were computed."""
        return tuple(
            name for name, v in self._variables.items() if v.attrs.get("kind") == "measure"
        )

    @property
    def _variables(self) -> dict[str, xr.Variable]:
        """Matrices and extras by name; many times faster to go through than as labelled arrays."""
        return {str(name): self.dataset.variables[name] for name in self.dataset.data_vars}

    @functools.cached_property
    def representations(self) -> tuple[RepresentationName, ...]:
        """The representations along `x` and `y`."""
        return _representations(self.dataset, "x")

    @functools.cached_property
    def attention_representations(self) -> tuple[RepresentationName, ...]:
        """The representations along `x_attention` and `y_attention`; () without such measures."""
        if "x_attention" not in self.dataset.dims:
            return ()
        return _representations(self.dataset, "x_attention")

    @functools.cached_property
    def label_tracks(self) -> tuple[str, ...]:
        """The labels that are compared; those that were given have left the result."""
        if "track" not in self.dataset:
            return ()
        return tuple(map(str, self.dataset["track"].values))

    @functools.cached_property
    def feature_tracks(self) -> tuple[str, ...]:
        """The other tracks, as acoustic features."""
        known, labels = self.attributes.get("tracks", {}), self.label_tracks
        return tuple(name for name in known if name in self.models and name not in labels)

    @functools.cached_property
    def tracks(self) -> tuple[str, ...]:
        """Labels and features among the models."""
        return (*self.label_tracks, *self.feature_tracks)

    @functools.cached_property
    def compared_models(self) -> tuple[str, ...]:
        """The models, without tracks."""
        tracks = self.tracks
        return tuple(model for model in self.models if model not in tracks)

    @functools.cached_property
    def models(self) -> tuple[str, ...]:
        """The models, in order, each once."""
        return _unique(representation.model for representation in self.representations)

    @functools.cached_property
    def transformer_layers(self) -> dict[str, int]:
        """The number of transformer layers of every model, which is that of its last hidden state.

        Of results that do not record it, as those of arrays, the number of the last layer that was
        compared.
        """
        names = (*self.representations, *self.attention_representations)
        known = self.attributes.get("models")
        counts = {}
        for model in self.models:
            record = known.get(model) if isinstance(known, Mapping) else None
            recorded = record.get("num_hidden_layers") if isinstance(record, Mapping) else None
            last = max(name.layer for name in names if name.model == model)
            counts[model] = max(recorded, last) if isinstance(recorded, int) else last
        return counts

    def relative_depths(
        self, representations: Sequence[RepresentationName]
    ) -> Float[np.ndarray, " representation"]:
        """The layer of each over the transformer layers of its model: 0 to 1.

        Args:
            representations: of models of this result.
        """
        counts = self.transformer_layers
        depths = [relative_depth([name.layer], counts[name.model]) for name in representations]
        return np.concatenate(depths)

    @property
    def attributes(self) -> dict[str, Any]:
        """The nested attributes that `build` was called with (tuples as lists, as in JSON)."""
        return json.loads(self.dataset.attrs["provenance"])

    def with_attributes(self, **attributes: Any) -> "SimilarityResult":
        """The same scores with further attributes, or others of the same names.

        Args:
            attributes: mappings, lists and simple values, nested in any way.
        """
        provenance = netcdf.provenance_attributes(self.attributes | attributes)
        return replace(self, dataset=self.dataset.assign_attrs(provenance))

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
        attrs = self.matrix(measure).attrs
        if "definition" not in attrs:
            raise UserError(
                f"{measure} is no measure of this result; they are: {', '.join(self.measures)}"
            )
        return json.loads(attrs["definition"])

    def matrix(self, measure: str) -> xr.DataArray:
        """The matrix of one measure, labelled.

        Args:
            measure: its name; "NAME_se" for the standard errors of measure NAME, "NAME_heldout"
                for its held-out scores, "NAME_null", "NAME_null_std", "NAME_calibrated" and
                "NAME_p" for what a null says of them; "eta2", "readability" and the like for what
                representations encode of labels (docs/concepts.md).

        Returns:
            The scores of row x with column y, or what is asked for of them; of labels [x, track],
            [x, class] or [x, y, track].

        Raises:
            UserError: the result has no such measure, or it is a ranking.
        """
        if measure not in (*self.measures, *self._of_scores, *self._of_labels):
            if (ranking := f"{measure}_neuron") in self.dataset:
                raise UserError(f"{measure} is a ranking of neurons: result.dataset[{ranking!r}]")
            raise UserError(
                f"no measure {measure!r} in this result; it has: {', '.join(self.measures)}"
            )
        return self.dataset[measure]

    @property
    def _heldout(self) -> tuple[str, ...]:
        """Names of the matrices of held-out scores."""
        return tuple(name for name in self._of_scores if name.endswith("_heldout"))

    @property
    def _nulls(self) -> tuple[str, ...]:
        """Names of the matrices of scores that rows have which do not belong together."""
        return tuple(name for name in self._of_scores if name.endswith("_null"))

    @property
    def _of_scores(self) -> tuple[str, ...]:
        """Names of further matrices: standard errors, held-out scores, floors."""
        measures = self.measures
        return tuple(
            name
            for name, v in self._variables.items()
            if v.dims in (REPRESENTATION_DIMS, ATTENTION_DIMS) and name not in measures
        )

    @property
    def _of_labels(self) -> tuple[str, ...]:
        """Names of what is known of label tracks and their classes."""
        return tuple(name for name, v in self._variables.items() if _OF_LABELS & set(v.dims))

    def standard_error(self, measure: str) -> xr.DataArray:
        """Standard errors of the scores of a measure, over speakers or utterances.

        `attributes["errors"]` says over what, and of how many rows of each they were estimated.

        Args:
            measure: its name.

        Raises:
            UserError: the result has no such measure, or no standard errors of it.
        """
        self.matrix(measure)
        if f"{measure}_se" not in self.dataset:
            errors = self.attributes.get("errors", {})
            reason = errors.get("reason") if errors.get("over") == "none" else None
            reason = reason or "none are known of this measure"
            raise UserError(f"{measure} has no standard errors: {reason}")
        return self.dataset[f"{measure}_se"]

    def interval(self, measure: str, level: float | int = 0.95) -> xr.DataArray:
        """Confidence intervals of the scores of a measure.

        Student's t with as many degrees of freedom as sampled clusters less one, and fewer where
        few rows of each were sampled. An interval says how far the score would move with other
        audio of this kind and amount. It does not contain what few rows add to the score itself
        (`few_frames_warning`).

        Args:
            measure: its name.
            level: between 0 and 1.

        Returns:
            [bound, x, y], bound "low" and "high"; NaN with fewer than 10 clusters.

        Raises:
            UserError: as `standard_error`; a level that is none.
        """
        scores, half = self.matrix(measure).drop_attrs(), self.half_interval(measure, level)
        bounds = xr.Variable("bound", _text(["low", "high"]))
        return xr.concat([scores - half, scores + half], bounds)

    def half_interval(self, measure: str, level: float | int = 0.95) -> xr.DataArray:
        """Half the width of `interval`, [x, y]; arguments and errors as there."""
        errors = self.standard_error(measure)
        relative = self.dataset[f"{measure}_se_error"].values
        degrees = effective_degrees(self._degrees(measure), relative)
        return errors.drop_attrs() * quantile(degrees, level)

    def _degrees(self, measure: str) -> int:
        """Degrees of freedom of the standard errors of a measure, of all rows of the clusters."""
        errors = self.attributes["errors"]
        return errors.get("degrees", {}).get(measure, errors.get("sampled", 0) - 1)

    def audio_needed(self, target_se: float | int) -> tuple[AudioNeeded, ...]:
        """How much audio the standard errors need to be below a target.

        They fall with the root of the number of clusters, here with as much audio of each as in
        this result. What few frames add to scores is not part of this.

        Args:
            target_se: the standard error that is to be reached; positive.

        Returns:
            For every measure that has standard errors what its largest needs, and its median.

        Raises:
            UserError: a target that is none; a result without standard errors or whose amount of
                audio is not known, as one of arrays.
        """
        if isinstance(target_se, bool) or not isinstance(target_se, int | float):
            raise UserError(f"target_se is {target_se!r}; expected a number")
        if not 0 < target_se < math.inf:
            raise UserError(f"target_se is {target_se!r}; expected more than 0")
        attributes = self.attributes
        if not attributes.get("seconds"):
            raise UserError("this result does not know how many minutes of audio it is of")
        measures = [name for name in self.measures if f"{name}_se" in self.dataset]
        if not measures:
            self.standard_error(self.measures[0])  # which says why
        minutes = attributes["seconds"] / 60
        hours_a_minute = attributes.get("encoding_seconds", math.nan) / 3600 / minutes
        needed = []
        for name in measures:
            errors, scores = self.standard_error(name).values, self.matrix(name).values
            for of in ("largest", "median"):
                error = over_pairs(errors, scores, of)
                audio = minutes_needed(minutes, error, target_se)
                needed.append(AudioNeeded(name, of, error, audio, audio * hours_a_minute))
        return tuple(needed)

    def interval_key(self, measure: str) -> str:
        """What a figure says of the 95 % intervals that it draws; "" where there are none."""
        errors = self.attributes.get("errors", {})
        if f"{measure}_se" not in self.dataset or self._degrees(measure) < LEAST_CLUSTERS - 1:
            return ""
        number = f"{errors['clusters']} " if "clusters" in errors else ""
        return f"bands: 95 % intervals over {number}{errors['over']}s"

    @functools.cached_property
    def influence(self) -> InfluenceTable | None:
        """The influences of rows or clusters behind the standard errors; None if not kept."""
        return self._influence() if callable(self._influence) else self._influence

    @property
    def known_influence(self) -> InfluenceTable | None:
        """`influence`, None also where the file next to the result is damaged or of another one."""
        try:
            return self.influence
        except UserError:
            return None

    def influence_of_rows(self, measure: str) -> InfluenceTable | None:
        """The table with the influences of rows on a measure's scores; None where there are none.

        Args:
            measure: its name, of representations, not of attention.
        """
        known = self.known_influence
        for table in (known, *known.further) if known is not None else ():
            if measure in table.values and table.by == "rows" and table.dims == REPRESENTATION_DIMS:
                return table
        return None

    def keeping_influence(self, keep: Keep) -> "SimilarityResult":
        """The same result with the influences of rows or clusters, or without.

        Args:
            keep: "rows", "clusters" or "none"; "auto" is "clusters".
        """
        table = self.influence
        if table is None or keep == "rows":
            return self
        return replace(self, _influence=None if keep == "none" else table.summed())

    def contrast(
        self,
        measure: str,
        cells: Cells | None = None,
        others: Cells = (),
        *,
        weights: xr.DataArray | None = None,
    ) -> Contrast:
        """A difference of scores of one measure, or another weighted sum of them, and how sure.

        Scores of the same audio move together, so a difference is surer than the two intervals
        make it look.

        Args:
            measure: its name.
            cells: a cell (x, y), or several of which the mean is taken.
            others: those that are subtracted; none for the mean of `cells` itself.
            weights: of every score, labelled as its matrix, instead of cells.

        Raises:
            UserError: no such measure or cell; no influences of rows, which contrasts are made of.
        """
        table = self._table(measure)
        scores = self.matrix(measure)
        dims = scores.dims
        added, subtracted = (self._cells(group, dims[0]) for group in (cells, others))
        if (cells is None) == (weights is None) or (weights is None and not added):
            raise UserError("contrast: give cells, or weights")
        full = np.zeros((len(table.labels),) * 2)
        positions = {label: k for k, label in enumerate(table.labels)}
        if weights is not None:
            self._check_weights(weights, dims)
            at = (np.array([positions[v] for v in weights[d].values]) for d in dims)
            full[np.ix_(*at)] = weights.transpose(*dims).values
        for pairs, sign in ((added, 1.0), (subtracted, -1.0)):
            for x, y in pairs:
                full[positions[x], positions[y]] += sign / len(pairs)
        everything = scores.reindex({dim: list(table.labels) for dim in dims}).values
        return contrast(table, measure, everything, full)

    def _check_weights(self, weights: xr.DataArray, dims: tuple[Hashable, ...]) -> None:
        """Raise UserError for weights that cannot be placed by their labels."""
        if not isinstance(weights, xr.DataArray) or set(weights.dims) != set(dims):
            raise UserError(
                "contrast: expected weights labelled as a matrix of scores, such as "
                "0 * result.matrix(NAME) with some of them set"
            )
        if not set(dims) <= set(weights.coords):
            raise UserError("contrast: the weights have no labels")
        labels = {str(label) for dim in dims for label in weights[dim].values}
        self._cells([(label, label) for label in sorted(labels)], dims[0])
        if not np.isfinite(weights.values).all():
            raise UserError("contrast: a weight is NaN or infinite")

    def differences(
        self,
        measure: str,
        reference: Any = CLOSEST,
        *,
        rate: float | int = FALSE_DISCOVERY_RATE,
    ) -> xr.Dataset:
        """Which cells of a map differ from a reference, at a rate of false discoveries.

        Of the cells that are found to differ, a share of at most `rate` is expected not to
        (Benjamini & Hochberg). That a cell is not found to differ does not make it equal. A closest
        layer is chosen from the same scores, so what hardly differs from it counts as different
        somewhat too often; `closest` says how sure the choice is.

        Args:
            measure: its name.
            reference: what each cell is compared with: "closest", the closest layer of its model y
                to x; "closest_of_row", the closest of all layers; a cell (x, y); a model, such as
                an untrained one: its layer at the same relative depth, in the same row; a number;
                "floor",
                the measure's floor; or a matrix of numbers, labelled as the scores. What is no cell
                counts as known exactly.
            rate: of false discoveries, between 0 and 1.

        Returns:
            `difference`, `standard_error`, `p`, `q` and `differs` [x, y], and `reference`: whether
            a cell is one that others are compared with. A layer with itself is not compared: NaN
            and False, as where a standard error is not known.

        Raises:
            UserError: no such measure or reference, a rate that is none, no standard errors; of
                references that are cells, no influences of rows.
        """
        scores = self.matrix(measure)
        errors = self.standard_error(measure)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
            raise UserError(f"rate is {rate!r}; expected a number between 0 and 1, such as 0.05")
        rows, columns = (list(map(str, scores[dim].values)) for dim in scores.dims)
        compared = np.isfinite(scores.values) & ~np.equal.outer(rows, columns)
        values = np.asarray(scores.values, np.float64)
        is_reference = np.zeros_like(compared)
        fixed = self._fixed_reference(measure, reference)
        if fixed is not None:
            relative = self.dataset[f"{measure}_se_error"].values
            degrees = effective_degrees(self.attributes["errors"]["sampled"] - 1, relative)
            difference = np.where(compared, values - fixed, np.nan)
            found = differences.tested(difference, errors.values, degrees)
        else:
            table = self._table(measure)
            closer = self.definition(measure).get("higher_is_closer", True)
            x, y = reference_cells(scores, reference, closer, self.transformer_layers)
            used = x >= 0
            is_reference[x[used], y[used]] = True
            own_x, own_y = np.indices(values.shape)
            compared &= used & ((x != own_x) | (y != own_y))
            at_x, at_y = (np.array([table.labels.index(v) for v in of]) for of in (rows, columns))
            pairs = ((at_x[own_x], at_y[own_y]), (at_x[x], at_y[y]))
            difference = np.where(compared, values - values[x, y], np.nan)
            found = differences.from_cells(table, measure, difference, *pairs)
        arrays = asdict(found) | {"differs": found.q <= rate, "reference": is_reference}
        variables = {name: (scores.dims, array) for name, array in arrays.items()}
        return xr.Dataset(variables, scores.coords)

    def _fixed_reference(self, measure: str, reference: Any) -> Float[np.ndarray, "x y"] | None:
        """Numbers that cells are compared with; None where these are other cells."""
        scores = self.matrix(measure)
        if isinstance(reference, xr.DataArray):
            labelled = set(reference.dims) == set(scores.dims) <= set(reference.coords)
            if not labelled:
                raise UserError("reference: expected numbers labelled as the matrix of scores")
            return reference.reindex_like(scores).transpose(*scores.dims).values
        if isinstance(reference, str) and reference == "floor":
            for floor in floors(self.dataset):
                if floor.name == measure:
                    return np.asarray(floor.floor.values, np.float64)
            raise UserError(f"{measure} has no floor in this result")
        if isinstance(reference, int | float) and not isinstance(reference, bool):
            return np.full(scores.shape, float(reference))
        return None

    def closest(
        self, measure: str, x: Any, y_model: str, *, draws: int = 2000, seed: int = 0
    ) -> xr.DataArray:
        """Which layer of a model is closest to a representation, and how sure that is.

        Args:
            measure: its name.
            x: the label of the representation, such as "model/3".
            y_model: the model.
            draws: of a parametric bootstrap, from the covariance of the influences.
            seed: of the draws.

        Returns:
            The share of the draws in which each layer is the closest, [y]; of x's own model the
            layer itself is left out, and so are layers without a score or a standard error.

        Raises:
            UserError: no such measure, representation or model; no influences of rows.
        """
        table = self._table(measure)
        scores = self.matrix(measure)
        rows, columns = scores.dims
        labels = scores[columns].values[scores[f"{columns}_model"].values == y_model]
        self._cells([(x, x)], rows)
        known = np.isfinite(scores.loc[str(x)]) & np.isfinite(
            self.standard_error(measure).loc[str(x)]
        )
        labels = [y for y in labels if y != str(x) and bool(known.loc[y])]
        if not labels:
            raise UserError(
                f"no layer of {y_model!r} whose {measure} with {x} has a standard error; the "
                f"models: {', '.join(self.models)}"
            )
        cells = [table.positions(str(x), y) for y in labels]
        everything = scores.reindex({dim: list(table.labels) for dim in scores.dims}).values
        closer = self.definition(measure).get("higher_is_closer", True)
        shares = shares_of_largest(table, measure, everything, cells, closer, draws, seed)
        return xr.DataArray(shares, {columns: labels}, (columns,))

    def _table(self, measure: str) -> InfluenceTable:
        """The influences on a measure's scores."""
        self.standard_error(measure)
        if self.influence is None:
            raise UserError(
                "the influences behind this result's standard errors are not there: they were not "
                "kept (keep_influence='rows'), or NAME.influence.nc is no longer beside NAME.nc"
            )
        return self.influence.holding(measure)

    def _cells(self, cells: Cells | None, dim: Hashable = "x") -> list[tuple[str, str]]:
        """Labels of cells; raises UserError for one that the result lacks."""
        if cells is None:
            return []
        if not isinstance(cells, Sequence):
            raise UserError(
                f"cells {cells!r}: expected pairs (x, y) of labels such as 'model/3'; scores are "
                "compared with a number by differences(NAME, NUMBER)"
            )
        is_one = len(cells) == 2 and not isinstance(cells[0], tuple | list)
        given = [cells] if is_one else list(cells)
        if isinstance(cells, str) or any(
            isinstance(cell, str) or not isinstance(cell, tuple | list) or len(cell) != 2
            for cell in given
        ):
            raise UserError(f"cells {cells!r}: expected pairs (x, y) of labels such as 'model/3'")
        pairs = [(str(x), str(y)) for x, y in given]
        known = set(map(str, self.dataset[dim].values))
        for label in (label for pair in pairs for label in pair):
            if label not in known:
                raise UserError(f"no representation {label!r}{did_you_mean(label, known)}")
        return pairs

    def exemplars(self, name: Any, neuron: int | None = None) -> tuple[Exemplar, ...]:
        """The frames that excite neurons of a representation most (`compare(exemplars=5)`).

        At most one frame of an utterance, the one with the largest activation; none of a neuron
        that never changes. `pandas.DataFrame(result.exemplars("model/3"))` is a table of them.

        Args:
            name: the label of the representation, such as "model/3".
            neuron: its number; all neurons by default.

        Returns:
            `neuron`, `rank` (1 is the largest), `value` (the activation), `utterance` and `seconds`
            (the centre of the frame) of each.

        Raises:
            UserError: no such representation or neuron, or a result without exemplars.
        """
        return exemplar_records(self.dataset, str(name), neuron)

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
        return replace(self, dataset=self.dataset.isel(positions).drop_dims(empty))

    def block(self, measure: str, x_model: str, y_model: str) -> xr.DataArray:
        """The scores of the layers of one model with those of another.

        Args:
            measure: its name.
            x_model: the model of the rows.
            y_model: the model of the columns.

        Returns:
            The scores, with the coordinates of their matrix and the relative depths of both axes,
            as `x_depth` and `y_depth`: layers over the model's transformer layers.

        Raises:
            UserError: an unknown measure or model.
        """
        matrix = self.matrix(measure)
        if matrix.dims not in (REPRESENTATION_DIMS, ATTENTION_DIMS):
            dims = ", ".join(map(str, matrix.dims))
            raise UserError(f"{measure} is [{dims}], and has no block of two models")
        positions = {}
        for dim, model in zip(matrix.dims, (x_model, y_model), strict=True):
            positions[dim] = np.flatnonzero(matrix[f"{dim}_model"].values == model)
            if not positions[dim].size:
                present = ", ".join(_unique(matrix[f"{dim}_model"].values))
                raise UserError(f"no model {model!r} under {measure}; it has: {present}")
        block = matrix.isel(positions)
        depths = {
            f"{dim}_depth": (
                dim,
                relative_depth(block[f"{dim}_layer"].values, self.transformer_layers[model]),
            )
            for dim, model in zip(matrix.dims, (x_model, y_model), strict=True)
        }
        return block.assign_coords(depths)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A table with one row per pair of representations x and y, one column per measure.

        Returns:
            x_model, x_layer, y_model, y_layer, the measures, then NAME_se, NAME_heldout, NAME_null,
            NAME_null_std, NAME_calibrated and NAME_p where there are any; NaN where one is not
            defined, or has no such pair, as attention measures of layer 0.
        """
        labels = list(dict.fromkeys([*self.representations, *self.attention_representations]))
        index = _text(map(str, labels))
        pairs = [(x.model, x.layer, y.model, y.layer) for x in labels for y in labels]
        keys = zip(
            ("x_model", "x_layer", "y_model", "y_layer"), zip(*pairs, strict=True), strict=True
        )
        columns: dict[str, Any] = {key: ("pair", list(values)) for key, values in keys}
        ends = ("_se", "_heldout", "_null", "_null_std", "_calibrated", "_p")
        further = [n for n in self._of_scores if n.endswith(ends)]
        for measure in (*self.measures, *further):
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

        The influences behind standard errors go into a file next to it, NAME.influence.nc.

        Args:
            path: the file; its folder is made if needed.

        Returns:
            The path.
        """
        path = as_path(path)
        beside, new = influence_file.influence_path(path), influence_file.new_path(path)
        with writing(path):
            # Until the new result is there, an older one keeps its own influences.
            if self.influence is not None:
                influence_file.write(self.influence, new, self._key)
            try:
                netcdf.write(self.dataset, path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
            if self.influence is not None:
                influence_file.settle(self.influence, path, self._key)
            else:
                for old in (beside, new):
                    old.unlink(missing_ok=True)
        return path

    @property
    def _key(self) -> str:
        """What tells whether influences belong to this result."""
        return hashlib.sha256(self.dataset.attrs["provenance"].encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SimilarityResult":
        """Read what `save` wrote.

        Args:
            path: the file.

        Raises:
            UserError: there is no such file, or it is not a result that this version can read.
        """
        path = as_path(path)
        dataset = netcdf.read(path, netcdf.FORMAT, {"x_model", "y_layer"})
        result = cls(dataset)
        places = influence_file.influence_path(path), influence_file.new_path(path)
        if not any(place.is_file() for place in places):
            return result
        return replace(result, _influence=lambda: influence_file.read(path, result._key))

    def summary(self) -> str:
        """A table of means over layers for a terminal, a row for each measure.

        Undefined scores, and those of a layer with itself, are left out. Where there are too few
        frames for some of the measures, a warning follows.
        """
        if not self.measures:
            return repr(self)
        blocks = blocks_shown(len(self.compared_models))
        means = {
            measure: {heading: self._mean(measure, pairs) for heading, pairs in blocks.items()}
            for measure in (*self.measures, *self._heldout, *self._nulls)
        }
        table = means_table(
            Counter(r.model for r in self.representations if r.model in self.compared_models), means
        )
        legend = (
            "mean over layers of how well y accounts for x, a layer with itself left out; "
            "within: of layers of one model, between: of two"
        )
        head, _ = repr(self).split("\n", 1)  # without the measures, which the table names
        parts = [textwrap.fill(head, 100), table, textwrap.fill(f"x,y: {legend}", 100)]
        if errors := self.errors_note():
            parts.append(textwrap.fill(errors, 100))
        if any(self.matrix(measure).dims == ATTENTION_DIMS for measure in self.measures):
            parts.append("attn_*: heads of any two models look alike; see their baselines, too")
        if target := self.target_note():
            parts.append(textwrap.fill(target, 100))
        if warning := self.few_frames_warning():
            parts.append(textwrap.fill(warning, 100))
        return "\n\n".join(parts)

    def errors_note(self) -> str:
        """What the standard errors are over, or why there are none; "" where it is not known."""
        errors = self.attributes.get("errors")
        if errors is None:
            return ""
        if errors["over"] == "none":
            return f"no standard errors: {errors['reason']}"
        if "clusters" not in errors and errors.get("degrees"):
            return f"±: standard error over {errors['over']}s ({errors['reason']})"
        if "clusters" not in errors:
            return "no standard errors: none are known of these measures"
        over = f"{errors['clusters']:,} {errors['over']}s"
        if errors["sampled"] < errors["clusters"]:
            over += f", estimated from {errors['sampled']} of them"
        again = ", read a second time" if errors.get("source") == "reading" else ""
        return (
            f"±: standard error over {over} ({errors['rows']:,} of their frames{again}; "
            f"{errors['reason']}); it does not contain what few frames add to a score"
        )

    def target_note(self) -> str:
        """What was reached with `target_se`, and of how much audio; "" without a target."""
        target = self.attributes.get("target")
        if target is None:
            return ""
        last = target["steps"][-1]
        numbers = {
            name: "not known" if last[name] is None else f"{last[name]:.2g}"
            for name in ("standard_error", "inflation")
        }
        reached = "reached" if target["reached"] else "not reached before the audio ended"
        note = (
            f"target of {target['standard_error']:g}: {reached}, {target['minutes']:.1f} min; "
            f"{target['of']} standard error {numbers['standard_error']}, inflation by few frames "
            f"{numbers['inflation']}"
        )
        if not target["reached"] and target["predicted_minutes"] is not None:
            note += f"; about {target['predicted_minutes']:.3g} min are needed"
        if target["left_out"]:
            note += f"; not part of it, without standard errors: {', '.join(target['left_out'])}"
        return note

    def few_frames_warning(self) -> str:
        """A warning if the scores are of too few frames for some of the measures, else ""."""
        attributes = self.attributes
        rows = attributes.get("rows", attributes.get("frames"))
        if rows is None or "width" not in self.dataset:
            return ""
        inflated = [m for m in self.measures if self.definition(m).get("inflated_by_few_rows")]
        return few_frames_warning(rows, int(self.dataset["width"].max()), inflated)

    def _mean(self, measure: str, blocks: Sequence[tuple[int, int]]) -> Mean:
        """The mean over blocks of models of their mean scores, a layer with itself left out."""
        weights = [w for pair in blocks if (w := self._block_weights(measure, *pair)).any()]
        if not weights:
            return Mean(math.nan)
        total = np.mean(weights, axis=0)
        scores = self.matrix(measure).values
        used = total != 0
        mean = float(scores[used] @ total[used])
        if f"{measure}_se" not in self.dataset or not self.known_influence:
            return Mean(mean)
        try:
            if self.known_influence.holding(measure).by != "rows":
                return Mean(mean)
        except UserError:
            return Mean(mean)
        labelled = self.matrix(measure).copy(data=total)
        return Mean(mean, self.contrast(measure, weights=labelled).standard_error)

    def _block_weights(self, measure: str, x: int, y: int) -> Float[np.ndarray, "x y"]:
        """Of the mean of one block: of each defined score of model x with model y the same."""
        matrix = self.matrix(measure)
        of_rows, of_columns = (
            matrix[f"{dim}_model"].values == self.compared_models[k]
            for dim, k in zip(matrix.dims, (x, y), strict=True)
        )
        used = np.isfinite(matrix.values) & np.outer(of_rows, of_columns)
        used &= ~np.eye(len(used), dtype=bool)
        return used / max(used.sum(), 1)

    def __repr__(self) -> str:
        tracks = len(self.models) - len(self.compared_models)
        parts = [
            counted(len(self.compared_models), "model"),
            *([counted(tracks, "track")] if tracks else []),
            f"{len(self.representations)} representations",
            *self.notes(),
        ]
        return f"SimilarityResult({', '.join(parts)})\n  measures: {', '.join(self.measures)}"

    def notes(self) -> list[str]:
        """What a caption states about the data: frames, utterances, pairs, the attribute `note`.

        Rows follow the frames if they are fewer, which means that frames were pooled; pairs, if
        there are scores of some only.
        """
        attributes = self.attributes
        names = ["frames", "utterances"]
        if attributes.get("rows", attributes.get("frames")) != attributes.get("frames"):
            names.insert(1, "rows")
        notes = [f"{attributes[name]:,} {name}" for name in names if name in attributes]
        pairs = attributes.get("settings", {}).get("pairs", ["all"])
        if list(pairs) != ["all"]:
            notes.append(f"pairs: {_PAIRS_IN_WORDS.get(pairs[0], 'those asked for')}")
        return [*notes, str(attributes["note"])] if attributes.get("note") else notes


_PAIRS_IN_WORDS = {
    "between": "between models",
    "within": "within models",
    "same_depth": "of the same depth",
}


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
