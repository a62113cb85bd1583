"""Ctrl-C: a command stops, whatever it is doing.

A KeyboardInterrupt that is raised in the middle of an import or a callback may be swallowed there.
So until a command runs, Ctrl-C ends the process; later it raises KeyboardInterrupt, for folders to
be unlocked and temporary files deleted, and ends the process if that has not ended it soon. Either
way what is on disk is complete or recognised as not.
"""

import os
import signal
import sys
import threading
import types
from typing import Any

interrupted = threading.Event()
"""Set once Ctrl-C was pressed: an error that follows may come of it."""

# Time for cleaning up.
_SECONDS = 2.0


def exit_on_interrupt() -> None:
    """From now on, end the process on Ctrl-C."""
    _install(lambda *_: stop("interrupted"))


def raise_on_interrupt() -> None:
    """From now on, raise KeyboardInterrupt on Ctrl-C, and end the process if it is swallowed."""

    def interrupt(_: int, frame: types.FrameType | None) -> None:
        if _importing(frame):
            stop("interrupted")
        interrupted.set()
        timer = threading.Timer(_SECONDS, stop, ["interrupted"])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    shown, printed = sys.unraisablehook, sys.excepthook

    def unraisable(what: Any) -> None:  # raised in a destructor or a callback of the collector
        if what.exc_type is KeyboardInterrupt:
            stop("interrupted")
        shown(what)

    def uncaught(kind: Any, error: Any, trace: Any) -> None:  # modules in C print it while imported
        if issubclass(kind, KeyboardInterrupt):
            stop("interrupted")
        printed(kind, error, trace)

    sys.unraisablehook, sys.excepthook = unraisable, uncaught
    _install(interrupt)


def _importing(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported: modules in C may crash if that is broken off."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def stop(message: str) -> None:
    """End the process with a message and code 130, without waiting for its threads."""
    sys.stdout.flush()
    os.write(2, f"{message}\n".encode())
    os._exit(130)


def _install(handler: Any) -> None:
    # Signals belong to the main thread; a shell that started this in the background ignores them.
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
