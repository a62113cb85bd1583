"""python -m experiments.models: `speechsim models` from a clone."""

from speechsim_jax.commands import run_command

if __name__ == "__main__":
    run_command("models")
