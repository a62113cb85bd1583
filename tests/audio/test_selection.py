"""Durations from headers, the seeded and balanced choice of some minutes, and disjoint groups."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax.audio.corpus import Corpus, Source, read
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.audio.selection import Groups, disjoint_groups, in_turn, select
from speechsim_jax.errors import UserError
from tests.support.sound_files import SPEECH, corpus_of, ids, manifest, needs_speech, noise, write


def test_durations_come_from_the_manifest_then_the_header(tmp_path):
    write(tmp_path / "a.wav", noise(8_000), 8_000)
    write(tmp_path / "b.wav", noise(800))
    (tmp_path / "bad.wav").write_text("text")
    lines = ["path\tseconds", "a.wav\t", "b.wav\t7.5", "bad.wav\t", "gone.wav\t"]
    corpus = open_corpus(manifest(tmp_path / "m.tsv", *lines))
    timed = with_durations(corpus)
    assert [source.seconds for source in timed.sources] == [1.0, 7.5, None, None]
    assert ids(timed) == ids(corpus)


def total_seconds(corpus: Corpus) -> float:
    return sum(source.seconds or 0.0 for source in corpus.sources)


def test_select_is_balanced_over_speakers_and_seeded():
    corpus = corpus_of({"a": [6.0] * 100, "b": [6.0] * 20, "c": [6.0] * 10})
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
    corpus = corpus_of({speaker: [float(s) for s in all_] for speaker, all_ in lengths.items()})
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
    corpus = corpus_of({"a": [9.0, 5.0], "b": [5.0, 7.0]})
    assert ids(select(corpus, 1 / 60, seed=0)) == ["a/001"]


def test_select_reads_headers_and_leaves_broken_files_to_the_reader(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.wav", noise(16_000))
    (tmp_path / "bad.wav").write_text("text")
    assert ids(select(open_corpus(tmp_path), 60, seed=0)) == ["a.wav", "b.wav", "bad.wav", "c.wav"]
    two = select(open_corpus(tmp_path), 2.5 / 60, seed=0)
    assert total_seconds(two) == 2.0


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_select_refuses_no_minutes(minutes):
    with pytest.raises(UserError, match=r"max_minutes=.*positive"):
        select(corpus_of({"a": [1.0]}), minutes, seed=0)


# ---------------------------------------------------------------- disjoint groups


@pytest.fixture(scope="module")
def many() -> Corpus:
    rng = np.random.default_rng(0)
    return corpus_of({f"s{i:02}": rng.uniform(3, 15, 1 + i % 3).tolist() for i in range(40)})


def group_ids(groups: Groups) -> list[list[str]]:
    return [ids(corpus) for corpus in groups.corpora]


def test_groups_share_nothing_and_are_about_equally_long(many):
    groups = disjoint_groups(many, 8, seed=0)
    assert sorted(id_ for group in group_ids(groups) for id_ in group) == sorted(ids(many))
    speakers = [{source.speaker for source in corpus.sources} for corpus in groups.corpora]
    assert groups.speakers_disjoint and sum(map(len, speakers)) == 40
    seconds = [total_seconds(corpus) for corpus in groups.corpora]
    assert max(seconds) / min(seconds) < 1.1


def test_groups_depend_on_the_seed_and_not_on_the_order(many):
    reverse = replace(many, sources=many.sources[::-1])
    assert group_ids(disjoint_groups(reverse, 8, 3)) == group_ids(disjoint_groups(many, 8, 3))
    equal = corpus_of({f"s{i}": [1.0] for i in range(20)})
    assert group_ids(disjoint_groups(equal, 4, 0)) != group_ids(disjoint_groups(equal, 4, 1))


def test_few_speakers_are_divided():
    groups = disjoint_groups(corpus_of({"a": [5.0] * 6, "b": [5.0] * 6}), 4, 0)
    assert not groups.speakers_disjoint
    assert [len(group) for group in group_ids(groups)] == [3] * 4


def test_an_utterance_of_unknown_speaker_counts_as_a_speaker():
    groups = disjoint_groups(corpus_of({"": [5.0, 4.0, 3.0, 2.0], "a": [6.0, 6.0]}), 5, 0)
    assert not groups.speakers_disjoint  # as far as anybody knows
    assert sorted(map(len, group_ids(groups))) == [1, 1, 1, 1, 2]


def test_files_of_unknown_duration_leave_no_group_empty():
    sources = tuple(Source(str(number), seconds=None) for number in range(5))
    assert all(group_ids(disjoint_groups(Corpus("unknown", sources), 5, 0)))


@pytest.mark.parametrize("count, message", [(1, "1 groups"), (5, "4 utterances, .* 5 groups")])
def test_impossible_groups(count, message):
    with pytest.raises(UserError, match=message):
        disjoint_groups(corpus_of({"a": [1.0] * 4}), count, 0)


# ---------------------------------------------------------------- real speech


@needs_speech
def test_real_manifest_agrees_with_the_files():
    root = Path(str(SPEECH))
    with (root / "manifest.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    corpus = open_corpus(root / "manifest.tsv")
    assert ids(corpus) == [row["utt_id"] for row in rows]
    assert [source.path for source in corpus.sources] == [root / row["path"] for row in rows]
    assert sorted(row["path"] for row in rows) == ids(open_corpus(root))
    assert [source.speaker for source in corpus.sources] == [row["speaker"] for row in rows]
    assert [source.transcript for source in corpus.sources] == [row["transcript"] for row in rows]
    few = corpus.sources[::60]
    bare = Corpus("headers", tuple(replace(source, seconds=None) for source in few))
    for source, timed in zip(few, with_durations(bare).sources, strict=True):
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


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 8), min_size=1),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_in_turn_is_balanced_however_far_it_goes(counts, seed, random):
    corpus = corpus_of({speaker: [6.0] * count for speaker, count in counts.items()})
    shuffled = list(corpus.sources)
    random.shuffle(shuffled)
    order = in_turn(replace(corpus, sources=tuple(shuffled)), seed)
    assert order == in_turn(corpus, seed)
    assert sorted(source.id for source in order) == sorted(ids(corpus))
    for end in range(1, len(order)):
        taken = [source.speaker for source in order[:end]]
        most = max(map(taken.count, counts))
        assert all(taken.count(s) >= min(most - 1, count) for s, count in counts.items())
