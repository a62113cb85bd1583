"""The training loop: steps, lines of metrics, evaluations, snapshots and checkpoints.

An interrupted run resumes from its last checkpoint and computes what it would have computed: data
and noise are functions of seed and step, and a checkpoint holds everything else.
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
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.runtime import mesh as sharding
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.atomic_write import write_text
from speechsim_jax.training import export
from speechsim_jax.training import step as programs
from speechsim_jax.training.checkpoints import Checkpoints, TrainingCheckpoint
from speechsim_jax.training.data.sampling import TrainingBatch
from speechsim_jax.training.data.splits import prefetch
from speechsim_jax.training.evaluation import Evaluation, Metrics
from speechsim_jax.training.model import Model, from_tensors, to_tensors
from speechsim_jax.training.recipe import Recipe
from speechsim_jax.training.step import Program
from speechsim_jax.training.tasks import BatchOutput, Task

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """A training that is ready to start.

    Attributes:
        recipe: All settings.
        config: The encoder.
        task: Objective, data and noise of a step.
        graph: The encoder's modules.
        start: Initial parameters.
        batch_of_step: The batch of each step, counted from 0.
        evaluation: Evaluation on held-out speakers; None if there are none.
        write: Writes the folder of the trained model.
        identity: Everything else that determines the numbers, as JSON can hold it.
        frozen: Leave the convolutions as they are.
    """

    recipe: Recipe
    config: Wav2Vec2Config
    task: Task
    graph: nnx.GraphDef
    start: Model
    batch_of_step: Callable[[int], TrainingBatch]
    evaluation: Evaluation | None
    write: Callable[[Path, Model], None]
    identity: dict[str, Any]
    frozen: bool = False


class Outcome(NamedTuple):
    """Where a training stopped.

    Attributes:
        step: Number of completed steps.
        finished: Whether these are all.
        metrics: Of the last evaluation.
    """

    step: int
    finished: bool
    metrics: dict[str, float]


def train(
    run: TrainingRun,
    workdir: Path,
    *,
    mesh: str | None = None,
    checkpoint_minutes: float | int = 10.0,
    stop_after_minutes: float | int | None = None,
    progress: bool = True,
) -> Outcome:
    """Train, or resume from the checkpoint in `workdir`/checkpoints.

    Args:
        run: The training.
        workdir: Folder for metrics.jsonl, snapshots step-NNNNNN/ and, at the end, model/ and
            held_out.json.
        mesh: Devices, as "data:N"; default all.
        checkpoint_minutes: Time between checkpoints.
        stop_after_minutes: Save a checkpoint and return after this time; default never.
        progress: Show a progress bar.

    Raises:
        UserError: The loss is no longer finite, the checkpoints are of another training, or files
            cannot be written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    versions = provenance.record()["versions"]
    identity = {
        "recipe": run.recipe.as_dict(),
        **run.identity,
        "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
    }
    checkpoints = Checkpoints(workdir / "checkpoints", identity, checkpoint_minutes)
    with contextlib.closing(checkpoints):
        trainer = _Trainer(run, workdir, checkpoints, _data_mesh(mesh))
        return trainer.train(stop_after_minutes, progress)


def _data_mesh(text: str | None) -> Mesh:
    mesh = sharding.mesh_from(text)
    if mesh.shape["feature"] > 1:
        raise UserError(f"mesh {text!r}: training divides batches only, as data:N")
    return mesh


class _Trainer:
    """A training in progress."""

    def __init__(self, run: TrainingRun, workdir: Path, checkpoints: Checkpoints, mesh: Mesh):
        recipe = run.recipe
        self._training, self._workdir, self._checkpoints = run, workdir, checkpoints
        self._program = Program(
            run.graph, run.task, recipe.optimiser, recipe.steps, recipe.seed, mesh, run.frozen
        )
        first = self._program.place(run.batch_of_step(0))
        self._zero = programs.zero_sums(self._program, run.start, first)
        model, adam = run.start, recipe.optimiser.init(run.start)
        self._step, self._metrics = 0, Metrics({}, {})
        started = time.monotonic()
        if checkpoint := checkpoints.latest():
            model, adam = self._restored(checkpoint)
            self._step = checkpoint.step
            started -= checkpoint.metadata["seconds"]
            _log.info("resuming after step %d", checkpoint.step)
        self._metrics_file = _MetricsFile(workdir / "metrics.jsonl", self._step, started)
        self._state = programs.initial_state(self._program, model, adam, self._zero)

    def train(self, stop_after_minutes: float | int | None, progress: bool) -> Outcome:
        """Run steps until the last, or until the time is over."""
        recipe, started = self._training.recipe, time.monotonic()
        batches = prefetch(self._training.batch_of_step, range(self._step, recipe.steps))
        bar = tqdm.auto.tqdm(
            total=recipe.steps, initial=self._step, unit=" steps", disable=not progress
        )
        with self._metrics_file, contextlib.closing(batches), bar:
            if self._step == 0:
                self._evaluate_and_save_snapshot()
            for batch in batches:
                placed = self._program.place(batch)
                self._state, rate = programs.update(self._state, placed, program=self._program)
                self._step += 1
                bar.update()
                last = self._step == recipe.steps
                logged = last or self._step % recipe.log_every == 0
                if logged:
                    bar.set_postfix_str(f"loss {self._log_metrics(rate):.3f}", refresh=False)
                self._evaluate_and_save_snapshot()
                # Checkpoints lack the running sums, so they are saved where these are zero.
                if not logged or last:
                    continue
                minutes = (time.monotonic() - started) / 60
                stop = stop_after_minutes is not None and minutes >= stop_after_minutes
                if stop or self._checkpoints.due():
                    self._save_checkpoint()
                if stop:
                    return Outcome(self._step, False, self._metrics.total)
        self._write_model()
        return Outcome(self._step, True, self._metrics.total)

    def _log_metrics(self, rate: Array) -> float:
        """Write a line of metrics over the steps since the last line; returns their loss."""
        task, running = self._training.task, self._state.running
        metrics = {"loss": task.loss(running.sums), **task.metrics(running.sums)}
        line = {name: float(value) for name, value in metrics.items()}
        line |= {"gradient_norm": float(running.norm), "learning_rate": float(rate)}
        if not math.isfinite(line["loss"]) or not math.isfinite(line["gradient_norm"]):
            raise UserError(
                f"the training broke down before step {self._step}: the loss is {line['loss']:g}, "
                f"the gradient's norm {line['gradient_norm']:g}; lower peak_learning_rate"
            )
        self._metrics_file.write("training", self._step, line)
        self._state = self._state._replace(running=self._program.replicate(self._zero))
        return line["loss"]

    def _evaluate_and_save_snapshot(self) -> None:
        """Evaluate, and save the encoder, if the recipe has this step for it."""
        run = self._training
        recipe = run.recipe
        due = self._step % recipe.evaluate_every == 0 or self._step == recipe.steps
        if due and run.evaluation:
            self._metrics = run.evaluation(self._evaluate_batch)
            self._metrics_file.write("held_out", self._step, self._metrics.total)
        if self._step in recipe.snapshots:
            folder = self._workdir / f"step-{self._step:06}"
            export.write_encoder(folder, run.config, self._state.model, recipe.dtype)

    def _evaluate_batch(self, batch: TrainingBatch, number: int) -> BatchOutput:
        placed = self._program.place(batch)
        return programs.evaluate(self._state.model, placed, np.int32(number), program=self._program)

    def _save_checkpoint(self) -> None:
        parts = {
            "model": self._state.model,
            "mu": self._state.adam.mu,
            "nu": self._state.adam.nu,
        }
        state = {
            # Copies, as steps overwrite the memory that these may be views of.
            part: {name: np.array(x) for name, x in to_tensors(self._training.config, tree).items()}
            for part, tree in parts.items()
        }
        self._checkpoints.save(self._step, state, {"seconds": self._metrics_file.seconds()})

    def _restored(self, checkpoint: TrainingCheckpoint) -> tuple[Model, optax.ScaleByAdamState]:
        run, origin = self._training, f"checkpoint {checkpoint.step}"
        model, mu, nu = (
            from_tensors(run.config, run.task.objective, checkpoint.state[part], origin)[1]
            for part in ("model", "mu", "nu")
        )
        return model, optax.ScaleByAdamState(jnp.asarray(checkpoint.step, jnp.int32), mu, nu)

    def _write_model(self) -> None:
        """Write the model, the last evaluation and the training's record."""
        run, folder = self._training, self._workdir / "model"
        run.write(folder, self._state.model)
        if run.evaluation:
            held_out = {
                "step": self._step, "total": self._metrics.total, **self._metrics.details,
            }  # fmt: skip
            export.write_json(self._workdir / "held_out.json", held_out)
        record = provenance.record(
            recipe=run.recipe.as_dict(),
            **run.identity,
            step=self._step,
            held_out=self._metrics.total,
            seconds=self._metrics_file.seconds(),
        )
        # Written last: its presence means that the model is complete.
        export.write_json(folder / "training.json", record)


class _MetricsFile:
    """metrics.jsonl, one JSON object a line; of an earlier run the lines up to `step` are kept."""

    def __init__(self, path: Path, step: int, started: float):
        self._started = started
        lines: list[str] = []
        if step and path.exists():
            # The last line may be cut off; it is then of a later step.
            complete = [line for line in path.read_text().splitlines() if line.endswith("}")]
            lines = [line for line in complete if json.loads(line)["step"] <= step]
        try:
            write_text(path, "".join(line + "\n" for line in lines))
            self._file = path.open("a")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error})") from error

    def __enter__(self) -> "_MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seconds(self) -> float:
        """The time that training has taken so far, without interruptions."""
        return round(time.monotonic() - self._started, 3)

    def write(self, of: str, step: int, values: Mapping[str, float]) -> None:
        """Append a line and flush it."""
        line = {"of": of, "step": step, **values, "seconds": self.seconds()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
