"""Flags and folders that pretraining and fine-tuning share."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from speechsim_jax.commands import flags
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import checkpoint_folder, new_workdir
from speechsim_jax.errors import UserError
from speechsim_jax.settings import INTERRUPTED, Resources, documented, setting

if TYPE_CHECKING:
    from speechsim_jax.training import trainer
    from speechsim_jax.training.recipe import Recipe

    AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

_log = logging.getLogger(__name__)


def corpus() -> Any:
    """The audio of a training, required."""
    return flags.own(flags.REQUIRED, "Folders, manifests (.tsv) or lists (.txt) of audio.")


@documented
@dataclasses.dataclass(frozen=True)
class Run:
    """Where a training happens and for how long."""

    corpus: tuple[str, ...] = corpus()
    workdir: str = flags.workdir()
    overwrite: bool = flags.overwrite()
    resume: bool = flags.resume()
    checkpoint_every: float | int = flags.like(Resources, "checkpoint_every")
    stop_after: float | int | None = setting(
        None, "Stop with a checkpoint after so many minutes.", INTERRUPTED, at_least=0
    )
    mesh: str | None = flags.like(
        Resources, "mesh", help="Devices, as data:N; each takes a share of a batch (default: all)."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioChanges:
    """Flags that change which audio a recipe names; None leaves it as it is."""

    include: tuple[str, ...] | None = flags.own(
        None, "Only utterances whose id (path) matches one of these patterns, e.g. train*."
    )
    exclude: tuple[str, ...] | None = flags.own(
        None, "No utterances whose id (path) matches one of these patterns."
    )
    held_out: tuple[str, ...] | None = flags.own(
        None, "Speakers that are not trained on: a share such as 0.1, or names."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes(AudioChanges):
    """The recipe, and flags that change it; None leaves it as it is."""

    config: str | None = flags.own(None, "The recipe: a TOML file, e.g. of experiments/zoo.")
    steps: int | None = flags.own(None, "Number of steps (default: the recipe's).")
    seed: int | None = flags.own(
        None, "Seed of every random choice (default: the recipe's).", at_least=0
    )


def changed(recipe: AnyRecipe, changes: AudioChanges) -> AnyRecipe:
    """The recipe with what the flags change. Raises UserError."""
    audio: dict[str, Any] = {}
    if changes.include is not None:
        audio["include"] = changes.include
    if changes.exclude is not None:
        audio["exclude"] = changes.exclude
    if changes.held_out is not None:
        audio |= _held_out(changes.held_out)
    values: dict[str, Any] = {"audio": dataclasses.replace(recipe.audio, **audio)}
    if isinstance(changes, Changes):
        if changes.steps is not None:
            snapshots = tuple(step for step in recipe.snapshots if step <= changes.steps)
            values |= {"steps": changes.steps, "snapshots": snapshots}
        if changes.seed is not None:
            values["seed"] = changes.seed
    return dataclasses.replace(recipe, **values)


def _held_out(words: Sequence[str]) -> dict[str, Any]:
    # Speakers may be called by numbers, but hardly by one below 1.
    with contextlib.suppress(ValueError):
        if len(words) == 1 and 0 <= float(words[0]) < 1:
            return {"held_out": (), "held_out_share": float(words[0])}
    return {"held_out": tuple(words), "held_out_share": 0.0}


@contextlib.contextmanager
def open_workdir(run: Run, progress: bool) -> Iterator[Path]:
    """The workdir with its log; what another run has left there is removed or refused.

    When the training has ended, its checkpoints are deleted.
    """
    workdir = new_workdir(run.workdir, overwrite=True)
    finished = workdir / "model" / "training.json"
    if finished.exists() and not run.overwrite:
        raise UserError(f"{finished.parent} exists; choose another --workdir or pass --overwrite")
    checkpoints = checkpoint_folder(workdir, run.resume, run.overwrite)
    starts = not checkpoints.exists()
    if starts:
        (workdir / "units.npz").unlink(missing_ok=True)
        shutil.rmtree(workdir / "model", ignore_errors=True)
        for snapshot in workdir.glob("step-*"):
            shutil.rmtree(snapshot)
    with log_to(workdir, progress):
        if run.resume and starts:
            _log.warning("no checkpoint in %s: starting from the beginning", workdir)
        yield workdir
    if finished.exists():
        shutil.rmtree(checkpoints, ignore_errors=True)


def train(job: trainer.TrainingRun, workdir: Path, run: Run, progress: bool) -> trainer.Outcome:
    """Train for as long as the run is to last. Raises UserError."""
    from speechsim_jax.training import trainer

    return trainer.train(
        job,
        workdir,
        mesh=run.mesh,
        checkpoint_minutes=run.checkpoint_every,
        stop_after_minutes=run.stop_after,
        progress=progress,
    )


def print_outcome(outcome: trainer.Outcome, run: Run) -> None:
    """Print the metrics on held-out speakers, and where the model is."""
    for name, value in outcome.metrics.items():
        print(f"{name:20} {value:.4f}")
    if outcome.finished:
        print(f"\nwritten: {Path(run.workdir, 'model')}")
    else:
        print(f"\nstopped after step {outcome.step}; continue with the same command and --resume")
