"""Compiled programs: a training step, and the evaluation of a batch.

    loss(sum over devices of their sums)  ->  gradient  ->  AdamW

Each device sums over its rows of the batch under `shard_map`; the loss is a function of the sums of
all, so that one device and many compute the same. The gradient is taken outside of `shard_map`: the
diversity loss needs the usage of codewords of the complete batch, so that no device can compute its
share of the loss alone.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Int32

from speechsim_jax.training.data.sampling import TrainingBatch, pad_to_multiple
from speechsim_jax.training.model import Model
from speechsim_jax.training.optimiser import AdamW
from speechsim_jax.training.random_keys import utterance_keys
from speechsim_jax.training.tasks import BatchOutput, Task

_ALL = P()
_ROWS = P("data")


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that is fixed when a step is compiled.

    Attributes:
        graph: The encoder's modules.
        task: The task.
        optimiser: Settings of the optimiser.
        steps: Number of steps of the training, for the schedule.
        seed: Of all draws in training.
        mesh: Devices; batches are divided along `data`.
        frozen: Leave the convolutions as they are.
    """

    graph: nnx.GraphDef
    task: Task
    optimiser: AdamW
    steps: int
    seed: int
    mesh: Mesh
    frozen: bool = False

    def place(self, batch: TrainingBatch) -> TrainingBatch:
        """A batch divided over the devices along `data`, padded with filler rows."""
        batch = pad_to_multiple(batch, self.mesh.shape["data"])
        return batch if self.mesh.size == 1 else _put(batch, NamedSharding(self.mesh, _ROWS))

    def replicate(self, tree: Any) -> Any:
        """A tree of arrays with a copy on every device."""
        if self.mesh.size == 1:
            return jax.tree.map(jnp.asarray, tree)
        return _put(tree, NamedSharding(self.mesh, _ALL))


def _put(tree: Any, layout: NamedSharding) -> Any:
    return jax.tree.map(lambda array: jax.device_put(array, layout), tree)


class RunningSums(NamedTuple):
    """Totals over the steps since the last line of metrics.

    Attributes:
        sums: The objective's sums.
        norm: The largest norm of a gradient.
    """

    sums: Any
    norm: Float[Array | np.ndarray, ""]


class State(NamedTuple):
    """What a step changes.

    Attributes:
        model: Parameters.
        adam: Adam's moments; `adam.count` is the number of steps so far.
        running: Totals since the last line of metrics.
    """

    model: Model
    adam: optax.ScaleByAdamState
    running: RunningSums


def initial_state(
    program: Program, model: Model, adam: optax.ScaleByAdamState, running: RunningSums
) -> State:
    """The state before a step, with copies of the arguments, as steps overwrite their state."""
    model, adam = program.replicate(jax.tree.map(jnp.array, (model, adam)))
    return State(model, adam, program.replicate(running))


def zero_sums(program: Program, model: Model, batch: TrainingBatch) -> RunningSums:
    """Totals over no step, as numpy arrays; `batch` is a placed batch, of which shapes are used."""
    output = functools.partial(_batch_output, program, training=True)
    shapes = jax.eval_shape(output, model, batch, jnp.int32(0)).sums
    return RunningSums(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
        np.zeros((), np.float32),
    )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def update(
    state: State, batch: TrainingBatch, *, program: Program
) -> tuple[State, Float[Array, ""]]:
    """One training step on a placed batch. Returns the new state and the learning rate."""

    def loss(model: Model) -> tuple[Float[Array, ""], Any]:
        step = jnp.asarray(state.adam.count)
        sums = _batch_output(program, model, batch, step, training=True).sums
        return program.task.loss(sums), sums

    (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.model)
    model, adam, norm, rate = program.optimiser.update(
        gradient, state.adam, state.model, program.steps, program.frozen
    )
    total = jax.tree.map(jnp.add, state.running.sums, sums)
    return State(model, adam, RunningSums(total, jnp.maximum(state.running.norm, norm))), rate


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    model: Model, batch: TrainingBatch, number: Int32[Array, ""], *, program: Program
) -> BatchOutput:
    """Output on a placed batch, without dropout; `number` keeps the draws of batches apart."""
    return _batch_output(program, model, batch, number, training=False)


def _batch_output(
    program: Program, model: Model, batch: TrainingBatch, step: Int[Array, ""], training: bool
) -> BatchOutput:
    """The output on a batch, summed over all devices."""
    # Draws of the evaluation are the same for trainings with different seeds.
    seed = program.seed if training else 0

    def forward(
        model: Model, batch: TrainingBatch, indices: Int[Array, " row"], step: Array
    ) -> BatchOutput:
        keys = utterance_keys(seed, step, indices)
        return program.task.forward(program.graph, model, batch, keys, step, training)

    indices = jnp.arange(len(batch.lengths))
    if program.mesh.size == 1:
        return forward(model, batch, indices, step)

    def on_device(*arguments: Any) -> BatchOutput:
        output = forward(*arguments)
        return output._replace(sums=jax.tree.map(lambda x: x[None], output.sums))

    parts = jax.shard_map(
        on_device,
        mesh=program.mesh,
        in_specs=(_ALL, _ROWS, _ROWS, _ALL),
        out_specs=_ROWS,
        check_vma=False,
    )(model, batch, indices, step)
    return parts._replace(sums=jax.tree.map(lambda x: x.sum(0), parts.sums))
