"""`merge`: what several jobs have kept, over disjoint audio, as one result.

A job keeps in a folder

    job.json        representations, settings, measures, and what was heard: each utterance's id and
    digest pass-1/, ...    the statistics of each of its passes (`kept`)

Machines that share nothing can divide a corpus in this way, and a corpus can grow. Of one folder,
the result is what it was, or has other measures.
"""

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.comparison.score import build_result
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MeasureSelection, resolve
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.statistics import store
from speechsim_jax.statistics.finished import Finished, finished

_RECORD = "job.json"
# How audio was chosen, shared and cut into batches, which has no say in what a frame is.
_OF_THE_AUDIO = (
    "audio", "process", "versions", "alignments", "max_minutes", "batch_seconds", "buckets",
    "rows_per_update", "attention_max_seconds",
)  # fmt: skip


def new_folder(path: str | Path) -> Path:
    """Where statistics may go; raises UserError if those of a complete job are there."""
    folder = Path(path).expanduser()
    if (folder / _RECORD).exists():
        raise UserError(f"{folder} holds the statistics of a job already; choose another folder")
    return folder


def write_record(
    folder: Path,
    names: Sequence[RepresentationName],
    chosen: MeasureSelection,
    passes: int,
    heard: Sequence[Sequence[str]],
    attributes: dict[str, Any],
) -> None:
    """Say beside the statistics what they are of; raises UserError if it cannot be written."""
    told = {
        "representations": [[name.model, name.layer] for name in names],
        "measures": [m.name for group in chosen for m in group],
        "passes": passes,
        "heard": [list(one) for one in heard],
        "attributes": attributes,
    }
    try:
        (folder / _RECORD).write_text(json.dumps(told))
    except OSError as error:
        raise UserError(f"statistics cannot be kept in {folder}: {error.strerror}") from error


def merge(
    folders: Sequence[str | Path],
    *,
    measures: str | Sequence[str] | None = None,
    levels: Sequence[str] | None = None,
    rank_tolerance: float | None = None,
    keep_statistics: str | Path | None = None,
    note: str = "",
    progress: bool = True,
) -> SimilarityResult:
    """One result from the statistics that `compare(keep_statistics=...)` has left in folders.

    The jobs must be of the same models, layers, settings and memory plan, their audio disjoint.
    `measures`, `levels`: as of `compare`, of the statistics that were kept; those of the first job
    unless given. `rank_tolerance`: that of `Settings`, anew. `keep_statistics`: where those of all
    together go. `note` is kept in the result and shown under its figures. `progress`: show a bar on
    stderr.

    >>> models = ["facebook/hubert-base-ls960", "runs/mine"]
    >>> for part in ("part1", "part2"):
    ...     one = ss.compare(models, part, keep_statistics=f"merged/{part}", progress=False)
    >>> both = ss.merge(["merged/part1", "merged/part2"], progress=False)
    >>> both.attributes["frames"] == 2 * one.attributes["frames"]
    True

    Raises:
        UserError: jobs that do not fit together, an utterance that two of them have heard, or
            measures that need statistics which were not kept.
    """
    if not folders:
        raise UserError("no folders given; expected those of compare(keep_statistics=...)")
    places = [Path(folder).expanduser() for folder in folders]
    jobs = [_read_record(place) for place in places]
    for place, job in zip(places[1:], jobs[1:]):
        for what in ("representations", "passes"):
            if job[what] != jobs[0][what]:
                raise UserError(
                    f"{places[0]} and {place} differ in their {what} ({jobs[0][what]} and "
                    f"{job[what]}); only the same models, layers and memory plan can be merged"
                )
    _check_disjoint(places, jobs)
    chosen = resolve(jobs[0]["measures"] if measures is None else measures, levels)
    names = [RepresentationName(model, layer) for model, layer in jobs[0]["representations"]]
    with contextlib.ExitStack() as scratch:
        if keep_statistics is not None:
            target = new_folder(keep_statistics)
        elif len(places) > 1:
            target = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="speechsim-")))
        else:
            target = None
        passes = [f"pass-{number + 1}" for number in range(jobs[0]["passes"])]
        parts = [_merge_pass(places, name, target) for name in passes]
        found = finished(parts, rank_tolerance)
        _check_enough(chosen, found, parts)
        attributes = _attributes(places, jobs, found, note)
        heard = [one for job in jobs for one in job["heard"]]
        if target is not None and keep_statistics is not None:
            write_record(target, names, chosen, len(parts), heard, attributes)
        return build_result(names, found, chosen, attributes, progress)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no {_RECORD}: expected a folder of compare(keep_statistics=...), "
            "complete"
        ) from error


def _check_disjoint(places: Sequence[Path], jobs: Sequence[dict[str, Any]]) -> None:
    """Raise UserError if two jobs have heard the same utterance, by its id or by its samples."""
    ids: dict[str, Path] = {}
    digests: dict[str, tuple[str, Path]] = {}
    for place, job in zip(places, jobs):
        for id_, digest in job["heard"]:
            if id_ in ids:
                raise UserError(f"{ids[id_]} and {place} have both heard utterance {id_!r}")
            if digest in digests:
                other, where = digests[digest]
                raise UserError(
                    f"{place} has heard {id_!r}, the same samples as {other!r} in {where}"
                )
        ids |= {id_: place for id_, _ in job["heard"]}
        digests |= {digest: (id_, place) for id_, digest in job["heard"]}


def _merge_pass(places: Sequence[Path], name: str, target: Path | None) -> store.StoredStatistics:
    """A pass of all jobs; raises UserError if these were of other models or settings."""
    founds, facts = zip(*(store.read(place / name) for place in places))
    first, *rest = (fact["identity"] for fact in facts)
    for place, other in zip(places[1:], rest):
        for what in sorted(first.keys() | other.keys()):
            if what not in _OF_THE_AUDIO and first.get(what) != other.get(what):
                raise UserError(
                    f"{places[0]} and {place} differ in {what} ({first.get(what)!r} and "
                    f"{other.get(what)!r}) and cannot be merged"
                )
    if target is None:
        return founds[0]
    store.write_merged(target / name, founds, {"identity": first})
    return store.read(target / name)[0]


def _check_enough(
    chosen: MeasureSelection, found: Finished, parts: Sequence[store.StoredStatistics]
) -> None:
    """Raise UserError for measures that need what was not kept."""
    sums = {name for part in parts if part.heads is not None for name in part.heads.wanted}
    lacking = [m.name for m in chosen.measures if getattr(found, m.statistic) is None]
    lacking += [m.name for m in chosen.attention if found.attention is None]
    lacking += [m.name for m in chosen.attention if m.needs and m.needs not in sums]
    if lacking:
        raise UserError(f"{lacking[0]} needs statistics that these jobs have not kept")


def _attributes(
    places: Sequence[Path], jobs: Sequence[dict[str, Any]], found: Finished, note: str
) -> dict[str, Any]:
    """What the result says of itself: sums over the jobs, and where each came from."""
    told = [job["attributes"] for job in jobs]
    frames = sum(one["frames"] for one in told)
    return provenance.record(
        note=note,
        models=told[0]["models"],
        settings=told[0]["settings"],
        corpus={"origin": ", ".join(one["corpus"]["origin"] for one in told)},
        merged=[
            {"folder": place.name} | {name: one[name] for name in ("corpus", "settings", "created")}
            for place, one in zip(places, told)
        ],
        numeric={"stats_precision": "highest"} | found.numeric,
        frames=frames,
        rows=found.rows(frames),
        utterances=sum(one["utterances"] for one in told),
        seconds=sum(one["seconds"] for one in told),
        skipped=[skipped for one in told for skipped in one["skipped"]],
    )
