"""Brings single rows from the devices to the host without waiting for them."""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, Shaped

from speechsim_jax._jax_compat import x64
from speechsim_jax.array_types import HiddenStates, ModelRows

# Rows that one gather takes from the device: one compiled shape, with little left over at the end.
_GATHER = 64


class RowFetcher:
    """Rows of every model in slots on the host, each batch's fetched one batch later.

    The host never waits for the device. On the device: the rows that entered in two batches.

    Args:
      rows: of each model, where rows go, [layer, slot, neuron].

    Attributes:
      rows: as given; they may be replaced by larger ones after `wait`.
    """

    def __init__(self, rows: Sequence[Float[np.ndarray, "_layer slot _neuron"]]):
        self.rows = tuple(rows)
        self._x64 = rows[0].dtype == np.float64
        self._coming: collections.deque[tuple[np.ndarray, list[tuple[ModelRows, ...]]]] = (
            collections.deque()
        )

    def fetch(
        self,
        hidden: tuple[HiddenStates, ...],
        positions: Int64[np.ndarray, " entering"],
        slots: Int64[np.ndarray, " entering"],
    ) -> None:
        """Start fetching rows of a batch.

        Args:
          hidden: of each model.
          positions: of the rows on the flattened [batch * frame] axis.
          slots: where they go.
        """
        if len(positions):
            self._coming.append((slots, self._gather(hidden, positions)))

    def _gather(
        self, hidden: tuple[HiddenStates, ...], positions: Int64[np.ndarray, " entering"]
    ) -> list[tuple[ModelRows, ...]]:
        blocks = []
        for start in range(0, len(positions), _GATHER):
            source = np.zeros(_GATHER, np.int32)
            part = positions[start : start + _GATHER]
            source[: len(part)] = part
            with x64(self._x64):
                blocks.append(_take(hidden, source))
        return blocks

    def settle(self) -> None:
        """Store the rows of all batches but the last."""
        while len(self._coming) > 1:
            self._store()

    def wait(self) -> None:
        """Block until every row is in its slot."""
        while self._coming:
            self._store()

    def _store(self) -> None:
        slots, blocks = self._coming.popleft()
        for index, block in enumerate(blocks):
            targets = slots[index * _GATHER : (index + 1) * _GATHER]
            for stored, rows in zip(self.rows, block):
                stored[:, targets] = np.asarray(rows)[:, : len(targets)]


@jax.jit
def _take(
    hidden: tuple[HiddenStates, ...], source: Shaped[Array | np.ndarray, " row"]
) -> tuple[ModelRows, ...]:
    """The frames at `source` of the flattened [batch * frame] axis."""

    def take(states: HiddenStates) -> ModelRows:
        frames = states.reshape(states.shape[0], -1, states.shape[-1])
        return jnp.take(frames, jnp.asarray(source), axis=1)

    return tuple(take(states) for states in hidden)
