"""Alignments in every format, errors for malformed ones, and matching to utterances."""

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.audio.alignments import (
    Alignments,
    Segments,
    aligned_corpus,
    alignments_of,
    read_alignments,
    without_misfits,
)
from speechsim_jax.audio.chosen import choose
from speechsim_jax.audio.corpus import Corpus, Skipped, Source
from speechsim_jax.audio.corpus_layouts import LAYOUTS
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Settings
from tests.support import published_corpora
from tests.support.paths import DATA
from tests.support.sound_files import noise

EXPECTED = {
    "a/one": [(0.0, 0.25, "SIL"), (0.25, 0.4, "AH"), (0.4, 0.9, "B")],
    "two": [(0.1, 0.2, "AH")],
}

TSV = """path\ttier\tstart\tend\tlabel
a/one.flac\tphone\t0.25\t0.40\tAH
a/one.flac\tphone\t0\t0.25\tSIL
a/one.flac\tword\t0.25\t0.9\t"ab"
two.wav\tphone\t0.1\t0.2\tAH
a/one.flac\tphone\t4e-1\t0.9\tB
a/one.flac\tphone\t0.9\t1.0\t
"""

CTM = """;; made by hand
a/one A 0.25 0.15 AH 0.99
a/one A 0.40 0.50 B ;; the end

a/one A 0 0.25 SIL
two 1 0.1 0.1 AH
"""

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.0
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.0
            text = "she said ""äh"" ! 7
<exists>"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.0
        points: size = 2
        points [1]:
            number = 0.3
            mark = "x"
        points [2]:
            number = 0.5
            mark = ""
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.0
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = "SIL"   ! silence "here"
        intervals [2]:
            xmin = 0.25
            xmax = 0.4
            text = " AH "
        intervals [3]:
            xmin = 0.4
            xmax = 0.9
            text = "B"
        intervals [4]:
            xmin = 0.9
            xmax = 1.0
            text = ""
"""

SHORT = """File type = "ooTextFile"
"TextGrid"
0
0.5
<exists>
1
"IntervalTier"
"phones"
0
0.5
3
0
0.1
""
0.1
0.2
"AH"
0.2
0.5
""
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def as_lists(alignments: Alignments) -> dict[str, list[tuple[float, float, str]]]:
    return {
        name.removesuffix(".flac").removesuffix(".wav"): [
            (round(start, 9), round(end, 9), label)
            for start, end, label in zip(s.starts.tolist(), s.ends.tolist(), s.labels)
        ]
        for name, s in alignments.utterances.items()
    }


def test_tsv(tmp_path):
    path = write(tmp_path / "a.tsv", TSV)
    got = read_alignments(path, "phone")
    assert as_lists(got) == EXPECTED
    assert got.labels == ("AH", "B", "SIL")
    assert got.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert as_lists(read_alignments(path, "word")) == {"a/one": [(0.25, 0.9, '"ab"')]}
    one_tier = "".join(line for line in TSV.splitlines(True) if "\tword\t" not in line)
    assert as_lists(read_alignments(write(tmp_path / "b.tsv", one_tier))) == EXPECTED
    bare = "label\tpath\tend\tstart\r\nAH\ttwo.wav\t0.2\t0.1\r\n"
    got = read_alignments(write(tmp_path / "c.tsv", bare, "utf-8-sig"))
    assert (as_lists(got), got.tier) == ({"two": EXPECTED["two"]}, "")


def test_ctm(tmp_path):
    assert as_lists(read_alignments(write(tmp_path / "a.CTM", CTM))) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_grids(tmp_path, encoding):
    """A folder of them: long and short, with a tier of points and quotes within a label."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    write(tmp_path / "a" / "one.TextGrid", mark + LONG, encoding)
    write(tmp_path / "two.textgrid", mark + SHORT.replace("\n", "\r\n"), encoding)
    write(tmp_path / "notes.txt", "nothing")
    assert as_lists(read_alignments(tmp_path, "phones")) == EXPECTED
    words = read_alignments(tmp_path / "a" / "one.TextGrid", "words")
    assert as_lists(words) == {"one": [(0.0, 1.0, 'she said "äh" ! 7\n<exists>')]}
    # Without its separators a short file is what Praat reads of a long one.
    assert as_lists(read_alignments(tmp_path / "two.textgrid")) == {"two": EXPECTED["two"]}


def test_times_belong_to_the_segment_that_contains_them():
    segments = Segments(
        np.array([0.1, 0.3, 0.3, 0.6]), np.array([0.3, 0.3, 0.5, 0.7]), tuple("ab-c")
    )
    times = np.array([0, 0.0999, 0.1, 0.2999, 0.3, 0.4999, 0.5, 0.59, 0.6, 0.7, 9])
    assert segments.at(times).tolist() == [-1, -1, 0, 0, 2, 2, -1, -1, 3, -1, -1]


MALFORMED = {
    "no column": ("a.tsv", TSV.replace("start", "begin"), "no column 'start'"),
    "empty": ("a.tsv", "", "no column 'path'"),
    "a header only": ("a.tsv", "path\tstart\tend\tlabel\n", "no labelled segment"),
    "a short line": ("a.tsv", TSV + "x.wav\tphone\t0.1\n", "line 8: expected 5 fields"),
    "a long line": ("a.tsv", TSV + "x.wav\tphone\t0\t1\tA\tB\n", "line 8: expected 5 fields"),
    "no path": ("a.tsv", TSV + "\tphone\t0\t1\tA\n", "line 8: .* and a path"),
    "no number": ("a.tsv", TSV + "x.wav\tphone\t0,1\t0.2\tA\n", "line 8: times '0,1'"),
    "not finite": ("a.tsv", TSV + "x.wav\tphone\t0\tinf\tA\n", "line 8: from 0 s to inf s"),
    "NaN": ("a.tsv", TSV + "x.wav\tphone\tnan\t1\tA\n", "line 8: from nan s"),
    "backwards": ("a.tsv", TSV + "x.wav\tphone\t0.3\t0.2\tA\n", "line 8: .* 0 <= start <= end"),
    "before 0": ("a.tsv", TSV + "x.wav\tphone\t-1\t0.2\tA\n", "line 8: .* 0 <= start <= end"),
    "latin-1": ("a.tsv", b"path\tstart\tend\tlabel\nx\t0\t1\t\xe4\n", "UTF-8 or UTF-16"),
    "a huge field": ("a.tsv", TSV + "x" * 200_000, "line 7: field larger"),
    "few words": ("a.ctm", CTM + "two 1 0.1\n", "line 7: 3 fields"),
    "a word for a time": ("a.ctm", CTM + "two 1 soon 0.1 B\n", "line 7: times 'soon'"),
    "a negative duration": ("a.ctm", CTM + "two 1 0.5 -0.1 B\n", "line 7: from 0.5 s to 0.4 s"),
    "comments only": ("a.ctm", ";; nothing\n", "no labelled segment"),
    "truncated": (
        "a.TextGrid",
        LONG[:-30],
        "not a valid TextGrid: expected a number, found its end",
    ),
    "cut in a count": ("a.TextGrid", SHORT[:70], "expected a text, found its end"),
    "a count with a point": ("a.TextGrid", SHORT.replace("\n3\n", "\n3.5\n"), "expected a count"),
    "another object": ("a.TextGrid", LONG.replace("TextGrid", "Pitch"), "is not a TextGrid"),
    "binary": ("a.TextGrid", b"ooBinaryFile\x08TextGrid\0\0", "save it as a text file"),
    "no TextGrid": ("a.TextGrid", "hello", "expected a text, found its end"),
    "interval backwards": (
        "a.TextGrid",
        SHORT.replace("0.1\n0.2\n", "0.2\n0.1\n"),
        "tier 'phones' interval 2: from 0.2 s to 0.1 s",
    ),
    "no tiers": ("a.TextGrid", SHORT[: SHORT.index("<exists>")] + "<absent>", "no labelled"),
    "another suffix": ("a.eaf", "0 1 a", "unknown suffix; expected .tsv"),
    "no sample number": ("a.phn", "0 2260 h#\n2260 end sh\n", "line 2: expected first sample"),
    "no label": ("a.lab", "0 0.5\n", "line 1: expected start, end and label"),
    "no tier 3": (
        "a.TextGrid",
        '"Praat chronological TextGrid text file"\n0 1\n1\n"IntervalTier" "p" 0 1\n3 0 1 "a"',
        "there is no tier '3'",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name, tmp_path):
    file, content, message = MALFORMED[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^alignments: .*{message}") as caught:
        read_alignments(path, "phone" if "\tword\t" in str(content) else None)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["\u00b2", "\u0663", "9" * 5000])
def test_what_only_looks_like_a_count_is_none(tmp_path, number):
    files = {
        "x.phn": f"0 {number} a\n",
        "x.lab": f"0 {number}x a\n",
        "x.TextGrid": SHORT.replace("\n3\n", f"\n{number}\n"),
        "y.TextGrid": f'"Praat chronological TextGrid text file" 0 1 {number} "IntervalTier"',
    }
    for name, text in files.items():
        with pytest.raises(UserError) as error:
            read_alignments(write(tmp_path / name, text))
        assert len(str(error.value).splitlines()) == 1


def test_errors_name_the_tiers(tmp_path):
    path = write(tmp_path / "a.tsv", TSV)
    with pytest.raises(UserError, match="has the tiers phone, word; choose one"):
        read_alignments(path)
    with pytest.raises(UserError, match="no tier 'phones'; its tiers: phone, word"):
        read_alignments(path, "phones")
    with pytest.raises(UserError, match=r"no tier 'phone'; its tiers: \(unnamed\)"):
        read_alignments(write(tmp_path / "a.ctm", CTM), "phone")
    with pytest.raises(UserError, match=r"cannot read .*no_such\.tsv"):
        read_alignments(tmp_path / "no_such.tsv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.textgrid, .* file below"):
        read_alignments(tmp_path / "empty")


def matched(names: list[str], ids: list[str]) -> dict[str, str]:
    """Of each utterance, the name in the alignments that it is matched to."""
    segments = {n: Segments(np.zeros(1), np.ones(1), (n,)) for n in names}
    matches = Alignments("file", "", "", segments).match(ids)
    return {id_: s.labels[0] for id_, s in matches.items()}


def test_match():
    assert matched(["a/1.flac"], ["a/1.flac", "a/2.flac"]) == {"a/1.flac": "a/1.flac"}
    # suffixes of sound files do not count, other dots do
    assert matched(["a/1", "b.2"], ["a/1.wav", "b.2"]) == {"a/1.wav": "a/1", "b.2": "b.2"}
    assert matched(["x.5"], ["x.6"]) == {}
    # another root: by the last part
    assert matched(["corpus/a/1.flac"], ["a/1.flac"]) == {"a/1.flac": "corpus/a/1.flac"}
    assert matched(["1"], ["deep/down/1.flac"]) == {"deep/down/1.flac": "1"}
    # ... which must be unique on both sides
    assert matched(["a/1", "b/1"], ["c/1.flac"]) == {}
    assert matched(["1"], ["a/1.flac", "b/1.flac"]) == {}
    assert matched(["a/1", "1"], ["a/1.flac", "b/1.flac"]) == {"a/1.flac": "a/1"}


@pytest.mark.parametrize(
    ("aligned", "audio", "found"),
    [
        ("spkA/001", "spkB/001.wav", False),  # A's phones would label B's frames
        ("spkA/001", "spkA/001.wav", True),
        ("TextGrids/ABA/textgrid/arctic_a1", "ABA/wav/arctic_a1.wav", True),
        ("BWC/textgrid/arctic_a1", "ABA/wav/arctic_a1.wav", False),
        ("LibriSpeech/dev-clean/84/1/84-1-0", "dev-clean/84/1/84-1-0.flac", True),
        ("dev-other/84/1/84-1-0", "dev-clean/84/1/84-1-0.flac", False),
        ("001", "spkB/001.wav", True),  # it has no folder, and there is only one
        ("TRAIN/DR1/FCJF0/SA1", "TRAIN/DR1/FCJF0/SA1.WAV.wav", True),
        ("cafe\u0301", "caf\xe9.wav", True),  # decomposed and composed
        ("Ü/a", "U\u0308/a.flac", True),
    ],
)
def test_folders_that_are_there_must_agree(aligned, audio, found):
    assert matched([aligned], [audio]) == ({audio: aligned} if found else {})


def test_hidden_files_are_passed_over(tmp_path):
    for name in ("a.TextGrid", "._a.TextGrid", "__MACOSX/a.TextGrid", ".git/b.TextGrid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SHORT if name == "a.TextGrid" else "no grid")
    assert list(read_alignments(tmp_path, "phones").utterances) == ["a"]


CHRONOLOGICAL = """"Praat chronological TextGrid text file"
0 0.3 ! Time domain.
2 ! Number of tiers.
"IntervalTier" "phones" 0 0.3
"TextTier" "clicks" 0 0.3
1 0 0.1
"AH"
2 0.05
"click"
1 0.1 0.3
""
"""


def test_other_text_grids(tmp_path):
    """P2FA's header, the chronological layout, UTF-16 without a mark, and Latin-1."""
    texts = {
        "p2fa": SHORT.replace('"ooTextFile"', '"ooTextFile short"').encode(),
        "chronological": CHRONOLOGICAL.encode(),
        "utf16": CHRONOLOGICAL.encode("utf-16-le"),
        "latin1": CHRONOLOGICAL.replace("AH", "\xe4").encode("latin-1"),
    }
    for name, content in texts.items():
        (tmp_path / f"{name}.TextGrid").write_bytes(content)
    utterances = read_alignments(tmp_path, "phones").utterances
    assert set(utterances) == set(texts)
    for name in ("chronological", "utf16"):
        assert utterances[name].labels == ("AH",) and list(utterances[name].ends) == [0.1]
    assert utterances["latin1"].labels == ("\xe4",)


@pytest.mark.parametrize("overlap", [1e-17, 1e-3, 0.01, 0.05])
def test_small_overlaps_are_cut_in_the_middle(tmp_path, overlap):
    start = 0.37 - overlap
    path = write(tmp_path / "a.ctm", f"x 1 93.03 0.34 a\nx 1 {93 + start:.17g} 0.54 b\n")
    aligned = read_alignments(path)
    segments = aligned.utterances["x"]
    assert segments.ends[0] == segments.starts[1]
    assert segments.starts[1] == pytest.approx(93.37 - overlap / 2, abs=1e-9)
    assert bool(aligned.notes) == (overlap >= 1e-3)


def test_an_utterance_with_large_overlaps_is_skipped_alone(tmp_path, caplog):
    path = write(
        tmp_path / "a.ctm",
        "x 1 0.0 0.5 a\nx 1 0.4 0.5 b\ny 1 0.0 0.5 a\nz 1 0.0 0.5 a\nz 1 0.1 0.1 inside\n",
    )
    aligned = read_alignments(path)
    assert set(aligned.utterances) == {"y"} and set(aligned.unusable) == {"x", "z"}
    skipped: list[Skipped] = []
    corpus = Corpus("c", tuple(Source(f"{name}.wav", seconds=1.0) for name in "wxyz"))
    kept, _ = aligned_corpus(corpus, aligned, skipped.append, strict=False)
    assert [source.id for source in kept.sources] == ["y.wav"]
    reasons = {skip.id: skip.reason for skip in skipped}
    assert "has no alignment" in reasons["w.wav"]
    assert "'b' starts at 0.4 s, before 'a' ends at 0.5 s" in reasons["x.wav"]
    assert "x: 'b' starts at" in caplog.text


@pytest.mark.parametrize(
    ("end", "seconds", "fits"),
    [
        (10.4, 10.0, True),  # aligners round, and pad
        (10.9, 10.0, True),
        (1.45, 1.0, True),
        (0.1, 40.0, True),  # one word of many
        (10_000.0, 10.0, False),  # ms
        (160_000.0, 10.0, False),  # samples
        (1e8, 10.0, False),  # 100 ns
        (27.6, 10.0, False),  # samples at 44.1 kHz, for 16 kHz
        (2.0, 1.0, False),
        (0.01, 10.0, False),  # seconds, for ms
        (0.001, 10.0, False),  # ms, for 100 ns
        (10 / 16_000, 10.0, False),  # seconds, for samples
        (5.0, None, True),  # not known: reading the file says why
    ],
)
def test_alignments_that_cannot_be_of_the_audio_are_skipped(tmp_path, end, seconds, fits):
    """By both lengths, which the reason names; others are kept."""
    path = write(
        tmp_path / "a.ctm", f"x 1 0.0 {end / 2!r} a\nx 1 {end / 2!r} {end / 2!r} b\ny 1 0 1 c"
    )
    corpus = Corpus("c", (Source("x.wav", seconds=seconds), Source("y.wav", seconds=1.0)))
    skipped: list[Skipped] = []
    corpus, segments = aligned_corpus(corpus, read_alignments(path), skipped.append, strict=True)
    kept = without_misfits(corpus, segments, skipped.append, strict=False)
    assert [source.id for source in kept.sources] == ["x.wav"] * fits + ["y.wav"]
    assert len(skipped) == (not fits)
    if not fits:
        assert f"ends at {end:.4g} s, and audio of {seconds:.4g} s" in skipped[0].reason
        with pytest.raises(UserError, match=r"x\.wav has an alignment that ends at"):
            without_misfits(corpus, segments, [].append, strict=True)
        alone = dataclasses.replace(corpus, sources=corpus.sources[:1])
        with pytest.raises(UserError, match="none fits the audio of c"):
            without_misfits(alone, segments, [].append, strict=False)


def test_a_stated_duration_that_is_wrong_is_no_reason_to_skip(tmp_path):
    """The file's header counts: this manifest states ms as seconds."""
    soundfile.write(tmp_path / "x.wav", noise(16_000), 16_000)
    table = write(tmp_path / "m.csv", "path,duration\nx.wav,1000\n")
    corpus = open_corpus(table)
    aligned = read_alignments(write(tmp_path / "a.ctm", "x 1 0 1 a"))
    corpus, segments = aligned_corpus(corpus, aligned, [].append, strict=True)
    assert len(without_misfits(corpus, segments, [].append, strict=True).sources) == 1


def test_an_alignment_in_another_unit_is_skipped_in_a_comparison(tmp_path):
    """Before, the frames of one segment were taken for the whole, or none."""
    write(tmp_path / "a.ctm", "x 1 0 500 a\nx 1 500 500 b\ny 1 0 0.5 a\ny 1 0.5 0.5 b\n")
    audio = {"x": noise(16_000), "y": noise(16_000, 1)}
    settings = Settings(alignments=str(tmp_path / "a.ctm"), pool="segment")
    chosen = choose(audio, settings)
    assert [source.id for source in chosen.corpus.sources] == ["y"]
    assert [source.id for source in chosen.attention_corpus.sources] == ["y"]
    (skipped,) = chosen.skipped
    assert skipped.id == "x" and "ends at 1000 s, and audio of 1 s" in skipped.reason


@pytest.mark.parametrize(
    ("aligned", "audio", "reason"),
    [
        (["SA1.WAV", "SA1.WAV.wav"], ["SA1.WAV", "SA1.WAV.wav"], "fits several alignments"),
        (["1"], ["a/1.flac", "b/1.flac"], "fits the alignment '1', as does 'b/1.flac'"),
        (["a/1", "b/1"], ["1.flac"], "fits several alignments: 'a/1', 'b/1'"),
    ],
)
def test_what_is_ambiguous_is_called_so(aligned, audio, reason):
    """Not "names no utterance", nor "has no alignment"."""
    segments = Segments(np.array([0.0]), np.array([1.0]), ("a",))
    names = {name: segments for name in [*aligned, "z"]}
    alignments = Alignments("x.ctm", "", "", names)
    corpus = Corpus("c", tuple(Source(id_, seconds=1.0) for id_ in audio))
    with pytest.raises(UserError, match=f"no utterance can be used: {audio[0]} {reason}"):
        aligned_corpus(corpus, alignments, [].append, strict=False)
    skipped: list[Skipped] = []
    corpus = Corpus("c", (*corpus.sources, Source("z.wav", seconds=1.0)))
    aligned_corpus(corpus, alignments, skipped.append, strict=False)
    assert [skip.id for skip in skipped] == audio and skipped[0].reason.startswith(reason)


def test_auto_for_audio_that_is_there_twice(tmp_path):
    """TIMIT as it is published and converted, side by side."""
    folder = tmp_path / "timit/TRAIN/DR1/FCJF0"
    folder.mkdir(parents=True)
    for name in ("SA1.WAV", "SA1.WAV.wav"):
        soundfile.write(folder / name, noise(8000), 16_000, format="WAV")
    write(folder / "SA1.PHN", "0 2000 h#\n2000 8000 dh\n")
    corpus = open_corpus(tmp_path)
    with pytest.raises(UserError, match=r"SA1\.WAV fits several alignments"):
        aligned_corpus(corpus, alignments_of(corpus, "auto"), [].append, strict=False)


def test_ctm_of_nist(tmp_path):
    """Up to nine fields, alternatives, and a channel each."""
    lines = [
        ";; comment", "c 1 0.0 0.1 a 0.9 lex spk1", "c 1 0.1 0.1 b 0.9 lex spk1 extra",
        "c 1 * * <ALT_BEGIN>", "c 1 0.2 0.1 first", "c 1 * * <ALT>", "c 1 0.2 0.1 second",
        "c 1 * * <ALT_END>", "c 1 0.3 0.1 d", "t A 0.0 0.1 left", "t B 0.0 0.1 right",
    ]  # fmt: skip
    utterances = read_alignments(write(tmp_path / "a.ctm", "\n".join(lines))).utterances
    assert utterances["c"].labels == ("a", "b", "first", "d")
    assert (utterances["t:1"].labels, utterances["t:2"].labels) == (("left",), ("right",))
    assert matched(["t:1", "t:2"], ["t.wav:1", "t.wav:2"]) == {"t.wav:1": "t:1", "t.wav:2": "t:2"}


def test_timit_htk_and_esps(tmp_path):
    timit = tmp_path / "timit/DR1/FCJF0"
    timit.mkdir(parents=True)
    write(timit / "SA1.PHN", "0 3200 h#\n3200 4800 sh\n")
    write(timit / "SA1.WRD", "3200 4800 she\n")
    phones = read_alignments(tmp_path / "timit", "phn").utterances["DR1/FCJF0/SA1"]
    assert phones.labels == ("h#", "sh") and list(phones.ends) == [0.2, 0.3]
    texts = {
        "htk": "0 2000000 sil\n2000000 3000000 sh\n",
        "esps": "signal x\nnfields 1\n#\n 0.2 121 sil\n 0.3 121 sh\n",
        "plain": "0.0 0.2 sil\n0.2 0.3 sh\n",
    }
    for name, text in texts.items():
        segments = read_alignments(write(tmp_path / f"{name}.lab", text)).utterances[name]
        assert segments.labels == ("sil", "sh")
        np.testing.assert_allclose(segments.ends, [0.2, 0.3])
        np.testing.assert_allclose(segments.starts, [0.0, 0.2])
    buckeye = "header\n#\n -0.01 122 {B_TRANS}\n 0.2 122 SIL\n 0.3 122 ay; ay; PRP\n"
    segments = read_alignments(write(tmp_path / "s0101a.phones", buckeye)).utterances["s0101a"]
    assert segments.labels == ("{B_TRANS}", "SIL", "ay") and segments.ends[-1] == 0.3


def test_the_real_alignments(speech):
    """The numbers in the README of the data."""
    path = speech / "alignments_pocketsphinx.tsv"
    phones, words = (read_alignments(path, tier) for tier in ("phone", "word"))
    assert len(phones.utterances) == len(words.utterances) == 100
    assert sum(len(s.labels) for s in phones.utterances.values()) == 7064
    assert sum(s.labels.count("SIL") for s in phones.utterances.values()) == 418
    assert len(phones.labels) == 40
    for s in phones.utterances.values():
        assert s.starts[0] == 0
        np.testing.assert_array_equal(s.starts[1:], s.ends[:-1])
    names = [name.removeprefix("librispeech_test_other/") for name in phones.utterances]
    assert len(phones.match(names)) == 100


# ---------------------------------------------------------------- published with the audio


@pytest.mark.parametrize(
    ("published", "tier", "place", "labels"),
    [
        (published_corpora.TIMIT, "phn", r"\*\.PHN and \*\.WRD of TIMIT", {"h#", "sh", "ix", "dh"}),
        (published_corpora.TIMIT, "wrd", "of TIMIT for 3 files", {"she", "had", "the"}),
        (published_corpora.L2_ARCTIC, None, "textgrid/.* of L2-ARCTIC for 3", {"sil", "AO1"}),
        (published_corpora.CMU_ARCTIC, None, "lab/.* of CMU ARCTIC for 3 files", {"pau", "ao"}),
    ],
)
def test_auto_is_where_the_layout_says(tmp_path, caplog, published, tier, place, labels):
    corpus = open_corpus(published.write(tmp_path))
    with caplog.at_level("INFO"):
        aligned = alignments_of(corpus, "auto", tier)
    assert re.search(place, caplog.text)
    assert set(aligned.labels) == labels and aligned.tier == (tier or aligned.tier)
    matched = aligned.match(source.id for source in corpus.sources)
    assert set(matched) == set(published.audio)
    # By hand it is the same, utterance by utterance.
    for id_, segments in matched.items():
        layout = next(k for k in LAYOUTS if k.name == published.layout)
        files = layout.aligned(tmp_path / id_)
        suffix = "." + tier.upper() if tier else files[0].suffix
        (file,) = (file for file in files if file.suffix == suffix)
        (by_hand,) = read_alignments(file, tier).utterances.values()
        assert segments.labels == by_hand.labels
        np.testing.assert_array_equal(segments.starts, by_hand.starts)


def test_auto_of_lower_case_of_channels_and_in_part(tmp_path):
    """TIMIT is copied in lower case; each channel has the segments of its file."""
    for name in published_corpora.TIMIT.audio:
        path = tmp_path / name.lower()
        path.parent.mkdir(parents=True, exist_ok=True)
        stereo = np.stack([noise(8000), noise(8000, 1)], 1)
        soundfile.write(path, stereo, 16_000, format="NIST")
        if "SX127" not in name:
            path.with_suffix(".phn").write_text("0 2000 h#\n2000 8000 dh\n")
    corpus = open_corpus(tmp_path, channel="each")
    aligned, segments = aligned_corpus(corpus, alignments_of(corpus, "auto"), [].append, False)
    assert sorted(segments) == [
        "timit/test/dr8/mslb0/si1193.wav:1", "timit/test/dr8/mslb0/si1193.wav:2",
        "timit/train/dr1/fcjf0/sa1.wav:1", "timit/train/dr1/fcjf0/sa1.wav:2",
    ]  # fmt: skip
    assert len(aligned.sources) == 4


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (published_corpora.UNLISTED, "the layout of .* is not known"),
        (published_corpora.VOXCELEB, "VoxCeleb is published without alignments"),
        (published_corpora.LIBRISPEECH, r"is of LibriSpeech, but \*\.TextGrid are not there"),
    ],
)
def test_auto_is_refused_where_there_is_nothing(tmp_path, published, message):
    corpus = open_corpus(published.write(tmp_path))
    with pytest.raises(UserError, match=rf"alignments=auto: .*{message}.*; name a file or folder"):
        alignments_of(corpus, "auto")
    with pytest.raises(UserError, match="is not known"):
        alignments_of(open_corpus([noise(8000)]), "auto")


def test_auto_has_the_tiers_of_its_files(tmp_path):
    corpus = open_corpus(published_corpora.TIMIT.write(tmp_path))
    with pytest.raises(UserError, match="has the tiers phn, wrd; choose one"):
        alignments_of(corpus, "auto")


@pytest.mark.slow
def test_a_comparison_with_auto_is_that_with_the_folder(tmp_path):
    published_corpora.L2_ARCTIC.write(tmp_path)
    for folder in (tmp_path / "l2arctic_release_v5.0").rglob("annotation"):
        shutil.rmtree(folder)  # a folder would be read as a whole
    models = [DATA / "parity" / name for name in ("wav2vec2-base", "hubert-base")]
    results = [
        ss.compare(
            models, str(tmp_path), "lincka", pool="segment", alignments=alignments,
            batch_seconds=2, buckets=1, progress=False,
        )
        for alignments in ("auto", str(tmp_path))
    ]  # fmt: skip
    np.testing.assert_array_equal(results[0].dataset["lincka"], results[1].dataset["lincka"])
    assert results[0].attributes["utterances"] == 3
