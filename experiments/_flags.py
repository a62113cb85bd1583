"""Flags that several scripts share, and how a script starts and fails."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags

from speechsim_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results; made if missing.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the results in --workdir.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of every random choice.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs between runs; empty for none (default: in the user's "
    "cache on accelerators, none on a CPU, where reloading them prints alarming messages).",
)


def start(main: Callable[[], None]) -> None:
    """Parse the flags and run `main`; a user's mistake prints one line and exits with code 2."""
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if rest[1:]:
            raise UserError(f"unexpected argument {rest[1]!r}; every option is a --flag=value")
    except (flags.Error, UserError) as error:
        _fail(error)
    return rest


def _guarded(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def use_compilation_cache() -> None:
    """Turn the persistent compilation cache on, as --compilation_cache says."""
    folder = COMPILATION_CACHE.value
    if folder is None and jax.default_backend() != "cpu":
        folder = os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/speechsim_jax/xla"
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))


class _JsonLines(logging.Formatter):
    """One JSON object a record: time (seconds since the epoch), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(entry, ensure_ascii=False)


def log_to(folder: Path) -> Callable[[], None]:
    """Send the package's log to stderr and `folder`/log.jsonl; returns a function that ends it."""
    logger = logging.getLogger("speechsim_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(folder / "log.jsonl", encoding="utf-8")
    file.setFormatter(_JsonLines())
    logger.handlers = [console, file]

    def close() -> None:
        logger.handlers = []
        file.close()

    return close


def new_workdir(path: str | Path, overwrite: bool) -> Path:
    """Make the folder; raises UserError if it holds a result that may not be replaced."""
    folder = Path(path)
    if (folder / "result.nc").exists() and not overwrite:
        raise UserError(
            f"{folder / 'result.nc'} exists; choose another --workdir or pass --overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").touch()
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be written: {error.strerror}") from error
    return folder
