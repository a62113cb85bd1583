"""Comparing and merging as a user meets them: what is written, and how mistakes are reported."""

import csv
import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

import speechsim_jax as ss
from speechsim_jax.audio import batching
from speechsim_jax.commands import compare
from speechsim_jax.commands.workdir import save_result
from speechsim_jax.comparison import prepared
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.settings import Output
from tests.support.commands import Ended, assert_mistake, call, in_subprocess
from tests.support.paths import ROOT

BASE = ROOT / "tests" / "data" / "parity" / "wav2vec2-base"
MEASURES = "maxcorr,lincka"
UNUSABLE = {
    "empty.wav": "is empty",
    "nan.wav": "has NaN at sample 700",
    "short.wav": "is too short: 10 ms",
    "words.wav": "cannot be decoded",
}


@pytest.fixture
def script(capsys):
    """`speechsim compare`, or another command, in this process."""
    return lambda *arguments, name="compare": call(capsys, name, *arguments)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """An encoder of another width and depth than those of the parity fixtures."""
    config = Wav2Vec2Config(
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
        output=Output(note="noise and tones"),
    )
    return Run(config, compare.run(config), workdir)


@pytest.mark.slow
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
    attributes = result.attributes
    assert attributes["note"] == "noise and tones"
    # Three files of a second (at 8 kHz too) and one of 0.9 s: (16000 - 400) // 320 + 1 frames, ...
    assert (attributes["utterances"], attributes["frames"]) == (4, 3 * 49 + 44)
    assert {entry["id"] for entry in attributes["skipped"]} == set(UNUSABLE)
    assert set(attributes["models"]) == set(result.models)
    digests = {entry["sha256"] for entry in attributes["models"].values()}
    assert len(digests) == 2 and all(len(bytes.fromhex(digest)) == 32 for digest in digests)
    assert attributes["models"]["narrow"]["source"] == str(narrow)
    assert attributes["versions"]["speechsim_jax"] == ss.__version__
    assert {"jax", "jaxlib", "flax", "numpy", "python"} <= set(attributes["versions"])
    assert len(bytes.fromhex(attributes["corpus"]["fingerprint"])) == 32
    assert attributes["settings"]["stats_dtype"] == "float32"


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_audio_is_listed_with_its_reason(compared, name):
    reasons = {entry["id"]: entry["reason"] for entry in compared.result.attributes["skipped"]}
    assert reasons[name].startswith(UNUSABLE[name])


@pytest.mark.slow
def test_overwrite(compared, script, tmp_path, good):
    """A result stays unless --overwrite is given, and then until there is a better one."""
    workdir = tmp_path / "before"
    shutil.copytree(compared.workdir, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*.*") if p.is_file()}
    arguments = [f"--models={BASE}", f"--audio={good}", f"--workdir={workdir}", "--layers=0,-1"]

    ended = script(*arguments)
    assert_mistake(ended, f"{workdir}/result.nc exists", "--workdir", "--overwrite")
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


@pytest.mark.slow
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
    attributes = ss.SimilarityResult.load(workdir / "result.nc").attributes
    # centres 0.2125 to 0.4925 and 0.6125 to 0.7925, every second of them
    assert (attributes["utterances"], attributes["rows"], attributes["frames"]) == (
        3,
        6,
        3 * (8 + 5),
    )
    assert attributes["sample"]["rows"] == 4
    assert attributes["settings"]["drop_labels"] == ["SIL", "noise"]
    assert json.loads((workdir / "config.json").read_text())["settings"]["pool"] == "segment"


@pytest.mark.slow
def test_random_baselines(script, tmp_path, good):
    """A model and what its architecture does untrained, without a second folder."""
    arguments = [f"--models={BASE},random:{BASE},random:{BASE}@1", f"--audio={good}"]
    options = ["--layers=0,-1", "--measures=lincka", "--max_minutes=0.02"]
    ended = script(*arguments, *options, f"--workdir={tmp_path}")
    assert ended.code == 0, ended.err
    result = ss.SimilarityResult.load(tmp_path / "result.nc")
    assert result.models == ("wav2vec2-base", "random:wav2vec2-base", "random:wav2vec2-base@1")
    models = result.attributes["models"]
    assert len({entry["sha256"] for entry in models.values()}) == 3
    assert [entry.get("seed") for entry in models.values()] == [None, 0, 1]
    assert models["random:wav2vec2-base@1"]["source"] == f"random:{BASE}"


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
    _change_config(folder, model_type="sew-d", architectures=["SEWDModel"])


MODEL_MISTAKES = {
    _without_config: ("model", "no config.json", "save_pretrained"),
    _without_weights: ("model", "no weights", "model.safetensors", "pytorch_model.bin"),
    _without_one_weight: ("encoder.layers.1.attention.k_proj.bias",),
    _wrong_shape: ("encoder.layer_norm.weight", "32", "64"),
    _truncated: ("model/model.safetensors", "safetensors file"),
    _unknown_family: ("sew-d", "wav2vec2"),
}


@pytest.mark.parametrize("spoil", MODEL_MISTAKES, ids=lambda spoil: spoil.__name__)
def test_mistakes_in_models(spoil, script, tmp_path, good, monkeypatch):
    folder = _model(tmp_path)
    spoil(folder)
    monkeypatch.setattr(batching, "read", lambda source: pytest.fail("audio was read"))
    ended = script(f"--models={BASE},{folder}", f"--audio={good}", f"--workdir={tmp_path / 'out'}")
    assert_mistake(ended, *MODEL_MISTAKES[spoil])
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
    assert_mistake(ended, f"{folder}/pytorch_model.bin", "system")
    assert not marker.exists()
    pickle.loads(payload)  # it would have
    assert marker.exists()


FLAG_MISTAKES = {
    "measure": (["--measures=lincka,linkca"], ("'linkca'", "did you mean 'lincka'", "paper")),
    "level": (["--levels=neurons"], ("'neurons'", "did you mean 'neuron'")),
    "layer": (["--layers=99"], ("wav2vec2-base", "0 to 3", "99")),
    "layer, a word": (["--layers=0,frist"], ("--layers", "did you mean 'first'", "0.0 to 1.0")),
    "layer, a fraction": (["--layers=0.5,1.5"], ("--layers", "'1.5'", "first or last")),
    "last layer": (["--last_layer=rawe"], ("--last_layer=rawe", "normed", "did you mean 'raw'")),
    "minutes": (["--max_minutes=-3"], ("--max_minutes", "-3", "more than 0")),
    "minutes, a word": (["--max_minutes=ten"], ("--max_minutes=ten", "float")),
    "batch": (["--batch_seconds=0"], ("--batch_seconds", "more than 0")),
    "batch, endless": (["--batch_seconds=inf"], ("--batch_seconds", "a number")),
    "seed": (["--seed=-1"], ("--seed", "at least 0")),
    "stride": (["--frame_stride=0"], ("--frame_stride", "at least 1")),
    "pool": (["--pool=word"], ("--pool=word", "utterance", "segment")),
    "segments of nothing": (["--pool=segment"], ("--pool", "alignments", ".TextGrid")),
    "labels of nothing": (["--drop_labels=SIL"], ("--drop_labels", "alignments")),
    "unused alignments": (["--alignments=a.tsv"], ("--alignments", "pool", "drop_labels")),
    "no such alignments": (
        ["--alignments=./no/such.tsv", "--pool=segment"],
        ("no/such.tsv", "No such file"),
    ),
    "alignments of another kind": (
        [f"--alignments={BASE}/config.json", "--pool=segment"],
        ("config.json", "suffix", ".textgrid"),
    ),
    "sample": (["--sample_frames=1"], ("--sample_frames", "at least 4")),
    "checkpoints": (["--checkpoint_every=-1"], ("--checkpoint_every", "at least 0")),
    "misspelt flag": (["--max_minute=3"], ("'max_minute'", "max_minutes", "--help")),
    "flag of another command": (["--jobs=a"], ("'jobs'", "--help")),
    "flag without value": (["--layers"], ("layers", "--help")),
    "stray word": (["speech"], ("'speech'", "--flag=value")),
    "no models": (["--models="], ("--models", "required")),
    "an empty model": ([f"--models={BASE},,"], ("--models=", "empty")),
    "no such folder": (["--models=./no/such"], ("./no/such", "no such folder")),
    "no such zoo model": (["--models=zoo:predictive_x"], ("zoo:predictive_x", "zoo:predictive_s")),
    "a file as model": ([f"--models={BASE}/config.json"], ("config.json", "folder")),
    "no audio": (["--audio="], ("--audio", "required")),
    "no such audio": (["--audio=./no/such"], ("no/such", "does not exist", "manifest")),
    "audio of another kind": (
        [f"--audio={BASE}/model.safetensors"],
        ("safetensors", "suffix", ".wav"),
    ),
    "a manifest of something else": (
        [f"--audio={BASE}/config.json"],
        ("config.json entry 1", "'path' is empty"),
    ),
    "audio folder without audio": ([f"--audio={BASE}"], ("no audio below", ".flac")),
    "no workdir": (["--workdir="], ("--workdir", "required")),
    "figure format": (["--figure_formats=png,svgg"], ("--figure_formats", "png, pdf", "'svg'")),
    "figure reference": (
        ["--figure_reference=closets"],
        ("--figure_reference=closets", "'closest'"),
    ),
    "figure style": (["--figure_style=papr"], ("--figure_style=papr", "labelled", "'paper'")),
    "exemplars": (["--exemplars=21"], ("--exemplars", "20")),
    "neuron of exemplars": (
        ["--exemplars=2", "--exemplars_neurons=base/1"],
        ("--exemplars_neurons=base/1", "MODEL/LAYER:NEURON"),
    ),
    "neurons without exemplars": (["--exemplars_neurons=base/1:3"], ("--exemplars_neurons",)),
    "workdir below a file": ([f"--workdir={BASE}/config.json/x"], ("--workdir=", "cannot be")),
    "shard": (["--shard=5/4"], ("there is no shard 5 of 4",)),
}


@pytest.mark.parametrize("name", FLAG_MISTAKES)
def test_mistakes_in_flags(name, script, tmp_path, good, monkeypatch):
    monkeypatch.setattr(batching, "read", lambda source: pytest.fail("audio was read"))
    arguments, expected = FLAG_MISTAKES[name]
    right = [f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}"]
    assert_mistake(script(*right, *arguments), *expected)


def test_nothing_is_loaded_for_an_unknown_measure(script, tmp_path, good, monkeypatch):
    monkeypatch.setattr(prepared, "load_encoder", lambda *a, **k: pytest.fail("a model was loaded"))
    arguments = [f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}"]
    assert_mistake(script(*arguments, "--measures=linkca"), "unknown measure 'linkca'")


@pytest.mark.parametrize("missing", ["models", "audio", "workdir"])
def test_missing_flag(missing, script, tmp_path, good):
    given = {"models": BASE, "audio": good, "workdir": tmp_path}
    arguments = [f"--{flag}={value}" for flag, value in given.items() if flag != missing]
    assert_mistake(script(*arguments), f"--{missing} is required", "--help")


def test_nothing_usable(script, tmp_path):
    """The reasons file by file, and then the one line."""
    audio = tmp_path / "audio"
    audio.mkdir()
    _write_unusable(audio)
    ended = script(f"--models={BASE}", f"--audio={audio}", f"--workdir={tmp_path / 'out'}")
    assert_mistake(ended, str(audio), "no usable audio", "4 files skipped")
    skipped = {line.split()[1][:-1] for line in ended.err if line.startswith("skipped ")}
    assert skipped == set(UNUSABLE)


def test_interrupt(script, tmp_path, good, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ss, "compare", interrupted)
    monkeypatch.setattr(ss, "merge", interrupted)
    arguments = [f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}"]
    for _ in range(2):  # the same command is not refused
        ended = script(*arguments, "--checkpoint_every=2.5")
        assert (ended.code, ended.out) == (130, "")
        assert ended.err[-1].startswith("interrupted before the first checkpoint (every 2.5 min")
    ended = script(*arguments, "--resume")
    assert any(f"nothing to resume in {tmp_path}" in line for line in ended.err)
    saved = tmp_path / "statistics" / "shard-1-of-1" / "pass-1.batch-000001.2030"
    saved.mkdir(parents=True)
    (saved / "statistics.json").touch()
    assert_mistake(script(*arguments), "unfinished run", "--resume", "--overwrite")
    ended = script(*arguments, "--resume")
    assert ended.code == 130 and ended.err[-1].startswith("interrupted; ")
    assert "--resume" in ended.err[-1]
    other = script(f"--jobs={tmp_path}", f"--workdir={tmp_path / 'both'}", name="merge")
    assert (other.code, other.out) == (130, "")
    assert other.err == ["interrupted; repeat the same command"]
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["level"], last["message"]) == ("error", "KeyboardInterrupt")


def test_a_bug_keeps_its_traceback(script, tmp_path, good, monkeypatch):
    monkeypatch.setattr(ss, "compare", lambda *args, **kwargs: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        script(f"--models={BASE}", f"--audio={good}", f"--workdir={tmp_path}")


@pytest.mark.slow
def test_quiet(compared, script, tmp_path, mixed):
    """Neither the table nor the bars nor what was skipped; the log has it, and errors are shown."""
    arguments = [f"--models={BASE}", f"--audio={mixed}", "--layers=0,-1", "--measures=lincka"]
    ended = script(*arguments, f"--workdir={tmp_path}", "--quiet")
    assert ended == Ended(0, "", [])
    assert (tmp_path / "result.nc").exists()
    messages = [json.loads(line)["message"] for line in (tmp_path / "log.jsonl").open()]
    assert any(line.startswith("skipped empty.wav") for line in messages)
    assert_mistake(script(*arguments, f"--workdir={tmp_path}", "--quiet"), "exists")
    ended = script(*arguments, f"--workdir={tmp_path}", "--overwrite")
    assert "within" in ended.out and any("empty.wav" in line for line in ended.err)


@pytest.mark.slow
def test_quiet_merge(script, tmp_path, good):
    job = tmp_path / "job"
    arguments = [f"--models={BASE}", f"--audio={good}", "--layers=0,-1", "--measures=lincka"]
    ended = script(*arguments, f"--workdir={job}", "--keep_statistics", "--quiet")
    assert ended == Ended(0, "", [])
    arguments = [f"--jobs={job}", "--measures=maxcorr", "--figure_formats=pdf"]
    ended = script(*arguments, f"--workdir={tmp_path / 'quiet'}", "--quiet", name="merge")
    assert ended == Ended(0, "", [])
    ended = script(*arguments, f"--workdir={tmp_path / 'loud'}", name="merge")
    assert ended.code == 0 and "\nmaxcorr  " in ended.out
    written = {path.name for path in (tmp_path / "loud" / "figures").iterdir()}
    assert written == {"facts.pdf", "heatmap_maxcorr.pdf", "trend_maxcorr.pdf"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"figure_formats": ("jpg",)},
        {"figure_formats": ()},
        {"figure_style": "fancy"},
        {"figure_reference": "best"},
        {"exemplars_audio": "loud"},
    ],
)
def test_figures_that_cannot_be_drawn_are_refused_first(wrong, compared):
    with pytest.raises(ss.UserError, match=next(iter(wrong))):
        dataclasses.replace(compared.config, **wrong)


def test_figures_as_asked_for(compared, tmp_path):
    """In place of what was there, and nothing else in the folder is touched."""
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("old.png", "old.pdf", "mine.txt"):
        (folder / name).touch()
    save_result(compared.result, tmp_path, {}, ("pdf", "png"), "paper")
    names = {path.name for path in folder.iterdir()}
    drawn = {f"{k}_{m}" for k in ("heatmap", "trend") for m in MEASURES.split(",")} | {"facts"}
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")} | {"mine.txt"}


@pytest.mark.slow
def test_exemplars_are_in_the_report_with_their_sound(script, tmp_path, good):
    job = tmp_path / "job"
    name = Path(BASE).name
    arguments = [f"--models={BASE}", f"--audio={good}", "--layers=0,-1", "--measures=maxcorr"]
    arguments += ["--exemplars=2", f"--exemplars_neurons={name}/0:3", "--quiet"]
    assert script(*arguments, f"--workdir={job}", "--keep_statistics").code == 0
    page = (job / "report.html").read_text()
    assert f"{name}/0, neuron 3 and {name}/" in page
    count = page.count("<audio")
    assert count >= 4
    result = ss.SimilarityResult.load(job / "result.nc")
    assert len(result.exemplars(f"{name}/0", 3)) == 2
    assert script(*arguments, f"--workdir={tmp_path / 'b'}", "--exemplars_audio=none").code == 0
    assert "<audio" not in (tmp_path / "b" / "report.html").read_text()
    again = [f"--jobs={job}", f"--exemplars_neurons={name}/0:3", "--quiet"]
    for more, sounds in (([f"--audio={good}"], count), ([], 0)):
        folder = tmp_path / f"merged-{sounds}"
        assert script(*again, *more, f"--workdir={folder}", name="merge").code == 0
        page = (folder / "report.html").read_text()
        assert page.count("<audio") == sounds and f"{name}/0, neuron 3 and" in page


def test_help_measures(script):
    ended = script("--help_measures")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == [m.name for m in ss.list_measures()]
    for line, measure in zip(lines, ss.list_measures()):
        assert measure.summary in line and measure.reference in line


# --- the same in a process of its own: start-up, and what other libraries print ---


@pytest.mark.slow
def test_strict_in_a_process(tmp_path, mixed):
    ended = in_subprocess(
        "compare", f"--models={BASE}", f"--audio={mixed}", f"--workdir={tmp_path}", "--strict"
    )
    assert_mistake(ended, "empty.wav is empty", "repair or remove it")
    assert not (tmp_path / "result.nc").exists()
