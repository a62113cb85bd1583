"""`merge`: the stored statistics of shards and jobs, over disjoint audio, as one result.

Machines that share nothing can divide a corpus in this way, and a corpus can grow. A single folder
gives the result of its job again, or other measures of the same statistics.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.audio.corpus import Corpus
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.score import (
    WELL_KNOWN,
    log_unknown_errors,
    scored_once,
    scored_result,
    worst_known,
)
from speechsim_jax.errors import UserError
from speechsim_jax.inference.influence_table import Keep
from speechsim_jax.measures.registry import MeasureSelection, resolve
from speechsim_jax.pipeline.job_folder import JobFolder, ShardFolder, job_folder, step_folders
from speechsim_jax.pipeline.one_pass import ReadCounts
from speechsim_jax.pipeline.run import check_enough
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.atomic_write import AnyPath, remove_folder
from speechsim_jax.runtime.checked_files import DamagedFileError
from speechsim_jax.runtime.shards import WHOLE
from speechsim_jax.settings import Output, Settings
from speechsim_jax.statistics import store
from speechsim_jax.statistics.accumulator import State
from speechsim_jax.statistics.attention_finished import AttentionState
from speechsim_jax.statistics.product_precision import HIGHEST
from speechsim_jax.statistics.store import FinishedStatistics, PassStatistics

# Settings that may differ between jobs: how audio was chosen, shared and cut into batches. None
# affects what a frame is. Statistics that one lacks are left out.
_MAY_DIFFER = (
    "audio", "versions", "alignments", "max_minutes", "batch_seconds", "buckets",
    "rows_per_update", "attention_max_seconds", "statistics", "attention", "errors_rows",
    "labels", "label_min_share",
    "exemplars",
)  # fmt: skip
_NOT_SAMPLED = {
    "over": "none",
    "reason": "the jobs keep no sample of rows (errors_source='reading'), and merge reads no audio",
}
_NOT_RECORDED = {"over": "none", "reason": "the jobs do not record any"}
# Parts that are added up at a time: memory grows with it, and files are read again for each group.
_AT_A_TIME = 8

_log = logging.getLogger(__name__)


def merge(
    folders: Sequence[str | os.PathLike[str]],
    *,
    measures: str | Sequence[str] | None = None,
    levels: Sequence[str] | None = None,
    rank_tolerance: float | None = None,
    statistics_dir: str | os.PathLike[str] | None = None,
    keep_influence: Keep = Output.keep_influence,
    note: str = "",
    progress: bool = True,
) -> SimilarityResult:
    """One result from the statistics that `compare` or `accumulate` has stored.

    The jobs must be of the same models, layers, settings and memory plan, their audio disjoint. A
    statistic that some of them lack is left out.

    >>> models = ["facebook/hubert-base-ls960", "runs/mine"]
    >>> for part in ("part1", "part2"):
    ...     last = ss.compare(models, part, statistics_dir=f"merged/{part}", progress=False)
    >>> both = ss.merge(["merged/part1", "merged/part2"], progress=False)
    >>> both.attributes["frames"] == 2 * last.attributes["frames"]
    True

    Args:
      folders: `statistics_dir` of each job. Of a job in shards, all must be complete.
      measures: as in `compare`, of the statistics that were stored; those of the first job by
        default.
      levels: as in `compare`.
      rank_tolerance: as in `Settings`.
      statistics_dir: folder for the merged statistics. An interrupted merge continues from it.
      keep_influence: as in `Output`.
      note: a remark that is stored in the result and shown under its figures.
      progress: whether a bar is shown on stderr.

    Returns:
      The scores over the rows of all jobs.

    Raises:
      UserError: jobs that do not fit together, an utterance that two of them contain, shards that
        are missing, damaged statistics, or measures that need some which were not stored.
    """
    if not folders:
        raise UserError("no folders given; expected those of compare(statistics_dir=...)")
    Settings(rank_tolerance=rank_tolerance)
    output = Output(keep_influence=keep_influence, note=note, progress=progress)
    given = list(map(job_folder, folders))
    # A comparison that has read its audio in steps is a job for each.
    jobs = _opened([job for folder in given for job in step_folders(folder.path) or [folder]])
    for other in jobs[1:]:
        _check_alike(jobs[0], other)
    _check_disjoint(jobs)
    parts = [part for job in jobs for part in job.parts]
    plan = jobs[0].plan
    with contextlib.ExitStack() as scratch:
        if len(parts) == 1 and statistics_dir is None:
            shard, record = parts[0].shard, parts[0].record
            merged = [store.read(shard.path / name)[0] for name in record["passes"]]
            missing, target_shard = [], None
        else:
            if statistics_dir is None:
                scratch_dir = tempfile.TemporaryDirectory(prefix="speechsim-")
                target = JobFolder(Path(scratch.enter_context(scratch_dir)))
            else:
                target = job_folder(statistics_dir)
            target_shard, merged, missing = _merge_into(target, jobs, parts, scratch)
        selection = _selection(plan["measures"], measures, levels, missing)
        counts = sum((part.counts for part in parts), start=ReadCounts())
        origins = ", ".join(dict.fromkeys(job.attributes["corpus"]["origin"] for job in jobs))
        check_enough(Corpus(origins, ()), counts, merged)
        settings = parts[0].record["attributes"]["settings"]
        given, part = settings.get("given", ()), settings.get("given_part", "rest")
        compared = Representations.from_json(plan).with_given(given, selection, part)
        finished = compared.finish(merged, rank_tolerance)
        _check_stored(selection, finished, merged)
        attributes = _attributes(jobs, parts, counts, finished, note)
        if missing:
            attributes["merged_without"] = missing
        scoring = compared.left, finished, selection, attributes, output
        if target_shard is None or statistics_dir is None:
            result = scored_result(*scoring)
        else:
            result = scored_once(target_shard.path, *scoring)
        if (worst := worst_known(result, selection)) > WELL_KNOWN:
            _log.info(
                "sampled standard errors are known to %.0f %% (median); merge reads no audio, so "
                "that there is no second reading", 100 * worst,
            )  # fmt: skip
        log_unknown_errors(result, selection)
        return result


def together(
    steps: Sequence[JobFolder], scratch: contextlib.ExitStack
) -> tuple[list[PassStatistics], ReadCounts]:
    """The statistics of the steps of one comparison, added up, and what they have read.

    Args:
      steps: complete, of disjoint utterances.
      scratch: the sums are in a temporary folder that lives in it.

    Raises:
      UserError: damaged statistics.
    """
    jobs = _opened(steps)
    parts = [part for job in jobs for part in job.parts]
    if len(parts) == 1:
        (part,) = parts
        names = part.record["passes"]
        return [store.read(part.shard.path / name)[0] for name in names], part.counts
    folder = scratch.enter_context(tempfile.TemporaryDirectory(prefix="speechsim-"))
    _, merged, _ = _merge_into(JobFolder(Path(folder)), jobs, parts, scratch)
    return merged, sum((part.counts for part in parts), start=ReadCounts())


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """One shard of a job.

    Attributes:
      shard: its folder.
      record: what it has stored.
    """

    shard: ShardFolder
    record: dict[str, Any]

    @functools.cached_property
    def counts(self) -> ReadCounts:
        """What it has read."""
        return ReadCounts.from_json(self.record["counts"])


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """A job whose shards are all complete.

    Attributes:
      path: of its folder.
      name: that tells it from the other jobs.
      plan: of the job.
      parts: its shards.
    """

    path: AnyPath
    name: str
    plan: dict[str, Any]
    parts: tuple[_Part, ...]

    @property
    def attributes(self) -> dict[str, Any]:
        """How its first shard was made."""
        return self.parts[0].record["attributes"]


def _opened(folders: Sequence[JobFolder]) -> list[_Job]:
    """The jobs in the folders; raises UserError for one that is not complete."""
    jobs = []
    for name, folder in zip(_distinct_names([f.path for f in folders]), folders):
        plan = folder.plan()
        if plan is None:
            raise UserError(
                f"{folder.path} holds no statistics: expected a folder of "
                "compare(statistics_dir=...)"
            )
        shards = folder.shards(plan)
        records = [shard.complete(strict=True) for shard in shards]
        lacking = [f"{k}/{len(shards)}" for k, r in enumerate(records, 1) if r is None]
        if lacking:
            incomplete = "the job is" if len(shards) == 1 else f"shards {', '.join(lacking)} are"
            raise UserError(f"{folder.path}: {incomplete} not complete; run it again, then merge")
        jobs.append(_Job(folder.path, name, plan, tuple(map(_Part, shards, filter(None, records)))))
    return jobs


def _distinct_names(paths: Sequence[AnyPath]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))


def _check_alike(first: _Job, other: _Job) -> None:
    """Raise UserError for jobs of other models, layers, settings or memory plan."""
    then, now = first.plan, other.plan
    if then.get("labels") != now.get("labels"):
        raise UserError(
            f"{first.path} and {other.path} differ in the classes of their labels, which are those "
            "of the audio of each; read one corpus in shards instead"
        )
    if then["representations"] != now["representations"] or (
        then["division"]["tiles"] != now["division"]["tiles"]
        and all(
            {"moments", "folded_moments"} & set(plan["identity"]["statistics"])
            for plan in (then, now)
        )
    ):
        what = "memory plan"
        if then["representations"] != now["representations"]:
            what = f"representations ({then['representations']} and {now['representations']})"
        raise UserError(
            f"{first.path} and {other.path} differ in their {what}; only the same models, layers "
            "and memory plan can be merged"
        )
    one, two = _comparable(then["identity"]), _comparable(now["identity"])
    for what in sorted(one.keys() | two.keys()):
        if what not in _MAY_DIFFER and one.get(what) != two.get(what):
            raise UserError(
                f"{first.path} and {other.path} differ in {what} ({one.get(what)!r} and "
                f"{two.get(what)!r}) and cannot be merged"
            )


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What jobs on disjoint audio must share: of tracks that are arrays not the arrays."""
    tracks = {
        name: {k: v for k, v in record.items() if k != "sha256" or record["kind"] != "arrays"}
        for name, record in identity.get("tracks", {}).items()
    }
    return {**identity, "tracks": tracks}


def _check_disjoint(jobs: Sequence[_Job]) -> None:
    """Raise UserError if two jobs contain the same samples; their ids do not matter."""
    known: dict[str, tuple[str, AnyPath]] = {}
    for job in jobs:
        of_job = {
            digest: (id_, job.path) for part in job.parts for id_, digest in part.counts.digests
        }
        for digest, (id_, path) in of_job.items():
            if digest in known:
                other, where = known[digest]
                raise UserError(
                    f"{path} contains {id_!r}, the same samples as {other!r} in {where}"
                )
        known |= of_job


def _merge_into(
    target: JobFolder, jobs: Sequence[_Job], parts: Sequence[_Part], stack: contextlib.ExitStack
) -> tuple[ShardFolder, list[PassStatistics], list[str]]:
    """Where the merged statistics are, the statistics, and the kinds that some parts lack.

    Raises:
      UserError: the target is of another merge.
    """
    of_parts = [[part.shard.path.as_posix(), part.record["checksum"]] for part in parts]
    plan = target.plan()
    if plan is not None and "merged" in plan and plan["merged"] != of_parts:
        # An attempt to merge other parts, or these before one was run again: nothing is lost if it
        # has no sums, or is below the folder of the job whose shards it merges.
        owned = any(target.path.parent == job.path for job in jobs)
        if owned or target.shard(WHOLE, plan, 0).metadata(1) is None:
            remove_folder(target.path)
            plan = None
    if plan is None:
        of_first = {n: v for n, v in jobs[0].plan.items() if n not in ("format", "checksum")}
        plan = target.write_plan(of_first | {"shards": 1, "files": {}, "merged": of_parts})
    if plan.get("merged") != of_parts:
        raise UserError(f"{target.path} holds other statistics; choose another folder")
    shard = target.shard(WHOLE, plan, float("inf"))
    stack.enter_context(shard.opened())
    states, missing = _states_by_kind(parts)
    for kind in missing:
        _log.warning("%s is missing in some of the jobs; they are merged without it", kind)
    names, merged = [], []
    for number in range(1, 1 + max(map(len, states[0].values()), default=0)):
        stored = shard.statistics(number)
        if stored is None:
            of_pass = [
                {kind: of_kind[number - 1] for kind, of_kind in of_part.items()
                 if len(of_kind) >= number}
                for of_part in states
            ]  # fmt: skip
            _fold(shard, number, of_pass)
            stored = shard.statistics(number)
            assert stored is not None
        names.append(stored[0])
        merged.append(stored[1])
    if shard.complete() is None:
        counts = ReadCounts()
        for job in jobs:
            # Ids are unique within a job only.
            of_job = sum((part.counts for part in job.parts), start=ReadCounts())
            digests = tuple((f"{job.name}/{id_}", digest) for id_, digest in of_job.digests)
            counts += dataclasses.replace(of_job, digests=digests)
        shard.finish(
            {
                "passes": names,
                "counts": dataclasses.asdict(counts),
                "attributes": jobs[0].attributes | {"merged": _sources_of(jobs, parts)},
            }
        )
    return shard, merged, missing


def _states_by_kind(
    parts: Sequence[_Part],
) -> tuple[list[dict[str, list["_StoredState"]]], list[str]]:
    """Where the states of each part are, by kind, pass by pass; and kinds that some parts lack.

    Raises:
      DamagedFileError: with which shard to run again.
    """
    found = []
    for part in parts:
        of_part: dict[str, list[_StoredState]] = {}
        for name in part.record["passes"]:
            with _advised(part.shard.path):
                for kind in store.kinds(part.shard.path / name):
                    of_part.setdefault(kind, []).append(_StoredState(part.shard.path / name, kind))
        found.append(of_part)
    everywhere = [kind for kind in found[0] if all(kind in other for other in found)]
    missing = sorted({kind for of_part in found for kind in of_part} - set(everywhere))
    return [{kind: of_part[kind] for kind in everywhere} for of_part in found], missing


@dataclasses.dataclass(frozen=True)
class _StoredState:
    """A state of one kind in a folder of the store."""

    folder: AnyPath
    kind: str

    def read(self) -> State:
        """Read it; raises DamagedFileError."""
        with _advised(self.folder.parent):
            return store.read(self.folder, only=(self.kind,))[0].states[self.kind]


@contextlib.contextmanager
def _advised(shard: AnyPath) -> Iterator[None]:
    """Says of damaged statistics how to get them back."""
    try:
        yield
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; run {shard.name} again with --resume") from error


def _fold(shard: ShardFolder, number: int, parts: Sequence[Mapping[str, _StoredState]]) -> None:
    """Add up one pass of all parts, a few at a time, and store the sum."""
    waiting = list(parts)
    sums = 0
    while True:
        group, waiting = waiting[:_AT_A_TIME], waiting[_AT_A_TIME:]
        merged = {}
        for kind in parts[0]:
            first, *others = [of_part[kind].read() for of_part in group]
            merged[kind] = first.merge(others) if others else first
        statistics = PassStatistics(merged)
        if not waiting:
            shard.store(number, statistics, {"counts": {"seconds": 0.0}})
            break
        sums += 1
        folder = shard.partial(number, sums, statistics)
        waiting.insert(0, {kind: _StoredState(folder, kind) for kind in merged})
    shard.delete_partial(number)


def _selection(
    stored: Sequence[str],
    measures: str | Sequence[str] | None,
    levels: Sequence[str] | None,
    missing: Sequence[str],
) -> MeasureSelection:
    """The measures: those that are asked for, or all of the first job that can be scored."""
    if measures is not None:
        return resolve(measures, levels)
    of_job = resolve(list(stored), levels)
    return resolve([m.name for m in of_job.measures if m.statistic not in missing], levels)


def _check_stored(
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
    jobs: Sequence[_Job],
    parts: Sequence[_Part],
    counts: ReadCounts,
    finished: FinishedStatistics,
    note: str,
) -> dict[str, Any]:
    """How the result was made: sums over the parts, and where each came from."""
    first = jobs[0].attributes
    errors = first.get("errors", _NOT_RECORDED)
    if len(jobs) > 1:
        errors = errors | {"reason": "as in the merged jobs"}
    sources = {job.attributes["settings"].get("errors_source") for job in jobs}
    if "reading" in sources and errors["over"] != "none" and finished.clustered is None:
        errors = _NOT_SAMPLED
    origins = dict.fromkeys(job.attributes["corpus"]["origin"] for job in jobs)
    corpus = first["corpus"] if len(jobs) == 1 else {"origin": ", ".join(origins)}
    return provenance.record(
        note=note or (first["note"] if len(jobs) == 1 else ""),
        models=first["models"],
        settings=first["settings"],
        **({"tracks": first["tracks"]} if "tracks" in first else {}),
        errors=errors,
        heldout=first.get("heldout", _NOT_RECORDED),
        null=first.get("null", {"kind": "none"}),
        corpus=corpus,
        merged=_sources_of(jobs, parts),
        numeric={"stats_precision": _stats_precision(jobs)} | finished.numeric,
        frames=counts.frames,
        rows=finished.rows(counts.frames),
        utterances=counts.utterances,
        seconds=counts.seconds,
        encoding_seconds=counts.elapsed_seconds,
        skipped=[dataclasses.asdict(skipped) for skipped in counts.skipped],
        reading=dict(counts.notes),
        duplicates=len(counts.duplicates),
    )


def _stats_precision(jobs: Sequence[_Job]) -> str:
    """How products were computed, on different devices perhaps in different ways."""
    parts = [part.record["attributes"] for job in jobs for part in job.parts]
    found = {part.get("precision", {}).get("statistics", HIGHEST) for part in parts}
    return ", ".join(sorted(found))


def _sources_of(jobs: Sequence[_Job], parts: Sequence[_Part]) -> list[dict[str, Any]]:
    """What each part was, for the record of a result."""
    facts = ("corpus", "settings", "created", "device", "utterances", "seconds", "frames")
    return [
        {"folder": job.name, "shard": part.shard.path.name}
        | {name: part.record["attributes"][name] for name in facts}
        for job in jobs
        for part in job.parts
    ]
