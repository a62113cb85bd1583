"""The sample of every cluster: which rows it holds, in any order, merged and resumed."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.clustered_sample import (
    ClusterChoice,
    ClusteredSample,
    ClusteredSampleAccumulator,
    choose,
)
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.sample import row_keys

SHAPES = (ModelShape(2, 3), ModelShape(1, 5))
# Utterances (speaker first) and their rows.
LENGTHS = {"a/1": 90, "a/2": 40, "b/1": 7, "c/1": 300, "\udce9/1": 60, "c/2": 25}
LAST = 2**64


def value(id_: str, number: int) -> float:
    """Of a row: no two are equal."""
    return 1000.0 * list(LENGTHS).index(id_) + number


def hidden(id_: str) -> tuple[jnp.ndarray, ...]:
    rows = np.array([value(id_, t) for t in range(LENGTHS[id_])], np.float32)
    return tuple(
        jnp.asarray(
            rows[None, None, :, None]
            + np.linspace(0, 0.5, s.neurons, dtype=np.float32)
            + np.arange(s.layers, dtype=np.float32)[:, None, None, None] / 2
        )
        for s in SHAPES
    )


def rows_of(id_: str) -> BatchRows:
    n = LENGTHS[id_]
    return BatchRows(np.arange(n), np.zeros(n, np.int64), np.arange(n), (id_,), (id_,))


def speakers(rows: BatchRows) -> np.ndarray:
    names = [utterance.split("/")[0] for utterance in rows.utterances]
    return np.array(names, object)[rows.utterance]


def accumulator(choice: ClusterChoice) -> ClusteredSampleAccumulator:
    return ClusteredSampleAccumulator(SHAPES, choice, speakers)


def sampled(ids, choice: ClusterChoice) -> ClusteredSample:
    stream = accumulator(choice)
    for id_ in ids:
        stream.append(hidden(id_), rows_of(id_))
    return stream.result()


CHOICES = {
    "few": ClusterChoice(0, 4, LAST // 20, 9, 40),
    "many": ClusterChoice(3, 2, LAST // 3, 4, 30),
    "all": ClusterChoice(0, 1, LAST, 200, 522),
    "some clusters": ClusterChoice(1, 5, LAST // 10, 2, 10),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_holds_the_rows_of_the_smallest_keys(choice):
    """Checked one cluster at a time, with the whole corpus at hand."""
    sample = sampled(LENGTHS, choice)
    assert set(sample.clusters) == {"a", "b", "c", "\udce9"}
    counts = dict(zip(sample.clusters, sample.counts.tolist()))
    assert counts == {"a": 130, "b": 7, "c": 325, "\udce9": 60}
    kept = set()
    for number, speaker in enumerate(sample.clusters):
        utterances = [id_ for id_ in LENGTHS if id_.startswith(f"{speaker}/")]
        keys = sorted(
            (int(key), value(id_, t))
            for id_ in utterances
            for t, key in enumerate(row_keys(choice.seed, rows_of(id_)))
        )
        below = sum(key < choice.row_limit for key, _ in keys)
        taken = speaker in choice.sampled(sample.clusters)
        expected = keys[: max(choice.minimum, below)] if taken else []
        mine = sample.cluster == number
        assert sample.keys[mine].tolist() == [key for key, _ in expected]
        np.testing.assert_array_equal(sample.rows[1][0, mine, 0], [v for _, v in expected])
        kept |= {speaker} if expected else set()
    if choice is CHOICES["some clusters"]:
        assert len(kept) == 2
    for layer in (0, 1):
        np.testing.assert_array_equal(
            sample.rows[0][layer, :, 0], sample.rows[1][0, :, 0] + layer / 2
        )


def assert_same(a: ClusteredSample, b: ClusteredSample) -> None:
    """Equal to the last bit."""
    assert a.clusters == b.clusters
    for name in ("counts", "keys", "cluster"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for x, y in zip(a.rows, b.rows, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_neither_order_nor_parts_change_it(choice, tmp_path):
    whole = sampled(LENGTHS, choice)
    for order in itertools.islice(itertools.permutations(LENGTHS), 0, 720, 131):
        assert_same(sampled(order, choice), whole)
    ids = list(LENGTHS)
    # Speaker c is in two of the parts; the last part has no row.
    parts = [sampled(part, choice) for part in (ids[:1], ids[1:4], ids[4:], [])]
    assert_same(parts[0].merge(parts[1:]), whole)
    assert_same(parts[2].merge([parts[0], parts[3], parts[1]]), whole)
    whole.save(tmp_path)
    assert_same(ClusteredSample.load(tmp_path), whole)


def test_merging_takes_the_smallest_limits():
    """As of a corpus that was read with more rows at first."""
    ids = list(LENGTHS)
    tight = CHOICES["some clusters"]
    loose = dataclasses.replace(tight, row_limit=LAST // 2, most_clusters=4, minimum=9)
    merged = sampled(ids[:3], loose).merge([sampled(ids[3:], tight)])
    assert_same(merged, sampled(ids, dataclasses.replace(tight)))
    with pytest.raises(UserError, match="seed"):
        sampled(ids[:1], tight).merge([sampled(ids[1:], CHOICES["few"])])


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_resumes_from_a_snapshot(choice):
    first = accumulator(choice)
    ids = list(LENGTHS)
    for id_ in ids[:3]:
        first.append(hidden(id_), rows_of(id_))
    snapshot = first.snapshot()
    for id_ in ids[3:]:
        first.append(hidden(id_), rows_of(id_))
    resumed = accumulator(choice)
    resumed.restore(snapshot)
    for id_ in ids[3:]:
        resumed.append(hidden(id_), rows_of(id_))
    assert_same(resumed.result(), first.result())
    with pytest.raises(UserError, match="snapshot"):
        accumulator(dataclasses.replace(choice, minimum=choice.minimum + 1)).restore(snapshot)


def test_clusters_that_turn_out_to_have_no_rows_take_no_place():
    """As where most of the files that were planned are missing."""
    planned = {f"missing{k}": 50 for k in range(3000)} | {"a": 130, "b": 7, "c": 325}
    choice = choose(planned, 20_000)
    sample = sampled([id_ for id_ in LENGTHS if id_[0] in "abc"], choice)
    assert len(set(sample.cluster.tolist())) == 3


def test_grows_where_more_rows_come_than_expected():
    choice = dataclasses.replace(CHOICES["all"], expected_rows=3)
    assert_same(sampled(LENGTHS, choice), sampled(LENGTHS, CHOICES["all"]))


def test_passes_join():
    choice = CHOICES["many"]
    whole = sampled(LENGTHS, choice)
    one = dataclasses.replace(whole, rows=whole.rows[:1], layers=((0, 0), (0, 1)))
    two = dataclasses.replace(whole, rows=whole.rows[1:], layers=((1, 0),))
    assert_same(one.finish([two]), whole)


@pytest.mark.parametrize(
    ("clusters", "rows", "budget"),
    [(40, 600, 20_000), (200, 600, 20_000), (1000, 600, 20_000), (40, 30_000, 20_000),
     (300, 40, 3000), (12, 20, 20_000), (5000, 3, 64)],
)  # fmt: skip
def test_the_choice_keeps_to_its_budget(clusters, rows, budget):
    lengths = {f"s{k}": rows + k % 7 for k in range(clusters)}
    choice = choose(lengths, budget, seed=1)
    taken = choice.sampled(lengths)
    assert len(taken) == min(clusters, 200, max(2, budget // 32))
    assert 0 < choice.expected_rows <= budget
    keys = np.random.default_rng(0).integers(0, LAST, rows, np.uint64, endpoint=False)
    kept = len(choice.kept(keys))
    assert kept >= min(rows, budget // len(taken), 32)
    # As many as expected, within the spread of a binomial.
    mean = choice.expected_rows / len(taken)
    assert abs(kept - mean) <= 6 + 5 * mean**0.5


def test_all_rows_if_the_budget_allows():
    lengths = {f"s{k}": 50 for k in range(60)}
    choice = choose(lengths, 3000, share=1.0)
    assert len(choice.kept(np.arange(50, dtype=np.uint64) + np.uint64(LAST - 51))) == 50
