"""The notebook for Colab and Kaggle is clean, installs without changing anything, and runs."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio.chosen import choose
from speechsim_jax.commands import compare
from tests.support.paths import ROOT
from tests.support.sound_files import noise, write

NOTEBOOK = ROOT / "experiments" / "colab.ipynb"
MODELS = ROOT / "tests" / "data" / "parity"


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


def test_no_address_of_this_repository_is_made_up():
    """The project has no public address: whoever runs the notebook says where it is."""
    assert 'REPOSITORY = ""  # @param {type:"string"}' in opened().cells[2].source
    assert not re.search(r"https?://|git@", NOTEBOOK.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- installing


@pytest.fixture
def install(monkeypatch, tmp_path):
    """The first code cell, run in an empty folder; what it would have had pip and git do."""
    monkeypatch.chdir(tmp_path)
    elsewhere = [place for place in sys.path if Path(place).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", elsewhere)
    commands: list[list[str]] = []

    def call(exit_codes=(0,), **settings) -> tuple[list[list[str]], dict]:
        codes = iter(exit_codes)

        def run(words, check=False):
            commands.append([str(word) for word in words])
            if "clone" in words:
                (Path(words[-1]) / "experiments").mkdir(parents=True)
                (Path(words[-1]) / "experiments" / "selfcheck.py").touch()
                return subprocess.CompletedProcess(words, 0)
            constraints.append(Path("constraints.txt").read_text().splitlines())
            return subprocess.CompletedProcess(words, next(codes))

        constraints: list[list[str]] = []
        monkeypatch.setattr(subprocess, "run", run)
        names: dict = {}
        exec(code_of(with_settings(opened(), **settings), "def install"), names)
        return commands, {"constraints": constraints, **names}

    return call


def test_what_is_installed_stays_as_it_is(install, tmp_path):
    (clone, pip), found = install(REPOSITORY="https://example.org/mine.git")
    target = str(tmp_path / "speechsim_clone")
    assert clone == ["git", "clone", "--depth=1", "https://example.org/mine.git", target]
    assert pip[:3] == [sys.executable, "-m", "pip"]
    assert pip[-4:] == ["--constraint", "constraints.txt", "--editable", f"{target}[demo,hub]"]
    (pins,) = found["constraints"]
    for name in ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "transformers"):
        assert f"{name}=={importlib.metadata.version(name)}" in pins
    assert not [pin for pin in pins if pin.startswith("speechsim")]
    assert str(tmp_path / "speechsim_clone") in sys.path


def test_where_that_does_not_fit_jax_still_stays(install, tmp_path):
    _, found = install(exit_codes=(1, 0), REPOSITORY="https://example.org/mine.git")
    first, second = found["constraints"]
    assert set(second) < set(first)
    kept = {pin.partition("==")[0] for pin in second}
    assert {"jax", "jaxlib", "numpy"} <= kept <= found["ACCELERATOR"]
    with pytest.raises(SystemExit, match="pip says above what does not fit"):
        install(exit_codes=(1, 1), REPOSITORY="https://example.org/mine.git")


@pytest.mark.parametrize("packed", [False, True])
def test_an_uploaded_repository(install, tmp_path, packed):
    upload = tmp_path / "upload" / "speechsim-main"
    write(upload / "x.wav", noise(400))
    (upload / "experiments").mkdir()
    (upload / "experiments" / "selfcheck.py").touch()
    given = upload.parent
    if packed:
        given = tmp_path / "main.zip"
        subprocess.run([sys.executable, "-m", "zipfile", "-c", given, upload], check=True)
    (pip,), found = install(REPOSITORY=str(given))
    assert found["clone"].is_relative_to(tmp_path / "speechsim_clone")
    assert pip[-1] == f"{found['clone']}[demo,hub]"


def test_a_repository_must_be_named_and_be_this_one(install, tmp_path):
    with pytest.raises(SystemExit, match="say in REPOSITORY where the repository is"):
        install()
    write(tmp_path / "other" / "x.wav", noise(400))
    with pytest.raises(SystemExit, match="other is another repository"):
        install(REPOSITORY=str(tmp_path / "other"))
    assert not (tmp_path / "speechsim_clone").exists()


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
    assert config.settings == ss.Settings(max_minutes=20)
    config, _ = configured(LAYOUT="TIMIT", MINUTES=1)
    assert config.settings == ss.Settings(max_minutes=1, layout="TIMIT")


def test_a_second_run_goes_on_from_the_first(configured, tmp_path):
    config, _ = configured(WORKDIR="results")
    assert not config.resume
    (tmp_path / "results").mkdir()
    config, _ = configured(WORKDIR="results")
    assert config.resume


# ---------------------------------------------------------------- running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the notebook has run, with two small encoders and a few seconds of speech."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = with_settings(
        opened(),
        INSTALL=False,
        MODELS=f"{MODELS / 'wav2vec2-base'}, {MODELS / 'hubert-large'}",
        AUDIO="synthetic",
        MINUTES=0.3,
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
    assert text(folder, "selfcheck.main()").count("ok     ") == 8
    assert re.search(
        r"96 utterances of \d+ speakers in speechsim_material/speech", text(folder, "MINUTES =")
    )
    results = folder / "speechsim_results"
    assert {path.name for path in results.iterdir()} >= {
        "config.json", "result.nc", "report.html", "figures", "log.jsonl",
    }  # fmt: skip
    result = ss.SimilarityResult.load(results / "result.nc")
    assert result.models == ("wav2vec2-base", "hubert-large")
    assert 0 < result.attributes["seconds"] <= 18
    assert np.isfinite(result.matrix("lincka").values).all()
    assert result.summary() in text(folder, "compare.run(")
    assert (folder / "speechsim_results.zip").stat().st_size > 10_000
    assert text(folder, "make_archive").count("hubert-large/") == len(result.representations) // 2
    assert text(folder, "CHECKPOINT").startswith("wav2vec2-base: wav2vec2, ")


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
