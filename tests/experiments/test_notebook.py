"""The notebook for Colab and Kaggle is clean, installs without changing anything, and runs."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import nbclient
import nbformat
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio.chosen import choose
from speechsim_jax.commands import compare, selfcheck
from tests.support.paths import ROOT
from tests.support.sound_files import noise, write

NOTEBOOK = ROOT / "experiments" / "colab.ipynb"
MODELS = ROOT / "tests" / "data" / "parity"
NAMES = ("wav2vec2-base", "hubert-large")


def opened() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def with_settings(notebook: nbformat.NotebookNode, **values) -> nbformat.NotebookNode:
    """The notebook with its form filled in: lines NAME = ...  # @param."""
    for name, value in values.items():
        pattern = re.compile(rf"^{name} = .*(?=  # @param )", re.MULTILINE)
        found = [cell for cell in notebook.cells if pattern.search(cell.source)]
        assert len(found) == 1, f"{len(found)} cells set {name}"
        found[0].source = pattern.sub(lambda _, v=value: f"{name} = {v!r}", found[0].source)
    return notebook


def code_of(notebook: nbformat.NotebookNode, containing: str) -> str:
    (found,) = (cell.source for cell in notebook.cells if containing in cell.source)
    return found


# ---------------------------------------------------------------- as it is committed


def test_nothing_that_ran_is_committed():
    raw = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    notebook = opened()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in raw["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "widgets" not in raw["metadata"]
    assert all(cell["metadata"] == {} for cell in raw["cells"])


def test_the_first_cell_after_the_install_checks_the_machine():
    code = [cell.source for cell in opened().cells if cell.cell_type == "code"]
    assert "pip" in code[0] and "pip" not in "".join(code[1:])
    assert "selfcheck.main()" in code[1]


def test_no_address_of_a_release_is_made_up():
    """The project has no public address: whoever runs the notebook says where the wheel is."""
    assert 'PACKAGE = ""  # @param {type:"string"}' in opened().cells[2].source
    assert not re.search(r"https?://|git@|git clone", NOTEBOOK.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- installing


@pytest.fixture
def install(monkeypatch, tmp_path):
    """The first code cell, run in an empty folder; what it would have had pip do."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def call(exit_codes=(0,), **settings) -> tuple[list[list[str]], dict]:
        codes = iter(exit_codes)

        def run(words):
            commands.append([str(word) for word in words])
            constraints.append(Path("constraints.txt").read_text().splitlines())
            return subprocess.CompletedProcess(words, next(codes))

        constraints: list[list[str]] = []
        monkeypatch.setattr(subprocess, "run", run)
        names: dict = {}
        exec(code_of(with_settings(opened(), **settings), "def install"), names)
        return commands, {"constraints": constraints, **names}

    return call


ADDRESS = "https://example.org/speechsim_jax-9.0-py3-none-any.whl"


def test_what_is_installed_stays_as_it_is(install):
    (pip,), found = install(PACKAGE=ADDRESS)
    assert pip[:3] == [sys.executable, "-m", "pip"]
    assert pip[-3:-1] == ["--constraint", "constraints.txt"]
    assert pip[-1] == f"speechsim_jax[demo,hub] @ {ADDRESS}"
    (pins,) = found["constraints"]
    for name in ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "transformers"):
        assert f"{name}=={importlib.metadata.version(name)}" in pins
    assert not [pin for pin in pins if pin.startswith("speechsim")]


def test_where_that_does_not_fit_jax_still_stays(install):
    _, found = install(exit_codes=(1, 0), PACKAGE=ADDRESS)
    first, second = found["constraints"]
    assert set(second) < set(first)
    kept = {pin.partition("==")[0] for pin in second}
    assert {"jax", "jaxlib", "numpy"} <= kept <= found["ACCELERATOR"]
    with pytest.raises(SystemExit, match="pip says above what does not fit"):
        install(exit_codes=(1, 1), PACKAGE=ADDRESS)


@pytest.mark.parametrize("named", [False, True])
def test_an_uploaded_wheel(install, tmp_path, named):
    """Without a name the latest that lies there."""
    older, newer = (tmp_path / f"speechsim_jax-{v}-py3-none-any.whl" for v in ("9.0", "9.1"))
    for age, wheel in enumerate((newer, older)):
        wheel.touch()
        os.utime(wheel, (1e9 - age, 1e9 - age))
    ((*_, requirement),), _ = install(PACKAGE=older.name if named else "")
    wheel = older if named else newer
    assert requirement == f"speechsim_jax[demo,hub] @ {wheel.as_uri()}"


def test_nothing_is_installed_where_the_package_is(install):
    commands, _ = install()
    assert commands == []


def test_a_wheel_that_is_nowhere(install, monkeypatch):
    with pytest.raises(SystemExit, match=r"no wheel in gone\.whl; say there where it is"):
        install(PACKAGE="gone.whl")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="no wheel in PACKAGE"):
        install()


# ---------------------------------------------------------------- the machine


@pytest.fixture
def machine(monkeypatch, capsys):
    """What the second cell says of a machine, without its checks."""

    def machine(backend: str, *programs: str) -> str:
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)
        monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
        monkeypatch.setattr(selfcheck, "main", lambda: None)
        exec(code_of(opened(), "selfcheck.main()"), {"Path": Path})
        return capsys.readouterr().out

    return machine


def test_what_jax_computes_on_is_said(machine):
    assert machine("tpu").startswith(f"TPU: {jax.device_count()} x ")
    assert machine("gpu", "nvidia-smi").count("\n") == 1
    assert "It has no accelerator" in machine("cpu")
    assert f"jax[cuda12]=={jax.__version__}" in machine("cpu", "nvidia-smi")


# ---------------------------------------------------------------- the settings of its form


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """What the cells of audio and of comparing ask for, with the form filled in."""
    monkeypatch.chdir(tmp_path)
    for name in ("ann/1.wav", "ann/2.wav", "bob/1.wav", "bob/1_mic2.wav"):
        write(tmp_path / "speech" / name, noise(16_000))

    def configured(**values) -> tuple[compare.Config, dict]:
        asked: list[compare.Config] = []
        summary = SimpleNamespace(summary=str)
        run = lambda config: asked.append(config) or summary  # noqa: E731
        names = {
            "ss": ss, "Path": Path, "models": ["a"], "MODELS": "a",
            "compare": SimpleNamespace(Config=compare.Config, run=run),
        }  # fmt: skip
        notebook = with_settings(opened(), AUDIO="speech", **values)
        for containing in ("AUDIO =", "compare.Config("):
            exec(code_of(notebook, containing), names)
        return asked[0], names

    return configured


def test_what_is_counted_is_what_is_compared(configured, capsys):
    config, names = configured(
        ONLY="*.wav", EXCLUDE="*_mic2.wav,*/2.wav", SPEAKER_FROM="^([^/]+)/", CHANNEL="left"
    )
    assert "2 utterances of 2 speakers in speech" in capsys.readouterr().out
    assert [source.id for source in names["corpus"].sources] == ["ann/1.wav", "bob/1.wav"]
    chosen = choose(config.audio, config.settings).corpus
    assert [(s.id, s.speaker, s.channel) for s in chosen.sources] == [
        ("ann/1.wav", "ann", 0), ("bob/1.wav", "bob", 0),
    ]  # fmt: skip
    config, _ = configured()
    assert config.settings == ss.Settings(max_minutes=20, tracks=("logmel", "f0"))
    config, _ = configured(LAYOUT="TIMIT", MINUTES=1, FEATURES="")
    assert config.settings == ss.Settings(max_minutes=1, layout="TIMIT")


def test_labels_are_those_that_are_named_or_known(configured):
    config, _ = configured(SPEAKER_FROM="^([^/]+)/")
    assert config.settings.labels == ("speaker",)
    config, _ = configured()  # nobody is known
    assert config.settings.labels == ()
    config, _ = configured(LABELS="phone:a.tsv,speaker")
    assert config.settings.labels == ("phone:a.tsv", "speaker")


def test_a_second_run_goes_on_from_the_first(configured, tmp_path):
    config, _ = configured(WORKDIR="results")
    assert not config.resume
    (tmp_path / "results").mkdir()
    config, _ = configured(WORKDIR="results")
    assert config.resume


# ---------------------------------------------------------------- running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the notebook has run, with two small encoders and an utterance of each voice."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = with_settings(
        opened(),
        MODELS=", ".join(str(MODELS / name) for name in NAMES),
        AUDIO="synthetic",
        MINUTES=1,
        CHECKPOINT=str(MODELS / "wav2vec2-base"),
    )
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(env=os.environ | environment, cwd=str(folder))
    (folder / "ran.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")
    return folder


def outputs(folder: Path, containing: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(folder / "ran.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if containing in cell.source)
    return cell.outputs


def text(folder: Path, containing: str) -> str:
    return "".join(
        each.text for each in outputs(folder, containing) if each.get("name") == "stdout"
    )


@pytest.mark.slow
def test_it_checks_compares_and_saves(folder):
    checks = text(folder, "selfcheck.main()")
    assert checks.startswith("CPU: ") and checks.count("ok     ") == 8
    assert re.search(
        r"96 utterances of \d+ speakers in speechsim_material/speech", text(folder, "MINUTES =")
    )
    results = folder / "speechsim_results"
    assert {path.name for path in results.iterdir()} >= {
        "config.json", "result.nc", "report.html", "figures", "log.jsonl",
    }  # fmt: skip
    result = ss.SimilarityResult.load(results / "result.nc")
    assert result.models == (*NAMES, "logmel", "f0", "speaker", "letter")
    assert 0 < result.attributes["seconds"] <= 60
    assert np.isfinite(result.matrix("lincka").values).all()
    assert result.summary() in text(folder, "compare.run(")
    assert (folder / "speechsim_results.zip").stat().st_size > 10_000
    assert text(folder, "CHECKPOINT").startswith("wav2vec2-base: wav2vec2, ")


@pytest.mark.slow
def test_standard_errors_and_a_contrast_are_shown(folder):
    result = ss.SimilarityResult.load(folder / "speechsim_results" / "result.nc")
    shown = text(folder, "result.contrast(")
    assert shown.startswith("±: standard error over ")
    rows = re.findall(r"^(\S+)  (\S+)  ([\d.]+) \[([\d.-]+), ([\d.-]+)\]", shown, re.MULTILINE)
    x_model, y_model = NAMES
    layers = [str(name) for name in result.representations if name.model == x_model]
    assert [row[0] for row in rows] == layers
    for x, y, score, low, high in rows:
        assert y.startswith(f"{y_model}/")
        assert float(low) <= float(score) <= float(high)
        assert float(score) == pytest.approx(result.matrix("lincka").loc[x, y].item(), abs=1e-3)
    assert re.search(
        r"^top less lowest: [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]$", shown, re.MULTILINE
    )


@pytest.mark.slow
def test_what_layers_encode_is_shown(folder):
    *figures, page = (each.data for each in outputs(folder, "read_concepts("))
    assert len(figures) == 4  # content, localisation, and the agreement on two labels
    assert all("image/png" in data for data in figures)
    for track in ("logmel", "f0", "speaker", "letter"):
        assert page["text/markdown"].count(f"| {track} |") >= len(NAMES)


@pytest.mark.slow
def test_maps_and_report_are_shown_in_it(folder):
    shown = [each.data for each in outputs(folder, "display(Image")]
    assert len(shown) == len(list((folder / "speechsim_results" / "figures").glob("*.png"))) > 4
    assert all("image/png" in data for data in shown)
    (report,) = outputs(folder, "srcdoc")
    assert report.data["text/html"].count("<iframe") == 1
    assert "&lt;!doctype html&gt;" in report.data["text/html"].lower()


def test_the_models_of_the_notebook_need_no_hub(monkeypatch):
    """What MODELS = "zoo" stands for is there without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict = {}
    exec(code_of(opened(), "ZOO ="), names)
    assert names["MODELS"] == "zoo" and len(names["models"]) == 4
    encoders = [ss.load_encoder(model) for model in names["models"]]
    assert {encoder.config.family for encoder in encoders} == {"wav2vec2", "hubert"}
