"""Fixtures that more than one test file uses."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_CACHE = "SPEECHSIM_TEST_CACHE"

# Files that take minutes start first, so that no worker waits for the last of them.
_LONGEST = (
    "test_demo.py", "test_mesh.py", "test_live_full_size.py", "test_shard_processes.py",
    "test_benchmarks.py", "test_zoo.py", "test_parity.py", "test_live_training.py",
)  # fmt: skip


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of real speech that $SPEECHSIM_SPEECH names; without it the test is skipped."""
    folder = os.environ.get("SPEECHSIM_SPEECH")
    if not folder:
        pytest.skip("SPEECHSIM_SPEECH names no folder of real speech")
    path = Path(folder)
    assert path.is_dir(), f"SPEECHSIM_SPEECH={folder} is no folder"
    return path


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_file() -> Iterator[None]:
    """Drop compiled programs after a file, if there are many: a process can hold only so many.

    Each takes memory maps, of which there are 65,530; the next compilation then crashes.
    """
    yield
    if "jax" in sys.modules and _memory_maps() > 20_000:
        sys.modules["jax"].clear_caches()
        gc.collect()


def _memory_maps() -> int:
    """Of this process; 0 where the system does not say."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


def pytest_configure(config: pytest.Config) -> None:
    """Workers, and commands in processes of their own, share a cache of compiled programs.

    It lies in a folder of this session, or in the one that $SPEECHSIM_TEST_CACHE names: nothing of
    the user's is read or written.
    """
    if not hasattr(config, "workerinput"):  # workers inherit it
        folder = os.environ.get(_CACHE) or tempfile.mkdtemp(prefix="speechsim-tests-")
        os.environ["XDG_CACHE_HOME"] = folder
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder, "xla"))
        # Small programs too: a command compiles dozens of them.
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # else XLA's loader reports each program read


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder of this session."""
    if not hasattr(config, "workerinput") and not os.environ.get(_CACHE):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which they are to start, those of `_LONGEST` first."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave torch unimported where its tests are deselected anyway."""
    deselected = config.option.markexpr.startswith("not parity")
    return True if deselected and collection_path.name.startswith("test_live_") else None
