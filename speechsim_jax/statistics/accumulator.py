"""TODO."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int64

Snapshot = dict[str, Any]
"""Numpy arrays, numbers and lists of these: what a stream needs to go on, on the host.

On a CPU the arrays are the stream's own memory. As long as they are there, an update does not write
over it but makes the state anew, so whoever lets go of them before the next saves a copy.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchRows:
    """Which frames of a batch are rows of the statistics, and where they come from.

    `positions`: on the flattened [batch * frame] axis, rising. `utterance`: index into `ids`, the
    utterances of the batch, or the pieces of long ones; `wholes` are the utterances that these are
    of ("" where not known). `number`: of the frame (or segment) within its utterance; with the id
    it names the row.
    """

    positions: Int64[np.ndarray, " row"]
    utterance: Int64[np.ndarray, " row"]
    number: Int64[np.ndarray, " row"]
    ids: tuple[str, ...]
    wholes: tuple[str, ...]
