"""Flags that several scripts share, and how a script starts, logs and fails."""

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
import jax
import tqdm.auto
from absl import app, flags

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.commands import help
from speechsim_jax.errors import UserError
from speechsim_jax.runtime import processes

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results; made if missing.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the results in --workdir.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of every random choice.", lower_bound=0)
QUIET = flags.DEFINE_bool("quiet", False, "Print nothing but errors; log.jsonl has the rest.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs between runs; empty for none (default: in the user's "
    "cache on accelerators, none on a CPU, where reloading them prints alarming messages).",
)


def start(main: Callable[[], None]) -> None:
    """Parse the flags and run `main`, or print the page of --help.

    Exit codes: 0; 1 for a failure, with its traceback; 2 for a user's mistake, 130 for ctrl-C, both
    with one line on stderr.
    """
    if {"--help", "-help", "-h", "--helpshort"} & set(sys.argv[1:]):
        print(help.page(sys.modules[main.__module__]))
        return
    # It prints its warnings itself, and absl would print them again.
    logging.getLogger("huggingface_hub").propagate = False
    app.run(lambda _: guarded(main), flags_parser=parse)


def parse(argv: Sequence[str]) -> list[str]:
    """Read the flags; what is wrong with them prints one line and exits with code 2."""
    try:
        rest = flags.FLAGS(list(argv))
    except SystemExit:  # --helpfull, which absl ends with code 1
        sys.exit(0)
    except flags.Error as error:
        _fail(f"{error}; see --help")
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}; every option is a --flag=value, see --help")
    if flags.FLAGS["verbosity"].using_default_value:  # at INFO, jax tells which TPUs it misses
        level = absl.logging.ERROR if quiet() else absl.logging.WARNING
        flags.FLAGS["verbosity"].value = level
        flags.FLAGS["verbosity"].using_default_value = False
    return rest


def guarded(main: Callable[[], None]) -> None:
    """Run `main`; a user's mistake prints one line and exits with code 2, ctrl-C with 130."""
    try:
        with contextlib.redirect_stdout(io.StringIO()) if quiet() else contextlib.nullcontext():
            main()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        own = flags.FLAGS.get_key_flags_for_module(sys.modules[main.__module__])
        print(f"interrupted{_how_to_go_on({flag.name for flag in own})}", file=sys.stderr)
        sys.exit(130)


def _how_to_go_on(own: Collection[str]) -> str:
    """What a script with these flags says to who has interrupted it."""
    if "resume" not in own:
        return ""
    workdir = Path(WORKDIR.value or "").expanduser()
    # Either is refused without --resume; before, there is nothing that a run could go on with.
    if WORKDIR.value and ((workdir / "checkpoints").exists() or any(workdir.glob("*/plan.json"))):
        return "; go on with the same command and --resume"
    every = ""
    if "checkpoint_every" in own:
        minutes = flags.FLAGS["checkpoint_every"].value
        every = f" (every {minutes:g} minutes, --checkpoint_every)"
    return f" before the first checkpoint{every}; the same command starts anew"


def quiet() -> bool:
    """Whether --quiet is given; in a notebook there are no flags, and it is not."""
    return flags.FLAGS.is_parsed() and QUIET.value


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
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


class _AboveTheBar(logging.Handler):
    """Lines on stderr that do not run into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode("utf-8", "backslashreplace").decode()
        tqdm.auto.tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Send the package's log to stderr and `folder`/log.jsonl for as long as this lasts.

    Of several processes the first writes it, the others log-1.jsonl and so on.

    The file also keeps what is too fine for stderr (with --quiet, all but errors), and the error
    that ended it.
    """
    logger = logging.getLogger("speechsim_jax")
    before = logger.level, logger.propagate, logger.handlers
    # An undecodable file name becomes \udcXX, which is how JSON writes it too.
    name = "log.jsonl" if processes.is_first() else f"log-{processes.index()}.jsonl"
    file = logging.FileHandler(folder / name, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(_JsonLines())
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [_AboveTheBar(logging.ERROR if quiet() else logging.INFO), file]
    try:
        yield
    except BaseException as error:
        said = str(error) or type(error).__name__
        file.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, said, (), None))
        raise
    finally:
        level, logger.propagate, logger.handlers = before
        logger.setLevel(level)
        file.close()


def save_result(
    result: ss.SimilarityResult,
    workdir: Path,
    config: dict[str, Any],
    formats: Sequence[str] = ("png",),
    style: str = "labelled",
) -> None:
    """Write config.json, result.nc, scores.csv, report.html, figures/*, in place of older ones."""
    # Only now: a run that fails must not pair an older result with its own configuration.
    (workdir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    result.save(workdir / "result.nc")
    result.to_csv(workdir / "scores.csv")
    ss.write_report(result, workdir / "report.html")
    for stale in (workdir / "figures").glob("*.*"):
        if stale.suffix[1:] in figures.FORMATS:
            stale.unlink()
    figures.save_figures(result, workdir / "figures", formats, style)


def new_workdir(path: str | Path, overwrite: bool, result: str = "result.nc") -> Path:
    """Make the folder; raises UserError if it holds a file `result` that may not be replaced.

    Results of other scripts may lie in the same folder, and stay.
    """
    folder = Path(path).expanduser()
    try:
        if (folder / result).exists() and not overwrite:
            raise UserError(
                f"{folder / result} exists; choose another --workdir or pass --overwrite"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").touch()
    except OSError as error:
        raise UserError(
            f"--workdir={path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder
