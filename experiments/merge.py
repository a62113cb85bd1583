"""python -m experiments.merge: `speechsim merge` from a clone."""

from speechsim_jax.commands import flags, merge

if __name__ == "__main__":
    flags.start(merge.main)
