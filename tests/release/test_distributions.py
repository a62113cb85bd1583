"""What is released: built from the checkout, installed into an empty environment, and used there.

The environments have nothing but pip, and lie outside the checkout. Dependencies come from the
package index in the releases that these tests run on, so that a failure is one of the package;
whether it works with others is what `make matrix` tests.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.models import zoo
from tests.support.paths import ROOT
from tests.support.sound_files import noise, write

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
METADATA = f"speechsim_jax-{VERSION}.dist-info"
MODELS = ("contrastive_s", "predictive_s")
MIB = 2**20


class Distributions(NamedTuple):
    """What `make dist` builds, and the wheel that the checkout builds directly."""

    wheel: Path
    sdist: Path
    direct: Path


def run(*words: str | Path, folder: Path) -> str:
    """What a program prints, in a folder, with no way to the checkout or to models of the hub."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def new_environment(folder: Path) -> Path:
    """The Python of a virtual environment with nothing but pip."""
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Distributions:
    """Built in an environment of their own; without a package index the tests are skipped."""
    folder = tmp_path_factory.mktemp("build")
    python = new_environment(folder)
    tools = [each for each in PROJECT["project"]["optional-dependencies"]["dev"] if "build" in each]
    pip = [python, "-m", "pip", "install", "--quiet", "--retries=1", "--timeout=20"]
    try:
        run(*pip, *tools, *PROJECT["build-system"]["requires"], folder=folder)
    except AssertionError as error:
        pytest.skip(f"no package index can be reached: {str(error)[-300:]}")
    build = [python, "-m", "build", "--no-isolation"]
    run(*build, "--outdir", folder / "dist", ROOT, folder=folder)
    run(*build, "--wheel", "--outdir", folder / "direct", ROOT, folder=folder)
    (wheel,), (sdist,) = folder.glob("dist/*.whl"), folder.glob("dist/*.tar.gz")
    (direct,) = folder.glob("direct/*.whl")
    return Distributions(wheel, sdist, direct)


@pytest.fixture(scope="module")
def programs(distributions, tmp_path_factory) -> Path:
    """The folder of the programs of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    python = new_environment(folder)
    there = {each.name: each.version for each in importlib.metadata.distributions()}
    pins = [f"{name}=={version}" for name, version in there.items() if "speechsim" not in name]
    (folder / "constraints.txt").write_text("\n".join(pins))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    run(*pip, "--constraint", "constraints.txt", distributions.wheel, folder=folder)
    return python.parent


def names_in(wheel: Path) -> list[str]:
    return sorted(zipfile.ZipFile(wheel).namelist())


# ---------------------------------------------------------------- what they contain


def test_the_wheel_is_the_package_and_nothing_else(distributions):
    assert distributions.wheel.name == f"speechsim_jax-{VERSION}-py3-none-any.whl"
    package = [path for path in (ROOT / "speechsim_jax").rglob("*") if path.is_file()]
    expected = {str(p.relative_to(ROOT)) for p in package if "__pycache__" not in p.parts}
    about = {f"{METADATA}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    about |= {f"{METADATA}/licenses/{name}" for name in ("LICENSE", "LICENSES.md")}
    about |= {f"{METADATA}/extra_metadata/CITATION.cff"}
    assert set(names_in(distributions.wheel)) == expected | about
    assert distributions.wheel.stat().st_size < 16 * MIB


def test_the_checkout_builds_the_same_wheel_as_the_source_distribution(distributions):
    assert names_in(distributions.direct) == names_in(distributions.wheel)
    records = [
        zipfile.ZipFile(wheel).read(f"{METADATA}/RECORD")
        for wheel in (distributions.direct, distributions.wheel)
    ]
    assert records[0] == records[1]  # with a checksum of every file


def test_the_source_distribution_is_a_checkout(distributions):
    with tarfile.open(distributions.sdist) as archive:
        files = {Path(name) for name in archive.getnames()}
    assert {file.parts[0] for file in files} == {f"speechsim_jax-{VERSION}"}
    top = {file.parts[1] for file in files}
    assert top == {
        "speechsim_jax", "experiments", "tests", "docs", "requirements",
        "README.md", "BUILD_NOTES.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff",
        "LICENSE", "LICENSES.md", "Makefile", "pyproject.toml", ".gitignore", "PKG-INFO",
    }  # fmt: skip
    assert distributions.sdist.stat().st_size < 24 * MIB


# ---------------------------------------------------------------- what an installation can do


def test_it_is_found_without_the_checkout(programs, tmp_path):
    code = "import speechsim_jax as ss; print(ss.__version__, ss.__file__, sep='\\n')"
    version, file = run(programs / "python", "-c", code, folder=tmp_path).splitlines()
    assert version == VERSION
    assert Path(file).is_relative_to(programs.parent)
    assert run(programs / "speechsim", "--version", folder=tmp_path).split()[-1] == VERSION
    assert "compare" in run(programs / "speechsim", "--help", folder=tmp_path)
    assert "wav2vec2" in run(programs / "speechsim", "models", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_module_has_what_it_imports(programs, tmp_path):
    """Nothing that only the tests bring along."""
    code = """
import importlib, pkgutil, speechsim_jax
for module in pkgutil.walk_packages(speechsim_jax.__path__, "speechsim_jax."):
    print(importlib.import_module(module.name).__name__)
"""
    modules = run(programs / "python", "-c", code, folder=tmp_path).split()
    files = list((ROOT / "speechsim_jax").rglob("*.py"))
    assert len(modules) == len(files) - 1  # the package itself


def test_licences_and_citation_are_installed(programs):
    (about,) = programs.parent.glob(f"lib/python3*/site-packages/{METADATA}")
    for name in ("licenses/LICENSE", "licenses/LICENSES.md", "extra_metadata/CITATION.cff"):
        assert (about / name).read_bytes() == (ROOT / Path(name).name).read_bytes()


def test_two_models_of_the_zoo_are_compared(programs, tmp_path):
    for seed in range(12):
        tone = np.sin(2 * np.pi * (100 + 40 * seed) * np.arange(32_000) / 16_000)
        sound = (0.3 * tone + noise(32_000, seed)).astype(np.float32)
        write(tmp_path / "speech" / f"{seed}.wav", sound)
    names = run(
        programs / "python", "-c",
        "from speechsim_jax.models import zoo; print(*zoo.names())",
        folder=tmp_path,
    )  # fmt: skip
    assert tuple(names.split()) == zoo.names()
    printed = run(
        programs / "speechsim", "compare", f"--models={','.join(f'zoo:{m}' for m in MODELS)}",
        "--audio=speech", "--workdir=runs/first", folder=tmp_path,
    )  # fmt: skip
    assert "lincka" in printed
    written = tmp_path / "runs" / "first"
    for name in ("config.json", "scores.csv", "log.jsonl", "figures/heatmap_lincka.png"):
        assert (written / name).stat().st_size > 0
    assert "plotly-source" in (written / "report.html").read_text(encoding="utf-8")
    result = ss.SimilarityResult.load(written / "result.nc")
    assert result.models == MODELS
    assert result.attributes["versions"]["speechsim_jax"] == VERSION
    assert np.isfinite(result.matrix("lincka").values).all()
    assert np.isfinite(result.interval("lincka").values).any()
