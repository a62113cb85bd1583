"""`compare`: encode audio with every model, accumulate statistics, and score them."""

import collections
import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from speechsim_jax.audio import batching, chosen
from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.comparison.job_record import new_folder, write_record
from speechsim_jax.comparison.request import Request
from speechsim_jax.comparison.score import scored_result
from speechsim_jax.errors import UserError, counted
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.load import load_encoder
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.gather import on_all
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts, log_skipped
from speechsim_jax.pipeline.run import plan_passes, run_passes
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import processes, provenance
from speechsim_jax.settings import Output, Resources, Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.store import FinishedStatistics

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
    sources = _sources(models)
    audio_ = _choose(audio, request, len(sources))
    encoders = _load(sources, request)
    run = _run(encoders, audio_, request)
    passes = plan_passes(run, request.budget_bytes)
    with contextlib.ExitStack() as scratch:
        folder = _statistics_folder(run, request.output, len(passes), scratch)
        statistics, counts = run_passes(run, passes, folder)
        if not processes.is_first():
            return on_all(None)
        finished = store.finish(statistics, request.settings.rank_tolerance)
        names = [RepresentationName(e.name, l) for e, ls in zip(encoders, run.layers) for l in ls]
        counts = ReadCounts(skipped=audio_.skipped) + counts
        attributes = _attributes(run, audio_, counts, finished, request.output.note, len(passes))
        if folder is not None and request.output.keep_statistics is not None:
            write_record(folder, names, run.selection, len(passes), counts.digests, attributes)
        progress = request.output.progress
        return on_all(scored_result(names, finished, run.selection, attributes, progress))


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
    if processes.is_first():  # the choice is the same on every process
        for skipped in audio_.skipped:
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


def _run(
    encoders: tuple[SpeechEncoder, ...], audio_: ChosenAudio, request: Request
) -> ComparisonRun:
    """What all passes share."""
    settings, corpus = request.settings, audio_.corpus
    seconds = [source.seconds or 0.0 for source in corpus.sources]
    known = [length for length in seconds if length]
    versions = provenance.record()["versions"]
    return ComparisonRun(
        encoders=encoders,
        layers=tuple(_layers_of(encoder, settings.layers) for encoder in encoders),
        selection=request.selection,
        settings=settings,
        corpus=dataclasses.replace(corpus, sources=processes.share(corpus.sources, seconds)),
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
        identity={
            "audio": corpus.fingerprint(),
            "process": [processes.index(), processes.count()],
            "keep_statistics": request.output.keep_statistics is not None,
            "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
            **audio_.alignments,
        },
        checkpoints=request.checkpoints,
        checkpoint_every=request.resources.checkpoint_every,
        digests=request.output.keep_statistics is not None,
        progress=request.output.progress and processes.is_first(),
    )


def _statistics_folder(
    run: ComparisonRun, output: Output, passes: int, scratch: contextlib.ExitStack
) -> Path | None:
    """Where the first process writes the statistics; None if they may stay in memory."""
    if not processes.is_first():
        return None
    if output.keep_statistics is not None:
        return new_folder(output.keep_statistics)
    if passes == processes.count() == 1:
        return None
    if run.checkpoints is not None:
        return run.checkpoints / "statistics"
    return Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="speechsim-")))


def _attributes(
    run: ComparisonRun,
    audio_: ChosenAudio,
    counts: ReadCounts,
    finished: FinishedStatistics,
    note: str,
    passes: int,
) -> dict[str, Any]:
    """How the result was made."""
    return provenance.record(
        models={encoder.name: dict(encoder.provenance) for encoder in run.encoders},
        corpus={"origin": audio_.corpus.origin, "fingerprint": audio_.corpus.fingerprint()},
        settings=dataclasses.asdict(run.settings),
        mesh=dict(run.mesh.shape),
        processes=processes.count(),
        numeric={"stats_precision": "highest"} | finished.numeric,
        frames=counts.frames,
        rows=finished.rows(counts.frames),
        utterances=counts.utterances,
        seconds=counts.seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in counts.skipped],
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
