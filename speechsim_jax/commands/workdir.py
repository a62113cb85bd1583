"""The folder of a command's results: whether it may be written, resumed or replaced."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechsim_jax.errors import StorageError, UserError
from speechsim_jax.runtime.atomic_write import (
    AnyPath,
    as_path,
    in_bucket,
    remove_folder,
    write_text,
)
from speechsim_jax.runtime.checked_files import read_record, write_record
from speechsim_jax.runtime.identity import as_json
from speechsim_jax.runtime.lock import check_unlocked
from speechsim_jax.settings import FIGURE_FORMATS

if TYPE_CHECKING:
    from speechsim_jax.audio.alignments import Segments
    from speechsim_jax.audio.open_corpus import AudioInput
    from speechsim_jax.results.result import SimilarityResult

_RESULT, _CONFIG, _UNFINISHED = "result.nc", "config.json", "unfinished.json"
# Of a run that was to replace a complete one and failed before it did.
_FAILED = "failed.json"
# In unfinished.json: whether the results that are there are complete ones, of an earlier run.
_REPLACES = "replaces_complete"
# Identity of partial results.
_JOB, _FORMAT = "job.json", 1
_log = logging.getLogger(__name__)


def new_workdir(path: str | Path, overwrite: bool, result: str = "result.nc") -> AnyPath:
    """Create the folder of results; results of other commands may be in it, and stay.

    Args:
      path: the folder.
      overwrite: whether `result` may be replaced.
      result: file that the command writes last.

    Raises:
      UserError: the folder cannot be written, or has a result that may not be replaced.
    """
    folder = made(path)
    if (folder / result).exists() and not overwrite:
        raise UserError(f"{folder / result} exists; choose another --workdir or pass --overwrite")
    return folder


def made(path: str | Path) -> AnyPath:
    """Make the folder, which may be in a bucket.

    Raises:
      UserError: it cannot be written.
    """
    folder = as_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not in_bucket(folder):
            (folder / "log.jsonl").touch()
    except OSError as error:
        raise UserError(
            f"--workdir={path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder


def is_complete(workdir: AnyPath) -> bool:
    """Whether there are results, and no run is about to replace or complete them."""
    return (workdir / _RESULT).exists() and not (workdir / _UNFINISHED).exists()


def has_partial_results(statistics: AnyPath) -> bool:
    """Whether there are checkpoints or statistics of a pass in the folder of a job or shard."""
    of_pass = "pass-*/statistics.json"
    patterns = (of_pass, f"*/{of_pass}", f"step-*/*/{of_pass}")
    return any(True for pattern in patterns for _ in statistics.glob(pattern))


def begin(workdir: AnyPath, statistics: AnyPath, config: Mapping[str, Any]) -> bool:
    """Prepare for a run whose results go to `workdir`.

    Until `save_result` has written everything, unfinished.json is there. Older results stay until
    they are replaced; in `keeping_complete`, a failure before that names them complete again.

    Args:
      workdir: the folder.
      statistics: where this run stores statistics. With `overwrite` what is there is deleted, with
        `resume` the run continues from it.
      config: of the run, `overwrite` and `resume` among its fields.

    Returns:
      Whether there is anything to do: not if the run is resumed and all of it is complete.

    Raises:
      UserError: there are results, or parts of them, that may neither be used nor replaced.
      LockedError: statistics would be deleted that another process writes.
    """
    overwrite, resume = config["overwrite"], config["resume"]
    result = workdir / _RESULT
    unfinished = (workdir / _UNFINISHED).exists()
    partial = has_partial_results(statistics) or (unfinished and result.exists())
    if overwrite and not resume:
        _remove_statistics(statistics)
    elif is_complete(workdir):
        if not resume:
            raise UserError(f"{result} exists; choose another --workdir or pass --overwrite")
        # What a failed run was to replace is not what it was asked for.
        if _same_result(_record(workdir / _CONFIG), config) and not (workdir / _FAILED).exists():
            return False
        if not overwrite:
            raise UserError(
                f"{result} is of another configuration or an earlier run; choose another "
                "--workdir or pass --overwrite"
            )
    elif partial and not resume:
        raise UserError(
            f"{workdir} is of an unfinished run; pass --resume to continue it, or --overwrite"
        )
    elif not resume and not in_bucket(statistics):
        _remove_statistics(statistics)  # nothing but a plan
    if resume and not partial:
        _log.warning("nothing to resume in %s: starting from the beginning", workdir)
    replaces = is_complete(workdir) or bool(_record(workdir / _UNFINISHED).get(_REPLACES))
    write_json(workdir / _UNFINISHED, {**config, _REPLACES: replaces})
    (workdir / _FAILED).unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def keeping_complete(workdir: AnyPath) -> Iterator[None]:
    """Name earlier results complete again if the run fails before it has replaced any.

    Args:
      workdir: the folder, for which `begin` was called. An interrupted run stays unfinished.
    """
    try:
        yield
    except Exception:
        record = _record(workdir / _UNFINISHED)
        if record.get(_REPLACES):
            write_json(workdir / _FAILED, record)
            (workdir / _UNFINISHED).unlink(missing_ok=True)
        raise


def _remove_statistics(statistics: AnyPath) -> None:
    """Delete statistics; raises LockedError if another process writes them."""
    shards = (*statistics.glob("shard-*"), *statistics.glob("step-*/shard-*"))
    for folder in (statistics, *shards):
        check_unlocked(folder)
    remove_folder(statistics)


def _record(path: AnyPath) -> dict[str, Any]:
    """A record that `write_json` wrote, {} if there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _same_result(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two configurations differ at most in what does not change the result."""

    def of_result(config: Mapping[str, Any]) -> dict[str, Any]:
        free = ("workdir", "overwrite", "resume", "keep_statistics", "resources", "output")
        revision = config.get("resources", {}).get("revision")
        note = config.get("output", {}).get("note")
        rest = {name: value for name, value in config.items() if name not in free}
        audio = rest.get("audio")
        if audio and Path(audio).exists():
            rest["audio"] = str(Path(audio).resolve())
        return as_json(rest | {"revision": revision, "note": note})

    return of_result(then) == of_result(now)


def checkpoint_folder(workdir: AnyPath, resume: bool, overwrite: bool) -> AnyPath:
    """The folder of a run's checkpoints, which is empty or absent unless the run is resumed.

    Raises:
      UserError: there are checkpoints that may neither be resumed nor replaced.
    """
    folder = workdir / "checkpoints"
    if folder.exists() and not resume:
        if not overwrite:
            raise UserError(
                f"{folder} is of an unfinished run; pass --resume to continue it, or --overwrite"
            )
        shutil.rmtree(folder)
    return folder


def partial_results(
    folder: AnyPath, identity: Mapping[str, Any], resume: bool, overwrite: bool
) -> AnyPath:
    """A folder of partial results: those of an interrupted run of the same identity, or none.

    Args:
      folder: the folder; its job.json has the identity.
      identity: everything that can change a number, for JSON.
      resume: whether partial results may be used.
      overwrite: whether they may be deleted.

    Raises:
      UserError: there are results of a run with another identity, or that may not be touched.
    """
    job, expected = folder / _JOB, as_json(identity)
    if job.exists() and resume:
        before = read_record(job, _FORMAT)["identity"]
        differing = [name for name, value in expected.items() if before.get(name) != value]
        if differing:
            raise UserError(
                f"{folder.parent} is of a run with other {', '.join(differing)}; choose another "
                "--workdir, or pass --overwrite instead of --resume"
            )
        return folder
    if job.exists() and not overwrite:
        raise UserError(
            f"{folder.parent} holds results of a run; pass --resume to continue it, or --overwrite"
        )
    if resume:
        _log.warning("nothing to resume in %s: starting from the beginning", folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_record(job, _FORMAT, {"identity": expected})
    return folder


def save_result(
    result: SimilarityResult,
    workdir: AnyPath,
    config: Mapping[str, Any],
    formats: Sequence[str] = ("png",),
    style: str = "labelled",
    reference: str = "auto",
    audio: AudioInput | None = None,
    neurons: Sequence[str] = (),
    segments: Mapping[str, Segments] | None = None,
) -> None:
    """Write result.nc, scores.csv, report.html, figures/* and config.json, replacing older ones.

    Args:
      result: what is written.
      workdir: the folder.
      config: what was asked for.
      formats: of figures.
      style: of heat maps.
      reference: of the outlines on heat maps.
      audio: of the result, for the sound of exemplars in the report; None for none.
      neurons: whose exemplars the report shows besides the best-matched.
      segments: of each utterance, as its phones, which are shown with exemplars.

    Raises:
      StorageError: one of them cannot be written; it says which are complete.
    """
    import speechsim_jax as ss
    from speechsim_jax import figures

    def draw() -> None:
        folder = workdir / "figures"
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix[1:] in FIGURE_FORMATS:
                path.unlink()
        figures.save_figures(result, folder, formats, style, reference)

    steps = {
        _RESULT: lambda: result.save(workdir / _RESULT),
        "scores.csv": lambda: result.to_csv(workdir / "scores.csv"),
        "report.html": lambda: ss.write_report(
            result, workdir / "report.html", audio=audio, neurons=neurons, segments=segments
        ),
        "figures": draw,
        _CONFIG: lambda: write_json(workdir / _CONFIG, config),
    }
    if result.influence is not None:
        kept, size = result.influence.by, result.influence.nbytes / 1e6
        _log.info("influences of %s: %.1f MB next to result.nc (keep_influence)", kept, size)
    complete: list[str] = []
    _log.info("writing %s", ", ".join(steps))
    for name, write in steps.items():
        try:
            write()
        except (OSError, StorageError) as error:
            done = ", ".join(complete) or "nothing"
            reason = getattr(error, "strerror", error)
            raise StorageError(
                f"{workdir / name} cannot be written ({reason}); complete: {done}. Mend that, then "
                "repeat the command with --resume"
            ) from error
        if (
            not complete and (workdir / _UNFINISHED).exists()
        ):  # of the older results, the first is gone
            write_json(workdir / _UNFINISHED, config)
        complete.append(name)
    (workdir / _UNFINISHED).unlink(missing_ok=True)


def write_json(path: AnyPath, record: Any) -> None:
    """Write a record for people to read, as a whole."""
    write_text(path, json.dumps(record, indent=2) + "\n")
