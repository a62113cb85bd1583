"""Influences of all rows of a second reading, summed over clusters: no rows are kept."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from speechsim_jax.inference.influence_rows import RepresentationRows
from speechsim_jax.inference.influence_table import InfluenceTable
from speechsim_jax.inference.standard_errors import SampledClusters, error_of_sums
from speechsim_jax.measures.base import Measure, PairRows, RepresentationPair
from speechsim_jax.measures.influences import influences_of_rows
from speechsim_jax.measures.scoring import pair_blocks
from speechsim_jax.statistics.linalg import map_in_threads
from speechsim_jax.statistics.moments_finished import FinishedMoments, MomentsState

# Rows of all representations are gathered up to this size, then evaluated together.
_CHUNK_BYTES = 2**29
_MOST_ROWS = 2**16
# Memory for what two blocks of representations derive from a chunk: z-scored and whitened rows.
_DERIVED_BYTES = 2**29
# Pairs are kept from chunk to chunk while the matrices that measures derive from them, about eight
# of [x, y] in float64, fit into this.
_PAIRS_BYTES, _MATRICES = 2**30, 8


class ReadInfluence(NamedTuple):
    """What a second reading gives.

    Attributes:
      table: the mean influence of every cluster, one entry each.
      errors: standard errors, by measure, [x, y].
      rows: how many were evaluated.
    """

    table: InfluenceTable
    errors: dict[str, Float64[np.ndarray, "x y"]]
    rows: int


class InfluenceSums:
    """Adds up the influences of rows on all scores of measures of moments, by cluster.

    On the host: the sums, 8 bytes for every cluster, measure and (x, y), and a chunk of rows.

    Args:
      moments: finished, over the same rows.
      measures: that have influences.
    """

    def __init__(self, moments: FinishedMoments, measures: Sequence[Measure]):
        self._moments = moments
        self._measures = tuple(
            m for m in measures if m.influence is not None and m.statistic == MomentsState.kind
        )
        self._shape = (len(self._measures), *(len(moments.representations),) * 2)
        self._place: dict[str, int] = {}
        self._counts = np.zeros((2, 0), np.int64)  # of each cluster, all rows and those added
        self._sums = np.zeros((0, *self._shape))
        self._waiting: list[tuple[list[np.ndarray], np.ndarray]] = []
        widths = [r.width for r in moments.representations]
        self._chunk = min(max(_CHUNK_BYTES // (4 * sum(widths)), 64), _MOST_ROWS)
        self._pairs: dict[tuple[int, int], RepresentationPair] | None = None
        if _MATRICES * 8 * sum(widths) ** 2 / 2 <= _PAIRS_BYTES:
            self._pairs = {}

    def add(
        self,
        rows: Sequence[Float[np.ndarray, "taken _neuron"]],
        clusters: Shaped[np.ndarray, " row"],
        taken: Int64[np.ndarray, " taken"] | None = None,
    ) -> None:
        """Add rows.

        Args:
          rows: of each representation, those whose influences are computed.
          clusters: name of the cluster of each row, of others too that are counted only.
          taken: which of these `rows` are; all by default.
        """
        places = self._places(clusters)
        if taken is None:
            taken = np.arange(len(places))
        self._counts[0] += np.bincount(places, minlength=len(self._place))
        self._counts[1] += np.bincount(places[taken], minlength=len(self._place))
        for start in range(0, len(taken), self._chunk):
            part = slice(start, start + self._chunk)
            self._waiting.append(([x[part] for x in rows], places[taken[part]]))
            if sum(len(p) for _, p in self._waiting) >= self._chunk:
                self.flush()

    def _places(self, clusters: Shaped[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Where the sums of each row's cluster are."""
        names, index = np.unique(clusters.astype(str), return_inverse=True)
        new = [name for name in names.tolist() if name not in self._place]
        self._place |= {name: len(self._place) + k for k, name in enumerate(new)}
        self._counts = np.pad(self._counts, ((0, 0), (0, len(new))))
        if len(self._place) > len(self._sums):
            more = max(len(self._place), 2 * len(self._sums)) - len(self._sums)
            self._sums = np.concatenate([self._sums, np.zeros((more, *self._shape))])
        return np.array([self._place[name] for name in names.tolist()], np.int64)[index]

    def flush(self) -> None:
        """Evaluate the rows that wait for others."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        places = np.concatenate([places for _, places in waiting])
        order = np.argsort(places, kind="stable")
        found, starts = np.unique(places[order], return_index=True)
        moments = self._moments.representations
        rows = [
            RepresentationRows(r, np.concatenate(parts)[order])
            for r, parts in zip(moments, zip(*(parts for parts, _ in waiting)), strict=True)
        ]
        live = [r.live.any() for r in moments]

        def add(pair: tuple[int, int]) -> None:
            i, j = pair
            for k, x, y, influence in self._influences(i, j, PairRows(rows[i], rows[j])):
                self._sums[found, k, x, y] += np.add.reduceat(influence.astype(np.float64), starts)

        blocks = pair_blocks(len(rows), max(r.cache_bytes for r in rows), _DERIVED_BYTES)
        for a, b in blocks:
            pairs = [(i, j) for i in a for j in b if i < j and live[i] and live[j]]
            pairs = [(i, j) for i, j in pairs if self._moments.has(moments[i], moments[j])]
            for _ in map_in_threads(add, pairs):
                pass
            for index, of_one in enumerate(rows):
                if index not in a:
                    of_one.release()

    def _influences(self, i: int, j: int, rows: PairRows) -> Any:
        """Measure, x, y and influences of the rows, for both orders of a pair."""
        pair = self._pairs.get((i, j)) if self._pairs is not None else None
        if pair is None:
            of = self._moments.representations
            pair = RepresentationPair(self._moments, of[i], of[j])
            if self._pairs is not None:
                self._pairs[i, j] = pair
        found = influences_of_rows(self._measures, pair, rows)
        asymmetric = [measure for measure in self._measures if not measure.symmetric]
        swapped = found | influences_of_rows(asymmetric, pair.swapped, PairRows(rows.y, rows.x))
        for k, name in enumerate(self.names):
            yield k, i, j, found[name]
            yield k, j, i, swapped[name]

    def snapshot(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        self.flush()
        return {
            "measures": self.names,
            "clusters": list(self._place),
            "counts": self._counts.copy(),
            "sums": self._sums[: len(self._place)].copy(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of sums of the same measures."""
        assert snapshot["measures"] == self.names
        self._place = {name: k for k, name in enumerate(snapshot["clusters"])}
        self._counts = snapshot["counts"]
        self._sums = snapshot["sums"]

    @property
    def names(self) -> list[str]:
        """Of the measures."""
        return [measure.name for measure in self._measures]

    @property
    def rows(self) -> int:
        """All rows that were added or counted."""
        return int(self._counts[0].sum())

    @property
    def expected_rows(self) -> int:
        """Those of the moments."""
        return self._moments.rows

    def result(self) -> ReadInfluence:
        """Influences and standard errors, of everything that was added."""
        self.flush()
        order = np.argsort(list(self._place))
        names = np.array(list(self._place), object)[order]
        rows, kept = self._counts[:, order]
        clusters = SampledClusters.whole(tuple(names), rows)
        means = self._sums[order] / np.maximum(kept, 1)[:, None, None, None]
        share = (rows / max(int(rows.sum()), 1))[:, None, None]
        errors, values = {}, {}
        for k, measure in enumerate(self._measures):
            values[measure.name] = means[:, k].astype(np.float32)
            errors[measure.name] = error_of_sums(means[:, k] * share)
        return ReadInfluence(InfluenceTable(clusters, "rows", values), errors, int(kept.sum()))
