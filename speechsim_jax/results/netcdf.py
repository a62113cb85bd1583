"""Results as netCDF files: writing, reading, and the attributes that netCDF can hold."""

import io
import json
import math
import os
import re
import zlib
from collections.abc import Mapping, Set
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import AnyPath, atomic_write
from speechsim_jax.runtime.checked_files import DamagedFileError

FORMAT = "speechsim_jax.SimilarityResult"
# 2: the definition of a measure records whether higher is closer; in 1 its name did. 3: a checksum
# of the file follows what HDF5 reads.
FORMAT_VERSION = 3
_CHECKSUM = re.compile(rb"speechsim_jax crc32 ([0-9a-f]{8})\n\Z")
_INT64 = range(-(2**63), 2**63)


def write(dataset: xr.Dataset, path: AnyPath) -> AnyPath:
    """Write a compressed netCDF file; a reader sees the old file or the new one, never half."""
    encoding: dict[Any, Any] = {
        name: {"compression": "gzip", "compression_opts": 4, "shuffle": True}
        for name, variable in dataset.data_vars.items()
        if variable.ndim and variable.size and variable.dtype.kind in "biuf"
    }

    def write_checked(new: Path) -> None:
        dataset.to_netcdf(new, engine="h5netcdf", encoding=encoding)
        with new.open("r+b") as file:
            file.write(b"speechsim_jax crc32 %08x\n" % zlib.crc32(file.read()))

    return atomic_write(path, write_checked)


def read(path: AnyPath, format: str, coordinates: Set[str]) -> xr.Dataset:
    """Read what `write` wrote.

    Args:
        path: the file.
        format: what the attribute of this name must be.
        coordinates: that it must have.

    Raises:
        UserError: there is no such file, or it is not a result that this version can read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such result file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    checksum = _CHECKSUM.search(content[-64:])
    if checksum is not None:
        content = content[: -len(checksum[0])]
        if b"%08x" % zlib.crc32(content) != checksum[1]:
            raise DamagedFileError(f"{path} is damaged: its checksum does not match")
    try:
        dataset = xr.load_dataset(io.BytesIO(content), engine="h5netcdf")
    except Exception as error:  # h5py raises what it likes on a file that is none
        raise UserError(f"{path}: not a readable result file ({error})") from error
    if dataset.attrs.get("format") != format or not coordinates <= set(dataset.coords):
        raise UserError(f"{path}: a netCDF file, but not one that SimilarityResult.save wrote")
    if dataset.attrs["format_version"] > FORMAT_VERSION:
        raise UserError(f"{path}: written by a newer speechsim_jax; upgrade to read it")
    if dataset.attrs["format_version"] < FORMAT_VERSION:
        raise UserError(
            f"{path}: a result of format {dataset.attrs['format_version']}, not {FORMAT_VERSION}; "
            "run the comparison again with this version"
        )
    if checksum is None:
        raise DamagedFileError(f"{path} is damaged: it ends before its checksum")
    return dataset


def measure_attributes(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The netCDF attributes of a measure: its definition as JSON, and those values that fit.

    Args:
        definition: what is known of the measure, as in `SimilarityResult.definition`.

    Returns:
        Attributes by name. "definition" holds all of it; the others are for readers of netCDF.
    """
    text = json.dumps(definition, default=_plain)
    attrs = {**_simple(definition), "kind": "measure", "definition": text}
    if ends := definition.get("range"):
        open_ends = zip(ends, (-math.inf, math.inf), strict=True)
        attrs["range"] = np.array([e if end is None else end for end, e in open_ends], float)
    return attrs


def provenance_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The netCDF attributes of a result: format, provenance as JSON, and those values that fit.

    Args:
        attributes: mappings, lists and simple values, nested in any way.

    Returns:
        Attributes by name. "provenance" holds all of it; the others are for readers of netCDF.
    """
    # ASCII JSON carries what netCDF attributes cannot: booleans, None, nesting, undecodable paths.
    text = json.dumps(attributes, default=_plain)
    return {
        **_simple(json.loads(text)),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "provenance": text,
    }


def _simple(attributes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The attributes that netCDF can hold, flattened to names like "config.batch_size"."""
    flat: dict[str, Any] = {}
    for key, value in attributes.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _simple(value, f"{name}.")
        elif name.replace(".", "_").isidentifier() and _fits_netcdf(value):
            flat[name] = int(value) if isinstance(value, bool) else value
    return flat


def _fits_netcdf(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= 1000 and value.isprintable()
    return isinstance(value, float) or (isinstance(value, int) and value in _INT64)


def _plain(value: Any) -> Any:
    """What JSON can hold, for values of other types that a configuration may have."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, os.PathLike | np.dtype):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"attributes cannot hold a {type(value).__name__}: {value!r}")
