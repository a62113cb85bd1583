"""What a pass takes of each device, term by term, as a function of the layer pairs it holds.

A pass needs, on every device,

    memory = state + parameters + buffers + hidden + max(forward, update) + attention + samples
             + exemplars

a term a function below. The state grows with the *pairs* of representations that a pass holds, the
other terms with the representations themselves.
"""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

from speechsim_jax.statistics.moments import ModelShape

# A count of rows is two int32 (`statistics.moments`).
_COUNT_BYTES = 8
# What XLA leaves free between some dozens of buffers, which start at multiples of 64 bytes.
_BETWEEN_BUFFERS = 64 * 64

IndexPair = tuple[int, int]
"""Two representations by number, the smaller first; layers of the first model come first."""


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What a model's forward pass takes, its hidden states aside.

    Attributes:
      name: of the model.
      depths: for each compared layer the number of its hidden state, which is that of the
        transformer layers below it; ascending.
      front_bytes: parameters of everything that makes hidden state 0.
      layer_bytes: parameters of one transformer layer.
      workspace_bytes: temporaries of one forward pass on one device.
      front_flops: of what makes hidden state 0, over all the audio; 0 where not known.
      layer_flops: of one transformer layer, over all the audio; 0 where not known.
    """

    name: str
    depths: tuple[int, ...]
    front_bytes: int
    layer_bytes: int
    workspace_bytes: int = 0
    front_flops: float | int = 0
    layer_flops: float | int = 0

    def flops(self, depth: int) -> float | int:
        """Of one pass that needs hidden states up to number `depth`."""
        return self.front_flops + depth * self.layer_flops


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the terms of the memory are multiples of, on each device.

    Attributes:
      rows_per_update: rows of a device's buffer.
      frames: of the largest batch, padding and fillers included.
      feature: devices that share one state.
      itemsize: bytes of a number of the state.
      row_itemsize: bytes of a number of a row or hidden state.
      attention: bytes that the attention level takes in a pass, next to everything else.
      states: moments that are kept side by side: two where there are folds.
      sampled_rows: rows of samples, which are on the host: a device's share of them where devices
        are CPUs and take their memory from the same, else 0.
      draws: of the null, each with moments of twice the models and buffers of half the rows.
      own_folds: further folds with products of each representation with itself and with a label
        track only, and buffers of half the rows.
      exemplars: of each neuron.
      utterances: of the largest batch, fillers included, on all devices.
    """

    rows_per_update: int
    frames: int
    feature: int = 1
    itemsize: int = 4
    row_itemsize: int = 4
    attention: int = 0
    states: int = 1
    sampled_rows: int = 0
    draws: int = 0
    own_folds: int = 0
    exemplars: int = 0
    utterances: int = 0


class PassMemory(NamedTuple):
    """Bytes of a pass on each device, term by term."""

    state: int = 0
    parameters: int = 0
    buffers: int = 0
    hidden: int = 0
    workspace: int = 0
    attention: int = 0
    samples: int = 0
    exemplars: int = 0

    @property
    def total(self) -> int:
        """All of it, at its peak."""
        return sum(self)


class PassLoad(NamedTuple):
    """All that a pass's memory depends on.

    Attributes:
      representations: those that it needs, by number.
      depths: by model, number of the highest hidden state; -1 for a model that is not needed.
      neurons: of all its representations together.
      widest: neurons of the widest representation.
      cells: products x y of all its pairs, a device's share of each.
    """

    representations: frozenset[int]
    depths: tuple[int, ...]
    neurons: int = 0
    widest: int = 0
    cells: int = 0


def state_bytes(load: PassLoad, sizes: Sizes) -> int:
    """`moments.Moments`: count, reference shift and the compensated sums, all in two parts.

    cross [x / feature, y] of every pair; first and reference shift [neuron]; energy
    [representation]; energy_cross [representation, representation]; energy_first [representation,
    neuron] (`moments.zero`).
    """
    n = len(load.representations)
    numbers = load.cells + load.neurons * (n + 2) + n + n**2
    # Twice the models, and no more pairs than these and each side's own.
    own = 2 * load.neurons * -(-load.widest // sizes.feature)
    paired = load.cells + own + 2 * load.neurons * (2 * n + 2) + 2 * n + (2 * n) ** 2
    few = 2 * load.neurons * -(-load.widest // sizes.feature) + load.neurons * (n + 2) + n + n**2
    of_folds = sizes.own_folds * (_COUNT_BYTES + 2 * sizes.itemsize * few)
    return (
        of_folds
        + sizes.states * (_COUNT_BYTES + 2 * sizes.itemsize * numbers)
        + sizes.draws * (_COUNT_BYTES + 2 * sizes.itemsize * paired)
    )


def parameter_bytes(load: PassLoad, models: Sequence[ModelCost]) -> int:
    """Of the models that are needed, up to the highest layer (`models.encoder.Transformer`)."""
    needed = zip(models, load.depths)
    return sum(m.front_bytes + depth * m.layer_bytes for m, depth in needed if depth >= 0)


def buffer_bytes(load: PassLoad, sizes: Sizes) -> int:
    """Row buffers [layer, row, neuron] of every model (`MomentsAccumulator`)."""
    buffers = 1 + sizes.draws + sizes.own_folds / 2
    return round(buffers * sizes.rows_per_update) * load.neurons * sizes.row_itemsize


def hidden_bytes(load: PassLoad, sizes: Sizes) -> int:
    """Hidden states of one batch, of all models at once (`one_pass.run_pass`)."""
    return sizes.frames * load.neurons * sizes.row_itemsize


def sample_bytes(load: PassLoad, sizes: Sizes) -> int:
    """Rows of samples, and a copy: they are sorted at the end, and copied for checkpoints."""
    return 2 * sizes.sampled_rows * load.neurons * sizes.row_itemsize


def exemplar_bytes(load: PassLoad, sizes: Sizes) -> int:
    """`exemplars.Exemplars`, before and after an update, and what they are chosen from.

    An exemplar is three numbers; a candidate takes two more while it is considered. Two copies of
    one layer of a batch.
    """
    if not sizes.exemplars:
        return 0
    kept = 3 * sizes.exemplars + 1
    considered = 5 * (sizes.exemplars + sizes.utterances)
    return 4 * (load.neurons * (2 * kept + considered) + 2 * sizes.frames * load.widest)


def forward_bytes(load: PassLoad, models: Sequence[ModelCost]) -> int:
    """Temporaries of a forward pass; models run one after the other (`one_pass.run_pass`)."""
    return max(m.workspace_bytes for m, depth in zip(models, load.depths) if depth >= 0)


def update_bytes(load: PassLoad, sizes: Sizes) -> int:
    """Temporaries of `moments.update`, and of `moments_on_mesh` where devices share a state.

    Rows of all these devices: gathered; shifted; of one layer of two shapes, taken out, and up to
    three quarters of these again. Energies [representation, row], their sums with the rows
    [representation, neuron], the small sums. A product, and both parts that it is added to.
    """
    rows, n = sizes.feature * sizes.rows_per_update, len(load.representations)
    if sizes.draws:  # the same rows of twice the representations, halved
        n *= 2
    gathered = rows * load.neurons * sizes.row_itemsize if sizes.feature > 1 else 0
    small = (n + 2) * load.neurons * (2 if sizes.draws else 1) + 2 * n**2
    shifted = rows * (load.neurons + 2 * load.widest + n) + 3 * rows // 2 * load.widest + small
    product = 3 * load.widest * -(-load.widest // sizes.feature)
    return gathered + sizes.itemsize * (shifted + product) + _BETWEEN_BUFFERS


class Triangle:
    """The pairs of representations, and the memory of a pass that holds some of them.

    Args:
      shapes: layers and width of each model.
      models: what each model's forward pass takes.
      sizes: of the buffers and batches.
      pairs: that are compared, each representation with itself among them; None for all.
    """

    def __init__(
        self,
        shapes: tuple[ModelShape, ...],
        models: Sequence[ModelCost],
        sizes: Sizes,
        pairs: Collection[IndexPair] | None = None,
    ):
        self.shapes, self.models, self.sizes = shapes, models, sizes
        self.indices = [(a, l) for a, shape in enumerate(shapes) for l in range(shape.layers)]
        self.widths = [shapes[a].neurons for a, _ in self.indices]
        self.count = len(self.indices)
        every = itertools.combinations_with_replacement(range(self.count), 2)
        self.pairs = list(every) if pairs is None else sorted(pairs)
        self.empty = PassLoad(frozenset(), (-1,) * len(shapes))

    def memory(self, load: PassLoad) -> PassMemory:
        """The memory of a pass, never less with one pair more."""
        return PassMemory(
            state=state_bytes(load, self.sizes),
            parameters=parameter_bytes(load, self.models),
            buffers=buffer_bytes(load, self.sizes),
            hidden=hidden_bytes(load, self.sizes),
            workspace=max(forward_bytes(load, self.models), update_bytes(load, self.sizes)),
            attention=self.sizes.attention,
            samples=sample_bytes(load, self.sizes),
            exemplars=exemplar_bytes(load, self.sizes),
        )

    def with_pair(self, load: PassLoad, pair: IndexPair) -> PassLoad:
        """The load of a pass that holds one pair more."""
        i, j = pair
        cells = load.cells + -(-self.widths[i] // self.sizes.feature) * self.widths[j]
        new = {i, j} - load.representations
        if not new:
            return load._replace(cells=cells)
        depths = list(load.depths)
        for a, layer in (self.indices[representation] for representation in new):
            depths[a] = max(depths[a], self.models[a].depths[layer])
        widths = [self.widths[representation] for representation in new]
        neurons, widest = load.neurons + sum(widths), max(load.widest, *widths)
        return PassLoad(load.representations | new, tuple(depths), neurons, widest, cells)

    def least_budget(self) -> int:
        """With less, some pair fits nowhere; with as much, a pass for every pair does."""
        return max(self.memory(self.with_pair(self.empty, pair)).total for pair in self.pairs)
