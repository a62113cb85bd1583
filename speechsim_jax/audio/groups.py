"""Disjoint groups of a corpus's utterances, so that a result can be had several times over."""

import collections
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from speechsim_jax.audio.corpus import Corpus, Source
from speechsim_jax.audio.selection import durations
from speechsim_jax.errors import UserError

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
