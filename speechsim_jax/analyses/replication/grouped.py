"""Leave-one-group-out comparisons: of all the audio, and of all but one group of utterances.

Every group is read once and its statistics are stored; results are made by merging these.

    FOLDER/1/statistics ...   stored statistics
    FOLDER/whole.nc, without-1.nc, ...

Files that exist are not made again, so an interrupted run resumes where it was.
"""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tqdm.auto

import speechsim_jax as ss
from speechsim_jax.audio.corpus import Corpus
from speechsim_jax.errors import UserError
from speechsim_jax.settings import layer_numbers

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GroupedComparison:
    """Settings of the comparisons.

    Attributes:
        corpora: The groups of utterances.
        measures: Measures of neurons and layers.
        attention: Measures of attention.
        settings: Keyword arguments of `ss.compare`.
        rank_tolerance: As in `ss.merge`.
        checkpoint_every: As in `ss.compare`.
        device_memory_gb: As in `ss.compare`.
        note: Caption of the results' figures.
        progress: Show a progress bar.
    """

    corpora: tuple[Corpus, ...]
    measures: tuple[str, ...]
    attention: tuple[str, ...]
    settings: dict[str, Any]
    rank_tolerance: float | None
    checkpoint_every: float | int
    device_memory_gb: float | None
    note: str
    progress: bool = True


def compare_groups(
    encoders: Sequence[ss.SpeechEncoder], comparison: GroupedComparison, folder: Path
) -> tuple[ss.SimilarityResult, list[ss.SimilarityResult]]:
    """Compare encoders on all groups, and on all but each one of them.

    Args:
        encoders: Encoders to compare.
        comparison: Groups and settings.
        folder: Where statistics and results are stored.

    Returns:
        The result of all groups, and for each group the result without it.

    Raises:
        UserError: Whatever `ss.compare` and `ss.merge` raise, or a full disk.
    """
    numbers = range(1, len(comparison.corpora) + 1)
    results = [folder / "whole.nc", *(folder / f"without-{number}.nc" for number in numbers)]
    stored = [folder / str(number) / "statistics" for number in numbers]
    if not all(path.exists() for path in results):
        check_disk_space(folder, statistics_bytes(encoders, comparison.settings), len(stored))
        bar = tqdm.auto.tqdm(
            total=len(stored) + len(results),
            desc=folder.name,
            unit="step",
            disable=not comparison.progress,
        )
        with bar:
            for number, statistics in zip(numbers, stored):
                if not any(statistics.glob("shard-1-of-1/complete.*.json")):
                    _store_statistics(encoders, comparison, number, statistics)
                bar.update()
            for left_out, path in enumerate(results):  # 0 leaves out nothing
                if not path.exists():
                    chosen = [s for number, s in zip(numbers, stored) if number != left_out]
                    _merge_and_score(comparison, chosen, path)
                bar.update()
    whole, *without = map(ss.SimilarityResult.load, results)
    return whole, without


def _store_statistics(
    encoders: Sequence[ss.SpeechEncoder],
    comparison: GroupedComparison,
    number: int,
    statistics: Path,
) -> None:
    """Compare all models on one group, with the cheapest measure: only the statistics are used."""
    ss.compare(
        encoders,
        comparison.corpora[number - 1],
        measures=("lincka", *comparison.attention),
        note=comparison.note,
        progress=False,
        checkpoint_every=comparison.checkpoint_every,
        device_memory_gb=comparison.device_memory_gb,
        statistics_dir=statistics,
        # The groups themselves are what claims are sure over.
        **comparison.settings | {"errors": "none", "heldout": False, "null": "none"},
    )


def _merge_and_score(comparison: GroupedComparison, stored: Sequence[Path], path: Path) -> None:
    """Merge the stored statistics of groups, score them and save the result."""
    # Next to the result: the system's temporary folder may be too small.
    merged = path.with_suffix(".merged")
    result = ss.merge(
        stored,
        measures=(*comparison.measures, *comparison.attention),
        rank_tolerance=comparison.rank_tolerance,
        statistics_dir=merged,
        note=comparison.note,
        progress=False,
    )
    result.save(path)
    shutil.rmtree(merged, ignore_errors=True)


def statistics_bytes(encoders: Sequence[ss.SpeechEncoder], settings: dict[str, Any]) -> int:
    """Size of the stored statistics of one group: all pairs of layers once, in float64.

    Args:
        encoders: Encoders to compare.
        settings: Of the comparison; "layers" as in `Settings`.
    """
    widths = [
        e.config.hidden_size
        * len(layer_numbers(settings["layers"], e.config.num_hidden_layers, e.name))
        for e in encoders
    ]
    return 4 * sum(widths) ** 2


def check_disk_space(folder: Path, group_bytes: int, count: int) -> None:
    """Check that the statistics of all groups and a merged one fit on the disk.

    Args:
        folder: Folder on the disk; it is created.
        group_bytes: Size of the statistics of one group.
        count: Number of groups.

    Raises:
        UserError: They do not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = (count + 1) * group_bytes, shutil.disk_usage(folder).free
    _log.info("statistics of %d groups: %.3g GB, %.3g GB are free", count, needed / 1e9, free / 1e9)
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.3g} GB free, but the statistics of {count} groups take "
            f"{needed / 1e9:.3g} GB until they are merged; choose a --workdir on a larger disk, "
            "fewer models or --layers, or pass --split"
        )
