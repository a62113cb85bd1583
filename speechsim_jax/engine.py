"""`compare`: audio through every model, once, into running statistics; scores at the end."""

import collections
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tqdm.auto
from jaxtyping import Array, Int32

from speechsim_jax import audio as sound
from speechsim_jax import batching, frames, provenance, selection
from speechsim_jax.accumulate import Statistics, build_result
from speechsim_jax.alignments import Segments, read_alignments
from speechsim_jax.errors import UserError
from speechsim_jax.measures import resolve
from speechsim_jax.models.encoder import Activations, Outputs, SpeechEncoder
from speechsim_jax.models.loading import load_encoder
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
    **settings: Any,
) -> SimilarityResult:
    """How alike are all layers of all models on this audio?

    `models`: hub ids, folders, "random:ID" (untrained, `random_like`) or loaded encoders. `audio`:
    whatever `open_corpus` takes: a folder, a manifest, a list, a file, or waveforms. `measures`:
    "paper", "all" or names (`list_measures`); "paper" and "all" take in the attention level only if
    `levels` names it.
    `note` is kept in the result and shown under its figures. `settings`: the fields of `Settings`.
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
    statistics = Statistics(chosen, encoders, layers, options, corpus)
    started = time.monotonic()
    _read(encoders, outputs, corpus, choice, statistics, options, seen, progress)
    statistics.wait()
    _report(corpus, statistics.rows(seen.frames), seen, time.monotonic() - started)
    finished = statistics.finish(options.rank_tolerance)
    names = [NetworkName(e.name, l) for e, ls in zip(encoders, layers) for l in ls]
    attributes = provenance.record(
        note=note,
        models={encoder.name: dict(encoder.provenance) for encoder in encoders},
        corpus={"origin": corpus.origin, "fingerprint": corpus.fingerprint()},
        settings=dataclasses.asdict(options),
        numeric={"stats_precision": "highest"} | finished.numeric,
        frames=seen.frames,
        rows=statistics.rows(seen.frames),
        utterances=seen.utterances,
        seconds=seen.seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in seen.skipped],
        **facts,
    )
    return build_result(names, finished, chosen, attributes, progress)


@dataclasses.dataclass
class Seen:
    """What the stream has brought so far; `frames` are those that were chosen."""

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    skipped: list[sound.Skipped] = dataclasses.field(default_factory=list)

    def skip(self, skipped: sound.Skipped) -> None:
        """Keep a file that could not be used, and say so."""
        _log.warning("skipped %s: %s", skipped.id, skipped.reason)
        self.skipped.append(skipped)


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


def _read(
    encoders: Sequence[SpeechEncoder],
    outputs: Sequence[Outputs],
    corpus: sound.Corpus,
    choice: frames.FrameChoice,
    statistics: Statistics,
    options: Settings,
    seen: Seen,
    progress: bool,
) -> None:
    """One pass over the corpus: every model encodes every batch once, every statistic sees it."""
    seconds = [source.seconds for source in corpus.sources if source.seconds]
    buckets = batching.plan_buckets(
        seconds or [options.max_seconds],
        count=options.buckets,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )
    batches = batching.batches(corpus, buckets, strict=options.strict, on_skip=seen.skip)
    checks: collections.deque[FiniteCheck] = collections.deque()
    names = [encoder.name for encoder in encoders]
    with _progress_bar(sum(seconds), progress) as bar:
        for batch in batches:
            acts = [
                encoder.apply(batch.samples, batch.lengths, wanted, options.model_precision)
                for encoder, wanted in zip(encoders, outputs)
            ]
            width = acts[0].frame_mask.shape[1]
            checks.append(FiniteCheck(names, batch.ids, width, [_first_bad_frame(a) for a in acts]))
            picked = choice.of(batch, width)
            acts = [frames.pooled(a, picked) for a in acts]
            statistics.append(acts, batch, picked.rows)
            del acts
            # One batch behind: the device is never idle, and never has two batches waiting.
            if len(checks) > 1:
                checks.popleft().check()
            seen.frames += picked.frames
            seen.utterances += len(batch.ids)
            seen.seconds += batch.seconds
            bar.update(batch.seconds)
    for waiting in checks:
        waiting.check()


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


@jax.jit
def _first_bad_frame(acts: Activations) -> Int32[Array, ""]:
    """The first valid frame, on the flattened [batch * frame] axis, that is NaN or inf; or -1."""
    finite = jnp.isfinite(acts.hidden_states).all(axis=(0, 3)) | ~acts.frame_mask
    flat = finite.reshape(-1)
    return jnp.where(flat.all(), -1, jnp.argmin(flat)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class FiniteCheck:
    """Where the hidden states of a batch are not finite, per model; looked at once computed."""

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


def _progress_bar(total_seconds: float, progress: bool) -> tqdm.auto.tqdm:
    return tqdm.auto.tqdm(
        total=math.ceil(total_seconds) or None,  # what comes may round to a little more
        desc="audio",
        unit="s",
        disable=not progress,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} audio-seconds "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}]",
    )


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
