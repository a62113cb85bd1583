"""TODO."""

import dataclasses
import itertools

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import attention_sums, moments
from speechsim_jax.statistics.attention_sums import AttentionSums
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_finished import FinishedMoments


@dataclasses.dataclass(frozen=True, eq=False)
class HeadSums:
    """Attention sums at the end of the stream, in float64 on the host, lost digits added in.

    `lengths`: frames of each utterance. `dtype`: of the sums while they were added up.
    """

    streams: tuple[ModelShape, ...]
    wanted: tuple[str, ...]
    dtype: str
    sums: AttentionSums
    lengths: tuple[int, ...]


def merge_attention(a: HeadSums, b: HeadSums) -> HeadSums:
    """The sums over the utterances of both; raises UserError unless they are of the same heads."""
    for what in ("streams", "wanted", "dtype"):
        if getattr(a, what) != getattr(b, what):
            raise UserError(
                f"attention sums differ in their {what} ({getattr(a, what)} and "
                f"{getattr(b, what)}); only those of the same models and measures can be merged"
            )
    sums = jax.tree.map(np.add, a.sums, b.sums)
    return dataclasses.replace(a, sums=sums, lengths=a.lengths + b.lengths)


@dataclasses.dataclass(frozen=True)
class MapMeans:
    """How far apart maps are, [x, y] of heads or [baseline, head].

    `distance`: mean over utterances of ||A - B||_F, `distance_norm` of ||A - B||_F / sqrt(2 T).
    `divergence`: mean over rows of the Jensen-Shannon divergence in nats. `correlation`: mean over
    rows of Pearson's r, `correlation_paper` with a factor (T - 1) / T; utterances of one frame are
    left out of both (NaN if there are no others).
    """

    distance: Float[np.ndarray, "_ _"]
    distance_norm: Float[np.ndarray, "_ _"]
    divergence: Float[np.ndarray, "_ _"]
    correlation: Float[np.ndarray, "_ _"]
    correlation_paper: Float[np.ndarray, "_ _"]


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedAttention:
    """Attention sums at the end of the stream.

    `heads`: where each representation's heads are on the axes of `means`. `moments`: all cells of
    all maps as rows, heads as neurons. `baselines`: each head against `attention.BASELINES`.
    """

    heads: tuple[slice, ...]
    means: MapMeans
    baselines: MapMeans
    moments: FinishedMoments
    utterances: int
    frames: int


def finish_attention(found: HeadSums, rank_tolerance: float | None = None) -> FinishedAttention:
    """Sums over utterances -> means."""
    sums, streams = found.sums, found.streams
    counts = np.array(found.lengths, np.int64)
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

    divergence = _unrolled(np.asarray(sums.heads.divergence))
    square = dataclasses.replace(sums.heads, divergence=divergence)
    ends = np.cumsum([0] + [s.neurons for s in streams for _ in range(s.layers)])
    heads = tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))
    return FinishedAttention(
        heads=heads,
        means=means(square),
        baselines=means(sums.baselines),
        moments=_moments(
            np.asarray(sums.gram), heads, streams, counts, found.dtype, rank_tolerance
        ),
        utterances=len(counts),
        frames=int(counts.sum()),
    )


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
    streams: tuple[ModelShape, ...],
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
    empty = moments.zero(streams)
    place = {}
    for representation, where in zip(_representations(streams), heads):
        place[representation] = where
    cross = tuple(
        np.stack([scatter[place[tile.a, l], place[tile.b, m]][None] for l, m in tile.pairs])
        for tile in empty.tiles
    )

    def zeros(x: Array) -> np.ndarray:
        return np.zeros(x.shape)

    # Its dtype tells what is rounding: which heads are constant, which directions are kept.
    mean = tuple(np.stack([np.full(p.shape[1:], total / cells), zeros(p[0])]) for p in empty.pilot)
    state = dataclasses.replace(
        empty,
        count=moments.as_count(cells),
        pilot=tuple(pilot.astype(dtype) for pilot in mean),
        sums=dataclasses.replace(jax.tree.map(zeros, empty.sums), cross=cross),
    )
    return FinishedMoments(state, rank_tolerance)


def _representations(streams: tuple[ModelShape, ...]) -> list[tuple[int, int]]:
    return [(i, layer) for i, stream in enumerate(streams) for layer in range(stream.layers)]
