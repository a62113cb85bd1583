"""The commands: `speechsim compare`, `speechsim merge`, ..., one module each.

A module has `Config`, a frozen dataclass; `run(config)`, for notebooks and tests; `define_flags`
and `main(values)`, for the command line. Importing one imports neither jax nor any other heavy
library: what computes is imported by `run`.
"""

from collections.abc import Sequence

from speechsim_jax.commands.interrupt import exit_on_interrupt


def main(argv: Sequence[str] | None = None) -> None:
    """The `speechsim` program: run the command that the first argument names.

    Args:
      argv: arguments without the program's name (default: those of the process).
    """
    if argv is None:
        exit_on_interrupt()
    from speechsim_jax.commands import entry

    entry.main(argv)


def run_command(name: str, argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
      name: of its module.
      argv: its flags (default: the arguments of the process).
    """
    if argv is None:
        exit_on_interrupt()
    from speechsim_jax.commands import entry

    entry.run_module(entry.load(name), argv, program=argv is None)
