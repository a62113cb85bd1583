"""What manifests, datasets and published tables say of utterances: columns and gender."""

import json

import numpy as np
import pytest

from speechsim_jax.audio.columns import columns_of, gender_of
from speechsim_jax.audio.corpus_layouts import recognise
from speechsim_jax.audio.label_sources import label_tracks
from speechsim_jax.audio.open_corpus import open_corpus
from tests.support import published_corpora
from tests.support.sound_files import manifest, noise, write


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.wav", noise(16_000))
    return tmp_path


def columns(audio) -> list[dict[str, str]]:
    return [dict(source.columns) for source in open_corpus(audio).sources]


@pytest.mark.parametrize("separator", [";", ",", "|", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_tables(folder, separator, encoding):
    lines = (
        ("path", "duration", "Sex", "Native Language", "text", "age", "path"),
        ("a.wav", "1.0", "F", " Deutsch ", "ja", "31", ""),
        ("b.wav", "1.0", "unknown", "n/a", "nein", "", ""),
    )
    path = folder / "m.csv"
    path.write_bytes("\n".join(map(separator.join, lines)).encode(encoding))
    assert columns(path) == [
        {"Native Language": "Deutsch", "age": "31", "gender": "female"},
        {},
    ]


def test_a_table_with_odd_columns(folder):
    path = manifest(
        folder / "m.tsv",
        "\tpath\taccent\taccent\tstart_sample_index\tlong\tname",
        f"0\ta.wav\tx\ty\t7\t{'z' * 201}\tn",
        "1\tb.wav\t\ty",
    )
    assert columns(path) == [{"accent": "x"}, {"accent": "y"}]


def test_of_two_genders_the_one_that_is_filled_counts(folder):
    path = manifest(folder / "m.tsv", "path\tsex\tgender", "a.wav\tm\t", "b.wav\tm\tnon-binary")
    assert [row["gender"] for row in columns(path)] == ["male", "non-binary"]


def test_json_lines(folder):
    rows = [
        {"audio_filepath": "a.wav", "duration": 1.0, "emotion": "sad", "age": 7, "native": True,
         "tags": ["x"], "more": {"y": 1}, "score": 0.5, "nothing": None},
        {"audio_filepath": "b.wav", "duration": 1.0, "emotion": "", "gender": "man"},
    ]  # fmt: skip
    path = manifest(folder / "m.jsonl", *map(json.dumps, rows))
    assert columns(path) == [
        {"emotion": "sad", "age": "7", "native": "true", "score": "0.5"},
        {"gender": "male"},
    ]


def test_lhotse(folder):
    cut = {
        "id": "c", "start": 0, "duration": 1.0,
        "recording": {"sources": [{"source": "a.wav"}]},
        "supervisions": [
            {"text": "x", "speaker": "s", "gender": "F", "language": "English",
             "custom": {"accent": "us", "spans": [1, 2]}},
        ],
    }  # fmt: skip
    path = manifest(folder / "cuts.jsonl", json.dumps(cut))
    assert columns(path) == [{"accent": "us", "language": "English", "gender": "female"}]


def test_kaldi(folder):
    manifest(folder / "wav.scp", "u1 a.wav", "u2 b.wav", "u3 b.wav")
    manifest(folder / "utt2spk", "u1 s1", "u2 s2", "u3 s3")
    manifest(folder / "spk2gender", "s1 f", "s2 m")
    assert columns(folder) == [{"gender": "female"}, {"gender": "male"}, {}]
    manifest(folder / "segments", "u1 u1 0 0.5", "u2 u2 0.5 1.0")
    assert columns(folder) == [{"gender": "female"}, {"gender": "male"}]


def test_hugging_face_metadata(folder):
    manifest(folder / "metadata.csv", "file_name,emotion", "a.wav,sad", "b.wav,glad")
    assert columns(folder) == [{"emotion": "sad"}, {"emotion": "glad"}]


def test_columns_are_a_mapping():
    row = columns_of({"b": "x", " a ": 1, "empty": "", "list": [1], "array": np.zeros(2)})
    assert dict(row) == {"b": "x", "a": "1"}
    assert row == {"a": "1", "b": "x"}
    assert (len(row), "b" in row, row.get("c", "none")) == (2, True, "none")
    with pytest.raises(KeyError):
        row["c"]


def test_texts_that_repeat_are_stored_once():
    rows = [columns_of({"accent": f"from {k % 2}" + chr(233)}) for k in range(4)]
    assert rows[0]["accent"] is rows[2]["accent"]
    assert rows[0]._names is rows[1]._names


@pytest.mark.parametrize(
    ("text", "gender"),
    [("F", "female"), ("m", "male"), (" Male ", "male"), ("male_masculine", "male"),
     ("other", "other"), ("", ""), ("NaN", ""), (None, ""), (float("nan"), ""), ("unknown", "")],
)  # fmt: skip
def test_gender_in_one_spelling(text, gender):
    assert gender_of(text) == gender


PUBLISHED = {
    "LibriSpeech": {"84": "female"},
    "LibriTTS": {"84": "female"},
    "TIMIT": {"FCJF0": "female", "MSLB0": "male"},
    "VCTK": {"p225": "female"},
    "VoxCeleb": {"id10001": "male"},
    "MLS": {"1054": "male"},
    "AISHELL-1": {"S0002": "female"},
}


@pytest.mark.parametrize(
    "published", [one for one in published_corpora.ALL if one.layout in PUBLISHED],
    ids=lambda one: one.layout,
)  # fmt: skip
def test_gender_as_published(tmp_path, published):
    corpus = open_corpus(published.write(tmp_path))
    (track,) = label_tracks(["gender"], corpus)
    got = {
        source.speaker: track.classes[track.numbers[source.id]]
        for source in corpus.sources
        if track.numbers[source.id] >= 0
    }
    assert got == PUBLISHED[published.layout]


@pytest.mark.parametrize(
    ("file", "table", "expected"),
    [
        ("VCTK/wav48/p225/p225_001.wav", ("VCTK/speaker-info.txt", "225  23  F    UK"), "female"),
        ("Actor_02/03-01-06-01-02-01-02.wav", None, "female"),
        ("Actor_01/03-01-06-01-02-01-01.wav", None, "male"),
        ("c/AudioWAV/1001_DFA_ANG_XX.wav",
         ("c/VideoDemographics.csv", "ActorID,Age,Sex,Race\r\n1001,51,Male,Caucasian"), "male"),
        ("v/aac/id00012/21Uxsk56VDQ/00001.wav",
         ("v/vox2_meta.csv", "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,m ,dev "),
         "male"),
        ("84-121123-0000.flac", ("SPEAKERS.TXT", "84  | F | dev-clean  | 8.02  | C"), "female"),
        ("84-121123-0000.flac", ("SPEAKERS.TXT", "85  | F | dev-clean"), ""),
        ("84-121123-0000.flac", None, ""),
    ],
)  # fmt: skip
def test_gender_by_other_tables(tmp_path, file, table, expected):
    if table:
        (tmp_path / table[0]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / table[0]).write_text(table[1])
    known = recognise(tmp_path / file)
    assert known.layout is not None
    assert known.layout.gender is not None
    assert known.layout.gender(tmp_path / file, known.speaker) == expected


def test_common_voice_by_its_tables(tmp_path):
    write(tmp_path / "de/clips/common_voice_de_1.mp3", noise(16_000), format="WAV")
    manifest(
        tmp_path / "de/train.tsv",
        "client_id\tpath\tsentence\tage\tgender\taccents",
        "c9\tcommon_voice_de_1.mp3\tJa\ttwenties\tfemale_feminine\t",
    )
    assert columns(tmp_path) == [{"age": "twenties", "gender": "female"}]
