"""How long the utterances of a corpus are, and a seeded choice of some minutes of them."""

import collections
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from speechsim_jax.audio.corpus import Corpus, Source
from speechsim_jax.audio.open_corpus import durations
from speechsim_jax.errors import UserError

# Rows of a dataset that are fetched together while there is room for more.
_ROWS_AT_A_TIME = 32

log = logging.getLogger(__name__)


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


# Steps of `batching.plan_buckets`.
_GRID_SECONDS = 0.5


class Groups(NamedTuple):
    """Groups of about equally much audio; `whole_speakers`: no speaker is in two of them."""

    corpora: tuple[Corpus, ...]
    whole_speakers: bool


def disjoint(corpus: Corpus, count: int, seed: int) -> Groups:
    """`count` groups of utterances that have none in common, and no speaker if there are enough.

    Speakers (utterances, where fewer speakers than `count` are known) are taken from the longest to
    the shortest, in a seeded order among equals, each to the group that is the shortest so far; an
    utterance whose speaker is not known is a speaker of its own. The order of `corpus.sources` does
    not matter. Raises UserError for fewer utterances than groups.
    """
    if count < 2:
        raise UserError(f"{count} groups: expected at least 2")
    sources = sorted(durations(corpus).sources, key=lambda source: source.id)
    if len(sources) < count:
        raise UserError(
            f"{corpus.origin} has {len(sources)} utterances, too few for {count} groups; give more "
            "audio or ask for fewer groups"
        )
    by_speaker: dict[tuple[str, str], list[Source]] = collections.defaultdict(list)
    for source in sources:
        by_speaker[source.speaker, "" if source.speaker else source.id].append(source)
    whole = len(by_speaker) >= count
    units = list(by_speaker.values()) if whole else [[source] for source in sources]
    order = np.random.default_rng(seed).permutation(len(units))
    units = sorted((units[place] for place in order), key=_seconds, reverse=True)
    groups: list[list[Source]] = [[] for _ in range(count)]
    for unit in units:
        # An empty group first: files without a readable header count as 0 s.
        min(groups, key=lambda group: (bool(group), _seconds(group))).extend(unit)
    corpora = [
        Corpus(f"{corpus.origin} [{number} of {count}]", tuple(sorted(group, key=_id)))
        for number, group in enumerate(groups, start=1)
    ]
    return Groups(tuple(corpora), whole)


def alike(corpora: tuple[Corpus, ...], lengths_seconds: list[float]) -> tuple[Corpus, ...]:
    """The corpora, every utterance said to be as long as the padding that it would get in all.

    Batches are cut to shapes planned from the lengths that a corpus states, and every shape is
    compiled; corpora that state few lengths, the same ones, share the shapes. What is longer than
    all `lengths_seconds` keeps its own length. Audio is read as it is.
    """
    steps = sorted({int(seconds / _GRID_SECONDS) * _GRID_SECONDS for seconds in lengths_seconds})

    def stated(source: Source) -> Source:
        above = [step for step in steps if source.seconds is not None and step >= source.seconds]
        return replace(source, seconds=above[0]) if above else source

    return tuple(replace(c, sources=tuple(map(stated, c.sources))) for c in corpora)


def _id(source: Source) -> str:
    return source.id


def _seconds(sources: list[Source]) -> float:
    return sum((source.seconds or 0.0 for source in sources), start=0.0)
