"""A second reading of the audio, after the moments are finished: influences of all its rows.

It runs every model once more, with all compared layers at once, and sums the influences of rows
over clusters (`measures.influence_sums`). No rows are kept, so that its memory does not depend on
the amount of audio.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from speechsim_jax.array_types import Lengths
from speechsim_jax.errors import UserError
from speechsim_jax.measures.influence_sums import InfluenceSums, ReadInfluence
from speechsim_jax.models.architecture import Activations
from speechsim_jax.pipeline import costs
from speechsim_jax.pipeline.job_folder import ShardFolder
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts, read_all_layers
from speechsim_jax.pipeline.plan import Pass
from speechsim_jax.statistics.accumulator import BatchRows

Residuals = Callable[[list[np.ndarray]], list[np.ndarray]]


class _RowSums:
    """Takes the rows of each batch to the host and adds their influences.

    Args:
      sums: what they are added to.
      residuals: what is left of the rows of each representation where some are given.
      clusters: utterance -> cluster.
      stride: every so many rows of an utterance are evaluated, from the first on.
    """

    def __init__(
        self,
        sums: InfluenceSums,
        residuals: Residuals,
        clusters: Mapping[str, str],
        stride: int,
    ):
        self._sums, self._residuals = sums, residuals
        self._clusters, self._stride = clusters, stride

    def append(self, activations: Sequence[Activations], lengths: Lengths, rows: BatchRows) -> None:
        """Add a batch."""
        if not len(rows.positions):
            return
        names = np.array([self._clusters[u] for u in rows.utterances], object)[rows.utterance]
        taken = every_row(rows, self._stride)
        positions = rows.positions[taken]
        layers = []
        for model in activations:
            hidden = np.asarray(model.hidden_states)
            frames = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
            layers += [layer[positions] for layer in frames]
        self._sums.add(self._residuals(layers), names, taken)

    def snapshot(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"influence_sums": self._sums.snapshot()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self._sums.restore(snapshot["influence_sums"])

    def wait(self) -> None:
        """Rows have been added when `append` returns."""


def every_row(rows: BatchRows, stride: int) -> Int64[np.ndarray, " taken"]:
    """Every so many rows of each utterance of a batch, from its first on; their numbers."""
    number = np.arange(len(rows.utterance))
    _, first, index = np.unique(rows.utterance, return_index=True, return_inverse=True)
    return np.flatnonzero((number - first[index]) % stride == 0)


def least_bytes(run: ComparisonRun, passes: Sequence[Pass]) -> int:
    """Memory that a second reading takes on each device, about: all models at once.

    Args:
      run: the comparison.
      passes: as planned.
    """
    parameters = sum(sum(costs.parameter_bytes(encoder)) for encoder in run.encoders)
    config = run.encoders[0].config
    frames = max(costs.frames_of(b, config, run.mesh.size) for b in run.buckets)
    neurons = sum(shape.layers * shape.neurons for shape in run.shapes)
    return parameters + 4 * frames * neurons + max(p.memory.workspace for p in passes)


def read_again(
    run: ComparisonRun,
    counts: ReadCounts,
    sums: InfluenceSums,
    residuals: Residuals,
    shard: ShardFolder | None,
) -> ReadInfluence:
    """Sum the influences of all rows, from the last checkpoint if there is one.

    Args:
      run: the comparison; its passes are complete.
      counts: what they have read.
      sums: of the finished moments.
      residuals: rows of all representations -> those of the finished moments.
      shard: where checkpoints are; None for none.

    Raises:
      UserError: the audio has changed since the passes; as `one_pass.run_pass`.
    """
    skipped = {skip.id for skip in counts.skipped}
    sources = tuple(source for source in run.share.sources if source.id not in skipped)
    corpus = dataclasses.replace(run.share, sources=sources)
    row_sums = _RowSums(sums, residuals, run.clustering.of, run.settings.errors_stride)
    read_all_layers(run, corpus, row_sums, shard, dict(counts.digests))
    if sums.rows != sums.expected_rows:
        raise UserError(
            f"the second reading gave {sums.rows} rows, the first {sums.expected_rows}: the audio "
            "has changed; start from the beginning"
        )
    return sums.result()
