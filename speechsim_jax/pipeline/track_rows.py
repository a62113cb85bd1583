"""The rows of tracks, batch by batch, in the form in which models return hidden states."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32

from speechsim_jax.audio.batching import Batch
from speechsim_jax.audio.tracks import Piece, Track
from speechsim_jax.models.architecture import Activations
from speechsim_jax.pipeline.frame_grid import FrameGrid
from speechsim_jax.runtime.mesh import place_frames

PieceRows = tuple[np.ndarray, ...]
"""Of one piece, the rows of every track."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrackRows:
    """Computes the rows of tracks at the frames that are compared.

    Attributes:
      tracks: features and labels.
      grid: the frames that are compared.
      mesh: the devices.
    """

    tracks: tuple[Track, ...]
    grid: FrameGrid
    mesh: Mesh

    def of_piece(self, piece: Piece) -> PieceRows:
        """The rows of all frames of a piece; for any thread."""
        centres = self.grid.frame_centres_seconds(int(self.grid.frames(len(piece.samples))))
        return tuple(track.rows(piece, centres) for track in self.tracks)

    def of_batch(self, batch: Batch, frames: int) -> list[Activations]:
        """A batch as "hidden states" [1, batch, frame, number] of each track.

        Args:
          batch: to which `of_piece` was attached.
          frames: of each utterance, padding included.
        """
        found: list[Activations] = []
        if not self.tracks:
            return found
        shape = len(batch.lengths), frames
        counts = self.grid.frames(batch.lengths)
        mask = place_frames((np.arange(frames) < counts[:, None])[None], self.mesh)[0]
        for k, track in enumerate(self.tracks):
            pieces = [rows[k] for rows in batch.attached]
            if track.classes:
                numbers = place_frames(_padded(pieces, shape, -1, np.int32), self.mesh)
                rows = _indicators(numbers, track.width)
            else:
                rows = place_frames(
                    _padded(pieces, (*shape, track.width), 0, np.float32), self.mesh
                )
            found.append(Activations(rows, mask))
        return found


def _padded(
    pieces: Sequence[np.ndarray], shape: tuple[int, ...], missing: int, dtype: type
) -> np.ndarray:
    """The rows of all pieces in one array [1, batch, frame, ...]."""
    padded = np.full((1, *shape), missing, dtype)
    for row, piece in enumerate(pieces):
        padded[0, row, : len(piece)] = piece
    return padded


@functools.partial(jax.jit, static_argnums=1)
def _indicators(
    numbers: Int32[Array, "1 batch frame"], classes: int
) -> Float32[Array, "1 batch frame class"]:
    """1 in the column of each frame's class; no class, no 1."""
    return jax.nn.one_hot(numbers, classes, dtype=np.float32)
