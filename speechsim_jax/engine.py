"""`compare`: audio through every model, once, into running statistics; scores at the end."""

import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tqdm.auto
from jaxtyping import Array, Int32, Int64

from speechsim_jax import audio as sound
from speechsim_jax import batching, provenance, selection
from speechsim_jax.errors import UserError
from speechsim_jax.measures import resolve
from speechsim_jax.measures.base import Measure, Ranking
from speechsim_jax.measures.finalise import score_all
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import Activations, Outputs, SpeechEncoder
from speechsim_jax.models.loading import load_encoder
from speechsim_jax.results import NetworkName, SimilarityResult
from speechsim_jax.statistics.finished import FinishedMoments
from speechsim_jax.statistics.moments import Stream
from speechsim_jax.statistics.rows import MomentsStream
from speechsim_jax.typing import FrameMask

_log = logging.getLogger(__name__)

ModelSource = str | Path | SpeechEncoder


@dataclasses.dataclass(frozen=True)
class Settings:
    """How `compare` works; everything that can change a number is here and in the result.

    `layers`: hidden states to compare, in every model (-1 is the last), all if None.
    `max_minutes`: a seeded choice of utterances, balanced over speakers.
    `batch_seconds`, `buckets`, `max_seconds`: audio in one batch, how many padded lengths are
    compiled, and the length beyond which an utterance is cut into equal pieces.
    `rows_per_update`: frames gathered before the statistics are updated.
    `rank_tolerance`: smallest eigenvalue kept in whitening, relative to the largest (default:
    1e-6 for float32 statistics, width * 2.2e-16 for float64).
    `strict`: a file that cannot be used is an error instead of being skipped and listed.
    """

    layers: tuple[int, ...] | None = None
    max_minutes: float | int | None = None
    seed: int = 0
    last_layer: Literal["normed", "raw"] = "normed"
    batch_seconds: float | int = 40.0
    buckets: int = 4
    max_seconds: float | int = 60.0
    rows_per_update: int = 4096
    stats_dtype: Literal["float32", "float64"] = "float32"
    rank_tolerance: float | None = None
    model_precision: str = "highest"
    strict: bool = False


_CHOICES = {
    "stats_dtype": ("float32", "float64"),
    "last_layer": ("normed", "raw"),
    "model_precision": ("highest", "high", "default"),
}


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

    `models`: hub ids, folders or loaded encoders. `audio`: whatever `open_corpus` takes: a folder,
    a manifest, a list, a file, or waveforms. `measures`: "paper", "all" or names (`list_measures`).
    `note` is kept in the result and shown under its figures. `settings`: the fields of `Settings`.
    Activations are never stored: memory does not depend on the amount of audio. Raises UserError
    for anything wrong with what was given.
    """
    options = _settings(settings)
    chosen, rankings = resolve(measures, levels)
    load = functools.partial(
        load_encoder, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    if isinstance(models, str | Path | SpeechEncoder):
        models = [models]
    if not models:
        raise UserError("no models given; expected hub ids or folders")
    corpus = sound.open_corpus(audio)
    encoders = _distinct_names([m if isinstance(m, SpeechEncoder) else load(m) for m in models])
    _check_frame_rates(encoders)
    layers = [_layers_of(encoder, options.layers) for encoder in encoders]
    if options.max_minutes is not None:
        corpus = selection.select(corpus, options.max_minutes, options.seed)
    corpus = selection.durations(corpus)
    seen = Seen()
    moments = _accumulate(encoders, layers, corpus, options, seen, progress)
    names = [NetworkName(e.name, l) for e, ls in zip(encoders, layers) for l in ls]
    attributes = provenance.record(
        note=note,
        models={encoder.name: dict(encoder.provenance) for encoder in encoders},
        corpus={"origin": corpus.origin, "fingerprint": corpus.fingerprint()},
        settings=dataclasses.asdict(options),
        numeric={
            "stats_dtype": moments.dtype,
            "rank_tolerance": moments.rank_tolerance,
            "stats_precision": "highest",
        },
        frames=moments.rows,
        utterances=seen.utterances,
        seconds=seen.seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in seen.skipped],
    )
    return build_result(names, moments, chosen, rankings, attributes, progress)


@dataclasses.dataclass
class Seen:
    """What the stream has brought so far."""

    utterances: int = 0
    seconds: float = 0.0
    skipped: list[sound.Skipped] = dataclasses.field(default_factory=list)

    def skip(self, skipped: sound.Skipped) -> None:
        """Keep a file that could not be used, and say so."""
        _log.warning("skipped %s: %s", skipped.id, skipped.reason)
        self.skipped.append(skipped)


def build_result(
    names: Sequence[NetworkName],
    moments: FinishedMoments,
    chosen: Sequence[Measure],
    rankings: Sequence[Ranking],
    attributes: dict[str, Any],
    progress: bool,
) -> SimilarityResult:
    """Score all pairs of networks and label what comes out."""
    pairs = len(names) * (len(names) + 1) // 2
    started = time.monotonic()
    with tqdm.auto.tqdm(total=pairs, desc="scores", unit="pair", disable=not progress) as bar:
        models = [name.model for name in names]
        scores = score_all(moments, chosen, rankings, models, bar.update)
    _log.info("scored %d pairs in %.1f s", pairs, time.monotonic() - started)
    return SimilarityResult.build(
        names,
        scores.matrices,
        scores.extras,
        measures={
            m.name: {
                "symmetric": m.symmetric,
                "range": m.limits,
                "level": m.level,
                "summary": m.summary,
                "reference": m.reference,
            }
            for m in chosen
        },
        attributes=attributes,
    )


def _accumulate(
    encoders: Sequence[SpeechEncoder],
    layers: Sequence[tuple[int, ...]],
    corpus: sound.Corpus,
    options: Settings,
    seen: Seen,
    progress: bool,
) -> FinishedMoments:
    """One pass over the corpus: every model encodes every batch once."""
    seconds = [source.seconds for source in corpus.sources if source.seconds]
    buckets = batching.plan_buckets(
        seconds or [options.max_seconds],
        count=options.buckets,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )
    outputs = [Outputs(layers=ls, last_layer=options.last_layer) for ls in layers]
    streams = tuple(Stream(len(ls), e.config.hidden_size) for e, ls in zip(encoders, layers))
    statistic = MomentsStream(streams, options.rows_per_update, options.stats_dtype)
    batches = batching.batches(corpus, buckets, strict=options.strict, on_skip=seen.skip)
    checks: collections.deque[FiniteCheck] = collections.deque()
    names = [encoder.name for encoder in encoders]
    started = time.monotonic()
    with _progress_bar(sum(seconds), progress) as bar:
        for batch in batches:
            acts = [
                encoder.apply(batch.samples, batch.lengths, wanted, options.model_precision)
                for encoder, wanted in zip(encoders, outputs)
            ]
            positions = frame_positions(encoders[0].config, batch, acts[0].frame_mask)
            statistic.append(tuple(a.hidden_states for a in acts), positions)
            first_bad = [_first_bad_frame(a) for a in acts]
            checks.append(FiniteCheck(names, batch.ids, acts[0].frame_mask.shape[1], first_bad))
            del acts
            # One batch behind: the device is never idle, and never has two batches waiting.
            if len(checks) > 1:
                checks.popleft().check()
            seen.utterances += len(batch.ids)
            seen.seconds += batch.seconds
            bar.update(batch.seconds)
    for waiting in checks:
        waiting.check()
    statistic.wait()
    if statistic.rows < 2:
        first = (
            f", the first: {seen.skipped[0].id} {seen.skipped[0].reason}" if seen.skipped else ""
        )
        skipped = f"({len(seen.skipped)} files skipped{first})"
        raise UserError(f"{corpus.origin}: no usable audio {skipped}")
    elapsed = time.monotonic() - started
    _log.info(
        "read %d utterances, %.1f s of audio, %d frames in %.1f s (%.2f audio-seconds per second)",
        seen.utterances, seen.seconds, statistic.rows, elapsed, seen.seconds / elapsed,
    )  # fmt: skip
    return statistic.finish(options.rank_tolerance)


def frame_positions(
    config: EncoderConfig, batch: batching.Batch, mask: FrameMask
) -> Int64[np.ndarray, " row"]:
    """Where the valid frames of a batch are on its flattened [batch * frame] axis, in order."""
    return np.flatnonzero(np.arange(mask.shape[1]) < config.frames(batch.lengths)[:, None])


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
        total=round(total_seconds, 1) or None,
        desc="audio",
        unit="s",
        disable=not progress,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} audio-seconds "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}]",
    )


def _settings(given: dict[str, Any]) -> Settings:
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in given:
        if name not in known:
            raise UserError(f"unknown setting {name!r}; known: {', '.join(sorted(known))}")
    if given.get("layers") is not None:
        given = given | {"layers": tuple(given["layers"])}
    for name, allowed in _CHOICES.items():
        if given.get(name, allowed[0]) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise UserError(f"{name} is {given[name]!r}; expected {expected}")
    options = Settings(**given)
    if options.stats_dtype == "float64" and jax.default_backend() != "cpu":
        raise UserError("stats_dtype='float64' needs a CPU; accelerators use compensated float32")
    if options.rows_per_update < 1:
        raise UserError(f"rows_per_update is {options.rows_per_update}; expected at least 1")
    return options


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
