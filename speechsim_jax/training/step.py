"""What runs on the devices: a training step, and a look at a batch without learning from it.

    loss(sum over devices of their sums)  ->  gradient  ->  AdamW

Each device adds up its own rows under `shard_map`; the loss is a function of the sums of all, so
that one device and many compute the same. The gradient is taken outside: no objective here is a
mean of what devices could compute alone.
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

from speechsim_jax.training.data.sampling import Rows, filled
from speechsim_jax.training.model import Model
from speechsim_jax.training.optimiser import AdamW
from speechsim_jax.training.random_keys import utterance_keys
from speechsim_jax.training.tasks import Found, Task

_ALL = P()
_ROWS = P("data")


@dataclasses.dataclass(frozen=True)
class Program:
    """All that is fixed when a step is compiled."""

    graph: nnx.GraphDef
    task: Task
    optimiser: AdamW
    steps: int
    seed: int
    mesh: Mesh
    frozen: bool = False

    def place(self, rows: Rows) -> Rows:
        """A batch divided over the devices along `data`, with filler rows if need be."""
        devices = self.mesh.shape["data"]
        rows = filled(rows, devices)
        return rows if self.mesh.size == 1 else _put(rows, NamedSharding(self.mesh, _ROWS))

    def everywhere(self, tree: Any) -> Any:
        """A tree of arrays whole on every device."""
        if self.mesh.size == 1:
            return jax.tree.map(jnp.asarray, tree)
        return _put(tree, NamedSharding(self.mesh, _ALL))


def _put(tree: Any, layout: NamedSharding) -> Any:
    return jax.tree.map(lambda array: jax.device_put(array, layout), tree)


class Since(NamedTuple):
    """What was added up since the last look: the objective's sums, and the largest gradient."""

    sums: Any
    norm: Float[Array | np.ndarray, ""]


class State(NamedTuple):
    """What a step changes. `adam.count` is the number of steps that were made."""

    model: Model
    adam: optax.ScaleByAdamState
    since: Since


def begin(program: Program, model: Model, adam: optax.ScaleByAdamState, since: Since) -> State:
    """The state before a step; what is given stays, while steps write over their own state."""
    own = jax.tree.map(jnp.array, (model, adam))
    model, adam = program.everywhere(own)
    return State(model, adam, program.everywhere(since))


def nothing(program: Program, model: Model, rows: Rows) -> Since:
    """Nothing added up yet, as numpy arrays; `rows` is a placed batch."""
    found = functools.partial(_found, program, training=True)
    shapes = jax.eval_shape(found, model, rows, jnp.int32(0)).sums
    return Since(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
        np.zeros((), np.float32),
    )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def update(state: State, rows: Rows, *, program: Program) -> tuple[State, Float[Array, ""]]:
    """One step on a placed batch; the learning rate beside it."""

    def loss(model: Model) -> tuple[Float[Array, ""], Any]:
        sums = _found(program, model, rows, jnp.asarray(state.adam.count), training=True).sums
        return program.task.loss(sums), sums

    (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.model)
    model, adam, norm, rate = program.optimiser.update(
        gradient, state.adam, state.model, program.steps, program.frozen
    )
    total = jax.tree.map(jnp.add, state.since.sums, sums)
    return State(model, adam, Since(total, jnp.maximum(state.since.norm, norm))), rate


@functools.partial(jax.jit, static_argnames="program")
def look(model: Model, rows: Rows, number: Int32[Array, ""], *, program: Program) -> Found:
    """What a placed batch gives without dropout; `number` tells the draws of batches apart."""
    return _found(program, model, rows, number, training=False)


def _found(
    program: Program, model: Model, rows: Rows, step: Int[Array, ""], training: bool
) -> Found:
    """The sums of a batch over all devices."""
    # What is drawn for evaluation must be the same for models of other seeds.
    seed = program.seed if training else 0

    def own(model: Model, rows: Rows, numbers: Int[Array, " row"], step: Array) -> Found:
        keys = utterance_keys(seed, step, numbers)
        return program.task.found(program.graph, model, rows, keys, step, training)

    numbers = jnp.arange(len(rows.lengths))
    if program.mesh.size == 1:
        return own(model, rows, numbers, step)

    def part(*arguments: Any) -> Found:
        found = own(*arguments)
        return found._replace(sums=jax.tree.map(lambda x: x[None], found.sums))

    parts = jax.shard_map(
        part,
        mesh=program.mesh,
        in_specs=(_ALL, _ROWS, _ROWS, _ALL),
        out_specs=_ROWS,
        check_vma=False,
    )(model, rows, numbers, step)
    return parts._replace(sums=jax.tree.map(lambda x: x.sum(0), parts.sums))
