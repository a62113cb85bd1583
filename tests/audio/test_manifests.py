"""Manifests as people have them."""

import json

import numpy as np
import pytest
import soundfile

from speechsim_jax.audio.corpus import AudioError, read
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.errors import UserError
from tests.support.sound_files import ids, manifest, noise, write


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "clips" / f"{name}.wav", noise(16_000))
    return tmp_path


def spoken(corpus):
    return [(s.id, s.speaker, s.transcript) for s in corpus.sources]


def test_common_voice(folder):
    """Paths without their folder; who speaks is client_id."""
    table = manifest(
        folder / "validated.tsv",
        "client_id\tpath\tsentence\tup_votes",
        'c1\ta.wav\tHallo "du"\t2',
        "c2\tb.wav\tGuten Tag\t3",
    )
    corpus = open_corpus(table)
    assert spoken(corpus) == [("a.wav", "c1", 'Hallo "du"'), ("b.wav", "c2", "Guten Tag")]
    assert len(read(corpus.sources[0]).samples) == 16_000


def test_common_voice_as_a_folder(tmp_path):
    """The speakers of its clips are in its tables."""
    write(tmp_path / "de/clips/common_voice_de_1.mp3", noise(16_000), format="WAV")
    manifest(
        tmp_path / "de/train.tsv", "client_id\tpath\tsentence", "c9\tcommon_voice_de_1.mp3\tJa"
    )
    assert spoken(open_corpus(tmp_path)) == [("de/clips/common_voice_de_1.mp3", "c9", "Ja")]


@pytest.mark.parametrize("separator", [";", ",", "|", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_separators_and_encodings(folder, separator, encoding):
    """As spreadsheets save them, whatever the suffix says."""
    lines = ["Path;Speaker;Text", "clips/a.wav;Jörg;grün", "clips/b.wav;Ann;", ";;"]
    text = "\r\n".join(lines).replace(";", separator)
    (folder / "m.csv").write_bytes(text.encode(encoding))
    assert spoken(open_corpus(folder / "m.csv")) == [
        ("clips/a.wav", "Jörg", "grün"), ("clips/b.wav", "Ann", ""),
    ]  # fmt: skip


def test_speechbrain(folder):
    table = manifest(
        folder / "train.csv",
        "ID,duration,wav,spk_id,wrd",
        'u1,1.0,clips/a.wav,s1,"HELLO, YOU"',
        "u2,1.0,clips/b.wav,s2,BYE",
    )
    corpus = open_corpus(table)
    assert spoken(corpus) == [("u1", "s1", "HELLO, YOU"), ("u2", "s2", "BYE")]
    assert [source.seconds for source in corpus.sources] == [1.0, 1.0]


def test_fairseq(folder):
    table = manifest(folder / "train.tsv", str(folder / "clips"), "a.wav\t16000", "b.wav\t16000")
    corpus = open_corpus(table)
    assert ids(corpus) == ["a.wav", "b.wav"]
    assert len(read(corpus.sources[1]).samples) == 16_000


def test_nemo_and_segments(folder):
    """Two stretches of one file; a duration that is rounded is the whole file."""
    lines = [
        {"audio_filepath": "clips/a.wav", "offset": 0.25, "duration": 0.5, "text": "one"},
        {"audio_filepath": "clips/a.wav", "offset": 0.75, "duration": 9.0, "text": "two"},
        {"audio_filepath": "clips/b.wav", "offset": 0.0, "duration": 0.99, "speaker": "s"},
        {"audio_filepath": "clips/b.wav", "offset": 7.5, "duration": 1.0},
    ]
    table = manifest(folder / "m.json", *map(json.dumps, lines))
    sources = open_corpus(table).sources
    assert [s.id for s in sources] == [
        "clips/a.wav@0.25", "clips/a.wav@0.75", "clips/b.wav", "clips/b.wav@7.5",
    ]  # fmt: skip
    whole, _ = soundfile.read(folder / "clips/a.wav", dtype="float32")
    np.testing.assert_array_equal(read(sources[0]).samples, whole[4000:12000])
    np.testing.assert_array_equal(read(sources[1]).samples, whole[12000:])
    assert len(read(sources[2]).samples) == 16_000 and sources[2].speaker == "s"
    with pytest.raises(AudioError, match=r"begins at 7\.5 s of a file of 1 s"):
        read(sources[3])
    other = open_corpus(manifest(folder / "n.jsonl", json.dumps(lines[0] | {"offset": 0.3})))
    first = open_corpus(manifest(folder / "n.jsonl", json.dumps(lines[0])))
    assert other.fingerprint() != first.fingerprint()


def test_lhotse(folder):
    cut = {
        "id": "cut-1", "start": 0.5, "duration": 0.25, "channel": 0,
        "supervisions": [{"text": "hello", "speaker": "spk7"}],
        "recording": {"sources": [{"type": "file", "channels": [0], "source": "clips/a.wav"}]},
    }  # fmt: skip
    corpus = open_corpus(manifest(folder / "cuts.jsonl", json.dumps(cut)))
    assert spoken(corpus) == [("cut-1", "spk7", "hello")]
    assert len(read(corpus.sources[0]).samples) == 4000
    cut["supervisions"] = [{"text": 12}, {"text": "hi"}, {}]
    corpus = open_corpus(manifest(folder / "cuts.jsonl", json.dumps(cut)))
    assert spoken(corpus) == [("cut-1", "", "12 hi")]


def test_kaldi(folder):
    data = folder / "data"
    data.mkdir()
    manifest(data / "wav.scp", f"r1 {folder}/clips/a.wav", "r2 sox x.sph -t wav - |")
    manifest(data / "utt2spk", "r1 ann", "r2 bob")
    manifest(data / "text", "r1 GOOD DAY")
    corpus = open_corpus(data)
    assert spoken(corpus) == [("r1", "ann", "GOOD DAY"), ("r2", "bob", "")]
    with pytest.raises(AudioError, match="is a command, which is not run"):
        read(corpus.sources[1])
    manifest(data / "segments", "u1 r1 0.0 0.5", "u2 r1 0.5 1.0")
    manifest(data / "utt2spk", "u1 ann", "u2 eve")
    corpus = open_corpus(data)
    assert spoken(corpus) == [("u1", "ann", ""), ("u2", "eve", "")]
    assert [len(read(source).samples) for source in corpus.sources] == [8000, 8000]
    manifest(data / "segments", "u1 r9 0.0 0.5")
    with pytest.raises(UserError, match=r"segments line 1: expected a recording of wav\.scp"):
        open_corpus(data)


def test_hugging_face_folder(folder):
    manifest(
        folder / "metadata.csv", "file_name,transcription,speaker_id",
        "clips/a.wav,yes,s1", "clips/b.wav,no,s2",
    )  # fmt: skip
    assert spoken(open_corpus(folder)) == [
        ("clips/a.wav", "s1", "yes"),
        ("clips/b.wav", "s2", "no"),
    ]


def test_addresses_are_not_fetched(folder):
    """They are listed as unusable; the rest of the manifest is read."""
    table = manifest(
        folder / "m.tsv", "path", "clips/a.wav", "https://x.org/b.wav", "file:///etc/passwd"
    )
    sources = open_corpus(table).sources
    assert len(read(sources[0]).samples) == 16_000
    for source in sources[1:]:
        with pytest.raises(AudioError, match="is an address, which is not fetched"):
            read(source)


@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3000, "a\0b.wav", "~nobody-here/a.wav", "ä" * 200]
)
def test_a_name_that_cannot_be_is_skipped_alone(folder, name):
    """Looking it up raised, wherever it stood, and ended the run."""
    for lines in ((name, "clips/a.wav"), ("clips/a.wav", name)):
        records = [json.dumps({"path": line}) for line in lines]
        table = manifest(folder / "m.jsonl", *records)
        corpus = with_durations(open_corpus(table, channel="each"))
        assert len(corpus.fingerprint()) == 64
        good, bad = sorted(corpus.sources, key=lambda source: "clips" not in source.id)
        assert len(read(good).samples) == 16_000 and bad.seconds is None
        with pytest.raises(AudioError, match=r"is not a file|is no name of a file"):
            read(bad)
        assert bad.stamp() == [-1]


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-here/a", "x/" * 3000, "a\0b"])
def test_audio_that_cannot_be_looked_up_is_refused_in_one_line(name):
    for audio in (name, [f"{name}.wav"], f"hf:{name}/default/train"):
        with pytest.raises((UserError, AudioError)) as error:
            read(open_corpus(audio).sources[0])
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", '{"audio": ' + 99_999 * "[", "line 1: no JSON"),
        ("m.jsonl", '{"audio": "a.wav", "duration": 1' + 400 * "0" + "}", "a number of seconds"),
        ("m.jsonl", '{"recording": {"sources": 3}}', "'sources' is no list of objects"),
        ("m.jsonl", '{"recording": {}, "supervisions": ["x"]}', "'supervisions' is no list"),
        ("m.csv", "", "is empty; a manifest starts with a header"),
        ("m.csv", "name;age\na;b", "has no column 'path'"),
        ("m.csv", "path,seconds\na.wav,1,2", "line 2: more fields"),
        ("m.csv", "path,seconds\na.wav,long", "line 2: seconds='long'"),
        ("m.csv", "path,start,end\na.wav,2,1", "line 2: ends at 1 s, before it starts"),
        ("m.tsv", "/some/root\na.wav\t10\nb.wav\tx", "line 3: 'x'; expected a number of samples"),
        ("m.jsonl", '{"audio": "a.wav"}\n{"audio":', "line 2: no JSON"),
        ("m.jsonl", "[1]", "entry 1: int; expected an object"),
        ("m.jsonl", '{"text": "no file"}', "line 1: 'path' is empty"),
        ("m.jsonl", '{"audio": "a.wav", "duration": true}', "duration|seconds=True"),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_corpus(tmp_path / name)
