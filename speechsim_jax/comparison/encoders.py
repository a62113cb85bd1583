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

import numpy as np

from speechsim_jax.audio import batching, chosen, selection
from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.audio.corpus import Source, log_skipped, total_seconds
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.audio.tracks import Track
from speechsim_jax.comparison import target
from speechsim_jax.comparison.merge import together
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.request import Request
from speechsim_jax.comparison.score import (
    WELL_KNOWN,
    digest_of,
    kept_once,
    log_unknown_errors,
    scored_once,
    scored_result,
    with_reading,
    worst_known,
)
from speechsim_jax.comparison.tracks import open_tracks
from speechsim_jax.errors import UserError, counted, printable
from speechsim_jax.inference.clusters import cluster, cluster_for_folds
from speechsim_jax.measures.concepts import LabelTrack
from speechsim_jax.measures.influence_sums import InfluenceSums
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
    step_folder,
    step_folders,
)
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts, Step
from speechsim_jax.pipeline.plan import Pass
from speechsim_jax.pipeline.run import (
    Division,
    PassesRun,
    check_enough,
    check_unchanged,
    plan_passes,
    run_passes,
)
from speechsim_jax.pipeline.second_reading import least_bytes, read_again
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.atomic_write import AnyPath, remove_folder
from speechsim_jax.runtime.identity import as_json, difference
from speechsim_jax.runtime.shards import WHOLE
from speechsim_jax.settings import Output, Resources, Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.moments_finished import MomentsState
from speechsim_jax.statistics.store import FinishedStatistics

ModelSource = str | Path | SpeechEncoder
"""A hub id, a folder, "zoo:NAME", "random:ID", or a loaded encoder."""

# In the plan of a step: the utterances that have been read after it.
_END = "end_of_step"

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
    if request.settings.target_se is not None:
        return _compare_to_target(models, audio, request)
    with contextlib.ExitStack() as scratch:
        read = _read(models, audio, request, scratch)
        compared = read.compared.with_given(
            request.settings.given, request.selection, request.settings.given_part
        )
        finished = compared.finish(read.passes.statistics, request.settings.rank_tolerance)
        attributes = read.attributes | {
            "numeric": {"stats_precision": "highest"} | finished.numeric,
            "rows": finished.rows(read.passes.counts.frames),
        }
        output = request.output
        scoring = compared.left, finished, request.selection, attributes, output
        if read.stored_in is None:
            result = scored_result(*scoring)
        else:
            result = scored_once(read.stored_in, *scoring)
        if _reads_again(read, request, result):
            result = _with_reading(read, request, finished, result)
        log_unknown_errors(result, request.selection)
        return result


def _reads_again(read: "_Read", request: Request, result: SimilarityResult) -> bool:
    """Whether standard errors are computed from a second reading; logs why."""
    source, over = request.settings.errors_source, read.run.clustering.over
    if over == "none" or source == "sample" or not request.selection.with_influence:
        return False
    if request.settings.given_part == "explained":
        return False
    if source == "reading":
        return True
    worst = worst_known(result, request.selection)
    if worst <= WELL_KNOWN:
        return False
    least = least_bytes(read.run, read.planned)
    known = f"{100 * worst:.0f} % (median)" if np.isfinite(worst) else "nothing, half of them"
    if least > request.budget_bytes:
        _log.warning(
            "sampled standard errors are known to %s, but %.3g GB of memory are too few for a "
            "second reading, which takes %.3g GB", known, request.budget_bytes / 1e9, least / 1e9,
        )  # fmt: skip
        return False
    _log.info(
        "sampled standard errors are known to %s: the audio is read a second time "
        "(errors_source='sample' does without, errors_stride is quicker)", known,
    )  # fmt: skip
    return True


def _with_reading(
    read: "_Read", request: Request, finished: FinishedStatistics, result: SimilarityResult
) -> SimilarityResult:
    """The result with standard errors from a second reading, which an earlier run may have made."""
    assert finished.moments is not None
    stride, output = request.settings.errors_stride, request.output
    sums = InfluenceSums(finished.moments, request.selection.measures)
    key = ["reading", sums.names, stride, finished.numeric, list(request.settings.given)]

    def with_new(shard: ShardFolder | None) -> SimilarityResult:
        new = read_again(read.run, read.passes.counts, sums, finished.residuals, shard)
        return with_reading(result, new, output, stride)

    if read.shard is None or output.statistics_dir is None:
        return with_new(None)
    shard = read.shard.reading(digest_of(key))
    with shard.opened():
        if read.stored_in is None:
            return with_new(shard)
        names = list(request.selection.names)
        key = [*key, names, output.keep_influence, output.note]
        found = kept_once(read.stored_in, request.selection, key, lambda: with_new(shard))
    remove_folder(shard.path)
    return found


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
    if request.settings.errors_source == "reading":
        raise UserError(
            "errors_source='reading' reads all audio again once the sums of all shards are there, "
            "and merge reads none; use errors_source='sample', or compare"
        )
    if request.settings.target_se is not None:
        raise UserError("accumulate makes no scores, which target_se needs; use compare")
    with contextlib.ExitStack() as scratch:
        _read(models, audio, request, scratch)
    return job_status(job_folder(request.output.statistics_dir).path)


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """Statistics of the audio that was read.

    Attributes:
      compared: the representations.
      passes: statistics and counts.
      attributes: how they were made.
      stored_in: folder of the statistics, None if they are in memory only.
      run: what all readings share.
      planned: the passes.
      shard: where this shard is stored; None if statistics stay in memory.
    """

    compared: Representations
    passes: PassesRun
    attributes: dict[str, Any]
    stored_in: AnyPath | None
    run: ComparisonRun
    planned: tuple[Pass, ...]
    shard: ShardFolder | None


def _read(
    models: Sequence[ModelSource],
    audio: AudioInput,
    request: Request,
    scratch: contextlib.ExitStack,
) -> _Read:
    """Read the audio, or what earlier runs have stored; temporary files live in `scratch`."""
    run, audio_ = _prepared(models, audio, request)
    return _read_run(run, audio_, request, scratch)


def _prepared(
    models: Sequence[ModelSource], audio: AudioInput, request: Request
) -> tuple[ComparisonRun, ChosenAudio]:
    """Choose the audio and load the models."""
    sources = _sources(models)
    audio_ = _choose(audio, request, len(sources))
    tracks = open_tracks(request.settings, request.functions, audio_.corpus)
    run = _comparison_run(_load(sources, request), audio_, tracks, request)
    _compared(run).with_given(request.settings.given, request.selection)  # names are checked first
    return run, audio_


def _read_run(
    run: ComparisonRun,
    audio_: ChosenAudio,
    request: Request,
    scratch: contextlib.ExitStack,
    division: Division | None = None,
) -> _Read:
    """Read the audio of a run, or of one step of it.

    Args:
      run: the comparison.
      audio_: its audio.
      request: where statistics go.
      scratch: temporary files live in it.
      division: how layer pairs are divided over passes, of an earlier step; None for the best way.
    """
    if run.shard.count > len(run.corpus.sources):
        _log.warning(
            "%d shards are more than %s: %d of them have nothing to read", run.shard.count,
            counted(len(run.corpus.sources), "utterance"),
            run.shard.count - len(run.corpus.sources),
        )  # fmt: skip
    compared = _compared(run)
    passes, shard = _opened_shard(run, request, compared, audio_, scratch, division)
    if run.clustering.over != "none" and request.settings.errors_source == "reading":
        least = least_bytes(run, passes)
        if least > request.budget_bytes:
            raise UserError(
                f"{request.budget_bytes} bytes of memory on each device are too few for "
                f"errors_source='reading', which needs all models at once: give at least {least} "
                f"({least / 1e9:.3g} GB), or use errors_source='sample'"
            )
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
    stored_in = shard.path if shard and in_folder else None
    return _Read(compared, done, attributes, stored_in, run, passes, shard)


def _compared(run: ComparisonRun) -> Representations:
    """The layers of all models, then the tracks."""
    names = [RepresentationName(e.name, l) for e, ls in zip(run.encoders, run.layers) for l in ls]
    models = {encoder.name for encoder in run.encoders}
    for track in run.tracks:
        if track.name in models:
            raise UserError(f"a model and a track are both called {track.name!r}; rename one")
    first = len(names)
    names += [RepresentationName(track.name, 0) for track in run.tracks]
    labels = [
        LabelTrack(track.name, first + k, track.classes)
        for k, track in enumerate(run.tracks)
        if track.classes
    ]
    return Representations(tuple(names), tuple(labels))


def _compare_to_target(
    models: Sequence[ModelSource], audio: AudioInput, request: Request
) -> SimilarityResult:
    """Read audio in steps until standard errors are below the target.

    Each step is a job in a folder of its own: one that is complete is not read again, and one that
    has begun reads the same utterances, whatever is predicted now.
    """
    run, audio_ = _prepared(models, audio, request)
    settings, over = request.settings, run.clustering.over
    if over == "none" or settings.target_se is None:
        raise UserError(f"target_se needs standard errors: {run.clustering.reason}")
    # Those whose attention is compared are few and the first of the order, or nearly so.
    attention = run.attention_ids if run.selection.attention.measures else frozenset()
    in_turn = selection.in_turn(run.corpus, settings.seed)
    order = sorted(in_turn, key=lambda source: source.id not in attention)
    reached: list[target.StepReached] = []
    parts: tuple[target.PartScores, ...] = ()
    division: Division | None = None
    end, minutes = 0, target.FIRST_MINUTES
    with contextlib.ExitStack() as scratch:
        path = _folder_of_steps(request, scratch)
        while True:
            folders = [step_folder(path, number + 1) for number in range(len(reached) + 1)]
            start, planned = end, folders[-1].plan()
            end = target.end_of_step(order, start, minutes, run.clustering)
            if planned is not None:
                end = min(planned[_END], len(order))
            result, new = _read_step(run, audio_, request, folders, order[:end], start, division)
            division = Division.from_json((folders[0].plan() or {})["division"])
            reached.append(target.StepReached.of(result, (*parts, new) if parts else (), settings))
            target.log_step(reached, settings, over, order[end:])
            if reached[-1].reached(settings.target_se) or end == len(order):
                facts = target.record(reached, settings, result)
                return result.with_attributes(target=facts)
            parts = (target.PartScores.of(result),)
            minutes = reached[-1].growth * total_seconds(order[:end]) / 60


def _folder_of_steps(request: Request, scratch: contextlib.ExitStack) -> AnyPath:
    """Where the steps are: a temporary folder, if there is none for statistics.

    Raises:
      UserError: the folder is of a comparison that reads its audio at once.
    """
    directory = request.output.statistics_dir
    if directory is None:
        folder = tempfile.TemporaryDirectory(prefix="speechsim-")
        return Path(scratch.enter_context(folder))
    folder = job_folder(directory)
    if folder.plan() is not None:
        raise UserError(
            f"{folder.path} is of another job, without target_se; choose another folder"
        )
    return folder.path


def _read_step(
    run: ComparisonRun,
    audio_: ChosenAudio,
    request: Request,
    folders: Sequence[JobFolder],
    utterances: Sequence[Source],
    start: int,
    division: Division | None,
) -> tuple[SimilarityResult, target.PartScores | None]:
    """Read one step and score everything that was read.

    Args:
      run: the comparison.
      audio_: all of its audio.
      request: what it is asked for.
      folders: of the steps so far, of this one last.
      utterances: of this step and those before.
      start: how many of them steps before have read.
      division: of the first step; None for this.

    Returns:
      The result of the steps so far, and the scores of this step alone, None if it is the first.
    """
    settings, output = request.settings, request.output
    before, ids = (frozenset(s.id for s in p) for p in (utterances[:start], utterances[start:]))
    corpus = dataclasses.replace(
        audio_.corpus, sources=tuple(sorted(utterances, key=lambda source: source.id))
    )
    stored = dataclasses.replace(output, statistics_dir=str(folders[-1].path), keep_statistics=True)
    with contextlib.ExitStack() as scratch:
        read = _read_run(
            dataclasses.replace(run, step=Step(ids, before)),
            audio_ if start == 0 else dataclasses.replace(audio_, skipped=()),
            dataclasses.replace(request, output=stored),
            scratch,
            division,
        )
        tolerance, new = settings.rank_tolerance, None
        if start > 0:
            new = target.scores_of_part(read.passes.statistics, run.selection, tolerance)
        merged, counts = together(folders, scratch)
        check_enough(corpus, counts, merged)
        finished = store.finish(merged, tolerance)
        so_far = dataclasses.replace(audio_, corpus=corpus)
        attributes = _attributes(run, so_far, counts, output.note, len(read.passes.statistics)) | {
            "numeric": {"stats_precision": "highest"} | finished.numeric,
            "rows": finished.rows(counts.frames),
        }
        return scored_result(read.compared, finished, run.selection, attributes, output), new


def _opened_shard(
    run: ComparisonRun,
    request: Request,
    compared: Representations,
    audio_: ChosenAudio,
    scratch: contextlib.ExitStack,
    division: Division | None,
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
    if run.step is None and step_folders(folder.path):
        raise UserError(
            f"{folder.path} holds the steps of a comparison with target_se; choose another folder"
        )
    passes, plan = _planned(run, request, compared, audio_, folder, division)
    shard = folder.shard(run.shard, plan, request.resources.checkpoint_every)
    scratch.enter_context(shard.opened())
    if shard.metadata(1) is not None:
        check_unchanged(run, shard, _touched(run, plan))
    return passes, shard


def _planned(
    run: ComparisonRun,
    request: Request,
    compared: Representations,
    audio_: ChosenAudio,
    folder: JobFolder,
    division: Division | None,
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
    passes = plan_passes(run, budget, division)
    step = {} if run.step is None else {_END: len(run.step.before | run.step.ids)}
    plan = folder.write_plan(
        {
            "identity": identity,
            **step,
            "shards": run.shard.count,
            **compared.as_json(),
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
    later = (
        "rank_tolerance", "strict", "errors_source", "errors_stride", "target_se", "target_of",
        "given", "given_part",
    )  # fmt: skip
    for name in later:
        del settings[name]
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
        "tracks": {track.name: track.record for track in run.tracks if not track.classes},
        "labels": {track.name: track.record for track in run.tracks if track.classes},
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
    encoders: tuple[SpeechEncoder, ...],
    audio_: ChosenAudio,
    tracks: tuple[Track, ...],
    request: Request,
) -> ComparisonRun:
    """What all passes share."""
    settings, corpus = request.settings, audio_.corpus
    clustering = cluster(corpus.sources, settings.errors or "none")
    if request.selection.with_errors:
        if clustering.over == "none":
            _log.info("no standard errors: %s", clustering.reason)
        else:
            _log.info("standard errors over %ss: %s", clustering.over, clustering.reason)
    for_folds = clustering
    labelled = any(track.classes for track in tracks)
    if settings.heldout and (request.selection.with_heldout or labelled):
        for_folds = cluster_for_folds(corpus.sources, settings.errors or "none")
        _log.info("held-out scores in two folds by %s: %s", for_folds.over, for_folds.reason)
    if settings.null != "none" and not request.selection.on(MomentsState.kind):
        _log.warning("no null: none of the measures is on moments of all frames")
    seconds = [source.seconds or 0.0 for source in corpus.sources]
    known = [length for length in seconds if length]
    run = ComparisonRun(
        encoders=encoders,
        layers=tuple(_layers_of(encoder, settings.layers) for encoder in encoders),
        selection=request.selection._replace(
            # What is known of labels has sampled errors in any case.
            errors=clustering.over != "none" and (labelled or settings.errors_source != "reading"),
            heldout=settings.heldout,
            null=settings.null != "none",
            labels=labelled,
            exemplars=settings.exemplars > 0,
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
        tracks=tracks,
    )
    speakers = [tracks[number - len(encoders)].name for number in run.speaker_tracks]
    if speakers:
        _log.info(
            "what is known of %s is held out in folds of utterances: its classes are in one fold "
            "of the others each", ", ".join(speakers),
        )  # fmt: skip
    selection = run.selection._replace(speaker_labels=bool(speakers))
    return dataclasses.replace(run, selection=selection)


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
        **({"tracks": {t.name: t.record for t in run.tracks}} if run.tracks else {}),
        mesh=dict(run.mesh.shape),
        frames=counts.frames,
        utterances=counts.utterances,
        seconds=counts.seconds,
        encoding_seconds=counts.elapsed_seconds,
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
