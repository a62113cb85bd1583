"""The attention sums of a whole stream, and what measures read at its end."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from speechsim_jax.statistics import attention, moments
from speechsim_jax.statistics.attention import AttentionSums, Rows
from speechsim_jax.statistics.finished import FinishedMoments
from speechsim_jax.statistics.moments import Stream
from speechsim_jax.statistics.rows import x64

Parts = Any
"""A pytree that maps are made of: queries and keys, or the maps themselves."""

MakeRows = Callable[[Parts, Int[Array, ""], Int[Array, " row"]], Rows]
"""(parts, utterance of the batch, queries) -> rows of the maps of all heads."""


class AttentionStream:
    """Adds the attention of batches to `AttentionSums`; only the sums stay.

    `streams`: layers and heads (as `neurons`) of every model, in the order of the heads that
    `make_rows` gives. `wanted`: the sums that are needed (`attention.update`).
    """

    def __init__(
        self,
        streams: tuple[Stream, ...],
        make_rows: MakeRows,
        wanted: tuple[str, ...],
        stats_dtype: str = "float32",
    ):
        self._streams, self._dtype = streams, stats_dtype
        # A function of its own, so that its compilations end with it.
        self._update = jax.jit(
            functools.partial(_update, make_rows, wanted),
            static_argnames="frames",
            donate_argnums=0,
        )
        self._lengths: list[int] = []
        with x64(stats_dtype == "float64"):
            self._state = attention.zero(sum(s.layers * s.neurons for s in streams), stats_dtype)

    @property
    def utterances(self) -> int:
        """Utterances added so far."""
        return len(self._lengths)

    def append(self, parts: Parts, lengths: Int[np.ndarray, " batch"], frames: int) -> None:
        """Add a batch of utterances of `lengths` frames (0 for a filler), padded to `frames`."""
        with x64(self._dtype == "float64"):
            self._state = self._update(
                self._state, parts, jnp.asarray(lengths, jnp.int32), frames=frames
            )
        self._lengths += [int(length) for length in lengths if length]

    def wait(self) -> None:
        """Block until everything appended so far has been computed."""
        jax.block_until_ready(self._state)

    def finish(self, rank_tolerance: float | None = None) -> "FinishedAttention":
        """The finished statistic, on the host in float64."""
        state = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(axis=0), self._state)
        return finished(state, self._streams, self._lengths, self._dtype, rank_tolerance)


def _update(
    make_rows: MakeRows,
    wanted: tuple[str, ...],
    state: AttentionSums,
    parts: Parts,
    lengths: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    return attention.update(state, functools.partial(make_rows, parts), lengths, frames, wanted)


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

    `heads`: where each network's heads are on the axes of `means`. `moments`: all cells of all maps
    as rows, heads as neurons. `baselines`: each head against `attention.BASELINES`.
    """

    heads: tuple[slice, ...]
    means: MapMeans
    baselines: MapMeans
    moments: FinishedMoments
    utterances: int
    frames: int


def finished(
    sums: AttentionSums,
    streams: tuple[Stream, ...],
    lengths: list[int],
    dtype: str,
    rank_tolerance: float | None = None,
) -> FinishedAttention:
    """Sums (float64, lost digits added in) over utterances of `lengths` frames -> means."""
    counts = np.array(lengths, np.int64)
    # Pearson's r skips utterances of one frame.
    longer = int(counts[counts > 1].sum())
    divide_by = {
        "distance": len(counts),
        "distance_norm": len(counts),
        "divergence": int(counts.sum()),
        "correlation": longer or np.nan,
        "correlation_paper": longer or np.nan,
    }

    def means(found: attention.PairSums) -> MapMeans:
        return MapMeans(**{name: getattr(found, name) / n for name, n in divide_by.items()})

    divergence = _unrolled(np.asarray(sums.heads.divergence))
    square = dataclasses.replace(sums.heads, divergence=divergence)
    ends = np.cumsum([0] + [s.neurons for s in streams for _ in range(s.layers)])
    heads = tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))
    return FinishedAttention(
        heads=heads,
        means=means(square),
        baselines=means(sums.baselines),
        moments=_moments(np.asarray(sums.gram), heads, streams, counts, dtype, rank_tolerance),
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
    streams: tuple[Stream, ...],
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
    for network, where in zip(_networks(streams), heads):
        place[network] = where
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


def _networks(streams: tuple[Stream, ...]) -> list[tuple[int, int]]:
    return [(i, layer) for i, stream in enumerate(streams) for layer in range(stream.layers)]
