"""`Sample`: the rows of the smallest keys, whatever way the stream is cut, ordered and merged."""

import dataclasses
import hashlib
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import row_fetcher, sample
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.sample import Sample, SampleAccumulator

SHAPES = (ModelShape(2, 3), ModelShape(1, 5))
LENGTHS = {"a": 31, "b/x.flac": 17, "b/y.flac": 40, "\udce9.wav": 12}
FRAMES = 40  # of a padded batch


def states(id_: str, length: int) -> list[np.ndarray]:
    """The hidden states of an utterance: no two values are equal."""
    base = 1000 * list(LENGTHS).index(id_)
    frame = base + np.arange(length, dtype=np.float32)
    return [
        frame[None, :, None]
        + np.linspace(0, 0.4, s.neurons, dtype=np.float32)
        + 0.5 * np.arange(s.layers, dtype=np.float32)[:, None, None]
        for s in SHAPES
    ]


def batch_of(ids: tuple[str, ...]) -> tuple[tuple[jnp.ndarray, ...], BatchRows]:
    """Two utterances (or one and a filler row) padded to one shape, with what names their rows."""
    hidden = [np.full((s.layers, 2, FRAMES, s.neurons), np.nan, np.float32) for s in SHAPES]
    for row, id_ in enumerate(ids):
        for padded, own in zip(hidden, states(id_, LENGTHS[id_])):
            padded[:, row, : own.shape[1]] = own
    counts = [LENGTHS[id_] for id_ in ids]
    rows = BatchRows(
        positions=np.concatenate([row * FRAMES + np.arange(n) for row, n in enumerate(counts)]),
        utterance=np.repeat(np.arange(len(ids)), counts),
        number=np.concatenate([np.arange(n) for n in counts]),
        ids=ids,
        utterances=ids,
    )
    return tuple(map(jnp.asarray, hidden)), rows


def sampled(ids: tuple[str, ...], size: int, seed: int = 0, together: int = 2) -> Sample:
    """The sample of these utterances in this order, `together` in a batch."""
    stream = SampleAccumulator(SHAPES, size, seed)
    for start in range(0, len(ids), together):
        stream.append(*batch_of(ids[start : start + together]))
    return stream.result()


def assert_same(a: Sample, b: Sample) -> None:
    """Equal to the last bit."""
    assert (a.size, a.seed) == (b.size, b.seed)
    for name in ("keys", "utterances", "numbers"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for x, y in zip(a.rows, b.rows, strict=True):
        np.testing.assert_array_equal(x, y)


def key_of(seed: int, id_: str, number: int) -> int:
    """The key in Python's integers."""
    text = f"{seed}\0{id_}".encode("utf-8", "surrogatepass")
    mask = 2**64 - 1
    state = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    state = (state + (number + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_splitmix64_is_the_published_one(monkeypatch):
    """From state 0 it gives the first numbers of the reference implementation."""
    monkeypatch.setattr(sample, "text_hash", lambda text: 0)
    rows = BatchRows(np.arange(3), np.zeros(3, np.int64), np.arange(3), ("x",), ("x",))
    assert [int(key) for key in sample.row_keys(0, rows)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [4, 50, 100, 500])
def test_holds_the_rows_of_the_smallest_keys(size):
    got = sampled(tuple(LENGTHS), size, seed=3)
    every = sorted((key_of(3, id_, t), id_, t) for id_, n in LENGTHS.items() for t in range(n))
    expected = every[:size]
    assert [int(key) for key in got.keys] == [key for key, _, _ in expected]
    assert list(got.utterances) == [id_ for _, id_, _ in expected]
    assert got.numbers.tolist() == [t for _, _, t in expected]
    for stream, rows in enumerate(got.rows):
        of_model = [states(id_, LENGTHS[id_])[stream][:, t] for _, id_, t in expected]
        np.testing.assert_array_equal(rows, np.stack(of_model, axis=1))


@given(
    order=st.permutations(list(LENGTHS)),
    together=st.sampled_from([1, 2]),
    size=st.sampled_from([7, 64, 90, 200]),
)
@settings(deadline=None, max_examples=20)
def test_order_and_batches_do_not_matter(order, together, size):
    assert_same(sampled(tuple(order), size, together=together), sampled(tuple(LENGTHS), size))


@given(cut=st.permutations(list(LENGTHS)), size=st.sampled_from([7, 64, 200]))
@settings(deadline=None, max_examples=10)
def test_merge_is_a_commutative_idempotent_monoid(cut, size):
    a, b, c = (sampled(tuple(part), size) for part in (cut[:1], cut[1:2], cut[2:]))
    whole = sampled(tuple(LENGTHS), size)
    empty = SampleAccumulator(SHAPES, size).result()
    assert_same(a.merge([empty]), a)
    assert_same(empty.merge([a]), a)
    assert_same(a.merge([b]), b.merge([a]))
    assert_same(a.merge([b, c]), whole)
    assert_same(a.merge([b.merge([c])]), whole)
    assert_same(whole.merge([a]), whole)


def test_samples_of_other_sizes_or_seeds_do_not_merge():
    for other in (SampleAccumulator(SHAPES, 9), SampleAccumulator(SHAPES, 8, seed=1)):
        with pytest.raises(UserError, match="sample_frames and seed"):
            SampleAccumulator(SHAPES, 8).result().merge([other.result()])


def test_a_piece_has_its_own_keys_but_its_utterance_s_name():
    hidden, rows = batch_of(("a", "b/x.flac"))
    pieces = dataclasses.replace(rows, ids=("u#0", "u#1"), utterances=("u", "u"))
    stream = SampleAccumulator(SHAPES, 100)
    stream.append(hidden, pieces)
    got = stream.result()
    assert set(got.utterances) == {"u"}
    assert len(got.keys) == 48
    assert {int(k) for k in got.keys} == {
        key_of(0, id_, t) for id_, n in (("u#0", 31), ("u#1", 17)) for t in range(n)
    }
    assert {representation.utterance.tobytes() for representation in got.representations} == {
        np.zeros(48, np.int64).tobytes()
    }


def test_draws_uniformly_and_differently_with_each_seed():
    """Of 40 000 rows 2000 are drawn; tenths of them get equal shares (chi-squared, 9)."""
    number, zeros = np.arange(40_000), np.zeros(40_000, np.int64)
    names = tuple(f"u{i}" for i in range(40_000))
    short = BatchRows(number, number, zeros, names, names)
    long = BatchRows(number, zeros, number, ("u",), ("u",))
    samples = []
    for seed, layout in itertools.product((0, 1), (short, long)):
        chosen = np.argsort(sample.row_keys(seed, layout))[:2000]
        counts = np.bincount(chosen // 4000, minlength=10)
        assert np.sum((counts - 200) ** 2 / 200) < 27.9  # exceeded once in 1000
        samples.append(set(chosen.tolist()))
    for a, b in itertools.combinations(samples, 2):
        assert 50 < len(a & b) < 150  # 100 expected of unrelated draws


def test_memory_is_bounded_and_one_gather_is_compiled():
    before = row_fetcher._take._cache_size()
    stream = SampleAccumulator(SHAPES, 16)
    for order in itertools.permutations(LENGTHS):
        for start in (0, 2):
            stream.append(*batch_of(order[start : start + 2]))
            assert len(stream._fetcher._coming) <= 1
    assert sum(x.nbytes for x in stream._fetcher.rows) == 16 * (2 * 3 + 5) * 4
    assert row_fetcher._take._cache_size() <= before + 1
    assert len(stream.result().keys) == 16
