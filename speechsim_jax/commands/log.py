"""The log of a command: short lines on stderr, everything in log.jsonl."""

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechsim_jax.errors import printable, printable_lines
from speechsim_jax.runtime.atomic_write import AnyPath, in_bucket, upload

_log = logging.getLogger(__name__)


def show_warnings_of_libraries(quiet: bool) -> None:
    """Send other libraries' warnings (with `quiet`: errors) to stderr."""
    level = logging.ERROR if quiet else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=level)
    # It prints its warnings itself.
    logging.getLogger("huggingface_hub").propagate = False


class PrintableOutput:
    """Standard output on which names from outside move no cursor and set no colours."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, with control characters but for ends of lines as escapes."""
        self._stream.write(printable_lines(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines(logging.Formatter):
    """The message, with control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _JsonLines(logging.Formatter):
    """One JSON object a record: time (seconds since the epoch), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # A JSON string may hold those that `printable` escapes, which a terminal would obey.
        return printable(json.dumps(entry, ensure_ascii=False))


class _AboveTheBar(logging.Handler):
    """Lines on stderr that do not run into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        import tqdm

        tqdm.tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def log_to(folder: AnyPath, progress: bool = True, name: str = "log.jsonl") -> Iterator[None]:
    """Send the package's log to stderr and a file in `folder` for as long as this lasts.

    The file also has the details that are too fine for stderr, and the error that ended the run.

    Args:
      folder: where the file is appended to. In a bucket it is written at the end, in place of an
        older one.
      progress: whether stderr gets more than errors.
      name: of the file.
    """
    if in_bucket(folder):
        with tempfile.TemporaryDirectory(prefix="speechsim-") as scratch:
            local = Path(scratch)
            try:
                with log_to(local, progress, name):
                    yield
            finally:
                upload(local / name, folder / name)
        return
    logger = logging.getLogger("speechsim_jax")
    before = logger.level, logger.propagate, logger.handlers
    file = logging.FileHandler(folder / name, encoding="utf-8")
    file.setFormatter(_JsonLines())
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    terminal = _AboveTheBar(logging.INFO if progress else logging.ERROR)
    terminal.setFormatter(_Lines())
    logger.handlers = [terminal, file]
    try:
        yield
    except BaseException as error:
        message = str(error) or type(error).__name__
        file.handle(_log.makeRecord(__name__, logging.ERROR, __file__, 0, message, (), None))
        raise
    finally:
        level, logger.propagate, logger.handlers = before
        logger.setLevel(level)
        file.close()
