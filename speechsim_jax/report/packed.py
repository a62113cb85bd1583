"""Arrays for a page: rounded, one after the other, and described in JSON."""

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np

_STEPS = 2**16 - 2
"""Of a rounded array; the value above them means "not defined"."""


class Packed:
    """Arrays in little-endian bytes; what adds one returns where it is and how to read it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def exact(self, values: np.ndarray) -> dict[str, Any]:
        """As float32: seven digits."""
        return self._add(np.asarray(values, dtype="<f4"))

    def rounded(self, values: np.ndarray) -> dict[str, Any]:
        """In two bytes, as one of 65 535 steps from the smallest value to the largest.

        Off by at most 8e-6 of the range. Values that are not finite are not defined.
        """
        finite = np.isfinite(values)
        low, high = (
            (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0)
        )
        step = (high - low) / _STEPS or 1.0
        steps = np.round((np.where(finite, values, low) - low) / step)
        places = np.where(finite, steps, _STEPS + 1).astype("<u2")
        return self._add(places) | {"low": low, "step": step, "missing": _STEPS + 1}

    def whole(self, values: np.ndarray) -> dict[str, Any]:
        """Numbers from 0 on in as few bytes as hold them; below 0 means "none"."""
        largest = int(values.max(initial=0))
        kind = next(k for k in ("<u1", "<u2", "<u4") if largest < np.iinfo(k).max)
        missing = int(np.iinfo(kind).max)
        return self._add(np.where(values < 0, missing, values).astype(kind)) | {"missing": missing}

    def encoded(self, facts: Mapping[str, Any]) -> str:
        """The length of `facts` in four bytes, `facts` as JSON, and the arrays; as `encoded`."""
        text = json.dumps(facts, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        return encoded(b"".join([len(text).to_bytes(4, "little"), text, *self._parts]))

    def _add(self, values: np.ndarray) -> dict[str, Any]:
        entry = {"type": values.dtype.name, "shape": values.shape, "offset": self._size}
        data = values.tobytes()
        data += bytes(-len(data) % 4)  # the next one may need its place to be a multiple of four
        self._parts.append(data)
        self._size += len(data)
        return entry


def encoded(data: bytes) -> str:
    """The bytes, compressed, in letters that an HTML page can hold: gzip, then base64."""
    return b64encode(gzip.compress(data, mtime=0)).decode()
