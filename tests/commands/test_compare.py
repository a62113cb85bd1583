"""The scripts as a user meets them: what they write, and what they say when the user is wrong."""

import contextlib
import csv
import dataclasses
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

import speechsim_jax as ss
from speechsim_jax.audio import batching
from speechsim_jax.commands import compare, demo, dynamics, merge, replicate
from speechsim_jax.commands import flags as _flags
from speechsim_jax.comparison import encoders
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from tests.support.paths import ROOT

BASE = ROOT / "tests" / "data" / "parity" / "wav2vec2-base"
MEASURES = "maxcorr,lincka"
UNUSABLE = {
    "empty.wav": "is empty",
    "nan.wav": "has NaN at sample 700",
    "short.wav": "is too short: 10 ms",
    "words.wav": "cannot be decoded",
}


class Ended(NamedTuple):
    """How a script ended: exit code, standard output, and standard error without progress bars."""

    code: int
    out: str
    err: list[str]


def _without_bars(text: str) -> list[str]:
    lines = text.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("audio:", "scores:"))]


def in_subprocess(script: str, *arguments: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{script}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, _without_bars(done.stderr))


@pytest.fixture
def script(capsys):
    """A script in this process: parsed and guarded as `_flags.start` does it."""

    def call(*arguments: str, main=compare.main) -> Ended:
        capsys.readouterr()
        code = 0
        with flagsaver.flagsaver():
            try:
                _flags.parse(["script", *arguments])
                _flags.guarded(main)
            except SystemExit as ended:
                assert isinstance(ended.code, int)
                code = ended.code
        out, err = capsys.readouterr()
        return Ended(code, out, _without_bars(err))

    return call


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """An encoder of another width and depth than those of the parity fixtures."""
    config = EncoderConfig(
        family="hubert",
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return save_folder(
        tmp_path_factory.mktemp("models") / "narrow", config, random_tensors(config, 0)
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Noise and tones: four files of a second or a little less, at 16 and 8 kHz."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    for index, seconds in enumerate((1.0, 0.9)):
        samples = 0.1 * rng.standard_normal(int(16_000 * seconds))
        soundfile.write(folder / f"noise{index}.wav", samples, 16_000)
    for index, rate in enumerate((16_000, 8_000)):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * np.linspace(0, 0.5, rate)
        soundfile.write(folder / f"tone{index}.wav", tone, rate)
    return folder


def _write_unusable(folder: Path) -> None:
    soundfile.write(folder / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "short.wav", np.full(160, 0.1), 16_000)
    broken = np.random.default_rng(1).standard_normal(8_000).astype(np.float32)
    broken[700] = np.nan
    soundfile.write(folder / "nan.wav", broken, 16_000, subtype="FLOAT")
    (folder / "words.wav").write_text("not a sound at all")
    (folder / "notes.txt").write_text("recorded in May")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, good) -> Path:
    """The good files among unusable ones and a text file."""
    folder = tmp_path_factory.mktemp("corpus") / "mixed"
    shutil.copytree(good, folder)
    _write_unusable(folder)
    return folder


class Run(NamedTuple):
    config: compare.Config
    result: ss.SimilarityResult
    workdir: Path


@pytest.fixture(scope="module")
def compared(tmp_path_factory, narrow, mixed) -> Run:
    workdir = tmp_path_factory.mktemp("runs") / "new" / "compared"
    config = compare.Config(
        models=(str(BASE), str(narrow)),
        audio=str(mixed),
        workdir=str(workdir),
        measures=MEASURES,
        note="noise and tones",
    )
    return Run(config, compare.run(config), workdir)


def test_compare_writes_everything(compared):
    files = {str(p.relative_to(compared.workdir)) for p in compared.workdir.rglob("*.*")}
    figures = {f"figures/{k}_{m}.png" for k in ("heatmap", "trend") for m in MEASURES.split(",")}
    written = {"config.json", "result.nc", "scores.csv", "scores.csv.json", "report.html"}
    assert files >= written | {"log.jsonl"} | figures
    with (compared.workdir / "scores.csv").open(newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == len(compared.result.representations) ** 2
    for name in figures:
        assert (compared.workdir / name).read_bytes().startswith(b"\x89PNG")
    config = json.loads((compared.workdir / "config.json").read_text())
    assert config == json.loads(json.dumps(dataclasses.asdict(compared.config)))


def test_compare_logs_valid_json_lines(compared):
    lines = (compared.workdir / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(set(entry) == {"time", "level", "logger", "message"} for entry in entries)
    times = [entry["time"] for entry in entries]
    assert times == sorted(times)
    warnings = [entry["message"] for entry in entries if entry["level"] == "warning"]
    assert len(warnings) == len(UNUSABLE)
    assert any("4 utterances" in entry["message"] for entry in entries)


def test_compare_result_reloads_with_provenance(compared, narrow):
    result = ss.SimilarityResult.load(compared.workdir / "result.nc")
    assert result.measures == tuple(MEASURES.split(","))
    assert result.models == ("wav2vec2-base", "narrow")
    assert result.matrix("lincka").shape == (4 + 3,) * 2
    np.testing.assert_array_equal(result.matrix("lincka"), compared.result.matrix("lincka"))
    np.testing.assert_allclose(np.diag(result.matrix("lincka")), 1, atol=1e-6)
    kept = result.attributes
    assert kept["note"] == "noise and tones"
    # Three files of a second (at 8 kHz too) and one of 0.9 s: (16000 - 400) // 320 + 1 frames, ...
    assert (kept["utterances"], kept["frames"]) == (4, 3 * 49 + 44)
    assert {entry["id"] for entry in kept["skipped"]} == set(UNUSABLE)
    assert set(kept["models"]) == set(result.models)
    digests = {entry["sha256"] for entry in kept["models"].values()}
    assert len(digests) == 2 and all(len(bytes.fromhex(digest)) == 32 for digest in digests)
    assert kept["models"]["narrow"]["source"] == str(narrow)
    assert kept["versions"]["speechsim_jax"] == ss.__version__
    assert {"jax", "jaxlib", "flax", "numpy", "python"} <= set(kept["versions"])
    assert len(bytes.fromhex(kept["corpus"]["fingerprint"])) == 32
    assert kept["settings"]["stats_dtype"] == "float32"


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_audio_is_listed_with_its_reason(compared, name):
    reasons = {entry["id"]: entry["reason"] for entry in compared.result.attributes["skipped"]}
    assert reasons[name].startswith(UNUSABLE[name])


def test_overwrite(compared, script, tmp_path, good):
    """A result is kept unless told otherwise, and even then until there is a better one."""
    workdir = tmp_path / "kept"
    shutil.copytree(compared.workdir, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*.*") if p.is_file()}
    arguments = [f"--models={BASE}", f"--audio={good}", f"--workdir={workdir}", "--layers=0,-1"]

    ended = script(*arguments)
    assert ended.code == 2
    assert ended.err == [
        f"error: {workdir}/result.nc exists; choose another --workdir or pass --overwrite"
    ]
    ended = script(*arguments, "--overwrite", "--measures=lincca")
    assert ended.code == 2
    for path, content in before.items():
        assert (
            path.read_bytes().startswith(content)
            if path.suffix == ".jsonl"
            else (path.read_bytes() == content)
        )
    last = json.loads((workdir / "log.jsonl").read_text().splitlines()[-1])
    assert last["level"] == "error" and "lincca" in last["message"]

    ended = script(*arguments, "--overwrite", "--measures=lincka", "--max_minutes=0.02")
    assert ended.code == 0, ended.err
    assert f"written: {workdir}/result.nc" in ended.out
    result = ss.SimilarityResult.load(workdir / "result.nc")
    assert [str(representation) for representation in result.representations] == [
        "wav2vec2-base/0",
        "wav2vec2-base/3",
    ]
    assert result.attributes["utterances"] == 1
    assert json.loads((workdir / "config.json").read_text())["settings"]["max_minutes"] == 0.02
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {"facts.png", "heatmap_lincka.png", "trend_lincka.png"}


def test_pooled_segments_from_the_command_line(script, tmp_path, good):
    """--drop_labels=SIL,noise with a tier of TextGrids beside the sounds."""
    grid = (
        'File type = "ooTextFile"\n"TextGrid"\n0\n1\n<exists>\n1\n"IntervalTier"\n"phones"\n0\n1\n'
        '4\n0\n0.2\n"SIL"\n0.2\n0.5\n"AH"\n0.5\n0.6\n"noise"\n0.6\n0.8\n"B"\n'
    )
    for name in ("noise0", "noise1", "tone0"):
        (tmp_path / f"{name}.TextGrid").write_text(grid)
    workdir = tmp_path / "out"
    ended = script(
        f"--models={BASE}", f"--audio={good}", f"--workdir={workdir}",
        "--measures=mutual_knn,lincka",
        f"--alignments={tmp_path}", "--pool=segment", "--drop_labels=SIL,noise",
        "--alignment_tier=phones", "--sample_frames=4", "--frame_stride=2",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert [line for line in ended.err if line.startswith("skipped")] == [
        f"skipped tone1.wav: has no alignment in {tmp_path}"
    ]
    kept = ss.SimilarityResult.load(workdir / "result.nc").attributes
    # centres 0.2125 to 0.4925 and 0.6125 to 0.7925, every second of them
    assert (kept["utterances"], kept["rows"], kept["frames"]) == (3, 6, 3 * (8 + 5))
    assert kept["sample"]["rows"] == 4
    assert kept["settings"]["drop_labels"] == ["SIL", "noise"]
    assert json.loads((workdir / "config.json").read_text())["settings"]["pool"] == "segment"


def test_random_baselines(script, tmp_path, good):
    """A model and what its architecture does untrained, without a second folder."""
    arguments = [f"--models={BASE},random:{BASE},random:{BASE}@1", f"--audio={good}"]
    options = ["--layers=0,-1", "--measures=lincka", "--max_minutes=0.02"]
    ended = script(*arguments, *options, f"--workdir={tmp_path}")
    assert ended.code == 0, ended.err
    result = ss.SimilarityResult.load(tmp_path / "result.nc")
    assert result.models == ("wav2vec2-base", "random:wav2vec2-base", "random:wav2vec2-base@1")
    kept = result.attributes["models"]
    assert len({entry["sha256"] for entry in kept.values()}) == 3
    assert [entry.get("seed") for entry in kept.values()] == [None, 0, 1]
    assert kept["random:wav2vec2-base@1"]["source"] == f"random:{BASE}"


# --- mistakes: exit code 2 and one line that names the thing and what was expected ---


def _model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copy(BASE / name, folder)
    (folder / "model.safetensors").chmod(0o644)
    return folder


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _without_one_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layers.1.attention.k_proj.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer_norm.weight"
    tensors[name] = np.concatenate([tensors[name], tensors[name]])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _unknown_family(folder: Path) -> None:
    _change_config(folder, model_type="whisper", architectures=["WhisperModel"])


def _half_rate(folder: Path) -> None:
    _change_config(folder, conv_stride=[5, 2, 2, 2, 2, 2, 4])


MODEL_MISTAKES = {
    _without_config: ("model", "no config.json", "save_pretrained"),
    _without_weights: ("model", "no weights", "model.safetensors", "pytorch_model.bin"),
    _without_one_weight: ("encoder.layers.1.attention.k_proj.bias",),
    _wrong_shape: ("encoder.layer_norm.weight", "32", "64"),
    _truncated: ("model/model.safetensors", "safetensors file"),
    _unknown_family: ("whisper", "wav2vec2"),
    _half_rate: ("wav2vec2-base", "320 samples", "model", "640", "frames must correspond"),
}


def one_line(ended: Ended, *parts: str) -> None:
    """A mistake, in one line; behind what a run says of itself, as far as it came."""
    assert ended.code == 2, ended
    told = ("reading ", "4 layers, ", "compiling ")
    for begins in told[: len(ended.err) - 1]:
        assert ended.err.pop(0).startswith(begins)
    assert len(ended.err) == 1, ended.err
    assert ended.err[0].startswith("error: ")
    for part in parts:
        assert part in ended.err[0], ended.err[0]
    assert ended.out == ""


@pytest.mark.parametrize("spoil", MODEL_MISTAKES, ids=lambda spoil: spoil.__name__)
def test_mistakes_in_models(spoil, script, tmp_path, good, monkeypatch):
    folder = _model(tmp_path)
    spoil(folder)
    monkeypatch.setattr(batching, "read", lambda source: pytest.fail("audio was read"))
    ended = script(f"--models={BASE},{folder}", f"--audio={good}", f"--workdir={tmp_path / 'out'}")
    one_line(ended, *MODEL_MISTAKES[spoil])
    assert not (tmp_path / "out" / "result.nc").exists()


def test_hostile_checkpoint(script, tmp_path, good):
    folder, marker = _model(tmp_path), tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    payload = pickle.dumps({"encoder.layer_norm.bias": Hostile()}, protocol=2)
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
    ended = script(f"--models={folder}", f"--audio={good}", f"--workdir={tmp_path / 'out'}")
    one_line(ended, f"{folder}/pytorch_model.bin", "system")
    assert not marker.exists()
    pickle.loads(payload)  # it would have
    assert marker.exists()


FLAG_MISTAKES = {
    "measure": (["--measures=lincka,linkca"], ("'linkca'", "lincka", "svcca", "paper")),
    "level": (["--levels=neurons"], ("'neurons'", "layer, mixed, neuron")),
    "layer": (["--layers=99"], ("wav2vec2-base", "0 to 3", "99")),
    "layer, a word": (["--layers=first"], ("--layers=first", "0,6,-1")),
    "last layer": (["--last_layer=row"], ("--last_layer=row", "normed", "raw")),
    "minutes": (["--max_minutes=-3"], ("max_minutes=-3", "positive")),
    "minutes, a word": (["--max_minutes=ten"], ("--max_minutes=ten", "float")),
    "batch": (["--batch_seconds=0"], ("batch_seconds=0", "> 0")),
    "batch, endless": (["--batch_seconds=inf"], ("batch_seconds", "86400")),
    "seed": (["--seed=-1"], ("seed", "non-negative")),
    "stride": (["--frame_stride=0"], ("frame_stride", "positive")),
    "pool": (["--pool=word"], ("--pool=word", "utterance", "segment")),
    "segments of nothing": (["--pool=segment"], ("pool='segment'", "alignments", ".TextGrid")),
    "labels of nothing": (["--drop_labels=SIL"], ("drop_labels", "alignments")),
    "unused alignments": (["--alignments=a.tsv"], ("not used", "pool", "drop_labels")),
    "no such alignments": (
        ["--alignments=./no/such.tsv", "--pool=segment"],
        ("no/such.tsv", "No such file"),
    ),
    "alignments of another kind": (
        [f"--alignments={BASE}/config.json", "--pool=segment"],
        ("config.json", "unknown suffix", ".TextGrid"),
    ),
    "sample": (["--sample_frames=1"], ("sample_frames is 1", "4 to 10000")),
    "misspelt flag": (["--max_minute=3"], ("'max_minute'", "max_minutes", "--help")),
    "flag without value": (["--layers"], ("layers", "--help")),
    "stray word": (["speech"], ("'speech'", "--flag=value")),
    "no models": (["--models="], ("--models", "required")),
    "an empty model": ([f"--models={BASE},,"], ("--models=", "hub ids or folders")),
    "no such folder": (["--models=./no/such"], ("./no/such", "no such folder")),
    "a file as model": ([f"--models={BASE}/config.json"], ("config.json", "folder")),
    "no audio": (["--audio="], ("--audio", "required")),
    "no such audio": (["--audio=./no/such"], ("no/such", "does not exist", "manifest")),
    "audio of another kind": ([f"--audio={BASE}/config.json"], ("config.json", "suffix", ".wav")),
    "audio folder without audio": ([f"--audio={BASE}"], ("no audio below", ".flac")),
    "no workdir": (["--workdir="], ("--workdir", "required")),
    "figure format": (["--figure_formats=png,jpg"], ("figure_formats", "png, pdf, svg")),
    "figure style": (["--figure_style=fancy"], ("--figure_style=fancy", "labelled", "paper")),
    "workdir below a file": ([f"--workdir={BASE}/config.json/x"], ("--workdir=", "cannot be")),
}


@pytest.mark.parametrize("name", FLAG_MISTAKES)
def test_mistakes_in_flags(name, script, tmp_path, good, monkeypatch):
    monkeypatch.setattr(batching, "read", lambda source: pytest.fail("audio was read"))
    arguments, expected = FLAG_MISTAKES[name]
    right = [f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}"]
    one_line(script(*right, *arguments), *expected)


def test_nothing_is_loaded_for_an_unknown_measure(script, tmp_path, monkeypatch):
    """With everything wrong at once, what costs nothing to check is said first."""
    monkeypatch.setattr(encoders, "load_encoder", lambda *a, **k: pytest.fail("a model was loaded"))
    arguments = ["--models=./no/such", "--audio=./neither", f"--workdir={tmp_path}"]
    one_line(script(*arguments, "--measures=linkca"), "unknown measure 'linkca'")


@pytest.mark.parametrize("missing", ["models", "audio", "workdir"])
def test_missing_flag(missing, script, tmp_path, good):
    given = {"models": BASE, "audio": good, "workdir": tmp_path}
    arguments = [f"--{flag}={value}" for flag, value in given.items() if flag != missing]
    one_line(script(*arguments), f"--{missing} is required", "--help")


def test_nothing_usable(script, tmp_path):
    """The reasons are told file by file, and then the one line."""
    audio = tmp_path / "audio"
    audio.mkdir()
    _write_unusable(audio)
    workdir = tmp_path / "out"
    ended = script(f"--models={BASE}", f"--audio={audio}", f"--workdir={workdir}")
    assert ended.code == 2
    assert [line.split()[0] for line in ended.err[:3]] == ["reading", "4", "compiling"]
    assert ended.err[3:-1] == [
        line
        for line in ended.err
        if line.startswith("skipped ") and line.split()[1][:-1] in UNUSABLE
    ]
    assert len(ended.err) == 3 + len(UNUSABLE) + 1
    assert ended.err[-1].startswith(f"error: {audio}: no usable audio (4 files skipped")


def test_interrupt(script, tmp_path, good, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ss, "compare", interrupted)
    monkeypatch.setattr(ss, "merge", interrupted)
    arguments = [f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}"]
    for _ in range(2):  # the same command is not refused
        ended = script(*arguments, "--checkpoint_every=2.5")
        hint = (
            "interrupted before the first checkpoint (every 2.5 minutes, --checkpoint_every); the "
            "same command starts anew"
        )
        assert (ended.code, ended.out, ended.err) == (130, "", [hint])
    ended = script(*arguments, "--resume")
    assert ended.err[0] == f"no checkpoint in {tmp_path}: starting from the beginning"
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert script(*arguments).code == 2
    ended = script(*arguments, "--resume")
    hint = "interrupted; go on with the same command and --resume"
    assert (ended.code, ended.out, ended.err) == (130, "", [hint])
    other = script(f"--jobs={tmp_path}", f"--workdir={tmp_path / 'both'}", main=merge.main)
    assert (other.code, other.out, other.err) == (130, "", ["interrupted"])  # nothing to go on with
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["level"], last["message"]) == ("error", "KeyboardInterrupt")


def test_a_bug_keeps_its_traceback(script, tmp_path, good, monkeypatch):
    monkeypatch.setattr(ss, "compare", lambda *args, **kwargs: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        script(f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}")


def test_quiet(compared, script, tmp_path, mixed):
    """Neither the table nor the bars nor what was skipped; the log has it, and errors are said."""
    arguments = [f"--models={BASE}", f"--audio={mixed}", "--layers=0,-1", "--measures=lincka"]
    ended = script(*arguments, f"--workdir={tmp_path}", "--quiet")
    assert ended == Ended(0, "", [])
    assert (tmp_path / "result.nc").exists()
    said = [json.loads(line)["message"] for line in (tmp_path / "log.jsonl").open()]
    assert any(line.startswith("skipped empty.wav") for line in said)
    one_line(script(*arguments, f"--workdir={tmp_path}", "--quiet"), "exists")
    ended = script(*arguments, f"--workdir={tmp_path}", "--overwrite")
    assert "within" in ended.out and any("empty.wav" in line for line in ended.err)


def test_quiet_merge(script, tmp_path, good):
    job = tmp_path / "job"
    arguments = [f"--models={BASE}", f"--audio={good}", "--layers=0,-1", "--measures=lincka"]
    ended = script(*arguments, f"--workdir={job}", "--keep_statistics", "--quiet")
    assert ended == Ended(0, "", [])
    arguments = [f"--jobs={job}", "--measures=maxcorr", "--figure_formats=pdf"]
    ended = script(*arguments, f"--workdir={tmp_path / 'quiet'}", "--quiet", main=merge.main)
    assert ended == Ended(0, "", [])
    ended = script(*arguments, f"--workdir={tmp_path / 'loud'}", main=merge.main)
    assert ended.code == 0 and "\nmaxcorr  " in ended.out
    written = {path.name for path in (tmp_path / "loud" / "figures").iterdir()}
    assert written == {"facts.pdf", "heatmap_maxcorr.pdf", "trend_maxcorr.pdf"}


def test_figures_that_cannot_be_drawn_are_refused_first(compared, monkeypatch):
    monkeypatch.setattr(ss, "compare", lambda *a, **k: pytest.fail("something was compared"))
    for wrong in ({"figure_formats": ("jpg",)}, {"figure_style": "fancy"}):
        config = dataclasses.replace(compared.config, overwrite=True, **wrong)
        with pytest.raises(ss.UserError, match=r"'(jpg|fancy)'"):
            compare.run(config)


def test_figures_as_asked_for(compared, tmp_path):
    """In place of what was there, and nothing else in the folder is touched."""
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("old.png", "old.pdf", "mine.txt"):
        (folder / name).touch()
    _flags.save_result(compared.result, tmp_path, {}, ("pdf", "png"), "paper")
    names = {path.name for path in folder.iterdir()}
    drawn = {f"{k}_{m}" for k in ("heatmap", "trend") for m in MEASURES.split(",")} | {"facts"}
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")} | {"mine.txt"}


def test_help_measures(script):
    ended = script("--help_measures")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == [m.name for m in ss.list_measures()]
    for line, measure in zip(lines, ss.list_measures()):
        assert measure.summary in line and measure.reference in line


def test_demo_refuses_what_it_would_ignore(script, tmp_path):
    one_line(script("--measures=all", main=demo.main), "--measures", "experiments.compare")
    one_line(script("--groups=9", main=demo.main), "--groups", "experiments.replicate")
    file = tmp_path / "file"
    file.touch()
    one_line(script(f"--workdir={file}", main=demo.main), f"--workdir={file}", "cannot be written")


def test_flags_and_settings_agree():
    """Every flag of a setting has its default and its name."""
    with flagsaver.flagsaver(models=["m"], audio="a", workdir="w"):
        flags.FLAGS.mark_as_parsed()
        config = compare.config_from_flags()
    assert config == compare.Config(models=("m",), audio="a", workdir="w")


def test_log_survives_what_is_not_text(tmp_path, capsys):
    """A file name may be bytes that are no UTF-8; the library's logging is as before afterwards."""
    logger = logging.getLogger("speechsim_jax")
    before = logger.level, logger.propagate, list(logger.handlers)
    with contextlib.suppress(ss.UserError), _flags.log_to(tmp_path):
        logging.getLogger("speechsim_jax.audio.corpus").warning(
            "skipped %s", os.fsdecode(b"caf\xe9.wav")
        )
        logging.getLogger("speechsim_jax.audio.corpus").debug("fine\nprint")
        raise ss.UserError("the end")
    assert (logger.level, logger.propagate, logger.handlers) == before
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(entry["level"], entry["message"]) for entry in entries] == [
        ("warning", "skipped caf\udce9.wav"),
        ("debug", "fine\nprint"),
        ("error", "the end"),
    ]
    assert capsys.readouterr().err.splitlines() == ["skipped caf\\udce9.wav"]


# --- the same through a process of their own: start-up, absl's messages, what jax prints ---


def test_help_in_a_process():
    ended = in_subprocess("compare", "--help")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert lines[0] == compare.__doc__.splitlines()[0]  # what it does comes first
    assert max(map(len, lines)) <= 100
    flags_of = ("--models=A,B", "--workdir=TEXT", "--[no]overwrite", "--seed=N", "--max_minutes=X")
    for flag in (*flags_of, "--last_layer=normed|raw", "--[no]quiet", "--figure_formats=A,B"):
        assert sum(line.split()[:1] == [flag] for line in lines) == 1, flag
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "What is compared:" and "What is written:" in titles
    assert "(default: 4096)" in ended.out and "(default: 0)" in ended.out
    assert "(default: None)" not in ended.out and "<normed" not in ended.out
    key = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(compare)}
    shown = {line.split()[0].split("=")[0].removeprefix("--") for line in lines if "  --" in line}
    assert {name.removeprefix("[no]") for name in shown} == key


@pytest.mark.parametrize("main", [merge.main, demo.main, replicate.main, dynamics.main])
def test_help_of_others(main, monkeypatch, capsys):
    """Their own flags come first; those that they refuse are not there."""
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    _flags.start(main)
    out = capsys.readouterr().out
    module = sys.modules[main.__module__]
    assert out.startswith(module.__doc__.splitlines()[0])
    assert ("\n  --coordinator" in out) is False
    own = {"merge": "--jobs=A,B", "replicate": "--preset=zoo|paper", "dynamics": "--run=TEXT"}
    name = module.__name__.removeprefix("experiments.")
    if name in own:
        assert out.index("This script's own:") < out.index(own[name]) < out.index("What is")
    assert "\n  --[no]quiet" in out


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("1 // 0", 1, "ZeroDivisionError: integer division or modulo by zero"),
        ("(os.kill(os.getpid(), signal.SIGINT), time.sleep(9))", 130, "interrupted"),
        ("sys.stdout.write('said')", 0, None),
    ],
    ids=["failure", "ctrl-C", "nothing"],
)
def test_exit_codes_of_a_process(body, code, says):
    """With --quiet: the reason on stderr, and nothing on stdout."""
    program = (
        "import os, signal, sys, time\nfrom experiments import _flags\n"
        # a background job of a shell ignores it, and so do its children
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv = ['script', '--quiet']\n_flags.start(lambda: {body})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (code, ""), done
    lines = done.stderr.splitlines()
    assert (lines[-1] if lines else None) == says
    assert ("Traceback" in done.stderr) == (code == 1)
    assert len(lines) <= 1 or code == 1


def test_strict_in_a_process(tmp_path, mixed):
    ended = in_subprocess(
        "compare", f"--models={BASE}", f"--audio={mixed}", f"--workdir={tmp_path}", "--strict"
    )
    one_line(ended, "empty.wav is empty", "repair or remove it")
    assert not (tmp_path / "result.nc").exists()
