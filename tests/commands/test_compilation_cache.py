"""Compiled programs are kept between runs, in silence, and never at the cost of a run."""

import os
from pathlib import Path

import pytest

from speechsim_jax.commands import compilation_cache
from tests.support.commands import in_subprocess
from tests.support.paths import ROOT
from tests.support.sound_files import noise, write

BASE = ROOT / "tests" / "data" / "parity" / "wav2vec2-base"


@pytest.fixture
def options(monkeypatch, tmp_path) -> dict[str, str]:
    """The options of jax that the cache sets; nothing is set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("warnings.filterwarnings", lambda *args, **kwargs: None)
    found = {}
    monkeypatch.setattr(compilation_cache, "_configure", lambda **values: found.update(values))
    return found


def test_the_default_is_in_the_users_cache(options, tmp_path):
    compilation_cache.use_compilation_cache()
    folder = Path(options["jax_compilation_cache_dir"])
    assert folder.is_dir() and folder.parent == tmp_path / "speechsim_jax" / "xla"
    assert folder.name.startswith("jaxlib-")
    assert options["jax_persistent_cache_min_compile_time_secs"] == 0


def test_another_processor_has_another_folder(options, tmp_path, monkeypatch):
    compilation_cache.use_compilation_cache()
    first = options["jax_compilation_cache_dir"]
    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *a, **k: "flags : sse" if self.name == "cpuinfo" else read_text(self, *a, **k),
    )
    compilation_cache.use_compilation_cache()
    assert options["jax_compilation_cache_dir"] != first


@pytest.mark.parametrize("folder", ["none", ""])
def test_no_cache(folder, options):
    compilation_cache.use_compilation_cache(folder)
    assert not options


def test_a_folder_that_cannot_be_made(options, tmp_path):
    (tmp_path / "file").touch()
    compilation_cache.use_compilation_cache(str(tmp_path / "file" / "below"))
    assert not options


def test_a_folder_that_cannot_be_written(options, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    compilation_cache.use_compilation_cache(str(tmp_path))
    assert not options


def test_the_users_own_choice_of_jax_stays(options, tmp_path, monkeypatch):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "mine")
    compilation_cache.use_compilation_cache()
    assert not options


@pytest.mark.slow
def test_reloading_programs_prints_nothing(tmp_path, monkeypatch):
    """Whereas XLA's loader on a CPU reports two unknown features for each of them."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name)
    audio = write(tmp_path / "noise.wav", noise(16_000))
    arguments = [
        f"--models={BASE}", f"--audio={audio}", "--layers=0,-1", "--measures=lincka",
        "--quiet",
    ]  # fmt: skip
    for number in range(2):
        ended = in_subprocess(
            "compare", *arguments, f"--workdir={tmp_path / str(number)}",
            XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_PLATFORMS="cpu",
        )  # fmt: skip
        assert (ended.code, ended.err) == (0, [])
    assert list((tmp_path / "cache" / "speechsim_jax").rglob("*-cache"))
    first, second = ((tmp_path / str(n) / "scores.csv").read_text() for n in range(2))
    assert first == second
