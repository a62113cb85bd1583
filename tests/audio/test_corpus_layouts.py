"""Who speaks in a file of a public corpus, by its path; where no layout matches, nobody knows."""

from pathlib import Path, PurePosixPath

import pytest

from speechsim_jax.audio.corpus_layouts import LAYOUTS, recognise
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.errors import UserError
from tests.support.sound_files import ids, manifest, noise, write

SPEAKERS = {
    "LibriSpeech": "84", "LibriSpeech files": "84", "LibriTTS": "84", "MLS": "1054",
    "TIMIT": "FCJF0", "VCTK": "p225", "VoxCeleb": "id10001", "Common Voice": "",
    "AISHELL-1": "S0002", "AISHELL-3": "SSB0005", "CMU ARCTIC": "bdl", "L2-ARCTIC": "ABA",
    "LJSpeech": "LJ", "TED-LIUM": "AlGore", "FSDD": "jackson", "Speech Commands": "004ae714",
    "JVS": "jvs001", "RAVDESS": "01", "CREMA-D": "1001", "Buckeye": "s01", "THCHS-30": "A11",
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_knows_its_own_example_and_no_other(layout):
    found = recognise(PurePosixPath("/data/corpora") / layout.example)
    assert found.layout is layout and found.speaker == SPEAKERS[layout.name]
    assert recognise(PurePosixPath("x") / layout.example, only=layout.name) == found
    others = [other.name for other in LAYOUTS if other.match(PurePosixPath(layout.example))]
    assert others[0] == layout.name
    # "LibriSpeech files" is what is left of LibriSpeech without its folders.
    assert len(others) == 1 or others == ["LibriSpeech", "LibriSpeech files"]


@pytest.mark.parametrize(
    ("path", "layout", "speaker"),
    [
        ("TEST/DR8/MSLB0/SI1193.WAV.wav", "TIMIT", "MSLB0"),  # converted from NIST
        ("timit/train/dr2/faem0/sx42.wav", "TIMIT", "faem0"),
        ("wav48/p376/p376_295.raw.wav", "VCTK", "p376"),
        ("wav48_silence_trimmed/s5/s5_001_mic2.flac", "VCTK", "s5"),
        ("train-other-500/20/205/20_205_000001_000000.wav", "LibriTTS", "20"),
        ("mls_polish/train/audio/6892/10049/6892_10049_000000.flac", "MLS", "6892"),
        ("aac/id00012/21Uxsk56VDQ/00001.wav", "VoxCeleb", "id00012"),
        ("tedlium/test/sph/AimeeMullins_2009P.sph", "TED-LIUM", "AimeeMullins"),
    ],
)
def test_variants(path, layout, speaker):
    found = recognise(Path("/mnt") / path)
    assert found.layout is not None
    assert (found.layout.name, found.speaker) == (layout, speaker)


@pytest.mark.parametrize(
    "path",
    [
        "TRAIN/a.wav", "dev-clean/x/y.flac", "speaker1/001.wav", "wav/0001.wav", "p225/intro.wav",
        "2023-11-0001.wav", "84/121123/85-121123-0000.flac", "id10001/short/00001.wav",
    ],
)  # fmt: skip
def test_a_folder_is_no_evidence_of_the_speaker(path):
    found = recognise(Path("/data") / path)
    assert found.speaker == ("85" if "85-" in path else "")


def test_corpora_may_be_mixed(tmp_path, caplog):
    names = [
        "timit/TRAIN/DR1/FCJF0/SA1.WAV", "timit/TRAIN/DR1/FCJF0/SA2.WAV",
        "libri/84/121123/84-121123-0000.flac", "mine/a.wav",
    ]  # fmt: skip
    for name in names:
        write(tmp_path / name, noise(800), format="WAV")
    with caplog.at_level("INFO"):
        corpus = open_corpus(tmp_path)
    speakers = {source.id: source.speaker for source in corpus.sources}
    assert speakers == dict(zip(names, ["FCJF0", "FCJF0", "84", ""]))
    assert corpus.facts["layouts"] == {"TIMIT": 2, "LibriSpeech": 1, "unknown": 1}
    assert (corpus.facts["speakers"], corpus.facts["speaker_unknown"]) == (2, 1)
    assert "2 files of TIMIT" in caplog.text


def test_speakers_as_one_says(tmp_path):
    for name in ("ann/x-1.wav", "ann/y-2.wav", "bob/x-1.wav"):
        write(tmp_path / name, noise(800))

    def speakers(**how):
        return [source.speaker for source in open_corpus(tmp_path, **how).sources]

    assert speakers() == ["", "", ""]
    assert speakers(speaker_from=r"^([^/]+)/") == ["ann", "ann", "bob"]
    assert speakers(speaker_from=r"(?P<take>\w)-(?P<speaker>\d)") == ["1", "2", "1"]
    assert speakers(speaker_from="ann/(.)") == ["x", "y", ""]
    for how, message in (
        ({"speaker_from": "("}, "no regular expression"),
        ({"speaker_from": "ann"}, "expected a group"),
        ({"layout": "TIMITT"}, r"no layout 'TIMITT'; did you mean 'TIMIT'\?"),
    ):
        with pytest.raises(UserError, match=message):
            speakers(**how)


def test_a_named_layout_is_the_only_one(tmp_path):
    write(tmp_path / "DR1/FCJF0/SA1.WAV", noise(800), format="WAV")
    write(tmp_path / "84-121123-0000.flac", noise(800))
    corpus = open_corpus(tmp_path, layout="timit")
    assert [source.speaker for source in corpus.sources] == ["", "FCJF0"]


def test_utterances_that_are_there_twice(tmp_path, caplog):
    for name in ("SA1.WAV", "SA1.WAV.wav", "p1/p1_001_mic1.flac", "p1/p1_001_mic2.flac", "b.wav"):
        write(tmp_path / name, noise(800), format="WAV")
    corpus = open_corpus(tmp_path)
    assert corpus.facts["repeated"]["utterances"] == 2
    assert "2 utterances may be there twice, for example SA1.WAV and SA1.WAV.wav" in caplog.text
    corpus = open_corpus(tmp_path, exclude=["*_mic2.flac", "*.WAV.wav"])
    assert ids(corpus) == ["SA1.WAV", "b.wav", "p1/p1_001_mic1.flac"]
    assert "repeated" not in corpus.facts
    assert ids(open_corpus(tmp_path, glob=["p1/*", "b*"])) == [
        "b.wav", "p1/p1_001_mic1.flac", "p1/p1_001_mic2.flac",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"nothing is left .*an id is for example 'SA1\.WAV'"):
        open_corpus(tmp_path, glob=["q*"])


def test_formats_that_cannot_be_read_are_counted(tmp_path, caplog):
    for name in ("a.wav", "b.m4a", "c.m4a", "d/e.AAC", "notes.txt", "f.mka"):
        write(tmp_path / name, noise(800), format="WAV")
    assert open_corpus(tmp_path).facts["passed_over"] == {".m4a": 2, ".aac": 1, ".mka": 1}
    assert "passed over 2 .m4a, 1 .aac, 1 .mka" in caplog.text


def test_what_is_said_is_next_to_the_audio(tmp_path):
    timit = tmp_path / "DR1/FCJF0"
    write(timit / "SA1.WAV", noise(800), format="WAV")
    manifest(timit / "SA1.TXT", "0 46797 She had your dark suit.")
    libri = tmp_path / "dev/84/121123"
    write(libri / "84_121123_000007_000001.wav", noise(800))
    manifest(libri / "84_121123_000007_000001.normalized.txt", "Maximilian.")
    write(tmp_path / "LJ/wavs/LJ001-0001.wav", noise(800))
    manifest(tmp_path / "LJ/metadata.csv", "LJ001-0001|Printing, 1|Printing, one")
    write(tmp_path / "vctk/wav48/p225/p225_001_mic1.flac", noise(800))
    (tmp_path / "vctk/txt/p225").mkdir(parents=True)
    manifest(tmp_path / "vctk/txt/p225/p225_001.txt", "Please call Stella.")
    texts = {Path(s.id).name: s.transcript for s in open_corpus(tmp_path).sources}
    assert texts == {
        "SA1.WAV": "She had your dark suit.",
        "84_121123_000007_000001.wav": "Maximilian.",
        "LJ001-0001.wav": "Printing, one",
        "p225_001_mic1.flac": "Please call Stella.",
    }
    assert not any(s.transcript for s in open_corpus(tmp_path, transcripts=False).sources)
