"""Influences in a netCDF file next to their result."""

import json

import numpy as np
import xarray as xr

from speechsim_jax.errors import UserError
from speechsim_jax.inference.influence_table import InfluenceTable
from speechsim_jax.inference.standard_errors import SampledClusters
from speechsim_jax.results import netcdf
from speechsim_jax.runtime.atomic_write import AnyPath, in_bucket

_FORMAT = "speechsim_jax.InfluenceTable"


def influence_path(result: AnyPath) -> AnyPath:
    """Where the influences of a result are: result.influence.nc for result.nc."""
    return result.with_name(f"{result.stem}.influence.nc")


def new_path(result: AnyPath) -> AnyPath:
    """Where they are until their result is written, too."""
    return result.with_name(f"{result.stem}.influence.new.nc")


def write(table: InfluenceTable, path: AnyPath, key: str) -> AnyPath:
    """Write influences.

    Args:
        table: the influences.
        path: the file.
        key: of the result that they belong to.
    """
    clusters = table.clusters
    dim = {"rows": "row", "clusters": "cluster"}[table.by]
    variables = {name: ((dim, "x", "y"), values) for name, values in table.values.items()}
    labels = np.array(table.labels, object)
    coords = {
        "x": labels,
        "y": labels,
        # As JSON: netCDF holds no text that is not UTF-8, as names of files may be.
        "cluster": np.array([json.dumps(name) for name in clusters.names], object),
        "cluster_rows": ("cluster", clusters.rows),
        "cluster_sampled_rows": ("cluster", clusters.kept),
    }
    if table.by == "rows":
        coords["row_cluster"] = ("row", np.repeat(np.arange(len(clusters.names)), clusters.kept))
    attributes = {
        "format": _FORMAT,
        "format_version": netcdf.FORMAT_VERSION,
        "total_rows": clusters.total_rows,
        "total_clusters": clusters.total,
        "by": table.by,
        "complete": int(table.complete),
        "key": key,
    }
    return netcdf.write(xr.Dataset(variables, coords, attributes), path)


def settle(table: InfluenceTable, result: AnyPath, key: str) -> None:
    """Give influences that were written under their first name the one next to the new result.

    Args:
        table: the influences.
        result: the file of the result.
        key: of this result.
    """
    if in_bucket(result):  # which has no renames
        write(table, influence_path(result), key)
        new_path(result).unlink()
    else:
        new_path(result).replace(influence_path(result))


def read(result: AnyPath, key: str) -> InfluenceTable:
    """Read what `write` wrote, also where a kill has left it under its first name.

    Args:
        result: the file of the result that they belong to.
        key: of this result.

    Raises:
        UserError: the file is not one of `write`, is damaged, or of another result.
    """
    paths = [path for path in (influence_path(result), new_path(result)) if path.is_file()]
    for path in paths:
        dataset = netcdf.read(path, _FORMAT, {"x", "y", "cluster"})
        if dataset.attrs["key"] == key:
            return _table(dataset)
    raise UserError(f"{paths[0]}: belongs to another result than the one next to it")


def _table(dataset: xr.Dataset) -> InfluenceTable:
    clusters = SampledClusters(
        names=tuple(map(json.loads, dataset["cluster"].values)),
        rows=dataset["cluster_rows"].values,
        kept=dataset["cluster_sampled_rows"].values,
        total_rows=int(dataset.attrs["total_rows"]),
        total=int(dataset.attrs["total_clusters"]),
    )
    values = {str(name): variable.values for name, variable in dataset.data_vars.items()}
    return InfluenceTable(
        clusters,
        dataset.attrs["by"],
        values,
        tuple(map(str, dataset["x"].values)),
        complete=bool(dataset.attrs.get("complete", 0)),
    )
