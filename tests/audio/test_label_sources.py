"""Labels of a corpus as tracks: alignments, speakers, genders and columns."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from speechsim_jax.audio.columns import columns_of
from speechsim_jax.audio.corpus import Corpus, Source
from speechsim_jax.audio.label_sources import label_tracks, segments_of
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.audio.tracks import Piece, Track
from speechsim_jax.errors import UserError
from tests.support.published_corpora import TIMIT
from tests.support.sound_files import manifest, noise, write

RATE = 16_000
TABLE = """path\ttier\tstart\tend\tlabel
a.wav\tphone\t0\t0.5\tSIL
a.wav\tphone\t0.5\t0.9\tAA
a.wav\tphone\t1.0\t2.0\tB
b.wav\tphone\t0\t0.3\tAA
b.wav\tphone\t0.3\t0.5\tC
b.wav\tphone\t0.5\t0.5\tnever
a.wav\tword\t0.5\t2.0\tab
b.wav\tword\t0.0\t0.3\ta
"""


@pytest.fixture
def corpus() -> Corpus:
    """Three utterances; the last has no alignment."""
    arrays = {"a.wav": noise(2 * RATE), "b.wav": noise(RATE // 2), "c.wav": noise(RATE)}
    return open_corpus(arrays)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "ali.tsv"
    path.write_text(TABLE)
    return path


def with_columns(*rows: dict, speakers=(), seconds=()) -> Corpus:
    """Utterances u0, u1, ... with columns."""
    sources = [
        Source(
            f"u{k}",
            seconds=seconds[k] if seconds else None,
            speaker=speakers[k] if speakers else "",
            columns=columns_of(row),
        )
        for k, row in enumerate(rows)
    ]
    return Corpus("rows", tuple(sources))


def rows(track: Track, utterance: str, centres, start_seconds: float = 0.0) -> list[str | None]:
    """The labels of frames; None for none."""
    piece = Piece(utterance, start_seconds, noise(400))
    numbers = track.rows(piece, np.asarray(centres, float))
    assert numbers.dtype == np.int32
    return [track.classes[k] if k >= 0 else None for k in numbers]


def test_segments_by_centre(corpus, table):
    (track,) = label_tracks([f"phone:{table}"], corpus)
    assert isinstance(track, Track)
    # By time in all: B 1 s, AA 0.7 s, SIL 0.5 s, C 0.2 s; what has no length is no class.
    assert (track.name, track.classes) == ("phone", ("B", "AA", "SIL", "C"))
    assert track.width == 4
    assert rows(track, "a.wav", [0.0, 0.4999, 0.5, 0.89, 0.9, 0.95, 1.0, 1.999, 2.0]) == [
        "SIL", "SIL", "AA", "AA", None, None, "B", "B", None,
    ]  # fmt: skip
    assert rows(track, "b.wav", [0.1, 0.4]) == ["AA", "C"]
    assert rows(track, "c.wav", [0.1, 0.4]) == [None, None]
    assert rows(track, "a.wav", []) == []


def test_pieces_continue_the_utterance(corpus, table):
    (track,) = label_tracks([f"phone:{table}"], corpus)
    centres = np.arange(100) * 0.02 + 0.0125
    whole = rows(track, "a.wav", centres)
    pieces = [rows(track, "a.wav", centres[:25], start) for start in (0.0, 0.5, 1.0, 1.5)]
    assert [label for labels in pieces for label in labels] == whole


@pytest.mark.parametrize(
    ("spec", "classes"),
    [
        ("phone:{}", 4),
        ("word:{}", 2),
        ("phone:{}:word", 2),
        ("said:{}:word", 2),
        ("words:{}:word", 2),
    ],
)
def test_tiers(corpus, table, spec, classes):
    (track,) = label_tracks([spec.format(table)], corpus)
    assert (track.name, track.width) == (spec.partition(":")[0], classes)


def test_tiers_that_are_called_otherwise(corpus, tmp_path):
    for names in (("phones", "words"), ("Phones", "Words"), ("phn", "wrd")):
        path = tmp_path / "x.tsv"
        path.write_text(
            TABLE.replace("\tphone\t", f"\t{names[0]}\t").replace("\tword\t", f"\t{names[1]}\t")
        )
        tracks = label_tracks([f"phone:{path}", f"word:{path}"], corpus)
        assert [track.record["tier"] for track in tracks] == list(names)


def test_a_path_with_colons(corpus, tmp_path):
    path = tmp_path / "a:phone" / "ali.tsv"
    path.parent.mkdir()
    path.write_text(TABLE)
    assert label_tracks([f"phone:{path}"], corpus)[0].record["tier"] == "phone"
    assert label_tracks([f"phone:{path}:word"], corpus)[0].record["tier"] == "word"


def test_published_alignments(tmp_path):
    corpus = with_durations(open_corpus(TIMIT.write(tmp_path)))
    phone, word, said, gender = label_tracks(
        ["phone:auto", "word:auto", "said:auto:wrd", "gender"], corpus
    )
    assert phone.record["tier"] == "phn"
    assert word.classes == said.classes == ("the", "she", "had")
    id_ = next(source.id for source in corpus.sources if source.id.endswith("SA1.WAV"))
    assert rows(phone, id_, [0.1, 0.2, 0.4]) == ["h#", "sh", "ix"]
    assert rows(gender, id_, [0.1]) == ["female"]


def test_rare_labels_are_none(corpus, table):
    """B 1.0, AA 0.7, SIL 0.5, C 0.2 of 2.4 s."""
    for share, classes in ((0.08, 4), (0.09, 3), (0.2, 3), (0.21, 2), (0.3, 1)):
        (track,) = label_tracks([f"phone:{table}"], corpus, share)
        assert track.classes == ("B", "AA", "SIL", "C")[:classes]
    assert rows(track, "a.wav", [0.1, 0.6, 1.5]) == [None, None, "B"]
    with pytest.raises(UserError, match="share"):
        label_tracks([f"phone:{table}"], corpus, 0.5)
    for share in (-0.1, 1.0, True, "0.1", float("nan")):
        with pytest.raises((UserError, TypeError)):
            label_tracks([f"phone:{table}"], corpus, share)


def test_classes_of_equal_time_are_in_order_whatever_the_order_of_the_corpus(corpus, tmp_path):
    lines = [f"{utterance}.wav\t{start}\t{start + 0.1}\t{label}"
             for utterance in "abc" for start, label in zip((0.0, 0.1, 0.2), "zyx")]  # fmt: skip
    path = manifest(tmp_path / "ali.tsv", "path\tstart\tend\tlabel", *lines)
    backwards = dataclasses.replace(corpus, sources=corpus.sources[::-1])
    for some in (corpus, backwards):
        (track,) = label_tracks([f"phone:{path}"], some)
        assert track.classes == ("x", "y", "z")
    records = [label_tracks([f"phone:{path}"], some)[0].record for some in (corpus, backwards)]
    assert records[0] == records[1]


def test_too_many_classes(corpus, tmp_path):
    lines = [f"a.wav\t{k / 2000}\t{(k + 1) / 2000}\tw{k}" for k in range(2001)]
    path = manifest(tmp_path / "ali.tsv", "path\tstart\tend\tlabel", *lines)
    with pytest.raises(UserError, match="2,001 classes"):
        label_tracks([f"word:{path}"], corpus)
    many = with_columns(*({"name": f"n{k}"} for k in range(2001)))
    with pytest.raises(UserError, match="2,001 classes"):
        label_tracks(["name"], many)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert label_tracks([f"word:{path}"], corpus)[0].width == 2000


def test_alignments_of_other_audio(corpus, table, caplog):
    """b.wav is half a second; an alignment of it that ends at 9 s is of another file."""
    table.write_text(TABLE + "b.wav\tphone\t0.5\t9\tlate\n")
    with caplog.at_level(logging.INFO):
        (track,) = label_tracks([f"phone:{table}"], corpus)
    assert rows(track, "b.wav", [0.1]) == [None]
    assert track.classes == ("B", "SIL", "AA")
    assert any("b.wav" in record.message for record in caplog.records if record.levelno > 20)
    assert any("c.wav" in record.message for record in caplog.records if record.levelno == 20)
    with pytest.raises(UserError, match=r"b\.wav"):
        label_tracks([f"phone:{table}"], corpus, strict=True)
    assert track.record["utterances"] == 1


def test_what_is_recorded(corpus, table):
    def record(spec: str, share: float = 0.0, of: Corpus = corpus) -> str:
        (track,) = label_tracks([spec], of, share)
        assert json.loads(json.dumps(track.record)) == track.record
        return json.dumps(track.record)

    assert record(f"phone:{table}") == record(f"phone:{table}:phone")
    several = {record(f"phone:{table}"), record(f"word:{table}"), record(f"phone:{table}", 0.1)}
    table.write_text(TABLE.replace("0.9", "0.91"))
    assert len(several | {record(f"phone:{table}")}) == 4
    one = with_columns({"accent": "x"}, {"accent": "y"})
    other = with_columns({"accent": "y"}, {"accent": "x"})
    assert record("accent", of=one) != record("accent", of=other)
    backwards = dataclasses.replace(one, sources=one.sources[::-1])
    assert record("accent", of=one) == record("accent", of=backwards)


# --- of utterances ---


def test_speakers_by_time():
    corpus = with_columns(
        {}, {}, {}, {}, speakers=("b", "a", "c", ""), seconds=(1.0, 2.0, 1.0, 50.0)
    )
    (track,) = label_tracks(["speaker"], corpus)
    assert track.classes == ("a", "b", "c")
    assert rows(track, "u2", [0.1, 0.2], 30.0) == ["c", "c"]
    assert rows(track, "u3", [0.1]) == [None]
    assert label_tracks(["speaker"], corpus, 0.3)[0].classes == ("a",)


def test_without_durations_utterances_count_alike():
    corpus = with_columns({}, {}, {}, speakers=("b", "a", "b"))
    assert label_tracks(["speaker"], corpus)[0].classes == ("b", "a")


def test_columns():
    corpus = with_columns(
        {"Native Language": "de", "age": 30, "child": False},
        {"Native Language": "en", "age": 7, "child": True},
        {"Native Language": "unknown", "age": None},
    )
    exact, age, child = label_tracks(["Native Language", "age", "child"], corpus)
    assert (exact.classes, age.classes, child.classes) == (
        ("de", "en"), ("30", "7"), ("false", "true"),
    )  # fmt: skip
    assert rows(exact, "u2", [0.1]) == [None]
    (alike,) = label_tracks(["native_language"], corpus)
    assert (alike.name, alike.classes) == ("native_language", ("de", "en"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("acent", "did you mean 'accent'"),
        ("gender", "there are: speaker, accent"),
        ("phone", "phone:ALIGNMENTS"),
        ("", "expected NAME:ALIGNMENTS"),
        (":ali.tsv", "expected NAME:ALIGNMENTS"),
        ("phone:", "expected NAME:ALIGNMENTS"),
        ("phone:nowhere/ali.tsv", "nowhere/ali.tsv"),
        ("phone:nowhere/ali.tsv:word", "nowhere/ali.tsv"),
        ("phone:auto", "auto"),
    ],
)
def test_labels_that_there_are_not(spec, expected):
    corpus = with_columns({"accent": "x"}, {"accent": ""}, speakers=("s", ""))
    with pytest.raises(UserError, match=expected) as caught:
        label_tracks([spec], corpus)
    assert "\n" not in str(caught.value)


def test_other_impossible_labels(corpus, table, tmp_path):
    for specs, expected in (
        (["speaker"], "no columns"),
        ([f"phone:{table}", f"phone:{table}:word"], "phone is there twice"),
        ([f"mine:{table}"], r"tiers phone, word; choose one: mine:.*:phone"),
        ([f"phone:{table}:syllable"], "no tier 'syllable'"),
    ):
        with pytest.raises(UserError, match=expected):
            label_tracks(specs, corpus)
    other = manifest(tmp_path / "other.tsv", "path\tstart\tend\tlabel", "zzz.wav\t0\t1\tA")
    with pytest.raises(UserError, match="names no utterance"):
        label_tracks([f"phone:{other}"], corpus)


def test_gender_by_the_manifest_before_the_tables_of_the_corpus(tmp_path):
    folder = TIMIT.write(tmp_path)
    names = [name for name in TIMIT.audio if name.endswith("SA1.WAV")] + ["x.wav"]
    write(tmp_path / "x.wav", noise(8000))
    table = manifest(folder / "m.tsv", "path\tsex", f"{names[0]}\tM", f"{names[1]}\t")
    corpus = open_corpus(table)
    (track,) = label_tracks(["gender"], corpus)
    assert rows(track, names[0], [0.0]) == ["male"]
    assert rows(track, "x.wav", [0.0]) == [None]


def test_real_speech(speech):
    corpus = with_durations(open_corpus(speech / "manifest.tsv"))
    path = speech / "alignments_pocketsphinx.tsv"
    phone, word, speaker, gender, language = label_tracks(
        [f"phone:{path}", f"word:{path}", "speaker", "gender", "language"], corpus
    )
    assert (phone.width, phone.classes[0]) == (40, "SIL")
    assert word.classes[:2] == ("<sil>", "the")
    assert speaker.width == 225
    assert sorted(gender.classes) == ["female", "male"]
    assert language.width == 1


def test_tiers_are_found_in_any_case(corpus, table):
    assert label_tracks([f"Phone:{table}"], corpus)[0].record["tier"] == "phone"
    assert label_tracks([f"WORD:{table}"], corpus)[0].record["tier"] == "word"


def test_segments_need_no_classes(corpus, tmp_path):
    lines = ["path\tstart\tend\tlabel"]
    lines += [f"a.wav\t{k / 2000:.6f}\t{(k + 1) / 2000:.6f}\tlabel{k}" for k in range(2500)]
    path = tmp_path / "many.tsv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="classes"):
        label_tracks([f"word:{path}"], corpus)
    found = segments_of(["speaker", f"word:{path}"], corpus)
    assert set(found) == {"a.wav"} and len(found["a.wav"].labels) == 2500
    assert segments_of(["speaker"], corpus) == {}
