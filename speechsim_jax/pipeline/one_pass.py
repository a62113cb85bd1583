"""One pass over a corpus: every model encodes every batch, every accumulator adds it up.

With checkpoints a pass can be interrupted anywhere and resumes after the last one.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import tqdm.auto
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32

from speechsim_jax.array_types import Lengths
from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, Corpus, Skipped, log_skipped
from speechsim_jax.audio.label_sources import UtteranceLabels
from speechsim_jax.audio.tracks import Track
from speechsim_jax.errors import UserError, counted
from speechsim_jax.inference.clusters import GROUPS, Clustering
from speechsim_jax.inference.clusters import folds as divided
from speechsim_jax.inference.standard_errors import LEAST_CLUSTERS
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.external import Encoder, ExternalEncoder
from speechsim_jax.pipeline import frame_choice
from speechsim_jax.pipeline.accumulators import Accumulators, PassSetup
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.frame_grid import FrameGrid
from speechsim_jax.pipeline.job_folder import ShardFolder
from speechsim_jax.pipeline.plan import NeededLayers, Pass
from speechsim_jax.pipeline.track_rows import TrackRows
from speechsim_jax.runtime.mesh import place_batch
from speechsim_jax.runtime.shards import Shard, shares
from speechsim_jax.settings import Settings
from speechsim_jax.statistics import attention_sums
from speechsim_jax.statistics.accumulator import BatchRows, Snapshot
from speechsim_jax.statistics.clustered_sample import ClusterChoice, choose
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.null_rows import swap_partners, swap_ring
from speechsim_jax.statistics.product_precision import Precision
from speechsim_jax.statistics.store import PassStatistics
from speechsim_jax.statistics.swapped_moments import SwapPlan

# Most that the sums of groups of utterances take of each device.
_GROUPS_BYTES = 2**30

# Most that the sampled rows take of the host where there are labels.
_LABELLED_BYTES = 2**30

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Step:
    """One of several steps in which the audio is read, where scores decide how much of it.

    Attributes:
      ids: the utterances of this step.
      before: those of the steps before.
    """

    ids: frozenset[str]
    before: frozenset[str]


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonRun:
    """What all passes of a comparison share.

    Attributes:
      encoders: the models.
      layers: the hidden states that are compared, by model.
      selection: the measures.
      settings: of the comparison.
      corpus: the audio of all shards.
      shard: which share of it this process reads.
      attention_corpus: what attention is compared on, of all shards.
      choice: which frames are rows.
      buckets: shapes of the batches.
      mesh: the devices.
      progress: whether a bar is shown.
      clustering: what standard errors are taken over.
      clustering_of_folds: what folds are made of.
      precision: of products, as it is on these devices.
      tracks: features and labels that are compared, too.
      step: the part of the corpus that is read; None for all of it.
      pairs: of representations that are compared, by number; None for all.
    """

    encoders: tuple[Encoder, ...]
    layers: tuple[tuple[int, ...], ...]
    selection: MeasureSelection
    settings: Settings
    corpus: Corpus
    shard: Shard
    attention_corpus: Corpus
    choice: FrameChoice
    buckets: tuple[batching.Bucket, ...]
    mesh: Mesh
    progress: bool
    clustering: Clustering
    clustering_of_folds: Clustering
    precision: Precision
    tracks: tuple[Track, ...] = ()
    step: Step | None = None
    pairs: frozenset[tuple[int, int]] | None = None

    @property
    def grid(self) -> FrameGrid:
        """The frames that are compared."""
        return self.choice.grid

    @property
    def shapes(self) -> tuple[ModelShape, ...]:
        """Layers and width of each model, and then of each track."""
        return (
            *(
                ModelShape(len(layers), encoder.config.hidden_size)
                for encoder, layers in zip(self.encoders, self.layers)
            ),
            *(ModelShape(1, track.width) for track in self.tracks),
        )

    def needed(
        self, models: Sequence[NeededLayers]
    ) -> tuple[list[NeededLayers], tuple[Track, ...]]:
        """The encoders and the tracks among models that are numbered as in `shapes`."""
        count = len(self.encoders)
        return (
            [needed for needed in models if needed.model < count],
            tuple(self.tracks[needed.model - count] for needed in models if needed.model >= count),
        )

    def track_rows(self, tracks: tuple[Track, ...]) -> TrackRows:
        """What computes the rows of tracks."""
        return TrackRows(tracks, self.grid, self.mesh)

    @functools.cached_property
    def expected_rows(self) -> dict[str, int]:
        """Rows of each utterance, as far as they are known before reading."""
        known = [source.seconds for source in self.corpus.sources if source.seconds]
        mean = float(np.mean(known)) if known else self.settings.max_seconds
        hop = self.grid.hop_samples * self.settings.frame_stride
        return {
            source.id: 1
            if self.settings.pool == "utterance"
            else max(int((source.seconds or mean) * SAMPLE_RATE_HZ / hop), 1)
            for source in self.corpus.sources
        }

    @functools.cached_property
    def cluster_choice(self) -> ClusterChoice:
        """The clusters and rows that standard errors are estimated from, the same in all shards.

        Those of a step are for what it and the steps before read.
        """
        clustering = self.clustering
        if self.step is not None:
            read = self.step.before | self.step.ids
            of = {id_: name for id_, name in clustering.of.items() if id_ in read}
            clustering = dataclasses.replace(clustering, of=of)
        lengths, most = clustering.lengths(self.expected_rows), self.settings.errors_rows
        chosen = choose(lengths, most, self.settings.seed)
        if not self.selection.labels:
            return chosen
        # Single classes and neurons need more rows than means over neurons do.
        neurons = sum(shape.layers * shape.neurons for shape in self.shapes)
        most = min(max(_LABELLED_BYTES // (4 * neurons), chosen.expected_rows), most)
        more = choose(lengths, most, self.settings.seed, share=1.0)
        return more.with_fewer_for_measures(chosen)

    @functools.cached_property
    def folds(self) -> dict[str, int]:
        """The fold of each utterance, for held-out scores; empty without these."""
        if not self.selection.heldout:
            return {}
        return self.clustering_of_folds.folds(self.expected_rows, self.settings.seed)

    @functools.cached_property
    def speaker_tracks(self) -> tuple[int, ...]:
        """Numbers, as in `shapes`, of the labels that speakers, or utterances, have to themselves.

        Each of their classes is in one fold of the audio.
        """
        found = []
        for number, track in enumerate(self.tracks, start=len(self.encoders)):
            of_class = one_fold_each(track, self.folds)
            if of_class:
                found.append(number)
        return tuple(found)

    @functools.cached_property
    def utterance_folds(self) -> dict[str, int]:
        """The fold of each utterance where those of each speaker are divided; empty if not needed.

        Those of a class of the first such label are balanced in rows.
        """
        if not self.speaker_tracks or not self.selection.heldout:
            return {}
        track = self.tracks[self.speaker_tracks[0] - len(self.encoders)]
        assert isinstance(track, UtteranceLabels)
        lengths: dict[int, dict[str, int]] = {}
        for utterance, number in track.numbers.items():
            lengths.setdefault(number, {})[utterance] = self.expected_rows[utterance]
        return {
            utterance: fold
            for of_class in lengths.values()
            for utterance, fold in divided(of_class, self.settings.seed).items()
        }

    @functools.cached_property
    def attention_groups(self) -> dict[str, int]:
        """The group of each utterance whose attention is compared; empty without standard errors.

        Fewer groups where heads are so many that sums of 20 would be too large; none for fewer
        than there can be intervals of.
        """
        if not self.selection.errors or not self.selection.attention.measures:
            return {}
        heads = sum(
            encoder.config.num_attention_heads * sum(layer > 0 for layer in layers)
            for encoder, layers in zip(self.encoders, self.layers)
        )
        count = min(GROUPS, _GROUPS_BYTES // (4 * attention_sums.numbers(heads)))
        if count < LEAST_CLUSTERS:
            _log.info("no standard errors of attention: sums of %d groups are too large", GROUPS)
            return {}
        rows = {id_: self.expected_rows[id_] for id_ in self.attention_ids}
        return self.clustering.groups(rows, self.settings.seed, count)

    @functools.cached_property
    def _ring(self) -> tuple[str, ...]:
        """The order in which utterances are paired by the null "swap"."""
        speakers = {source.id: source.speaker for source in self.corpus.sources}
        return swap_ring(speakers, self.settings.seed, self.settings.null_draws)

    @functools.cached_property
    def swap(self) -> SwapPlan | None:
        """The utterances that the null "swap" pairs; None without it."""
        if not self.selection.null or self.settings.null != "swap":
            return None
        sources = self.corpus.sources
        speakers = {source.id: source.speaker for source in sources}
        longest = max(bucket.samples for bucket in self.buckets)
        return SwapPlan(
            name=self.corpus.fingerprint(),
            partners=tuple(
                swap_partners(self._ring, speakers, draw)
                for draw in range(self.settings.null_draws)
            ),
            pieces={
                source.id: -(-round(source.seconds * SAMPLE_RATE_HZ) // longest)
                if source.seconds
                else sys.maxsize
                for source in sources
            },
        )

    @functools.cached_property
    def share(self) -> Corpus:
        """The audio that this process reads."""
        sources = self.corpus.sources
        if self.step is not None:
            sources = tuple(source for source in sources if source.id in self.step.ids)
        if self.swap is None:
            parts = shares([source.seconds or 0.0 for source in sources], self.shard.count)
        else:  # those that are paired together, so that few rows wait for each other
            at = {source.id: k for k, source in enumerate(sources)}
            bounds = np.linspace(0, len(sources), self.shard.count + 1).astype(int)
            order = [at[name] for name in self._ring]
            parts = [order[start:end] for start, end in itertools.pairwise(bounds.tolist())]
        chosen = tuple(sources[k] for k in parts[self.shard.index - 1])
        return dataclasses.replace(self.corpus, sources=chosen)

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


def one_fold_each(track: Track, folds: Mapping[str, int]) -> bool:
    """Whether the utterances of each class of a label are in one of two folds.

    And some class has two utterances, which can be divided.
    """
    if not isinstance(track, UtteranceLabels) or not folds:
        return False
    found: dict[int, list[int]] = {}
    for utterance, number in track.numbers.items():
        if number >= 0:
            found.setdefault(number, []).append(folds[utterance])
    several = any(len(of) > 1 for of in found.values())
    return several and all(len(set(of)) == 1 for of in found.values())


@dataclasses.dataclass(frozen=True)
class ReadCounts:
    """How much was read. Counts of disjoint audio add up.

    Attributes:
      utterances: that were encoded, pieces of long ones counted one by one.
      seconds: of audio in them.
      frames: that were chosen.
      skipped: files that could not be used.
      digests: id and digest of the samples of each utterance or piece.
      notes: what was guessed or changed in reading, with the number of utterances.
      elapsed_seconds: that reading and encoding took, in all passes.
    """

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    skipped: tuple[Skipped, ...] = ()
    digests: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, int], ...] = ()
    elapsed_seconds: float = 0.0

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(
            self.utterances + other.utterances,
            self.seconds + other.seconds,
            self.frames + other.frames,
            self.skipped + other.skipped,
            self.digests + other.digests,
            tuple(
                sorted(
                    (
                        collections.Counter(dict(self.notes))
                        + collections.Counter(dict(other.notes))
                    ).items()
                )
            ),
            self.elapsed_seconds + other.elapsed_seconds,
        )

    @property
    def duplicates(self) -> list[tuple[str, str]]:
        """Utterances with the same samples, each with the first that had them."""
        first: dict[str, str] = {}
        return [
            (first[digest], id_)
            for id_, digest in self.digests
            if first.setdefault(digest, id_) != id_
        ]

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "ReadCounts":
        """The inverse of `dataclasses.asdict`, through JSON."""
        skipped = tuple(Skipped(**entry) for entry in record["skipped"])
        digests = tuple((id_, digest) for id_, digest in record["digests"])
        notes = tuple((note, count) for note, count in record["notes"])
        return cls(**record | {"skipped": skipped, "digests": digests, "notes": notes})


def run_pass(
    run: ComparisonRun,
    number: int,
    pass_: Pass,
    encoders: Sequence[Encoder],
    corpus: Corpus,
    shard: ShardFolder | None,
    expected: Mapping[str, str] | None = None,
) -> tuple[PassStatistics, ReadCounts]:
    """Run one pass, from its last checkpoint if there is one.

    Args:
      run: what all passes share.
      number: of the pass, from 1 on.
      pass_: the pass.
      encoders: all models of the run; those of the pass are placed on the devices.
      corpus: what is read.
      shard: where checkpoints are, None for none.
      expected: digest of each utterance as an earlier pass has read it, None for the first.

    Returns:
      The statistics and what was read.

    Raises:
      UserError: a hidden state that is NaN or inf, or audio that has changed since an earlier pass.
    """
    of_encoders, tracks = run.needed(pass_.models)
    layers = tuple(tuple(run.layers[n.model][l] for l in n.layers) for n in of_encoders)
    placed = tuple(forward.on_devices(encoders[n.model], run.mesh, n.depth) for n in of_encoders)
    attention_ids = run.attention_ids
    if not pass_.selection.without_attention.measures:
        sources = tuple(source for source in corpus.sources if source.id in attention_ids)
        corpus = dataclasses.replace(corpus, sources=sources)
    accumulators = Accumulators(
        PassSetup(
            selection=pass_.selection,
            encoders=placed,
            layers=layers,
            tracks=tuple(track.width for track in tracks),
            grid=run.grid,
            indices=tuple((n.model, l) for n in pass_.models for l in n.layers),
            tiles=pass_.local_tiles,
            settings=run.settings,
            attention_ids=attention_ids,
            mesh=run.mesh,
            clustering=run.clustering,
            cluster_choice=run.cluster_choice,
            clustering_of_folds=run.clustering_of_folds,
            folds=run.folds,
            utterance_folds=run.utterance_folds,
            speaker_tracks=tuple(
                k for k, n in enumerate(pass_.models) if n.model in run.speaker_tracks
            ),
            attention_groups=run.attention_groups,
            swap=run.swap,
            utterances=tuple(source.id for source in run.corpus.sources),
            stats_precision=run.precision.statistics,
        )
    )
    attention = bool(pass_.selection.attention.measures)
    outputs = [run.outputs(of_model, attention) for of_model in layers]
    if corpus.sources:
        _compile(placed, outputs, run)
    checkpoints = shard and _Checkpoints(shard, number, run.on_cpu)
    rows = run.track_rows(tracks)
    counts = _read_corpus(run, placed, outputs, rows, corpus, accumulators, checkpoints, expected)
    return accumulators.result(), counts


@runtime_checkable
class BatchSink(Protocol):
    """What `_read_corpus` adds batches to: the `Accumulators` of a pass, or another sum."""

    def append(self, activations: Sequence[Activations], lengths: Lengths, rows: BatchRows) -> None:
        """Add a batch."""
        ...

    def snapshot(self) -> dict[str, Snapshot]:
        """For a checkpoint, by kind."""
        ...

    def restore(self, snapshot: dict[str, Snapshot]) -> None:
        """Resume from a checkpoint."""
        ...

    def wait(self) -> None:
        """Block until everything added so far has been computed."""
        ...


def read_all_layers(
    run: ComparisonRun,
    corpus: Corpus,
    sink: BatchSink,
    shard: ShardFolder | None,
    expected: Mapping[str, str],
) -> None:
    """Read the audio again with all compared layers of all models, from the last checkpoint on.

    Args:
      run: what all passes share.
      corpus: what is read.
      sink: what takes the rows.
      shard: where checkpoints are, None for none.
      expected: digest of each utterance as the passes have read it.

    Raises:
      UserError: as `run_pass`.
    """
    placed = tuple(
        forward.on_devices(encoder, run.mesh, max(layers))
        for encoder, layers in zip(run.encoders, run.layers)
    )
    outputs = [run.outputs(of_model, attention=False) for of_model in run.layers]
    _compile(placed, outputs, run)
    checkpoints = shard and _Checkpoints(shard, 1, run.on_cpu)
    rows = run.track_rows(run.tracks)
    _read_corpus(run, placed, outputs, rows, corpus, sink, checkpoints, expected)


def _compile(encoders: Sequence[Encoder], outputs: Sequence[Outputs], run: ComparisonRun) -> None:
    """Compile all forward passes in parallel, not one by one as batches need them."""

    def compile_one(encoder: SpeechEncoder, output: Outputs, bucket: batching.Bucket) -> None:
        shape = bucket.batch, bucket.samples
        forward.lower_encode(encoder, shape, output, run.precision.models, run.mesh).compile()

    # Models of one architecture share a program.
    compiled = [(e, o) for e, o in zip(encoders, outputs) if isinstance(e, SpeechEncoder)]
    programs = {(e.graph, o): (e, o) for e, o in compiled}
    if not programs:
        return
    number = counted(len(programs) * len(run.buckets), "program")
    _log.info("compiling %s (architectures x lengths of audio)", number)
    pool = ThreadPoolExecutor()
    try:
        jobs = [
            pool.submit(compile_one, encoder, output, bucket)
            for bucket in run.buckets
            for encoder, output in programs.values()
        ]
        for job in jobs:
            job.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt waits for nothing


def _read_corpus(
    run: ComparisonRun,
    encoders: Sequence[Encoder],
    outputs: Sequence[Outputs],
    track_rows: TrackRows,
    corpus: Corpus,
    accumulators: BatchSink,
    checkpoints: "_Checkpoints | None",
    expected: Mapping[str, str] | None,
) -> ReadCounts:
    """The loop over batches, from the last checkpoint if there is one."""
    done, cursor, earlier = 0, batching.Cursor(), ReadCounts()
    if checkpoints is not None:
        done, cursor, earlier = checkpoints.resume(accumulators)
    lengths = {source.id: source.seconds or 0.0 for source in corpus.sources}
    before = earlier.seconds + sum(lengths.get(skip.id, 0.0) for skip in earlier.skipped)
    checks: collections.deque[FiniteCheck] = collections.deque()
    names = [encoder.name for encoder in encoders]
    with _progress_bar(sum(lengths.values()), before, run.progress) as bar:
        tally = _Tally(earlier, expected)

        def on_skip(skip: Skipped) -> None:
            log_skipped(skip)
            tally.skip(skip)
            bar.update(lengths[skip.id])

        batches = batching.batches(
            corpus,
            run.buckets,
            min_samples=run.grid.window_samples,
            strict=run.settings.strict,
            on_skip=on_skip,
            on_note=tally.note,
            attach=track_rows.of_piece if track_rows.tracks else None,
            start=cursor,
        )
        for step, batch in enumerate(batches, start=done + 1):
            batch = batching.pad_to_multiple(batch, run.mesh.size)
            activations = _encode(run, encoders, outputs, batch)
            frames = int(run.grid.frames(batch.samples.shape[1]))
            first_bad = [_first_bad_frame(model) for model in activations]
            checks.append(FiniteCheck(names, batch.ids, frames, first_bad))
            activations += track_rows.of_batch(batch, frames)
            chosen = run.choice.of(batch, frames)
            activations = [frame_choice.pooled(model, chosen) for model in activations]
            accumulators.append(activations, batch.lengths, chosen.rows)
            del activations
            if run.on_cpu:
                accumulators.wait()
            tally.add(batch, chosen.frames)
            bar.update(batch.seconds)
            # One batch behind: the device is never idle, and never has two batches waiting.
            if len(checks) > 1:
                checks.popleft().check()
            if checkpoints is not None and checkpoints.due():
                checks.pop().check()
                checkpoints.save(step, accumulators, tally.counts(), batch.after)
        if bar.total:
            # The lengths that file headers state may be a little too large.
            bar.update(max(bar.total - bar.n, 0))
    for waiting in checks:
        waiting.check()
    accumulators.wait()
    counts = tally.counts()
    _log_rate(counts, earlier)
    return counts


def _encode(
    run: ComparisonRun,
    encoders: Sequence[Encoder],
    outputs: Sequence[Outputs],
    batch: batching.Batch,
) -> list[Activations]:
    """The activations of every encoder on a batch, at the frames that are compared.

    An accelerator runs programs one after the other; a CPU would run them concurrently, which is
    slower (by 11 % for two base-size encoders on two cores), so there each is waited for.
    """
    samples, lengths = place_batch(batch.samples, batch.lengths, run.mesh)
    activations = []
    for encoder, output in zip(encoders, outputs):
        if isinstance(encoder, ExternalEncoder):
            model = encoder.apply(batch.samples, batch.lengths, output, run.mesh)
        else:
            model = forward.encode(
                encoder, samples, lengths, output, run.precision.models, run.mesh
            )
        model = run.grid.onto(encoder.config, model, batch.samples.shape[1])
        activations.append(jax.block_until_ready(model) if run.on_cpu else model)
    return activations


class _Tally:
    """What was read, counted batch by batch.

    Args:
      earlier: what was read before the last checkpoint.
      expected: digest of each utterance in an earlier pass; None if this is the first.
    """

    def __init__(self, earlier: ReadCounts, expected: Mapping[str, str] | None):
        self._counts = dataclasses.replace(earlier, skipped=(), digests=(), notes=())
        self._started = time.monotonic()
        # Lists: tuples that grow by one are copied each time.
        self._skipped, self._digests = list(earlier.skipped), list(earlier.digests)
        self._notes = collections.Counter(dict(earlier.notes))
        self._expected = expected

    def skip(self, skipped: Skipped) -> None:
        """Add a file that could not be used."""
        self._skipped.append(skipped)

    def note(self, note: str) -> None:
        """Count what was guessed or changed in reading an utterance."""
        self._notes[note] += 1

    def add(self, batch: batching.Batch, frames: int) -> None:
        """Add a batch of which so many frames were chosen."""
        self._counts += ReadCounts(len(batch.ids), batch.seconds, frames)
        digests, expected = _digests(batch), self._expected
        for id_, digest in digests:
            if expected is not None and expected.get(id_) != digest:
                raise UserError(
                    f"the audio of {id_} has changed since the first pass; start from the beginning"
                )
        self._digests += digests

    def counts(self) -> ReadCounts:
        """Everything so far."""
        return dataclasses.replace(
            self._counts,
            skipped=tuple(self._skipped),
            digests=tuple(self._digests),
            notes=tuple(sorted(self._notes.items())),
            elapsed_seconds=self._counts.elapsed_seconds + time.monotonic() - self._started,
        )


def _digests(batch: batching.Batch) -> list[tuple[str, str]]:
    """Id and digest of the samples of each utterance of a batch."""
    waveforms = [x[:length] for x, length in zip(batch.samples, batch.lengths)]
    return [(id_, digest_of(samples)) for id_, samples in zip(batch.ids, waveforms)]


def digest_of(samples: Float32[np.ndarray, " sample"]) -> str:
    """Digest of decoded samples, in hex."""
    return hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).hexdigest()


def _log_rate(counts: ReadCounts, earlier: ReadCounts) -> None:
    utterances = counts.utterances - earlier.utterances
    if not utterances:
        return
    seconds = counts.seconds - earlier.seconds
    elapsed_seconds = counts.elapsed_seconds - earlier.elapsed_seconds
    _log.info(
        "read %s, %.1f s of audio, %d frames in %.1f s (%.2f audio-seconds per second)",
        counted(utterances, "utterance"), seconds, counts.frames - earlier.frames,
        elapsed_seconds, seconds / elapsed_seconds,
    )  # fmt: skip


class _Checkpoints:
    """The checkpoints of one pass: its accumulators, what was read, and where to continue.

    Args:
      shard: where they are.
      number: of the pass.
      on_cpu: whether the devices are CPUs.
    """

    def __init__(self, shard: ShardFolder, number: int, on_cpu: bool):
        self._shard, self._number, self._on_cpu = shard, number, on_cpu
        self.due = shard.due

    def resume(self, accumulators: BatchSink) -> tuple[int, batching.Cursor, ReadCounts]:
        """Restore the last checkpoint; returns its batch, where to continue, and what was read."""
        saved = self._shard.checkpoint(self._number)
        if saved is None:
            return 0, batching.Cursor(), ReadCounts()
        accumulators.restore(saved.snapshots)
        counts = ReadCounts.from_json(saved.metadata["counts"])
        _log.info("resuming after batch %d, %.1f s of audio", saved.batch, counts.seconds)
        return saved.batch, batching.Cursor.of(saved.metadata["cursor"]), counts

    def save(
        self, batch: int, accumulators: BatchSink, counts: ReadCounts, cursor: batching.Cursor
    ) -> None:
        """Start writing a checkpoint of everything that `resume` reads.

        On a CPU, wait until it is written: a snapshot shares the accumulators' memory.
        """
        started = time.monotonic()
        metadata = {"counts": dataclasses.asdict(counts), "cursor": dataclasses.asdict(cursor)}
        self._shard.save(self._number, batch, accumulators.snapshot(), metadata)
        if self._on_cpu:
            self._shard.wait()
        took = time.monotonic() - started
        _log.info("checkpoint %d, %.1f s of audio: %.1f s", batch, counts.seconds, took)


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
