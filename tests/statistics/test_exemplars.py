"""`Exemplars`: the best frames of each neuron, whatever way the stream is cut, ordered, merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax.errors import UserError
from speechsim_jax.pipeline.pass_memory import PassLoad, Sizes, exemplar_bytes
from speechsim_jax.statistics import exemplars
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.exemplars import Exemplars, ExemplarsAccumulator
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.sample import text_hash

SHAPES = (ModelShape(2, 3), ModelShape(1, 4))
FRAMES = 12  # of a padded batch
HOP, FIRST = 320, 200
# Utterances, or pieces of one: id, utterance, first sample, frames.
PIECES = (
    ("a", "a", 0, 12),
    ("b#0", "b", 0, 12),
    ("b#1", "b", 3920, 11),
    ("b#2", "b", 7840, 12),
    ("\udce9.wav", "\udce9.wav", 0, 5),
    ("d/e", "d/e", 0, 1),
    ("f", "f", 0, 7),
)
NAMES = tuple(dict.fromkeys(utterance for _, utterance, _, _ in PIECES))


def states(piece: int, values: int) -> list[np.ndarray]:
    """Hidden states [layer, frame, neuron] of so many different values; some neurons constant."""
    rng = np.random.default_rng(piece)
    found = [
        rng.integers(-values, 1, (s.layers, PIECES[piece][3], s.neurons)).astype(np.float32)
        for s in SHAPES
    ]
    found[0][1, :, 2] = -0.5
    found[1][0, :, 0] = piece  # constant within a piece only
    return found


def batch_of(pieces: tuple[int, ...], values: int) -> tuple[tuple[jnp.ndarray, ...], BatchRows]:
    """Pieces and a filler, padded with NaN; every second frame of one is no row."""
    size = len(pieces) + 1
    hidden = [np.full((s.layers, size, FRAMES, s.neurons), np.nan, np.float32) for s in SHAPES]
    for row, piece in enumerate(pieces):
        for padded, own in zip(hidden, states(piece, values)):
            padded[:, row, : own.shape[1]] = own
    numbers = [rows_of(piece) for piece in pieces]
    rows = BatchRows(
        positions=np.concatenate([row * FRAMES + n for row, n in enumerate(numbers)]),
        utterance=np.repeat(np.arange(len(pieces)), [len(n) for n in numbers]),
        number=np.concatenate(numbers),
        ids=tuple(PIECES[piece][0] for piece in pieces),
        utterances=tuple(PIECES[piece][1] for piece in pieces),
        starts=tuple(PIECES[piece][2] for piece in pieces),
    )
    return tuple(map(jnp.asarray, hidden)), rows


def rows_of(piece: int) -> np.ndarray:
    return np.arange(0, PIECES[piece][3], 2 if piece == 0 else 1)


def new(count: int, names: tuple[str, ...] = NAMES) -> ExemplarsAccumulator:
    return ExemplarsAccumulator(SHAPES, count, names, HOP, FIRST)


def found_in(order, count: int, together: int = 1, values: int = 3) -> Exemplars:
    """The exemplars of these pieces in this order, `together` in a batch."""
    accumulator = new(count)
    for start in range(0, len(order), together):
        accumulator.append(*batch_of(tuple(order[start : start + together]), values))
    return accumulator.result()


def oracle(count: int, values: int) -> list[list[list[tuple[float, str, int]]]]:
    """Of each neuron of each representation the exemplars, from all rows at once."""
    found = []
    for model, shape in enumerate(SHAPES):
        for layer in range(shape.layers):
            of_layer = []
            for neuron in range(shape.neurons):
                every = []
                for piece, (_, utterance, start, _) in enumerate(PIECES):
                    hidden = states(piece, values)[model][layer, :, neuron]
                    every += [
                        (
                            -float(hidden[t]),
                            text_hash(utterance),
                            utterance,
                            start + t * HOP + FIRST,
                        )
                        for t in rows_of(piece).tolist()
                    ]
                if len({row[0] for row in every}) == 1:
                    of_layer.append([])
                    continue
                best = {}
                for row in sorted(every, key=lambda row: (row[0], row[3])):
                    best.setdefault(row[2], row)
                of_layer.append([(-v, u, t) for v, _, u, t in sorted(best.values())[:count]])
            found.append(of_layer)
    return found


def as_lists(state: Exemplars) -> list[list[list[tuple[float, str, int]]]]:
    return [
        [
            [
                (float(of.value[k, neuron]), state.utterances[u], int(of.sample[k, neuron]))
                for k, u in enumerate(of.utterance[:, neuron])
                if u >= 0
            ]
            for neuron in range(of.value.shape[1])
        ]
        for of in state.finish().representations
    ]


def assert_same(a: Exemplars, b: Exemplars) -> None:
    """Equal to the last bit."""
    for field in dataclasses.fields(Exemplars):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=field.name, strict=True)
        else:
            assert x == y, field.name


@pytest.mark.parametrize("count", [1, 2, 5, 20])
@pytest.mark.parametrize("values", [1, 3, 10**6])
def test_holds_the_best_frames_of_all_rows(count, values):
    """With few values nearly all are ties."""
    found = found_in(range(len(PIECES)), count, together=3, values=values)
    expected = oracle(count, values)
    assert as_lists(found) == expected
    assert expected[1][2] == [] and len(expected[2][0]) == min(count, 5)
    assert found.count == count and found.widths == (3, 3, 4)


def test_what_is_missing_is_said():
    (_, _, last) = found_in(range(3), 4).finish().representations
    assert np.isnan(last.value[2:]).all() and (last.utterance[2:] == -1).all()
    assert np.isfinite(last.value[:2]).all() and (last.utterance[:2] >= 0).all()


@given(
    order=st.permutations(range(len(PIECES))),
    together=st.sampled_from([1, 2, 3, 7]),
    count=st.sampled_from([1, 3]),
)
@settings(deadline=None, max_examples=20)
def test_order_and_batches_do_not_matter(order, together, count):
    expected = found_in(range(len(PIECES)), count)
    assert_same(found_in(order, count, together), expected)


@given(cut=st.permutations(range(len(PIECES))), count=st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=10)
def test_merge_is_a_commutative_idempotent_monoid(cut, count):
    a, b, c = (found_in(part, count) for part in (cut[:2], cut[2:3], cut[3:]))
    whole, empty = found_in(range(len(PIECES)), count), new(count).result()
    assert_same(a.merge([empty]), a)
    assert_same(empty.merge([a]), a)
    assert_same(a.merge([b]), b.merge([a]))
    assert_same(a.merge([b, c]), whole)
    assert_same(a.merge([b.merge([c])]), whole)
    assert_same(whole.merge([a]), whole)


def test_the_fewest_exemplars_are_merged_and_other_models_are_refused():
    first, last = found_in(range(4), 4), found_in(range(4, 7), 2)
    assert_same(first.merge([last]), found_in(range(7), 2))
    other = ExemplarsAccumulator(SHAPES[:1], 4, NAMES, HOP, FIRST).result()
    with pytest.raises(UserError, match="other models or layers"):
        first.merge([other])


def test_a_neuron_that_is_constant_in_every_part_may_change_between_them():
    parts = [found_in([piece], 2) for piece in (0, 4, 5)]
    assert all(as_lists(part)[2][0] == [] for part in parts)
    together = as_lists(parts[0].merge(parts[1:]))
    assert [value for value, _, _ in together[2][0]] == [5.0, 4.0]
    assert together[1][2] == []


def test_passes_are_joined():
    whole = found_in(range(len(PIECES)), 3)
    parts = []
    for layers in ((0, 2), (1,), (1, 2)):
        names = [(0, 0), (0, 1), (1, 0)]
        ends = np.cumsum(whole.widths)[:-1]

        def pick(array, ends=ends, layers=layers):
            parts = np.split(array, ends, axis=-1)
            return np.concatenate([parts[layer] for layer in layers], axis=-1)

        parts.append(
            dataclasses.replace(
                whole,
                **{n: pick(getattr(whole, n)) for n in ("value", "utterance", "sample", "lowest")},
                layers=tuple(names[layer] for layer in layers),
                widths=tuple(whole.widths[layer] for layer in layers),
            )._used()
        )
    assert any(part.utterances != whole.utterances for part in parts)
    assert_same(parts[0].finish(parts[1:]), whole)


def test_a_pass_without_models_and_representations_that_leave():
    whole = found_in(range(len(PIECES)), 3)
    nothing = ExemplarsAccumulator((), 3, NAMES, HOP, FIRST)
    nothing.append(*batch_of((0, 1), 3))
    empty = nothing.result()
    assert empty.representations == () and empty.layers == ()
    assert_same(whole.finish([empty]), whole)
    assert_same(empty.finish([whole]), whole)
    assert_same(empty.merge([empty]), empty)
    left = whole.without([1, 7])
    assert left.layers == ((0, 0), (1, 0)) and left.widths == (3, 4)
    expected = as_lists(whole)
    assert as_lists(left) == [expected[0], expected[2]]
    assert whole.without(range(3)).representations == ()


def test_saved_and_loaded(tmp_path):
    whole = found_in(range(len(PIECES)), 3)
    whole.save(tmp_path)
    assert_same(Exemplars.load(tmp_path), whole)
    stored = sum(
        (tmp_path / f"{n}.npy").stat().st_size - 128 for n in ("value", "utterance", "sample")
    )
    assert stored <= 16 * 3 * sum(whole.widths)


def test_goes_on_from_a_snapshot():
    first = new(3)
    first.append(*batch_of((6, 1), 3))
    taken = first.snapshot()
    first.append(*batch_of((0,), 3))
    again = new(3)
    again.restore(taken)
    again.append(*batch_of((4, 3, 0), 3))
    again.append(*batch_of((2, 5), 3))
    assert_same(again.result(), found_in(range(len(PIECES)), 3))
    for other in (new(4), new(3, ("a",)), ExemplarsAccumulator(SHAPES[:1], 3, NAMES, HOP, FIRST)):
        with pytest.raises(UserError, match="the snapshot is of other models"):
            other.restore(taken)


def test_an_update_takes_no_more_than_is_planned():
    """XLA's own count of the temporaries of a compiled update, and the exemplars before it."""
    shape, count, batch, frames = ModelShape(4, 256), 5, 6, 200
    accumulator = ExemplarsAccumulator((shape,), count, NAMES, HOP, FIRST)
    (kept,) = accumulator._kept
    hidden = jax.ShapeDtypeStruct((shape.layers, batch, frames, shape.neurons), np.float32)
    rows = np.ones((batch, frames), bool), np.zeros(batch, np.int32), np.zeros(batch, np.int32)
    compiled = exemplars._add.lower(kept, hidden, *rows, HOP, everywhere=None).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    taken = memory.temp_size_in_bytes + memory.output_size_in_bytes
    taken += sum(array.nbytes for array in kept)
    load = PassLoad(frozenset(range(4)), (3,), 4 * 256, 256)
    sizes = Sizes(1, batch * frames, exemplars=count, utterances=batch)
    assert taken <= exemplar_bytes(load, sizes) <= 1.5 * taken
    assert exemplar_bytes(load, dataclasses.replace(sizes, exemplars=0)) == 0
