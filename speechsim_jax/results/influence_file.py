"""Influences in a netCDF file next to their result."""

import dataclasses
import json
from typing import Any

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
    variables, coords, attributes = _of_table(table)
    for k, other in enumerate(table.further, start=1):
        for whole, part in zip((variables, coords, attributes), _of_table(other, f"_{k}")):
            whole |= part
    attributes |= {
        "format": _FORMAT,
        "format_version": netcdf.FORMAT_VERSION,
        "further": len(table.further),
        "key": key,
    }
    return netcdf.write(xr.Dataset(variables, coords, attributes), path)


def _of_table(
    table: InfluenceTable, end: str = ""
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Variables, coordinates and attributes of one table, their names with an ending."""
    clusters = table.clusters
    dim = {"rows": f"row{end}", "clusters": f"cluster{end}"}[table.by]
    x, y, cluster = f"x{end}", f"y{end}", f"cluster{end}"
    variables = {name: ((dim, x, y), values) for name, values in table.values.items()}
    labels = np.array(table.labels, object)
    coords = {
        x: labels,
        y: labels,
        # As JSON: netCDF holds no text that is not UTF-8, as names of files may be.
        cluster: np.array([json.dumps(name) for name in clusters.names], object),
        f"cluster_rows{end}": (cluster, clusters.rows),
        f"cluster_sampled_rows{end}": (cluster, clusters.kept),
    }
    if table.by == "rows":
        row_cluster = np.repeat(np.arange(len(clusters.names)), clusters.kept)
        coords[f"row_cluster{end}"] = (f"row{end}", row_cluster)
    attributes = {
        f"total_rows{end}": clusters.total_rows,
        f"total_clusters{end}": clusters.total,
        f"by{end}": table.by,
        f"dims{end}": " ".join(table.dims),
    }
    return variables, coords, attributes


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
            ends = ["", *(f"_{k}" for k in range(1, 1 + int(dataset.attrs["further"])))]
            first, *others = (_read_table(dataset, end) for end in ends)
            return dataclasses.replace(first, further=tuple(others))
    raise UserError(f"{paths[0]}: belongs to another result than the one next to it")


def _read_table(dataset: xr.Dataset, end: str) -> InfluenceTable:
    """What `_of_table` made."""
    clusters = SampledClusters(
        names=tuple(map(json.loads, dataset[f"cluster{end}"].values)),
        rows=dataset[f"cluster_rows{end}"].values,
        kept=dataset[f"cluster_sampled_rows{end}"].values,
        total_rows=int(dataset.attrs[f"total_rows{end}"]),
        total=int(dataset.attrs[f"total_clusters{end}"]),
    )
    x, y = dataset.attrs[f"dims{end}"].split()
    values = {str(n): v.values for n, v in dataset.data_vars.items() if v.dims[1] == f"x{end}"}
    return InfluenceTable(
        clusters=clusters,
        by=dataset.attrs[f"by{end}"],
        values=values,
        labels=tuple(map(str, dataset[f"x{end}"].values)),
        dims=(x, y),
    )
