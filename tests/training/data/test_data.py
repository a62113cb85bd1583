"""The data of a training: held-out speakers, crops and batches, their labels and clusters."""

import itertools
import logging
import threading

import numpy as np
import pytest
import soundfile

from speechsim_jax.audio.corpus import Source, read
from speechsim_jax.errors import UserError
from speechsim_jax.training.data import cluster_labels, clusters, splits
from speechsim_jax.training.data.alphabet import Alphabet
from speechsim_jax.training.data.sampling import (
    CropSampler,
    TrainingBatch,
    UtteranceSampler,
    pad_labels,
    pad_to_multiple,
    utterance_buckets,
)
from speechsim_jax.training.data.splits import WaveformCache, open_split
from speechsim_jax.training.recipe import Audio, Crops, Utterances
from tests.support.objectives import CONFIG


def ramp(samples: int, start: int = 0) -> np.ndarray:
    """Samples whose values are their positions."""
    return np.arange(start, start + samples, dtype=np.float32) / 1e6


def source(name: str, samples: int, speaker: str = "", start: int = 0, text: str = ""):
    wave = ramp(samples, start)
    return Source(name, seconds=samples / 16000, samples=wave, speaker=speaker,
                        transcript=text)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Five speakers with two files each, and a manifest of one more."""
    for speaker, number in itertools.product("abcde", range(2)):
        path = tmp_path / "speech" / speaker / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 + ramp(4000 + 1000 * number), 16000)
    (tmp_path / "other").mkdir()
    soundfile.write(tmp_path / "other" / "x.wav", 0.1 + ramp(8000), 16000)
    lines = ["path\tspeaker\ttranscript", "x.wav\tf\thello"]
    (tmp_path / "other" / "manifest.tsv").write_text("\n".join(lines))
    return tmp_path


# --- held-out speakers ---


def of_folders(*args, **kwargs) -> Audio:
    """Folders are speakers."""
    return Audio(*args, **kwargs, speaker_from="^([^/]+)/")


def test_speakers_are_held_out(folder):
    both = [str(folder / "speech"), str(folder / "other" / "manifest.tsv")]
    split = open_split(both, of_folders(held_out=("f",), held_out_share=0.4))
    training, held_out = ({s.speaker for s in part} for part in (split.training, split.held_out))
    assert "f" in held_out and len(held_out) == 3 and training | held_out == set("abcdef")
    assert not training & held_out
    assert len(split.training) + len(split.held_out) == 11
    assert [s.id for s in split.training] == sorted(s.id for s in split.training)
    assert split.corpus_of["x.wav"] == "other" and split.corpus_of["a/0.wav"] == "speech"
    seconds = sum(s.seconds for s in split.held_out) / 60
    assert split.minutes()[1] == pytest.approx(seconds)
    again = open_split(both, of_folders(held_out=("f",), held_out_share=0.4))
    assert again.held_out == split.held_out
    others = {
        tuple(s.speaker for s in open_split(both, of_folders(held_out_seed=k)).held_out)
        for k in range(9)
    }
    assert len(others) > 1
    assert split.fingerprint() != open_split(both, of_folders(held_out=("f",))).fingerprint()


def test_patterns_choose(folder):
    split = open_split([str(folder / "speech")], of_folders(("a/*", "b/*"), ("*/1.wav",), (), 0.0))
    assert [s.id for s in split.training] == ["a/0.wav", "b/0.wav"] and not split.held_out


def test_what_cannot_be_split(folder):
    speech = str(folder / "speech")
    for corpora_, audio, message in (
        ([speech, speech], of_folders(), "id 'a/0.wav' is in two corpora"),
        ([speech], of_folders(include=("z*",)), r"no utterance is left of .* with include=z\*"),
        (
            [speech],
            of_folders(held_out=("me",)),
            r"held_out names 'me', .* \(there are 5",
        ),
        ([speech], of_folders(held_out=tuple("abcde")), "all speakers are held out"),
    ):
        with pytest.raises(UserError, match=message):
            open_split(corpora_, audio)


def test_too_few_speakers_and_broken_files_are_said(folder, caplog):
    (folder / "speech" / "a" / "broken.wav").write_bytes(b"RIFF")
    split = open_split([str(folder / "speech")], of_folders(include=("a/*",)))
    assert len(split.training) == 2 and not split.held_out
    assert "left out 1 files without a readable header" in caplog.text
    assert "1 speakers are too few to hold out 0.1 of them" in caplog.text


def test_unknown_speakers_are_one_each():
    split = open_split([[ramp(4000) for _ in range(10)]], Audio(held_out_share=0.3))
    assert len(split.training) == 7 and len(split.held_out) == 3


# --- waveforms ---


def test_waves_are_kept_as_far_as_memory_goes(monkeypatch):
    reads = []
    monkeypatch.setattr(
        splits, "read", lambda source, least: (reads.append(source.id), read(source, least))[1]
    )
    waves = WaveformCache([source(name, 1000) for name in "abc"], 9e-6)  # two of them
    for number in (0, 1, 0, 2, 0, 1):
        assert np.array_equal(waves[number], ramp(1000))
    assert reads == ["a", "b", "c", "b"]
    assert len(waves) == 3
    nothing_kept = WaveformCache([source("d", 1000)], 0)
    assert len(nothing_kept[0]) == len(nothing_kept[0]) == 1000 and reads[-2:] == ["d", "d"]


def test_unusable_audio_is_empty_and_warned_of_once(caplog):
    waves = WaveformCache([Source("bad", seconds=1.0, samples=np.full(900, np.nan))], 0)
    assert [len(waves[0]), len(waves[0])] == [0, 0]
    assert caplog.text.count("skipped bad: has NaN at sample 0") == 1
    sampler = CropSampler(waves, CONFIG, Crops(2, 4), 0)
    with pytest.raises(UserError, match="no file of a batch can be used"):
        sampler.batch_of_step(0)


def test_prefetch_keeps_the_order_and_stops():
    asked = []
    results = splits.prefetch(lambda k: (asked.append(k), k * k)[1], range(100), lookahead=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(asked) <= 8
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("speechsim-rows")]
    with pytest.raises(UserError):
        list(splits.prefetch(lambda k: Audio(held_out_share=k), [0, 5]))


# --- crops ---


@pytest.fixture(scope="module")
def sampler() -> CropSampler:
    sources = [source("a", 320 * 50 + 80), source("b", 320 * 100 + 100, start=10**6),
               source("c", 320 * 4 + 200, start=2 * 10**6)]  # fmt: skip
    frames = {s.id: np.arange(CONFIG.frames(len(s.samples))) for s in sources}
    return CropSampler(WaveformCache(sources, 1), CONFIG, Crops(rows=64, frames=10), 0, frames)


def test_crops_lie_on_the_grid_and_their_clusters_with_them(sampler):
    seen = {"a": set(), "b": set(), "c": set()}
    for step in range(40):
        rows = sampler.batch_of_step(step)
        assert rows.samples.shape == (64, 320 * 10 + 80) and rows.clusters.shape == (64, 10)
        for wave, length, labels in zip(*rows[:3]):
            place = round(float(wave[0]) * 1e6)
            name, start = "abc"[place // 10**6], place % 10**6
            utterance = sampler._waves[ord(name) - ord("a")]
            assert np.array_equal(wave[:length], utterance[start : start + length])
            assert not wave[length:].any()
            frames = CONFIG.frames(int(length))
            assert start % 320 == 0
            assert np.array_equal(labels[:frames], start // 320 + np.arange(frames))
            assert (labels[frames:] == -1).all() and frames == (4 if name == "c" else 10)
            seen[name].add(start // 320)
    assert seen["a"] == set(range(41)) and max(seen["b"]) == 90 and seen["c"] == {0}


def test_utterances_are_drawn_by_their_length(sampler):
    places = (
        np.concatenate([sampler.batch_of_step(step).samples[:, 0] for step in range(100)]) * 1e6
    )
    counts = np.bincount(np.round(places).astype(int) // 10**6, minlength=3)
    seconds = np.array([320 * 50 + 80, 320 * 100 + 100, 320 * 4 + 200])
    expected = counts.sum() * seconds / seconds.sum()
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_step_is_a_function_of_seed_and_step(sampler):
    again = sampler.batch_of_step(7)
    for a, b in zip(again[:3], sampler.batch_of_step(7)[:3]):
        assert np.array_equal(a, b)
    assert not np.array_equal(again.samples, sampler.batch_of_step(8).samples)
    other = CropSampler(sampler._waves, CONFIG, Crops(64, 10), seed=1)
    assert not np.array_equal(again.samples, other.batch_of_step(7).samples)
    of_c = sampler.batch_of_speaker("c")
    assert (of_c.samples[:, 0] == of_c.samples[0, 0]).all() and of_c.samples[0, 0] >= 2


def test_speeds_change_the_samples_and_their_clusters():
    """Samples of ramps, and clusters that are frame numbers, tell their position."""
    sources = [source("a", 320 * 200), source("c", 320 * 4 + 200, start=10**5)]
    frames = {s.id: np.arange(CONFIG.frames(len(s.samples))) for s in sources}
    crops = Crops(rows=64, frames=20, speed_change=0.2)
    sampler = CropSampler(WaveformCache(sources, 1), CONFIG, crops, 0, frames)
    speeds, seen = [], set()
    for step in range(20):
        rows = sampler.batch_of_step(step)
        assert rows.samples.shape == (64, 320 * 20 + 80) and rows.clusters.shape == (64, 20)
        for wave, length, labels in zip(*rows[:3]):
            places = wave[:length].astype(np.float64) * 1e6 % 10**5
            start, speed = places[0], (places[-1] - places[0]) / (length - 1)
            np.testing.assert_allclose(places, start + speed * np.arange(length), atol=0.3)
            assert start == pytest.approx(320 * round(start / 320), abs=0.1)
            count = CONFIG.frames(int(length))
            middles = start + speed * (320 * np.arange(count) + 200)
            there = np.rint((middles - 200) / 320) < 199  # the utterance has 199 frames
            assert (labels[:count][~there] == -1).all()
            assert np.abs(320 * labels[:count] + 200 - middles)[there].max() <= 161
            assert (labels[count:] == -1).all()
            assert count == 20 or wave[0] >= 0.1
            if count == 20:
                speeds.append(speed)
                seen.update(labels.tolist())
    assert 0.8 <= min(speeds) < 0.82 and 1.18 < max(speeds) <= 1.2
    assert seen - {-1} == set(range(199))


def test_speeds_leave_evaluation_alone(sampler):
    crops = Crops(rows=64, frames=10, speed_change=0.2)
    changed = CropSampler(sampler._waves, CONFIG, crops, 0, sampler._clusters)
    for speaker in "ab":
        for a, b in zip(
            sampler.batch_of_speaker(speaker)[:3], changed.batch_of_speaker(speaker)[:3]
        ):
            assert np.array_equal(a, b)
    assert not np.array_equal(sampler.batch_of_step(0).samples, changed.batch_of_step(0).samples)


# --- utterances ---


@pytest.fixture(scope="module")
def spoken() -> UtteranceSampler:
    lengths = np.random.default_rng(0).integers(3000, 60_000, 23)
    sources = [source(f"u{k:02}", int(n), start=k * 10**5) for k, n in enumerate(lengths)]
    labels = [np.arange(k % 5 + 1, dtype=np.int32) for k in range(len(sources))]
    buckets = utterance_buckets(
        sources, Utterances(batch_seconds=6, max_seconds=4, buckets=2), CONFIG
    )
    return UtteranceSampler(WaveformCache(sources, 1), labels, buckets, seed=0)


def test_an_epoch_reads_every_utterance_once(spoken):
    size = len(spoken.batches_in_order)
    epochs = []
    for epoch in range(2):
        read = []
        for step in range(size):
            rows = spoken.batch_of_step(epoch * size + step)
            for wave, length, labels, count in zip(rows.samples, rows.lengths, *rows[3:]):
                if length:
                    number = round(float(wave[0]) * 1e6) // 10**5
                    read.append(number)
                    assert length == len(spoken._waves[number])
                    assert count == number % 5 + 1
                    assert np.array_equal(labels, [*range(count)] + [0] * (5 - count))
        assert sorted(read) == list(range(23))
        epochs.append(read)
    assert epochs[0] != epochs[1]
    assert len({rows.samples.shape for rows in map(spoken.batch_of_step, range(size))}) == 2
    assert sorted(itertools.chain(*spoken.batches_in_order)) == list(range(23))


def test_a_manifest_that_is_wrong_about_a_length():
    wrong = Source("a", seconds=1.0, samples=ramp(40_000))
    sampler = UtteranceSampler(
        WaveformCache([wrong], 1),
        [np.zeros(1, np.int32)],
        utterance_buckets([wrong], Utterances(), CONFIG),
        seed=0,
    )
    with pytest.raises(UserError, match=r"a: lasts 2\.50 s, but its manifest or header .* 1\.00"):
        sampler.batch_of_step(0)


def test_fillers():
    rows = TrainingBatch(
        np.ones((3, 8), np.float32), np.full(3, 8, np.int32), np.ones((3, 2), np.int32)
    )
    padded = pad_to_multiple(rows, 4)
    assert padded.lengths.tolist() == [8, 8, 8, 0] and padded.clusters.shape == (4, 2)
    assert padded.labels is None and not padded.samples[3].any()
    assert pad_to_multiple(rows, 3).samples is rows.samples


def test_padded_labels():
    padded = pad_labels([np.array([3, 4], np.int32), np.array([5], np.int32)], 3, 3)
    assert padded.tolist() == [[3, 4, -1], [5, -1, -1], [-1, -1, -1]]
    assert padded.dtype == np.int32


# --- characters ---


def test_labels_and_text_are_inverse():
    alphabet = Alphabet.of(["it's  Me", "abba"])
    assert alphabet.characters == tuple("'ABEIMST")
    labels = alphabet.labels(" Abba  s'Il ")
    assert len(labels) == len("ABBA S'IL") and labels[-1] == 3  # no L in the alphabet
    path = np.concatenate([[label, 0] for label in labels]).repeat(2)
    assert alphabet.decode(path) == "ABBA S'I<unk>"
    assert alphabet.restrict("Abba, l'Est!") == "ABBA 'EST"
    with pytest.raises(UserError, match="no transcript has a character"):
        Alphabet.of(["", "  "])


# --- clusters of a corpus ---


@pytest.mark.slow
def test_clusters_of_mfcc(tmp_path, caplog):
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(n).astype(np.float32) for n in (8000, 9000, 7000, 5000)]
    sources = [Source(f"u{k}", seconds=len(w) / 16000, samples=w)
               for k, w in enumerate(waves)]  # fmt: skip
    sources[2] = Source("u2", seconds=0.5, samples=np.zeros(8000, np.float32))
    with caplog.at_level(logging.INFO):
        corpus_labels = cluster_labels.cluster_corpus(
            cluster_labels.mfcc_features(CONFIG),
            sources[:3],
            sources[3:],
            5,
            cluster_minutes=10,
            seed=0,
        )
    assert "skipped u2: is silent" in caplog.text and set(corpus_labels.labels) == {
        "u0",
        "u1",
        "u3",
    }
    centres = clusters.Clusters(corpus_labels.centres)
    for name, labels in corpus_labels.labels.items():
        rows = clusters.mfcc(waves[int(name[1])], CONFIG)
        assert np.array_equal(labels, centres.label(rows))
    clustered = np.concatenate([clusters.mfcc(waves[k], CONFIG) for k in (0, 1)])
    assert np.array_equal(
        corpus_labels.centres, clusters.fit_clusters(clustered, 5, seed=0).centres
    )
    counts = corpus_labels.counts(["u0", "u1", "u2"])
    assert counts.sum() == len(clustered) and len(counts) == 5

    corpus_labels.save(tmp_path / "units.npz")
    again = cluster_labels.ClusterLabels.load(tmp_path / "units.npz")
    assert (
        again.digest() == corpus_labels.digest()
        and again.labels.keys() == corpus_labels.labels.keys()
    )
    few = cluster_labels.cluster_corpus(
        cluster_labels.mfcc_features(CONFIG),
        sources[:2],
        sources[3:],
        5,
        cluster_minutes=0.009,
        seed=0,
    )
    assert few.digest() != corpus_labels.digest() and set(few.labels) == {"u0", "u1", "u3"}


def test_clusters_that_cannot_be_read(tmp_path):
    (tmp_path / "units.npz").write_text("no")
    with pytest.raises(UserError, match=r"units\.npz: .*cannot be read"):
        cluster_labels.ClusterLabels.load(tmp_path / "units.npz")
    silent = [Source("a", seconds=1.0, samples=np.zeros(16000, np.float32))]
    with pytest.raises(UserError, match="no file of the training audio can be used"):
        cluster_labels.cluster_corpus(cluster_labels.mfcc_features(CONFIG), silent, [], 2, 10, 0)
