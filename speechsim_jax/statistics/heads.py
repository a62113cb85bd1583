"""The attention sums of a whole stream, and what measures read at its end."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import attention, moments, programs
from speechsim_jax.statistics.attention import AttentionSums, Rows
from speechsim_jax.statistics.finished import FinishedMoments
from speechsim_jax.statistics.moments import Stream
from speechsim_jax.statistics.programs import AXES
from speechsim_jax.statistics.rows import Snapshot, x64

Parts = Any
"""A pytree that maps are made of: queries and keys, or the maps themselves."""

MakeRows = Callable[[Parts, Int[Array, ""], Int[Array, " row"]], Rows]
"""(parts, utterance of the batch, queries) -> rows of the maps of all heads."""


class AttentionStream:
    """Adds the attention of batches to `AttentionSums`; only the sums stay.

    `streams`: layers and heads (as `neurons`) of every model, in the order of the heads that
    `make_rows` gives. `wanted`: the sums that are needed (`attention.update`). On a `mesh` every
    device adds its own utterances of a batch to its own sums, which lie side by side as more parts;
    `batch_axis` names, by field, the axis of the parts that is divided: the first where it does not
    say, none for None.
    """

    def __init__(
        self,
        streams: tuple[Stream, ...],
        make_rows: MakeRows,
        wanted: tuple[str, ...],
        stats_dtype: str = "float32",
        mesh: Mesh | None = None,
        batch_axis: Mapping[str, int | None] = {},
    ):
        self._streams, self._wanted, self._dtype = streams, wanted, stats_dtype
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self._update = _program(make_rows, wanted, self._mesh, tuple(batch_axis.items()))
        self._lengths: list[int] = []
        with x64(stats_dtype == "float64"):
            self._state = attention.zero(sum(s.layers * s.neurons for s in streams), stats_dtype)
            if self._mesh is not None:
                self._state = self._placed(jax.tree.map(np.asarray, self._state))

    def _placed(self, state: AttentionSums) -> AttentionSums:
        """A state on the host, of as many devices as it was made on, on the devices there are."""
        devices = 1 if self._mesh is None else self._mesh.size
        if len(state.gram) != 2 * devices:
            state = jax.tree.map(lambda x: programs.first_of(x, devices), state)
        if self._mesh is None:
            return jax.tree.map(jnp.array, state)
        layout = NamedSharding(self._mesh, P(AXES))
        return jax.tree.map(lambda x: jax.device_put(x, layout), state)

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

    def snapshot(self) -> Snapshot:
        """Everything that `restore` needs; the stream may go on."""
        return {
            "kind": self._kind(),
            "lengths": list(self._lengths),
            "state": [np.asarray(x) for x in jax.tree.leaves(self._state)],
        }

    def _kind(self) -> str:
        """What streams must share for one to go on with the other's snapshot."""
        return repr((self._streams, self._wanted, self._dtype))

    def restore(self, found: Snapshot) -> None:
        """Go on where `snapshot` was taken, on this number of devices or another.

        Raises UserError for a snapshot of other heads, sums or precision.
        """
        if found["kind"] != self._kind():
            raise UserError(
                "the snapshot is of other attention heads, sums or numbers than this stream; start "
                "anew, or with what it was made with"
            )
        state = jax.tree.unflatten(jax.tree.structure(self._state), found["state"])
        with x64(self._dtype == "float64"):
            self._state = self._placed(state)
        self._lengths = list(found["lengths"])

    def close(self) -> "HeadSums":
        """What was added, on the host; the stream is used up."""
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(axis=0), self._state)
        return HeadSums(self._streams, self._wanted, self._dtype, sums, tuple(self._lengths))

    def finish(self, rank_tolerance: float | None = None) -> "FinishedAttention":
        """The finished statistic."""
        return finished(self.close(), rank_tolerance)


@functools.lru_cache(maxsize=16)
def _program(
    make_rows: MakeRows,
    wanted: tuple[str, ...],
    mesh: Mesh | None,
    batch_axis: tuple[tuple[str, int | None], ...],
) -> Callable[..., AttentionSums]:
    """What adds a batch to the sums; streams of the same maps share what is compiled."""
    update = functools.partial(_update, make_rows, wanted)
    if mesh is not None:
        update = functools.partial(_update_on_mesh, mesh, dict(batch_axis), update)
    return jax.jit(update, static_argnames="frames", donate_argnums=0)


def _update(
    make_rows: MakeRows,
    wanted: tuple[str, ...],
    state: AttentionSums,
    parts: Parts,
    lengths: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    return attention.update(state, functools.partial(make_rows, parts), lengths, frames, wanted)


def _update_on_mesh(
    mesh: Mesh,
    batch_axis: Mapping[str, int | None],
    update: Callable[..., AttentionSums],
    state: AttentionSums,
    parts: Parts,
    lengths: Int[Array, " batch"],
    frames: int,
) -> AttentionSums:
    """`update` on every device, of its own sums by its own utterances."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(parts)

    def layout(path: tuple) -> P:
        axis = batch_axis.get(getattr(path[-1], "name", ""), 0) if path else 0
        return P() if axis is None else P(*(None,) * axis, AXES)

    def own(state: AttentionSums, leaves: list[Array], lengths: Array) -> AttentionSums:
        return update(state, jax.tree.unflatten(structure, leaves), lengths, frames=frames)

    layouts = [layout(path) for path, _ in leaves]
    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(P(AXES), layouts, P(AXES)),
        out_specs=P(AXES),
        check_vma=False,
    )
    return mapped(state, [leaf for _, leaf in leaves], lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadSums:
    """Attention sums at the end of the stream, in float64 on the host, lost digits added in.

    `lengths`: frames of each utterance. `dtype`: of the sums while they were added up.
    """

    streams: tuple[Stream, ...]
    wanted: tuple[str, ...]
    dtype: str
    sums: AttentionSums
    lengths: tuple[int, ...]


def merge(a: HeadSums, b: HeadSums) -> HeadSums:
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

    `heads`: where each network's heads are on the axes of `means`. `moments`: all cells of all maps
    as rows, heads as neurons. `baselines`: each head against `attention.BASELINES`.
    """

    heads: tuple[slice, ...]
    means: MapMeans
    baselines: MapMeans
    moments: FinishedMoments
    utterances: int
    frames: int


def finished(found: HeadSums, rank_tolerance: float | None = None) -> FinishedAttention:
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

    def means(pairs: attention.PairSums) -> MapMeans:
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
