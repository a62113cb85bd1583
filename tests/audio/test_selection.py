"""Durations from headers, and the seeded, balanced choice of some minutes."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax.audio.corpus import Corpus, Source, read
from speechsim_jax.audio.open_corpus import durations, open_corpus
from speechsim_jax.audio.selection import select
from speechsim_jax.errors import UserError
from tests.support.sound_files import SPEECH, ids, manifest, needs_speech, noise, write


def test_durations_come_from_the_manifest_then_the_header(tmp_path):
    write(tmp_path / "a.wav", noise(8_000), 8_000)
    write(tmp_path / "b.wav", noise(800))
    (tmp_path / "bad.wav").write_text("text")
    lines = ["path\tseconds", "a.wav\t", "b.wav\t7.5", "bad.wav\t", "gone.wav\t"]
    corpus = open_corpus(manifest(tmp_path / "m.tsv", *lines))
    timed = durations(corpus)
    assert [source.seconds for source in timed.sources] == [1.0, 7.5, None, None]
    assert ids(timed) == ids(corpus)


def synthetic(lengths: dict[str, list[float]]) -> Corpus:
    """A corpus that is never read: speaker -> durations in seconds."""
    sources = [
        Source(f"{speaker}/{index:03d}", None, seconds, speaker)
        for speaker, lengths_ in lengths.items()
        for index, seconds in enumerate(lengths_)
    ]
    return Corpus("synthetic", tuple(sources))


def total_seconds(corpus: Corpus) -> float:
    return sum(source.seconds or 0.0 for source in corpus.sources)


def test_select_is_balanced_over_speakers_and_seeded():
    corpus = synthetic({"a": [6.0] * 100, "b": [6.0] * 20, "c": [6.0] * 10})
    chosen = select(corpus, 1.8, seed=3)
    speakers = [source.speaker for source in chosen.sources]
    assert {speaker: speakers.count(speaker) for speaker in "abc"} == {"a": 6, "b": 6, "c": 6}
    assert ids(chosen) == sorted(ids(chosen))
    assert ids(chosen) != ids(corpus)[: len(chosen.sources)]
    assert select(corpus, 1.8, seed=3) == chosen
    assert ids(select(corpus, 1.8, seed=4)) != ids(chosen)
    # c has run out; a and b go on sharing.
    more = [source.speaker for source in select(corpus, 4, seed=3).sources]
    assert (more.count("a"), more.count("b"), more.count("c")) == (15, 15, 10)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(1, 60), min_size=1, max_size=8), min_size=1
    ),
    st.integers(1, 600),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_select_fills_the_limit_whatever_the_order(lengths, limit_seconds, seed, random):
    corpus = synthetic({speaker: [float(s) for s in all_] for speaker, all_ in lengths.items()})
    shuffled = list(corpus.sources)
    random.shuffle(shuffled)
    chosen = select(Corpus("shuffled", tuple(shuffled)), limit_seconds / 60, seed)
    assert ids(chosen) == ids(select(corpus, limit_seconds / 60, seed))
    assert set(chosen.sources) <= set(corpus.sources)
    left = [s.seconds or 0.0 for s in corpus.sources if s not in chosen.sources]
    room = limit_seconds - total_seconds(chosen)
    if room < -1e-6:
        assert len(chosen.sources) == 1
        assert total_seconds(chosen) == min([*left, total_seconds(chosen)])
    else:
        assert all(seconds > room - 1e-6 for seconds in left)


def test_select_takes_the_shortest_when_nothing_fits():
    corpus = synthetic({"a": [9.0, 5.0], "b": [5.0, 7.0]})
    assert ids(select(corpus, 1 / 60, seed=0)) == ["a/001"]


def test_select_reads_headers_and_keeps_broken_files_for_the_report(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.wav", noise(16_000))
    (tmp_path / "bad.wav").write_text("text")
    assert ids(select(open_corpus(tmp_path), 60, seed=0)) == ["a.wav", "b.wav", "bad.wav", "c.wav"]
    two = select(open_corpus(tmp_path), 2.5 / 60, seed=0)
    assert total_seconds(two) == 2.0


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_select_refuses_no_minutes(minutes):
    with pytest.raises(UserError, match=r"max_minutes=.*positive"):
        select(synthetic({"a": [1.0]}), minutes, seed=0)


@needs_speech
def test_real_manifest_agrees_with_the_files():
    root = Path(str(SPEECH))
    with (root / "manifest.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    corpus = open_corpus(root / "manifest.tsv")
    assert ids(corpus) == [row["path"] for row in rows]
    assert sorted(ids(corpus)) == ids(open_corpus(root))
    assert [source.speaker for source in corpus.sources] == [row["speaker"] for row in rows]
    assert [source.transcript for source in corpus.sources] == [row["transcript"] for row in rows]
    few = corpus.sources[::60]
    bare = Corpus("headers", tuple(replace(source, seconds=None) for source in few))
    for source, timed in zip(few, durations(bare).sources, strict=True):
        assert timed.seconds == pytest.approx(source.seconds, abs=1e-3)
        assert read(source).seconds == pytest.approx(source.seconds, abs=1e-3)


@needs_speech
def test_real_selection_spreads_over_speakers():
    chosen = select(open_corpus(Path(str(SPEECH)) / "manifest.tsv"), 10, seed=0)
    speakers = [source.speaker for source in chosen.sources]
    assert 9.5 * 60 < total_seconds(chosen) <= 600
    # There are 225 speakers; only the very short clips that fill the last seconds come from
    # somebody already chosen.
    assert len(set(speakers)) > 50 and len(set(speakers)) > 0.9 * len(speakers)
