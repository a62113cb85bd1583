"""`compare`: audio through every model, once, into running statistics; scores at the end."""

import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechsim_jax import audio as sound
from speechsim_jax import frames, provenance, selection, sharding
from speechsim_jax.accumulate import Statistics, build_result
from speechsim_jax.alignments import Segments, read_alignments
from speechsim_jax.checkpoints import Checkpoints
from speechsim_jax.errors import UserError
from speechsim_jax.measures import resolve
from speechsim_jax.models.encoder import Outputs, SpeechEncoder
from speechsim_jax.models.loading import load_encoder
from speechsim_jax.reading import Seen, read_through
from speechsim_jax.results import NetworkName, SimilarityResult
from speechsim_jax.settings import Settings, settings_from

_log = logging.getLogger(__name__)

ModelSource = str | Path | SpeechEncoder


def compare(
    models: Sequence[ModelSource],
    audio: sound.AudioInput,
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
    **settings: Any,
) -> SimilarityResult:
    """How alike are all layers of all models on this audio?

    `models`: hub ids, folders, "random:ID" (untrained, `random_like`) or loaded encoders. `audio`:
    whatever `open_corpus` takes: a folder, a manifest, a list, a file, or waveforms. `measures`:
    "paper", "all" or names (`list_measures`); "paper" and "all" take in the attention level only if
    `levels` names it.
    `note` is kept in the result and shown under its figures. `settings`: the fields of `Settings`.
    `checkpoint_dir`: where a long run saves its statistics every `checkpoint_minutes`; if it holds
    a checkpoint of the same job (models, audio, measures, settings, versions), that run goes on, on
    as many devices as there are now. `mesh`: how devices are used, as "data:4,feature:2"
    (`sharding`): those along `data` hear different utterances, those along `feature` share one
    accumulator; all along `data` unless given.
    Activations are never stored: memory does not depend on the amount of audio. Raises UserError
    for anything wrong with what was given.
    """
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
    seen = Seen()
    corpus, segments, facts = _open(audio, options, seen)
    encoders = _distinct_names([m if isinstance(m, SpeechEncoder) else load(m) for m in models])
    if options.model_dtype != "float32":  # as loaded: an encoder may have been rounded before
        encoders = [encoder.astype(options.model_dtype) for encoder in encoders]
    _check_frame_rates(encoders)
    devices = sharding.mesh_from(mesh)
    encoders = [
        dataclasses.replace(e, parameters=sharding.replicate(e.parameters, devices))
        for e in encoders
    ]
    layers = [_layers_of(encoder, options.layers) for encoder in encoders]
    if options.max_minutes is not None:
        corpus = selection.select(corpus, options.max_minutes, options.seed)
    if options.attention_max_seconds is not None and not chosen.measures:
        corpus = selection.select(corpus, options.attention_max_seconds / 60, options.seed)
    corpus = selection.durations(corpus)
    choice = frames.FrameChoice(
        config=encoders[0].config,
        ids=frozenset(source.id for source in corpus.sources),
        stride=options.frame_stride,
        pool=options.pool,
        segments=segments,
        drop_labels=options.drop_labels,
    )
    outputs = [
        Outputs(layers=ls, last_layer=options.last_layer, projections=bool(chosen.attention))
        for ls in layers
    ]
    statistics = Statistics(chosen, encoders, layers, options, corpus, devices)
    checkpoints = None
    if checkpoint_dir is not None:
        versions = provenance.record()["versions"]
        identity = statistics.identity() | {
            "audio": corpus.fingerprint(),
            "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
            **facts,
        }
        checkpoints = Checkpoints(checkpoint_dir, identity, checkpoint_minutes)
    started = time.monotonic()
    read_through(
        encoders, outputs, corpus, choice, statistics, options, seen, checkpoints, devices, progress
    )
    statistics.wait()
    _report(corpus, statistics.rows(seen.frames), seen, time.monotonic() - started)
    finished = statistics.finish(options.rank_tolerance)
    names = [NetworkName(e.name, l) for e, ls in zip(encoders, layers) for l in ls]
    attributes = provenance.record(
        note=note,
        models={encoder.name: dict(encoder.provenance) for encoder in encoders},
        corpus={"origin": corpus.origin, "fingerprint": corpus.fingerprint()},
        settings=dataclasses.asdict(options),
        mesh=dict(devices.shape),
        numeric={"stats_precision": "highest"} | finished.numeric,
        frames=seen.frames,
        rows=statistics.rows(seen.frames),
        utterances=seen.utterances,
        seconds=seen.seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in seen.skipped],
        **facts,
    )
    return build_result(names, finished, chosen, attributes, progress)


def _open(
    audio: sound.AudioInput, options: Settings, seen: Seen
) -> tuple[sound.Corpus, dict[str, Segments] | None, dict[str, Any]]:
    """The corpus, with its alignments if they are asked for, and what the result says of these."""
    corpus = sound.open_corpus(audio)
    if options.alignments is None:
        return corpus, None, {}
    aligned = read_alignments(options.alignments, options.alignment_tier)
    frames.check_labels(aligned, options.drop_labels)
    corpus, segments = frames.aligned_corpus(corpus, aligned, seen.skip, options.strict)
    return corpus, segments, {"alignments": {"tier": aligned.tier, "sha256": aligned.sha256}}


def _report(corpus: sound.Corpus, rows: int, seen: Seen, elapsed_seconds: float) -> None:
    """Log what was read; raises UserError unless it gave two rows."""
    if rows < 2 and seen.utterances:
        raise UserError(
            f"{corpus.origin}: {seen.frames} frames of {seen.utterances} utterances are chosen and "
            f"give {rows} rows; at least 2 are needed (frame_stride, pool, drop_labels)"
        )
    if rows < 2:
        skipped = seen.skipped[0] if seen.skipped else None
        first = f", the first: {skipped.id} {skipped.reason}" if skipped else ""
        raise UserError(
            f"{corpus.origin}: no usable audio ({len(seen.skipped)} files skipped{first})"
        )
    _log.info(
        "read %d utterances, %.1f s of audio, %d frames in %.1f s (%.2f audio-seconds per second)",
        seen.utterances, seen.seconds, seen.frames, elapsed_seconds, seen.seconds / elapsed_seconds,
    )  # fmt: skip


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
