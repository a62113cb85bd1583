"""One comparison several times over: of all the audio, and of all but one group of utterances.

Every group is heard once and leaves its statistics; results are made by merging these.

    GROUPS/NAME/1/statistics ...   what a group has left, deleted when all results are there
    GROUPS/NAME/whole.nc, without-1.nc, ...

What is there is not made again, so a run that was killed goes on where it was.
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
from speechsim_jax.comparison.job_record import is_complete
from speechsim_jax.errors import UserError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grouped:
    """What to make of every group; `attention` measures are scored beside `measures`.

    `rankings` are scored on all the audio only.
    """

    corpora: tuple[Corpus, ...]
    measures: tuple[str, ...]
    attention: tuple[str, ...]
    rankings: tuple[str, ...]
    settings: dict[str, Any]
    rank_tolerance: float | None
    checkpoint_minutes: float | int
    device_memory_gb: float | None
    keep_statistics: bool
    note: str
    progress: bool = True


def run(
    encoders: Sequence[ss.SpeechEncoder], given: Grouped, folder: Path
) -> tuple[ss.SimilarityResult, list[ss.SimilarityResult]]:
    """The result of all groups, and those of all but one; raises UserError."""
    numbers = range(1, len(given.corpora) + 1)
    places = [folder / "whole.nc", *(folder / f"without-{number}.nc" for number in numbers)]
    kept = [folder / str(number) / "statistics" for number in numbers]
    if not all(place.exists() for place in places):
        check_room(folder, statistics_bytes(encoders, given.settings), len(kept))
        total = len(kept) + len(places)
        bar = tqdm.auto.tqdm(total=total, desc=folder.name, unit="step", disable=not given.progress)
        with bar:
            for number, statistics in zip(numbers, kept):
                if not is_complete(statistics):
                    _hear(encoders, given, number, statistics)
                bar.update()
            for left_out, place in enumerate(places):
                if not place.exists():
                    chosen = [s for number, s in zip(numbers, kept) if number != left_out]
                    _score(given, chosen, place, whole=not left_out)
                bar.update()
    if not given.keep_statistics:
        for statistics in kept:
            shutil.rmtree(statistics.parent, ignore_errors=True)
    whole, *without = map(ss.SimilarityResult.load, places)
    return whole, without


def _hear(
    encoders: Sequence[ss.SpeechEncoder], given: Grouped, number: int, statistics: Path
) -> None:
    """One group through all models; the cheapest measure, as only the statistics are wanted."""
    ss.compare(
        encoders,
        given.corpora[number - 1],
        measures=("lincka", *given.attention),
        note=given.note,
        progress=False,
        checkpoint_dir=statistics.with_name("checkpoints"),
        checkpoint_every=given.checkpoint_minutes,
        device_memory_gb=given.device_memory_gb,
        keep_statistics=statistics,
        **given.settings,
    )
    shutil.rmtree(statistics.with_name("checkpoints"), ignore_errors=True)


def _score(given: Grouped, kept: Sequence[Path], place: Path, whole: bool) -> None:
    """Merge what groups have left, beside it rather than in the system's folder for scratch."""
    merged = place.with_suffix(".merged")
    shutil.rmtree(merged, ignore_errors=True)
    rankings = given.rankings if whole else ()
    result = ss.merge(
        kept,
        measures=(*given.measures, *rankings, *given.attention),
        rank_tolerance=given.rank_tolerance,
        keep_statistics=merged,
        note=given.note,
        progress=False,
    )
    result.save(place)
    shutil.rmtree(merged, ignore_errors=True)


def statistics_bytes(encoders: Sequence[ss.SpeechEncoder], settings: dict[str, Any]) -> int:
    """What one group leaves: the upper triangle of all layer pairs in float64."""
    widths = [
        e.config.hidden_size * len(settings["layers"] or range(e.config.num_hidden_layers + 1))
        for e in encoders
    ]
    return 4 * sum(widths) ** 2


def check_room(folder: Path, one_bytes: int, count: int) -> None:
    """Raise UserError unless the statistics of all groups, and a merged one, fit on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = (count + 1) * one_bytes, shutil.disk_usage(folder).free
    _log.info("statistics of %d groups: %.3g GB, %.3g GB are free", count, needed / 1e9, free / 1e9)
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.3g} GB free, but the statistics of {count} groups take "
            f"{needed / 1e9:.3g} GB until they are merged; choose a --workdir on a larger disk, "
            "fewer models or --layers, or pass --split"
        )
