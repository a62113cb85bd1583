"""The commands: `speechsim compare`, `speechsim merge`, ..., one module each.

A module has `Config`, a frozen dataclass; `run(config)`, for notebooks and tests; `define_flags`
and `main(values)`, for the command line. Importing one imports neither jax nor any other heavy
library: what computes is imported by `run`.
"""

from speechsim_jax.commands.entry import COMMANDS, main, run_command

__all__ = ["COMMANDS", "main", "run_command"]
