"""How long the utterances of a corpus are, and a seeded choice of some minutes of them."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import soundfile

from speechsim_jax.audio import hub_datasets
from speechsim_jax.audio.corpus import DECODE_ERRORS, AudioError, Corpus, Source
from speechsim_jax.errors import UserError

# Rows of a dataset that are fetched together while there is room for more.
_ROWS_AT_A_TIME = 32

log = logging.getLogger(__name__)


def durations(corpus: Corpus, workers: int = 4) -> Corpus:
    """Fill every unknown `seconds` from the file's header; an unreadable header leaves None.

    Rows of a dataset are fetched first; raises UserError if that fails.
    """
    hub_datasets.fetch(source for source in corpus.sources if source.seconds is None)
    with ThreadPoolExecutor(workers) as pool:
        return replace(corpus, sources=tuple(pool.map(_with_seconds, corpus.sources)))


def select(corpus: Corpus, max_minutes: float | int, seed: int) -> Corpus:
    """At most `max_minutes` of a corpus, chosen by `seed` and balanced over speakers.

    Speakers and their utterances are shuffled and taken in turn, passing over what no longer fits;
    the order of `corpus.sources` does not matter, and the result is sorted by id. When even the
    shortest utterance is too long, it alone is taken. A file without a readable header counts as
    0 s, so that `audio.read` can report it. Rows of a dataset whose length is not known are fetched
    in turn, and the first that no longer fits is the last that is looked at: the rest of the
    dataset is never fetched. Raises `UserError` unless `max_minutes` > 0.
    """
    if not max_minutes > 0:
        raise UserError(f"max_minutes={max_minutes:g}: expected a positive number of minutes")
    if any(source.row is not None and source.seconds is None for source in corpus.sources):
        corpus = _begin(corpus, 60.0 * max_minutes, seed)
    sources = durations(corpus).sources
    timed = [source for source in sources if source.seconds]
    shortest = min(timed, key=lambda source: (source.seconds, source.id), default=None)
    shortest_seconds = shortest.seconds or 0.0 if shortest else 0.0
    room_seconds = 60.0 * max_minutes
    chosen: list[Source] = []
    for source in _round_robin(sources, seed):
        if room_seconds < shortest_seconds:
            break
        if (seconds := source.seconds or 0.0) <= room_seconds:
            chosen.append(source)
            room_seconds -= seconds
    if not chosen and shortest:
        chosen = [shortest]
    return replace(corpus, sources=tuple(sorted(chosen, key=lambda source: source.id)))


def _begin(corpus: Corpus, room_seconds: float, seed: int) -> Corpus:
    """The utterances taken in turn until one does not fit; that one, too, if it is the first."""
    turns = _round_robin(corpus.sources, seed)
    taken: list[Source] = []
    while len(taken) < len(turns):
        coming = turns[len(taken) : len(taken) + _ROWS_AT_A_TIME]
        for source in durations(replace(corpus, sources=tuple(coming))).sources:
            room_seconds -= source.seconds or 0.0
            if room_seconds < 0 and any(one.seconds for one in taken):
                return replace(corpus, sources=tuple(taken))
            taken.append(source)
    return replace(corpus, sources=tuple(taken))


def _with_seconds(source: Source) -> Source:
    if source.seconds is not None:
        return source
    try:
        if (file := source.file()) is None:
            return source
        return replace(source, seconds=float(soundfile.info(file).duration))
    except (*DECODE_ERRORS, AudioError) as error:
        log.debug("no header in %s: %s", source.id, error)
        return source


def _round_robin(sources: Sequence[Source], seed: int) -> list[Source]:
    """Every source once: speakers in a seeded order, one utterance each, again and again."""
    by_speaker: dict[str, list[Source]] = {}
    for source in sorted(sources, key=lambda source: (source.speaker, source.id)):
        by_speaker.setdefault(source.speaker, []).append(source)
    rng = np.random.default_rng(seed)
    queues = list(by_speaker.values())
    turns = [
        (turn, place, queues[speaker][index])
        for place, speaker in enumerate(rng.permutation(len(queues)))
        for turn, index in enumerate(rng.permutation(len(queues[speaker])))
    ]
    return [source for _, _, source in sorted(turns, key=lambda turn: turn[:2])]
