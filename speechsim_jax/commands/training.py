"""Flags and folders that pretraining and fine-tuning share."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from speechsim_jax.commands import compare
from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError
from speechsim_jax.training import trainer
from speechsim_jax.training.recipe import Recipe

CONFIG = flags.DEFINE_string("config", None, "The recipe: a TOML file, e.g. of experiments/zoo.")
_CORPUS = flags.DEFINE_list("corpus", [], "Folders, manifests (.tsv) or lists (.txt) of audio.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps, instead of those of the recipe.")
_INCLUDE = flags.DEFINE_list(
    "include", None, "Only utterances whose id (path) fits one of these patterns, e.g. train*."
)
_EXCLUDE = flags.DEFINE_list("exclude", None, "No utterances whose id (path) fits one of these.")
_HELD_OUT = flags.DEFINE_list(
    "held_out", None, "Speakers that are not trained on: a share such as 0.1, or names."
)
_STOP_AFTER = flags.DEFINE_float(
    "stop_after", None, "Stop with a checkpoint after so many minutes.", lower_bound=0.0
)

# What means nothing where only audio is chosen.
OF_TRAINING = (CONFIG, _STEPS, _STOP_AFTER)

# Of the flags that `compare` brings along; the others mean nothing here.
USED = ("resume", "checkpoint_every", "mesh")
for _name in USED:
    flags.declare_key_flag(_name)

_log = logging.getLogger(__name__)

_AnyRecipe = TypeVar("_AnyRecipe", bound=Recipe)


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a training happens and for how long; the names are those of the flags."""

    corpus: tuple[str, ...]
    workdir: str
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: float | int = 10.0
    stop_after: float | int | None = None
    mesh: str | None = None


def run_from_flags() -> Run:
    """The flags as a Run; raises UserError for what is missing."""
    for flag in (_CORPUS, _flags.WORKDIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is required; see --help")
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in USED}
    return Run(
        corpus=tuple(_CORPUS.value),
        workdir=str(_flags.WORKDIR.value),
        overwrite=_flags.OVERWRITE.value,
        stop_after=_STOP_AFTER.value,
        **values,
    )


def with_flags(recipe: _AnyRecipe) -> _AnyRecipe:
    """The recipe with what the flags say instead. Raises UserError."""
    audio: dict[str, Any] = {}
    if _INCLUDE.value is not None:
        audio["include"] = tuple(_INCLUDE.value)
    if _EXCLUDE.value is not None:
        audio["exclude"] = tuple(_EXCLUDE.value)
    if _HELD_OUT.value is not None:
        audio |= _held_out(_HELD_OUT.value)
    changed: dict[str, Any] = {"audio": dataclasses.replace(recipe.audio, **audio)}
    if _STEPS.value is not None:
        kept = tuple(step for step in recipe.snapshots if step <= _STEPS.value)
        changed |= {"steps": _STEPS.value, "snapshots": kept}
    if _flags.SEED.present:
        changed["seed"] = _flags.SEED.value
    return dataclasses.replace(recipe, **changed)


def _held_out(words: list[str]) -> dict[str, Any]:
    # Speakers may be called by numbers, but hardly by one below 1.
    with contextlib.suppress(ValueError):
        if len(words) == 1 and 0 <= float(words[0]) < 1:
            return {"held_out": (), "held_out_share": float(words[0])}
    return {"held_out": tuple(words), "held_out_share": 0.0}


@contextlib.contextmanager
def workdir_of(run: Run) -> Iterator[Path]:
    """The workdir with its log; what is left there of another run is removed or refused.

    When the training has ended, its checkpoints go.
    """
    workdir = _flags.new_workdir(run.workdir, overwrite=True)
    done, unfinished = workdir / "model" / "training.json", workdir / "checkpoints"
    if done.exists() and not run.overwrite:
        raise UserError(f"{done.parent} exists; choose another --workdir or pass --overwrite")
    if unfinished.exists() and not run.resume:
        if not run.overwrite:
            raise UserError(
                f"{unfinished} is of an unfinished run; pass --resume to go on, or --overwrite"
            )
        shutil.rmtree(unfinished)
    begins = not unfinished.exists()
    if begins:
        (workdir / "units.npz").unlink(missing_ok=True)
        shutil.rmtree(workdir / "model", ignore_errors=True)
        for snapshot in workdir.glob("step-*"):
            shutil.rmtree(snapshot)
    with _flags.log_to(workdir):
        if run.resume and begins:
            _log.warning("no checkpoint in %s: starting from the beginning", workdir)
        yield workdir
    if done.exists():
        shutil.rmtree(unfinished, ignore_errors=True)


def train(job: trainer.TrainingRun, workdir: Path, run: Run, progress: bool) -> trainer.Outcome:
    """Train as the flags say. Raises UserError."""
    return trainer.train(
        job,
        workdir,
        mesh=run.mesh,
        checkpoint_minutes=run.checkpoint_every,
        stop_after_minutes=run.stop_after,
        progress=progress and not _flags.quiet(),
    )


def say(outcome: trainer.Outcome, run: Run) -> None:
    """Print what came out."""
    for name, value in outcome.metrics.items():
        print(f"{name:20} {value:.4f}")
    if outcome.finished:
        print(f"\nwritten: {Path(run.workdir, 'model')}")
    else:
        print(f"\nstopped behind step {outcome.step}; go on with the same command and --resume")


def refuse_flags(what: str, *used: str) -> None:
    """Raise UserError for a flag of comparisons that would be ignored."""
    compare.refuse_flags(what, (*USED, *used))
