"""python -m experiments.concepts: `speechsim concepts` from a clone."""

from speechsim_jax.commands import run_command

if __name__ == "__main__":
    run_command("concepts")
