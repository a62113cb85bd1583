"""How long the utterances of a corpus are, and a seeded choice of some minutes of them."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import soundfile

from speechsim_jax.audio import DECODE_ERRORS, Corpus, Source
from speechsim_jax.errors import UserError

log = logging.getLogger(__name__)


def durations(corpus: Corpus, workers: int = 4) -> Corpus:
    """Fill every unknown `seconds` from the file's header; an unreadable header leaves None."""
    with ThreadPoolExecutor(workers) as pool:
        return replace(corpus, sources=tuple(pool.map(_with_seconds, corpus.sources)))


def select(corpus: Corpus, max_minutes: float | int, seed: int) -> Corpus:
    """At most `max_minutes` of a corpus, chosen by `seed` and balanced over speakers.

    Speakers and their utterances are shuffled and taken in turn, passing over what no longer fits;
    the order of `corpus.sources` does not matter, and the result is sorted by id. When even the
    shortest utterance is too long, it alone is taken. A file without a readable header counts as
    0 s, so that `audio.read` can report it. Raises `UserError` unless `max_minutes` > 0.
    """
    if not max_minutes > 0:
        raise UserError(f"max_minutes={max_minutes:g}: expected a positive number of minutes")
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


def _with_seconds(source: Source) -> Source:
    if source.seconds is not None or source.path is None:
        return source
    try:
        return replace(source, seconds=float(soundfile.info(source.path).duration))
    except DECODE_ERRORS as error:
        log.debug("no header in %s: %s", source.path, error)
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
