"""What a comparison needs before it reads: the audio that is chosen, models, tracks, facts."""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from speechsim_jax.audio import batching, chosen
from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, log_skipped
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.audio.tracks import Track
from speechsim_jax.comparison.pairs import chosen_pairs
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.request import Request
from speechsim_jax.comparison.tracks import open_tracks
from speechsim_jax.errors import UserError, counted, printable
from speechsim_jax.inference.clusters import cluster, cluster_for_folds
from speechsim_jax.measures.concepts import LabelTrack
from speechsim_jax.models import torch_models
from speechsim_jax.models.checkpoint_files import TORCH_PREFIX
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.external import Encoder, ExternalEncoder, Representing, measured
from speechsim_jax.models.load import load_encoder
from speechsim_jax.models.torch_models import TorchModule
from speechsim_jax.pipeline import costs
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.frame_grid import FrameGrid
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts
from speechsim_jax.pipeline.pass_memory import IndexPair
from speechsim_jax.results.depth import relative_depth
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.runtime import provenance
from speechsim_jax.settings import Settings, layer_numbers
from speechsim_jax.statistics.moments_finished import MomentsState

ModelSource = str | Path | SpeechEncoder | Representing | TorchModule
"""A hub id, a folder, "zoo:NAME", "random:ID", "torch:ID", a loaded encoder, an object of your own
with `representations`, or a module of torch."""

_log = logging.getLogger(__name__)


def prepared(
    models: Sequence[ModelSource], audio: AudioInput, request: Request
) -> tuple[ComparisonRun, ChosenAudio]:
    """Choose the audio and load the models."""
    sources = _sources(models)
    audio_ = _choose(audio, request, len(sources))
    tracks = open_tracks(request.settings, request.functions, audio_.corpus)
    run = _comparison_run(_load(sources, request), audio_, tracks, request)
    compared_in(run).with_given(
        request.settings.given, request.selection
    )  # names are checked first
    return run, audio_


def _sources(models: Sequence[ModelSource]) -> list[ModelSource]:
    """The models as a list; raises UserError if there are none."""
    if isinstance(models, str | Path | SpeechEncoder | Representing | TorchModule):
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


def _load(sources: Sequence[ModelSource], request: Request) -> tuple[Encoder, ...]:
    """All models, under distinct names."""
    if request.settings.torch_layers and not any(map(_is_of_torch, sources)):
        raise UserError("torch_layers is given, but no model that torch runs (torch:ID)")
    encoders = _distinct_names([_loaded(source, request) for source in sources])
    external = [encoder.name for encoder in encoders if isinstance(encoder, ExternalEncoder)]
    if external and request.selection.attention.measures:
        raise UserError(
            f"{external[0]} has no attention heads that are known; leave out the attention level"
        )
    dtype = request.settings.model_dtype
    if dtype == "float32":  # as loaded: an encoder may have been rounded before
        return tuple(encoders)
    if external:
        raise UserError(
            f"model_dtype={dtype!r} is for encoders of this package, and {external[0]} is none"
        )
    return tuple(e.astype(dtype) for e in encoders if isinstance(e, SpeechEncoder))


def _is_of_torch(source: ModelSource) -> bool:
    """Whether torch is to run a model."""
    if isinstance(source, str):
        return source.startswith(TORCH_PREFIX)
    return isinstance(source, TorchModule) and not isinstance(source, Representing)


def _loaded(source: ModelSource, request: Request) -> Encoder:
    """One model, from wherever it is."""
    if isinstance(source, SpeechEncoder):
        return source
    if isinstance(source, Representing):
        return measured(source)
    resources, settings = request.resources, request.settings
    by_torch: dict[str, Any] = {
        "layers": settings.torch_layers,
        "last_layer": settings.last_layer,
        "device": resources.torch_device,
    }
    if isinstance(source, TorchModule):
        return torch_models.of_module(source, **by_torch)
    where: dict[str, Any] = {
        "revision": resources.revision,
        "cache_dir": resources.cache_dir,
        "local_files_only": resources.local_files_only,
    }
    if isinstance(source, str) and source.startswith(TORCH_PREFIX):
        return torch_models.load(source.removeprefix(TORCH_PREFIX), **by_torch, **where)
    return load_encoder(source, **where)


def _comparison_run(
    encoders: tuple[Encoder, ...],
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
    check_divided(tracks, request.mesh.shape["feature"])
    for_folds = clustering
    # What is given leaves the result.
    stay = [track for track in tracks if not {track.name, f"{track.name}/0"} & {*settings.given}]
    labelled = any(track.classes for track in stay)
    if settings.heldout and (request.selection.with_heldout or labelled):
        for_folds = cluster_for_folds(corpus.sources, settings.errors or "none")
        _log.info("held-out scores in two folds by %s: %s", for_folds.over, for_folds.reason)
    if settings.null != "none" and not request.selection.on(MomentsState.kind):
        _log.warning("no null: none of the measures is on moments of all frames")
    seconds = [source.seconds or 0.0 for source in corpus.sources]
    known = [length for length in seconds if length]
    grid = _grid_of(encoders, request)
    longest = _longest_seconds(grid, settings)
    run = ComparisonRun(
        encoders=encoders,
        layers=tuple(
            layer_numbers(settings.layers, encoder.config.num_hidden_layers, encoder.name)
            for encoder in encoders
        ),
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
            grid=grid,
            ids=frozenset(source.id for source in corpus.sources),
            stride=settings.frame_stride,
            pool=settings.pool,
            segments=audio_.segments,
            drop_labels=settings.drop_labels,
        ),
        buckets=batching.plan_buckets(
            known or [longest],
            hop_samples=grid.hop_samples,
            window_samples=grid.window_samples,
            count=settings.buckets,
            batch_seconds=settings.batch_seconds,
            max_seconds=longest,
            least_row_seconds=(grid.longest_samples or 0) / SAMPLE_RATE_HZ,
            utterances=len(seconds),
            program_seconds=costs.program_seconds(encoders),
        ),
        mesh=request.mesh,
        progress=request.output.progress,
        clustering=clustering,
        clustering_of_folds=for_folds,
        precision=request.precision,
        tracks=tracks,
    )
    speakers = [tracks[number - len(encoders)].name for number in run.speaker_tracks]
    if speakers and not settings.given:
        _log.info(
            "what is known of %s is held out in folds of utterances: its classes are in one fold "
            "of the others each", ", ".join(speakers),
        )  # fmt: skip
    selection = run.selection._replace(speaker_labels=bool(speakers) and not settings.given)
    return dataclasses.replace(run, selection=selection, pairs=_pairs(run))


def _pairs(run: ComparisonRun) -> frozenset[IndexPair] | None:
    """The pairs of representations that are compared; None for all."""
    names = compared_in(run).names
    depths = [
        depth
        for encoder, layers in zip(run.encoders, run.layers)
        for depth in relative_depth(layers, encoder.config.num_hidden_layers).tolist()
    ]
    tracks = range(len(depths), len(names))
    return chosen_pairs(
        run.settings.pairs, names, [*depths, *(0.0 for _ in tracks)], tracks, run.settings.given
    )


def _longest_seconds(grid: FrameGrid, settings: Settings) -> float | int:
    """Utterances longer than this are cut: `max_seconds`, or less if a model takes no more."""
    if grid.longest_samples is None:
        return settings.max_seconds
    # The longest row may exceed the longest utterance by less than a frame.
    limit = (grid.longest_samples - grid.hop_samples) / SAMPLE_RATE_HZ
    if limit < settings.max_seconds:
        _log.info("utterances longer than %.4g s are cut: a model takes no longer ones", limit)
    return min(settings.max_seconds, limit)


def compared_in(run: ComparisonRun) -> Representations:
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
    return Representations(tuple(names), tuple(labels), pairs=run.pairs)


def attributes_of(
    run: ComparisonRun, audio_: ChosenAudio, counts: ReadCounts, note: str, passes: int
) -> dict[str, Any]:
    """How the statistics were made."""
    return provenance.record(
        models={
            printable(encoder.name): {
                **encoder.provenance,
                "num_hidden_layers": encoder.config.num_hidden_layers,
            }
            for encoder in run.encoders
        },
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
        precision=run.precision._asdict(),
        mesh=dict(run.mesh.shape),
        frame_grid=run.grid.record(),
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


def _distinct_names(encoders: Sequence[Encoder]) -> list[Encoder]:
    """The encoders with unique names: as much of their sources as tells them apart, or numbers."""
    named = list(encoders)
    names = collections.Counter(encoder.name for encoder in named)
    for name in (name for name, count in names.items() if count > 1):
        same = [k for k, encoder in enumerate(named) if encoder.name == name]
        for k, label in zip(same, _labels([named[k] for k in same])):
            named[k] = dataclasses.replace(named[k], name=label)
    return named


def _labels(encoders: Sequence[Encoder]) -> list[str]:
    """Labels for encoders of one name: the shortest ends of their sources that differ."""
    parts = [PurePath(str(e.provenance.get("source", e.name))).parts for e in encoders]
    for length in range(2, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{encoder.name}#{number}" for number, encoder in enumerate(encoders, start=1)]


def _grid_of(encoders: Sequence[Encoder], request: Request) -> FrameGrid:
    """The frames that are compared; raises UserError where attention has none in common."""
    grid = FrameGrid.of({encoder.name: encoder.config for encoder in encoders})
    if grid.is_shared:
        return grid
    if request.selection.attention.measures:
        shapes = [f"{e.name} ({e.config.frames_in_words})" for e in encoders]
        raise UserError(
            f"attention is compared frame by frame, and these models make other frames: "
            f"{', '.join(shapes)}; leave out the attention level, or compare models of one kind"
        )
    _log.info(
        "models make different frames: compared on those of %s, every %g ms; of the others, the "
        "means within each", grid.slowest, 1e3 * grid.hop_samples / SAMPLE_RATE_HZ,
    )  # fmt: skip
    return grid


def check_divided(tracks: Sequence[Track], feature: int) -> None:
    """Raise UserError for a track whose numbers cannot be divided over so many devices."""
    for track in tracks:
        if track.width % feature:
            raise UserError(
                f"mesh: {track.width} numbers of the track {track.name} cannot be divided over "
                f"feature:{feature}; use a mesh of data alone"
            )
