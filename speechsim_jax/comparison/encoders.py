"""`compare`: audio through every model into running statistics; scores at the end."""

import collections
import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.audio import alignments, batching, open_corpus, selection
from speechsim_jax.audio.alignments import Segments, read_alignments
from speechsim_jax.audio.corpus import Corpus, check_any_exists
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.comparison.merge import new_folder, write_record
from speechsim_jax.comparison.score import build_result
from speechsim_jax.errors import UserError, counted
from speechsim_jax.measures import resolve
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.load import load_encoder
from speechsim_jax.pipeline import costs, frame_choice
from speechsim_jax.pipeline.gather import on_all
from speechsim_jax.pipeline.one_pass import Seen
from speechsim_jax.pipeline.run import ComparisonRun, planned, run
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import mesh as sharding
from speechsim_jax.runtime import processes, provenance
from speechsim_jax.settings import Settings, settings_from
from speechsim_jax.statistics.finished import Finished, finished

ModelSource = str | Path | SpeechEncoder

_log = logging.getLogger(__name__)


def compare(
    models: Sequence[ModelSource],
    audio: open_corpus.AudioInput,
    *,
    measures: str | Sequence[str] = "paper",
    levels: Sequence[str] | None = None,
    note: str = "",
    progress: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    checkpoint_dir: str | Path | None = None,
    checkpoint_minutes: float | int = 10.0,
    mesh: str | None = None,
    device_memory_gb: float | int | None = None,
    keep_statistics: str | Path | None = None,
    **settings: Any,
) -> SimilarityResult:
    """How alike are all layers of all models on this audio?

    `models`: hub ids, folders, "random:ID" (untrained, `random_like`) or loaded encoders. `audio`:
    whatever `open_corpus` takes: a folder, a manifest, a list, a file, or waveforms. `measures`:
    "paper", "all" or names (`list_measures`); "paper" and "all" take in the attention level only if
    `levels` names it.
    `note` is kept in the result and shown under its figures. `progress`: show bars on stderr.
    `revision` (branch, tag or commit), `cache_dir` and `local_files_only` are for hub models, as of
    `load_encoder`. `settings`: the fields of `Settings`.
    `checkpoint_dir`: where a long run saves its statistics every `checkpoint_minutes`; if it holds
    a checkpoint of the same job (models, audio, measures, settings, versions), that run goes on, on
    as many devices as there are now. `mesh`: how devices are used, as "data:4,feature:2"
    (`sharding`): those along `data` hear different utterances, those along `feature` share one
    accumulator; all along `data` unless given. `device_memory_gb`: what each device may use (of an
    accelerator nearly all unless given, of a machine three quarters); where the statistics do not
    fit, the audio is read several times and layer pairs are taken in turn (`plan`).
    `keep_statistics`: a folder for what scores are made of, which `merge` adds to that of other
    jobs on other audio.
    Activations are never stored: memory does not depend on the amount of audio.

    >>> result = ss.compare(["facebook/hubert-base-ls960", "runs/mine"], "speech", progress=False)
    >>> result.models
    ('hubert-base-ls960', 'mine')

    Raises:
        UserError: anything wrong with what was given, in one line.
    """
    processes.check_joined()
    options = settings_from(settings)
    chosen = resolve(measures, levels)
    if options.attention_max_seconds is not None and not chosen.attention:
        raise UserError("attention_max_seconds is given, but no measure of the attention level")
    load = functools.partial(
        load_encoder, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    if isinstance(models, str | Path | SpeechEncoder):
        models = [models]
    if not models:
        raise UserError("no models given; expected hub ids or folders")
    seen = Seen(heard=None if keep_statistics is None else [])
    corpus, segments, facts = _open(audio, options, seen)
    _log.info(
        "reading %s, looking at %s",
        counted(len(models), "model"), counted(len(corpus.sources), "audio file"),
    )  # fmt: skip
    encoders = _encoders(models, load, options)
    devices = sharding.mesh_from(mesh)
    budget = costs.budget_bytes(device_memory_gb, devices)
    layers = [_layers_of(encoder, options.layers) for encoder in encoders]
    corpus, listened = _chosen_of(corpus, options)
    share = processes.share(corpus.sources, [source.seconds or 0.0 for source in corpus.sources])
    choice = frame_choice.FrameChoice(
        config=encoders[0].config,
        ids=frozenset(source.id for source in corpus.sources),
        stride=options.frame_stride,
        pool=options.pool,
        segments=segments,
        drop_labels=options.drop_labels,
    )
    versions = provenance.record()["versions"]
    job = ComparisonRun(
        encoders=tuple(encoders),
        layers=tuple(layers),
        chosen=chosen,
        options=options,
        corpus=dataclasses.replace(corpus, sources=share),
        listened=listened,
        choice=choice,
        buckets=_buckets(corpus, options, encoders[0].config),
        mesh=devices,
        identity={
            "audio": corpus.fingerprint(),
            "process": [processes.index(), processes.count()],
            "keep_statistics": keep_statistics is not None,
            "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
            **facts,
        },
        checkpoints=_own_checkpoints(checkpoint_dir),
        checkpoint_minutes=checkpoint_minutes,
        progress=progress and processes.is_first(),
    )
    readings = planned(job, budget)
    with contextlib.ExitStack() as scratch:
        folder = _place_of_statistics(job, keep_statistics, len(readings), scratch)
        parts = run(job, readings, seen, folder)
        if not processes.is_first():
            return on_all(None)
        found = finished(parts, options.rank_tolerance)
        names = [RepresentationName(e.name, l) for e, ls in zip(encoders, layers) for l in ls]
        attributes = _attributes(job, corpus, seen, found, note=note, passes=len(readings), **facts)
        if keep_statistics is not None:
            assert folder is not None and seen.heard is not None
            write_record(folder, names, chosen, len(readings), seen.heard, attributes)
        return on_all(build_result(names, found, chosen, attributes, progress))


def _attributes(
    job: ComparisonRun, corpus: Corpus, seen: Seen, found: Finished, **facts: Any
) -> dict[str, Any]:
    """How the result was made."""
    return provenance.record(
        models={encoder.name: dict(encoder.provenance) for encoder in job.encoders},
        corpus={"origin": corpus.origin, "fingerprint": corpus.fingerprint()},
        settings=dataclasses.asdict(job.options),
        mesh=dict(job.mesh.shape),
        processes=processes.count(),
        numeric={"stats_precision": "highest"} | found.numeric,
        frames=seen.frames,
        rows=found.rows(seen.frames),
        utterances=seen.utterances,
        seconds=seen.seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in seen.skipped],
        **facts,
    )


def _encoders(
    models: Sequence[ModelSource], load: Callable[[str | Path], SpeechEncoder], options: Settings
) -> list[SpeechEncoder]:
    """All models, under distinct names; raises UserError for frames that do not correspond."""
    encoders = _distinct_names([m if isinstance(m, SpeechEncoder) else load(m) for m in models])
    if options.model_dtype != "float32":  # as loaded: an encoder may have been rounded before
        encoders = [encoder.astype(options.model_dtype) for encoder in encoders]
    _check_frame_rates(encoders)
    return encoders


def _chosen_of(corpus: Corpus, options: Settings) -> tuple[Corpus, Corpus]:
    """The utterances that are compared, with their durations; and those whose attention is."""
    if options.max_minutes is not None:
        corpus = selection.select(corpus, options.max_minutes, options.seed)
    corpus = with_durations(corpus)
    if options.attention_max_seconds is None:
        return corpus, corpus
    return corpus, selection.select(corpus, options.attention_max_seconds / 60, options.seed)


def _buckets(
    corpus: Corpus, options: Settings, config: EncoderConfig
) -> tuple[batching.Bucket, ...]:
    """The shapes of the batches."""
    seconds = [source.seconds for source in corpus.sources if source.seconds]
    return batching.plan_buckets(
        seconds or [options.max_seconds],
        hop_samples=config.hop_samples,
        window_samples=config.window_samples,
        count=options.buckets,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )


def _place_of_statistics(
    job: ComparisonRun, keep: str | Path | None, passes: int, scratch: contextlib.ExitStack
) -> Path | None:
    """Where the first process writes the statistics of all; None if they may stay in memory."""
    if not processes.is_first():
        return None
    if keep is not None:
        return new_folder(keep)
    if passes == processes.count() == 1:
        return None
    if job.checkpoints is not None:
        return job.checkpoints / "statistics"
    return Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="speechsim-")))


def _own_checkpoints(folder: str | Path | None) -> Path | None:
    """This process's; raises UserError if those there are of another number of processes."""
    if folder is None:
        return None
    place, count = Path(folder).expanduser(), processes.count()
    names = [path.name for path in place.glob("*")] if place.is_dir() else []
    others = {int(name.rpartition("-")[2]) for name in names if name.startswith("process-")}
    before = others or ({1} if names else {count})
    if before != {count}:
        raise UserError(
            f"the checkpoints in {place} are of a job of {max(before)} processes, and there are "
            f"{count} now; start as many as there were, or anew in another folder"
        )
    return place if count == 1 else place / f"process-{processes.index()}-of-{count}"


def _open(
    audio: open_corpus.AudioInput, options: Settings, seen: Seen
) -> tuple[Corpus, dict[str, Segments] | None, dict[str, Any]]:
    """The corpus, with its alignments if they are asked for, and what the result says of these."""
    corpus = open_corpus.open_corpus(audio)
    check_any_exists(corpus)
    if options.alignments is None:
        return corpus, None, {}
    aligned = read_alignments(options.alignments, options.alignment_tier)
    alignments.check_labels(aligned, options.drop_labels)
    # Every process finds the same utterances without alignment: one of them says so.
    skip = seen.skip if processes.is_first() else lambda _: None
    corpus, segments = alignments.aligned_corpus(corpus, aligned, skip, options.strict)
    return corpus, segments, {"alignments": {"tier": aligned.tier, "sha256": aligned.sha256}}


def _distinct_names(encoders: Sequence[SpeechEncoder]) -> list[SpeechEncoder]:
    """The encoders with names made unique: full sources where they differ, else numbered."""
    named = list(encoders)
    taken = collections.Counter(encoder.name for encoder in named)
    seen: collections.Counter[str] = collections.Counter()
    for index, encoder in enumerate(named):
        if taken[encoder.name] > 1:
            seen[encoder.name] += 1
            label = f"{encoder.name}#{seen[encoder.name]}"
            named[index] = dataclasses.replace(encoder, name=label)
    return named


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


def _layers_of(encoder: SpeechEncoder, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Layer numbers in order, each once; raises UserError for one that the model lacks."""
    depth = encoder.config.num_hidden_layers
    if wanted is None:
        return tuple(range(depth + 1))
    for layer in wanted:
        if not -depth - 1 <= layer <= depth:
            raise UserError(f"{encoder.name} has layers 0 to {depth}; --layers asks for {layer}")
    if not wanted:
        raise UserError("no layers asked for")
    return tuple(sorted({layer % (depth + 1) for layer in wanted}))
