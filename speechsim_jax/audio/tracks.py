"""Tracks: what has a row for every frame besides the layers of models, as features or labels."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """What an encoder hears at once: an utterance, or a part of a long one.

    Attributes:
      utterance: id of the whole utterance.
      start_seconds: where the piece begins in it.
      samples: at 16 kHz.
    """

    utterance: str
    start_seconds: float
    samples: Float32[np.ndarray, " sample"]


@runtime_checkable
class Track(Protocol):
    """A row for every frame of a piece."""

    @property
    def name(self) -> str:
        """Its name in the result, as "phone" or "logmel"."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a row; of labels, classes."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Of labels, most frequent first; empty for features."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """Everything that its rows depend on besides the audio, for JSON."""
        ...

    def rows(
        self, piece: Piece, centres: Float64[np.ndarray, " frame"]
    ) -> Float32[np.ndarray, "frame number"] | Int32[np.ndarray, " frame"]:
        """The rows of a piece; called on decoding threads.

        Args:
          piece: the audio.
          centres: of the frames, in seconds from the start of the piece.

        Returns:
          Of features [frame, width]; of labels the number of each frame's class, -1 for none.
        """
        ...
