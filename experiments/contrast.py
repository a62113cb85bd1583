"""python -m experiments.contrast: `speechsim contrast` from a clone."""

from speechsim_jax.commands import run_command

if __name__ == "__main__":
    run_command("contrast")
