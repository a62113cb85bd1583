"""The passes over the audio: which there are, and one after the other what each accumulates.

What several passes have accumulated goes to a folder, one below the other, and a pass that is there
already is not repeated. Attention has a pass of its own if there are several.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from speechsim_jax.audio.batching import Bucket
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Corpus, nothing_usable
from speechsim_jax.errors import UserError, counted
from speechsim_jax.measures import MeasureSelection
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.pipeline import costs, gather
from speechsim_jax.pipeline.accumulators import Accumulators, attention_blocks
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.one_pass import Seen, read_through
from speechsim_jax.pipeline.plan import Needed, Plan, Sizes, plan
from speechsim_jax.runtime import processes
from speechsim_jax.runtime.run_checkpoints import Checkpoints
from speechsim_jax.settings import Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.moments import ModelShape, Tile, all_tiles, count_of
from speechsim_jax.statistics.store import StoredStatistics

# How the layer pairs are divided over passes, beside their checkpoints.
_PLAN = "plan.json"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonRun:
    """What all passes share. `layers`: the hidden states that are compared, by model.

    `corpus`: what this process reads. `listened`: what attention is compared on, of all processes.
    `identity`: what checkpoints must agree in, apart from the statistics' own. `checkpoints`: where
    they are, None for nowhere, and `checkpoint_minutes` how often.
    """

    encoders: tuple[SpeechEncoder, ...]
    layers: tuple[tuple[int, ...], ...]
    chosen: MeasureSelection
    options: Settings
    corpus: Corpus
    listened: Corpus
    choice: FrameChoice
    buckets: tuple[Bucket, ...]
    mesh: Mesh
    identity: dict[str, Any]
    checkpoints: Path | None
    checkpoint_minutes: float | int
    progress: bool

    def outputs(self, layers: tuple[int, ...], attention: bool) -> Outputs:
        """What an encoder has to give."""
        return Outputs(layers, last_layer=self.options.last_layer, projections=attention)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One pass: the models and layers (as places in their streams) it runs, and what for."""

    models: tuple[Needed, ...]
    tiles: tuple[Tile, ...]
    chosen: MeasureSelection


def planned(job: ComparisonRun, budget_bytes: int) -> tuple[Reading, ...]:
    """The passes that keep to a budget of bytes on each device; says what they will take.

    Raises UserError, with the smallest budget that would do, if there are none.
    """
    everything = tuple(Needed(k, tuple(range(len(ls))), max(ls)) for k, ls in enumerate(job.layers))
    of_attention = Reading(everything, (), job.chosen._replace(measures=(), rankings=()))
    if not job.chosen.measures:
        return (of_attention,)
    made = _plan(job, budget_bytes)
    for line in str(made).splitlines():
        _log.debug("%s", line)
    _log.info("%s", _in_short(job, made))
    apart = bool(job.chosen.attention) and not made.passes[0].bytes.attention
    chosen = job.chosen._replace(attention=()) if apart else job.chosen
    readings = tuple(Reading(one.models, one.local_tiles, chosen) for one in made.passes)
    readings += (of_attention,) * apart
    if job.checkpoints is not None and len(readings) > 1:
        _write_division(job.checkpoints, made, apart)
    return readings


def _in_short(job: ComparisonRun, made: Plan) -> str:
    """What a run will take, for who has just started it."""
    seconds = sum(source.seconds or 0.0 for source in job.corpus.sources)
    parts = [
        counted(sum(map(len, job.layers)), "layer"),
        counted(len(job.corpus.sources), "file"),
        f"{seconds / 60:.1f} min of audio" if seconds >= 60 else f"{seconds:.1f} s of audio",
    ]
    if len(made.passes) > 1:
        parts.append(f"read {len(made.passes)} times")
    most = max(one.bytes.total for one in made.passes)
    if job.mesh.size > 1:
        parts.append(f"{job.mesh.size} devices, {most / 1e9:.3g} GB on each")
    else:
        parts.append(f"{most / 1e9:.3g} GB")
    if seconds and made.seconds is not None:
        parts.append(_about(made.seconds))
    return ", ".join(parts)


def _about(seconds: float | int) -> str:
    """How long it will take; an estimate knows nothing of compiling, so none is very short."""
    minutes = seconds / 60
    if minutes < 1:
        return "under a minute and compiling"
    return f"about {minutes:.{int(minutes < 10)}f} min and compiling"


def _plan(job: ComparisonRun, budget_bytes: int) -> Plan:
    """The plan of the moments. Attention is in it where everything fits in a single pass."""
    config = job.encoders[0].config
    longest = max(job.buckets, key=lambda bucket: bucket.samples)
    seconds = sum(source.seconds or 0.0 for source in job.corpus.sources)
    streams = tuple(
        ModelShape(len(ls), e.config.hidden_size) for e, ls in zip(job.encoders, job.layers)
    )
    models = [
        costs.model_cost(
            encoder, layers, job.outputs(layers, bool(job.chosen.attention)),
            job.options.model_precision, longest, seconds, job.mesh,
        )
        for encoder, layers in zip(job.encoders, job.layers)
    ]  # fmt: skip
    sizes = Sizes(
        rows_per_update=job.options.rows_per_update,
        frames=max(costs.frames_of(b, config, job.mesh.size) for b in job.buckets),
        feature=job.mesh.shape["feature"],
        itemsize=np.dtype(job.options.stats_dtype).itemsize,
    )
    rows = seconds * SAMPLE_RATE_HZ / config.hop_samples / job.options.frame_stride
    before = _earlier_division(job.checkpoints, streams)
    planned = functools.partial(
        plan, streams, models, budget_bytes, data=job.mesh.shape["data"], rows=round(rows),
        rate=costs.rate(job.mesh), division=before and before.tiles,
    )  # fmt: skip
    if not job.chosen.attention:
        return planned(sizes)
    blocks = attention_blocks(job.encoders, job.layers)
    configs = [encoder.config for encoder in job.encoders]
    together = dataclasses.replace(
        sizes, attention=costs.memory_bytes(configs, blocks, sizes.frames)
    )
    if before is not None:
        return planned(sizes if before.attention_apart else together)
    # Whatever else it shares a pass with, it has every model on the devices.
    least = together.attention + max(m.workspace_bytes for m in models)
    least += sum(m.front_bytes + max(ls) * m.layer_bytes for m, ls in zip(models, job.layers))
    if least > budget_bytes:
        raise UserError(
            f"{budget_bytes} bytes of memory on each device are too few for the attention of these "
            f"models; give at least {least} ({least / 1e9:.3g} GB), smaller batches or fewer models"
        )
    try:
        whole = planned(together)
    except UserError:  # no room for a layer pair beside it
        return planned(sizes)
    return whole if len(whole.passes) == 1 else planned(sizes)


class _Division(NamedTuple):
    """How an earlier run has divided the work: the tiles of each pass."""

    tiles: list[tuple[Tile, ...]]
    attention_apart: bool


def _earlier_division(
    checkpoints: Path | None, streams: tuple[ModelShape, ...]
) -> _Division | None:
    """That of the run whose checkpoints these are; None if there is none."""
    if checkpoints is None or not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return None
    if not (checkpoints / _PLAN).exists():
        return _Division([all_tiles(streams)], False)
    told = json.loads((checkpoints / _PLAN).read_text())
    passes = [
        tuple(Tile(a, b, tuple((l, m) for l, m in pairs)) for a, b, pairs in tiles)
        for tiles in told["passes"]
    ]
    return _Division(passes, told["attention_apart"])


def _write_division(checkpoints: Path, made: Plan, attention_apart: bool) -> None:
    passes = [[dataclasses.astuple(tile) for tile in one.tiles] for one in made.passes]
    checkpoints.mkdir(parents=True, exist_ok=True)
    new = checkpoints / f"{_PLAN}.tmp"
    new.write_text(json.dumps({"passes": passes, "attention_apart": attention_apart}))
    new.replace(checkpoints / _PLAN)


def run(
    job: ComparisonRun, readings: Sequence[Reading], seen: Seen, folder: Path | None
) -> list[StoredStatistics]:
    """All passes, each with only its own models and layers on the devices.

    `seen` is told what has been heard. `folder`: where statistics are written pass by pass, None if
    there is one that may stay in memory, and on all processes but the first; these get what they
    have heard themselves. Raises UserError for audio that gives fewer than two rows, and for what
    `read_through` raises it for.
    """
    several = len(readings) > 1
    if several:
        job = dataclasses.replace(job, encoders=tuple(map(forward.on_host, job.encoders)))
    found = []
    for number, reading in enumerate(readings, start=1):
        if several:
            _log.info("pass %d of %d", number, len(readings))
        name = f"pass-{number}"
        checkpoints = job.checkpoints and (job.checkpoints / name if several else job.checkpoints)
        target = folder and folder / name
        heard = seen if number == 1 else Seen()
        found.append(_one_pass(job, reading, heard, checkpoints, target))
        if number == 1:
            _check_enough(job.corpus, seen, found[0])
            # Once is enough to say what cannot be used.
            skipped = {skipped.id for skipped in seen.skipped}
            usable = tuple(s for s in job.corpus.sources if s.id not in skipped)
            job = dataclasses.replace(job, corpus=dataclasses.replace(job.corpus, sources=usable))
        elif reading.chosen.measures and processes.is_first() and heard.frames != seen.frames:
            raise UserError(
                f"{job.corpus.origin}: pass {number} heard {heard.frames} frames, the first "
                f"{seen.frames}; the audio has changed, start anew"
            )
    return found


def _one_pass(
    job: ComparisonRun, reading: Reading, seen: Seen, folder: Path | None, target: Path | None
) -> StoredStatistics:
    """What a pass accumulates, or has accumulated in an earlier run."""
    layers = [tuple(job.layers[n.model][l] for l in n.layers) for n in reading.models]
    places = tuple((n.model, l) for n in reading.models for l in n.layers)
    encoders = [
        forward.on_devices(job.encoders[n.model], job.mesh, n.depth) for n in reading.models
    ]
    corpus = job.corpus
    if not reading.chosen.measures:
        listened = {source.id for source in job.listened.sources}
        sources = tuple(source for source in corpus.sources if source.id in listened)
        corpus = dataclasses.replace(corpus, sources=sources)
    statistics = Accumulators(
        reading.chosen, encoders, layers, job.options, job.listened, job.mesh, places, reading.tiles
    )
    identity = statistics.identity() | job.identity
    (done,) = processes.broadcast([np.array(target is not None and target.exists())])
    if done:
        return StoredStatistics(places) if target is None else _taken_up(target, identity, seen)
    checkpoints = folder and Checkpoints(folder, identity, job.checkpoint_minutes)
    outputs = [job.outputs(ls, bool(reading.chosen.attention)) for ls in layers]
    _compile(encoders, outputs, job)
    started = time.monotonic()
    before = read_through(
        encoders, outputs, corpus, job.choice, statistics, job.options, job.buckets, seen,
        checkpoints or None, job.mesh, job.progress,
    )  # fmt: skip
    statistics.wait()
    if seen.utterances > before.utterances:
        _say_what_was_read(seen, before, time.monotonic() - started)
    found = statistics.close()
    seen.add_up(processes.gather_json(dataclasses.asdict(seen)))
    if target is None and processes.count() == 1:
        return found
    gather.write(found, target, {"identity": identity, "seen": dataclasses.asdict(seen)})
    return StoredStatistics(places) if target is None else store.read(target)[0]


def _compile(
    encoders: Sequence[SpeechEncoder], outputs: Sequence[Outputs], job: ComparisonRun
) -> None:
    """Make all programs of the forward passes, side by side; otherwise each would be waited for."""

    def one(encoder: SpeechEncoder, wanted: Outputs, bucket: Bucket) -> None:
        shape = bucket.batch, bucket.samples
        precision = job.options.model_precision
        forward.lower_encode(encoder, shape, wanted, precision, job.mesh).compile()

    # Models of one architecture share a program.
    programs = {(e.graph, o): (e, o) for e, o in zip(encoders, outputs)}
    standing = "; the bar stands still at each new length" if job.progress else ""
    number = counted(len(programs) * len(job.buckets), "program")
    _log.info("compiling %s (architectures x lengths of audio)%s", number, standing)
    with ThreadPoolExecutor() as pool:
        made = [
            pool.submit(one, encoder, wanted, bucket)
            for bucket in job.buckets
            for encoder, wanted in programs.values()
        ]
        for each in made:
            each.result()


def _say_what_was_read(seen: Seen, before: Seen, elapsed_seconds: float) -> None:
    seconds = seen.seconds - before.seconds
    _log.info(
        "read %s, %.1f s of audio, %d frames in %.1f s (%.2f audio-seconds per second)",
        counted(seen.utterances - before.utterances, "utterance"), seconds,
        seen.frames - before.frames, elapsed_seconds, seconds / elapsed_seconds,
    )  # fmt: skip


def _taken_up(target: Path, identity: dict[str, Any], seen: Seen) -> StoredStatistics:
    """A pass that an earlier run has completed; raises UserError if that was of another job."""
    found, told = store.read(target)
    if told["identity"] != json.loads(json.dumps(identity)):
        raise UserError(f"{target} is of another job; start anew in another folder")
    seen.take_up(told["seen"])
    _log.info("%s: done before", target.name)
    return found


def _check_enough(corpus: Corpus, seen: Seen, found: StoredStatistics) -> None:
    """Raise UserError unless the audio gave two rows; on the first process, which knows of all."""
    if not processes.is_first():
        return
    rows = seen.frames if found.moments is None else count_of(found.moments.state)
    if rows < 2 and seen.utterances:
        raise UserError(
            f"{corpus.origin}: {counted(seen.frames, 'frame')} of "
            f"{counted(seen.utterances, 'utterance')} are chosen and give {counted(rows, 'row')}; "
            "at least 2 are needed (frame_stride, pool, drop_labels)"
        )
    if rows < 2:
        raise nothing_usable(corpus, seen.skipped)
