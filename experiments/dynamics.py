"""python -m experiments.dynamics: `speechsim dynamics` from a clone."""

from speechsim_jax.commands import dynamics, flags

if __name__ == "__main__":
    flags.start(dynamics.main)
