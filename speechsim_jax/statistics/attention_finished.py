"""Attention sums at the end of a pass: as a stored state, and finished for the measures."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import attention_sums, moments
from speechsim_jax.statistics.accumulator import LayerIndex, all_layers
from speechsim_jax.statistics.attention_sums import BASELINES, AttentionSums
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_finished import FinishedMoments


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionState:
    """Attention sums at the end of a pass, in float64 on the host, lost digits added: a `State`.

    Attributes:
      shapes: layers and heads (as `neurons`) of every model.
      needed: names of the sums that were computed.
      dtype: type of the sums while they were accumulated.
      sums: over the utterances of each group.
      lengths: frames of each utterance.
      groups: of each utterance, from 0 on; standard errors leave out one at a time.
    """

    kind: ClassVar[str] = "attention"

    shapes: tuple[ModelShape, ...]
    needed: tuple[str, ...]
    dtype: str
    sums: AttentionSums
    lengths: tuple[int, ...]
    groups: tuple[int, ...]

    def save(self, folder: Path) -> None:
        """Write sums-NUMBER.npy and state.json."""
        for number, leaf in enumerate(jax.tree.leaves(self.sums)):
            np.save(folder / f"sums-{number}.npy", leaf)
        record = {
            "shapes": [dataclasses.astuple(shape) for shape in self.shapes],
            "needed": self.needed,
            "dtype": self.dtype,
            "lengths": self.lengths,
            "groups": self.groups,
        }
        (folder / "state.json").write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path) -> "AttentionState":
        """Read what `save` wrote."""
        record = json.loads((folder / "state.json").read_text())
        structure = jax.tree.structure(attention_sums.zero(1))
        leaves = [np.load(folder / f"sums-{k}.npy") for k in range(structure.num_leaves)]
        return cls(
            shapes=tuple(ModelShape(*shape) for shape in record["shapes"]),
            needed=tuple(record["needed"]),
            dtype=record["dtype"],
            sums=jax.tree.unflatten(structure, leaves),
            lengths=tuple(record["lengths"]),
            groups=tuple(record["groups"]),
        )

    def merge(self, others: Sequence["AttentionState"]) -> "AttentionState":
        """The sums over the utterances of all states, group by group.

        Raises:
          UserError: states of other heads or sums.
        """
        return functools.reduce(_merge_two, others, self)

    def finish(
        self, others: Sequence["AttentionState"] = (), rank_tolerance: float | None = None
    ) -> "FinishedAttention":
        """Divide the sums: means over utterances, rows and cells.

        Args:
          others: must be empty: attention is read in a single pass.
          rank_tolerance: as in `Settings`.

        Raises:
          UserError: no utterance was added.
        """
        assert not others, "attention is read in a single pass"
        if not self.lengths:
            raise UserError(
                "attention: none of the utterances chosen for it could be used; raise "
                "attention_max_seconds or choose another seed"
            )
        counts = np.array(self.lengths, np.int64)
        # Pearson's r skips utterances of one frame.
        longer = int(counts[counts > 1].sum())
        divide_by = {
            "distance": len(counts),
            "distance_norm": len(counts),
            "divergence": int(counts.sum()),
            "correlation": longer or np.nan,
            "correlation_paper": longer or np.nan,
        }

        def means(pairs: attention_sums.PairSums) -> MapMeans:
            return MapMeans(**{name: getattr(pairs, name) / n for name, n in divide_by.items()})

        sums = jax.tree.map(lambda x: x.sum(axis=0), self.sums)
        divergence = _unrolled(np.asarray(sums.heads.divergence))
        square = dataclasses.replace(sums.heads, divergence=divergence)
        ends = np.cumsum([0] + [s.neurons for s in self.shapes for _ in range(s.layers)])
        heads = tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))
        gram = np.asarray(sums.gram)
        return FinishedAttention(
            heads=heads,
            means=means(square),
            baselines=means(sums.baselines),
            moments=_moments(gram, heads, self.shapes, counts, self.dtype, rank_tolerance),
            utterances=len(counts),
            frames=int(counts.sum()),
            state=self,
            rank_tolerance=rank_tolerance,
        )

    def without(self, group: int) -> "AttentionState":
        """The state of all other groups, together."""
        rest = jax.tree.map(lambda x: np.delete(x, group, axis=0).sum(axis=0)[None], self.sums)
        lengths = tuple(n for n, g in zip(self.lengths, self.groups) if g != group)
        return dataclasses.replace(self, sums=rest, lengths=lengths, groups=(0,) * len(lengths))


def _merge_two(a: AttentionState, b: AttentionState) -> AttentionState:
    for field in ("shapes", "needed", "dtype"):
        if getattr(a, field) != getattr(b, field):
            raise UserError(
                f"attention sums differ in their {field} ({getattr(a, field)} and "
                f"{getattr(b, field)}); only those of the same models and measures can be merged"
            )
    sums = jax.tree.map(_add_groups, a.sums, b.sums)
    return dataclasses.replace(
        a, sums=sums, lengths=a.lengths + b.lengths, groups=a.groups + b.groups
    )


def _add_groups(
    a: Float[np.ndarray, "_groups *each"], b: Float[np.ndarray, "_groups *each"]
) -> Float[np.ndarray, "_groups *each"]:
    """The sums of each group; one job may have more groups than the other."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


@dataclasses.dataclass(frozen=True)
class MapMeans:
    """How far apart maps are, [x, y] of heads or [baseline, head].

    Attributes:
      distance: mean over utterances of ||A - B||_F.
      distance_norm: mean over utterances of ||A - B||_F / sqrt(2 T).
      divergence: mean over rows of the Jensen-Shannon divergence in nats.
      correlation: mean over rows of Pearson's r; utterances of one frame are left out (NaN if
        there are no others).
      correlation_paper: the same with a factor (T - 1) / T.
    """

    distance: Float[np.ndarray, "_ _"]
    distance_norm: Float[np.ndarray, "_ _"]
    divergence: Float[np.ndarray, "_ _"]
    correlation: Float[np.ndarray, "_ _"]
    correlation_paper: Float[np.ndarray, "_ _"]

    def at(self, *index: slice) -> "MapMeans":
        """Every array at this index."""
        fields = dataclasses.fields(self)
        return MapMeans(**{field.name: getattr(self, field.name)[index] for field in fields})


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedAttention:
    """Means over maps, and the moments of their cells.

    Attributes:
      heads: where each representation's heads are on the axes of `means`.
      means: of all pairs of heads.
      baselines: of each head against `attention_sums.BASELINES`.
      moments: all cells of all maps as rows, heads as neurons.
      utterances: number of those whose attention was read.
      frames: number of their frames.
      state: the sums that these are means of.
      rank_tolerance: of `moments`.
    """

    heads: tuple[slice, ...]
    means: MapMeans
    baselines: MapMeans
    moments: FinishedMoments
    utterances: int
    frames: int
    state: AttentionState
    rank_tolerance: float | None

    @property
    def group_frames(self) -> dict[int, int]:
        """Frames of each group that has any."""
        frames = np.bincount(self.state.groups, weights=self.state.lengths)
        return {group: int(count) for group, count in enumerate(frames) if count}

    def without(self, group: int) -> "FinishedAttention":
        """The same over the utterances of all other groups."""
        return self.state.without(group).finish((), self.rank_tolerance)

    @property
    def representations(self) -> tuple[slice, ...]:
        """One entry a representation: its heads."""
        return self.heads

    @property
    def coordinates(self) -> dict[str, np.ndarray]:
        """Labels of the dimension `baseline` of details."""
        return {"baseline": np.array(BASELINES, dtype=object)}


def _unrolled(divergence: Float[np.ndarray, "head step"]) -> Float[np.ndarray, "head head"]:
    """[head, steps around the circle] -> [head, head]."""
    heads, around = divergence.shape
    square = np.zeros((heads, heads))
    head = np.arange(heads)
    for step in range(around):
        other = (head + 1 + step) % heads
        square[head, other] = square[other, head] = divergence[:, step]
    np.fill_diagonal(square, 0)
    return square


def _moments(
    gram: Float[np.ndarray, "head head"],
    heads: tuple[slice, ...],
    shapes: tuple[ModelShape, ...],
    counts: Int[np.ndarray, " utterance"],
    dtype: str,
    rank_tolerance: float | None,
) -> FinishedMoments:
    """The moments of all cells, from sums over cells of (a - 1/T) (b - 1/T).

    Rows of a map sum to 1, so that the sum of an utterance's cells is T, the sum of a b over them
    is that of (a - 1/T) (b - 1/T) plus 1, and with n = sum T^2 cells

        S_ab = gram + utterances - (sum T)^2 / n
    """
    cells, total = int(np.square(counts).sum()), int(counts.sum())
    scatter = gram + len(counts) - total**2 / cells
    empty = moments.zero(shapes)
    place: dict[LayerIndex, slice] = dict(zip(all_layers(shapes), heads))
    cross = tuple(
        np.stack([scatter[place[tile.a, l], place[tile.b, m]][None] for l, m in tile.pairs])
        for tile in empty.tiles
    )

    def zeros(x: Array) -> np.ndarray:
        return np.zeros(x.shape)

    # Its dtype decides what counts as rounding: which heads are constant, which directions remain.
    mean = tuple(
        np.stack([np.full(p.shape[1:], total / cells), zeros(p[0])]) for p in empty.reference
    )
    state = dataclasses.replace(
        empty,
        count=moments.as_count(cells),
        reference=tuple(reference.astype(dtype) for reference in mean),
        sums=dataclasses.replace(jax.tree.map(zeros, empty.sums), cross=cross),
    )
    return FinishedMoments(state, rank_tolerance)
