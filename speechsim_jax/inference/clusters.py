"""Which rows belong together: the clusters that standard errors are taken over."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from speechsim_jax.audio.corpus import Source
from speechsim_jax.errors import UserError
from speechsim_jax.inference.standard_errors import LEAST_CLUSTERS
from speechsim_jax.statistics.sample import text_hash

ErrorsOver = Literal["auto", "speaker", "utterance", "none"]

GROUPS = 20
"""Of clusters, at most, where standard errors are over groups of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clustering:
    """The cluster of each utterance.

    Attributes:
      over: what clusters are: "speaker", "utterance", or "none".
      reason: why, in words.
      of: utterance -> cluster; empty for "none".
    """

    over: Literal["speaker", "utterance", "none"]
    reason: str
    of: Mapping[str, str]

    def lengths(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Rows of each cluster from the rows of each utterance."""
        total: collections.Counter[str] = collections.Counter()
        for utterance, cluster in self.of.items():
            total[cluster] += rows[utterance]
        return dict(total)

    def folds(self, rows: Mapping[str, int], seed: int) -> dict[str, int]:
        """The fold of each utterance, 0 or 1: clusters stay together, rows are balanced.

        Args:
          rows: of each utterance.
          seed: of the order of clusters of one length.
        """
        of_cluster = folds(self.lengths(rows), seed)
        return {utterance: of_cluster[cluster] for utterance, cluster in self.of.items()}

    def groups(self, rows: Mapping[str, int], seed: int, count: int) -> dict[str, int]:
        """The group of each of some utterances, 0 to `count` - 1: clusters stay together.

        Args:
          rows: of each utterance.
          seed: of the order of clusters of one length.
          count: of groups, at most.
        """
        of = {utterance: cluster for utterance, cluster in self.of.items() if utterance in rows}
        lengths: collections.Counter[str] = collections.Counter()
        for utterance, cluster in of.items():
            lengths[cluster] += rows[utterance]
        group = folds(lengths, seed, count)
        return {utterance: group[cluster] for utterance, cluster in of.items()}


def folds(lengths: Mapping[str, int], seed: int, count: int = 2) -> dict[str, int]:
    """Folds of clusters, balanced in rows: the longest first, each to the shortest fold.

    Args:
      lengths: rows of each cluster.
      seed: of the order of clusters of one length.
      count: of folds.
    """
    order = sorted(lengths, key=lambda name: (-lengths[name], text_hash(f"{seed}\0fold\0{name}")))
    sizes, fold = [0] * count, {}
    for name in order:
        fold[name] = sizes.index(min(sizes))
        sizes[fold[name]] += lengths[name]
    return fold


def cluster(sources: Sequence[Source], errors: ErrorsOver) -> Clustering:
    """Clusters for standard errors: speakers where at least 10 are known, else utterances.

    An utterance whose speaker is not known counts as a speaker of its own; parts and channels of
    one file are one utterance.

    Args:
      sources: the utterances.
      errors: what is asked for.

    Raises:
      UserError: "speaker" where no speaker is known.
    """
    if errors == "none":
        return Clustering("none", "they were not asked for", {})
    speakers = {source.speaker for source in sources} - {""}
    by_utterance = {source.id: _utterance(source) for source in sources}
    unknown = {by_utterance[source.id] for source in sources if not source.speaker}
    by_speaker = {
        source.id: source.speaker or f"utterance {by_utterance[source.id]}" for source in sources
    }
    utterances = len(set(by_utterance.values()))
    others = f", and {len(unknown)} utterances of unknown speaker" if unknown else ""
    if errors == "speaker":
        if not speakers:
            raise UserError(
                "errors='speaker' needs speakers, and none is known; give a manifest, layout or "
                "speaker_from, or use errors='utterance'"
            )
        reason = f"{len(speakers)} speakers{others}, as asked for"
        if len(speakers) < LEAST_CLUSTERS:
            reason += "; so few that errors are for these speakers only, without intervals"
        return Clustering("speaker", reason, by_speaker)
    if errors == "utterance":
        return Clustering("utterance", f"{utterances} utterances, as asked for", by_utterance)
    if len(speakers) >= LEAST_CLUSTERS:
        return Clustering("speaker", f"{len(speakers)} speakers are known{others}", by_speaker)
    known = f"{len(speakers)} speakers are known" if speakers else "no speaker is known"
    if utterances >= LEAST_CLUSTERS:
        return Clustering("utterance", f"{known}, fewer than {LEAST_CLUSTERS}", by_utterance)
    reason = f"{known}, and there are {utterances} utterances: fewer than {LEAST_CLUSTERS}"
    return Clustering("none", reason, {})


def cluster_for_folds(sources: Sequence[Source], errors: ErrorsOver = "auto") -> Clustering:
    """Clusters that are not divided by folds: speakers where at least 10 are known, or utterances.

    Args:
      sources: the utterances.
      errors: what standard errors are taken over; "speaker" holds for folds, too.

    Raises:
      UserError: there are no two clusters.
    """
    clustering = cluster(sources, "speaker" if errors == "speaker" else "auto")
    if clustering.over == "none":
        clustering = cluster(sources, "utterance")
    if len(set(clustering.of.values())) < 2:
        raise UserError(f"held-out scores need at least two {clustering.over}s; there is one")
    return clustering


def _utterance(source: Source) -> str:
    """What an utterance is a part of: its file, if others may be parts or channels of that."""
    if source.path is not None and (source.part or source.channel is not None):
        return f"file {source.path}"
    return source.id
