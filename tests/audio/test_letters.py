"""Words and letters of synthetic speech: where they are, and that they are the same every time."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechsim_jax.audio import letters, synthetic
from speechsim_jax.audio.alignments import alignments_of
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.synthetic import SpokenText

TEXTS = (
    "Two languages may share a word and still disagree about what it means.",
    "The train leaves at nine, but the bridge isn't closed.",
)
VOICES, PITCHES = ("en-US", "it-IT"), (0.8, 1.2)


def readings(pitches: tuple[float, ...]) -> list[SpokenText]:
    return [
        SpokenText(f"{voice}-{pitch}/{k}.flac", voice, text, voice, pitch)
        for voice, pitch in itertools.product(VOICES, pitches)
        for k, text in enumerate(TEXTS)
    ]


def rows_of(folder: Path) -> dict[str, dict[str, list[tuple[float, float, str]]]]:
    """The segments of each file and tier."""
    found: dict[str, dict[str, list[tuple[float, float, str]]]] = {}
    with (folder / synthetic.ALIGNMENTS).open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            of = found.setdefault(row["path"], {"word": [], "letter": []})
            of[row["tier"]].append((float(row["start"]), float(row["end"]), row["label"]))
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    synthetic.write_corpus(readings(PITCHES), folder, alignments=True)
    return folder


def test_words_are_in_order_and_cover_the_speech(corpus):
    for path, tiers in rows_of(corpus).items():
        words = ["isnt" if w == "isn't" else w for w in letters.words_of(TEXTS[int(path[-6])])]
        assert [label for *_, label in tiers["word"]] == words
        assert "".join(label for *_, label in tiers["letter"]) == "".join(words)
        for tier in tiers.values():
            starts, ends = (np.array(bounds) for bounds in list(zip(*tier))[:2])
            assert (ends > starts).all() and (starts[1:] == ends[:-1]).all()
        samples, rate = soundfile.read(corpus / path)
        loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max()) / rate
        (first, *_), *_, (_, last, _) = tiers["word"]
        assert first <= loud[0] + 0.01 and loud[-1] - 0.01 <= last <= len(samples) / rate
        assert (last - first) < 1.2 * (loud[-1] - loud[0])


def test_letters_share_the_time_of_their_word(corpus):
    tiers = rows_of(corpus)["en-US-0.8/0.flac"]
    start, end, word = tiers["word"][1]
    assert word == "languages"
    of_word = [one for one in tiers["letter"] if start <= one[0] < end]
    assert "".join(label for *_, label in of_word) == word
    lengths = [until - since for since, until, _ in of_word]
    assert lengths == pytest.approx([(end - start) / len(word)] * len(word), abs=2e-4)


def test_two_pitches_aligned_apart_agree(corpus, tmp_path):
    """One alignment is of both; made for each alone they differ by some hops."""
    ends: dict[float, list[float]] = {}
    for pitch in PITCHES:
        synthetic.write_corpus(readings((pitch,)), tmp_path / str(pitch), alignments=True)
        found = rows_of(tmp_path / str(pitch))
        ends[pitch] = [end for tiers in found.values() for _, end, _ in tiers["word"]]
    low, high = (np.array(ends[pitch]) for pitch in PITCHES)
    differences = np.abs(low - high)
    assert differences.max() > 0 and np.median(differences) <= 0.03
    both = rows_of(corpus)
    for voice, k in itertools.product(VOICES, range(len(TEXTS))):
        assert both[f"{voice}-0.8/{k}.flac"] == both[f"{voice}-1.2/{k}.flac"]


def test_they_are_the_same_every_time_and_leave_the_speech_alone(corpus, tmp_path):
    synthetic.write_corpus(readings(PITCHES), tmp_path / "again", alignments=True)
    synthetic.write_corpus(readings(PITCHES), tmp_path / "without")
    name = synthetic.ALIGNMENTS
    assert (tmp_path / "again" / name).read_bytes() == (corpus / name).read_bytes()
    assert not (tmp_path / "without" / name).exists()
    for reading in readings(PITCHES):
        without = (tmp_path / "without" / reading.path).read_bytes()
        assert without == (corpus / reading.path).read_bytes()


def test_they_are_read_as_alignments(corpus):
    found = open_corpus(corpus / "manifest.tsv")
    alignments = alignments_of(found, str(corpus / synthetic.ALIGNMENTS), "letter", None, ())
    assert alignments.tier == "letter" and len(alignments.utterances) == len(found.sources)


def sound(*hertz: float, seconds: float = 0.3) -> np.ndarray:
    """Tones one after the other, with a little noise."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    rng = np.random.default_rng(0)
    tones = np.concatenate([np.sign(np.sin(2 * np.pi * f * t)) for f in hertz])
    return (0.1 * tones + 0.001 * rng.standard_normal(len(tones))).astype(np.float32)


def test_boundaries_of_known_sounds():
    """Spoken twice as slowly alone, with silence around: the boundaries in speech are found."""
    quiet = np.zeros(3200, np.float32)
    speech = np.concatenate([quiet, sound(300), sound(900, seconds=0.2), sound(2000), quiet])
    alone = [np.concatenate([quiet, sound(f, seconds=0.6)]) for f in (300, 900, 2000)]
    times = letters.word_times(speech, alone)
    expected = [(0.2, 0.5), (0.5, 0.7), (0.7, 1.0)]
    assert np.abs(times - expected).max() <= 0.03


def test_what_is_not_spoken_has_no_time():
    quiet = np.zeros(3200, np.float32)
    speech = sound(300, 900)
    times = letters.word_times(speech, [quiet, sound(300), sound(900)])
    assert times[0, 0] == times[0, 1] == 0 and (times[1:, 1] > times[1:, 0]).all()
    alone = {"a": quiet, "b": sound(300), "c": sound(900)}
    assert [s.label for s in letters.segments("a b c", speech, alone)] == ["b", "b", "c", "c"]
    assert letters.segments("a b c", quiet, alone) == []
    assert letters.segments("", speech, {}) == letters.segments("...", speech, {}) == []
