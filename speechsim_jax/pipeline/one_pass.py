"""One pass over a corpus: every model encodes every batch, every statistic sees it.

With checkpoints the pass can be broken off anywhere and goes on behind the last one.
"""

import collections
import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import tqdm.auto
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import Corpus, Skipped
from speechsim_jax.errors import UserError
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.pipeline import frame_choice
from speechsim_jax.pipeline.accumulators import Accumulators
from speechsim_jax.runtime import mesh as sharding
from speechsim_jax.runtime import processes
from speechsim_jax.runtime.run_checkpoints import Checkpoints
from speechsim_jax.settings import Settings

_log = logging.getLogger(__name__)

_ADDED = ("utterances", "seconds", "frames", "skipped")


@dataclasses.dataclass
class Seen:
    """What the stream has brought so far; `frames` are those that were chosen.

    `heard`: id and digest of the samples of each utterance (or piece), None if nobody will ask.
    """

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    heard: list[tuple[str, str]] | None = None

    def skip(self, skipped: Skipped) -> None:
        """Keep a file that could not be used, and say so."""
        _log.warning("skipped %s: %s", skipped.id, skipped.reason)
        self.skipped.append(skipped)

    def hear(self, batch: batching.Batch, frames: int) -> None:
        """Count a batch, and the frames of it that were chosen."""
        self.frames += frames
        self.utterances += len(batch.ids)
        self.seconds += batch.seconds
        if self.heard is not None:
            for id_, samples, length in zip(batch.ids, batch.samples, batch.lengths):
                digest = hashlib.blake2b(samples[:length].tobytes(), digest_size=16).hexdigest()
                self.heard.append((id_, digest))

    def add_up(self, all_: list[dict[str, Any]] | None) -> None:
        """Become what all processes have heard; None on those that are not told."""
        if all_ is None:
            return
        whole = {name: sum((one[name] for one in all_[1:]), start=all_[0][name]) for name in _ADDED}
        heard = None if self.heard is None else [tuple(x) for one in all_ for x in one["heard"]]
        self.take_up(whole | {"heard": heard})

    def take_up(self, saved: dict[str, Any]) -> None:
        """Go on from what `dataclasses.asdict` made of an earlier run's."""
        for name, value in saved.items():
            setattr(self, name, value)
        self.skipped = [Skipped(**skipped) for skipped in saved["skipped"]]


def read_through(
    encoders: Sequence[SpeechEncoder],
    outputs: Sequence[Outputs],
    corpus: Corpus,
    choice: frame_choice.FrameChoice,
    statistics: Accumulators,
    options: Settings,
    buckets: Sequence[batching.Bucket],
    seen: Seen,
    checkpoints: Checkpoints | None,
    mesh: Mesh,
    progress: bool,
) -> Seen:
    """One pass over the corpus: every model encodes every batch once, every statistic sees it.

    Returns what an earlier run had heard of it, which is in `seen`, too.
    """
    done, cursor = _take_up(checkpoints, statistics, seen)
    before = dataclasses.replace(seen)
    step = done
    lengths = {source.id: source.seconds or 0.0 for source in corpus.sources}
    started = seen.seconds + sum(lengths.get(skipped.id, 0.0) for skipped in seen.skipped)

    def skip(skipped: Skipped) -> None:
        seen.skip(skipped)
        bar.update(lengths[skipped.id])

    batches = batching.batches(
        corpus,
        buckets,
        min_samples=encoders[0].config.window_samples,
        strict=options.strict,
        on_skip=skip,
        start=cursor,
    )
    checks: collections.deque[FiniteCheck] = collections.deque()
    names = [encoder.name for encoder in encoders]
    # An accelerator runs programs one after the other; a CPU would run them side by side, and all
    # the slower (by 11 % for two base-size encoders on two cores).
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    in_turn = jax.block_until_ready if on_cpu else lambda acts: acts
    with _progress_bar(sum(lengths.values()), started, progress) as bar:
        for step, batch in enumerate(batches, start=done + 1):
            batch = batching.pad_to_multiple(batch, mesh.size)
            placed = sharding.place_batch(batch.samples, batch.lengths, mesh)
            acts = [
                in_turn(forward.encode(encoder, *placed, wanted, options.model_precision, mesh))
                for encoder, wanted in zip(encoders, outputs)
            ]
            width = acts[0].frame_mask.shape[1]
            checks.append(FiniteCheck(names, batch.ids, width, [_first_bad_frame(a) for a in acts]))
            picked = choice.of(batch, width)
            acts = [frame_choice.pooled(a, picked) for a in acts]
            statistics.append(acts, batch, picked.rows)
            del acts
            if on_cpu:
                statistics.wait()
            seen.hear(batch, picked.frames)
            processes.check()
            bar.update(batch.seconds)
            # One batch behind: the device is never idle, and never has two batches waiting.
            if len(checks) > 1:
                checks.popleft().check()
            if checkpoints is not None and checkpoints.due():
                checks.pop().check()
                _save(checkpoints, step, statistics, seen, batch.after, on_cpu)
        if bar.total:
            # A header may promise a little more than there was.
            bar.update(max(bar.total - bar.n, 0))
    for waiting in checks:
        waiting.check()
    if checkpoints is not None and checkpoints.started:
        # A run that has taken long enough to save once shall not lose what came after, either.
        if step > done:
            end = batching.Cursor(len(corpus.sources))
            _save(checkpoints, step + 1, statistics, seen, end, on_cpu)
        checkpoints.close()
    return before


def _take_up(
    checkpoints: Checkpoints | None, statistics: Accumulators, seen: Seen
) -> tuple[int, batching.Cursor]:
    """Take over what an earlier run has saved: its batches are done, and where to go on."""
    saved = checkpoints.latest() if checkpoints is not None else None
    if saved is None:
        return 0, batching.Cursor()
    statistics.restore(saved.state)
    seen.take_up(saved.facts["seen"])
    _log.info("going on behind batch %d, after %.1f s of audio", saved.step, seen.seconds)
    return saved.step, batching.Cursor.of(saved.facts["cursor"])


def _save(
    checkpoints: Checkpoints,
    step: int,
    statistics: Accumulators,
    seen: Seen,
    cursor: batching.Cursor,
    on_cpu: bool,
) -> None:
    """Begin to write a checkpoint of everything that `_take_up` reads.

    On a CPU also end: what is written is the statistics' own memory.
    """
    started = time.monotonic()
    facts = {"seen": dataclasses.asdict(seen), "cursor": dataclasses.asdict(cursor)}
    checkpoints.save(step, statistics.snapshot(), facts)
    if on_cpu:
        checkpoints.wait()
    _log.info(
        "checkpoint %d, %.1f s of audio: %.1f s", step, seen.seconds, time.monotonic() - started
    )


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


def _progress_bar(
    total_seconds: float | int, started: float | int, progress: bool
) -> tqdm.auto.tqdm:
    """Of audio; its total is unknown where no length is, and where more comes than was promised."""
    return tqdm.auto.tqdm(
        total=math.ceil(total_seconds) or None,  # what comes may round to a little more
        initial=started,  # pyright: ignore[reportArgumentType]  # a float is as good
        desc="audio",
        unit="s",
        disable=not progress,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} audio-seconds "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}]",
    )
