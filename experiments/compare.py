"""python -m experiments.compare: `speechsim compare` from a clone."""

from speechsim_jax.commands import compare, flags

if __name__ == "__main__":
    flags.start(compare.main)
