"""One pass over a corpus: every model encodes every batch, every accumulator adds it up.

With checkpoints a pass can be interrupted anywhere and resumes after the last one.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm.auto
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import Corpus, Skipped
from speechsim_jax.errors import UserError, counted
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.pipeline import frame_choice, gather
from speechsim_jax.pipeline.accumulators import Accumulators, PassSetup
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.plan import Pass
from speechsim_jax.runtime import processes
from speechsim_jax.runtime.mesh import place_batch
from speechsim_jax.runtime.run_checkpoints import Checkpoints
from speechsim_jax.settings import Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.store import PassStatistics

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonRun:
    """What all passes of a comparison share.

    Attributes:
      encoders: the models.
      layers: the hidden states that are compared, by model.
      selection: the measures.
      settings: of the comparison.
      corpus: what this process reads.
      attention_corpus: what attention is compared on, of all processes.
      choice: which frames are rows.
      buckets: shapes of the batches.
      mesh: the devices.
      identity: what checkpoints must agree in, besides `Accumulators.identity`.
      checkpoints: their folder, None for none.
      checkpoint_every: minutes between them.
      digests: whether the digests of all utterances are recorded.
      progress: whether a bar is shown.
    """

    encoders: tuple[SpeechEncoder, ...]
    layers: tuple[tuple[int, ...], ...]
    selection: MeasureSelection
    settings: Settings
    corpus: Corpus
    attention_corpus: Corpus
    choice: FrameChoice
    buckets: tuple[batching.Bucket, ...]
    mesh: Mesh
    identity: dict[str, Any]
    checkpoints: Path | None
    checkpoint_every: float | int
    digests: bool
    progress: bool

    @property
    def attention_ids(self) -> frozenset[str]:
        """The utterances whose attention is compared."""
        return frozenset(source.id for source in self.attention_corpus.sources)

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs."""
        return self.mesh.devices.flat[0].platform == "cpu"

    def outputs(self, layers: tuple[int, ...], attention: bool) -> Outputs:
        """What an encoder has to return."""
        return Outputs(layers, last_layer=self.settings.last_layer, projections=attention)


@dataclasses.dataclass(frozen=True)
class ReadCounts:
    """How much was read. Counts of disjoint audio add up.

    Attributes:
      utterances: that were encoded, pieces of long ones counted one by one.
      seconds: of audio in them.
      frames: that were chosen.
      skipped: files that could not be used.
      digests: id and digest of the samples of each utterance or piece, if they are recorded.
    """

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    skipped: tuple[Skipped, ...] = ()
    digests: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(
            self.utterances + other.utterances,
            self.seconds + other.seconds,
            self.frames + other.frames,
            self.skipped + other.skipped,
            self.digests + other.digests,
        )

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "ReadCounts":
        """The inverse of `dataclasses.asdict`, through JSON."""
        skipped = tuple(Skipped(**entry) for entry in record["skipped"])
        digests = tuple((id_, digest) for id_, digest in record["digests"])
        return cls(**record | {"skipped": skipped, "digests": digests})


def run_pass(
    run: ComparisonRun,
    pass_: Pass,
    encoders: Sequence[SpeechEncoder],
    corpus: Corpus,
    checkpoints: Path | None,
    folder: Path | None,
    digests: bool = False,
) -> tuple[PassStatistics, ReadCounts]:
    """Run one pass, or read what an earlier run of it has accumulated.

    Args:
      run: what all passes share.
      pass_: the pass.
      encoders: all models of the run; those of the pass are placed on the devices.
      corpus: what this process reads.
      checkpoints: folder of the checkpoints, None for none.
      folder: where the statistics are written, None if they may stay in memory.
      digests: whether the counts hold the digests of all utterances.

    Returns:
      The statistics and what was read. Of several processes, the first has those of all; the others
      have no statistics and their own counts.

    Raises:
      UserError: statistics or checkpoints of another job, or a hidden state that is NaN or inf.
    """
    layers = tuple(tuple(run.layers[n.model][l] for l in n.layers) for n in pass_.models)
    placed = tuple(forward.on_devices(encoders[n.model], run.mesh, n.depth) for n in pass_.models)
    attention_ids = run.attention_ids
    if not pass_.selection.without_attention.measures:
        sources = tuple(source for source in corpus.sources if source.id in attention_ids)
        corpus = dataclasses.replace(corpus, sources=sources)
    accumulators = Accumulators(
        PassSetup(
            selection=pass_.selection,
            encoders=placed,
            layers=layers,
            indices=tuple((n.model, l) for n in pass_.models for l in n.layers),
            tiles=pass_.local_tiles,
            settings=run.settings,
            attention_ids=attention_ids,
            mesh=run.mesh,
        )
    )
    identity = accumulators.identity() | run.identity
    (complete,) = processes.broadcast([np.array(folder is not None and folder.exists())])
    if complete:
        return _read_earlier(folder, identity)
    attention = bool(pass_.selection.attention.measures)
    outputs = [run.outputs(of_model, attention) for of_model in layers]
    _compile(placed, outputs, run)
    resumable = None
    if checkpoints is not None:
        resumable = Checkpoints(checkpoints, identity, run.checkpoint_every)
    counts = _read_corpus(run, placed, outputs, corpus, accumulators, resumable, digests)
    statistics = accumulators.result()
    of_processes = processes.gather_json(dataclasses.asdict(counts))
    if of_processes is not None:
        counts = sum(map(ReadCounts.from_json, of_processes), start=ReadCounts())
    if folder is None and processes.count() == 1:
        return statistics, counts
    metadata = {"identity": identity, "counts": dataclasses.asdict(counts)}
    gather.write(statistics, folder, metadata)
    return (PassStatistics({}) if folder is None else store.read(folder)[0]), counts


def _read_earlier(
    folder: Path | None, identity: dict[str, Any]
) -> tuple[PassStatistics, ReadCounts]:
    """The statistics of an earlier run; raises UserError if that was another job."""
    if folder is None:
        return PassStatistics({}), ReadCounts()
    statistics, metadata = store.read(folder)
    if metadata["identity"] != json.loads(json.dumps(identity)):
        raise UserError(f"{folder} is of another job; start from the beginning in another folder")
    _log.info("%s: completed by an earlier run", folder.name)
    return statistics, ReadCounts.from_json(metadata["counts"])


def _compile(
    encoders: Sequence[SpeechEncoder], outputs: Sequence[Outputs], run: ComparisonRun
) -> None:
    """Compile all forward passes in parallel, not one by one as batches need them."""

    def compile_one(encoder: SpeechEncoder, output: Outputs, bucket: batching.Bucket) -> None:
        shape = bucket.batch, bucket.samples
        precision = run.settings.model_precision
        forward.lower_encode(encoder, shape, output, precision, run.mesh).compile()

    # Models of one architecture share a program.
    programs = {(e.graph, o): (e, o) for e, o in zip(encoders, outputs)}
    pause = "; the bar pauses at each new length" if run.progress else ""
    number = counted(len(programs) * len(run.buckets), "program")
    _log.info("compiling %s (architectures x lengths of audio)%s", number, pause)
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(compile_one, encoder, output, bucket)
            for bucket in run.buckets
            for encoder, output in programs.values()
        ]
        for job in jobs:
            job.result()


def _read_corpus(
    run: ComparisonRun,
    encoders: Sequence[SpeechEncoder],
    outputs: Sequence[Outputs],
    corpus: Corpus,
    accumulators: Accumulators,
    checkpoints: Checkpoints | None,
    digests: bool,
) -> ReadCounts:
    """The loop over batches, from the last checkpoint if there is one."""
    done, cursor, earlier = _resume(checkpoints, accumulators)
    step = done
    lengths = {source.id: source.seconds or 0.0 for source in corpus.sources}
    before = earlier.seconds + sum(lengths.get(skip.id, 0.0) for skip in earlier.skipped)
    checks: collections.deque[FiniteCheck] = collections.deque()
    names = [encoder.name for encoder in encoders]
    clock = time.monotonic()
    with _progress_bar(sum(lengths.values()), before, run.progress) as bar:
        tally = _Tally(earlier, digests)

        def on_skip(skip: Skipped) -> None:
            log_skipped(skip)
            tally.skip(skip)
            bar.update(lengths[skip.id])

        batches = batching.batches(
            corpus,
            run.buckets,
            min_samples=encoders[0].config.window_samples,
            strict=run.settings.strict,
            on_skip=on_skip,
            start=cursor,
        )
        for step, batch in enumerate(batches, start=done + 1):
            batch = batching.pad_to_multiple(batch, run.mesh.size)
            activations = _encode(run, encoders, outputs, batch)
            frames = activations[0].frame_mask.shape[1]
            first_bad = [_first_bad_frame(model) for model in activations]
            checks.append(FiniteCheck(names, batch.ids, frames, first_bad))
            chosen = run.choice.of(batch, frames)
            activations = [frame_choice.pooled(model, chosen) for model in activations]
            accumulators.append(activations, batch.lengths, chosen.rows)
            del activations
            if run.on_cpu:
                accumulators.wait()
            tally.add(batch, chosen.frames)
            processes.check()
            bar.update(batch.seconds)
            # One batch behind: the device is never idle, and never has two batches waiting.
            if len(checks) > 1:
                checks.popleft().check()
            if checkpoints is not None and checkpoints.due():
                checks.pop().check()
                _save(checkpoints, step, accumulators, tally.counts(), batch.after, run.on_cpu)
        if bar.total:
            # The lengths that file headers state may be a little too large.
            bar.update(max(bar.total - bar.n, 0))
    for waiting in checks:
        waiting.check()
    counts = tally.counts()
    if checkpoints is not None and checkpoints.started:
        # What follows the last checkpoint is saved, too: then a repeated run has nothing to read.
        if step > done:
            end = batching.Cursor(len(corpus.sources))
            _save(checkpoints, step + 1, accumulators, counts, end, run.on_cpu)
        checkpoints.close()
    accumulators.wait()
    _log_rate(counts, earlier, time.monotonic() - clock)
    return counts


def _encode(
    run: ComparisonRun,
    encoders: Sequence[SpeechEncoder],
    outputs: Sequence[Outputs],
    batch: batching.Batch,
) -> list[Activations]:
    """The activations of every encoder on a batch.

    An accelerator runs programs one after the other; a CPU would run them concurrently, which is
    slower (by 11 % for two base-size encoders on two cores), so there each is waited for.
    """
    samples, lengths = place_batch(batch.samples, batch.lengths, run.mesh)
    activations = []
    for encoder, output in zip(encoders, outputs):
        model = forward.encode(
            encoder, samples, lengths, output, run.settings.model_precision, run.mesh
        )
        activations.append(jax.block_until_ready(model) if run.on_cpu else model)
    return activations


class _Tally:
    """What was read, counted batch by batch.

    Args:
      earlier: what was read before the last checkpoint.
      digests: whether the digests of all utterances are counted in.
    """

    def __init__(self, earlier: ReadCounts, digests: bool):
        self._counts = dataclasses.replace(earlier, skipped=(), digests=())
        # Lists: tuples that grow by one are copied each time.
        self._skipped, self._digests = list(earlier.skipped), list(earlier.digests)
        self._keeps_digests = digests

    def skip(self, skipped: Skipped) -> None:
        """Add a file that could not be used."""
        self._skipped.append(skipped)

    def add(self, batch: batching.Batch, frames: int) -> None:
        """Add a batch of which so many frames were chosen."""
        self._counts += ReadCounts(len(batch.ids), batch.seconds, frames)
        if self._keeps_digests:
            self._digests += _digests(batch)

    def counts(self) -> ReadCounts:
        """Everything so far."""
        return dataclasses.replace(
            self._counts, skipped=tuple(self._skipped), digests=tuple(self._digests)
        )


def _digests(batch: batching.Batch) -> list[tuple[str, str]]:
    """Id and digest of the samples of each utterance of a batch."""
    waveforms = [x[:length] for x, length in zip(batch.samples, batch.lengths)]
    return [
        (id_, hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest())
        for id_, samples in zip(batch.ids, waveforms)
    ]


def log_skipped(skipped: Skipped) -> None:
    """Log a file that could not be used."""
    _log.warning("skipped %s: %s", skipped.id, skipped.reason)


def _log_rate(counts: ReadCounts, earlier: ReadCounts, elapsed_seconds: float) -> None:
    utterances = counts.utterances - earlier.utterances
    if not utterances:
        return
    seconds = counts.seconds - earlier.seconds
    _log.info(
        "read %s, %.1f s of audio, %d frames in %.1f s (%.2f audio-seconds per second)",
        counted(utterances, "utterance"), seconds, counts.frames - earlier.frames,
        elapsed_seconds, seconds / elapsed_seconds,
    )  # fmt: skip


def _resume(
    checkpoints: Checkpoints | None, accumulators: Accumulators
) -> tuple[int, batching.Cursor, ReadCounts]:
    """Restore the last checkpoint; returns its batch, where to continue, and what was read."""
    saved = checkpoints.latest() if checkpoints is not None else None
    if saved is None:
        return 0, batching.Cursor(), ReadCounts()
    accumulators.restore(saved.state)
    counts = ReadCounts.from_json(saved.metadata["counts"])
    _log.info("resuming after batch %d, %.1f s of audio", saved.step, counts.seconds)
    return saved.step, batching.Cursor.of(saved.metadata["cursor"]), counts


def _save(
    checkpoints: Checkpoints,
    step: int,
    accumulators: Accumulators,
    counts: ReadCounts,
    cursor: batching.Cursor,
    on_cpu: bool,
) -> None:
    """Start writing a checkpoint of everything that `_resume` reads.

    On a CPU, wait until it is written: a snapshot shares the accumulators' memory.
    """
    started = time.monotonic()
    metadata = {"counts": dataclasses.asdict(counts), "cursor": dataclasses.asdict(cursor)}
    checkpoints.save(step, accumulators.snapshot(), metadata)
    if on_cpu:
        checkpoints.wait()
    _log.info(
        "checkpoint %d, %.1f s of audio: %.1f s", step, counts.seconds, time.monotonic() - started
    )


@jax.jit
def _first_bad_frame(activations: Activations) -> Int32[Array, ""]:
    """The first valid frame, on the flattened [batch * frame] axis, that is NaN or inf; or -1."""
    finite = jnp.isfinite(activations.hidden_states).all(axis=(0, 3)) | ~activations.frame_mask
    flat = finite.reshape(-1)
    return jnp.where(flat.all(), -1, jnp.argmin(flat)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class FiniteCheck:
    """Where the hidden states of a batch are not finite, read once it has been computed.

    Attributes:
      names: of the models.
      ids: of the batch's utterances.
      frames: of each utterance, padding included.
      first_bad: of each model, the first frame that is NaN or inf on the flattened axis, or -1.
    """

    names: Sequence[str]
    ids: tuple[str, ...]
    frames: int
    first_bad: Sequence[Int32[Array, ""]]

    def check(self) -> None:
        """Raise UserError that names model, utterance and frame if a hidden state is NaN or inf."""
        for name, first_bad in zip(self.names, self.first_bad):
            if int(first_bad) >= 0:
                row, frame = divmod(int(first_bad), self.frames)
                raise UserError(
                    f"{name}: hidden states of utterance {self.ids[row]!r} are NaN or inf at frame "
                    f"{frame}; the checkpoint does not fit this audio or precision"
                )


def _progress_bar(
    total_seconds: float | int, before: float | int, progress: bool
) -> tqdm.auto.tqdm:
    """Counts audio-seconds, from those read before; the total is unknown where no length is."""
    return tqdm.auto.tqdm(
        total=math.ceil(total_seconds) or None,  # rounded up: batches may add to a little more
        initial=before,  # pyright: ignore[reportArgumentType]  # a float works, too
        desc="audio",
        unit="s",
        disable=not progress,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} audio-seconds "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}]",
    )
