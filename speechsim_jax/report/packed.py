"""Arrays for a page: rounded, concatenated as bytes, and described in JSON."""

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np


class PackedArrays:
    """Arrays in little-endian bytes; adding one returns the entry that describes it for the page.

    An entry has the array's type, its shape, where its bytes start, and how values are decoded.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def exact(self, values: np.ndarray) -> dict[str, Any]:
        """Add an array as float32: seven digits."""
        return self._add(np.asarray(values, dtype="<f4"))

    def rounded(self, values: np.ndarray) -> dict[str, Any]:
        """Add an array in two bytes per value: 65 535 steps from the smallest to the largest.

        The error is at most 8e-6 of the range. Values that are not finite are not defined.
        """
        return self._stepped(values, "<u2")

    def logarithms(self, values: np.ndarray) -> dict[str, Any]:
        """Add the logarithms of positive values in one byte each, to 2 % of the values.

        Values that are more than 20,000 times smaller than the largest become as large as that;
        those that are not positive, or not finite, are not defined.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.log(values)
        logarithms[~np.isfinite(logarithms)] = np.nan
        largest = np.max(logarithms, initial=-np.inf, where=np.isfinite(logarithms))
        return self._stepped(np.maximum(logarithms, largest - np.log(20_000)), "<u1")

    def _stepped(self, values: np.ndarray, kind: str) -> dict[str, Any]:
        """Add an array as steps from the smallest value to the largest."""
        missing = int(np.iinfo(kind).max)
        finite = np.isfinite(values)
        low, high = (
            (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0)
        )
        step = (high - low) / (missing - 1) or 1.0
        steps = np.round((np.where(finite, values, low) - low) / step)
        codes = np.where(finite, steps, missing).astype(kind)
        return self._add(codes) | {"low": low, "step": step, "missing": missing}

    def integers(self, values: np.ndarray) -> dict[str, Any]:
        """Add numbers from 0 on in as few bytes as hold them; below 0 means "none"."""
        largest = int(values.max(initial=0))
        kind = next(k for k in ("<u1", "<u2", "<u4") if largest < np.iinfo(k).max)
        missing = int(np.iinfo(kind).max)
        return self._add(np.where(values < 0, missing, values).astype(kind)) | {"missing": missing}

    def encode(self, data: Mapping[str, Any]) -> str:
        """The length of `data` in four bytes, `data` as JSON, and the arrays; as in `encode`."""
        text = json.dumps(data, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        return encode(b"".join([len(text).to_bytes(4, "little"), text, *self._parts]))

    def _add(self, values: np.ndarray) -> dict[str, Any]:
        entry = {"type": values.dtype.name, "shape": values.shape, "offset": self._size}
        data = values.tobytes()
        data += bytes(-len(data) % 4)  # JavaScript reads arrays of 4 bytes at multiples of 4 only
        self._parts.append(data)
        self._size += len(data)
        return entry


def encode(data: bytes) -> str:
    """The bytes as text that an HTML page can hold: compressed with gzip, then in base64."""
    return b64encode(gzip.compress(data, mtime=0)).decode()
