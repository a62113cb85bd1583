"""The audio of a training: what of it is heard, whose is held out, and the waveforms."""

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
from speechsim_jax.audio.corpus import AudioError, Corpus, Source, read
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.errors import UserError
from speechsim_jax.training.recipe import Audio

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclasses.dataclass(frozen=True)
class Split:
    """Sources to train on and sources of other speakers; `corpus_of` names the corpus of each id.

    All have a known duration and are sorted by id.
    """

    training: tuple[Source, ...]
    held_out: tuple[Source, ...]
    corpus_of: dict[str, str]

    def fingerprint(self) -> dict[str, str]:
        """What tells this audio from other audio, and these transcripts from others."""
        parts = {"training": self.training, "held_out": self.held_out}
        return {name: Corpus(name, part).fingerprint() for name, part in parts.items()}

    def minutes(self) -> tuple[float, float]:
        """How much there is to train on, how much is held out."""
        parts = self.training, self.held_out
        training, held_out = (sum(s.seconds or 0.0 for s in part) / 60 for part in parts)
        return training, held_out


def open_split(corpora: Sequence[open_corpus.AudioInput], audio: Audio) -> Split:
    """Open one corpus or several as one, choose of it and hold out speakers.

    A file without a readable header is left out and said. Raises UserError for ids that occur
    twice, patterns that leave nothing, and speakers that are not there.
    """
    sources: list[Source] = []
    corpus_of: dict[str, str] = {}
    for each in corpora:
        corpus = open_corpus.open_corpus(each)
        chosen = tuple(source for source in corpus.sources if _is_chosen(source.id, audio))
        twice = corpus_of.keys() & {source.id for source in chosen}
        if twice:
            raise UserError(f"id {min(twice)!r} is in two corpora; make ids unique")
        corpus_of |= dict.fromkeys((source.id for source in chosen), _label(corpus.origin))
        sources += with_durations(dataclasses.replace(corpus, sources=chosen)).sources
    timed = [source for source in sources if source.seconds]
    if len(timed) < len(sources):
        _log.warning("left out %d files without a readable header", len(sources) - len(timed))
    if not timed:
        raise UserError(
            f"no utterance is left of {', '.join(map(str, corpora))} with include="
            f"{','.join(audio.include)} exclude={','.join(audio.exclude)}"
        )
    away = _held_out(timed, audio)
    timed.sort(key=lambda source: source.id)
    training = tuple(source for source in timed if speaker_of(source) not in away)
    if not training:
        raise UserError("all speakers are held out; hold out fewer")
    held_out = tuple(source for source in timed if speaker_of(source) in away)
    split = Split(training, held_out, corpus_of)
    _log.info(
        "%.1f minutes to train on, %.1f minutes of %d other speakers",
        *split.minutes(), len(away),
    )  # fmt: skip
    return split


def speaker_of(source: Source) -> str:
    """The speaker; an utterance of unknown speaker counts as one of its own."""
    return source.speaker or source.id


def _is_chosen(name: str, audio: Audio) -> bool:
    def any_of(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return any_of(audio.include) and not any_of(audio.exclude)


def _label(origin: str) -> str:
    """The folder of a corpus, whose manifest may be called anything."""
    path = Path(origin)
    return path.parent.name if path.suffix and path.parent.name else path.name


def _held_out(sources: Sequence[Source], audio: Audio) -> set[str]:
    speakers = sorted({speaker_of(source) for source in sources})
    unknown = sorted(set(audio.held_out) - set(speakers))
    if unknown:
        raise UserError(
            f"held_out names {unknown[0]!r}, who is no speaker of this audio "
            f"(there are {len(speakers)}, e.g. {', '.join(speakers[:3])})"
        )
    rest = [speaker for speaker in speakers if speaker not in audio.held_out]
    drawn = np.random.default_rng(audio.held_out_seed).permutation(len(rest))
    count = round(audio.held_out_share * len(rest))
    if audio.held_out_share and not count:
        _log.warning("%d speakers are too few to hold out %g of them", len(rest),
                     audio.held_out_share)  # fmt: skip
    return {*audio.held_out, *(rest[place] for place in drawn[:count])}


class Waves:
    """The 16 kHz samples of sources by number, decoded when asked for.

    Those used last stay in memory, up to `memory_gb`. What cannot be used, or is
    shorter than `min_samples`, is empty, and said once.
    Threads may ask at the same time.
    """

    def __init__(self, sources: Sequence[Source], memory_gb: float | int, min_samples: int = 1):
        self.sources = tuple(sources)
        self._min_samples = min_samples
        self._room_bytes = int(memory_gb * 1e9)
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._unusable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> Float32[np.ndarray, " sample"]:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        samples = self._read(number)
        with self._lock:
            if number not in self._kept:
                self._kept[number] = samples
                self._room_bytes -= samples.nbytes
            while self._room_bytes < 0 and self._kept:
                self._room_bytes += self._kept.popitem(last=False)[1].nbytes
        return samples

    def _read(self, number: int) -> Float32[np.ndarray, " sample"]:
        source = self.sources[number]
        try:
            return read(source, self._min_samples).samples
        except AudioError as error:
            if number not in self._unusable:
                self._unusable.add(number)
                _log.warning("skipped %s: %s", source.id, error)
            return np.zeros(0, np.float32)


def ahead(
    make: Callable[[_Item], _Made], items: Iterable[_Item], workers: int = 2, lookahead: int = 4
) -> Generator[_Made, None, None]:
    """`make` of each item in order, made by threads, never more than `lookahead` undelivered.

    Closing the generator stops the threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="speechsim-rows")
    queue: collections.deque[Future[_Made]] = collections.deque()
    try:
        for item in items:
            if len(queue) == lookahead:
                yield queue.popleft().result()
            queue.append(pool.submit(make, item))
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
