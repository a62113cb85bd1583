"""The loop: steps, a line of metrics now and then, looks at held-out speakers, checkpoints.

A run that is killed goes on from its last checkpoint and gives what it would have given: data and
noise are functions of seed and step, and a checkpoint holds the rest.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import tqdm.auto
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.runtime import mesh as sharding
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.run_checkpoints import Checkpoints, RunCheckpoint
from speechsim_jax.training import export as folders
from speechsim_jax.training import step as program
from speechsim_jax.training.data.sampling import Rows
from speechsim_jax.training.data.splits import ahead
from speechsim_jax.training.evaluation import Examination, Marks
from speechsim_jax.training.model import Model, export, fill
from speechsim_jax.training.recipe import Recipe
from speechsim_jax.training.step import Program
from speechsim_jax.training.tasks import Found, Task

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """A training that is ready to start.

    `rows`: what a step hears. `examination`: None if nobody is held out. `write`: makes the folder
    of a trained model. `identity`: what else has a say in the numbers, beside the recipe. `frozen`:
    the convolutions stay as they are.
    """

    recipe: Recipe
    config: EncoderConfig
    task: Task
    graph: nnx.GraphDef
    start: Model
    rows: Callable[[int], Rows]
    examination: Examination | None
    write: Callable[[Path, Model], None]
    identity: dict[str, Any]
    frozen: bool = False


class Outcome(NamedTuple):
    """How far a run has come, and the marks of the last look at held-out speakers."""

    step: int
    finished: bool
    marks: dict[str, float]


def train(
    job: TrainingRun,
    workdir: Path,
    *,
    mesh: str | None = None,
    checkpoint_minutes: float | int = 10.0,
    stop_after_minutes: float | int | None = None,
    progress: bool = True,
) -> Outcome:
    """Train, or go on from the checkpoint in `workdir`/checkpoints.

    Writes metrics.jsonl, snapshots step-NNNNNN/ and at the end model/ and held_out.json. After
    `stop_after_minutes` it saves a checkpoint and returns. `mesh`: "data:N" (all devices if None).
    Raises UserError when the loss is no longer a number, and for checkpoints of another job.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    versions = provenance.record()["versions"]
    identity = {
        "recipe": job.recipe.facts(),
        **job.identity,
        "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
    }
    saved = Checkpoints(workdir / "checkpoints", identity, checkpoint_minutes)
    with contextlib.closing(saved):
        run = _Run(job, workdir, saved, _data_mesh(mesh))
        return run.go(stop_after_minutes, progress)


def _data_mesh(text: str | None) -> Mesh:
    mesh = sharding.mesh_from(text)
    if mesh.shape["feature"] > 1:
        raise UserError(f"mesh {text!r}: training divides batches only, as data:N")
    return mesh


class _Run:
    """A job under way."""

    def __init__(self, job: TrainingRun, workdir: Path, saved: Checkpoints, mesh: Mesh):
        recipe = job.recipe
        self._job, self._workdir, self._saved = job, workdir, saved
        self._program = Program(
            job.graph, job.task, recipe.optimiser, recipe.steps, recipe.seed, mesh, job.frozen
        )
        first = self._program.place(job.rows(0))
        self._nothing = program.nothing(self._program, job.start, first)
        model, adam = job.start, recipe.optimiser.start(job.start)
        self._step, self._marks = 0, Marks({}, {})
        begun = time.monotonic()
        if found := saved.latest():
            model, adam = self._restored(found)
            self._step, begun = found.step, begun - found.metadata["seconds"]
            _log.info("going on behind step %d", found.step)
        self._lines = _Lines(workdir / "metrics.jsonl", self._step, begun)
        self._state = program.begin(self._program, model, adam, self._nothing)

    def go(self, stop_after_minutes: float | int | None, progress: bool) -> Outcome:
        """Steps until all are made or the time is over."""
        recipe, here = self._job.recipe, time.monotonic()
        coming = ahead(self._job.rows, range(self._step, recipe.steps))
        bar = tqdm.auto.tqdm(
            total=recipe.steps, initial=self._step, unit=" steps", disable=not progress
        )
        with self._lines, contextlib.closing(coming), bar:
            if self._step == 0:
                self._look()
            for rows in coming:
                placed = self._program.place(rows)
                self._state, rate = program.update(self._state, placed, program=self._program)
                self._step += 1
                bar.update()
                last = self._step == recipe.steps
                told = last or self._step % recipe.log_every == 0
                if told:
                    bar.set_postfix_str(f"loss {self._tell(rate):.3f}", refresh=False)
                self._look()
                if not told or last:  # else what is added up would be lost
                    continue
                minutes = (time.monotonic() - here) / 60
                stops = stop_after_minutes is not None and minutes >= stop_after_minutes
                if stops or self._saved.due():
                    self._save()
                if stops:
                    return Outcome(self._step, False, self._marks.total)
        self._finish()
        return Outcome(self._step, True, self._marks.total)

    def _tell(self, rate: Array) -> float:
        """A line about the steps since the last; the loss of all of them together."""
        task, since = self._job.task, self._state.since
        found = {"loss": task.loss(since.sums), **task.report(since.sums)}
        line = {name: float(value) for name, value in found.items()}
        line |= {"gradient_norm": float(since.norm), "learning_rate": float(rate)}
        if not math.isfinite(line["loss"]) or not math.isfinite(line["gradient_norm"]):
            raise UserError(
                f"the training broke down before step {self._step}: the loss is {line['loss']:g}, "
                f"the gradient's norm {line['gradient_norm']:g}; lower peak_learning_rate"
            )
        self._lines.write("training", self._step, line)
        self._state = self._state._replace(since=self._program.everywhere(self._nothing))
        return line["loss"]

    def _look(self) -> None:
        """Evaluate and keep the encoder if this is a step for it."""
        recipe, job = self._job.recipe, self._job
        wanted = self._step % recipe.evaluate_every == 0 or self._step == recipe.steps
        if wanted and job.examination:
            self._marks = job.examination(self._found)
            self._lines.write("held_out", self._step, self._marks.total)
        if self._step in recipe.snapshots:
            folder = self._workdir / f"step-{self._step:06}"
            folders.write_encoder(folder, job.config, self._state.model, recipe.dtype)

    def _found(self, rows: Rows, number: int) -> Found:
        placed = self._program.place(rows)
        return program.look(self._state.model, placed, np.int32(number), program=self._program)

    def _save(self) -> None:
        parts = {
            "model": self._state.model,
            "mu": self._state.adam.mu,
            "nu": self._state.adam.nu,
        }
        state = {
            # Copies, as steps write over what these may be views of.
            part: {name: np.array(x) for name, x in export(self._job.config, tree).items()}
            for part, tree in parts.items()
        }
        self._saved.save(self._step, state, {"seconds": self._lines.seconds()})

    def _restored(self, found: RunCheckpoint) -> tuple[Model, optax.ScaleByAdamState]:
        job = self._job
        model, mu, nu = (
            fill(job.config, job.task.objective, found.state[part], f"checkpoint {found.step}")[1]
            for part in ("model", "mu", "nu")
        )
        return model, optax.ScaleByAdamState(jnp.asarray(found.step, jnp.int32), mu, nu)

    def _finish(self) -> None:
        """Write the model and what is known of it."""
        job, folder = self._job, self._workdir / "model"
        job.write(folder, self._state.model)
        if job.examination:
            held_out = {"step": self._step, "total": self._marks.total, **self._marks.details}
            folders.write_json(self._workdir / "held_out.json", held_out)
        about = {"step": self._step, "held_out": self._marks.total}
        record = provenance.record(
            recipe=job.recipe.facts(), **job.identity, **about, seconds=self._lines.seconds()
        )
        folders.write_json(folder / "training.json", record)  # last: it says that all is there


class _Lines:
    """metrics.jsonl: a JSON object a line; of an earlier run those up to `step` stay."""

    def __init__(self, path: Path, step: int, begun: float):
        self._begun = begun
        kept: list[str] = []
        if step and path.exists():
            lines = path.read_text().splitlines()
            # The last may have been cut off in the middle; it is then of a later step.
            kept = [
                line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step
            ]
        try:
            half = path.with_suffix(".part")
            half.write_text("".join(line + "\n" for line in kept))
            half.replace(path)
            self._file = path.open("a")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error})") from error

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seconds(self) -> float:
        """The time that training has taken so far, interruptions left out."""
        return round(time.monotonic() - self._begun, 3)

    def write(self, of: str, step: int, values: Mapping[str, float]) -> None:
        """A line, on the disk at once."""
        line = {"of": of, "step": step, **values, "seconds": self.seconds()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
