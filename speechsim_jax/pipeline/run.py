"""Plans the passes over the audio and runs them one after another.

The statistics of several passes go to a folder, and a pass whose statistics are there already is
not repeated. If there are several passes, attention has one to itself.
"""

import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import (
    SAMPLE_RATE_HZ,
    AudioError,
    Corpus,
    nothing_usable,
    total_seconds,
)
from speechsim_jax.errors import UserError, counted
from speechsim_jax.models import forward
from speechsim_jax.models.external import ExternalEncoder
from speechsim_jax.pipeline import costs
from speechsim_jax.pipeline.accumulators import attention_layers
from speechsim_jax.pipeline.attention_inputs import needed_sums
from speechsim_jax.pipeline.job_folder import ShardFolder
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts, digest_of, run_pass
from speechsim_jax.pipeline.pass_memory import ModelCost, PassMemory, Sizes
from speechsim_jax.pipeline.plan import NeededLayers, Pass, Plan, plan
from speechsim_jax.runtime.allocator import give_back
from speechsim_jax.runtime.shards import WHOLE
from speechsim_jax.statistics.clustered_sample import ClusteredSample
from speechsim_jax.statistics.folded_moments import FoldedMoments, UtteranceFolds
from speechsim_jax.statistics.moments import ModelShape, Tile, count_of
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.null_moments import NullMoments
from speechsim_jax.statistics.sample import Sample
from speechsim_jax.statistics.store import PassStatistics

_log = logging.getLogger(__name__)


class Division(NamedTuple):
    """How layer pairs are divided over passes.

    Attributes:
      tiles: of each pass.
      attention_apart: whether attention has a further pass to itself.
    """

    tiles: tuple[tuple[Tile, ...], ...]
    attention_apart: bool

    def as_json(self) -> dict[str, Any]:
        """For the plan of a job."""
        tiles = [[dataclasses.astuple(tile) for tile in of_pass] for of_pass in self.tiles]
        return {"tiles": tiles, "attention_apart": self.attention_apart}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Division":
        """The inverse of `as_json`, through JSON."""
        tiles = tuple(tuple(map(Tile.from_json, of_pass)) for of_pass in record["tiles"])
        return cls(tiles, record["attention_apart"])

    @classmethod
    def of(cls, passes: Sequence[Pass]) -> "Division":
        """The division that `plan_passes` has made."""
        *others, last = (p.tiles for p in passes)
        return cls((*others, last), False) if last else cls(tuple(others), True)


def plan_passes(
    run: ComparisonRun, budget_bytes: int, division: Division | None = None
) -> tuple[Pass, ...]:
    """The passes that keep to a budget of bytes on each device; logs what they will cost.

    Args:
      run: the comparison.
      budget_bytes: memory on each device.
      division: of an earlier run of the same job, or another shard; None for the best one.

    Raises:
      UserError: no plan keeps to the budget, with the smallest one that would do.
    """
    if run.selection.attention.measures:
        _log_attention_cost(run)
    all_layers = tuple(
        NeededLayers(k, tuple(range(len(ls))), max(ls)) for k, ls in enumerate(run.layers)
    )
    of_attention = Pass(all_layers, (), PassMemory(), run.selection.attention)
    if not run.selection.without_attention.measures:
        return (of_attention,)
    unknown = [encoder.name for encoder in run.encoders if isinstance(encoder, ExternalEncoder)]
    if unknown:
        _log.info(
            "memory and time of %s are not known: only the hidden states that it returns are "
            "planned for", ", ".join(unknown),
        )  # fmt: skip
    planned, attention_apart = _plan(run, budget_bytes, division)
    for line in str(planned).splitlines():
        _log.debug("%s", line)
    _log.info("%s", _summary(run, planned))
    selection = run.selection.without_attention if attention_apart else run.selection
    passes = tuple(dataclasses.replace(p, selection=selection) for p in planned.passes)
    if attention_apart:
        passes = (*passes, of_attention)
    return passes


def _summary(run: ComparisonRun, planned: Plan) -> str:
    """One line for the log: what a run reads, its memory and expected time."""
    sources = run.share.sources
    seconds = total_seconds(sources)
    parts = [
        counted(sum(map(len, run.layers)), "layer"),
        *([counted(len(run.tracks), "track")] if run.tracks else []),
        counted(len(sources), "file"),
        f"{seconds / 60:.1f} min of audio" if seconds >= 60 else f"{seconds:.1f} s of audio",
    ]
    if len(planned.passes) > 1:
        parts.append(f"read {len(planned.passes)} times")
    peak = max(p.memory.total for p in planned.passes)
    if run.mesh.size > 1:
        parts.append(f"{run.mesh.size} devices, {peak / 1e9:.3g} GB on each")
    else:
        parts.append(f"{peak / 1e9:.3g} GB")
    if seconds and planned.seconds is not None:
        parts.append(_duration(planned.seconds, _scoring_seconds(run)))
    return ", ".join(parts)


def _scoring_seconds(run: ComparisonRun) -> float:
    """Expected time of scoring; 0 for a shard, which is not scored."""
    if run.shard != WHOLE:
        return 0.0
    widths = [shape.neurons for shape in run.shapes for _ in range(shape.layers)]
    rows = 0
    if ClusteredSample.kind in run.selection.accumulated:
        rows = min(run.cluster_choice.expected_rows, run.settings.errors_rows)
    return costs.scoring_flops(widths, run.pairs, run.selection, rows) / costs.host_rate()


def _duration(reading: float | int, scoring: float | int) -> str:
    """Estimated seconds in words; compiling is not part of the estimate."""
    minutes = (reading + scoring) / 60
    if minutes < 1:
        return "under a minute and compiling"
    digits = int(minutes < 10)
    of_scoring = f", {scoring / 60:.{digits}f} of them scoring," if 10 * scoring > reading else ""
    return f"about {minutes:.{digits}f} min{of_scoring} and compiling"


def _log_attention_cost(run: ComparisonRun) -> None:
    """Log what the sums over attention maps will cost."""
    layers = attention_layers(run.encoders, run.layers)
    heads = sum(len(ls) * e.config.num_attention_heads for e, ls in zip(run.encoders, layers))
    seconds = np.array([source.seconds or 0.0 for source in run.attention_corpus.sources])
    longest = max(bucket.samples for bucket in run.buckets) / SAMPLE_RATE_HZ
    pieces = np.maximum(np.ceil(seconds / longest), 1)
    frames = seconds / pieces * SAMPLE_RATE_HZ / run.grid.hop_samples
    sums = needed_sums(run.selection.on("attention"))
    cost = costs.estimate(heads, int(np.sum(pieces * frames**2)), sums)
    _log.info("attention of %d utterances, %.1f s: %s", len(seconds), seconds.sum(), cost)


def _plan(run: ComparisonRun, budget_bytes: int, division: Division | None) -> tuple[Plan, bool]:
    """The plan of the moments, and whether attention has a pass to itself.

    Where everything fits in a single pass, attention is part of it.
    """
    longest = max(run.buckets, key=lambda bucket: bucket.samples)
    seconds = total_seconds(run.share.sources)
    reads_attention = bool(run.selection.attention.measures)
    shapes = run.shapes
    models = [
        costs.model_cost(
            encoder, layers, run.outputs(layers, reads_attention),
            run.precision.models, longest, seconds, run.mesh,
        )
        for encoder, layers in zip(run.encoders, run.layers)
    ]  # fmt: skip
    models += [ModelCost(track.name, (0,), 0, 0) for track in run.tracks]
    sizes = Sizes(
        rows_per_update=run.settings.rows_per_update,
        frames=max(costs.frames_of(b, run.grid, run.mesh.size) for b in run.buckets),
        feature=run.mesh.shape["feature"],
        itemsize=np.dtype(run.settings.stats_dtype).itemsize,
        states=2 if FoldedMoments.kind in run.selection.accumulated else 1,
        sampled_rows=-(-sampled_rows(run) // len(run.mesh.local_devices)) if run.on_cpu else 0,
        draws=run.settings.null_draws if NullMoments.kind in run.selection.accumulated else 0,
        own_folds=2 if UtteranceFolds.kind in run.selection.accumulated else 0,
        exemplars=run.settings.exemplars,
        utterances=max(b.batch for b in run.buckets) + run.mesh.size - 1,
    )
    if not run.on_cpu:
        _check_host_memory(run, shapes)
    rows = seconds * SAMPLE_RATE_HZ / run.grid.hop_samples / run.settings.frame_stride
    planned = functools.partial(
        plan, shapes, models, budget_bytes, data=run.mesh.shape["data"], rows=round(rows),
        rate=costs.rate(run.mesh), division=division and list(division.tiles), pairs=run.pairs,
    )  # fmt: skip
    if not reads_attention:
        return planned(sizes), False
    layers = attention_layers(run.encoders, run.layers)
    configs = [encoder.config for encoder in run.encoders]
    together = dataclasses.replace(
        sizes,
        attention=costs.memory_bytes(
            configs, layers, sizes.frames,
            groups=1 + max(run.attention_groups.values(), default=0), itemsize=sizes.itemsize,
        ),
    )  # fmt: skip
    if division is not None:
        apart = division.attention_apart
        return planned(sizes if apart else together), apart
    # A pass with attention has every model on the devices, whatever else it accumulates.
    least = together.attention + max(m.workspace_bytes for m in models)
    least += sum(m.front_bytes + max(ls) * m.layer_bytes for m, ls in zip(models, run.layers))
    if least > budget_bytes:
        raise UserError(
            f"{budget_bytes} bytes of memory on each device are too few for the attention of these "
            f"models; give at least {least} ({least / 1e9:.3g} GB), smaller batches or fewer models"
        )
    try:
        with_attention = planned(together)
    except UserError:  # no room for a layer pair next to it
        return planned(sizes), True
    if len(with_attention.passes) == 1:
        return with_attention, False
    return planned(sizes), True


def sampled_rows(run: ComparisonRun) -> int:
    """Rows that the samples of a pass keep on the host, about."""
    kinds = run.selection.accumulated
    rows = run.cluster_choice.expected_rows if ClusteredSample.kind in kinds else 0
    return rows + (run.settings.sample_frames if Sample.kind in kinds else 0)


def _check_host_memory(run: ComparisonRun, shapes: Sequence[ModelShape]) -> None:
    """Raise UserError for samples that the host of an accelerator cannot hold."""
    neurons = sum(shape.layers * shape.neurons for shape in shapes)
    needed = 2 * 4 * sampled_rows(run) * neurons
    if needed > costs.host_budget_bytes():
        raise UserError(
            f"the sampled rows take {needed / 1e9:.3g} GB of this machine's memory, which has "
            f"{costs.host_budget_bytes() / 1e9:.3g} GB for them; give fewer errors_rows or "
            "sample_frames, or errors_source='reading'"
        )


class PassesRun(NamedTuple):
    """What `run_passes` returns.

    Attributes:
      statistics: of each pass.
      counts: what the first pass has read.
      names: of the passes in the folder of the shard; empty if they are in memory only.
    """

    statistics: list[PassStatistics]
    counts: ReadCounts
    names: list[str]


def run_passes(
    run: ComparisonRun, passes: Sequence[Pass], shard: ShardFolder | None, keep: bool = False
) -> PassesRun:
    """Run all passes, each with only the models and layers that it needs on the devices.

    Args:
      run: what all passes share.
      passes: from `plan_passes`.
      shard: where checkpoints and statistics are; None if those of a single pass may stay in
        memory.
      keep: whether a single pass is stored even if it was too short for a checkpoint.

    Raises:
      UserError: the audio gives fewer than two rows, or has changed since it was read first, or
        what `run_pass` raises.
    """
    several = len(passes) > 1
    encoders = run.encoders
    if several:
        encoders = tuple(forward.on_host(encoder) for encoder in encoders)
    done = PassesRun([], ReadCounts(), [])
    corpus, total = run.share, ReadCounts()
    for number, pass_ in enumerate(passes, start=1):
        if several:
            _log.info("pass %d of %d", number, len(passes))
        stored = shard and shard.statistics(number)
        if stored:
            name, result, metadata = stored
            counts = ReadCounts.from_json(metadata["counts"])
            _log.info("pass %d: completed by an earlier run", number)
            done.names.append(name)
        else:
            expected = dict(total.digests) if number > 1 else None
            result, counts = run_pass(run, number, pass_, encoders, corpus, shard, expected)
            if shard is not None and (keep or several or shard.has_checkpoints):
                metadata = {"counts": dataclasses.asdict(counts)}
                done.names.append(shard.store(number, result, metadata))
                # From the store: states of several passes do not fit into memory.
                if several:
                    _, result, _ = shard.statistics(number) or (None, result, None)
                    give_back()
        done.statistics.append(result)
        if number > 1:
            took = total.elapsed_seconds + counts.elapsed_seconds
            total = dataclasses.replace(total, elapsed_seconds=took)
        else:
            total = counts
            if not stored:
                _log_quality(counts)
            if run.shard == WHOLE and run.step is None:
                check_enough(corpus, counts, done.statistics)
            # Unusable files are reported once: later passes leave them out.
            skipped = {skipped.id for skipped in counts.skipped}
            usable = tuple(source for source in corpus.sources if source.id not in skipped)
            corpus = dataclasses.replace(corpus, sources=usable)
    return done._replace(counts=total)


def _log_quality(counts: ReadCounts) -> None:
    """Log what was guessed or changed in reading, and utterances that are there twice."""
    if counts.notes:
        notes = "; ".join(f"{counted(n, 'utterance')}: {note}" for note, n in counts.notes)
        _log.info("in reading, %s", notes)
    if duplicates := counts.duplicates:
        one, other = duplicates[0]
        _log.warning(
            "%s as another, for example %s and %s: they count twice",
            f"{counted(len(duplicates), 'utterance')} with the same samples", one, other,
        )  # fmt: skip


def check_unchanged(run: ComparisonRun, shard: ShardFolder, touched: Collection[str]) -> None:
    """Check the files that were written to since the job began and that are part of its sums.

    Args:
      run: the comparison.
      shard: where its counts are.
      touched: ids of these files.

    Raises:
      UserError: one of them now gives other samples, with its name.
    """
    metadata = shard.metadata(1) if touched else None
    if metadata is None:
        return
    digests = dict(metadata["counts"]["digests"])
    longest = max(bucket.samples for bucket in run.buckets)
    for source in run.share.sources:
        if source.id not in touched:
            continue
        try:
            pieces = batching.pieces(source, longest, run.grid.window_samples)
            now = {piece.id: digest_of(piece.samples) for piece in pieces}
        except AudioError:
            now = {source.id: ""}
        for id_, digest in now.items():
            if digests.get(id_, digest) != digest:
                raise UserError(
                    f"{source.path} holds other samples than when this job read it; put the "
                    "file back, or start from the beginning in another folder"
                )


def check_enough(corpus: Corpus, counts: ReadCounts, statistics: Sequence[PassStatistics]) -> None:
    """Raise UserError unless the audio gave two rows.

    Args:
      corpus: that was read.
      counts: what was read.
      statistics: of all passes.
    """
    rows = counts.frames
    states = [state for of_pass in statistics for state in of_pass.states.values()]
    moments = [s.whole if isinstance(s, FoldedMoments) else s for s in states]
    for state in moments:
        if isinstance(state, MomentsState):
            rows = count_of(state.small)
            break
    if rows < 2 and counts.utterances:
        raise UserError(
            f"{corpus.origin}: {counted(counts.frames, 'frame')} of "
            f"{counted(counts.utterances, 'utterance')} are chosen and give "
            f"{counted(rows, 'row')}; at least 2 are needed (frame_stride, pool, drop_labels)"
        )
    if rows < 2:
        raise nothing_usable(corpus, counts.skipped)
