"""The statistics on meshes of eight devices; `test_sharding` runs this file where there are eight.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m pytest tests/support/eight_devices.py
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.compiled import Collective, collectives
from speechsim_jax.errors import UserError
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.pipeline.attention_inputs import BATCH_AXIS, Projected, rows_of_projections
from speechsim_jax.runtime.mesh import AXES, mesh_from, place_batch
from speechsim_jax.statistics import exemplars, moments, moments_on_mesh
from speechsim_jax.statistics import moments_accumulator as rows_module
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.exemplars import ExemplarsAccumulator
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.sample import SampleAccumulator
from tests.support.parity import fixture
from tests.support.rows import assert_matches

SHAPES = (ModelShape(2, 8), ModelShape(3, 4))
SIZE = 16
FRAMES = 12
# Frames of eight utterances in three batches; 0 is a filler.
LENGTHS = ([12, 7, 1, 12, 3, 12, 0, 0], [5, 12, 12, 12, 12, 11, 12, 12], [2, 0, 0, 0, 0, 0, 0, 0])
MESHES = ("data:1", "data:2", "data:4", "data:8", "data:4,feature:2", "data:2,feature:4")


@functools.cache
def mesh_of(text: str) -> Mesh:
    return mesh_from(text)


@functools.cache
def data() -> list[np.ndarray]:
    """[layer, utterance, frame, neuron] of each stream, correlated, with means of 3; 24 utterances.

    What is no frame is NaN, so that it cannot be added unnoticed.
    """
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((24, FRAMES, 3))
    found = [
        rng.standard_normal((s.layers, 24, FRAMES, s.neurons))
        + np.einsum("bfs,lsn->lbfn", shared, rng.standard_normal((s.layers, 3, s.neurons)))
        + 3 * rng.standard_normal((s.layers, 1, 1, s.neurons))
        for s in SHAPES
    ]
    inside = np.arange(FRAMES) < np.ravel(LENGTHS)[:, None]
    return [np.where(inside[..., None], x, np.nan).astype(np.float32) for x in found]


def valid_rows(whole: list[np.ndarray]) -> list[np.ndarray]:
    """[layer, row, neuron] of each stream in float64."""
    return [x[:, np.isfinite(x[0, ..., 0])].astype(np.float64) for x in whole]


def positions_of(batch: int) -> np.ndarray:
    return np.flatnonzero(np.arange(FRAMES) < np.array(LENGTHS[batch])[:, None])


def hidden_of(batch: int, mesh: Mesh, whole: list[np.ndarray]) -> tuple[jax.Array, ...]:
    chosen = tuple(x[:, 8 * batch : 8 * batch + 8] for x in whole)
    return jax.device_put(chosen, NamedSharding(mesh, P(None, AXES)))


def add(statistic: MomentsAccumulator, mesh: Mesh, batches, whole=None) -> MomentsAccumulator:
    for batch in batches:
        hidden = hidden_of(batch, mesh, data() if whole is None else whole)
        statistic.append(hidden, positions_of(batch))
    return statistic


def new(text: str, dtype: str = "float32") -> MomentsAccumulator:
    return MomentsAccumulator(SHAPES, SIZE, dtype, mesh=mesh_of(text))


def leaves(statistic: MomentsAccumulator) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves((statistic._state, statistic._buffers))]


@pytest.mark.parametrize("mesh", MESHES)
def test_every_sum_is_that_of_all_rows(mesh):
    statistic = add(new(mesh), mesh_of(mesh), range(3))
    assert statistic.rows == sum(map(sum, LENGTHS))
    assert_matches(statistic.result().finish(), valid_rows(data()), 1e-6)


@pytest.mark.parametrize("mesh", ["data:8", "data:4,feature:2"])
def test_a_constant_neuron_is_dead_on_every_device(mesh):
    whole = [x.copy() for x in data()]
    whole[0][0, ..., 2] = 0.1
    whole[1][1, ..., 0] = -1234.567
    # The first device has no valid row when the reference shift is made.
    statistic = new(mesh)
    hidden = hidden_of(1, mesh_of(mesh), whole)
    statistic.append(hidden, positions_of(1)[5:])
    finished = add(statistic, mesh_of(mesh), [0, 2], whole).result().finish()
    dead = [
        np.flatnonzero(~representation.live).tolist() for representation in finished.representations
    ]
    assert dead == [[2], [], [], [0], []]
    assert np.asarray(finished.states[0].small.reference[0], np.float64)[
        :, 0, 2
    ].sum() == np.float32(0.1)


def collectives_of(function: Callable, *arguments: Any) -> set[Collective]:
    """What the compiled function makes devices do together, with arguments laid out like these."""
    numbers, structure = jax.tree.flatten(arguments)

    def flat(*numbers):
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, numbers)))

    return collectives(jax.jit(flat).lower(*numbers).compile().as_text())


def test_devices_gather_rows_along_feature_and_nothing_else():
    gathered = {"data:8": (), "data:4,feature:2": [((0, 1), (2, 3), (4, 5), (6, 7))]}
    for text, groups in gathered.items():
        statistic, device = new(text), moments_on_mesh.on_mesh(mesh_of(text))
        state, buffers = statistic._state, statistic._buffers
        found = collectives_of(device.update, state, buffers, np.zeros(8, np.int32))
        assert found == {Collective("all-gather", group) for group in groups}
        hidden, source = hidden_of(0, mesh_of(text), data()), np.zeros(8 * SIZE, np.int32)
        assert collectives_of(device.pack, buffers, hidden, (source,) * len(hidden)) == set()
        # The reference shift is made once: sums over all devices, and rows stay where they are.
        valid = np.ones(8, np.int32)
        found = collectives_of(lambda buffers: device.reference_mean(buffers, valid), buffers)
        assert found == {Collective("all-reduce", (tuple(range(8)),))}


def test_the_same_update_under_pmap():
    """pmap is jit(shard_map) inside: the same numbers, with an axis of their own for devices."""
    statistic, device = (
        add(new("data:8"), mesh_of("data:8"), [1]),
        moments_on_mesh.on_mesh(mesh_of("data:8")),
    )
    buffers, valid = statistic._buffers, np.array(statistic._fills, np.int32)
    assert valid.min() > 0
    reference = tuple(map(np.asarray, device.reference_mean(buffers, valid)))
    empty = moments.with_reference(device.zero(SHAPES, None, "float32"), reference)
    found = device.update(empty, buffers, valid)

    numbers, structure = jax.tree.flatten(moments.with_reference(moments.zero(SHAPES), reference))
    numbers = [np.asarray(x) for x in numbers]
    apart = [np.asarray(x).reshape(len(x), 8, SIZE, -1).swapaxes(0, 1) for x in buffers]

    def update(rows, valid):
        state = moments.update(jax.tree.unflatten(structure, numbers), tuple(rows), valid)
        return state.count, state.sums.cross, jax.tree.leaves(moments_on_mesh._parts(state)[0].sums)

    count, cross, sums = jax.tree.map(np.asarray, jax.pmap(update)(apart, valid))
    np.testing.assert_array_equal(np.reshape(found.count, (8, 2)), count)
    for x, expected in zip(found.sums.cross, cross):
        x = np.reshape(x, (len(x), 8, 2, *x.shape[2:]))
        np.testing.assert_array_equal(x.swapaxes(0, 1), expected)
    for x, expected in zip(jax.tree.leaves(moments_on_mesh._parts(found)[0].sums), sums):
        np.testing.assert_array_equal(np.reshape(x, (8, 2, *x.shape[1:])), expected)


def test_state_and_buffers_are_written_over():
    for text in ("data:8", "data:4,feature:2"):
        statistic = new(text)
        old = [statistic._state.sums.cross[0], statistic._state.sums.first[0]]
        old += statistic._buffers
        add(statistic, mesh_of(text), [1, 1])
        assert sum(statistic._fills) < statistic.rows
        assert all(x.is_deleted() for x in old)


@pytest.mark.parametrize("mesh", ["data:8", "data:4,feature:2", "data:2,feature:4"])
def test_bytes_of_every_device(mesh):
    statistic = new(mesh)
    feature = mesh_of(mesh).shape["feature"]
    neurons = [s.layers * s.neurons for s in SHAPES]
    pairs = sum(
        len(t.pairs) * SHAPES[t.a].neurons // feature * SHAPES[t.b].neurons
        for t in moments.all_tiles(SHAPES)
    )
    representations = sum(s.layers for s in SHAPES)
    small = sum(neurons) * (1 + representations) + representations + representations**2
    numbers = 2 * (pairs + small) + 2 * sum(neurons) + 2 + SIZE * sum(neurons)
    held = dict.fromkeys(mesh_of(mesh).devices.flat, 0)
    for array in jax.tree.leaves((statistic._state, statistic._buffers)):
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert set(held.values()) == {4 * numbers}


@pytest.mark.parametrize("mesh", ["data:1", "data:8", "data:4,feature:2"])
def test_going_on_from_a_snapshot_changes_no_bit(mesh):
    statistic = add(new(mesh), mesh_of(mesh), [0, 1])
    taken = statistic.snapshot()
    assert 0 < sum(taken["fills"]) < statistic.rows
    copies = [x.copy() for x in taken["state"] + taken["buffers"]]
    again = new(mesh)
    again.restore(taken)
    for stream in (statistic, again):
        add(stream, mesh_of(mesh), [2, 1, 1])
    for a, b in zip(leaves(statistic), leaves(again)):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(taken["state"] + taken["buffers"], copies):
        np.testing.assert_array_equal(a, b)


def test_a_snapshot_of_one_cpu_device_takes_no_memory_and_stays_as_it_is():
    statistic, mesh = new("data:1"), mesh_of("data:1")

    def place() -> int:
        return statistic._state.sums.cross[0].unsafe_buffer_pointer()

    add(statistic, mesh, [1])
    before, taken = place(), statistic.snapshot()
    assert before in {array.ctypes.data for array in taken["state"]}
    copies = [x.copy() for x in taken["state"] + taken["buffers"]]
    add(statistic, mesh, [1])
    assert place() != before  # as long as somebody may read it, nothing is written over
    for a, b in zip(taken["state"] + taken["buffers"], copies):
        np.testing.assert_array_equal(a, b)
    del taken, a
    statistic.snapshot()
    before = place()
    add(statistic, mesh, [1])
    assert place() == before


@pytest.mark.parametrize("first", [(), (0,), (0, 1)], ids=["nothing", "rows", "sums"])
@pytest.mark.parametrize(
    ("before", "after"),
    [("data:8", "data:1"), ("data:1", "data:4,feature:2"), ("data:4,feature:2", "data:8")],
)
def test_going_on_elsewhere(before, after, first):
    statistic = add(new(before), mesh_of(before), first)
    again = new(after)
    again.restore(statistic.snapshot())
    assert again.rows == statistic.rows
    add(again, mesh_of(after), [b for b in range(3) if b not in first])
    assert_matches(again.result().finish(), valid_rows(data()), 1e-6)


def test_lost_digits_survive_another_mesh():
    statistic = add(new("data:8"), mesh_of("data:8"), [0, 1, 1, 1])
    statistic._flush()
    again = new("data:1")
    again.restore(statistic.snapshot())
    (before, after) = ([np.asarray(x, np.float64) for x in s._state.sums.cross]
                       for s in (statistic, again))  # fmt: skip
    for a, b in zip(before, after):
        np.testing.assert_allclose(b.sum(1), a.sum(1), rtol=1e-13, atol=1e-13 * np.abs(a).max())
        assert np.abs(b[:, 1]).max() > 0


def test_what_a_stream_cannot_do_is_refused():
    with pytest.raises(UserError, match="6 neurons cannot be divided over feature:4"):
        MomentsAccumulator((ModelShape(1, 6),), SIZE, mesh=mesh_of("data:2,feature:4"))
    taken = new("data:8").snapshot()
    for other in (
        MomentsAccumulator(SHAPES[:1], SIZE, mesh=mesh_of("data:8")),
        new("data:8", "float64"),
    ):
        with pytest.raises(UserError, match="the snapshot is of other models"):
            other.restore(taken)


HEADS = (ModelShape(2, 3), ModelShape(1, 3))


def projections(seed: int) -> tuple[tuple[Projected, ...], np.ndarray]:
    """Inputs of two models' maps of eight utterances: WavLM's bias, a conformer's positions."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation([12, 12, 9, 5, 2, 1, 0, 0]).astype(np.int32)

    def draw(*shape):
        return jax.numpy.asarray(rng.standard_normal(shape), np.float32)

    models = tuple(
        Projected(
            queries=draw(s.layers, 8, s.neurons, FRAMES, 4),
            keys=draw(s.layers, 8, s.neurons, 4, FRAMES),
            gates=draw(s.layers, 8, s.neurons, FRAMES) if gated else None,
            position_bias=draw(s.neurons, 2 * FRAMES - 1) if gated else None,
            lengths=jax.numpy.asarray(lengths),
            position_queries=None if gated else draw(s.layers, 8, s.neurons, FRAMES, 4),
            position_keys=None if gated else draw(s.layers, s.neurons, 4, 2 * FRAMES - 1),
        )
        for s, gated in zip(HEADS, (True, False))
    )
    return models, lengths


def test_attention():
    def stream(text: str) -> AttentionAccumulator:
        return AttentionAccumulator(
            HEADS, rows_of_projections, ("divergence",),
            mesh=mesh_of(text), batch_axis=BATCH_AXIS, group_of={str(k): k for k in range(3)},
        )  # fmt: skip

    groups = [0, 1, 2, 0, 1, 2, 0, 1]

    one, eight = stream("data:1"), stream("data:4,feature:2")
    for statistic in (one, eight):
        statistic.append(*projections(0), FRAMES, groups)
    taken = eight.snapshot()
    kept = [x.copy() for x in taken["state"]]
    sums = []
    for statistic in (one, eight):
        statistic.append(*projections(1), FRAMES, groups)
        sums.append([np.array(x) for x in jax.tree.leaves(statistic._state)])
    for statistic in (one, eight):
        statistic.restore(taken)
        assert len(statistic.snapshot()["lengths"]) == 6
        statistic.append(*projections(1), FRAMES, groups)
        sums.append([np.array(x) for x in jax.tree.leaves(statistic._state)])
    assert one.result().lengths == eight.result().lengths
    assert one.result().groups == eight.result().groups
    assert all((x != 0).any() for x in one.result().sums.gram)
    assert len(one.result().lengths) == 12
    for expected, found, elsewhere, same in zip(*sums):
        np.testing.assert_array_equal(same, found)
        expected = expected.sum(0, dtype=np.float64)
        for other in (found, elsewhere):
            other = other.sum(0, dtype=np.float64)
            np.testing.assert_allclose(other, expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(taken["state"], kept):
        np.testing.assert_array_equal(a, b)
    models, lengths = projections(0)
    update = functools.partial(eight._update, frames=FRAMES)
    assert collectives_of(update, eight._state, models, lengths, np.array(groups)) == set()
    with pytest.raises(UserError, match="other attention heads"):
        AttentionAccumulator(HEADS, rows_of_projections, ()).restore(taken)


def test_the_sample_depends_neither_on_the_devices_nor_on_a_rest():
    samples = []
    for text in ("data:1", "data:8"):
        statistic = SampleAccumulator(SHAPES, 20)
        for batch in range(3):
            if batch == 2:
                taken, statistic = statistic.snapshot(), SampleAccumulator(SHAPES, 20)
                statistic.restore(taken)
            positions = positions_of(batch)
            utterance, number = np.divmod(positions, FRAMES)
            ids = tuple(f"{batch}.{i}" for i in range(8))
            rows = BatchRows(positions, utterance, number, ids, ids)
            statistic.append(hidden_of(batch, mesh_of(text), data()), rows)
        samples.append(statistic.result().finish())
    assert len(set(samples[0].keys)) == 20
    assert list(samples[0].utterances) == list(samples[1].utterances)
    for a, b in zip(samples[0].rows, samples[1].rows):
        np.testing.assert_array_equal(a, b)
    utterance = [8 * int(id_[0]) + int(id_[2]) for id_ in samples[0].utterances]
    for a, whole in zip(samples[0].rows, data()):
        np.testing.assert_array_equal(a, whole[:, utterance, samples[0].numbers])
    with pytest.raises(UserError, match="sample_frames or seed"):
        SampleAccumulator(SHAPES, 20, seed=1).restore(taken)


@pytest.mark.parametrize("layout", ["wavlm-base", "conformer-relative", "w2v-bert"])
def test_forward_passes_run_apart(layout):
    encoder, mesh = fixture(layout).encoder, mesh_of("data:4,feature:2")
    outputs = Outputs(layers=(0, 1), projections=True, features=True)
    noise = np.random.default_rng(0).standard_normal((7, 320 * 20 + 80)).astype(np.float32)
    given = noise, np.full(7, 6480, np.int32)
    filled = np.pad(noise, ((0, 1), (0, 0))), np.pad(given[1], (0, 1))
    samples, lengths = place_batch(*filled, mesh)
    placed = forward.on_devices(encoder, mesh)
    program = forward._forward.lower(
        placed.parameters, samples, lengths,
        graph=encoder.graph, outputs=outputs, precision="highest", mesh=mesh,
    ).compile()  # fmt: skip
    assert collectives(program.as_text()) == set()
    found = forward.encode(placed, samples, lengths, outputs, "highest", mesh)
    alone = encoder.apply(*given, outputs, "highest")
    for field in dataclasses.fields(found):
        a, b = getattr(found, field.name), getattr(alone, field.name)
        assert (a is None) == (b is None)
        if b is None:
            continue
        others = {"frame_mask": 0, "features": 0, "position_bias": None, "position_keys": None}
        axis = others.get(field.name, 1)
        spec = tuple(a.sharding.spec)
        assert spec == (() if axis is None else (None,) * axis + (AXES,))
        a = np.asarray(a) if axis is None else np.take(a, range(7), axis)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "word"), [("highest", "HIGHEST"), ("TF32_TF32_F32_X3", "type = tf32")]
)
def test_update_is_translated_for_accelerators(precision, word):
    device = moments_on_mesh.on_mesh(mesh_of("data:4,feature:2"))
    statistic = new("data:4,feature:2")
    numbers, structure = jax.tree.flatten((statistic._state, statistic._buffers, np.zeros(8, "i4")))

    def update(*numbers):
        arguments = jax.tree.unflatten(structure, numbers)
        return jax.tree.leaves(device.update(*arguments, precision=precision))

    exported = jax.export.export(jax.jit(update), platforms=("tpu", "cuda"))(*numbers)
    assert exported.nr_devices == 8
    text = exported.mlir_module()
    assert "all_gather" in text and "all_reduce" not in text
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products and all(word in line for line in products)


def test_one_device_of_many_runs_the_program_of_one():
    assert new("data:1")._programs.update is rows_module._update


def test_exemplars_depend_neither_on_the_devices_nor_on_a_rest():
    names = [f"{batch}.{i}" for batch in range(3) for i in range(8)]
    found = []
    for text in ("data:1", "data:4", "data:4,feature:2"):
        new_on = functools.partial(ExemplarsAccumulator, SHAPES, 3, names, 320, 400, mesh_of(text))
        statistic = new_on()
        for batch in range(3):
            if batch == 2:
                taken, statistic = statistic.snapshot(), new_on()
                statistic.restore(taken)
            positions = positions_of(batch)
            utterance, number = np.divmod(positions, FRAMES)
            ids = tuple(names[8 * batch : 8 * batch + 8])
            rows = BatchRows(positions, utterance, number, ids, ids)
            before = exemplars._add._cache_size()
            statistic.append(hidden_of(batch, mesh_of(text), data()), rows)
            assert batch == 0 or exemplars._add._cache_size() == before
        found.append(statistic.result())
    for other in found[1:]:
        assert other.utterances == found[0].utterances
        for name in ("value", "utterance", "sample", "lowest"):
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name))
    best = []
    for whole in data():
        of_utterance = np.nan_to_num(whole, nan=-99).max(axis=2)
        first = -np.sort(-of_utterance, axis=1)[:, :3]
        best.append(first.swapaxes(0, 1).reshape(3, -1))
    np.testing.assert_array_equal(found[0].value, np.concatenate(best, axis=1))
