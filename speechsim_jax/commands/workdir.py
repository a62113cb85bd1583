"""The folder of a command's results: whether it may be written, resumed or replaced."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechsim_jax.errors import UserError
from speechsim_jax.settings import FIGURE_FORMATS

if TYPE_CHECKING:
    from speechsim_jax.results.result import SimilarityResult

_PLAN = "plan.json"
_log = logging.getLogger(__name__)


def new_workdir(path: str | Path, overwrite: bool, result: str = "result.nc") -> Path:
    """Create the folder of results; results of other commands may be in it, and stay.

    Args:
      path: the folder.
      overwrite: whether `result` may be replaced.
      result: file that the command writes last.

    Raises:
      UserError: the folder cannot be written, or has a result that may not be replaced.
    """
    folder = Path(path).expanduser()
    try:
        if (folder / result).exists() and not overwrite:
            raise UserError(
                f"{folder / result} exists; choose another --workdir or pass --overwrite"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").touch()
    except OSError as error:
        raise UserError(
            f"--workdir={path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder


def checkpoint_folder(workdir: Path, resume: bool, overwrite: bool) -> Path:
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
    folder: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool
) -> Path:
    """A folder of partial results: those of an interrupted run of the same identity, or none.

    Args:
      folder: the folder; its plan.json has the identity.
      identity: everything that can change a number, for JSON.
      resume: whether partial results may be used.
      overwrite: whether they may be deleted.

    Raises:
      UserError: there are results of a run with another identity, or that may not be touched.
    """
    plan, expected = folder / _PLAN, json.loads(json.dumps(identity))
    if plan.exists() and resume:
        before = json.loads(plan.read_text())
        differing = [name for name, value in expected.items() if before.get(name) != value]
        if differing:
            raise UserError(
                f"{folder.parent} is of a run with other {', '.join(differing)}; choose another "
                "--workdir, or pass --overwrite instead of --resume"
            )
        return folder
    if plan.exists() and not overwrite:
        raise UserError(
            f"{folder.parent} holds results of a run; pass --resume to continue it, or --overwrite"
        )
    if resume:
        _log.warning("nothing to resume in %s: starting from the beginning", folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plan.write_text(json.dumps(expected, indent=2) + "\n")
    return folder


def save_result(
    result: SimilarityResult,
    workdir: Path,
    config: Mapping[str, Any],
    formats: Sequence[str] = ("png",),
    style: str = "labelled",
) -> None:
    """Write config.json, result.nc, scores.csv, report.html and figures/*, replacing older ones."""
    import speechsim_jax as ss
    from speechsim_jax import figures

    # Only now: a run that fails must not pair an older result with its own configuration.
    (workdir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    result.save(workdir / "result.nc")
    result.to_csv(workdir / "scores.csv")
    ss.write_report(result, workdir / "report.html")
    for path in (workdir / "figures").glob("*.*"):
        if path.suffix[1:] in FIGURE_FORMATS:
            path.unlink()
    figures.save_figures(result, workdir / "figures", formats, style)
