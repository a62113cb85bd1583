"""Transcribing as a user meets it."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.commands import transcribe
from tests.support.commands import assert_mistake, call, in_subprocess
from tests.support.paths import ROOT

MODEL = ROOT / "tests" / "data" / "ctc" / "hubert-large"
OTHER = MODEL.with_name("wav2vec2-base")
FIELDS = ["path", "id", "seconds", "transcript"]


@pytest.fixture
def script(capsys):
    """`speechsim transcribe` in this process."""
    return lambda *arguments: call(capsys, "transcribe", *arguments)


def write_manifest(folder: Path, rows: list[list[str]]) -> Path:
    lines = ["\t".join(row) for row in [FIELDS, *rows]]
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.tsv"


@pytest.fixture(scope="module")
def waves() -> dict[str, np.ndarray]:
    """Utterances that the models say something about; the last will be cut in two."""
    theirs = np.load(MODEL / "expected.npz")
    rng = np.random.default_rng(4)
    return {
        "a": theirs["wave_1"],
        "b": theirs["wave_2"],
        "long": (0.1 * rng.standard_normal(20_000)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, waves) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, 16_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(3000), 16_000)
    rows = [
        ["a.wav", "a", "", "</s>N"],
        ["b.wav", "b", "", "something  else"],
        ["long.wav", "long", "", "whatever it was"],
        ["silent.wav", "silent", "", "nothing at all"],
        ["a.wav", "unsaid", "", ""],
        ["b.wav", "blank", "", "  "],
    ]
    return write_manifest(folder, rows)


def read_tsv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_transcripts_hold_no_formula(tmp_path):
    """Texts of a corpus and names of files come from anybody."""
    hostile = transcribe.Transcript("=1", "+id\x1b[31m\udcff", "-x\ty\nz", '@said "so"')
    transcribe._write(tmp_path / "transcripts.tsv", [hostile])
    (row,) = read_tsv(tmp_path / "transcripts.tsv")
    assert list(row.values()) == ["'=1", r"'+id\u001b[31m\udcff", "'-x y z", '\'@said "so"']


@pytest.mark.slow
def test_table_and_transcripts(script, manifest, waves, tmp_path):
    arguments = [
        f"--models={MODEL},{OTHER}",
        f"--audio={manifest}",
        f"--workdir={tmp_path / 'new'}",
    ]
    ended = script(*arguments, "--max_seconds=0.7", "--batch_seconds=1")
    assert ended.code == 0, ended.err
    assert "speaker of 6 utterances is not known" in ended.err[0]
    assert ended.err[1].startswith("models: ") and ended.err[2].startswith("left out 2")
    assert ended.err[3:] == 2 * [
        "cut long of 1.2 s into 2 pieces",
        "skipped silent: is silent: every sample is 0",
    ]
    rows = read_tsv(tmp_path / "new" / "transcripts.tsv")
    assert [row["model"] for row in rows] == 3 * [str(MODEL)] + 3 * [str(OTHER)]
    assert [row["id"] for row in rows] == 2 * ["a", "b", "long"]
    assert rows[1]["reference"] == "something else"
    expected = {}
    for model in (MODEL, OTHER):
        recognizer = ss.load_recognizer(model)
        halves = np.array_split(waves["long"], 2)
        *texts, first, second = recognizer.transcribe([waves["a"], waves["b"], *halves])
        texts.append(f"{first} {second}")
        found = [row for row in rows if row["model"] == str(model)]
        assert [row["hypothesis"] for row in found] == texts
        expected[model] = ss.error_rates([row["reference"] for row in found], texts)
    assert expected[MODEL].wer != expected[OTHER].wer
    lines = ended.out.splitlines()
    assert lines[0].split() == ["model", "WER", "CER", "utterances"]
    for line, (model, rates) in zip(lines[1:], expected.items()):
        assert line.split() == [str(model), f"{rates.wer:.2%}", f"{rates.cer:.2%}", "3"]
    assert lines[3] == "left out: 2 utterances without a transcript"
    assert lines[-1] == f"written: {tmp_path / 'new' / 'transcripts.tsv'}"

    before = (tmp_path / "new" / "transcripts.tsv").read_bytes()
    assert_mistake(script(*arguments), "transcripts.tsv exists", "--overwrite")
    assert (tmp_path / "new" / "transcripts.tsv").read_bytes() == before


def test_without_a_workdir(manifest, waves):
    config = transcribe.Config(
        (str(MODEL), str(MODEL)), str(manifest), max_minutes=0.002, batch_seconds=1
    )
    outcome = transcribe.run(config)
    assert [t.id for t in outcome.transcripts] == ["a"]
    assert outcome.transcripts[0].hypothesis == "</s>n"
    assert outcome.rates() == {str(MODEL): (ss.ErrorRates(0.0, 0.0, 1, 5), 1)}


def test_no_transcripts(script, manifest, monkeypatch):
    monkeypatch.setattr(ss, "load_recognizer", lambda *a, **k: pytest.fail("a model was loaded"))
    folder = manifest.parent
    ended = script(f"--models={MODEL}", f"--audio={folder}")
    assert_mistake(ended, str(folder), "none of 4 utterances has a transcript", "'transcript'")


def test_no_usable_audio(script, tmp_path):
    (tmp_path / "x.wav").write_text("no sound")
    manifest = write_manifest(tmp_path, [["x.wav", "x", "", "words"]])
    ended = script(f"--models={MODEL}", f"--audio={manifest}")
    assert_mistake(ended, str(manifest), "no usable audio", "1 file skipped")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models="], ["--models is required"]),
        (["--models=a,,b"], ["--models=a,,b", "empty"]),
        (["--audio="], ["--audio is required"]),
        (["--measures=lincka"], ["'measures'", "--help"]),
        ([f"--models={MODEL.parents[1] / 'parity' / 'hubert-large'}"], ["there is no tokenizer"]),
        (["--models=random:x"], ["random:x", "no CTC head"]),
        (["--strict"], ["silent is silent", "repair or remove it"]),
    ],
)
def test_mistakes(script, manifest, arguments, words):
    right = [f"--models={MODEL}", f"--audio={manifest}"]
    ended = script(*right, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert all(word in ended.err[-1] for word in words), ended.err


def test_rates_without_words():
    outcome = transcribe.Outcome((transcribe.Transcript("m", "a", "", "x"),), 0)
    ((rates, utterances),) = outcome.rates().values()
    assert math.isnan(rates.wer) and utterances == 1
    assert outcome.table().splitlines()[1].split() == ["m", "nan%", "nan%", "1"]


def test_librispeech_folder(tmp_path, waves):
    chapter = tmp_path / "1" / "2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0000.wav", waves["a"], 16_000, subtype="FLOAT")
    (chapter / "1-2.trans.txt").write_text("1-2-0000 </S>N\n")
    outcome = transcribe.run(transcribe.Config((str(MODEL),), str(tmp_path), batch_seconds=1))
    assert outcome.rates()[str(MODEL)][0].cer == 0.0


@pytest.mark.slow
def test_in_a_process(manifest):
    """Nothing but the table: transformers would say that torch is missing."""
    arguments = [f"--models={MODEL}", f"--audio={manifest}", "--max_minutes=0.002"]
    ended = in_subprocess("transcribe", *arguments, "--batch_seconds=1")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out.splitlines()[1].split() == [str(MODEL), "0.00%", "0.00%", "1"]
