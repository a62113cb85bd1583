"""Batches: planned lengths, every sample once, the same in any number of threads, and resuming."""

import collections
import functools
import threading
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax.audio import batching
from speechsim_jax.audio.batching import Batch, Bucket, Cursor, share_buckets
from speechsim_jax.audio.corpus import AudioError, Corpus, Skipped, Source, read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.selection import disjoint_groups
from speechsim_jax.errors import UserError
from tests.support.sound_files import SPEECH, corpus_of, needs_speech

# The frames of every encoder of today.
plan_buckets = functools.partial(
    batching.plan_buckets, hop_samples=320, window_samples=400, count=4
)
batches = functools.partial(batching.batches, min_samples=400)


def arrays(lengths: list[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"u{i:03d}": rng.standard_normal(n).astype(np.float32) for i, n in enumerate(lengths)}


def rows(stream) -> dict[str, np.ndarray]:
    """Every row that is not filler, without its padding; an id that occurs twice fails."""
    samples: dict[str, np.ndarray] = {}
    for batch in stream:
        for row, id_ in enumerate(batch.ids):
            assert id_ not in samples
            samples[id_] = batch.samples[row, : batch.lengths[row]]
    return samples


def refuse(skipped: Skipped) -> None:
    raise AssertionError(f"skipped {skipped}")


def reader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("speechsim-audio")]


def padded_samples(needed: list[int], lengths: tuple[int, ...]) -> int:
    return sum(min(n for n in lengths if n >= samples) for samples in needed)


# ---------------------------------------------------------------- buckets


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(400, 80_000).map(lambda n: n / 16_000), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_plan_is_as_good_as_brute_force(durations, count):
    buckets = plan_buckets(durations, count=count)
    lengths = tuple(bucket.samples for bucket in buckets)
    # The grid: half seconds, each with the 80 samples that complete the last frame.
    cells = [8_000 * -(-round(16_000 * s) // 8_000) + 80 for s in durations]
    grid = sorted(set(cells))
    best = min(
        padded_samples(cells, (*chosen, grid[-1]))
        for k in range(count)
        for chosen in combinations(grid[:-1], min(k, len(grid) - 1))
    )
    assert padded_samples(cells, lengths) == best
    assert lengths == tuple(sorted(set(lengths))) and set(lengths) <= set(grid)
    assert len(lengths) == min(count, len(grid))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0.025, 200.0), min_size=1, max_size=30),
    st.floats(0.5, 70.0),
    st.floats(0.1, 100.0),
    st.sampled_from([(320, 400), (160, 400), (640, 1_025), (480, 480)]),
)
def test_every_bucket_holds_whole_frames_and_keeps_its_budget(
    durations, limit, batch_seconds, frame
):
    hop, window = frame
    buckets = plan_buckets(
        durations,
        hop_samples=hop,
        window_samples=window,
        max_seconds=limit,
        batch_seconds=batch_seconds,
    )
    for bucket in buckets:
        assert (bucket.samples - window) % hop == 0
        assert bucket.samples < 16_000 * limit + hop + 1
        assert bucket.batch == max(1, int(batch_seconds / (bucket.samples / 16_000)))
    largest = buckets[-1].samples
    longest_uncut = max((s for s in durations if s <= limit), default=0.0)
    assert largest >= int(16_000 * longest_uncut)
    # No utterance needs more pieces than the limit itself asks for.
    for seconds in durations:
        assert np.ceil(int(16_000 * seconds) / largest) <= np.ceil(seconds / limit)


def test_an_utterance_of_exactly_max_seconds_fits():
    assert plan_buckets([60.0, 3.0])[-1].samples >= 60 * 16_000
    assert plan_buckets([30.0], max_seconds=30)[-1].samples >= 30 * 16_000
    assert plan_buckets([30.0], max_seconds=30)[-1].samples < 30.02 * 16_000


def test_longer_ones_are_planned_as_pieces():
    assert [bucket.samples for bucket in plan_buckets([61.0], max_seconds=60)] == [488_080]
    # Six pieces of 50.2 s outweigh two utterances of 40 s; as one row they would not.
    plan = plan_buckets([40.0, 40.0, 301.0, 60.0], count=2, max_seconds=60)
    assert [bucket.samples for bucket in plan] == [808_080, 960_080]


def test_plan_of_few_durations_is_small_and_known():
    assert plan_buckets([10.0]) == (Bucket(3, 160_080),)
    assert plan_buckets([1.0, 1.0, 0.7]) == (Bucket(39, 16_080),)
    assert plan_buckets([1.0] * 50 + [9.0, 10.0], count=2) == (
        Bucket(39, 16_080),
        Bucket(3, 160_080),
    )


def test_plan_does_not_depend_on_the_order_and_is_fast():
    durations = np.random.default_rng(0).gamma(4.0, 3.0, 300_000)
    start = time.perf_counter()
    plan = plan_buckets(durations)
    assert time.perf_counter() - start < 2.0
    assert len(plan) == 4
    assert plan_buckets(durations[::-1].tolist()) == plan


# --- how many buckets ---


def computed(buckets: Sequence[Bucket], durations: Sequence[float]) -> float:
    """Seconds of all batches of utterances of these durations, fillers included."""
    waiting = collections.Counter(
        min(b.samples for b in buckets if b.samples >= 16_000 * s) for s in durations
    )
    rows = {bucket.samples: bucket.batch for bucket in buckets}
    return sum(
        -(-count // rows[samples]) * rows[samples] * samples / 16_000
        for samples, count in waiting.items()
    )


def test_little_audio_takes_few_programs_and_no_fillers():
    """28 s, of which four buckets of full batches compute 147."""
    durations = [3.2, 4.3, 9.1, 11.4]
    full = plan_buckets(durations)
    assert len(full) == 4 and computed(full, durations) == pytest.approx(147, abs=1)
    assert plan_buckets(durations, count=None) == (Bucket(2, 72_080), Bucket(2, 184_080))
    assert plan_buckets(durations, count=None, program_seconds=60) == (Bucket(2, 184_080),)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(3, 7_000).map(lambda n: n / 100), min_size=1, max_size=40),
    st.floats(0.0, 100.0),
    st.floats(0.1, 100.0),
)
def test_no_other_number_of_buckets_is_worth_more(durations, program, batch_seconds):
    given = {"max_seconds": 71.0, "batch_seconds": batch_seconds}
    chosen = plan_buckets(durations, **given | {"count": None, "program_seconds": program})
    worth = computed(chosen, durations) + program * len(chosen)
    for count in range(1, 13):
        other = plan_buckets(durations, **given | {"count": count})
        assert worth <= computed(other, durations) + program * len(other) + 1e-6
    assert all(b.batch <= max(1, int(16_000 * batch_seconds / b.samples)) for b in chosen)


def test_much_audio_takes_more_programs():
    durations = np.random.default_rng(0).gamma(4.0, 3.0, 20_000)
    counts = [len(plan_buckets(durations[:n], count=None)) for n in (5, 50, 500, 20_000)]
    assert counts == sorted(counts) and counts[0] < 4 and counts[-1] == 12
    assert len(plan_buckets(durations, count=None, program_seconds=1e4)) < 12


def test_utterances_of_unknown_duration_fill_batches_too():
    assert plan_buckets([10.0], count=None) == (Bucket(1, 160_080),)
    assert plan_buckets([10.0], count=None, utterances=50) == (Bucket(3, 160_080),)


def test_what_an_encoder_pads_further_counts_as_that():
    """Whisper reads 30 s whatever there is: one program is as good as two."""
    durations = [3.0] * 50 + [20.0] * 50
    given = {"count": None, "program_seconds": 0.1}
    assert len(plan_buckets(durations, least_row_seconds=30.0, **given)) == 1
    assert len(plan_buckets(durations, **given)) == 2


@pytest.mark.parametrize(
    "seconds, settings_",
    [
        ([], {}),
        ([1.0, float("nan")], {}),
        ([-1.0], {}),
        ([1.0], {"count": 0}),
        ([1.0], {"batch_seconds": 0}),
        ([1.0], {"max_seconds": 0.4}),
        ([1.0], {"max_seconds": float("nan")}),
    ],
)
def test_plan_refuses_nonsense(seconds, settings_):
    with pytest.raises(UserError, match=r"expected|need"):
        plan_buckets(seconds, **settings_)


@pytest.mark.parametrize("name", ["buckets", "batch_seconds", "max_seconds"])
def test_plan_names_the_setting(name):
    with pytest.raises(UserError, match=f"{name}=0,|{name}=0:"):
        plan_buckets([1.0], **{name.replace("buckets", "count"): 0})


def test_groups_share_the_buckets_of_all():
    rng = np.random.default_rng(0)
    corpus = corpus_of({f"s{i:02}": rng.uniform(3, 15, 1 + i % 3).tolist() for i in range(40)})
    buckets = plan_buckets([source.seconds for source in corpus.sources if source.seconds])
    true = {source.id: source.seconds or 0 for source in corpus.sources}
    for group in share_buckets(disjoint_groups(corpus, 8, seed=0).corpora, buckets):
        stated = {source.id: source.seconds or 0 for source in group.sources}
        assert set(plan_buckets(list(stated.values()))) <= set(buckets)
        assert all(seconds >= true[id_] for id_, seconds in stated.items())


# ---------------------------------------------------------------- batches


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(400, 9_000), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(1, 4), st.integers(800, 6_000)), min_size=1, max_size=3),
)
def test_every_sample_comes_out_exactly_once(lengths, shapes):
    corpus = arrays(lengths)
    buckets = [Bucket(batch, samples) for batch, samples in shapes]
    largest = max(bucket.samples for bucket in buckets)
    read_rows = rows(batches(open_corpus(corpus), buckets, on_skip=refuse))
    for id_, samples in corpus.items():
        count = -(-len(samples) // largest)
        names = [id_] if count == 1 else [f"{id_}#{piece}" for piece in range(count)]
        pieces = [read_rows.pop(name) for name in names]
        np.testing.assert_array_equal(np.concatenate(pieces), samples)
        assert all(len(piece) >= 400 for piece in pieces)
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert not read_rows


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(400, 3_000), min_size=1, max_size=20))
def test_batches_have_their_shape_and_the_smallest_bucket(lengths):
    buckets = (Bucket(3, 1_040), Bucket(2, 2_000), Bucket(1, 3_280))
    leftovers: set[int] = set()
    for batch in batches(open_corpus(arrays(lengths)), buckets, on_skip=refuse):
        bucket = next(b for b in buckets if batch.samples.shape == (b.batch, b.samples))
        real = len(batch.ids)
        assert (batch.lengths[:real] > 0).all() and not batch.lengths[real:].any()
        smaller = max((b.samples for b in buckets if b.samples < bucket.samples), default=0)
        assert (batch.lengths[:real] > smaller).all()
        valid = np.arange(bucket.samples) < batch.lengths[:, None]
        assert not batch.samples[~valid].any()
        assert batch.seconds == batch.lengths.sum() / 16_000
        assert bucket.samples not in leftovers, "a partial batch comes last"
        if real < bucket.batch:
            leftovers.add(bucket.samples)


def test_full_batches_come_in_the_order_of_the_corpus():
    stream = batches(
        open_corpus(arrays([500, 900, 1_500, 600, 700])),
        [Bucket(2, 1_000), Bucket(1, 2_000)],
        on_skip=refuse,
    )
    assert [batch.ids for batch in stream] == [("u000", "u001"), ("u002",), ("u003", "u004")]


@pytest.mark.parametrize("workers, lookahead", [(1, 1), (2, 3), (4, 32)])
def test_threads_do_not_change_the_batches(monkeypatch, workers, lookahead):
    def slow_read(source: Source, min_samples: int):
        time.sleep(0.003 if source.id.endswith(("0", "3", "7")) else 0)
        return read(source, min_samples)

    corpus = open_corpus(arrays(list(range(400, 2_400, 100))))
    buckets = [Bucket(3, 1_200), Bucket(2, 2_400)]
    expected = list(batches(corpus, buckets, on_skip=refuse))
    monkeypatch.setattr(batching, "read", slow_read)
    got = list(batches(corpus, buckets, workers=workers, lookahead=lookahead, on_skip=refuse))
    assert [batch.ids for batch in got] == [batch.ids for batch in expected]
    for batch, same in zip(got, expected, strict=True):
        np.testing.assert_array_equal(batch.samples, same.samples)
        np.testing.assert_array_equal(batch.lengths, same.lengths)


def broken_corpus() -> Corpus:
    good = arrays([500, 600])
    silent, short = np.zeros(800, np.float32), np.ones(10, np.float32)
    corpus = open_corpus({"a": good["u000"], "mute": silent, "short": short, "z": good["u001"]})
    return Corpus("broken", (Source("gone.wav", Path("gone.wav")), *corpus.sources))


def test_unusable_sources_are_reported_in_order_and_skipped():
    skipped: list[Skipped] = []
    (batch,) = batches(broken_corpus(), [Bucket(2, 1_000)], on_skip=skipped.append)
    assert batch.ids == ("a", "z")
    assert [source.id for source in skipped] == ["gone.wav", "mute", "short"]
    assert [source.reason.split(":")[0] for source in skipped] == [
        "is not a file",
        "is silent",
        "is too short",
    ]


@pytest.mark.parametrize("min_samples, ids", [(400, ("u000", "u001")), (600, ("u001",))])
def test_the_shortest_utterance_is_a_window_of_the_encoder(min_samples, ids):
    skipped: list[Skipped] = []
    (batch,) = batches(
        open_corpus(arrays([599, 600])),
        [Bucket(2, 1_200)],
        min_samples=min_samples,
        on_skip=skipped.append,
    )
    assert batch.ids == ids
    assert len(skipped) == 2 - len(ids)


def test_strict_makes_them_fatal():
    with pytest.raises(UserError, match=r"gone\.wav is not a file") as caught:
        list(batches(broken_corpus(), [Bucket(2, 1_000)], strict=True, on_skip=refuse))
    assert isinstance(caught.value.__cause__, AudioError)
    assert not reader_threads()


def test_only_skipped_sources_give_no_batches():
    corpus = open_corpus([np.zeros(800, np.float32)])
    skipped: list[Skipped] = []
    assert list(batches(corpus, [Bucket(1, 1_000)], on_skip=skipped.append)) == []
    assert len(skipped) == 1


@pytest.mark.parametrize("lookahead", [1, 4])
def test_reading_ahead_is_bounded_and_stops_when_closed(monkeypatch, lookahead):
    started: list[str] = []

    def counting_read(source: Source, min_samples: int):
        started.append(source.id)
        return read(source, min_samples)

    monkeypatch.setattr(batching, "read", counting_read)
    corpus = open_corpus(arrays([500] * 200))
    stream = batches(corpus, [Bucket(2, 1_000)], lookahead=lookahead, on_skip=refuse)
    assert not started and not reader_threads()  # nothing happens before the first batch
    next(stream)
    next(stream)
    time.sleep(0.05)
    assert 4 <= len(started) <= 4 + lookahead
    stream.close()
    assert not reader_threads()
    assert len(started) <= 4 + lookahead


def test_breaking_out_cancels_what_waits(monkeypatch):
    started: list[str] = []

    def slow_read(source: Source, min_samples: int):
        started.append(source.id)
        time.sleep(0.02)
        return read(source, min_samples)

    monkeypatch.setattr(batching, "read", slow_read)
    corpus = open_corpus(arrays([500] * 100))
    stream = batches(corpus, [Bucket(1, 1_000)], workers=2, lookahead=100, on_skip=refuse)
    start = time.perf_counter()
    for _ in stream:
        break
    stream.close()
    assert time.perf_counter() - start < 0.5  # all of it would take a second
    assert len(started) < 20
    assert not reader_threads()


def test_a_bug_in_a_worker_surfaces(monkeypatch):
    def broken_read(source: Source, min_samples: int):
        if source.id == "u002":
            raise ZeroDivisionError("a bug")
        return read(source, min_samples)

    monkeypatch.setattr(batching, "read", broken_read)
    received: list[Batch] = []
    with pytest.raises(ZeroDivisionError, match="a bug"):
        for batch in batches(open_corpus(arrays([500] * 5)), [Bucket(1, 1_000)], on_skip=refuse):
            received.append(batch)
    assert [batch.ids for batch in received] == [("u000",), ("u001",)]
    assert not reader_threads()


@pytest.mark.parametrize(
    "buckets, options",
    [
        ([], {}),
        ([Bucket(1, 720)], {}),
        ([Bucket(1, 1_040)], {"workers": 0}),
        ([Bucket(1, 1_040)], {"lookahead": 0}),
    ],
)
def test_batches_refuses_nonsense_before_any_work(buckets, options):
    with pytest.raises(UserError, match=r"hold 800|at least 1"):
        batches(open_corpus(arrays([500])), buckets, on_skip=refuse, **options)


@needs_speech
def test_real_speech_comes_through_completely():
    corpus = open_corpus(Path(str(SPEECH)) / "manifest.tsv")
    sources = corpus.sources[::40] + tuple(s for s in corpus.sources if s.id.endswith("p001.mp3"))
    corpus = Corpus("some", sources)
    seconds = [source.seconds for source in sources if source.seconds]
    stream = list(batches(corpus, plan_buckets(seconds, max_seconds=20.0), on_skip=refuse))
    assert sum(batch.seconds for batch in stream) == pytest.approx(sum(seconds), abs=1e-2)
    assert {id_.partition("#")[0] for batch in stream for id_ in batch.ids} == {
        source.id for source in sources
    }
    assert len({batch.samples.shape for batch in stream}) <= 4
    assert sum(batch.samples.size for batch in stream) < 16_000 * 4 * sum(seconds)


# ---------------------------------------------------------------- resuming


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(400, 40_000), min_size=1, max_size=14), st.integers(0, 5))
def test_a_stream_resumes_after_any_batch(lengths, broken):
    waves = arrays(lengths)
    if broken < len(waves):
        waves[f"u{broken:03d}"][:] = np.nan
    corpus = open_corpus(waves)
    shapes = (Bucket(3, 4_080), Bucket(2, 10_000))  # anything longer is cut
    skipped: list[Skipped] = []
    full = list(batches(corpus, shapes, on_skip=skipped.append))
    for done, last in enumerate(full, start=1):
        again: list[Skipped] = []
        rest = list(batches(corpus, shapes, on_skip=again.append, start=last.after))
        assert len(rest) == len(full) - done
        for a, b in zip(rest, full[done:]):
            assert a.ids == b.ids and a.after == b.after
            assert np.array_equal(a.samples, b.samples) and np.array_equal(a.lengths, b.lengths)
        assert len(again) == (broken < len(waves) and last.after.sources <= broken)


def test_resuming_decodes_only_what_waits(monkeypatch):
    waves = arrays([3_000] * 10 + [9_000] + [3_000] * 10)
    corpus, shapes = open_corpus(waves), (Bucket(4, 4_080), Bucket(2, 10_000))
    last = list(batches(corpus, shapes, on_skip=refuse))[3].after
    assert last.sources == 17 and last.waiting == ((), ((10, 0),)) and last.rest == ()
    decoded: list[str] = []

    def recording_read(source: Source, min_samples: int):
        decoded.append(source.id)
        return read(source, min_samples)

    monkeypatch.setattr(batching, "read", recording_read)
    list(batches(corpus, shapes, on_skip=refuse, start=last))
    assert sorted(decoded) == ["u010", "u017", "u018", "u019", "u020"]


def test_a_file_that_waited_and_has_changed():
    waves = arrays([3_000] * 5)
    shapes = (Bucket(4, 4_080),)
    after = Cursor(3, (((0, 0), (1, 1)),))
    with pytest.raises(UserError, match="has changed"):
        next(batches(open_corpus(waves), shapes, on_skip=refuse, start=after))
    waves["u000"][:] = np.nan
    with pytest.raises(UserError, match="has changed"):
        next(batches(open_corpus(waves), shapes, on_skip=refuse, start=Cursor(1, (((0, 0),),))))
