"""How a command starts, and how it ends when something is wrong.

Exit codes: 0; 1 for a failure, with its traceback, or for what cannot be written; 2 for a user's
mistake and 130 for ctrl-C. All but bugs print one line on stderr.
"""

import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import flags

from speechsim_jax.commands import help, interrupt, log
from speechsim_jax.errors import StorageError, UserError, did_you_mean, printable
from speechsim_jax.runtime.allocator import keep_pages
from speechsim_jax.runtime.atomic_write import as_path, in_bucket

COMMANDS = (
    "compare", "merge", "status", "contrast", "plan", "replicate", "concepts", "probe", "dynamics",
    "transcribe", "pretrain", "finetune", "synthesise", "card", "models", "inspect", "selfcheck",
    "demo",
)  # fmt: skip
# What a run leaves that --resume continues.
_PARTIAL = ("checkpoints", "*/job.json", "statistics/**/statistics.json")
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; see `commands.main`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in _HELP | {"help"}:
        print(overview())
    elif arguments[0] in ("--version", "-version"):
        print(f"speechsim_jax {importlib.metadata.version('speechsim_jax')}")
    elif arguments[0] not in COMMANDS:
        close = did_you_mean(arguments[0], COMMANDS)
        _fail(f"there is no command {arguments[0]!r}{close}; speechsim --help lists the commands")
    else:
        run_module(load(arguments[0]), arguments[1:], program=argv is None)


def overview() -> str:
    """The page of `speechsim --help`: every command with the first line of its documentation."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "speechsim COMMAND --flag=value ...", "", *lines, "",
            "speechsim COMMAND --help describes a command and its flags; speechsim --version.",
        ]
    )  # fmt: skip


def _summary(name: str) -> str:
    """First line of a command's docstring, without importing it."""
    spec = importlib.util.find_spec(f"speechsim_jax.commands.{name}")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0]


def load(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"speechsim_jax.commands.{name}")


def run_module(module: ModuleType, argv: Sequence[str] | None = None, program: bool = True) -> None:
    """Parse a module's flags and run its `main`, or print its page of --help.

    Args:
      module: of the command.
      argv: its flags (default: the arguments of the process).
      program: whether this is all that the process does, so that Ctrl-C may end it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = module.define_flags()
    positional = [values[name] for name in getattr(module, "POSITIONAL", ())]
    arguments = _named_positional(arguments, positional)
    if _HELP & set(arguments):
        with contextlib.suppress(BrokenPipeError):
            print(help.page(module.__doc__ or "", values), flush=True)
            return
        _discard_output()
        return
    _parse(values, arguments)
    quiet = "quiet" in values and values["quiet"].value
    log.show_warnings_of_libraries(quiet)
    if program:
        interrupt.raise_on_interrupt()
        keep_pages()
    try:
        output = io.StringIO() if quiet else log.PrintableOutput(sys.stdout)
        with contextlib.redirect_stdout(output):
            module.main(values)
    except UserError as error:
        _fail(str(error), 1 if isinstance(error, StorageError) else 2)
    except ImportError:  # which an interrupt becomes in the middle of a compiled module
        if program and interrupt.interrupted.is_set():
            interrupt.stop("interrupted")
        raise
    except BrokenPipeError:  # whoever read the output has stopped reading
        _discard_output()
    except KeyboardInterrupt:
        message = f"interrupted{_resume_hint(values)}"
        if program:  # threads that still compile or decode would be waited for
            interrupt.stop(message)
        print(message, file=sys.stderr)
        sys.exit(130)


def _named_positional(arguments: list[str], positional: Sequence[flags.Flag]) -> list[str]:
    """The arguments with the first ones as flags; one that is a list takes all that are left."""
    first = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    named, rest = [], arguments
    for flag, argument in zip(positional, first):
        whole = first if isinstance(flag.parser, flags.ListParser) else [argument]
        named.append(f"--{flag.name}={','.join(whole)}")
        rest = rest[len(whole) :]
    return [*named, *rest]


def _discard_output() -> None:
    """Let the interpreter's flush at exit go nowhere, after a broken pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(values: flags.FlagValues, arguments: list[str]) -> None:
    """Read the flags; what is wrong with them prints one line and exits with code 2."""
    try:
        rest = values(["speechsim", *arguments])
    except (flags.Error, ValueError) as error:
        _fail(f"{error}; see --help")
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}; every option is a --flag=value, see --help")


def _resume_hint(values: flags.FlagValues) -> str:
    """How an interrupted command is continued, where it can be."""
    if "resume" not in values:
        return ""
    if in_bucket(workdir := as_path(values["workdir"].value or "")):
        return "; continue with the same command and --resume"
    # Any is refused without --resume; before, there is nothing to resume.
    if values["workdir"].value and any(True for pattern in _PARTIAL for _ in workdir.glob(pattern)):
        return "; continue with the same command and --resume"
    if "checkpoint_every" not in values:
        return "; repeat the same command"
    minutes = values["checkpoint_every"].value
    return (
        f" before the first checkpoint (every {minutes:g} minutes, --checkpoint_every); the same "
        "command starts from the beginning"
    )


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
