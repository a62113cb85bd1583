"""Which frames of a batch are compared, and which are averaged to one row."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Int64

from speechsim_jax.array_types import HiddenStates
from speechsim_jax.audio.alignments import Segments
from speechsim_jax.audio.batching import Batch
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.models.architecture import Activations
from speechsim_jax.pipeline.frame_grid import FrameGrid
from speechsim_jax.statistics.accumulator import BatchRows


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSelection:
    """What a batch contributes to the statistics.

    Attributes:
      rows: the rows.
      frames: how many enter.
      into: for each frame of the flattened [batch * frame] axis the frame at whose position the
        mean of its utterance or segment is put (one past the end: it enters no mean); None where
        frames are not pooled.
    """

    rows: BatchRows
    frames: int
    into: Int32[np.ndarray, " flat"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class FrameChoice:
    """Every `stride`-th frame, but none whose label is dropped; pooled by utterance or segment.

    A frame belongs to the segment [start, end) that contains its centre. With `pool` "segment",
    frames in no segment are left out and a segment without a frame has no row; otherwise frames in
    no segment are kept. Pieces of a long utterance are pooled each by itself. Piece k starts at k
    times its own length, which is exact to k samples.

    Attributes:
      grid: the frames that are compared.
      ids: the utterances, before long ones are cut.
      stride: every how many frames of an utterance one is chosen.
      pool: what is averaged to one row.
      segments: of each utterance; None without alignments.
      drop_labels: labels of segments whose frames are left out.
    """

    grid: FrameGrid
    ids: frozenset[str]
    stride: int = 1
    pool: Literal["none", "utterance", "segment"] = "none"
    segments: Mapping[str, Segments] | None = None
    drop_labels: tuple[str, ...] = ()

    def of(self, batch: Batch, frames: int) -> FrameSelection:
        """The rows of a batch.

        Args:
          batch: the batch.
          frames: of each utterance, padding included.
        """
        counts = self.grid.frames(batch.lengths)
        time = np.arange(frames)
        chosen = (time < counts[:, None]) & (time % self.stride == 0)
        names = [self._utterance(id_) for id_ in batch.ids]
        group = np.tile(time, (len(chosen), 1))
        if self.pool == "utterance":
            group[:] = 0
        if self.segments is not None:
            for row, (name, piece) in enumerate(names):
                segments = self.segments[name]
                start_seconds = piece * int(batch.lengths[row]) / SAMPLE_RATE_HZ
                segment = segments.at(start_seconds + self.grid.frame_centres_seconds(frames))
                dropped = [
                    k for k, label in enumerate(segments.labels) if label in self.drop_labels
                ]
                chosen[row] &= ~np.isin(segment, dropped)
                if self.pool == "segment":
                    chosen[row] &= segment >= 0
                    group[row] = segment
        positions = np.flatnonzero(chosen)
        utterance, number = positions // frames, group.reshape(-1)[positions]
        first = _starts(utterance, number)
        rows = BatchRows(
            positions=positions[first],
            utterance=utterance[first],
            number=number[first],
            ids=batch.ids,
            utterances=tuple(name for name, _ in names),
            starts=tuple(piece * int(n) for (_, piece), n in zip(names, batch.lengths)),
        )
        if self.pool == "none":
            return FrameSelection(rows, len(positions), None)
        into = np.full(chosen.size, chosen.size, np.int32)
        into[positions] = rows.positions[np.cumsum(first) - 1]
        return FrameSelection(rows, len(positions), into)

    def _utterance(self, id_: str) -> tuple[str, int]:
        """The utterance that a batch's id names, and which piece of it."""
        if id_ in self.ids:
            return id_, 0
        utterance, _, piece = id_.rpartition("#")
        return utterance, int(piece)


def _starts(utterance: Int64[np.ndarray, " row"], number: Int64[np.ndarray, " row"]) -> np.ndarray:
    """Whether a frame is the first of its group; a group's frames follow each other."""
    changed = (np.diff(utterance) != 0) | (np.diff(number) != 0)
    return np.concatenate([np.ones(min(1, len(utterance)), bool), changed])


def pooled(activations: Activations, chosen: FrameSelection) -> Activations:
    """The activations with hidden states averaged as chosen; attention is not pooled."""
    if chosen.into is None:
        return activations
    return dataclasses.replace(
        activations, hidden_states=_means(activations.hidden_states, chosen.into)
    )


@jax.jit
def _means(hidden: HiddenStates, into: Int32[Array | np.ndarray, " flat"]) -> HiddenStates:
    """At each position that frames go into, their mean; the shape stays, the rest is undefined.

    The sums are of differences from the frame at that position: no digits are lost to a large
    mean, and the mean of a constant neuron is exactly its value.
    """
    into = jnp.asarray(into)
    size = into.shape[0]
    count = jax.ops.segment_sum(jnp.ones(size, hidden.dtype), into, size)

    def mean(frames: Float[Array, "flat neuron"]) -> Float[Array, "flat neuron"]:
        differences = frames - jnp.take(frames, into, axis=0, mode="clip")
        total = jax.ops.segment_sum(differences, into, size)
        return frames + total / jnp.maximum(count, 1)[:, None]

    flat = hidden.reshape(hidden.shape[0], size, hidden.shape[-1])
    return jax.vmap(mean)(flat).reshape(hidden.shape)
