"""`compare`: encode audio with every model, accumulate statistics, and score them.

`accumulate` does the same for one share of the audio, up to the scores.
"""

import collections
import contextlib
import dataclasses
import hashlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from speechsim_jax.audio import batching, chosen
from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.audio.corpus import log_skipped, total_seconds
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.comparison.request import Request
from speechsim_jax.comparison.score import scored_once, scored_result
from speechsim_jax.errors import UserError, counted, printable
from speechsim_jax.inference.clusters import cluster, cluster_for_folds
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.load import load_encoder
from speechsim_jax.pipeline.attention_inputs import needed_sums
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.job_folder import (
    JobFolder,
    ShardFolder,
    ShardStatus,
    job_folder,
    job_status,
)
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts
from speechsim_jax.pipeline.plan import Pass
from speechsim_jax.pipeline.run import (
    Division,
    PassesRun,
    check_unchanged,
    plan_passes,
    run_passes,
)
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.atomic_write import AnyPath
from speechsim_jax.runtime.identity import as_json, difference
from speechsim_jax.runtime.shards import WHOLE
from speechsim_jax.settings import Output, Resources, Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.moments_finished import MomentsState

ModelSource = str | Path | SpeechEncoder
"""A hub id, a folder, "zoo:NAME", "random:ID", or a loaded encoder."""

_log = logging.getLogger(__name__)


def compare(
    models: Sequence[ModelSource],
    audio: AudioInput,
    measures: str | Sequence[str] = "paper",
    *,
    levels: Sequence[str] | None = None,
    settings: Settings | None = None,
    resources: Resources | None = None,
    output: Output | None = None,
    **overrides: Any,
) -> SimilarityResult:
    """Compare all layers of all models on the same audio.

    Activations are never stored: memory does not depend on the amount of audio.

    >>> result = ss.compare(["facebook/hubert-base-ls960", "runs/mine"], "speech", progress=False)
    >>> result.models
    ('hubert-base-ls960', 'mine')

    Args:
      models: hub ids, folders, "zoo:NAME", "random:ID" (untrained, see `random_like`) or loaded
        encoders.
      audio: a folder, a manifest, a list, a file, "hf:NAME/CONFIG/SPLIT", or waveforms (see
        `open_corpus`).
      measures: "paper", "all" or names (see `list_measures`). "paper" and "all" include the
        attention level only if `levels` names it.
      levels: keep only measures of these levels.
      settings: everything that can change a number.
      resources: where models come from, devices, memory and checkpoints.
      output: stored statistics, note and progress bars.
      overrides: single fields of `Settings`, `Resources` and `Output` by name.

    Returns:
      All scores, labelled, with their provenance.

    Raises:
      UserError: anything wrong with the arguments, in one line.
    """
    request = Request.checked(measures, levels, settings, resources, output, overrides)
    if request.shard != WHOLE:
        raise UserError(
            f"shard {request.shard} has no result of its own; use accumulate, and merge when all "
            "shards are complete"
        )
    with contextlib.ExitStack() as scratch:
        read = _read(models, audio, request, scratch)
        finished = store.finish(read.passes.statistics, request.settings.rank_tolerance)
        attributes = read.attributes | {
            "numeric": {"stats_precision": "highest"} | finished.numeric,
            "rows": finished.rows(read.passes.counts.frames),
        }
        output = request.output
        scoring = read.names, finished, request.selection, attributes, output
        if read.stored_in is None:
            return scored_result(*scoring)
        return scored_once(read.stored_in, *scoring)


def accumulate(
    models: Sequence[ModelSource],
    audio: AudioInput,
    measures: str | Sequence[str] = "paper",
    *,
    levels: Sequence[str] | None = None,
    settings: Settings | None = None,
    resources: Resources | None = None,
    output: Output | None = None,
    **overrides: Any,
) -> list[ShardStatus]:
    """Read one share of the audio and store its statistics; `merge` makes the result of all.

    >>> models = ["facebook/hubert-base-ls960", "runs/mine"]
    >>> for shard in ("1/2", "2/2"):  # on two machines that share a folder
    ...     done = ss.accumulate(
    ...         models, "speech", shard=shard, statistics_dir="parts", progress=False
    ...     )
    >>> [status.state for status in done]
    ['done', 'done']
    >>> result = ss.merge(["parts"], progress=False)

    Args:
      models: as in `compare`.
      audio: as in `compare`; the same for all shards, which choose the same from it.
      measures: as in `compare`.
      levels: as in `compare`.
      settings: as in `compare`.
      resources: as in `compare`; `shard` says which share is read.
      output: as in `compare`; `statistics_dir` is needed.
      overrides: as in `compare`.

    Returns:
      How far all shards are.

    Raises:
      UserError: anything wrong with the arguments; another process works on this shard.
    """
    request = Request.checked(measures, levels, settings, resources, output, overrides)
    if request.output.statistics_dir is None or not request.output.keep_statistics:
        raise UserError("accumulate needs statistics_dir, the folder that all shards fill")
    with contextlib.ExitStack() as scratch:
        _read(models, audio, request, scratch)
    return job_status(job_folder(request.output.statistics_dir).path)


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """Statistics of the audio that was read.

    Attributes:
      names: of the representations.
      passes: statistics and counts.
      attributes: how they were made.
      stored_in: folder of the statistics, None if they are in memory only.
    """

    names: list[RepresentationName]
    passes: PassesRun
    attributes: dict[str, Any]
    stored_in: AnyPath | None


def _read(
    models: Sequence[ModelSource],
    audio: AudioInput,
    request: Request,
    scratch: contextlib.ExitStack,
) -> _Read:
    """Read the audio, or what earlier runs have stored; temporary files live in `scratch`."""
    sources = _sources(models)
    audio_ = _choose(audio, request, len(sources))
    encoders = _load(sources, request)
    run = _comparison_run(encoders, audio_, request)
    if run.shard.count > len(run.corpus.sources):
        _log.warning(
            "%d shards are more than %s: %d of them have nothing to read", run.shard.count,
            counted(len(run.corpus.sources), "utterance"),
            run.shard.count - len(run.corpus.sources),
        )  # fmt: skip
    names = [RepresentationName(e.name, l) for e, ls in zip(encoders, run.layers) for l in ls]
    passes, shard = _opened_shard(run, request, names, audio_, scratch)
    stored = request.output.statistics_dir is not None
    keep = stored and request.output.keep_statistics
    complete = None if shard is None else shard.complete()
    done = run_passes(run, passes, shard, keep)
    counts = ReadCounts(skipped=audio_.skipped if run.shard.index == 1 else ()) + done.counts
    attributes = _attributes(run, audio_, counts, request.output.note, len(passes))
    if shard is not None and complete is not None and complete["passes"] != done.names:
        shard.retract()  # some of its passes were damaged, and have been read again
        complete = None
    if shard is not None and keep and complete is None:
        record = {"counts": dataclasses.asdict(counts), "attributes": attributes}
        shard.finish({"passes": done.names, **record})
    in_folder = shard is not None and stored and bool(done.names)
    return _Read(names, done, attributes, shard.path if shard and in_folder else None)


def _opened_shard(
    run: ComparisonRun,
    request: Request,
    names: Sequence[RepresentationName],
    audio_: ChosenAudio,
    scratch: contextlib.ExitStack,
) -> tuple[tuple[Pass, ...], ShardFolder | None]:
    """The passes, and where this shard is stored: locked, and of unchanged audio.

    Returns:
      The passes and the folder, a temporary one for several passes; None if statistics stay in
      memory.

    Raises:
      UserError: the folder is of another job, or audio in its sums was replaced.
      LockedError: another process works on the shard.
    """
    directory = request.output.statistics_dir
    if directory is None:
        passes = plan_passes(run, request.budget_bytes)
        if len(passes) == 1:
            return passes, None
        # The next pass needs the memory, so statistics go to a file.
        folder = tempfile.TemporaryDirectory(prefix="speechsim-")
        temporary = JobFolder(Path(scratch.enter_context(folder)))
        shard = temporary.shard(run.shard, {"checksum": ""}, float("inf"))
        scratch.enter_context(shard.opened())
        return passes, shard
    folder = job_folder(directory)
    passes, plan = _planned(run, request, names, audio_, folder)
    shard = folder.shard(run.shard, plan, request.resources.checkpoint_every)
    scratch.enter_context(shard.opened())
    if shard.metadata(1) is not None:
        check_unchanged(run, shard, _touched(run, plan))
    return passes, shard


def _planned(
    run: ComparisonRun,
    request: Request,
    names: Sequence[RepresentationName],
    audio_: ChosenAudio,
    folder: JobFolder,
) -> tuple[tuple[Pass, ...], dict[str, Any]]:
    """The passes, as the plan in the folder divides them, and this plan, which is made if needed.

    Raises:
      UserError: the plan is of another job.
    """
    budget = request.budget_bytes
    identity = as_json(_identity(run, audio_))
    plan = folder.plan()
    if plan is not None:
        _check_same_job(plan, identity, run, folder)
        return plan_passes(run, budget, Division.from_json(plan["division"])), plan
    passes = plan_passes(run, budget)
    plan = folder.write_plan(
        {
            "identity": identity,
            "shards": run.shard.count,
            "representations": [[name.model, name.layer] for name in names],
            "measures": list(run.selection.names),
            "passes": len(passes),
            "division": Division.of(passes).as_json(),
            "files": {source.id: source.stamp() for source in run.corpus.sources},
            "seconds": total_seconds(run.corpus.sources),
        }
    )
    _check_same_job(plan, identity, run, folder)
    # Another shard may have been first.
    division = Division.from_json(plan["division"])
    return passes if division == Division.of(passes) else plan_passes(run, budget, division), plan


def _identity(run: ComparisonRun, audio_: ChosenAudio) -> dict[str, Any]:
    """Everything that affects the statistics, for JSON."""
    settings = dataclasses.asdict(run.settings) | {"errors": run.clustering.over}
    for later in ("rank_tolerance", "strict"):
        del settings[later]
    versions = provenance.record()["versions"]
    return {
        "audio": audio_.corpus.fingerprint(),
        "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
        **audio_.alignments,
        # Weights, the type they are rounded to, and everything that config.json states.
        "models": {
            encoder.name: [
                encoder.provenance.get("sha256"),
                encoder.provenance.get("kernels"),
                _digest(encoder.config),
            ]
            for encoder in run.encoders
        },
        "statistics": list(run.selection.accumulated),
        "attention": list(needed_sums(run.selection.on("attention"))),
        **settings,
    }


def _digest(config: EncoderConfig) -> str:
    """Short, and different for a different configuration."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:16]


def _check_same_job(
    plan: dict[str, Any], identity: dict[str, Any], run: ComparisonRun, folder: JobFolder
) -> None:
    """Raise UserError, naming what differs, unless the plan in the folder is of this job."""
    then, now = (
        plan["identity"] | {"shards": plan["shards"]},
        identity | {"shards": run.shard.count},
    )
    if then == now:
        return
    # Another setting may have chosen other audio.
    without_audio = [{n: v for n, v in one.items() if n != "audio"} for one in (then, now)]
    differing = difference(*without_audio)
    if differing is None:
        files = {source.id: source.stamp()[:1] for source in run.corpus.sources}
        before = {id_: stamp[:1] for id_, stamp in plan["files"].items()}
        changed = [id_ for id_ in before.keys() & files.keys() if before[id_] != files[id_]]
        kinds = {
            "has changed": sorted(changed),
            "is missing": sorted(before.keys() - files.keys()),
            "is new": sorted(files.keys() - before.keys()),
        }
        parts = [
            f"{ids[0]} {what}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
            for what, ids in kinds.items()
            if ids
        ]
        differing = f"audio: {', '.join(parts)}"
    raise UserError(
        f"{folder.path} is of another job: {differing}; undo the change, or start from the "
        "beginning in another folder"
    )


def _touched(run: ComparisonRun, plan: dict[str, Any]) -> frozenset[str]:
    """Ids of the files that were written to since the plan was made."""
    before = plan["files"]
    return frozenset(
        source.id for source in run.corpus.sources if before.get(source.id) != source.stamp()
    )


def _sources(models: Sequence[ModelSource]) -> list[ModelSource]:
    """The models as a list; raises UserError if there are none."""
    if isinstance(models, str | Path | SpeechEncoder):
        return [models]
    sources = list(models)
    if not sources:
        raise UserError("no models given; expected hub ids or folders")
    return sources


def _choose(audio: AudioInput, request: Request, models: int) -> ChosenAudio:
    """The audio that is compared; logs what was left out."""
    audio_ = chosen.choose(audio, request.settings)
    for skipped in audio_.skipped if request.shard.index == 1 else ():
        log_skipped(skipped)
    _log.info(
        "comparing %s on %s",
        counted(models, "model"), counted(len(audio_.corpus.sources), "audio file"),
    )  # fmt: skip
    return audio_


def _load(sources: Sequence[ModelSource], request: Request) -> tuple[SpeechEncoder, ...]:
    """All models, under distinct names; raises UserError for frames that do not correspond."""
    resources, dtype = request.resources, request.settings.model_dtype
    encoders = [
        source
        if isinstance(source, SpeechEncoder)
        else load_encoder(
            source,
            revision=resources.revision,
            cache_dir=resources.cache_dir,
            local_files_only=resources.local_files_only,
        )
        for source in sources
    ]
    encoders = _distinct_names(encoders)
    if dtype != "float32":  # otherwise as loaded: an encoder may have been rounded before
        encoders = [encoder.astype(dtype) for encoder in encoders]
    _check_frame_rates(encoders)
    return tuple(encoders)


def _comparison_run(
    encoders: tuple[SpeechEncoder, ...], audio_: ChosenAudio, request: Request
) -> ComparisonRun:
    """What all passes share."""
    settings, corpus = request.settings, audio_.corpus
    clustering = cluster(corpus.sources, settings.errors or "none")
    if request.selection.with_influence:
        if clustering.over == "none":
            _log.info("no standard errors: %s", clustering.reason)
        else:
            _log.info("standard errors over %ss: %s", clustering.over, clustering.reason)
    for_folds = clustering
    if settings.heldout and request.selection.with_heldout:
        for_folds = cluster_for_folds(corpus.sources, settings.errors or "none")
        _log.info("held-out scores in two folds by %s: %s", for_folds.over, for_folds.reason)
    if settings.null != "none" and not request.selection.on(MomentsState.kind):
        _log.warning("no null: none of the measures is on moments of all frames")
    seconds = [source.seconds or 0.0 for source in corpus.sources]
    known = [length for length in seconds if length]
    return ComparisonRun(
        encoders=encoders,
        layers=tuple(_layers_of(encoder, settings.layers) for encoder in encoders),
        selection=request.selection._replace(
            errors=clustering.over != "none",
            heldout=settings.heldout,
            null=settings.null != "none",
        ),
        settings=settings,
        corpus=corpus,
        shard=request.shard,
        attention_corpus=audio_.attention_corpus,
        choice=FrameChoice(
            config=encoders[0].config,
            ids=frozenset(source.id for source in corpus.sources),
            stride=settings.frame_stride,
            pool=settings.pool,
            segments=audio_.segments,
            drop_labels=settings.drop_labels,
        ),
        buckets=batching.plan_buckets(
            known or [settings.max_seconds],
            hop_samples=encoders[0].config.hop_samples,
            window_samples=encoders[0].config.window_samples,
            count=settings.buckets,
            batch_seconds=settings.batch_seconds,
            max_seconds=settings.max_seconds,
        ),
        mesh=request.mesh,
        progress=request.output.progress,
        clustering=clustering,
        clustering_of_folds=for_folds,
    )


def _attributes(
    run: ComparisonRun, audio_: ChosenAudio, counts: ReadCounts, note: str, passes: int
) -> dict[str, Any]:
    """How the statistics were made."""
    return provenance.record(
        models={printable(encoder.name): dict(encoder.provenance) for encoder in run.encoders},
        corpus={
            "origin": audio_.corpus.origin,
            "fingerprint": audio_.corpus.fingerprint(),
            **audio_.corpus.facts,
        },
        settings=dataclasses.asdict(run.settings),
        errors={"over": run.clustering.over, "reason": run.clustering.reason},
        heldout={
            "over": run.clustering_of_folds.over if run.selection.heldout else "none",
            "reason": run.clustering_of_folds.reason if run.selection.heldout else "not asked for",
        },
        null={"kind": run.settings.null, "draws": run.settings.null_draws},
        mesh=dict(run.mesh.shape),
        frames=counts.frames,
        utterances=counts.utterances,
        seconds=counts.seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in counts.skipped],
        reading=dict(counts.notes),
        duplicates=len(counts.duplicates),
        note=note,
        passes=passes,
        **audio_.alignments,
    )


def _distinct_names(encoders: Sequence[SpeechEncoder]) -> list[SpeechEncoder]:
    """The encoders with unique names: as much of their sources as tells them apart, or numbers."""
    named = list(encoders)
    names = collections.Counter(encoder.name for encoder in named)
    for name in (name for name, count in names.items() if count > 1):
        same = [k for k, encoder in enumerate(named) if encoder.name == name]
        for k, label in zip(same, _labels([named[k] for k in same])):
            named[k] = dataclasses.replace(named[k], name=label)
    return named


def _labels(encoders: Sequence[SpeechEncoder]) -> list[str]:
    """Labels for encoders of one name: the shortest ends of their sources that differ."""
    parts = [PurePath(str(e.provenance.get("source", e.name))).parts for e in encoders]
    for length in range(2, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{encoder.name}#{number}" for number, encoder in enumerate(encoders, start=1)]


def _check_frame_rates(encoders: Sequence[SpeechEncoder]) -> None:
    """Raise UserError unless all models make the same frames of a waveform."""
    first = encoders[0]
    for other in encoders[1:]:
        shapes = [(e.config.hop_samples, e.config.window_samples) for e in (first, other)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{first.name} makes a frame every {shapes[0][0]} samples (window {shapes[0][1]}), "
                f"{other.name} every {shapes[1][0]} (window {shapes[1][1]}); frames must correspond"
            )


def _layers_of(encoder: SpeechEncoder, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """Layer numbers in order, each once; raises UserError for one that the model lacks."""
    depth = encoder.config.num_hidden_layers
    if layers is None:
        return tuple(range(depth + 1))
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(f"{encoder.name} has layers 0 to {depth}; `layers` asks for {layer}")
    return tuple(sorted({layer % (depth + 1) for layer in layers}))
