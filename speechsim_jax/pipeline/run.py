"""Plans the passes over the audio and runs them one after another.

The statistics of several passes go to a folder, a sub-folder each, and a pass whose statistics are
there already is not repeated. If there are several passes, attention has one to itself.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Corpus, nothing_usable, total_seconds
from speechsim_jax.errors import UserError, counted
from speechsim_jax.models import forward
from speechsim_jax.pipeline import costs
from speechsim_jax.pipeline.accumulators import attention_layers
from speechsim_jax.pipeline.attention_inputs import needed_sums
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts, run_pass
from speechsim_jax.pipeline.pass_memory import PassMemory, Sizes
from speechsim_jax.pipeline.plan import NeededLayers, Pass, Plan, plan
from speechsim_jax.runtime import processes
from speechsim_jax.runtime.atomic_write import write_text
from speechsim_jax.statistics.moments import ModelShape, Tile, all_tiles, count_of
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.store import PassStatistics

# How the layer pairs are divided over passes, next to their checkpoints.
_PLAN = "plan.json"

_log = logging.getLogger(__name__)


def plan_passes(run: ComparisonRun, budget_bytes: int) -> tuple[Pass, ...]:
    """The passes that keep to a budget of bytes on each device; logs what they will cost.

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
    planned, attention_apart = _plan(run, budget_bytes)
    for line in str(planned).splitlines():
        _log.debug("%s", line)
    _log.info("%s", _summary(run, planned))
    selection = run.selection.without_attention if attention_apart else run.selection
    passes = tuple(dataclasses.replace(p, selection=selection) for p in planned.passes)
    if attention_apart:
        passes = (*passes, of_attention)
    if run.checkpoints is not None and len(passes) > 1:
        _write_division(run.checkpoints, planned, attention_apart)
    return passes


def _summary(run: ComparisonRun, planned: Plan) -> str:
    """One line for the log: what a run reads, its memory and expected time."""
    seconds = total_seconds(run.corpus.sources)
    parts = [
        counted(sum(map(len, run.layers)), "layer"),
        counted(len(run.corpus.sources), "file"),
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
        parts.append(_duration(planned.seconds))
    return ", ".join(parts)


def _duration(seconds: float | int) -> str:
    """An estimated duration in words; compiling is not part of the estimate."""
    minutes = seconds / 60
    if minutes < 1:
        return "under a minute and compiling"
    return f"about {minutes:.{int(minutes < 10)}f} min and compiling"


def _log_attention_cost(run: ComparisonRun) -> None:
    """Log what the sums over attention maps will cost."""
    layers = attention_layers(run.encoders, run.layers)
    heads = sum(len(ls) * e.config.num_attention_heads for e, ls in zip(run.encoders, layers))
    seconds = np.array([source.seconds or 0.0 for source in run.attention_corpus.sources])
    pieces = np.maximum(np.ceil(seconds / run.settings.max_seconds), 1)
    frames = seconds / pieces * SAMPLE_RATE_HZ / run.encoders[0].config.hop_samples
    sums = needed_sums(run.selection.on("attention"))
    cost = costs.estimate(heads, int(np.sum(pieces * frames**2)), sums)
    _log.info("attention of %d utterances, %.1f s: %s", len(seconds), seconds.sum(), cost)


def _plan(run: ComparisonRun, budget_bytes: int) -> tuple[Plan, bool]:
    """The plan of the moments, and whether attention has a pass to itself.

    Where everything fits in a single pass, attention is part of it.
    """
    config = run.encoders[0].config
    longest = max(run.buckets, key=lambda bucket: bucket.samples)
    seconds = total_seconds(run.corpus.sources)
    reads_attention = bool(run.selection.attention.measures)
    shapes = tuple(
        ModelShape(len(ls), e.config.hidden_size) for e, ls in zip(run.encoders, run.layers)
    )
    models = [
        costs.model_cost(
            encoder, layers, run.outputs(layers, reads_attention),
            run.settings.model_precision, longest, seconds, run.mesh,
        )
        for encoder, layers in zip(run.encoders, run.layers)
    ]  # fmt: skip
    sizes = Sizes(
        rows_per_update=run.settings.rows_per_update,
        frames=max(costs.frames_of(b, config, run.mesh.size) for b in run.buckets),
        feature=run.mesh.shape["feature"],
        itemsize=np.dtype(run.settings.stats_dtype).itemsize,
    )
    rows = seconds * SAMPLE_RATE_HZ / config.hop_samples / run.settings.frame_stride
    earlier = _earlier_division(run.checkpoints, shapes)
    planned = functools.partial(
        plan, shapes, models, budget_bytes, data=run.mesh.shape["data"], rows=round(rows),
        rate=costs.rate(run.mesh), division=earlier and earlier.tiles,
    )  # fmt: skip
    if not reads_attention:
        return planned(sizes), False
    layers = attention_layers(run.encoders, run.layers)
    configs = [encoder.config for encoder in run.encoders]
    together = dataclasses.replace(
        sizes, attention=costs.memory_bytes(configs, layers, sizes.frames)
    )
    if earlier is not None:
        apart = earlier.attention_apart
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


class _Division(NamedTuple):
    """How an earlier run divided the work.

    Attributes:
      tiles: of each pass.
      attention_apart: whether attention has a pass to itself.
    """

    tiles: list[tuple[Tile, ...]]
    attention_apart: bool


def _earlier_division(checkpoints: Path | None, shapes: tuple[ModelShape, ...]) -> _Division | None:
    """The division of the run whose checkpoints these are; None if there are none."""
    if checkpoints is None or not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return None
    if not (checkpoints / _PLAN).exists():
        return _Division([all_tiles(shapes)], False)
    record = json.loads((checkpoints / _PLAN).read_text())
    passes = [tuple(map(Tile.from_json, tiles)) for tiles in record["passes"]]
    return _Division(passes, record["attention_apart"])


def _write_division(checkpoints: Path, planned: Plan, attention_apart: bool) -> None:
    passes = [[dataclasses.astuple(tile) for tile in p.tiles] for p in planned.passes]
    record = {"passes": passes, "attention_apart": attention_apart}
    write_text(checkpoints / _PLAN, json.dumps(record))


def run_passes(
    run: ComparisonRun, passes: Sequence[Pass], folder: Path | None
) -> tuple[list[PassStatistics], ReadCounts]:
    """Run all passes, each with only the models and layers that it needs on the devices.

    Args:
      run: what all passes share.
      passes: from `plan_passes`.
      folder: where statistics are written, pass by pass; None if those of a single pass may stay
        in memory, and on all processes but the first.

    Returns:
      The statistics of each pass, and what the first one read; on processes other than the first
      the counts of that process alone.

    Raises:
      UserError: the audio gives fewer than two rows, has changed between passes, or what `run_pass`
        raises.
    """
    several = len(passes) > 1
    encoders = run.encoders
    if several:
        encoders = tuple(map(forward.on_host, encoders))
    statistics, corpus, total = [], run.corpus, ReadCounts()
    for number, pass_ in enumerate(passes, start=1):
        if several:
            _log.info("pass %d of %d", number, len(passes))
        name = f"pass-{number}"
        checkpoints = run.checkpoints and (run.checkpoints / name if several else run.checkpoints)
        result, counts = run_pass(
            run, pass_, encoders, corpus, checkpoints, folder and folder / name,
            digests=run.digests and number == 1,
        )  # fmt: skip
        statistics.append(result)
        if number == 1:
            total = counts
            _check_enough(corpus, counts, result)
            # Unusable files are reported once: later passes leave them out.
            skipped = {skipped.id for skipped in counts.skipped}
            usable = tuple(source for source in corpus.sources if source.id not in skipped)
            corpus = dataclasses.replace(corpus, sources=usable)
        elif (
            pass_.selection.without_attention.measures
            and processes.is_first()
            and counts.frames != total.frames
        ):
            raise UserError(
                f"{corpus.origin}: pass {number} read {counts.frames} frames, the first "
                f"{total.frames}; the audio has changed, start from the beginning"
            )
    return statistics, total


def _check_enough(corpus: Corpus, counts: ReadCounts, statistics: PassStatistics) -> None:
    """Raise UserError unless the audio gave two rows; the first process has all counts."""
    if not processes.is_first():
        return
    moments = statistics.states.get(MomentsState.kind)
    rows = count_of(moments.small) if isinstance(moments, MomentsState) else counts.frames
    if rows < 2 and counts.utterances:
        raise UserError(
            f"{corpus.origin}: {counted(counts.frames, 'frame')} of "
            f"{counted(counts.utterances, 'utterance')} are chosen and give "
            f"{counted(rows, 'row')}; at least 2 are needed (frame_stride, pool, drop_labels)"
        )
    if rows < 2:
        raise nothing_usable(corpus, counts.skipped)
