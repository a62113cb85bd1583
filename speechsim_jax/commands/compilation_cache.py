"""Compiled programs, kept between runs."""

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def use_compilation_cache(folder: str | None = None) -> None:
    """Turn jax's persistent compilation cache on, for small programs too.

    Programs of each processor type and jaxlib version have a subfolder of their own: XLA compiles
    for the machine it runs on, and such a program may be wrong or end in SIGILL on another one.
    A folder that cannot be written turns the cache off and nothing else.

    Args:
      folder: where programs are kept; "none" or "" for nowhere (default: jax's own
        JAX_COMPILATION_CACHE_DIR if set, else speechsim_jax/xla in the user's cache folder).
    """
    if folder in ("", "none"):
        return
    if folder is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(folder or Path(home, "speechsim_jax", "xla")).expanduser() / _machine()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, RuntimeError) as error:
        _log.info("no compilation cache in %s: %s", path, error)
        return
    if not writable:
        _log.info("no compilation cache: %s is read-only", path)
        return
    # A full disk: jax warns for every program that it cannot write.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")
    # The CPU's loader reports an error for each program that it reads, on the very machine that has
    # compiled it: the tuning options prefer-no-gather and prefer-no-scatter are not features of a
    # processor. "1" is what jax sets, in the environment of child processes too.
    if _cpu_only() and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    _configure(
        jax_compilation_cache_dir=str(path),
        jax_persistent_cache_min_compile_time_secs=0.0,
        jax_persistent_cache_min_entry_size_bytes=-1,
    )


def _machine() -> str:
    """A name for this processor type and jaxlib version."""
    features = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        pass
    digest = hashlib.sha256(features.encode()).hexdigest()[:12]
    return f"jaxlib-{importlib.metadata.version('jaxlib')}-{digest}"


def _cpu_only() -> bool:
    """Whether jax can use nothing but the CPU here."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not (
        plugins or importlib.util.find_spec("libtpu")
    )


def _configure(**options: Any) -> None:
    """Set options of jax, without importing it."""
    if "jax" in sys.modules:
        for name, value in options.items():
            sys.modules["jax"].config.update(name, value)
    else:
        os.environ.update({name.upper(): str(value) for name, value in options.items()})
