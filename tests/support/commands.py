"""Commands as a user meets them: in this process, or in one of their own."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from speechsim_jax.commands import entry, run_command
from tests.support.paths import ROOT

BARS = ("audio:", "scores:", "checkpoints:", "probes:", "step")


class Ended(NamedTuple):
    """How a command ended: exit code, standard output, and standard error without progress bars."""

    code: int
    out: str
    err: list[str]


def without_bars(text: str) -> list[str]:
    """The lines of standard error that are not of a progress bar."""
    lines = text.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(BARS)]


def flags_of(name: str) -> set[str]:
    """Names of the flags of a command."""
    return set(entry.load(name).define_flags())


def call(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> Ended:
    """A command in this process; it leaves the compilation cache of the process alone."""
    capsys.readouterr()
    if "compilation_cache" in flags_of(name):
        arguments = ("--compilation_cache=none", *arguments)
    code = 0
    try:
        run_command(name, arguments)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        code = ended.code
    out, err = capsys.readouterr()
    return Ended(code, out, without_bars(err))


def in_subprocess(name: str, *arguments: str, **environment: str) -> Ended:
    """`python -m experiments.NAME` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, without_bars(done.stderr))


def assert_mistake(ended: Ended, *parts: str) -> None:
    """Exit code 2, and an error in one line, the last, which names these parts."""
    assert (ended.code, ended.out) == (2, ""), ended
    errors = [line for line in ended.err if line.startswith("error: ")]
    assert errors == ended.err[-1:], ended.err
    for part in parts:
        assert part in ended.err[-1], ended.err[-1]
