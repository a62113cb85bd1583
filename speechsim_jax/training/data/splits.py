"""The audio of a training: its split into speakers to train on and held out, and waveforms."""

import collections
import dataclasses
import fnmatch
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from speechsim_jax.audio import open_corpus
from speechsim_jax.audio.corpus import (
    AudioError,
    Corpus,
    Skipped,
    Source,
    log_skipped,
    read,
    total_seconds,
)
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.audio.selection import log_unknown_speakers
from speechsim_jax.errors import UserError
from speechsim_jax.training.recipe import Audio

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Split:
    """Utterances to train on and utterances of held-out speakers.

    Attributes:
        training: Sources to train on, with known durations, sorted by id.
        held_out: Sources of other speakers, likewise.
        corpus_of: The name of the corpus of each id.
    """

    training: tuple[Source, ...]
    held_out: tuple[Source, ...]
    corpus_of: dict[str, str]

    def fingerprint(self) -> dict[str, str]:
        """`Corpus.fingerprint` of each part of the split."""
        parts = {"training": self.training, "held_out": self.held_out}
        return {name: Corpus(name, part).fingerprint() for name, part in parts.items()}

    def minutes(self) -> tuple[float, float]:
        """Minutes to train on, and minutes held out."""
        parts = self.training, self.held_out
        training, held_out = (total_seconds(part) / 60 for part in parts)
        return training, held_out


def open_split(corpora: Sequence[open_corpus.AudioInput], audio: Audio) -> Split:
    """Open corpora as one, select utterances and hold out speakers.

    Files without a readable header are left out with a warning.

    Args:
        corpora: Folders, manifests, lists or arrays.
        audio: What to select and whom to hold out.

    Raises:
        UserError: Ids that occur twice, patterns that leave nothing, or unknown speakers.
    """
    sources: list[Source] = []
    corpus_of: dict[str, str] = {}
    for opened in corpora:
        corpus = open_corpus.open_corpus(opened, speaker_from=audio.speaker_from or None)
        selected = tuple(source for source in corpus.sources if _is_selected(source.id, audio))
        twice = corpus_of.keys() & {source.id for source in selected}
        if twice:
            raise UserError(f"id {min(twice)!r} is in two corpora; make ids unique")
        corpus_of |= dict.fromkeys((source.id for source in selected), _label(corpus.origin))
        sources += with_durations(dataclasses.replace(corpus, sources=selected)).sources
    timed = [source for source in sources if source.seconds]
    if len(timed) < len(sources):
        _log.warning("left out %d files without a readable header", len(sources) - len(timed))
    if not timed:
        raise UserError(
            f"no utterance is left of {', '.join(map(str, corpora))} with include="
            f"{','.join(audio.include)} exclude={','.join(audio.exclude)}"
        )
    if audio.held_out or audio.held_out_share:
        log_unknown_speakers(timed, "holding out speakers")
    held_out_speakers = _held_out_speakers(timed, audio)
    timed.sort(key=lambda source: source.id)
    training = tuple(s for s in timed if speaker_of(s) not in held_out_speakers)
    if not training:
        raise UserError("all speakers are held out; hold out fewer")
    held_out = tuple(s for s in timed if speaker_of(s) in held_out_speakers)
    split = Split(training, held_out, corpus_of)
    _log.info(
        "%.1f minutes to train on, %.1f minutes of %d other speakers",
        *split.minutes(), len(held_out_speakers),
    )  # fmt: skip
    return split


def speaker_of(source: Source) -> str:
    """The speaker of a source; each utterance of an unknown speaker is a speaker by itself."""
    return source.speaker or source.id


def transcribed(sources: Sequence[Source], max_seconds: float | int) -> tuple[Source, ...]:
    """The sources that fine-tuning can use: with a transcript, and not too long."""
    return tuple(
        source
        for source in sources
        if source.transcript.strip() and (source.seconds or 0.0) <= max_seconds
    )


def _is_selected(name: str, audio: Audio) -> bool:
    def any_of(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return any_of(audio.include) and not any_of(audio.exclude)


def _label(origin: str) -> str:
    """Name of a corpus: its folder, as manifests have arbitrary names."""
    path = Path(origin)
    return path.parent.name if path.suffix and path.parent.name else path.name


def _held_out_speakers(sources: Sequence[Source], audio: Audio) -> set[str]:
    speakers = sorted({speaker_of(source) for source in sources})
    unknown = sorted(set(audio.held_out) - set(speakers))
    if unknown:
        raise UserError(
            f"held_out names {unknown[0]!r}, who is not a speaker of this audio "
            f"(there are {len(speakers)}, e.g. {', '.join(speakers[:3])})"
        )
    rest = [speaker for speaker in speakers if speaker not in audio.held_out]
    drawn = np.random.default_rng(audio.held_out_seed).permutation(len(rest))
    count = round(audio.held_out_share * len(rest))
    if audio.held_out_share and not count:
        _log.warning("%d speakers are too few to hold out %g of them", len(rest),
                     audio.held_out_share)  # fmt: skip
    return {*audio.held_out, *(rest[index] for index in drawn[:count])}


class WaveformCache:
    """16 kHz waveforms of sources by index, decoded on demand; safe to use from several threads.

    An unusable source has an empty waveform, and is warned of once.

    Args:
        sources: Audio.
        memory_gb: Size of the cache; the least recently used waveforms are dropped.
        min_samples: Shorter audio is unusable.
    """

    def __init__(self, sources: Sequence[Source], memory_gb: float | int, min_samples: int = 1):
        self.sources = tuple(sources)
        self._min_samples = min_samples
        self._free_bytes = int(memory_gb * 1e9)
        self._cached: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._unusable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> Float32[np.ndarray, " sample"]:
        with self._lock:
            if number in self._cached:
                self._cached.move_to_end(number)
                return self._cached[number]
        samples = self._read(number)
        with self._lock:
            if number not in self._cached:
                self._cached[number] = samples
                self._free_bytes -= samples.nbytes
            while self._free_bytes < 0 and self._cached:
                self._free_bytes += self._cached.popitem(last=False)[1].nbytes
        return samples

    def _read(self, number: int) -> Float32[np.ndarray, " sample"]:
        source = self.sources[number]
        try:
            return read(source, self._min_samples).samples
        except AudioError as error:
            if number not in self._unusable:
                self._unusable.add(number)
                log_skipped(Skipped(source.id, str(error)))
            return np.zeros(0, np.float32)


def prefetch(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int = 2,
    lookahead: int = 4,
) -> Generator[_Result, None, None]:
    """Map a function over items in order, computed ahead by threads.

    Closing the generator stops the threads.

    Args:
        function: Applied to each item.
        items: Arguments.
        workers: Number of threads.
        lookahead: At most so many results are computed before they are requested.

    Yields:
        The results, in the order of the items.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="speechsim-rows")
    queue: collections.deque[Future[_Result]] = collections.deque()
    try:
        for item in items:
            if len(queue) == lookahead:
                yield queue.popleft().result()
            queue.append(pool.submit(function, item))
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
