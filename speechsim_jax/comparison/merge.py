"""`merge`: the stored statistics of several jobs, over disjoint audio, as one result.

Machines that share nothing can divide a corpus in this way, and a corpus can grow. A single folder
gives the result of its job again, or other measures of the same statistics.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.comparison.job_record import new_folder, read_record, write_record
from speechsim_jax.comparison.score import scored_result
from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection, resolve
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.settings import Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.attention_finished import AttentionState
from speechsim_jax.statistics.store import FinishedStatistics, PassStatistics

# Settings that may differ between jobs: how audio was chosen, shared and cut into batches. None
# affects what a frame is.
_MAY_DIFFER = (
    "audio", "process", "versions", "alignments", "max_minutes", "batch_seconds", "buckets",
    "rows_per_update", "attention_max_seconds",
)  # fmt: skip


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
    """One result from the statistics that `compare(keep_statistics=...)` has stored.

    The jobs must be of the same models, layers, settings and memory plan, their audio disjoint.

    >>> models = ["facebook/hubert-base-ls960", "runs/mine"]
    >>> for part in ("part1", "part2"):
    ...     last = ss.compare(models, part, keep_statistics=f"merged/{part}", progress=False)
    >>> both = ss.merge(["merged/part1", "merged/part2"], progress=False)
    >>> both.attributes["frames"] == 2 * last.attributes["frames"]
    True

    Args:
      folders: of the jobs' statistics.
      measures: as in `compare`, of the statistics that were stored; those of the first job by
        default.
      levels: as in `compare`.
      rank_tolerance: as in `Settings`.
      keep_statistics: folder for the merged statistics.
      note: a remark that is stored in the result and shown under its figures.
      progress: whether a bar is shown on stderr.

    Returns:
      The scores over the rows of all jobs.

    Raises:
      UserError: jobs that do not fit together, an utterance that two of them contain, or measures
        that need statistics which were not stored.
    """
    if not folders:
        raise UserError("no folders given; expected those of compare(keep_statistics=...)")
    Settings(rank_tolerance=rank_tolerance)
    paths = [Path(folder).expanduser() for folder in folders]
    jobs = [read_record(path) for path in paths]
    for path, job in zip(paths[1:], jobs[1:]):
        for what in ("representations", "passes"):
            if job[what] != jobs[0][what]:
                raise UserError(
                    f"{paths[0]} and {path} differ in their {what} ({jobs[0][what]} and "
                    f"{job[what]}); only the same models, layers and memory plan can be merged"
                )
    _check_disjoint(paths, jobs)
    selection = resolve(jobs[0]["measures"] if measures is None else measures, levels)
    names = [RepresentationName(model, layer) for model, layer in jobs[0]["representations"]]
    with contextlib.ExitStack() as scratch:
        if keep_statistics is not None:
            target = new_folder(keep_statistics)
        elif len(paths) > 1:
            target = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="speechsim-")))
        else:
            target = None
        passes = [f"pass-{number + 1}" for number in range(jobs[0]["passes"])]
        statistics = [_merge_pass(paths, name, target) for name in passes]
        finished = store.finish(statistics, rank_tolerance)
        _check_enough(selection, finished, statistics)
        attributes = _attributes(paths, jobs, finished, note)
        utterances = [entry for job in jobs for entry in job["utterances"]]
        if target is not None and keep_statistics is not None:
            write_record(target, names, selection, len(statistics), utterances, attributes)
        return scored_result(names, finished, selection, attributes, progress)


def _check_disjoint(paths: Sequence[Path], jobs: Sequence[dict[str, Any]]) -> None:
    """Raise UserError if two jobs contain the same utterance, by its id or by its samples."""
    ids: dict[str, Path] = {}
    digests: dict[str, tuple[str, Path]] = {}
    for path, job in zip(paths, jobs):
        for id_, digest in job["utterances"]:
            if id_ in ids:
                raise UserError(f"{ids[id_]} and {path} both contain utterance {id_!r}")
            if digest in digests:
                other, where = digests[digest]
                raise UserError(
                    f"{path} contains {id_!r}, the same samples as {other!r} in {where}"
                )
        ids |= {id_: path for id_, _ in job["utterances"]}
        digests |= {digest: (id_, path) for id_, digest in job["utterances"]}


def _merge_pass(paths: Sequence[Path], name: str, target: Path | None) -> PassStatistics:
    """One pass of all jobs, merged; raises UserError for jobs of other models or settings."""
    parts, metadata = zip(*(store.read(path / name) for path in paths))
    first, *rest = (record["identity"] for record in metadata)
    for path, other in zip(paths[1:], rest):
        for what in sorted(first.keys() | other.keys()):
            if what not in _MAY_DIFFER and first.get(what) != other.get(what):
                raise UserError(
                    f"{paths[0]} and {path} differ in {what} ({first.get(what)!r} and "
                    f"{other.get(what)!r}) and cannot be merged"
                )
    if target is None:
        return parts[0]
    store.write_merged(target / name, parts, {"identity": first})
    return store.read(target / name)[0]


def _check_enough(
    selection: MeasureSelection, finished: FinishedStatistics, parts: Sequence[PassStatistics]
) -> None:
    """Raise UserError for measures that need statistics which were not stored."""
    states = (part.states.get(AttentionState.kind) for part in parts)
    sums = {name for state in states if isinstance(state, AttentionState) for name in state.needed}
    lacking = [m.name for m in selection.measures if m.statistic not in finished.by_kind]
    lacking += [m.name for m in selection.on("attention") if m.needs and m.needs not in sums]
    if lacking:
        raise UserError(f"{lacking[0]} needs statistics that these jobs have not stored")


def _attributes(
    paths: Sequence[Path], jobs: Sequence[dict[str, Any]], finished: FinishedStatistics, note: str
) -> dict[str, Any]:
    """How the result was made: sums over the jobs, and where each came from."""
    parts = [job["attributes"] for job in jobs]
    frames = sum(part["frames"] for part in parts)
    return provenance.record(
        note=note,
        models=parts[0]["models"],
        settings=parts[0]["settings"],
        corpus={"origin": ", ".join(part["corpus"]["origin"] for part in parts)},
        merged=[
            {"folder": path.name} | {name: part[name] for name in ("corpus", "settings", "created")}
            for path, part in zip(paths, parts)
        ],
        numeric={"stats_precision": "highest"} | finished.numeric,
        frames=frames,
        rows=finished.rows(frames),
        utterances=sum(part["utterances"] for part in parts),
        seconds=sum(part["seconds"] for part in parts),
        skipped=[skipped for part in parts for skipped in part["skipped"]],
    )
