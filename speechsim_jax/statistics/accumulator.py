"""The protocols of a statistic: an `Accumulator` sums over batches, a `State` holds its sums.

A new statistic is one class of each. The pipeline, the store and `merge` use these methods only
(docs/extending.md adds a statistic).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from speechsim_jax.array_types import HiddenStates
from speechsim_jax.statistics.moments import ModelShape

LayerIndex = tuple[int, int]
"""Model and layer of a representation, as positions among all that are compared."""

Snapshot = dict[str, Any]
"""Numpy arrays, numbers and lists of these: what an accumulator needs to resume, on the host.

On a CPU the arrays may be the accumulator's own memory. While they are referenced, an update does
not write over that memory but allocates a new state, so release them before the next snapshot, or
one more copy exists.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchRows:
    """Which frames of a batch are rows of the statistics, and what identifies them.

    Attributes:
      positions: indices into the flattened [batch * frame] axis, ascending.
      utterance: of each row, an index into `ids`.
      number: of each row, its frame (or segment) within the utterance; with the id it identifies
        the row.
      ids: ids of the batch's utterances, or of the pieces of long ones.
      utterances: for each of `ids` its utterance; "" where not known.
      starts: for each of `ids` the sample of its utterance, at 16 kHz, at which it begins; empty
        where all begin theirs.
    """

    positions: Int64[np.ndarray, " row"]
    utterance: Int64[np.ndarray, " row"]
    number: Int64[np.ndarray, " row"]
    ids: tuple[str, ...]
    utterances: tuple[str, ...]
    starts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedBatch:
    """One batch as accumulators read it.

    Attributes:
      hidden: hidden states of each model, [layer, batch, frame, neuron], pooled if pooling is on.
      rows: the frames that are rows of the statistics.
      attention: what the attention maps are computed from, a pytree; None where no map is read.
      lengths: frames of each utterance whose attention is read, 0 for the others; None where no map
        is read.
    """

    hidden: tuple[HiddenStates, ...]
    rows: BatchRows
    attention: Any = None
    lengths: np.ndarray | None = None


@runtime_checkable
class State(Protocol):
    """The sums of one pass, which can be stored, merged with those of other jobs, and finished."""

    kind: ClassVar[str]
    """Name of the statistic; also its folder in the store."""

    def save(self, folder: Path) -> None:
        """Write into an empty folder.

        Raises:
          OSError: that failed.
        """
        ...

    @classmethod
    def load(cls, folder: Path) -> "State":
        """Read what `save` wrote.

        Raises:
          OSError, ValueError, KeyError, TypeError: the folder does not hold it.
        """
        ...

    def merge(self, others: Sequence[Any]) -> "State":
        """The state over the rows of this and of others, of the same models and layers.

        It may be lazy: then it can be saved once, and nothing else.

        Args:
          others: states of other jobs, over other rows.

        Raises:
          UserError: states of other models, layers or settings.
        """
        ...

    def finish(self, others: Sequence[Any] = (), rank_tolerance: float | None = None) -> Any:
        """What measures read.

        Args:
          others: states of the other passes over the same rows; a representation may be in several.
          rank_tolerance: as in `Settings`.

        Returns:
          Anything with `representations`, a sequence with one entry a representation, in order of
          its index.

        Raises:
          UserError: nothing was added, where that cannot be scored.
        """
        ...


@runtime_checkable
class Accumulator(Protocol):
    """Sums over batches, on the devices or on the host."""

    def update(self, batch: EncodedBatch) -> None:
        """Add a batch."""
        ...

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        ...

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs, on the host; the accumulator may continue."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot, on the same number of devices or another.

        Raises:
          UserError: a snapshot of other models or settings.
        """
        ...

    def result(self) -> State:
        """The state after everything that was added; nothing can be added any more."""
        ...


def all_layers(shapes: tuple[ModelShape, ...]) -> tuple[LayerIndex, ...]:
    """The index of every layer of every model, in order."""
    return tuple((model, layer) for model, s in enumerate(shapes) for layer in range(s.layers))
