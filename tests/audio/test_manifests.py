"""Manifests as people have them."""

import csv
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


def parts(corpus):
    return [(s.offset_seconds, s.seconds) if s.part else None for s in corpus.sources]


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("path,onset,offset", "a.wav,0.2,0.9", (0.2, 0.7)),
        ("filename,onset,duration", "a.wav,0.2,0.5", (0.2, 0.5)),
        ("filename,Onset (s),Offset (s)", "a.wav,0.2,0.9", (0.2, 0.7)),
        ("path,onset_ms,offset_ms", "a.wav,200,900", (0.2, 0.7)),
        ("path,offset,duration", "a.wav,0.2,0.5", (0.2, 0.5)),
        ("path,start_ms,end_ms", "a.wav,250,750", (0.25, 0.5)),
        ("path,start_s,end_sec", "a.wav,0.25,0.75", (0.25, 0.5)),
        ("path,begin_time,duration[ms]", "a.wav,0.25,500", (0.25, 0.5)),
        ("path,end", "a.wav,0.5", (0, 0.5)),
        ("path,start,end", "a.wav,,0.5", (0, 0.5)),
        ("path,start,end,duration", "a.wav,0.25,0.75,0.5", (0.25, 0.5)),
        ("path,start,end,duration", "a.wav,0.25,0.75,1.0", (0.25, 0.5)),
        ("path,start,end,duration", "a.wav,0.25,0.75,", (0.25, 0.5)),
        ("path,offset,duration", "a.wav,,0.5", (0, 0.5)),
        ("path,offset,duration", "a.wav,nan,0.5", (0, 0.5)),
        ("path,offset,duration", "a.wav,,0.95", None),
        ("path,offset,duration", "a.wav,0.25,-1", (0.25, None)),
        ("path,start,end", "a.wav,0.25,-1", (0.25, None)),
        ("path,duration", "a.wav,0.95", None),
        ("path,duration", "a.wav,0.5", None),
        ("path,offset,start,end", "a.wav,,0.25,0.75", (0.25, 0.5)),
        ("path,offset,start,end", "a.wav,0.25,0.25,0.75", (0.25, 0.5)),
    ],
)
def test_times_by_the_names_of_their_columns(folder, header, line, expected):
    """Which part is read, in a table and in JSON lines; 1 s of audio."""
    corpus = open_corpus(manifest(folder / "m.csv", header, line))
    (found,) = parts(corpus)
    assert found == (expected and pytest.approx(expected))
    samples = read(corpus.sources[0]).samples
    whole, _ = soundfile.read(folder / "clips/a.wav", dtype="float32")
    first, seconds = expected or (0, None)
    first = round(first * 16_000)
    last = None if seconds is None else first + round(seconds * 16_000)
    np.testing.assert_array_equal(samples, whole[first:last])
    if header != "path,duration":
        record = dict(zip(header.split(","), line.split(",")))
        corpus = open_corpus(manifest(folder / "m.jsonl", json.dumps(record)))
        assert parts(corpus) == [expected and pytest.approx(expected)]


def test_a_duration_without_an_offset_counts_from_the_start(folder):
    """As NeMo reads it; a duration of the whole file, also rounded, leaves it whole."""
    lines = [
        {"audio_filepath": "clips/a.wav", "duration": 0.5},
        {"audio_filepath": "clips/b.wav", "offset": None, "duration": 1.04},
        {"id": "p", "audio_filepath": "clips/b.wav", "offset": 0.5, "duration": 0.25},
    ]
    corpus = open_corpus(manifest(folder / "m.jsonl", *map(json.dumps, lines)))
    assert parts(corpus) == [(0, 0.5), None, (0.5, 0.25)]
    assert [len(read(source).samples) for source in corpus.sources] == [8000, 16_000, 4000]
    # The file need not be there.
    gone = open_corpus(manifest(folder / "m.jsonl", json.dumps({"path": "x.wav", "duration": 1})))
    assert parts(gone) == [None]


@pytest.mark.parametrize(
    ("header", "line", "reason"),
    [
        ("path,start,end,duration", "a.wav,0.5,0.9,0.2", "contradict each other"),
        ("path,start,stop,duration", "a.wav,8000,12000,1.0", "contradict each other"),
        ("path,offset,start,end", "a.wav,0.5,0.1,0.3", "which is its start is not clear"),
        ("path,end,stop", "a.wav,0.5,0.9", "which is its end is not clear"),
        ("path,start,begin_ms", "a.wav,0.5,100", "which is its start is not clear"),
    ],
)
def test_times_that_contradict_each_other_skip_their_line(folder, header, line, reason):
    table = manifest(folder / "m.csv", f"id,{header}", f"1,{line}", "2,b.wav")
    bad, good = open_corpus(table).sources
    with pytest.raises(AudioError, match=reason):
        read(bad)
    assert not good.unusable


def test_columns_that_look_like_times_are_not_ignored_in_silence(folder, caplog):
    """Known ones are read, others named in one line; times in samples alone are refused."""
    lines = [{"path": "clips/a.wav", "start_frac": 0.1, "onset_x": k, "id": k} for k in range(3)]
    open_corpus(manifest(folder / "m.jsonl", *map(json.dumps, lines)))
    (record,) = [r for r in caplog.records if "look like times" in r.message]
    assert record.message.endswith(": start_frac, onset_x")
    caplog.clear()
    open_corpus(manifest(folder / "m.csv", "path,start,sentence", "a.wav,0.5,x"))
    assert not [r for r in caplog.records if "look like times" in r.message]
    with pytest.raises(UserError, match="start_samples, end_samples: times in samples"):
        open_corpus(manifest(folder / "m.csv", "path,start_samples,end_samples", "a.wav,0,8000"))


@pytest.mark.parametrize(("offset", "duration"), [(0.5, 0.7), (0.0, 1.5)])
def test_a_part_that_ends_after_the_file_is_counted(folder, offset, duration):
    """What is there is read; what is rounded is no note."""
    table = manifest(
        folder / "m.csv", "path,offset,duration", f"a.wav,{offset},{duration}", "b.wav,0.5,0.55"
    )
    late, rounded = map(read, open_corpus(table).sources)
    assert len(late.samples) == 16_000 * (1 - offset) and len(rounded.samples) == 8000
    assert late.notes == ("parts that end after the file's end",) and rounded.notes == ()


def test_tabs_with_quoted_line_ends(folder):
    """As pandas writes them."""
    table = folder / "m.tsv"
    rows = [["clips/a.wav", 'one\ntwo\t"three"', "s"], ["clips/b.wav", "four", "t"]]
    with table.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["path", "text", "speaker"], *rows])
    assert spoken(open_corpus(table)) == [(row[0], row[2], row[1]) for row in rows]


@pytest.mark.parametrize(
    "texts",
    [
        ('"lone quote', "plain"),
        ('"Hello" he said', '"Bye" she said'),
        ('"opened in one', 'closed in the other"'),
        ('"opened', 'and again "quoted'),
        ("a\u2028b", "c\x85d"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_tabs_with_quotes_that_delimit_nothing(folder, texts, last):
    """Quotes within transcripts, and line separators that are none of files."""
    names = ("clips/a.wav", "clips/b.wav")
    header, rows = ("path", "text"), list(zip(names, texts))
    if not last:
        header, rows = ("text", "path"), list(zip(texts, names))
    table = manifest(folder / "m.tsv", *("\t".join(row) for row in (header, *rows)))
    assert [(s.id, s.transcript) for s in open_corpus(table).sources] == list(zip(names, texts))


def test_a_separator_of_lines_within_json(folder):
    record = {"path": "clips/a.wav", "text": "a\u2028b"}
    lines = [json.dumps(record | {"id": k}, ensure_ascii=False) for k in "12"]
    corpus = open_corpus(manifest(folder / "m.jsonl", *lines))
    assert [source.transcript for source in corpus.sources] == ["a\u2028b"] * 2


def test_several_columns_of_one_meaning(folder, caplog):
    """The first that is filled, in each row; those that differ are named once."""
    table = manifest(
        folder / "m.csv",
        "Speaker,speaker,wav,path",
        ",ann,clips/a.wav,",
        "nan,eve,clips/b.wav,clips/b.wav",
    )
    assert spoken(open_corpus(table)) == [("clips/a.wav", "ann", ""), ("clips/b.wav", "eve", "")]
    assert not [r for r in caplog.records if "differ" in r.message]
    rows = [f"{k},bob,ann,clips/a.wav,x.wav" for k in range(3)]
    table = manifest(folder / "m.csv", "id,Speaker,speaker,wav,path", *rows)
    corpus = open_corpus(table)
    assert {(source.speaker, str(source.path)) for source in corpus.sources} == {
        ("bob", str(folder / "x.wav"))
    }
    found = [r.message for r in caplog.records if "differ" in r.message]
    assert [text.partition(": columns ")[2] for text in found] == [
        "Speaker and speaker differ; Speaker is used",
        "path and wav differ; path is used",
    ]


@pytest.mark.parametrize("name", ["nan", "None", "NULL", "n/a", "unknown", "<NA>", " "])
def test_speakers_that_are_written_as_unknown(folder, name):
    """They are none, in tables, JSON lines and Kaldi's folders."""
    table = manifest(folder / "m.csv", "path,speaker", f"clips/a.wav,{name}", "clips/b.wav,nana")
    lines = json.dumps({"path": "clips/a.wav", "speaker": name})
    other = manifest(folder / "m.jsonl", lines)
    (folder / "data").mkdir()
    manifest(folder / "data/wav.scp", f"r1 {folder}/clips/a.wav")
    manifest(folder / "data/utt2spk", f"r1 {name}")
    assert [source.speaker for source in open_corpus(table).sources] == ["", "nana"]
    for audio in (other, folder / "data"):
        assert [source.speaker for source in open_corpus(audio).sources] == [""]


def test_a_speaker_of_json_that_is_no_number(folder):
    table = manifest(folder / "m.jsonl", '{"path": "clips/a.wav", "speaker": NaN, "duration": NaN}')
    (source,) = open_corpus(table).sources
    assert source.speaker == "" and source.seconds is None


def test_kaldi_segments_to_the_end(folder):
    data = folder / "data"
    data.mkdir()
    manifest(data / "wav.scp", f"r1 {folder}/clips/a.wav")
    manifest(data / "segments", "u1 r1 0.25 -1", "u2 r1 0 -1.0", "u3 r1 0 0.5")
    corpus = open_corpus(data)
    assert [len(read(s).samples) for s in corpus.sources] == [12_000, 16_000, 8000]
    manifest(data / "segments", "u1 r1 -1 0.5")
    with pytest.raises(UserError, match="start='-1'"):
        open_corpus(data)


def test_paths_with_backslashes(folder):
    """Tried with slashes; what is not there says why."""
    table = manifest(folder / "m.csv", "path", r"clips\a.wav", r"clips\b.wav", r"C:\x\c.wav")
    listed = manifest(folder / "m.txt", r"clips\a.wav", r"clips\b.wav", r"C:\x\c.wav")
    for audio in (table, listed):
        corpus = open_corpus(audio)
        assert ids(corpus)[:2] == ["clips/a.wav", "clips/b.wav"]
        assert [len(read(source).samples) for source in corpus.sources[:2]] == [16_000] * 2
        with pytest.raises(AudioError, match="is written with backslashes"):
            read(corpus.sources[2])


@pytest.mark.parametrize("root", ["clips", ".", "./clips", "..\\{}\\clips"])
def test_fairseq_from_a_relative_folder(folder, root, monkeypatch):
    """Of the manifest, or the working folder."""
    root = root.format(folder.name)
    name = "a.wav" if root.endswith("clips") else "clips/a.wav"
    (source,) = open_corpus(manifest(folder / "t.tsv", root, f"{name}\t16000")).sources
    assert len(read(source).samples) == 16_000
    (folder / "lists").mkdir()
    monkeypatch.chdir(folder)
    if root == "clips":
        table = manifest(folder / "lists/t.tsv", root, f"{name}\t16000")
        assert len(read(open_corpus(table).sources[0]).samples) == 16_000


@pytest.mark.parametrize("root", [r"D:\data\clips", "gone"])
def test_fairseq_from_a_folder_that_is_not_there(folder, root):
    with pytest.raises(UserError, match=r"line 1: no folder .* on this machine"):
        open_corpus(manifest(folder / "t.tsv", root, "a.wav\t16000"))
