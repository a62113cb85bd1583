"""Parts of a corpus, chosen by a seed: some minutes, balanced over speakers; or disjoint groups."""

import collections
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from speechsim_jax.audio.corpus import Corpus, Source, total_seconds
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.errors import UserError, counted

# Rows of a dataset that are fetched together while there is room for more.
_ROWS_AT_A_TIME = 32

log = logging.getLogger(__name__)


def select(corpus: Corpus, max_minutes: float | int, seed: int) -> Corpus:
    """At most `max_minutes` of a corpus, chosen by `seed` and balanced over speakers.

    Speakers and their utterances are shuffled and taken in turn, skipping those that no longer fit;
    the order of `corpus.sources` does not matter. An utterance of unknown speaker counts as a
    speaker. When even the shortest utterance is too long, it
    alone is taken. A file without a readable header counts as 0 s, so that reading it reports why.

    Rows of a dataset whose duration is not known are fetched in turn, until one does not fit: the
    rest of the dataset is never fetched.

    Args:
        corpus: What to choose from.
        max_minutes: The limit; positive.
        seed: Of the shuffles.

    Returns:
        The chosen utterances sorted by id, with their durations.

    Raises:
        UserError: `max_minutes` is not positive, or rows of a dataset cannot be fetched.
    """
    if not max_minutes > 0:
        raise UserError(f"max_minutes={max_minutes:g}: expected a positive number of minutes")
    if any(source.row is not None and source.seconds is None for source in corpus.sources):
        corpus = _fetch_until_full(corpus, 60.0 * max_minutes, seed)
    sources = with_durations(corpus).sources
    log_unknown_speakers(sources, "the balance over speakers")
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
    return replace(corpus, sources=tuple(sorted(chosen, key=_id)))


def in_turn(corpus: Corpus, seed: int) -> list[Source]:
    """All utterances in the order in which `select` takes them: one of each speaker, then another.

    The first n are balanced over speakers for every n. The order of `corpus.sources` does not
    matter.

    Args:
        corpus: the utterances.
        seed: of the shuffles of speakers and of their utterances.
    """
    return _round_robin(corpus.sources, seed)


def _fetch_until_full(corpus: Corpus, room_seconds: float, seed: int) -> Corpus:
    """The utterances in turn until one does not fit; the first with a duration always counts."""
    turns = _round_robin(corpus.sources, seed)
    taken: list[Source] = []
    while len(taken) < len(turns):
        following = turns[len(taken) : len(taken) + _ROWS_AT_A_TIME]
        for source in with_durations(replace(corpus, sources=tuple(following))).sources:
            room_seconds -= source.seconds or 0.0
            if room_seconds < 0 and any(earlier.seconds for earlier in taken):
                return replace(corpus, sources=tuple(taken))
            taken.append(source)
    return replace(corpus, sources=tuple(taken))


def log_unknown_speakers(sources: Sequence[Source], what: str) -> None:
    """Log that `what` takes utterances of unknown speaker for speakers, if there are any."""
    unknown = sum(not source.speaker for source in sources)
    if unknown:
        log.info(
            "the speaker of %s is not known: %s goes by utterance there",
            counted(unknown, "utterance"), what,
        )  # fmt: skip


def _round_robin(sources: Sequence[Source], seed: int) -> list[Source]:
    """Every source once: speakers in a seeded order, one utterance each, again and again."""
    by_speaker: dict[tuple[str, str], list[Source]] = {}
    for source in sorted(sources, key=lambda source: (source.speaker, source.id)):
        by_speaker.setdefault(_speaker(source), []).append(source)
    rng = np.random.default_rng(seed)
    queues = list(by_speaker.values())
    turns = [
        (turn, rank, queues[speaker][index])
        for rank, speaker in enumerate(rng.permutation(len(queues)))
        for turn, index in enumerate(rng.permutation(len(queues[speaker])))
    ]
    return [source for _, _, source in sorted(turns, key=lambda turn: turn[:2])]


class Groups(NamedTuple):
    """Groups of about equally much audio.

    Attributes:
        corpora: The groups.
        speakers_disjoint: Whether no speaker is in two groups, as far as all are known.
    """

    corpora: tuple[Corpus, ...]
    speakers_disjoint: bool


def disjoint_groups(corpus: Corpus, count: int, seed: int) -> Groups:
    """Divide a corpus into groups of about equally much audio.

    No utterance is in two groups, and no speaker if there are enough of them. Speakers
    (utterances, where fewer speakers than `count` are known) are taken from the longest to the
    shortest, in a seeded order among equals, each to the group that is the shortest so far. An
    utterance of unknown speaker counts as a speaker. The order of `corpus.sources` does not matter.

    Args:
        corpus: What to divide.
        count: The number of groups; at least 2.
        seed: Of the order among speakers of equal duration.

    Returns:
        The groups, none empty, each sorted by id.

    Raises:
        UserError: fewer than 2 groups, or fewer utterances than groups.
    """
    if count < 2:
        raise UserError(f"{count} groups: expected at least 2")
    sources = sorted(with_durations(corpus).sources, key=_id)
    if len(sources) < count:
        raise UserError(
            f"{corpus.origin} has {len(sources)} utterances, too few for {count} groups; give more "
            "audio or ask for fewer groups"
        )
    log_unknown_speakers(sources, "dividing speakers over groups")
    by_speaker: dict[tuple[str, str], list[Source]] = collections.defaultdict(list)
    for source in sources:
        by_speaker[_speaker(source)].append(source)
    enough = len(by_speaker) >= count
    units = list(by_speaker.values()) if enough else [[source] for source in sources]
    order = np.random.default_rng(seed).permutation(len(units))
    units = sorted((units[index] for index in order), key=total_seconds, reverse=True)
    groups: list[list[Source]] = [[] for _ in range(count)]
    for unit in units:
        # An empty group first: files without a readable header count as 0 s.
        min(groups, key=lambda group: (bool(group), total_seconds(group))).extend(unit)
    corpora = [
        Corpus(f"{corpus.origin} [{number} of {count}]", tuple(sorted(group, key=_id)))
        for number, group in enumerate(groups, start=1)
    ]
    known = all(source.speaker for source in sources)
    return Groups(tuple(corpora), enough and known)


def _speaker(source: Source) -> tuple[str, str]:
    """The speaker; an utterance of unknown speaker counts as one."""
    return source.speaker, "" if source.speaker else source.id


def _id(source: Source) -> str:
    return source.id
